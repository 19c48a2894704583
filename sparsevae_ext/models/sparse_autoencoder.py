"""The sparse autoencoder: a penalised or selected code between two linear layers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..data.batch import CSRBatch
from ..nn import AuxTopK, BatchTopK, CSRLinear, FiringCounter, TopK
from ..ops.activity import activate, check_activation
from ..ops.csr_linear import csr_linear
from ..ops.gaussian_nll import squared_error
from .base import ModelOutput, check_count, xavier
from .likelihood import LikelihoodModel, likelihood_name
from .sparsity import parse_sparsity

__all__ = ["SparseAutoencoder"]

_OWNER = "SparseAutoencoder"


class SparseAutoencoder(LikelihoodModel):
    r"""Autoencoder over sparse rows whose code is sparse too.

    .. math::
        h = f(W x + b), \qquad l = V h + c, \qquad
        \mathrm{loss} = \frac1B \sum_i \left( -\log p(x_i \mid l_i) + \Omega(h_i) \right)

    with the activation and penalty of ``sparsity``. A top-k code stays sparse: the decoder is then
    a :class:`~sparsevae_ext.nn.CSRLinear` that takes it as a CSRBatch with k entries a row.

    With ``reduction="elbo"`` the negative log-likelihood is summed over features and averaged
    over rows, in nats. With ``reduction="keras"`` the loss is what Keras computes for the same
    layers, so that a penalty weight means what it means there (docs/keras.md): "bernoulli" is
    ``binary_crossentropy``, a mean over rows and features; "gaussian" is ``mean_squared_error``,
    the mean of :math:`(x - l)^2` without 1/2 and without :math:`\log 2\pi`; "multinomial" is
    ``categorical_crossentropy`` of a softmax, a mean over rows. The penalty of L1 and L2 is in both
    the sum over batch and units divided by the batch size, as Keras' activity regularizers are.

    AuxK (Gao et al. 2024, appendix A.2) revives dead units of a top-k code: with ``auxk`` > 0 the
    loss has a term :math:`\mathrm{auxk} \cdot L(e, \hat e)`, where :math:`e = x - l` is the error,
    not differentiated, :math:`\hat e` what the ``k_aux`` largest dead units decode to without the
    bias, and L the loss in use: half the squared error, or its mean with "keras". It is reported
    in ``penalty``, and 0 while no unit is dead.

    Args:
        n_features: number of columns N.
        hidden: width H of the code.
        activation: of the code: "identity", "relu", "sigmoid", "tanh" or "softplus". A layer
            given as ``sparsity`` has its own instead.
        sparsity: None, a layer with ``code_and_penalty(x)`` such as :class:`nn.L1Activity`, or a
            text: "l1:weight", "l2:weight", "kl:weight:rho" (reads the default activation as
            sigmoid), "topk:k", "batch_topk:k", "jumprelu:weight".
        loss: "bernoulli" (values in [0, 1]), "gaussian" (unit variance) or "multinomial" (counts);
            "bce" and "mse" are taken as the first two.
        reduction: "elbo" or "keras".
        auxk: weight of the AuxK term; Gao et al. use 1/32. Needs loss "gaussian" and a sparsity
            of "topk" or "batch_topk".
        k_aux: dead units per row in it; None takes half the features, at most H.
        dead_after: rows without firing after which a unit counts as dead.

    Attributes:
        firing: :class:`~sparsevae_ext.nn.FiringCounter` of the units, kept up to date in training.

    Shape:
        Input and target: (B, N), CSRBatch, torch.sparse_csr or dense.

    Raises:
        TypeError: if a size is not an int, or ``sparsity`` neither text nor such a layer.
        ValueError: if an option is out of range or unknown, or options do not go together.

    Example:
        >>> model = SparseAutoencoder(30, hidden=50, sparsity="topk:4", loss="gaussian")
        >>> out = model(torch.eye(30)[:5])
        >>> out.loss.backward()
        >>> bool((model.encode(torch.eye(30)[:5]) > 0).sum(dim=1).max() <= 4)
        True
    """

    name: ClassVar[str] = "sparse-autoencoder"

    def __init__(
        self,
        n_features: int,
        hidden: int,
        activation: str = "relu",
        sparsity: str | nn.Module | None = None,
        loss: str = "bernoulli",
        reduction: str = "elbo",
        auxk: float = 0.0,
        k_aux: int | None = None,
        dead_after: int = 10_000,
    ) -> None:
        super().__init__(
            n_features=n_features,
            hidden=hidden,
            activation=activation,
            sparsity=sparsity,
            loss=likelihood_name(_OWNER, "loss", loss),
            reduction=reduction,
            auxk=auxk,
            k_aux=k_aux,
            dead_after=dead_after,
        )
        if reduction not in ("elbo", "keras"):
            raise ValueError(f"{reduction} is not a valid value for reduction")
        check_activation(_OWNER, activation)
        check_count(_OWNER, "dead_after", dead_after)
        self.likelihood = self._config["loss"]
        self.reduction = reduction
        self.activation = activation
        self.sparsity = _layer(sparsity, hidden, activation)
        self.auxk = auxk
        self.dead_after = dead_after
        self.aux = self._make_aux(k_aux)
        self.encoder = CSRLinear(n_features, hidden)
        sparse_code = hasattr(self.sparsity, "sparse")
        self.output = (CSRLinear if sparse_code else nn.Linear)(hidden, n_features)
        self.output_logvar = None
        self.firing = FiringCounter(hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises as Keras' Dense does: Xavier uniform weights, biases 0."""
        xavier(self)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments and the model's name, in plain types; see :func:`build`.

        Raises:
            ValueError: if ``sparsity`` was given as a layer, which is no plain type.
        """
        if isinstance(self._config["sparsity"], nn.Module):
            raise ValueError(
                f"{_OWNER}.config(): expected sparsity to be a text such as 'l1:1e-4', but the "
                f"model was made with the layer {self.sparsity}"
            )
        return super().config()

    def forward(
        self, batch: CSRBatch | Tensor, target: CSRBatch | Tensor | None = None
    ) -> ModelOutput:
        """Computes the loss of a batch, and in training counts which units fire.

        Args:
            batch: (B, N) rows to encode.
            target: (B, N) rows to reconstruct; None takes ``batch``.
        """
        rows, wanted = self.rows_and_target(batch, target)
        x = self.hidden(rows, noisy=self.training)
        code, penalty = self._code_and_penalty(x)
        if self.training:
            self.firing.update(code.detach() if isinstance(code, Tensor) else code)
        prediction = None
        if isinstance(code, CSRBatch) or self._needs_errors():
            prediction = self.output(code)
            nll = self._reduced(prediction, wanted)
        else:
            nll = self._scaled(self.code_nll(code, wanted, "mean"))
        # Rows of penalties, or the one of a batch; a constant 0 has the dtype of the code.
        penalty = penalty.mean().to(nll.dtype)
        if self.aux is not None and self.training:
            assert prediction is not None
            penalty = penalty + self.auxk * self._aux_loss(x, prediction, wanted)
        return ModelOutput(nll + penalty, nll, torch.zeros_like(nll), penalty)

    def hidden(self, batch: CSRBatch, noisy: bool) -> Tensor:
        """Gives the code before its activation, (B, hidden); there is no noise in this model."""
        return self.first_layer(batch)

    def encode(self, batch: CSRBatch | Tensor) -> Tensor:
        """Gives the dense code (B, hidden), as in evaluation mode whatever the mode."""
        x = self.hidden(self.rows(batch), noisy=False)
        mode = self.sparsity is not None and self.sparsity.training
        if self.sparsity is not None:
            # In training a BatchTopK would look at all rows together, and learn from them.
            self.sparsity.eval()
        try:
            code, _ = self._code_and_penalty(x)
        finally:
            if self.sparsity is not None:
                self.sparsity.train(mode)  # its own: it may be frozen in a model in training
        return code.to_dense() if isinstance(code, CSRBatch) else code

    def decode_hidden(self, code: Tensor) -> Tensor:
        """The code is the input of the output layer."""
        return code

    def _code_and_penalty(self, x: Tensor) -> tuple[Tensor | CSRBatch, Tensor]:
        if self.sparsity is None:
            return activate(x, self.activation), x.new_zeros(())
        layer: Any = self.sparsity
        code, penalty = layer.code_and_penalty(x)
        return code, penalty

    def _needs_errors(self) -> bool:
        """Whether the loss looks at the (B, N) output itself, and not only at its likelihood.

        AuxK decodes the errors, and Keras' squared error is exact as their mean, not as a
        likelihood less its constant.
        """
        squared = self.likelihood == "gaussian" and self.reduction == "keras"
        return self.aux is not None or squared

    def _reduced(self, prediction: Tensor, target: CSRBatch) -> Tensor:
        if self.likelihood == "gaussian" and self.reduction == "keras":
            return squared_error(prediction, target) / self.n_features
        return self._scaled(self.nll_rows(prediction, None, target).mean())

    def _scaled(self, nll: Tensor) -> Tensor:
        keras = self.reduction == "keras" and self.likelihood == "bernoulli"
        return nll / self.n_features if keras else nll

    def _make_aux(self, k_aux: int | None) -> AuxTopK | None:
        if not 0.0 <= self.auxk < float("inf"):
            raise ValueError(f"{_OWNER}(): expected auxk >= 0, but got {self.auxk}")
        if self.auxk == 0.0:
            return None
        if self.likelihood != "gaussian":
            raise ValueError(
                f"{_OWNER}(): expected auxk with loss 'gaussian', but got {self.likelihood!r}"
            )
        if not isinstance(self.sparsity, TopK | BatchTopK):
            raise ValueError(
                f"{_OWNER}(): expected auxk with a sparsity of 'topk' or 'batch_topk', but got "
                f"{self._config['sparsity']}"
            )
        hidden = self._config["hidden"]
        if k_aux is None:
            k_aux = min(hidden, max(1, self.n_features // 2))
        check_count(_OWNER, "k_aux", k_aux)
        if k_aux > hidden:
            raise ValueError(f"{_OWNER}(): expected k_aux <= {hidden}, but got {k_aux}")
        return AuxTopK(k_aux)

    def _aux_loss(self, x: Tensor, prediction: Tensor, target: CSRBatch) -> Tensor:
        assert self.aux is not None
        dead = self.firing.dead(self.dead_after)
        code = self.aux(x, dead)
        # |e - e^|^2 = |x - (l + e^)|^2: the sparse rows against one dense prediction.
        total = prediction.detach() + csr_linear(code, self.output.weight)
        error = squared_error(total, target)
        scale = 0.5 if self.reduction == "elbo" else 1.0 / self.n_features
        # Without dead units the term is the error itself, which nothing can change.
        return torch.where(dead.any(), scale * error, 0.0)

    def extra_repr(self) -> str:
        """Lists the options that no layer shows."""
        shown = {key: value for key, value in self._config.items() if key != "sparsity"}
        return ", ".join(f"{key}={value}" for key, value in shown.items())


def _layer(sparsity: str | nn.Module | None, hidden: int, activation: str) -> nn.Module | None:
    if sparsity is None:
        return None
    if isinstance(sparsity, str):
        try:
            return parse_sparsity(sparsity, hidden, activation)
        except ValueError as error:
            raise ValueError(f"{_OWNER}(): {error}") from None
    if not isinstance(sparsity, nn.Module) or not hasattr(sparsity, "code_and_penalty"):
        raise TypeError(
            f"{_OWNER}(): expected sparsity to be a str or a layer with code_and_penalty(), but "
            f"got {type(sparsity).__name__}"
        )
    return sparsity
