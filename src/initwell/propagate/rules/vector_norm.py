"""Norms over dimensions: Σ|x|, and ‖x‖ = √(n·mean(x²)), of which x/‖x‖ is then the normalization that it is."""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from initwell.propagate.laws.functions import Function
from initwell.propagate.moments.remembered import Average
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.pointwise import applied
from initwell.propagate.rules.shape import summed
from initwell.propagate.table import Call, Rule, UnknownSignalError


def euclidean(x: Signal, dims: Sequence[int], *, keep: bool) -> Signal:
    """Return √(Σ x²) over some dimensions.

    Args:
        x: any signal.
        dims: the dimensions.
        keep: whether they stay, of length 1.

    >>> from initwell.propagate.moments.signal import independent
    >>> round(euclidean(independent((8, 400), 1.0), [1], keep=True).rms, 3)
    20.0
    """
    return root_of_sum(mean_square(x, dims, keep=keep), prod(x.shape[d] for d in dims))


def mean_square(x: Signal, dims: Sequence[int], *, keep: bool) -> Signal:
    """Return the average of x² over some dimensions; see ``euclidean``."""
    squares = applied(Function(np.square), x)
    return replace(summed(squares, dims, keep=keep, mean=True), average=Average("square", x, tuple(dims)))


def root_of_sum(mean: Signal, n: int) -> Signal:
    """Return √(n·v) of an average v of n squares."""
    return applied(Function(lambda v: np.sqrt(n * np.maximum(v, 0.0)), (0.0,)), mean)


def _norm(call: Call) -> Sequence[Signal]:
    x, given = call.signal("self"), call["dim"]
    order = call["p"] if call.op.functional == "aten.norm" else call["ord"]
    dims = range(len(x.dims)) if given is None or given == () else given
    whole, keep = [d % len(x.dims) for d in ([dims] if isinstance(dims, int) else dims)], bool(call["keepdim"])
    if order == 1:
        return [summed(applied(Function(np.abs, (0.0,)), x), whole, keep=keep, mean=False)]
    if order not in (2, None):
        raise UnknownSignalError("a norm that is neither the Euclidean one nor a sum of sizes")
    return [euclidean(x, whole, keep=keep)]


RULES: Mapping[str, Rule] = {"aten.linalg_vector_norm": _norm, "aten.norm": _norm}
