"""Numbers drawn by a Signal: Gaussian, with its mean and its second moments by which indices agree.

A value that is exchangeable along its axes is a sum of independent parts, each of which varies along some of them and
is the same along the others. Indices that differ along the axes D share the parts that vary along none of D, so that

    m[D] = Σ_(S ∩ D = ∅) v_S        v_S = Σ_(U ⊆ S) (−1)^(|S| − |U|) m[all but U]

by Möbius inversion. Parts that would be negative, as where entries of a row sum to 0, are left out.
"""

import itertools
import math

import numpy as np
import torch
from torch import Generator, Tensor

from initwell.propagate.moments.alike import plain
from initwell.propagate.moments.signal import Signal

# The relative variance of squares is 2 for a Gaussian weight and 0.8 for a uniform one.
_UNIFORM = 1.4
_LEAST = 1e-12


def drawn(signal: Signal, generator: Generator) -> Tensor:
    """Draw a tensor.

    Args:
        signal: that it is to have; how entries of unlike segments go together is taken as alike, not their sizes.
        generator: of the numbers.

    >>> from initwell.propagate.moments.signal import independent
    >>> found = drawn(independent((1000, 8), 4.0), Generator().manual_seed(0))
    >>> found.shape, bool(abs(float(found.square().mean()) - 4) < 0.2)
    (torch.Size([1000, 8]), True)
    """
    even = plain(signal, *range(len(signal.dims))) if signal.segmented else signal
    sizes, count = [a.size for a in even.atoms], len(even.atoms)
    found = torch.full(sizes, even.mean, dtype=torch.float64)
    uniform = len(signal.scatter) == 1 and signal.scatter[0] < _UNIFORM
    whole = even.q - even.mean**2
    shares = {kept: _share(even.moments, even.mean, kept) for kept in _subsets(count)}
    total = sum(shares.values())
    for kept, share in shares.items():
        if share > _LEAST * even.q and total > 0:
            shape = [n if i in kept else 1 for i, n in enumerate(sizes)]
            found = found + _numbers(shape, generator, uniform=uniform) * math.sqrt(share * whole / total)
    return (found * _sizes(signal, even.q)).reshape(signal.shape).to(torch.float32)


def _sizes(signal: Signal, q: float) -> Tensor:
    """Return how much larger than on average the entries of each segment are: one axis for each atom."""
    found = np.sqrt(np.maximum(signal.diagonal, 0.0) / q) if q > 0 else np.ones_like(signal.means)
    for axis, atom in enumerate(signal.atoms):
        if atom.parts:
            found = np.repeat(found, atom.parts, axis)
    return torch.from_numpy(np.ascontiguousarray(found))


def _numbers(shape: list[int], generator: Generator, *, uniform: bool) -> Tensor:
    if uniform:
        return (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5) * math.sqrt(12)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _subsets(count: int) -> list[tuple[int, ...]]:
    return [s for n in range(count + 1) for s in itertools.combinations(range(count), n)]


def _share(moments: np.ndarray, mean: float, kept: tuple[int, ...]) -> float:
    """Return the variance of the part that varies along these axes and no others."""
    found, rank = 0.0, moments.ndim
    for n in range(len(kept) + 1):
        for inner in itertools.combinations(kept, n):
            place = tuple(0 if i in inner else 1 for i in range(rank))
            found += (-1) ** (len(kept) - n) * (float(moments[place]) - mean**2)
    return max(found, 0.0)
