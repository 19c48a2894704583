"""What all models share: their output, their input, their registry."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..data.batch import CSRBatch
from ..nn import CSRLinear
from .sampling import LengthDistribution, row_lengths, sample_multinomial_rows

__all__ = ["REGISTRY", "Model", "ModelOutput", "as_batch", "build", "xavier"]

#: Draws per row of ``sample`` when no length is given.
DEFAULT_LENGTH = 100

#: Model classes by the name that ``config()`` and the command line use.
REGISTRY: dict[str, type[Model]] = {}


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


def build(config: dict[str, Any]) -> Model:
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


class Model(nn.Module):
    """Base of all models: a sparse first layer, a dense last one, a config and a name.

    A subclass has a ``name``, under which :func:`build` finds it, hands its constructor's arguments
    on to this one, and makes ``encoder`` and ``output``.

    Attributes:
        n_features: number of columns N of a batch.

    Example:
        >>> from sparsevae_ext.models import MultDAE, Model
        >>> isinstance(MultDAE(30, hidden=4), Model)
        True
    """

    name: ClassVar[str]
    #: The constructor's argument that is the number of columns.
    columns: ClassVar[str] = "n_features"
    encoder: CSRLinear
    output: nn.Linear

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            REGISTRY[cls.name] = cls

    def __init__(self, **config: Any) -> None:
        super().__init__()
        owner = type(self).__name__
        for key in (self.columns, "hidden", "latent"):
            if key in config:
                check_count(owner, key, config[key])
        for key in ("beta", "free_bits"):
            if not 0.0 <= config.get(key, 0.0) < math.inf:
                raise ValueError(f"{owner}(): expected {key} >= 0, but got {config[key]}")
        if not 0.0 <= config.get("dropout", 0.0) <= 1.0:
            raise ValueError(f"{owner}(): expected dropout in [0, 1], but got {config['dropout']}")
        self._config = config
        self.n_features: int = config[self.columns]

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.output.weight.device

    def config(self) -> dict[str, Any]:
        """The constructor's arguments and the model's name, in plain types; see :func:`build`."""
        return {"name": self.name, **self._config}

    @abstractmethod
    def encode(self, batch: CSRBatch | Tensor) -> Tensor:
        """Gives the code of every row, without noise."""

    @abstractmethod
    def hidden(self, batch: CSRBatch, noisy: bool) -> Tensor:
        """Gives the encoder's hidden layer of every row, with dropout if ``noisy``."""

    def rows(self, batch: CSRBatch | Tensor) -> CSRBatch:
        """Takes the input as a batch.

        Raises:
            TypeError: if it is neither a batch nor a matrix.
            RuntimeError: if it does not have ``n_features`` columns.
        """
        rows = as_batch(batch)
        if rows.shape[1] != self.n_features:
            raise RuntimeError(
                f"{type(self).__name__}(): expected a batch with {self.n_features} columns, but "
                f"got {rows.shape[1]}"
            )
        return rows

    def rows_and_target(
        self, batch: CSRBatch | Tensor, target: CSRBatch | Tensor | None
    ) -> tuple[CSRBatch, CSRBatch]:
        """Takes the input and what to reconstruct, by default the input, as batches.

        Raises:
            RuntimeError: if the shapes do not agree.
        """
        rows = self.rows(batch)
        if target is None:
            return rows, rows
        wanted = as_batch(target)
        if wanted.shape != rows.shape:
            raise RuntimeError(
                f"Target size ({torch.Size(wanted.shape)}) must be the same as input size "
                f"({torch.Size(rows.shape)})"
            )
        return rows, wanted

    def first_layer(self, rows: CSRBatch) -> Tensor:
        """Applies the encoder to a batch, in the dtype of the weights."""
        if rows.values.dtype != self.encoder.weight.dtype:
            rows = rows.with_values(rows.values.to(self.encoder.weight.dtype))
        return self.encoder(rows)

    def sampling_codes(
        self, n: int, given: CSRBatch | Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, CSRBatch | None]:
        """Gives n codes to draw rows at, and the rows they are the codes of, if any.

        Args:
            n: how many.
            given: (n, N) rows to encode; None draws from the prior.
            generator: source of the draw.

        Raises:
            ValueError: if n is negative, or there is neither a prior nor ``given``.
            RuntimeError: if ``given`` does not have n rows.
        """
        if n < 0:
            raise ValueError(f"sample(): expected n >= 0, but got {n}")
        if given is None:
            return self.prior_codes(n, generator), None
        rows = self.rows(given)
        if len(rows) != n:
            raise RuntimeError(f"sample(): expected given to have {n} rows, but got {len(rows)}")
        return self.encode(rows), rows

    def prior_codes(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draws n codes from the prior.

        Raises:
            ValueError: if the model has no prior.
        """
        raise ValueError(
            f"sample(): {type(self).__name__} has no prior to draw from; expected `given`, the "
            "rows whose codes to use, but got None"
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Gives the dense last layer (B, N) of a few rows, where their cells are drawn one by one."""
        return self.output(hidden)

    def draw_counts(
        self,
        hidden: Tensor,
        rows: CSRBatch | None,
        length: int | Tensor | LengthDistribution | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> CSRBatch:
        """Draws multinomial rows at the inputs (n, H) of the output layer.

        The totals are ``length``, by default those of ``rows``, or 100.
        """
        if length is None:
            length = DEFAULT_LENGTH if rows is None else rows.row_sums()
        return sample_multinomial_rows(
            lambda start, stop: self.logits(hidden[start:stop]),
            row_lengths(length, hidden.shape[0], self.device, generator),
            self.n_features,
            temperature=temperature,
            generator=generator,
        )

    def extra_repr(self) -> str:
        """Lists the options that no layer shows."""
        return ", ".join(f"{key}={value}" for key, value in self._config.items())


def check_count(owner: str, name: str, value: Any) -> None:
    """TypeError unless an int, ValueError unless it is positive."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}(): expected {name} to be an int, but got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{owner}(): expected {name} >= 1, but got {value}")


@torch.no_grad()
def xavier(model: nn.Module, bias_std: float = 0.0) -> None:
    """Fills every linear layer: Xavier uniform weights, biases truncated normal or 0."""
    for layer in model.children():
        if isinstance(layer, CSRLinear | nn.Linear):
            # Filled row by row and copied, so that a seed means the same weights whichever way a
            # layer stores its own.
            fresh = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
            layer.weight.copy_(nn.init.xavier_uniform_(fresh))
            if layer.bias is None:
                continue
            if bias_std == 0.0:
                nn.init.zeros_(layer.bias)
            else:
                nn.init.trunc_normal_(layer.bias, std=bias_std, a=-2 * bias_std, b=2 * bias_std)
