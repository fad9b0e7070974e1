"""From a tensor to its statistics, in one pass, with float64 sums."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from initwell.records import Record

# Entries read at a time: the float64 arrays in use then stay in a core's cache.
_CHUNK = 1 << 15


@dataclass(frozen=True)
class TensorStats(Record):
    """Statistics over all entries of one tensor.

    Args:
        count: number of entries.
        mean: E[x].
        std: standard deviation, divided by the count.
        rms: √E[x²].
        abs_mean: E|x|, the figure that Caffe's debug_info prints.
        zeros: share of entries that are exactly 0.
        min: the smallest entry.
        max: the largest entry.
    """

    count: int
    mean: float
    std: float
    rms: float
    abs_mean: float
    zeros: float
    min: float
    max: float


def tensor_stats(tensor: Tensor) -> TensorStats:
    """Measure a floating tensor of any shape, dtype, layout and device; a sparse one counts its zeros too.

    A complex entry counts as two, its real and its imaginary part.

    The sums run in float64 over pieces, so no float64 copy of the whole is made; the variance is
    taken about the mean of the first piece, so a large mean does not cancel it away.

    >>> stats = tensor_stats(torch.tensor([3.0, -4.0, 0.0, 0.0]))
    >>> stats.rms, stats.abs_mean, stats.zeros
    (2.5, 1.75, 0.5)
    >>> tensor_stats(torch.tensor([3.0 - 4.0j])).rms == 12.5**0.5
    True
    """
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    dense = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
    count = dense.numel()
    if not count:
        return TensorStats(0, *[math.nan] * 7)
    pivot: Tensor | None = None
    sums, low, high = [], [], []
    for part in _parts(dense):
        pivot = part.mean() if pivot is None else pivot
        off = part - pivot
        absolute = torch.linalg.vector_norm(part, 1)
        sums.append(torch.stack((off.sum(), off.dot(off), part.dot(part), absolute, (part == 0).sum().double())))
        smallest, largest = torch.aminmax(part)
        low.append(smallest)
        high.append(largest)
    shift, spread, square, absolute_mean, zeros = (torch.stack(sums).sum(0) / count).tolist()
    mean = float(pivot if pivot is not None else math.nan) + shift
    std = math.sqrt(max(spread - shift * shift, 0.0)) if math.isfinite(spread) else math.nan
    edges = float(torch.stack(low).min()), float(torch.stack(high).max())
    return TensorStats(count, mean, std, math.sqrt(square), absolute_mean, zeros, *edges)


def _parts(dense: Tensor) -> Iterator[Tensor]:
    # Statistics do not mind the order of entries, so a transposed tensor is read as it lies in memory.
    flat = dense.reshape(-1) if dense.is_contiguous() else _flat(dense)
    for start in range(0, flat.numel(), _CHUNK):
        yield flat[start : start + _CHUNK].to(torch.float64)


def _flat(dense: Tensor) -> Tensor:
    order = sorted(range(dense.dim()), key=dense.stride, reverse=True)
    return dense.permute(order).reshape(-1)


@dataclass(frozen=True)
class Axis:
    """Where an index sits in a tensor: entry f of the flattened tensor has index (f // inner) % size."""

    size: int
    inner: int

    def split(self, tensor: Tensor) -> Tensor:
        """Return the tensor as (outer, size, inner)."""
        return tensor.detach().reshape(-1, self.size, self.inner)


def overlap(tensor: Tensor, samples: Axis) -> float | None:
    """Return the mean product of an entry between two different samples, over the second moment q.

    With S the sum over the n samples, Σ_{i≠j} x_i·x_j = |S|² − Σ|x_i|², so no pair is ever formed. It is 1 when all
    samples are the same, 0 when they are orthogonal on average; None for a single sample or an all-zero tensor.

    >>> overlap(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), Axis(2, 2))
    0.0
    >>> overlap(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), Axis(2, 2))
    1.0
    """
    n = samples.size
    if n < 2:
        return None
    square, summed = 0.0, 0.0
    for slab in samples.split(tensor):
        wide = slab.to(torch.float64)
        square += float(wide.square().sum())
        summed += float(wide.sum(0).square().sum())
    return (summed - square) / ((n - 1) * square) if square else None


def dead_units(tensor: Tensor, units: Axis) -> float:
    """Return the share of units that are 0 on every sample and position.

    >>> dead_units(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), Axis(2, 1))
    0.5
    """
    return float((units.split(tensor) == 0).all(2).all(0).double().mean())


SATURATION_SHARE = 0.05
"""An entry is saturated where φ′ is below this share of its largest value."""

_Test = Callable[[Tensor, Mapping[str, Any]], Tensor]
# Each reads φ′ off the output: tanh′ = 1 − y², σ′ = y(1 − y) ≤ 1/4, elu′ = (y + α)/α below 0.
_SATURATED: Mapping[str, _Test] = {
    "tanh": lambda y, _: 1 - y.square() < SATURATION_SHARE,
    "sigmoid": lambda y, _: 4 * y * (1 - y) < SATURATION_SHARE,
    "hardsigmoid": lambda y, _: (y <= 0) | (y >= 1),
    "hardtanh": lambda y, a: (y <= a["min_val"]) | (y >= a["max_val"]),
    # It arrives as hardtanh(0, 6). Its zeros are a rectifier's, and are counted as zeros.
    "relu6": lambda y, a: y >= a["max_val"],
    "elu": lambda y, a: y < (SATURATION_SHARE - 1) * a["alpha"] * a["scale"],
    "celu": lambda y, a: y < (SATURATION_SHARE - 1) * a["alpha"],
}


def saturated(output: Tensor, activation: str, arguments: Mapping[str, Any]) -> float | None:
    """Return the share of entries where a saturating activation is flat; None for one that does not saturate.

    The criterion: φ′ below 5 % of its largest value. For tanh that is |y| > 0.975, for sigmoid y outside
    (0.013, 0.987), for a hard activation an entry at its bound, for elu, selu and celu y below 95 % of the way down.

    Args:
        output: φ(x).
        activation: its name in ``initwell.trace.ops.ACTIVATIONS``.
        arguments: the op's arguments.

    >>> saturated(torch.tensor([0.0, 0.98, -0.99, 0.5]), "tanh", {})
    0.5
    """
    test = _SATURATED.get(activation)
    return None if test is None else float(test(output.detach(), arguments).double().mean())
