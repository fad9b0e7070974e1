"""Tables that follow from known numbers and a few random ones, measured over many draws of these.

A model may stretch the coordinates of its patches by one random number a forward before it takes their cosines. Such a
table is no function of one Gaussian, since each entry has an angle of its own; but the numbers that it is made of are
so few that their whole law can be gone through. Of N draws the moments are averages over these:

    E[y_i y_j] = (1/N) Σ_n y_i(u_n) y_j(u_n)

with u_n a Kronecker sequence, frac(½ + n·φ_d^(−1), …, ½ + n·φ_d^(−d)), φ_d the root of x^(d+1) = x + 1: in the unit
cube of d uniform numbers its averages of smooth functions are off by about 1/N, where random draws' are by 1/√N.

Source: Roberts 2018, "The unreasonable effectiveness of quasirandom sequences"; Niederreiter 1992, ch. 3.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from initwell.propagate.given.known import Known
from initwell.propagate.given.measured import measured
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.trace.calls import called
from initwell.trace.ops import FROM_SHAPE
from initwell.trace.trace import Op, Trace, ValueRef

MOST_DRAWN = 8
"""So few random numbers are gone through."""
_DRAWS = 512
_ENTRIES = 2**22
_STEPS = 64
_SOURCES = frozenset({"aten.uniform", "aten.rand", "aten.rand_like"})


def over_draws(trace: Trace, values: Known, value: int) -> Signal | None:
    """Measure a value that is made of known numbers and a few uniform random ones.

    Args:
        trace: the walk.
        values: what has real numbers, and what is random by itself alone.
        value: its id.

    Returns:
        Its signal; None where anything else goes into it.
    """
    if not values.drawn(value):
        return None
    return values.once(f"over draws {value}", lambda: _over_draws(trace, values, value))


def _over_draws(trace: Trace, values: Known, value: int) -> Signal | None:
    ops = _ops(trace, values, value)
    if ops is None:
        return None
    sizes = [math.prod(trace.values[op.outputs[0]].shape) for op in ops if op.functional in _SOURCES]
    entries = math.prod(trace.values[value].shape)
    draws = min(_DRAWS, _ENTRIES // max(entries, 1))
    if not 0 < sum(sizes) <= MOST_DRAWN or draws < 2:
        return None
    try:
        tables = [_computed(ops, values, numbers)[value] for numbers in _spread(draws, sum(sizes))]
    except (RuntimeError, TypeError, KeyError):
        return None  # an op that cannot be run from what a trace keeps of its arguments
    found = measured(torch.stack(tables))
    axes = len(found.dims[0])
    dims = tuple(found.dims[1:])
    return Signal(dims, np.asarray(found.moments[(0,) * axes]), np.asarray(found.mean))


def _ops(trace: Trace, values: Known, value: int) -> list[Op] | None:
    """Return the ops that make a value of known ones, first to last; None where more than these go into it."""
    found, waiting = dict[int, Op](), [value]
    while waiting:
        this = waiting.pop()
        op = trace.producer(this)
        if op is None or len(found) > _STEPS or len(op.outputs) != 1 or op.outputs[0] != this:
            return None
        if op.index in found:
            continue
        found[op.index] = op
        random = op.functional in _SOURCES
        if not random and (op.mutates or op.functional in FROM_SHAPE):
            return None
        waiting += [] if random else [i for i in op.inputs if i not in values]
    return [found[index] for index in sorted(found)]


def _computed(ops: list[Op], values: Known, numbers: Array) -> Mapping[int, Tensor]:
    """Run ops for one draw of the random numbers, each in (0, 1)."""
    made, rest = dict[int, Tensor](), iter(numbers.tolist())

    def real(ref: ValueRef) -> Tensor:
        return made[ref.id] if ref.id in made else values[ref.id]

    for op in ops:
        if op.functional in _SOURCES:
            made[op.outputs[0]] = _filled(op, values, rest)
            continue
        _, packet, overload = op.name.split(".")
        made[op.outputs[0]] = called(getattr(getattr(torch.ops.aten, packet), overload), op.arguments, real)
    return made


def _filled(op: Op, values: Known, rest: Iterator[float]) -> Tensor:
    low, high = (op.arguments.get(name) for name in ("from", "to"))
    low, high = (0.0 if low is None else low), (1.0 if high is None else high)
    shape = values[op.inputs[0]].shape if op.inputs else tuple(op.arguments["size"])
    flat = [low + (high - low) * next(rest) for _ in range(math.prod(shape))]
    return torch.tensor(flat, dtype=torch.float32).reshape(shape)


def _spread(draws: int, count: int) -> Array:
    """Return points that fill the unit cube evenly: shape (draws, count).

    >>> points = _spread(512, 2)
    >>> [round(float(v), 2) for v in (points.mean(), points.min(), np.cos(6 * points.sum(1)).mean())]
    [0.5, 0.0, 0.0]
    """
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (count + 1))
    steps = ratio ** -np.arange(1.0, count + 1)
    return np.asarray((0.5 + np.outer(np.arange(draws), steps)) % 1.0)
