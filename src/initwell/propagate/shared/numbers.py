"""What one number gets that multiplies a whole value, such as the slopes of an activation or the share of a branch.

With v = r·x, r one number for all, its gradient is Σ x·∂L/∂v: over each row that is R(v)/r, the radial part of v; see
``radial``. Where v is a term of a function y = φ(u) of what x is a function of, too, as in xIELU, and G is the gradient
at y, then

    ∂L/∂r = Σ h(u) G,   h = ∂φ/∂r        h = β φ + s,  β = E[h φ]/E[φ²],   ρ² = E[h φ]²/(E[h²] E[φ²])

    E[(∂L/∂r)²] = (1 − ρ² (1 − t)) · what it is of random G,   t = E[R(y)²] over what it is of random G

so that slopes of a branch that is all of a stream before a norm get next to nothing. A number that multiplies the
scores of a head, as of cosine attention, gets Σ R over rows of scores, what softmax sends along them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from initwell.propagate.laws.gaussian import nodes
from initwell.propagate.moments.signal import Image, Signal
from initwell.propagate.rules.branch import scaled
from initwell.propagate.shared.attended import SOFTMAX, TO_SOFTMAX
from initwell.propagate.shared.handwritten import carrying, operand, size
from initwell.propagate.table import UnknowableError
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace

_FAR = 12
# Of what independence says of the square; what is less is made of what is neglected here.
_LEAST = 0.02
_REASON = "what one number gets that multiplies a value, by what its rows' gradients have along them"
_NOTHING = "what one number gets that multiplies all of a value which a norm divides by its length: next to nothing"
_LINEAR = frozenset({"aten.add", "aten.sub", *VIEWS, *COPIES})
Ratio = Callable[[int], float | None]


def numbers(trace: Trace) -> dict[int, int]:
    """Return products with one number, for all of a value or for each head's scores, by the sum of its gradient.

    Args:
        trace: from ``record``.

    Returns:
        Index of the backward op that sums up → what the product made.
    """
    found = {}
    for op in trace.backward_ops:
        if op.functional != "aten.sum" or size(trace, op.inputs[0]) == size(trace, op.outputs[0]):
            continue
        terms = trace.producer(op.inputs[0])
        made = trace.ops[terms.of] if terms is not None and terms.of is not None else None
        if made is None or made.functional != "aten.mul":
            continue
        ways = [operand(made, name) for name in ("self", "other")]
        if any(way is not None and _is_one(trace, way, op.outputs[0], made.outputs[0]) for way in ways):
            found[op.index] = made.outputs[0]
    return found


def _is_one(trace: Trace, value: int, gradient: int, made: int) -> bool:
    """Whether a factor is one number, or one for each head's scores."""
    if size(trace, value) == 1:
        return size(trace, gradient) == 1
    by_head = trace.values[value].shape[-2:] == (1, 1) and size(trace, value) == size(trace, gradient)
    return by_head and _are_scores(trace, made)


def _are_scores(trace: Trace, value: int) -> bool:
    """Whether a softmax is all that reads a value, behind what is added to it, or shut, ahead of that."""
    for _ in range(_FAR):
        later = carrying(trace, value)
        if len(later) != 1 or later[0].functional in SOFTMAX:
            return len(later) == 1
        if later[0].functional not in TO_SOFTMAX:
            return False
        value = later[0].outputs[0]
    return False


def of_number(
    trace: Trace, signals: Mapping[int, Signal], op: Op, made: int, found: Sequence[Signal | None], along: Ratio
) -> Sequence[Signal | None]:
    """Return a number's gradient by what lies along rows, given what it is of gradients that do not know of these.

    Args:
        trace: with the op.
        signals: of its values, so far.
        op: the sum.
        made: r·x.
        found: of the op.
        along: returns t of a value.

    Raises:
        UnknowableError: next to nothing is left.
    """
    share = _share(trace, signals, op, made, along) if found and found[0] is not None else None
    if share is None or found[0] is None or share == 1:
        return found
    if share < _LEAST:
        raise UnknowableError(_NOTHING)
    return (scaled(found[0], math.sqrt(share)).approximate(_REASON), *found[1:])


def _share(trace: Trace, signals: Mapping[int, Signal], op: Op, made: int, along: Ratio) -> float | None:
    """Return E[(∂L/∂r)²] over what it is of gradients that do not know of rows; None where that cannot be said."""
    terms = signals.get(op.inputs[0])
    image = None if terms is None else terms.image
    if image is not None and image.base is not None:
        for y in _ahead(trace, made):
            gradient, here = signals.get(trace.gradients.get(y, -1)), signals.get(y)
            if gradient is image.base and here is not None and here.image is not None and here.image.base is None:
                return _of_function(image, here.image, along(y))
    later = carrying(trace, made)
    return along(made) if later and (all(o.functional in _LINEAR for o in later) or _are_scores(trace, made)) else None


def _ahead(trace: Trace, value: int) -> Iterator[int]:
    """Go over values of one shape that are made of a value step by step."""
    left, seen = [value], {value}
    shape = trace.values[value].shape
    while left and len(seen) < _FAR:
        here = left.pop(0)
        yield here
        new = {o for op in carrying(trace, here) for o in op.outputs if trace.values[o].shape == shape} - seen
        seen |= new
        left += sorted(new)


def _of_function(part: Image, whole: Image, t: float | None) -> float | None:
    if t is None or part.pre is not whole.pre:
        return None
    u = part.pre
    variance = max(u.q - u.mean**2, 0.0)
    z, weights = nodes((*part.phi.kinks, *whole.phi.kinks), u.mean, variance)
    points = u.mean + math.sqrt(variance) * z
    h, phi = (np.asarray(f.fn(points)) for f in (part.phi, whole.phi))
    squares = float(weights @ (h * h)) * float(weights @ (phi * phi))
    return 1 - float(weights @ (h * phi)) ** 2 / squares * (1 - t) if squares > 0 else None
