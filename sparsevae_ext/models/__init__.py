"""Models: thin modules over the layers and functions of this package."""

from __future__ import annotations

from .base import REGISTRY, ModelOutput, MultinomialModel, build
from .mult_dae import MultDAE
from .mult_vae import MultVAE

__all__ = ["REGISTRY", "ModelOutput", "MultDAE", "MultVAE", "MultinomialModel", "build"]
