"""Variances and standard deviations over dimensions: averages of squares of what is left without the average.

var = n/(n − c)·mean((x − x̄)²), c the correction. Its own moments are those of an average of squares, by the gamma law;
x divided by its own is the normalization that it is. Autograd writes the backward out; that of a deviation s multiplies
g/s by x − x̄, which are not independent: E[(x − x̄)²/s²] is (n − c)/n, and not E[(x − x̄)²]·E[1/s²].
"""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from initwell.propagate.laws.averages import gamma_moments
from initwell.propagate.laws.functions import Function, as_image
from initwell.propagate.moments.centring import centred
from initwell.propagate.moments.remembered import Average
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.routing.chains import maker
from initwell.propagate.rules.branch import scaled
from initwell.propagate.rules.pointwise import applied
from initwell.propagate.rules.shape import summed
from initwell.propagate.table import Call, Rule, UnknownSignalError
from initwell.trace.trace import Op

# Ops that autograd puts between a deviation and the product with what it is of: times 2, divided by, masked, scaled.
_DEEP = 6


def variance(x: Signal, dims: Sequence[int], *, keep: bool, correction: float = 0.0) -> Signal:
    """Return the variance over some dimensions.

    Args:
        x: any signal.
        dims: the dimensions.
        keep: whether they stay, of length 1.
        correction: what is taken off their number.

    Raises:
        UnknownSignalError: nothing is left of their number.

    >>> from initwell.propagate.moments.signal import independent
    >>> round(variance(independent((8, 5), 1.0), [1], keep=True, correction=1.0).mean, 6)
    1.0
    """
    n = prod(x.shape[d] for d in dims)
    if n <= correction:
        raise UnknownSignalError("a variance of no more than one entry")
    apart = replace(x.changed(centred(x, x.axes(dims)), 0.0), gaussian=x.gaussian)
    mean = summed(applied(Function(np.square), apart), dims, keep=keep, mean=True)
    found = replace(mean, average=Average("variance", x, tuple(dims)))
    return scaled(found, n / (n - correction))


def _dims(call: Call, rank: int) -> list[int]:
    given = call["dim"]
    dims = range(rank) if given is None or given == () else [given] if isinstance(given, int) else given
    return [d % rank for d in dims]


def _var(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    if "unbiased" in call.op.arguments:
        correction = float(bool(call["unbiased"]))
    else:
        correction = 1.0 if call["correction"] is None else float(call["correction"])
    return [variance(x, _dims(call, len(x.dims)), keep=bool(call["keepdim"]), correction=correction)]


def _std(call: Call) -> Sequence[Signal]:
    (v,) = _var(call)
    return [applied(Function(lambda u: np.sqrt(np.maximum(u, 0.0)), (0.0,)), v)]


def _with_mean(what: Rule) -> Rule:
    def rule(call: Call) -> Sequence[Signal | None]:
        x = call.signal("self")
        whole = _dims(call, len(x.dims))
        mean = summed(x, whole, keep=bool(call["keepdim"]), mean=True)
        return [*what(call), replace(mean, average=Average("mean", x, tuple(whole)))]

    return rule


def of_deviation(call: Call) -> float:
    """Return by how much less a product is than one of independents, if it is (x − x̄)·g/s(x); else 1."""
    for one, two in (("self", "other"), ("other", "self")):
        apart, op = maker(call.trace, call[one]), _behind(call, call[two], "aten.std")
        if (
            apart is None
            or op is None
            or apart.functional != "aten.sub"
            or apart.arguments["self"] != op.arguments["self"]
        ):
            continue
        inner = Call(op, call.trace, call.known, call.values)
        (v,) = _var(inner)
        law = as_image(v).pre
        if v.segmented or v.mean <= 0 or law.average is None:
            return 1.0
        inverse = float(gamma_moments(Function(lambda u: 1 / np.sqrt(u)), law)[1].flat[0])
        return 1 / (law.mean * inverse)
    return 1.0


def _behind(call: Call, ref: object, kind: str) -> Op | None:
    """Return the op of a kind that a quotient's divisor comes from, behind what autograd puts between."""
    for _ in range(_DEEP):
        op = maker(call.trace, ref)
        if op is None or op.functional == kind:
            return op
        if op.phase != "backward" or op.functional not in ("aten.mul", "aten.div", "aten.masked_fill"):
            return None
        ref = op.arguments["other" if op.functional == "aten.div" else "self"]
    return None


RULES: Mapping[str, Rule] = {
    "aten.var": _var,
    "aten.std": _std,
    "aten.var_mean": _with_mean(_var),
    "aten.std_mean": _with_mean(_std),
}
