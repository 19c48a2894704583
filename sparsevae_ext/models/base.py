"""What all models share: their output, their input, their registry."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..data.batch import CSRBatch
from ..nn import CSRLinear
from ..ops.csr_rows import csr_dropout, csr_l2_normalize
from .ranking import linear_scores, multinomial_row_nll, top_items
from .sampling import make_generator, row_lengths, sample_multinomial_rows

__all__ = ["REGISTRY", "ModelOutput", "MultinomialModel", "as_batch", "build"]

#: Draws per row of ``sample`` when no length is given.
DEFAULT_LENGTH = 100

#: Model classes by the name that ``config()`` and the command line use.
REGISTRY: dict[str, type[MultinomialModel]] = {}


class ModelOutput(NamedTuple):
    """What a model returns; every field is a scalar tensor, a mean over rows.

    Attributes:
        loss: what to call ``backward()`` on.
        nll: negative log-likelihood of the target, in nats.
        kl: divergence of the posterior from the prior, in nats; 0 for a model without one.
        penalty: sparsity or other penalty; 0 for a model without one.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    penalty: Tensor


def build(config: dict[str, Any]) -> MultinomialModel:
    """Makes a model from what its ``config()`` returned.

    Args:
        config: ``{"name": ..., **constructor arguments}``.

    Raises:
        ValueError: if the name is missing or unknown.

    Example:
        >>> build({"name": "mult-dae", "n_items": 10, "hidden": 4}).config()["dropout"]
        0.5
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in REGISTRY:
        raise ValueError(
            f"build(): expected name to be one of {sorted(REGISTRY)}, but got {name!r}"
        )
    return REGISTRY[name](**arguments)


def as_batch(x: CSRBatch | Tensor) -> CSRBatch:
    """Takes a CSRBatch as it is, and makes one of a torch.sparse_csr or dense matrix.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(x, CSRBatch):
        return x
    if not isinstance(x, Tensor):
        raise TypeError(
            f"expected a CSRBatch, a torch.sparse_csr tensor or a dense tensor, but got "
            f"{type(x).__name__}"
        )
    return CSRBatch.from_dense(x) if x.layout == torch.strided else CSRBatch.from_torch(x)


class MultinomialModel(nn.Module):
    """Base of the models that put a multinomial over N items on every row.

    A subclass has ``encoder`` (:class:`CSRLinear` from the items), ``output`` (``nn.Linear`` onto
    the items), and says how a code becomes the input of ``output``.

    Example:
        >>> from sparsevae_ext.models import MultDAE, MultinomialModel
        >>> isinstance(MultDAE(30, hidden=4), MultinomialModel)
        True
    """

    name: ClassVar[str]
    encoder: CSRLinear
    output: nn.Linear
    dropout: float

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        REGISTRY[cls.name] = cls

    def __init__(self, **config: Any) -> None:
        super().__init__()
        for key in config.keys() - {"beta", "dropout"}:
            value = config[key]
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(
                    f"{type(self).__name__}(): expected {key} to be an int, but got "
                    f"{type(value).__name__}"
                )
            if value < 1:
                raise ValueError(f"{type(self).__name__}(): expected {key} >= 1, but got {value}")
        if not 0.0 <= config["dropout"] <= 1.0:
            raise ValueError(
                f"{type(self).__name__}(): expected dropout in [0, 1], but got {config['dropout']}"
            )
        if not 0.0 <= config.get("beta", 0.0) < math.inf:
            raise ValueError(
                f"{type(self).__name__}(): expected beta >= 0, but got {config['beta']}"
            )
        self._config = config
        self.n_items: int = config["n_items"]
        self.dropout = config["dropout"]

    def config(self) -> dict[str, Any]:
        """The constructor's arguments and the model's name, in plain types; see :func:`build`."""
        return {"name": self.name, **self._config}

    def reset_parameters(self) -> None:
        """Initialises as the authors' code does: Xavier weights, biases of deviation 0.001."""
        with torch.no_grad():
            for layer in self.children():
                if isinstance(layer, CSRLinear | nn.Linear):
                    # Filled row by row and copied, so that a seed means the same weights
                    # whichever way a layer stores its own.
                    fresh = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
                    layer.weight.copy_(nn.init.xavier_uniform_(fresh))
                    if layer.bias is not None:
                        nn.init.trunc_normal_(layer.bias, std=0.001, a=-0.002, b=0.002)

    @abstractmethod
    def encode(self, batch: CSRBatch | Tensor) -> Tensor:
        """Gives the code of every row, without noise."""

    @abstractmethod
    def decode_hidden(self, code: Tensor) -> Tensor:
        """Gives the input of the output layer for a code."""

    def hidden(self, batch: CSRBatch, noisy: bool) -> Tensor:
        """First layer: l2-normalised rows, dropout on their stored values, linear, tanh."""
        if batch.shape[1] != self.n_items:
            raise RuntimeError(
                f"{type(self).__name__}(): expected a batch with {self.n_items} columns, but got "
                f"{batch.shape[1]}"
            )
        x = csr_dropout(csr_l2_normalize(batch), self.dropout, training=noisy)
        if x.values.dtype != self.encoder.weight.dtype:
            x = x.with_values(x.values.to(self.encoder.weight.dtype))
        return torch.tanh(self.encoder(x))

    @torch.no_grad()
    def recommend(
        self,
        batch: CSRBatch | Tensor,
        k: int,
        exclude_seen: bool = True,
        chunk_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k items with the highest logits for every row, best first.

        Scores are computed for ``chunk_size`` items at a time: memory is O(B * chunk_size), and
        no (B, N) tensor is made. Dropout and sampling are off, whatever the mode of the model.

        Args:
            batch: (B, N) rows as in training.
            k: how many items, at most N.
            exclude_seen: leave out the items with a non-zero entry in ``batch``.
            chunk_size: items scored at a time; None takes about 4 million scores
                and at most a quarter of the items.

        Returns:
            ``scores`` (logits) and ``items`` (int64), both (B, k). Equal scores go to the lower
            item. A row with fewer than k items left ends in items -1 with score -inf.

        Raises:
            TypeError: if k is not an int.
            ValueError: if k is not in [1, N], or ``chunk_size`` is not positive.
            RuntimeError: if the batch has another number of columns, or a score is nan.

        Example:
            >>> from sparsevae_ext.models import MultVAE
            >>> model = MultVAE(30, hidden=8, latent=4)
            >>> scores, items = model.recommend(torch.eye(30)[:2], k=5)
            >>> items.shape
            torch.Size([2, 5])
        """
        rows = as_batch(batch)
        return top_items(
            self._scores(self.encode(rows)),
            rows.shape,
            k,
            seen=rows if exclude_seen else None,
            chunk_size=chunk_size,
        )

    @torch.no_grad()
    def row_nll(
        self,
        batch: CSRBatch | Tensor,
        target: CSRBatch | Tensor | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Negative log-likelihood of every row of ``target`` given the code of ``batch``.

        For evaluation: without noise, without gradients, without a (B, N) tensor. With a prior
        this is the reconstruction at the posterior mean, not a bound on the marginal likelihood.

        Args:
            batch: (B, N) rows to encode.
            target: (B, N) counts to score; None scores ``batch``.
            chunk_size: as in :meth:`recommend`.

        Returns:
            (B,) float64 nats, without the multinomial coefficient.

        Raises:
            RuntimeError: if the shapes do not agree.
        """
        rows = as_batch(batch)
        counts = rows if target is None else as_batch(target)
        if counts.shape != rows.shape:
            raise RuntimeError(
                f"Target size ({torch.Size(counts.shape)}) must be the same as input size "
                f"({torch.Size(rows.shape)})"
            )
        scores = self._scores(self.encode(rows))
        return multinomial_row_nll(scores, counts, chunk_size=chunk_size)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        length: int | Tensor | None = None,
        *,
        given: CSRBatch | Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> CSRBatch:
        """Draws n rows of counts.

        Row i is ``length[i]`` independent draws of an item from the decoder's softmax, at a code
        drawn from the prior, or at the code of row i of ``given``. The (n, N) result is made
        sparse from the start; a block of rows is dense at a time.

        Args:
            n: how many rows.
            length: total of each row, a number or (n,). None takes the totals of ``given``, or
                100. To imitate a data set, draw from its row sums.
            given: (n, N) rows whose codes to use in place of draws from the prior. A model
                without a prior needs it.
            temperature: divides the logits; below 1 sharpens.
            generator: source of the random numbers, on the model's device.
            seed: in place of a generator; equal seeds give equal rows.

        Returns:
            (n, N) batch of float32 counts with sorted columns.

        Raises:
            ValueError: if n is negative, a length is negative, ``temperature`` is not positive,
                ``generator`` and ``seed`` are both given, or there is neither prior nor ``given``.
            RuntimeError: if ``length`` or ``given`` does not have n rows.

        Example:
            >>> from sparsevae_ext.models import MultVAE
            >>> rows = MultVAE(30, hidden=8, latent=4).sample(3, length=12, seed=0)
            >>> rows.row_sums()
            tensor([12., 12., 12.])
        """
        if n < 0:
            raise ValueError(f"sample(): expected n >= 0, but got {n}")
        device = self.output.weight.device
        source = make_generator(device, generator, seed)
        if given is None:
            code = self.prior_codes(n, source)
            length = DEFAULT_LENGTH if length is None else length
        else:
            rows = as_batch(given)
            if len(rows) != n:
                raise RuntimeError(
                    f"sample(): expected given to have {n} rows, but got {len(rows)}"
                )
            code = self.encode(rows)
            length = rows.row_sums() if length is None else length
        hidden = self.decode_hidden(code)
        return sample_multinomial_rows(
            lambda start, stop: self.output(hidden[start:stop]),
            row_lengths(length, n, device),
            self.n_items,
            temperature=temperature,
            generator=source,
        )

    def prior_codes(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draws n codes from the prior.

        Raises:
            ValueError: if the model has no prior.
        """
        raise ValueError(
            f"sample(): {type(self).__name__} has no prior to draw from; expected `given`, the "
            "rows whose codes to use, but got None"
        )

    def _scores(self, code: Tensor) -> Any:
        return linear_scores(self.decode_hidden(code), self.output.weight, self.output.bias)

    def extra_repr(self) -> str:
        """Lists the options that no layer shows."""
        return ", ".join(f"{key}={value}" for key, value in self._config.items())
