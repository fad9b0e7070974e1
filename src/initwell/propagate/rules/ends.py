"""The first positions of a causal convolution, which few taps reach: segments of their own.

Of K taps that look back, the first position has one, the second two, and from the K-th on all. Functions of these
positions that multiply each other, as the step, the input and the output of a selective scan do, make powers of what is
there, so that an average over positions says nothing of the first ones. Where places are known of an axis (see
``places``) and only a few at its ends are far smaller than what lies between, each of these becomes a segment:

    E[x_p x_p′] = a·S(p, p′) + (q − a)·L(p, p′)        averaged over the pairs of two segments

Assumption: that of ``places``; positions have one mean.
"""

import numpy as np

from initwell.propagate.moments.alike import refined
from initwell.propagate.moments.places import parted, sizes
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace

# So many positions may be unlike the others, each smaller than they by this factor or more.
_MOST = 8
_SMALLER = 1.25


def first_apart(signal: Signal, dim: int) -> Signal:
    """Give each of the first positions of a dimension a segment, where they are smaller than all the others.

    Args:
        signal: any signal; it comes back as it is where it has no such positions.
        dim: the dimension.
    """
    place = dim - (len(signal.dims) - len(signal.profile))
    if place < 0 or signal.segmented or len(signal.dims[dim]) != 1 or signal.law is not None:
        return signal
    places = signal.profile[place]
    size = sizes(places)
    usual = float(np.median(size))
    count = int(np.argmax(size * _SMALLER >= usual))
    rest = size[count:]
    if places.ndim != 3 or not 0 < count <= _MOST or rest.max() > _SMALLER * rest.min():
        return signal
    axis = signal.axes([dim])[0]
    parts = (*[1] * count, size.size - count)
    bare = refined(replace(signal, profile=()), axis, parts)
    pairs = bare.atoms[axis].patterns
    tables = np.stack([_by_segments(table, parts) for table in places])
    weights = (tables.T @ parted(places))[:, :, None]
    both = np.moveaxis(signal.moments, axis, 0).reshape(2, -1)
    shape = [2 if i != axis else pairs.counts.size for i in range(len(signal.atoms))]
    found = (weights[:, 0] * both[0] + weights[:, 1] * both[1]).reshape(shape[axis], *np.delete(shape, axis))
    return replace(bare, moments=np.ascontiguousarray(np.moveaxis(found, 0, axis)))


def _by_segments(table: Array, parts: tuple[int, ...]) -> Array:
    """Average a table of places over the pairs of each pattern."""
    ends = np.cumsum([0, *parts])
    s, own = len(parts), table.diagonal()
    found = np.zeros(s + s * s)
    for i in range(s):
        rows = slice(ends[i], ends[i + 1])
        found[i] = own[rows].mean()
        for j in range(s):
            block = table[rows, ends[j] : ends[j + 1]]
            pairs = block.size - (parts[i] if i == j else 0)
            whole = float(block.sum()) - (float(own[rows].sum()) if i == j else 0.0)
            found[s + i * s + j] = whole / pairs if pairs else found[i]
    return found
