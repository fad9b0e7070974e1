"""Where the sample index and the unit index of each value are, through views, transposes and contractions.

A Linear on (N, T, C) reaches ATen as a view to (N·T, C), a product, and a view back; attention splits and transposes
heads. Reading axis 0 as the sample and axis 1 as the unit would then mix samples with positions. So both are carried
along: as ``Axis(size, inner)``, a reshape does not change them at all, and a transpose moves them.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from initwell.measurement.stats import Axis
from initwell.trace.ops import FROM_SHAPE
from initwell.trace.trace import Op, Value, ValueRef

Shape = tuple[int, ...]

_RESHAPES = frozenset(f"aten.{n}" for n in ("view", "_unsafe_view", "reshape", "_reshape_alias"))
_CONVOLUTIONS = frozenset(f"aten.{n}" for n in ("convolution", "_convolution"))
_LINEAR = frozenset(f"aten.{n}" for n in ("addmm", "mm", "linear", "_trilinear", "embedding", "baddbmm"))
# Matrix products → the name of their second operand.
_PRODUCTS = {"aten.mm": "mat2", "aten.addmm": "mat2", "aten.bmm": "mat2", "aten.baddbmm": "batch2"}


class AxisTracker:
    """Follows the sample axis and the unit axis of every value, op by op."""

    def __init__(self) -> None:
        """Know nothing yet; the first input given says how many samples there are."""
        self._shapes: dict[int, Shape] = {}
        self._samples: dict[int, Axis] = {}
        self._units: dict[int, Axis] = {}
        self._count: int | None = None

    def given(self, value: Value) -> None:
        """Take an input: its axis 0 is the sample, if it is as long as that of the first input."""
        self._shapes[value.id] = value.shape
        if value.shape and self._count is None:
            self._count = value.shape[0]
        if value.shape and value.shape[0] == self._count:
            self._samples[value.id] = Axis(value.shape[0], prod(value.shape[1:]))

    def replaced(self, old: int, new: int) -> None:
        """Let a new version of a value keep what was known of the old one."""
        for known in (self._shapes, self._samples, self._units):
            if old in known:
                known[new] = known[old]  # type: ignore[assignment]

    def made(self, value: Value, op: Op) -> None:
        """Take an output of an op."""
        self._shapes[value.id] = value.shape
        if op.functional in FROM_SHAPE:
            return
        self._carry(self._samples, value, op)
        if op.functional in _CONVOLUTIONS and len(value.shape) > 1:
            self._units[value.id] = Axis(value.shape[1], prod(value.shape[2:]))
        elif op.functional in _LINEAR and value.shape:
            self._units[value.id] = self._made_units(value.shape, op)
        else:
            self._carry(self._units, value, op)

    def samples(self, value: int) -> Axis | None:
        """Return where the sample index of a value is, None where that is not known."""
        return self._samples.get(value)

    def units(self, value: int) -> Axis | None:
        """Return where the unit index of a value is: the channel of a convolution, the feature of a linear layer.

        A value that no layer made yet has its units on axis 1.
        """
        shape = self._shapes.get(value, ())
        fallback = Axis(shape[1], prod(shape[2:])) if len(shape) > 1 else None
        return self._units.get(value, fallback)

    def _made_units(self, shape: Shape, op: Op) -> Axis:
        second = op.arguments.get(_PRODUCTS.get(op.functional, ""))
        with_samples = {ValueRef(source) for source in op.inputs if source in self._samples}
        # W·xᵀ, written weights first: the samples are columns, so the units are rows.
        if with_samples == {second} and len(shape) > 1:
            return Axis(shape[-2], shape[-1])
        return Axis(shape[-1], 1)

    def _carry(self, known: dict[int, Axis], value: Value, op: Op) -> None:
        for source in op.inputs:
            axis = known.get(source)
            if axis is not None and source in self._shapes:
                moved = carried(axis, self._shapes[source], value.shape, op, source)
                if moved is not None:
                    known[value.id] = moved
                    return


def carried(axis: Axis, shape: Shape, out: Shape, op: Op, source: int = -1) -> Axis | None:
    """Return where an index is after an op, None where it is gone or cannot be told.

    Args:
        axis: where it is in the input.
        shape: of the input.
        out: of the output.
        op: the op, by whose arguments views move axes.
        source: id of the input; a matrix product sums over another axis of its second operand than of its first.
    """
    if op.functional in _RESHAPES:
        return axis if prod(shape) == prod(out) else None
    at = _dimension(axis, shape)
    if at is None:
        return None
    dimension, inner = at
    if op.functional in _PRODUCTS:
        second = op.arguments.get(_PRODUCTS[op.functional]) == ValueRef(source)
        if dimension == len(shape) - (2 if second else 1):
            return None
    to = _MOVES.get(op.functional, _stays)(dimension, len(shape), out, op.arguments)
    if to is None or not 0 <= to < len(out) or out[to] != shape[dimension]:
        return None
    return Axis(axis.size, inner * prod(out[to + 1 :]))


def _dimension(axis: Axis, shape: Shape) -> tuple[int, int] | None:
    """Return (the dimension that holds the index, how many entries of that dimension share one index)."""
    after = 1
    for d in range(len(shape) - 1, -1, -1):
        if axis.inner < after * shape[d] or (axis.size == 1 and axis.inner == after * shape[d] == prod(shape)):
            fits = axis.inner % after == 0 and (after * shape[d]) % (axis.inner * axis.size) == 0
            return (d, axis.inner // after) if fits else None
        after *= shape[d]
    return None


_Arguments = Mapping[str, Any]
_Move = Callable[[int, int, Shape, _Arguments], int | None]


def _stays(d: int, rank: int, out: Shape, a: _Arguments) -> int | None:
    return d


def _transposed(d: int, rank: int, out: Shape, a: _Arguments) -> int | None:
    one, two = (int(a[k]) % rank for k in ("dim0", "dim1"))
    return {one: two, two: one}.get(d, d)


def _flipped(d: int, rank: int, out: Shape, a: _Arguments) -> int | None:
    return rank - 1 - d


def _permuted(d: int, rank: int, out: Shape, a: _Arguments) -> int | None:
    return [int(x) % rank for x in a["dims"]].index(d)


def _inserted(d: int, rank: int, out: Shape, a: _Arguments) -> int | None:
    return d + (int(a["dim"]) % len(out) <= d)


def _removed(d: int, rank: int, out: Shape, a: _Arguments) -> int | None:
    gone = _dims(a, rank)
    return None if d in gone else d - sum(g < d for g in gone)


def _reduced(d: int, rank: int, out: Shape, a: _Arguments) -> int | None:
    gone = _dims(a, rank)
    return d if len(out) == rank and d not in gone else _removed(d, rank, out, a)


def _squeezed(d: int, rank: int, out: Shape, a: _Arguments) -> int | None:
    if len(out) == rank:
        return d
    return _removed(d, rank, out, a) if "dim" in a else None


def _expanded(d: int, rank: int, out: Shape, a: _Arguments) -> int | None:
    return d + len(out) - rank


def _dims(a: _Arguments, rank: int) -> Sequence[int]:
    given = a.get("dim", 0)
    if given is None or isinstance(given, ValueRef):
        return range(rank)
    many = given if isinstance(given, tuple) else (given,)
    return [int(x) % rank for x in many] or list(range(rank))


_MOVES: Mapping[str, _Move] = {
    "aten.transpose": _transposed,
    "aten.t": _flipped,
    "aten.permute": _permuted,
    "aten.unsqueeze": _inserted,
    "aten.stack": _inserted,
    "aten.select": _removed,
    "aten.unbind": _removed,
    "aten.squeeze": _squeezed,
    "aten.mean": _reduced,
    "aten.sum": _reduced,
    "aten.amax": _reduced,
    "aten.expand": _expanded,
}
