"""The stateless functions of the package, as ``torch.nn.functional`` is to ``torch.nn``."""

from .ops.csr_linear import csr_linear, csr_linear_weight_grad
from .ops.csr_rows import csr_dropout, csr_l2_normalize
from .ops.multinomial_nll import multinomial_nll
from .ops.reparameterize_kl import reparameterize_kl

__all__ = [
    "csr_dropout",
    "csr_l2_normalize",
    "csr_linear",
    "csr_linear_weight_grad",
    "multinomial_nll",
    "reparameterize_kl",
]
