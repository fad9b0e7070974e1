"""Packed sequences: of the longest first, the rows of all samples at the first time, then at the second, …

Row (t, n) is there for n < b_t, as many as have a time t. So the rows of one time are a segment of b_t exchangeable
rows. Of two times, s and t, min(b_s, b_t) of the b_s·b_t pairs are of one sample:

    E[row row' | s, t] = (m·E[same sample, s, t] + (b_s b_t − m)·E[two samples, s, t])/(b_s b_t),   m = min(b_s, b_t)

Beyond as many times as an axis may have segments, those that differ least are taken as alike.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.moments.alike import plain, settled
from initwell.propagate.moments.atoms import permuted
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.segments import patterns
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.parts import one_atom
from initwell.propagate.table import Call, Rule, UnknownSignalError


def packed(x: Signal, sizes: Sequence[int]) -> Signal:
    """Put the rows of each time one after the other.

    Args:
        x: of shape (times, samples, …).
        sizes: how many samples have each time, the longest ones first.

    >>> from initwell.propagate.moments.signal import independent
    >>> found = packed(independent((3, 4, 2), 1.0), [4, 2, 1])
    >>> found.shape, found.q  # rows that are alike are one segment
    ((7, 2), 1.0)
    """
    x = plain(one_atom(one_atom(x, 0), 1), 1)
    if not x.dims[0] or not x.dims[1]:
        raise UnknownSignalError("packed sequences of one sample or one time")
    atom = x.dims[0][0]
    segment = np.searchsorted(np.cumsum(atom.patterns.parts), np.arange(len(sizes)), side="right")
    old, pairs = len(atom.patterns.parts), patterns(tuple(sizes))
    agree, differ = (np.asarray(x.moments.take(i, 1)) for i in (0, 1))
    columns = [agree[place] for place in segment]
    for s, t in zip(pairs.first[len(sizes) :].tolist(), pairs.second[len(sizes) :].tolist(), strict=True):
        if s == t:
            columns.append(differ[segment[s]])
            continue
        place = old + segment[s] * old + segment[t]
        same = min(sizes[s], sizes[t]) / (sizes[s] * sizes[t])
        columns.append(same * agree[place] + (1 - same) * differ[place])
    means = x.means.take(0, 1).take(segment, 0)
    dims = ((Atom(sum(sizes), x.dims[1][0].sample, tuple(sizes)),), *x.dims[2:])
    return settled(x.changed(np.stack(columns), means, dims=dims, gaussian=x.gaussian), 0)


def _pack(call: Call) -> Sequence[Signal | None]:
    lengths = call.value("lengths")
    if lengths is None:
        raise UnknownSignalError("packed sequences whose lengths are not known")
    x = call.signal("input")
    if call["batch_first"]:
        x = permuted(x, [1, 0, *range(2, len(x.dims))])
    sizes = [int((lengths > t).sum()) for t in range(int(lengths.max()))]
    return [packed(x, sizes), None]


RULES: Mapping[str, Rule] = {"aten._pack_padded_sequence": _pack}
