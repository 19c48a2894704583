"""What the tests of the losses with the decoder's layer inside share: inputs, fused and unfused."""

from __future__ import annotations

import torch

import sparsevae_ext as sv
from sparsevae_ext.ops._linear_nll import Decoder
from sparsevae_ext.ops._nll import accumulate_dtype
from sparsevae_ext.ops.linear_gaussian_panels import linear_gaussian_nll_panels

F = sv.functional
linear = torch.nn.functional.linear

NAMES = (
    "multinomial",
    "bernoulli",
    "poisson",
    "gaussian",
    "gaussian_logvar",
    "nb",
    "nb_rows",
    "nb_library",
    "zinb",
    "zinb_library",
)


LIKELIHOOD = {"nb": "negative_binomial", "zinb": "zero_inflated_negative_binomial"}


class Case:
    """The tensors of one loss; `free` are those that can have a gradient, by name."""

    def __init__(
        self, name, rows, features, hidden, dtype=torch.float64, bias=True, index=torch.int64
    ):
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        counts = torch.rand(rows, features, generator=generator, dtype=torch.float64)
        counts = (counts < 0.3) * torch.ceil(counts * 10)
        if rows:
            counts[rows // 2] = 0
        if name == "bernoulli":
            counts = counts.clamp(max=1)
        batch = sv.CSRBatch.from_dense(counts)
        self.target = sv.CSRBatch(
            batch.crow.to(index), batch.col.to(index), batch.values, batch.shape
        )
        self.name = name
        scale = max(1, hidden) ** -0.5
        self.free = {"h": normal(rows, hidden), "weight": normal(features, hidden) * scale}
        if bias:
            self.free["bias"] = normal(features)
        if name.startswith("zinb"):
            self.free["zero_weight"] = normal(features, hidden) * scale
            if bias:
                self.free["zero_bias"] = normal(features)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if name == "gaussian_logvar" or name.startswith(("nb", "zinb")):
            shape = (rows, features) if name == "nb_rows" else (features,)
            self.free["log_scale"] = normal(*shape).to(wide)
        if name.endswith("library"):
            self.free["library"] = normal(rows).to(wide).exp() * 30
        for tensor in self.free.values():
            tensor.requires_grad_()

    def fused(self, reduction="mean", max_memory=None, **replaced):
        t = {**self.free, **replaced}
        layer = (t["h"], t["weight"], t.get("bias"))
        if self.name == "poisson":
            return F.linear_poisson_nll(*layer, self.target, reduction, max_memory)
        if self.name.startswith("gaussian"):
            return linear_gaussian_nll_panels(
                *layer, self.target, t.get("log_scale"), reduction, max_memory
            )
        if self.name.startswith("nb"):
            return F.linear_negative_binomial_nll(
                *layer, self.target, t["log_scale"], t.get("library"), reduction, max_memory
            )
        if self.name.startswith("zinb"):
            layers = (*layer, t["zero_weight"], t.get("zero_bias"))
            return F.linear_zero_inflated_negative_binomial_nll(
                *layers, self.target, t["log_scale"], t.get("library"), reduction, max_memory
            )
        function = getattr(F, f"linear_{self.name}_nll")
        return function(*layer, self.target, reduction, max_memory)

    def unfused(self, reduction="mean", cast=None, **replaced):
        """From stored logits; `cast` is applied to the inputs first."""
        t = {**self.free, **replaced}
        if cast is not None:
            t = {k: cast(v) for k, v in t.items()}
        logits = linear(t["h"], t["weight"], t.get("bias"))
        if self.name.startswith("gaussian"):
            return F.gaussian_nll(logits, self.target, t.get("log_scale"), reduction)
        if self.name.startswith("nb"):
            return F.negative_binomial_nll(
                logits, self.target, t["log_scale"], t.get("library"), reduction
            )
        if self.name.startswith("zinb"):
            zeros = linear(t["h"], t["zero_weight"], t.get("zero_bias"))
            return F.zero_inflated_negative_binomial_nll(
                logits, self.target, t["log_scale"], zeros, t.get("library"), reduction
            )
        return getattr(F, f"{self.name}_nll")(logits, self.target, reduction)

    def gradients(self, nll, upstream=None, **options):
        upstream = torch.ones_like(nll) if upstream is None else upstream
        return torch.autograd.grad(nll, tuple(self.free.values()), upstream, **options)


def op_arguments(case, wants=True, gemm_dtype=None, max_elements=None):
    """For the op itself: with all gradients, or none."""
    decoder = Decoder(**{"bias": None, **case.free})
    wide = accumulate_dtype(gemm_dtype or case.free["h"].dtype)
    short = case.name.split("_")[0]
    flags = [wants and t is not None for t in decoder]
    weight = torch.linspace(0.5, 1, len(case.target), dtype=wide)
    entries = case.target.crow, case.target.col, case.target.values.to(wide)
    likelihood = LIKELIHOOD.get(short, short)
    return likelihood, *decoder, *entries, weight, *flags, gemm_dtype, max_elements
