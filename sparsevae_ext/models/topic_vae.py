"""The topic model of Srivastava and Sutton 2017, with a product or a mixture of topics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.batch import CSRBatch
from ..data.blocks import csr_blocks
from ..nn import CSRLinear
from ..ops.linear_nll import linear_multinomial_nll
from ..ops.reparameterize_kl import reparameterize_kl
from ..ops.topic_multinomial import topic_multinomial_nll
from .base import check_count, xavier
from .linear_norm import LinearNorm
from .multinomial import MultinomialModel
from .posterior import GaussianPosterior
from .ranking import ScoreChunk, linear_scores, stable_topk

__all__ = ["TopicVAE"]

_OWNER = "TopicVAE"
_TOPIC_STD = 0.3


class TopicVAE(GaussianPosterior, MultinomialModel):
    r"""Topic model of documents as word counts, with an amortised logistic-normal posterior.

    .. math::
        \theta_i = \operatorname{softmax}(z_i), \quad z_i \sim q(z \mid x_i), \qquad
        \mathrm{loss} = \frac1B \sum_i \left( -\sum_j x_{ij} \log p_{ij}
            + \beta \, \mathrm{KL}(q(z \mid x_i) \,\|\, N(m, e^w)) \right)

    (Srivastava and Sutton 2017, "Autoencoding variational inference for topic models"), with the
    encoder N - hidden - hidden - 2 topics of the counts as they are, softplus after the hidden
    layers and dropout after the second, batch normalisation of the posterior's mean and
    log-variance (with a learned scale, where theirs has a centre only), and the Laplace
    approximation of a Dirichlet(alpha) as the prior,

    .. math::
        m_k = \log \alpha_k - \frac1K \sum_l \log \alpha_l, \qquad
        e^{w_k} = \frac{1}{\alpha_k} \left(1 - \frac2K\right) + \frac{1}{K^2} \sum_l \frac{1}{\alpha_l}.

    The decoders, with b the background, one number per word that all topics share:

    - "softmax", their ProdLDA, a product of experts:
      :math:`p_i = \operatorname{softmax}(\operatorname{BN}(\theta_i W^\top) + b)`, with dropout on
      :math:`\theta`. The batch normalisation is theirs, with a learned centre and no scale, but its
      statistics come from the covariance of :math:`\theta`
      (:class:`~sparsevae_ext.models.LinearNorm`): the same numbers, without the (B, N) logits.
    - "mixture", as in LDA: :math:`p_i = \theta_i \beta`, with the topics
      :math:`\beta_k = \operatorname{softmax}(w_k + b)` on the simplex. The loss costs only the
      non-zeros, and there is no dropout on :math:`\theta`, which would leave the simplex.

    In evaluation mode z is the posterior mean. ``fit`` calls :meth:`start_from` with the training
    rows, so that topics begin as departures from the word frequencies. Learning rates of 0.002 (the
    authors') to 0.02 and batches of 100 to 200 rows suit it; a mixture wants the larger ones.

    Args:
        n_words: number of columns N.
        topics: number K of topics, at least 2.
        hidden: width of both hidden layers.
        decoder: "softmax" or "mixture".
        alpha: of the Dirichlet prior, one number or K; small ones want documents of few topics.
        beta: weight of the divergence. ``model.beta`` is an ordinary attribute, for schedules.
        dropout: probability of dropping a unit of the second hidden layer in training, and with
            the "softmax" decoder a topic of :math:`\theta`.

    Shape:
        Input and target: (B, N), CSRBatch, torch.sparse_csr or dense.

    Raises:
        TypeError: if a width is not an int.
        ValueError: if an option is out of range or unknown.

    Example:
        >>> model = TopicVAE(30, topics=4, hidden=8)
        >>> out = model(torch.eye(30)[:5])
        >>> out.loss.backward()
        >>> model.encode(torch.eye(30)[:5]).shape
        torch.Size([5, 4])
    """

    name: ClassVar[str] = "topic-vae"
    columns: ClassVar[str] = "n_words"
    #: Chooses the best epoch: how well the words are predicted, not how they are ranked.
    monitor: ClassVar[str] = "perplexity"
    prior_mean: Tensor
    prior_logvar: Tensor

    def __init__(
        self,
        n_words: int,
        topics: int = 50,
        hidden: int = 100,
        decoder: str = "softmax",
        alpha: float | Sequence[float] = 1.0,
        beta: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        check_count(_OWNER, "topics", topics)
        if topics < 2:
            raise ValueError(f"{_OWNER}(): expected topics >= 2, but got {topics}")
        if decoder not in ("softmax", "mixture"):
            raise ValueError(
                f"{_OWNER}(): expected decoder to be softmax or mixture, but got {decoder!r}"
            )
        concentration = _concentration(alpha, topics)
        super().__init__(
            n_words=n_words,
            topics=topics,
            hidden=hidden,
            decoder=decoder,
            alpha=alpha if isinstance(alpha, int | float) else list(alpha),
            beta=beta,
            dropout=dropout,
        )
        self.beta = beta
        self.latent = topics
        self.kind = decoder
        self.encoder = CSRLinear(n_words, hidden)
        self.encoder2 = nn.Linear(hidden, hidden)
        self.posterior = nn.Linear(hidden, 2 * topics)
        self.posterior_norm = nn.BatchNorm1d(2 * topics)
        self.output = nn.Linear(topics, n_words)
        self.norm = LinearNorm(topics) if decoder == "softmax" else None
        mean, logvar = laplace_prior(concentration)
        self.register_buffer("prior_mean", mean, persistent=False)
        self.register_buffer("prior_logvar", logvar, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises as the authors' code does: Xavier uniform weights, biases 0.

        The topics of a mixture are normal of deviation 0.3 around the background.
        """
        xavier(self)
        self.posterior_norm.reset_parameters()
        if self.norm is None:
            # Topics that begin nearly equal would stay so for long.
            nn.init.normal_(self.output.weight, std=_TOPIC_STD)
        else:
            # Until rows have been seen: theta of a standard normal z, to first order.
            k = self.latent
            self.norm.running_mean.fill_(1.0 / k)
            self.norm.running_cov.copy_((torch.eye(k) - 1.0 / k) / k**2)

    @torch.no_grad()
    def start_from(self, data: Any) -> None:
        """Sets the background to the log frequencies of the words, unless it is set already.

        Args:
            data: (rows, N) CSRDataset, CSRBatch or scipy CSR matrix of counts.

        Raises:
            RuntimeError: if there is another number of columns.
        """
        if data.shape[1] != self.n_features:
            raise RuntimeError(
                f"{_OWNER}.start_from(): expected {self.n_features} columns, but got {data.shape[1]}"
            )
        if bool(self.output.bias.any()):
            return
        # A word that does not occur is given half an occurrence, as its log has to be finite.
        total = torch.full((self.n_features,), 0.5, dtype=torch.float64)
        for block in csr_blocks(data, f"{_OWNER}.start_from"):
            total += torch.from_numpy(block.sum(axis=0)).double().flatten()
        logs = total.log()
        self.output.bias.copy_(logs - logs.mean())

    def hidden(self, batch: CSRBatch, noisy: bool) -> Tensor:
        """Gives the second hidden layer (B, hidden) of the counts."""
        hidden = F.softplus(self.encoder2(F.softplus(self.first_layer(batch))))
        return F.dropout(hidden, self.dropout, training=noisy)

    def moments(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Gives mean and log-variance of the posterior of z, (B, topics) each, without noise."""
        return self._moments(hidden, by_batch=False)

    def draw_code(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Gives theta, that of the posterior mean in evaluation mode, and the mean divergence."""
        mu, logvar = self._moments(hidden, by_batch=self.training)
        z, divergence = reparameterize_kl(
            mu,
            logvar,
            eps=None if self.training else torch.zeros_like(mu),
            prior_mean=self.prior_mean,
            prior_logvar=self.prior_logvar,
        )
        return torch.softmax(z, dim=1), divergence.mean()

    def encode(self, batch: CSRBatch | Tensor) -> Tensor:
        """Gives theta (B, topics), the shares of the topics, at the posterior mean of z."""
        return torch.softmax(self.posterior_mean(batch), dim=1)

    def prior_codes(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draws n thetas from the logistic-normal prior."""
        mean = self.prior_mean
        noise = torch.randn(n, self.latent, device=mean.device, generator=generator).to(mean.dtype)
        return torch.softmax(mean + noise * torch.exp(0.5 * self.prior_logvar), dim=1)

    def decode_hidden(self, code: Tensor) -> Tensor:
        """Theta is the input of the output layer."""
        return code

    def code_nll(
        self,
        code: Tensor,
        target: CSRBatch,
        reduction: str = "mean",
        *,
        noisy: bool = False,
        max_memory: int | None = None,
    ) -> Tensor:
        """Gives the negative log-likelihood of ``target`` at the thetas, without storing the logits.

        Args:
            code: (B, topics).
            target: (B, N).
            reduction: "none" for (B,), "sum" or "mean" over the rows.
            noisy: as in training: with dropout, normalised by this batch.
            max_memory: bytes that the logits may take at a time; a mixture has none.
        """
        if self.norm is None:
            return topic_multinomial_nll(code, self.topic_word_matrix(), target, reduction)
        theta = F.dropout(code, self.dropout, training=noisy)
        weight, bias = self._folded(theta if noisy else None)
        return linear_multinomial_nll(theta, weight, bias, target, reduction, max_memory)

    def logits(self, hidden: Tensor) -> Tensor:
        """Gives the dense log-probabilities (B, N), up to a constant, of a few thetas."""
        return self._scores(hidden)(0, self.n_features)

    def topic_word_matrix(self) -> Tensor:
        r"""The topics (K, N), each a distribution over the words.

        With the "mixture" decoder they are :math:`\beta`. With "softmax" row k is what a document
        wholly of topic k is decoded to, by the running statistics.
        """
        # Along the words of the weight as it lies: a word's K numbers stay side by side.
        return torch.softmax(self._topic_logits(), dim=0).T

    @torch.no_grad()
    def top_words(
        self, k: int = 10, vocab: Sequence[str] | None = None, *, relevance: float = 0.6
    ) -> list[list[Any]]:
        r"""The words that stand for every topic, best first.

        Words are ordered by their relevance to the topic (Sievert and Shirley 2014),

        .. math::
            \lambda \log p_{kj} + (1 - \lambda) \log (p_{kj} / \bar p_j),
            \qquad \bar p_j = \frac1K \sum_k p_{kj},

        with p the :meth:`topic_word_matrix`: 1 is the plain order of probability, where words that
        are frequent everywhere lead every topic; 0 the order of lift, where rare words lead.
        Equal ones go to the lower column.

        Args:
            k: how many words of each topic, at most N.
            vocab: the words of the columns; None gives column numbers.
            relevance: :math:`\lambda` in [0, 1]; theirs was 0.6.

        Raises:
            ValueError: if k is not in [1, N], ``vocab`` has not N words, or ``relevance`` is not in
                [0, 1].

        Example:
            >>> model = TopicVAE(3, topics=2, decoder="mixture")
            >>> with torch.no_grad():
            ...     _ = model.output.weight.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]))
            >>> model.top_words(1, ["a", "b", "c"])
            [['b'], ['a']]
        """
        n_words = self.n_features
        if not 1 <= k <= n_words:
            raise ValueError(
                f"{_OWNER}.top_words(): expected k between 1 and {n_words}, but got {k}"
            )
        if vocab is not None and len(vocab) != n_words:
            raise ValueError(
                f"{_OWNER}.top_words(): expected a vocab of {n_words} words, but got {len(vocab)}"
            )
        if not 0.0 <= relevance <= 1.0:
            raise ValueError(
                f"{_OWNER}.top_words(): expected relevance in [0, 1], but got {relevance}"
            )
        # log p - (1 - relevance) log mean p is the same and stays finite where p underflows.
        logs = torch.log_softmax(self._topic_logits().double(), dim=0).T
        common = torch.logsumexp(logs, dim=0) - math.log(self.latent)
        columns = stable_topk(logs - (1.0 - relevance) * common, k)[1].tolist()
        return columns if vocab is None else [[vocab[j] for j in row] for row in columns]

    @torch.no_grad()
    def perplexity(
        self, batch: CSRBatch | Tensor, target: CSRBatch | Tensor | None = None
    ) -> float:
        """Perplexity per word, exp(sum nll / sum counts), of ``target`` given ``batch``.

        Args:
            batch: (B, N) rows to encode.
            target: (B, N) counts to score; None scores ``batch``, of which the encoder has seen
                every word: held-out words are the honest measure.

        Returns:
            The perplexity; nan without words, inf beyond the range of a float.
        """
        rows, counts = self.rows_and_target(batch, target)
        words = float(counts.row_sums().double().sum())
        nll = float(self.row_nll(rows, counts).sum())
        if words == 0:
            return math.nan
        return math.exp(nll / words) if nll / words < 700 else math.inf

    def _moments(self, hidden: Tensor, by_batch: bool) -> tuple[Tensor, Tensor]:
        norm = self.posterior_norm
        both = F.batch_norm(
            self.posterior(hidden),
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            # One row has no variance; it takes the running statistics.
            training=by_batch and len(hidden) > 1,
            momentum=norm.momentum or 0.0,
            eps=norm.eps,
        )
        mu, logvar = both.chunk(2, dim=1)
        return mu, logvar

    def _topic_logits(self) -> Tensor:
        """The logits of the words (N, K) in each topic."""
        weight, bias = self._folded()
        return weight + bias[:, None]

    def _folded(self, theta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weight (N, K) and bias (N,) of the linear map from theta, by the running statistics."""
        if self.norm is None:
            return self.output.weight, self.output.bias
        return self.norm(theta, self.output.weight, self.output.bias)

    def _scores(self, code: Tensor) -> ScoreChunk:
        if self.norm is not None:
            return linear_scores(code, *self._folded())
        topics = self.topic_word_matrix()
        return lambda start, stop: torch.log(code @ topics[:, start:stop])


def laplace_prior(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance (K,) of the normal that stands for a Dirichlet(alpha) (K,).

    Laplace's approximation in the softmax basis (Srivastava and Sutton 2017, section 3.2; MacKay
    1998).

    Example:
        >>> laplace_prior(torch.ones(4))
        (tensor([0., 0., 0., 0.]), tensor([-0.2877, -0.2877, -0.2877, -0.2877]))
    """
    k = len(alpha)
    logs = alpha.double().log()
    inverse = alpha.double().reciprocal()
    variance = inverse * (1.0 - 2.0 / k) + inverse.sum() / k**2
    return (logs - logs.mean()).float(), variance.log().float()


def _concentration(alpha: float | Sequence[float], topics: int) -> Tensor:
    values = [float(alpha)] * topics if isinstance(alpha, int | float) else list(alpha)
    if len(values) != topics or not all(0.0 < value < math.inf for value in values):
        raise ValueError(
            f"{_OWNER}(): expected alpha to be positive, one number or {topics}, but got {alpha}"
        )
    return torch.tensor(values, dtype=torch.float64)
