"""Sparsity layers by a line of text, for the command line and configs."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..nn import BatchTopK, JumpReLU, KLSparsity, L1Activity, L2Activity, TopK

__all__ = ["parse_sparsity"]

#: The parts of each form, with the type that each must be.
_FORMS: dict[str, tuple[tuple[str, Callable[[str], float]], ...]] = {
    "l1": (("weight", float),),
    "l2": (("weight", float),),
    "kl": (("weight", float), ("rho", float)),
    "topk": (("k", int),),
    "batch_topk": (("k", int),),
    "jumprelu": (("weight", float),),
}
_USAGE = ", ".join(":".join([name, *(part for part, _ in parts)]) for name, parts in _FORMS.items())


def parse_sparsity(text: str, hidden: int, activation: str = "relu") -> nn.Module:
    """Makes the sparsity layer that a text such as "l1:1e-4" or "topk:32" names.

    Args:
        text: "l1:weight", "l2:weight", "kl:weight:rho", "topk:k", "batch_topk:k" or
            "jumprelu:weight".
        hidden: width of the code.
        activation: of the code. "kl" needs values in (0, 1) and reads the default, "relu", as
            "sigmoid"; "batch_topk" and "jumprelu" are a relu by nature.

    Raises:
        ValueError: if the text has another form, a number is out of range, or the activation does
            not go with it.

    Example:
        >>> parse_sparsity("topk:32", hidden=100)
        TopK(32, activation='relu')
        >>> parse_sparsity("kl:0.1:0.05", hidden=100)
        KLSparsity(weight=0.1, rho=0.05, activation='sigmoid')
    """
    name, *parts = text.split(":")
    if name not in _FORMS or len(parts) != len(_FORMS[name]):
        raise ValueError(f"expected sparsity to be one of {_USAGE}, but got {text!r}")
    numbers = {}
    for (part, kind), given in zip(_FORMS[name], parts, strict=True):
        try:
            numbers[part] = kind(given)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise ValueError(
                f"expected {part} in sparsity {text!r} to be {wanted}, but got {given!r}"
            ) from None
    if numbers.get("k", 1) > hidden:
        raise ValueError(
            f"expected k in sparsity {text!r} to be at most {hidden}, the width of the code"
        )
    if name in ("l1", "l2"):
        return (L1Activity if name == "l1" else L2Activity)(numbers["weight"], activation)
    if name == "kl":
        code = "sigmoid" if activation == "relu" else activation
        return KLSparsity(numbers["weight"], numbers["rho"], code)
    if name == "topk":
        return TopK(int(numbers["k"]), activation)
    if activation != "relu":
        raise ValueError(
            f"expected activation 'relu' with sparsity {text!r}, but got {activation!r}"
        )
    if name == "batch_topk":
        return BatchTopK(int(numbers["k"]))
    return JumpReLU(hidden, numbers["weight"])
