"""The package's random numbers in plain torch: Philox 4x32-10, the same draws as csrc/common/philox.h.

A draw is a pure function of a seed (two int64 numbers) and the position of the element that it is for, so
that a backward can make it again, and every device and number of threads gives the same one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._checks import check_tensor

__all__ = ["philox_words", "seed_tensor", "standard_normal"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def seed_tensor(op: str, seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The seed as an int64 tensor (2,) on the device; None draws one from torch's generator there."""
    if seed is None:
        # High is exclusive, so one value of 2^64 never comes.
        return torch.randint(-(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=device)
    if isinstance(seed, int) and not isinstance(seed, bool):
        wrapped = (seed + 2**63) % 2**64 - 2**63
        return torch.tensor([wrapped, 0], dtype=torch.int64, device=device)
    if not isinstance(seed, Tensor):
        raise TypeError(
            f"{op}(): expected seed to be an int or a torch.Tensor, but got {type(seed).__name__}"
        )
    check_tensor(op, "seed", seed)
    if seed.dtype != torch.int64 or seed.shape != (2,):
        raise RuntimeError(
            f"{op}(): expected seed to be an int64 tensor of shape (2,), but got "
            f"{seed.dtype} of shape {tuple(seed.shape)}"
        )
    if seed.device != device:
        raise RuntimeError(f"{op}(): expected seed on {device}, but got {seed.device}")
    return seed


def philox_words(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Philox 4x32-10 (Salmon et al. 2011) of four counter words and two key words.

    All are int64 tensors that hold 32-bit numbers; products wrap, which keeps their 64 bits.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def standard_normal(seed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 numbers of a shape, elements counted in row-major order.

    Element e takes word e % 4 of the block with counter (e // 4, seed[1]) and key seed[0]. Each pair of
    words gives two numbers by Box and Muller's transform.
    """
    n = math.prod(shape)
    block = torch.arange((n + 3) // 4, dtype=torch.int64, device=seed.device)
    key, stream = seed[0], seed[1]
    counter = [block & _MASK, (block >> 32) & _MASK]
    counter += [(word & _MASK).expand_as(block) for word in (stream, stream >> 32)]
    words = philox_words(counter, [key & _MASK, (key >> 32) & _MASK])
    uniform = [(word.to(torch.float32) + 0.5) * 2.0**-32 for word in words]
    numbers = []
    for radius, turn in (uniform[:2], uniform[2:]):
        length = (-2.0 * radius.log()).sqrt()
        angle = turn.double() * (2 * math.pi)  # float32 would lose digits of the angle
        numbers += [length * angle.cos().float(), length * angle.sin().float()]
    return torch.stack(numbers, dim=1).reshape(-1)[:n].reshape(shape)
