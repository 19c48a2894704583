"""Models: thin modules over the layers and functions of this package."""

from __future__ import annotations

from .base import REGISTRY, Model, ModelOutput, build
from .count_vae import CountVAE
from .expression import ExpressionModel
from .likelihood import LikelihoodModel
from .linear_norm import LinearNorm
from .mult_dae import MultDAE
from .mult_vae import MultVAE
from .multinomial import MultinomialModel
from .sampling import LengthDistribution, row_totals_like
from .sparse_autoencoder import SparseAutoencoder
from .sparsity import parse_sparsity
from .topic_vae import TopicVAE
from .vae import VAE

__all__ = [
    "CountVAE",
    "ExpressionModel",
    "LengthDistribution",
    "LikelihoodModel",
    "LinearNorm",
    "Model",
    "ModelOutput",
    "MultDAE",
    "MultVAE",
    "MultinomialModel",
    "REGISTRY",
    "SparseAutoencoder",
    "TopicVAE",
    "VAE",
    "build",
    "parse_sparsity",
    "row_totals_like",
]
