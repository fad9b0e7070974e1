"""Writing into a part of a tensor: what the whole is afterwards.

An in-place op makes a new version of the view that it writes to, of the tensor that this shows, and of its other views.
The way from the whole to the part is a chain of slices and selections; put back along it, the part becomes segments of
the whole. Memory that nothing was written to yet counts as zeros: whoever reads it has written all of it before.
Assumption: what is written is independent of what stays.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from initwell.propagate.moments.atoms import permuted, viewed
from initwell.propagate.moments.signal import Signal, constant
from initwell.propagate.rules.parts import concatenated, sliced
from initwell.trace.ops import VIEWS
from initwell.trace.trace import Op, Trace, ValueRef

_WRITTEN = "a part written into a tensor, as independent of what stays in it"
_EMPTY = frozenset({"aten.empty", "aten.empty_like", "aten.new_empty", "aten.new_empty_strided", "aten.empty_strided"})


def put(whole: Signal, part: Signal, starts: Sequence[int]) -> Signal:
    """Put a part of the same rank into a whole, at these places.

    >>> from initwell.propagate.moments.signal import independent
    >>> put(constant((4, 2), 0.0), independent((2, 2), 1.0), (1, 0)).diagonal[:, 0].tolist()
    [0.0, 1.0, 0.0]
    """
    for dim, start in enumerate(starts):
        n, length = whole.shape[dim], part.shape[dim]
        if length < n:
            rest = [0 if d <= dim else s for d, s in enumerate(starts)]
            inside = put(sliced(whole, dim, start, start + length), part, rest)
            ends = [(0, start), (start + length, n)]
            before, after = ([sliced(whole, dim, a, b)] if b > a else [] for a, b in ends)
            return concatenated([*before, inside, *after], dim)
    return part


@dataclass(frozen=True)
class Box:
    """A part of dense memory that strides show: a range along each of memory's dimensions.

    Attributes:
        memory: the order of the tensor's dimensions in memory.
        lengths: of memory's dimensions, as the part counts them.
        starts: where the part begins along each.
        order: which dimension of the part each is; −1 for one that it does not have.
        size: lengths of the part.
    """

    memory: tuple[int, ...]
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    order: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def extent(self) -> list[int]:
        """How long the part is along each of memory's dimensions."""
        return [1 if d < 0 else self.size[d] for d in self.order]

    def laid(self, x: Signal) -> Signal:
        """Lay the tensor out as memory."""
        return viewed(permuted(x, self.memory), self.lengths)

    def shown(self, x: Signal) -> Signal:
        """Take the part."""
        x = self.laid(x)
        for dim, (start, length) in enumerate(zip(self.starts, self.extent, strict=True)):
            x = sliced(x, dim, start, start + length)
        kept = [self.order.index(d) for d in range(len(self.size))]
        return viewed(permuted(x, [*kept, *(i for i, d in enumerate(self.order) if d < 0)]), self.size)

    def written(self, x: Signal, part: Signal) -> Signal:
        """Put the part back."""
        places = [d if d >= 0 else len(self.size) + i for i, d in enumerate(self.order)]
        opened = viewed(part, (*self.size, *(1 for d in self.order if d < 0)))
        ranked = sorted(range(len(places)), key=lambda i: places[i])
        turned = permuted(opened, [ranked.index(i) for i in range(len(places))])
        whole = put(self.laid(x), turned, self.starts)
        apart = viewed(whole, [x.shape[d] for d in self.memory])
        return permuted(apart, [self.memory.index(d) for d in range(len(self.memory))])


def box(
    shape: Sequence[int], own: Sequence[int], size: Sequence[int], stride: Sequence[int], offset: int
) -> Box | None:
    """Find the part of a dense tensor that strides show; None where it is no box of it.

    Args:
        shape: of the tensor.
        own: its strides.
        size: lengths of what is shown.
        stride: its strides.
        offset: where it begins.

    >>> box((4, 5, 8), (40, 8, 1), (4, 8), (40, 1), 16).starts  # [:, 2]
    (0, 16, 0)
    """
    memory = sorted(range(len(shape)), key=lambda d: (-own[d], d))
    inner = 1
    for d in reversed(memory):
        if shape[d] > 1 and own[d] != inner:
            return None
        inner *= shape[d]
    lengths, starts, order, above = list[int](), list[int](), list[int](), math.prod(shape)
    for d in sorted((d for d in range(len(size)) if size[d] > 1), key=lambda d: -stride[d]):
        if stride[d] <= 0 or above % stride[d]:
            return None
        lengths.append(above // stride[d])
        start, offset = divmod(offset, stride[d])
        starts.append(start)
        order.append(d)
        above = stride[d]
    ones = [d for d in range(len(size)) if size[d] == 1]
    lengths += [1] * len(ones) + [above]
    starts += [0] * len(ones) + [offset]
    order += [*ones, -1]
    found = Box(tuple(memory), tuple(lengths), tuple(starts), tuple(order), tuple(size))
    inside = all(s + k <= n for n, s, k in zip(lengths, starts, found.extent, strict=True))
    return found if inside else None


def strides_of(trace: Trace, value: int) -> tuple[int, ...]:
    """Return the strides of a tensor: of the memory that was made for it, else row-major."""
    op = trace.producer(value)
    while op is not None and op.functional == "aten.copy" and isinstance(op.arguments["self"], ValueRef):
        op = trace.producer(op.arguments["self"].id)
    if op is not None and op.functional == "aten.new_empty_strided":
        return tuple(op.arguments["stride"])
    shape = trace.values[value].shape
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def box_of(trace: Trace, op: Op) -> Box | None:
    """Return the box that an ``as_strided`` shows."""
    ref, a = op.arguments["self"], op.arguments
    shape = trace.values[ref.id].shape
    return box(shape, strides_of(trace, ref.id), a["size"], a["stride"], int(a["storage_offset"] or 0))


def overwritten(trace: Trace, op: Op, known: Mapping[int, Signal]) -> dict[int, Signal]:
    """Return what an in-place op on a part makes of the whole, and of its other views, as far as that is known.

    Args:
        trace: the walk.
        op: what wrote; its first output is the part.
        known: signals so far, that of the part included.
    """
    found: dict[int, Signal] = {}
    changed = dict(op.mutates)
    part = next((old for old, new in op.mutates if op.outputs and new == op.outputs[0]), None)
    if part is None or op.outputs[0] not in known:
        return found
    signal, value = known[op.outputs[0]], part
    # From the part up: every view on the way to the whole, as it was, with what is below it put in.
    while (view := trace.producer(value)) is not None and view.functional in VIEWS and view.inputs:
        parent = view.inputs[0]
        before = known.get(parent) or _untouched(trace, parent)
        after = _put_back(trace, view, value, before, signal) if before is not None else None
        if after is None:
            return found
        signal, value = after.approximate(_WRITTEN), parent
        if value in changed:
            found[changed[value]] = signal
    for old, new in op.mutates:
        shape = trace.values[new].shape
        if new not in found and new != op.outputs[0] and shape == signal.shape and old != part:
            found[new] = signal
    return found


def _untouched(trace: Trace, value: int) -> Signal | None:
    op = trace.producer(value)
    return constant(trace.values[value].shape, 0.0) if op is not None and op.functional in _EMPTY else None


def _put_back(trace: Trace, view: Op, value: int, whole: Signal, part: Signal) -> Signal | None:
    """Put a part back into what a view op took it from; None for ops that this is not known of."""
    a, rank = view.arguments, len(whole.dims)
    if view.functional == "aten.as_strided":
        found = box_of(trace, view)
        return None if found is None else found.written(whole, part)
    if view.functional in _SAME:
        return viewed(part, whole.shape)
    if view.functional not in _STARTS:
        return None
    dim = (a["dim"] or 0) % rank
    start = _STARTS[view.functional](view, value, whole.shape[dim], trace)
    if start is None:
        return None
    if len(part.dims) < rank:
        part = part.regrouped((*part.dims[:dim], (), *part.dims[dim:]), part.moments)
    return put(whole, part, [start if d == dim else 0 for d in range(rank)])


def _sliced_from(view: Op, value: int, length: int, trace: Trace) -> int | None:
    a = view.arguments
    start, _, step = slice(a["start"], a["end"], a["step"] or 1).indices(length)
    return start if step == 1 else None


def _split_from(view: Op, value: int, length: int, trace: Trace) -> int:
    dim = (view.arguments["dim"] or 0) % len(trace.values[value].shape)
    return sum(trace.values[v].shape[dim] for v in view.outputs[: view.outputs.index(value)])


_STARTS: Mapping[str, Callable[[Op, int, int, Trace], int | None]] = {
    "aten.slice": _sliced_from,
    "aten.narrow": lambda view, value, length, trace: int(view.arguments["start"]) % length,
    "aten.select": lambda view, value, length, trace: int(view.arguments["index"]) % length,
    "aten.unbind": lambda view, value, length, trace: view.outputs.index(value),
    **dict.fromkeys(("aten.split", "aten.split_with_sizes", "aten.chunk"), _split_from),
}
_SAME = frozenset({"aten.detach", "aten.alias", "aten.view", "aten.unsqueeze", "aten.squeeze", "aten.reshape"})
