"""The arithmetic of the (zero-inflated) negative binomial likelihood in plain torch.

Cell by cell: what a zero costs is needed everywhere, without a look at the target; what a count
costs only at the entries, where it takes the other's place. Both are written so that nothing large
is subtracted: at theta = 1e8 and mu = x = 1e6 the terms of the textbook formula are of the order of
1e9 and their sum is 8.

Notation: log_mu (with the shift of the library in it), t = log theta, a = log_mu - t, z the logit
of a zero that is no count (None without zero inflation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._nll import accumulate_dtype, block_rows, entry_rows, in_one_piece, row_slices

__all__ = ["backward", "forward", "log_rising", "softplus"]

#: From here on the series of Stirling's formula below has 16 digits.
_STIRLING_FROM = 10

Gradients = tuple[Tensor, Tensor, Tensor | None]


# ---- cells without a count ----------------------------------------------------------------------


def softplus(x: Tensor) -> Tensor:
    """``log(1 + e^x)`` to full relative precision, also in the derivative at 0."""
    return torch.logaddexp(x, torch.zeros_like(x))


def _parts(log_mu: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """softplus(a), sigmoid(a), and their difference, which is O(e^2a) for small e^a."""
    a = log_mu - t
    e = torch.exp(-a.abs())
    above = a > 0
    slope = torch.where(above, 1.0, e) / (1.0 + e)
    log1p = torch.log1p(e)
    plus = torch.clamp(a, min=0) + log1p
    # log(1 + e) = 2 artanh(w), and 2 w - e / (1 + e) = w e / (1 + e).
    w = e / (2.0 + e)
    z = w * w
    rest = 2.0 * w * z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9 + z * (1 / 11 + z / 13)))))
    difference = torch.where(a < -2.0, slope * w + rest, plus - slope)
    return plus, slope, difference


def _zero_nll(log_mu: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
    """What a zero costs: D = theta softplus(a), or -log(pi + (1 - pi) e^-D)."""
    d = torch.exp(t) * _parts(log_mu, t)[0]
    return d if z is None else _inflated(d, z)


def _inflated(d: Tensor, z: Tensor) -> Tensor:
    # Below log 2 by its deviation from 1, above it by the logarithms of its two terms.
    y = torch.sigmoid(-z) * -torch.expm1(-d)
    near = -torch.log1p(-torch.clamp(y, max=0.5))
    return torch.where(y <= 0.5, near, -torch.logaddexp(-softplus(-z), -softplus(z) - d))


def _zero_gradients(log_mu: Tensor, t: Tensor, z: Tensor | None) -> Gradients:
    """The derivatives of :func:`_zero_nll` in log_mu, t and z."""
    theta = torch.exp(t)
    plus, slope, difference = _parts(log_mu, t)
    in_mu, in_t = theta * slope, theta * difference
    if z is None:
        return in_mu, in_t, None
    d = theta * plus
    share = torch.sigmoid(-z - d)  # of the negative binomial in this zero
    in_z = torch.expm1(-d) * torch.exp(_inflated(d, z) - softplus(z) - softplus(-z))
    # A mean beyond the largest number gives the binomial no share.
    none = share == 0
    return torch.where(none, share, share * in_mu), torch.where(none, share, share * in_t), in_z


# ---- cells with a count, in float64 -------------------------------------------------------------


def _shifted(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Z = z + 10 (or z from 10 on), and what lgamma and digamma of Z have more than those of z."""
    low = z < _STIRLING_FROM
    logs, inverses = torch.zeros_like(z), torch.zeros_like(z)
    for i in range(_STIRLING_FROM):
        logs = logs + torch.where(low, torch.log(z + i), 0.0)
        inverses = inverses + torch.where(low, 1.0 / (z + i), 0.0)
    return torch.where(low, z + _STIRLING_FROM, z), logs, inverses


def _binet(z: Tensor) -> Tensor:
    """``lgamma(z) - ((z - 1/2) log z - z + log(2 pi) / 2)`` for z >= 10."""
    s = 1.0 / (z * z)
    tail = 1 / 1260 - s * (1 / 1680 - s * (1 / 1188 - s * (691 / 360360 - s / 156)))
    return (1 / 12 - s * (1 / 360 - s * tail)) / z


def _binet_slope(z: Tensor) -> Tensor:
    """``log z - 1 / (2 z) - digamma(z)`` for z >= 10."""
    s = 1.0 / (z * z)
    tail = 1 / 252 - s * (1 / 240 - s * (1 / 132 - s * (691 / 32760 - s / 12)))
    return s * (1 / 12 - s * (1 / 120 - s * tail))


def log_rising(x: Tensor, theta: Tensor) -> Tensor:
    """``lgamma(x + theta) - lgamma(theta) - x log(theta)``, in float64.

    The sum over i < x of log(1 + i / theta) for an integral x; stable for every theta > 0 and x >=
    0, and differentiable.
    """
    upper, above, _ = _shifted(x + theta)
    lower, below, _ = _shifted(theta)
    step = upper - lower
    smooth = (upper - 0.5) * torch.log1p(step / lower) - step + _binet(upper) - _binet(lower)
    return smooth + (step * torch.log(lower) - x * torch.log(theta)) - above + below


def _log_rising_slope(x: Tensor, theta: Tensor) -> Tensor:
    """``theta (digamma(x + theta) - digamma(theta)) - x``: minus the sum of i / (theta + i)."""
    upper, _, above = _shifted(x + theta)
    lower, _, below = _shifted(theta)
    smooth = torch.log1p((upper - lower) / lower) - 0.5 * (1.0 / upper - 1.0 / lower)
    return theta * (smooth - _binet_slope(upper) + _binet_slope(lower) - above + below) - x


def _count_nll(x: Tensor, log_mu: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
    theta = torch.exp(t)
    a = log_mu - t
    log1p = torch.log1p(torch.exp(-a.abs()))
    counted = x * (log1p - torch.minimum(log_mu, t)) - log_rising(x, theta) + torch.lgamma(x + 1.0)
    nll = theta * (torch.clamp(a, min=0) + log1p) + counted
    if z is not None:
        nll = nll + softplus(z)
    return torch.where(x == 0, _zero_nll(log_mu, t, z), torch.where(x < 0, torch.nan, nll))


def _count_gradients(x: Tensor, log_mu: Tensor, t: Tensor, z: Tensor | None) -> Gradients:
    theta = torch.exp(t)
    _, slope, difference = _parts(log_mu, t)
    in_mu = theta * slope - x * torch.sigmoid(t - log_mu)
    in_t = theta * difference - x * slope - _log_rising_slope(x, theta)
    of_zero = _zero_gradients(log_mu, t, z)
    in_z = None
    if z is not None and of_zero[2] is not None:
        in_z = torch.where(x == 0, of_zero[2], torch.sigmoid(z))
    return torch.where(x == 0, of_zero[0], in_mu), torch.where(x == 0, of_zero[1], in_t), in_z


# ---- rows ---------------------------------------------------------------------------------------


class _Rows:
    """The dense arguments, widened a block of rows or some cells at a time."""

    def __init__(
        self,
        log_mu: Tensor,
        log_theta: Tensor,
        zero_logits: Tensor | None,
        library: Tensor | None,
        logsumexp: Tensor | None = None,
    ) -> None:
        self.log_mu, self.log_theta, self.zero_logits = log_mu, log_theta, zero_logits
        self.wide = accumulate_dtype(log_mu.dtype)
        self.logsumexp = self.shift = None
        if library is not None:
            self.logsumexp = self._logsumexp() if logsumexp is None else logsumexp
            self.shift = torch.log(library) - self.logsumexp

    def _logsumexp(self) -> Tensor:
        parts = [
            torch.logsumexp(self.log_mu[here].to(self.wide), dim=1)
            for here in row_slices(self.log_mu)
        ]
        return torch.cat(parts) if parts else self.log_mu.new_zeros(0, dtype=self.wide)

    def block(self, here: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        log_mu = self.log_mu[here].to(self.wide)
        if self.shift is not None:
            log_mu = log_mu + self.shift[here, None]
        t = self.log_theta if self.log_theta.dim() == 1 else self.log_theta[here]
        z = None if self.zero_logits is None else self.zero_logits[here].to(self.wide)
        return log_mu, t.expand_as(log_mu), z

    def at(self, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        log_mu = self.log_mu[rows, cols].double()
        if self.shift is not None:
            log_mu = log_mu + self.shift[rows].double()
        t = self.log_theta[cols] if self.log_theta.dim() == 1 else self.log_theta[rows, cols]
        z = None if self.zero_logits is None else self.zero_logits[rows, cols].double()
        return log_mu, t.double(), z

    def entries(self, crow: Tensor, col: Tensor) -> list[tuple[slice, tuple[Tensor, Tensor]]]:
        """For every block of rows its entries, and their places in the block."""
        rows, cols = entry_rows(crow, col.shape[0]), col.long()
        if in_one_piece(self.log_mu):
            return [(slice(0, col.shape[0]), (rows, cols))]
        bounds = crow[:: block_rows(self.log_mu)].tolist() + [col.shape[0]]
        result = []
        for block, here in enumerate(row_slices(self.log_mu)):
            some = slice(bounds[block], bounds[block + 1])
            result.append((some, (rows[some] - here.start, cols[some])))
        return result


def forward(
    log_mu: Tensor,
    log_theta: Tensor,
    zero_logits: Tensor | None,
    library: Tensor | None,
    crow: Tensor,
    col: Tensor,
    values: Tensor,
) -> tuple[Tensor, Tensor]:
    """The nll of every row, and logsumexp(log_mu) of every row ((0,) without a library)."""
    given = _Rows(log_mu, log_theta, zero_logits, library)
    rows, cols = entry_rows(crow, col.shape[0]), col.long()
    counts = _count_nll(values.double(), *given.at(rows, cols)).to(given.wide)
    sums = []
    for here, (some, places) in zip(row_slices(log_mu), given.entries(crow, col), strict=True):
        cells = _zero_nll(*given.block(here)).index_put(places, counts[some])
        sums.append(cells.sum(dim=1, dtype=torch.float64))
    nll = torch.cat(sums) if sums else log_mu.new_zeros(0, dtype=torch.float64)
    logsumexp = given.logsumexp
    if logsumexp is None:
        logsumexp = log_mu.new_empty(0, dtype=given.wide)
    return nll.to(given.wide), logsumexp


def backward(
    grad: Tensor,
    log_mu: Tensor,
    log_theta: Tensor,
    zero_logits: Tensor | None,
    library: Tensor | None,
    logsumexp: Tensor,
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    wants: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of log_mu, log_theta, zero_logits and library; (0,) for what is not wanted."""
    given = _Rows(log_mu, log_theta, zero_logits, library, logsumexp)
    rows, cols = entry_rows(crow, col.shape[0]), col.long()
    counts = _count_gradients(values.double(), *given.at(rows, cols))
    at_entries = [None if g is None else g.to(given.wide) for g in counts]
    blocks: list[list[Tensor]] = [[], [], [], []]
    for here, (some, places) in zip(row_slices(log_mu), given.entries(crow, col), strict=True):
        l_block, t_block, z_block = given.block(here)
        cells = [
            None if zero is None or count is None else zero.index_put(places, count[some])
            for zero, count in zip(
                _zero_gradients(l_block, t_block, z_block), at_entries, strict=True
            )
        ]
        in_mu, in_t, in_z = cells
        weight = grad[here, None]
        if library is not None and in_mu is not None and given.logsumexp is not None:
            # In d log(library), and what the softmax takes from every cell.
            total = in_mu.sum(dim=1, keepdim=True)
            share = torch.exp(log_mu[here].to(given.wide) - given.logsumexp[here, None])
            in_mu = in_mu - share * total
            if wants[3]:
                blocks[3].append((weight * total)[:, 0] / library[here])
        if wants[0] and in_mu is not None:
            blocks[0].append((weight * in_mu).to(log_mu.dtype))
        if wants[1] and in_t is not None:
            in_t = weight * in_t
            blocks[1].append(in_t if log_theta.dim() == 2 else in_t.sum(dim=0, keepdim=True))
        if wants[2] and in_z is not None:
            blocks[2].append((weight * in_z).to(log_mu.dtype))
    like = (log_mu, log_theta, log_mu if zero_logits is None else zero_logits, grad)
    results = []
    for i in range(4):
        if not wants[i]:
            results.append(like[i].new_empty(0))
        elif i == 1 and log_theta.dim() == 1:
            results.append(torch.cat([*blocks[1], log_theta.new_zeros(1, *log_theta.shape)]).sum(0))
        else:
            results.append(torch.cat(blocks[i]) if blocks[i] else torch.zeros_like(like[i]))
    return results[0], results[1], results[2], results[3]
