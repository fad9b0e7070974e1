"""Rows times functions of their own length, as capsules' squash: x·ψ(v), v the average of x² over the row.

Entries of a row are alike, so E[x²ψ(v)²] is the average of it over the row, E[v ψ(v)²], and not E[v]·E[ψ(v)²] as of
what is independent; of rows that were multiplied by such a function φ before, E[v φ²ψ²] in place of E[v φ²]·E[ψ²].
Assumption: what two rows have in common grows as each of them does.
"""

from collections.abc import Callable

import numpy as np

from initwell.propagate.laws.functions import Function, as_image, combined, composed, function_moments, line
from initwell.propagate.moments.remembered import Average
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Pointwise, Signal, replace
from initwell.propagate.table import Call
from initwell.trace.trace import ValueRef

_STEPS = 8
_INVERSE = Function(lambda t: 1 / t)


def of_own_length(call: Call, found: Signal) -> Signal:
    """Return a product, or a quotient, of rows and of a function of their own average square.

    Args:
        call: of it, in the forward.
        found: as if the two were independent.
    """
    last = _last(call, call.op.outputs[0])
    if last is None:
        return found
    rows, phi, average, v = last
    whole = _through(call, rows, _STEPS)
    if whole is None or whole[0] is not average.of:
        return found
    before = whole[1]
    both = _expected(lambda t: t * before.fn(t) ** 2 * phi.fn(t) ** 2, v)
    apart = _expected(lambda t: t * before.fn(t) ** 2, v) * _expected(lambda t: phi.fn(t) ** 2, v)
    by = both / apart if apart > 0 else 1.0
    return replace(found, moments=found.moments * by) if np.isfinite(by) and by > 0 else found


def _expected(f: Callable[[Array], Array], v: Signal) -> float:
    return float(function_moments(Function(f), v)[0].mean())


def _last(call: Call, value: int) -> tuple[int, Pointwise, Average, Signal] | None:
    """Return rows, a function of an average of squares that they were multiplied by, and that average; else None."""
    op = call.trace.producer(call.trace.shown(value))
    if op is None or op.phase != "forward" or op.functional not in ("aten.mul", "aten.div"):
        return None
    one, two = op.arguments.get("self"), op.arguments.get("other")
    ways = ((one, two),) if op.functional == "aten.div" else ((one, two), (two, one))
    for rows, factor in ways:
        if not isinstance(rows, ValueRef) or not isinstance(factor, ValueRef) or factor.id not in call.known:
            continue
        image = as_image(call.known[factor.id])
        average = image.pre.average
        if image.base is None and average is not None and average.kind == "square":
            phi: Pointwise = image.phi if op.functional == "aten.mul" else composed(_INVERSE, image)
            return rows.id, phi, average, image.pre
    return None


def _through(call: Call, value: int, steps: int) -> tuple[Signal, Pointwise] | None:
    """Return what was multiplied by functions of its length to make a value, and their product."""
    last = _last(call, value) if steps else None
    if last is not None:
        whole = _through(call, last[0], steps - 1)
        if whole is not None and whole[0] is last[2].of:
            return whole[0], combined(whole[1], last[1], np.multiply)
    signal = call.known.get(value)
    return None if signal is None else (signal, line(0.0, 1.0))
