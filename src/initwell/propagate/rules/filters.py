"""Filters: a convolution of each channel with the same known numbers, such as the blur of an antialiased stride.

The numbers are no draw, and what is known of a weight on average, E[w_k w_k'], says neither which tap is large nor that
the same one is large at every output. Where they are one column times one row, the convolution is a known matrix along
each axis, W[p, x] = w_k where p reads x through tap k, as resampling is (``resample``), and backward it is Wᵀ. Numbers
that are no such product are not looked at here. Assumption: that of ``places``.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from initwell.propagate.moments.incidence import Axis, geometry
from initwell.propagate.moments.segments import Array
from initwell.propagate.table import Call

_MOST = 4_000_000
_LEAST = 1e-6


def filtering(call: Call, inputs: Sequence[int], outputs: Sequence[int]) -> list[Array] | None:
    """Return what a convolution does along each axis: shape (outputs, inputs); None where it is no filter.

    Args:
        call: of the convolution, or of its backward.
        inputs: lengths of the spatial dimensions of its input.
        outputs: of its output.
    """
    weight = call.value("weight")
    if weight is None or call["transposed"] or weight.shape[1] != 1 or int(call["groups"]) != weight.shape[0]:
        return None
    columns = _columns(weight)
    if columns is None:
        return None
    axes = geometry(call, inputs, outputs, weight.shape[2:])
    if any(a.sizes[0] * a.sizes[1] > _MOST for a in axes):
        return None
    return [_matrix(axis, column) for axis, column in zip(axes, columns, strict=True)]


def _columns(weight: Tensor) -> list[Array] | None:
    """Return the taps along each axis whose product a kernel is, the same for all channels; None where it is not."""
    every = weight.detach().double().numpy()
    kernel = every[0, 0]
    size = float(np.abs(kernel).max(initial=0.0))
    if size == 0 or np.abs(every - kernel).max() > _LEAST * size:
        return None
    peak = np.unravel_index(int(np.abs(kernel).argmax()), kernel.shape)
    # Through its largest entry m a product of r columns goes as these, and r of them have m once each.
    columns = [kernel[tuple(slice(None) if i == d else p for i, p in enumerate(peak))] for d in range(kernel.ndim)]
    root = abs(kernel[peak]) ** (1 - 1 / kernel.ndim)
    columns = [c / root for c in columns]
    columns[0] = columns[0] * math.copysign(1.0, kernel[peak]) ** (kernel.ndim - 1)
    made = columns[0]
    for column in columns[1:]:
        made = np.multiply.outer(made, column)
    return columns if np.abs(made - kernel).max() <= _LEAST * size else None


def _matrix(axis: Axis, taps: Array) -> Array:
    matrix = np.zeros(axis.sizes[:2])
    rows = np.broadcast_to(np.arange(axis.sizes[0])[:, None], axis.at.shape)
    values = np.broadcast_to(taps, axis.at.shape)
    np.add.at(matrix, (rows[axis.inside], axis.at[axis.inside]), values[axis.inside])
    return matrix
