"""Average pooling: a known matrix along each axis, whose rows hold 1 over what a window counts.

It is resampling (``resample``), forward by W and backward by Wᵀ. An axis too long for a matrix is read through taps.
Assumption: that of ``places``.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.moments.incidence import Axis, adaptive, geometry, spread
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, constant
from initwell.propagate.rules.reading import profiled, read_places
from initwell.propagate.rules.resample import resampled
from initwell.propagate.rules.taps import tapped
from initwell.propagate.table import Call, Rule

# Entries of a matrix; beyond, an axis has other windows than those of images.
_MOST = 4_000_000


def _counts(call: Call, axes: Sequence[Axis], inputs: Sequence[int]) -> list[Array]:
    """Return what each window of each axis divides by."""
    n = len(axes)
    if call["divisor_override"]:
        root = float(call["divisor_override"]) ** (1 / n)
        return [np.full(a.sizes[0], root) for a in axes]
    if call["count_include_pad"] is False:
        return [a.inside.sum(axis=1).astype(np.float64) for a in axes]
    kernel, padding = (spread(call[name], n) for name in ("kernel_size", "padding"))
    # With ``ceil_mode`` a window ends where the padding does.
    return [
        np.minimum(a.at[:, 0] + k, m + p).astype(np.float64) - a.at[:, 0]
        for a, k, m, p in zip(axes, kernel, inputs, padding, strict=True)
    ]


def _matrices(axes: Sequence[Axis], counts: Sequence[Array]) -> list[Array] | None:
    found = []
    for axis, count in zip(axes, counts, strict=True):
        if axis.sizes[0] * axis.sizes[1] > _MOST:
            return None
        matrix = np.zeros(axis.sizes[:2])
        rows = np.broadcast_to(np.arange(axis.sizes[0])[:, None], axis.at.shape)
        matrix[rows[axis.inside], axis.at[axis.inside]] = (1 / np.maximum(count, 1))[rows[axis.inside]]
        found.append(matrix)
    return found


def _averaged(x: Signal, axes: Sequence[Axis], counts: Sequence[Array], *, back: bool) -> Signal:
    matrices = _matrices(axes, counts)
    if matrices is not None:
        return resampled(x, [m.T for m in matrices] if back else matrices, why="")
    size = float(np.prod([c.mean() for c in counts]))
    kernel = constant([a.sizes[2] for a in axes], 1 / size)
    known = read_places(x, len(axes))
    return profiled(tapped(x, kernel, axes, "pkx" if back else "xkp"), known, axes, "x" if back else "p")


def matrices_of(call: Call) -> list[Array] | None:
    """Return the matrix of each axis, of average pooling or of its backward; None where an axis is too long.

    Args:
        call: of the op.
    """
    n, back = 3 if "3d" in call.op.packet else 2, call.op.phase == "backward"
    source = call.trace.values[(call["grad_output"] if back else call["self"]).id].shape
    inputs, outputs = (call.shape(), source) if back else (source, call.shape())
    axes = geometry(call, inputs[-n:], outputs[-n:], spread(call["kernel_size"], n))
    found = _matrices(axes, _counts(call, axes, inputs[-n:]))
    return [m.T for m in found] if back and found is not None else found


def _avg_pool(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    n = 3 if "3d" in call.op.packet else 2
    inputs = x.shape[-n:]
    axes = geometry(call, inputs, call.shape()[-n:], spread(call["kernel_size"], n))
    return [_averaged(x, axes, _counts(call, axes, inputs), back=False)]


def _avg_pool_backward(call: Call) -> Sequence[Signal]:
    g = call.signal("grad_output")
    n = 3 if "3d" in call.op.packet else 2
    inputs = call.shape()[-n:]
    axes = geometry(call, inputs, g.shape[-n:], spread(call["kernel_size"], n))
    return [_averaged(g, axes, _counts(call, axes, inputs), back=True)]


def _lengths(axes: Sequence[Axis]) -> list[Array]:
    return [a.inside.sum(axis=1).astype(np.float64) for a in axes]


def _adaptive(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    n = 3 if "3d" in call.op.packet else 2
    axes = adaptive(x.shape[-n:], call.shape()[-n:])
    return [_averaged(x, axes, _lengths(axes), back=False)]


def _adaptive_backward(call: Call) -> Sequence[Signal]:
    g = call.signal("grad_output")
    n = 3 if "3d" in call.op.packet else 2
    axes = adaptive(call.shape()[-n:], g.shape[-n:])
    return [_averaged(g, axes, _lengths(axes), back=True)]


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("aten.avg_pool2d", "aten.avg_pool3d"), _avg_pool),
    **dict.fromkeys(("aten.avg_pool2d_backward", "aten.avg_pool3d_backward"), _avg_pool_backward),
    **dict.fromkeys(("aten._adaptive_avg_pool2d", "aten._adaptive_avg_pool3d"), _adaptive),
    **dict.fromkeys(("aten._adaptive_avg_pool2d_backward", "aten._adaptive_avg_pool3d_backward"), _adaptive_backward),
}
