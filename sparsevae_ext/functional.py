"""The stateless functions of the package, as ``torch.nn.functional`` is to ``torch.nn``."""

from .ops.activity import l1_activity, l2_activity
from .ops.batch_topk import batch_topk
from .ops.bernoulli_nll import bernoulli_nll
from .ops.csr_linear import csr_linear, csr_linear_weight_grad
from .ops.csr_rows import csr_dropout, csr_l2_normalize
from .ops.gaussian_nll import gaussian_nll, squared_error
from .ops.jumprelu import jumprelu, l0_activity
from .ops.kl_sparsity import kl_sparsity
from .ops.linear_gaussian import linear_gaussian_nll
from .ops.linear_negative_binomial_nll import (
    linear_negative_binomial_nll,
    linear_zero_inflated_negative_binomial_nll,
)
from .ops.linear_nll import linear_bernoulli_nll, linear_multinomial_nll, linear_poisson_nll
from .ops.multinomial_nll import multinomial_nll
from .ops.negative_binomial_nll import negative_binomial_nll
from .ops.poisson_nll import poisson_nll
from .ops.reparameterize_kl import reparameterize_kl
from .ops.topic_multinomial import topic_multinomial_nll
from .ops.topk import topk
from .ops.zero_inflated_negative_binomial_nll import zero_inflated_negative_binomial_nll

__all__ = [
    "batch_topk",
    "bernoulli_nll",
    "csr_dropout",
    "csr_l2_normalize",
    "csr_linear",
    "csr_linear_weight_grad",
    "gaussian_nll",
    "jumprelu",
    "kl_sparsity",
    "l0_activity",
    "l1_activity",
    "l2_activity",
    "linear_bernoulli_nll",
    "linear_gaussian_nll",
    "linear_multinomial_nll",
    "linear_negative_binomial_nll",
    "linear_poisson_nll",
    "linear_zero_inflated_negative_binomial_nll",
    "multinomial_nll",
    "negative_binomial_nll",
    "poisson_nll",
    "reparameterize_kl",
    "squared_error",
    "topic_multinomial_nll",
    "topk",
    "zero_inflated_negative_binomial_nll",
]
