"""The denoising autoencoder with multinomial likelihood of Liang et al. 2018."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ..data.batch import CSRBatch
from ..nn import CSRLinear
from .multinomial import MultinomialModel

__all__ = ["MultDAE"]


class MultDAE(MultinomialModel):
    r"""Mult-DAE: a denoising autoencoder for rows of counts.

    .. math::
        \mathrm{loss} = -\frac1B \sum_i \sum_j x_{ij} \log \operatorname{softmax}(f(h_i))_j

    (Liang, Krishnan, Hoffman and Jebara 2018, section 2.3), with the layers N - hidden - N, tanh,
    rows scaled to unit length, and dropout on the entries of the input. The authors regularise
    with weight decay, which is the optimizer's.

    Args:
        n_items: number of columns N.
        hidden: width of the code.
        dropout: probability of dropping an entry of the input in training.

    Shape:
        Input and target: (B, N), CSRBatch, torch.sparse_csr or dense.

    Example:
        >>> model = MultDAE(30, hidden=8)
        >>> model(torch.eye(30)[:5]).kl
        tensor(0.)
    """

    name: ClassVar[str] = "mult-dae"

    def __init__(self, n_items: int, hidden: int = 200, dropout: float = 0.5) -> None:
        super().__init__(n_items=n_items, hidden=hidden, dropout=dropout)
        self.encoder = CSRLinear(n_items, hidden)
        self.output = nn.Linear(hidden, n_items)
        self.reset_parameters()

    def draw_code(self, hidden: Tensor) -> tuple[Tensor, None]:
        """The hidden layer is the code, and there is no prior."""
        return hidden, None

    def encode(self, batch: CSRBatch | Tensor) -> Tensor:
        """Gives the code (B, hidden); no dropout, whatever the mode."""
        return self.hidden(self.rows(batch), noisy=False)

    def decode_hidden(self, code: Tensor) -> Tensor:
        """The code is the input of the output layer."""
        return code
