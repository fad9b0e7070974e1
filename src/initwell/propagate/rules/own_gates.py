"""A value times a gate that a layer made of it, h·σ(G h): what its rows have of their own, and the gate follows.

Summed over features, h_i·h_j is what the covariance of (G h)_i and (G h)_j is, too: h counts as one more image of its
own rows, see ``two_images``, where in common with the gate it would have only what both follow of the layers before.
Of other such gates, as of one number a row, behind dropout or depthwise, sums over rows count as of independents.
"""

import math
from collections.abc import Container, Sequence

from initwell.propagate.moments import gram
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.contraction import rows_of, source_of
from initwell.propagate.table import Call
from initwell.trace.ops import FROM_SHAPE
from initwell.trace.trace import Trace

_OTHER = "sums over rows of a value times a gate that was made of it, as of independents"
# So many ops are looked at: those between a value and its gate, and between it and what is multiplied.
_FAR, _NEAR = 12, 3
_LAYERS = frozenset({"aten.mm", "aten.addmm", "aten.bmm", "aten.convolution"})


def reason(call: Call, x: Signal, factors: tuple[int, int], dims: Sequence[int]) -> str | None:
    """Say why a sum over rows is approximate, where it is of a value times a gate of its own that is not followed.

    Args:
        call: of the sum.
        x: the product that is summed.
        factors: the two, by value id.
        dims: the dimensions.
    """
    of_one = x.image is not None and x.image.base is None
    if call.op.phase != "forward" or of_one or list(dims) == [len(x.dims) - 1]:
        return None
    for one, other in (factors, factors[::-1]):
        own = _before(call.trace, one, _NEAR, FROM_SHAPE | _LAYERS) & call.trace.moving
        gate, made = call.known.get(other), _before(call.trace, other, _FAR, FROM_SHAPE) - {other}
        if gate is not None and own & made:
            return None if _followed(call, one, gate, made) else _OTHER
    return None


def _followed(call: Call, value: int, gate: Signal, made: set[int]) -> bool:
    """Whether a gate follows the rows of a value, by layers that read all of a row."""
    x, rows = call.known.get(value), rows_of(call, value)
    follows = any(s.value == rows for atom in gate.atoms for s in atom.follows)
    makers = [op for v in made if (op := call.trace.producer(v)) is not None]
    whole = all(op.arguments["groups"] == 1 for op in makers if op.functional == "aten.convolution")
    return x is not None and x.dims == gate.dims and follows and whole


def _before(trace: Trace, value: int, most: int, without: Container[str]) -> set[int]:
    """Return what a value was made of, and itself, at most so many ops before; not through some."""
    found, last = {value}, {value}
    for _ in range(most):
        makers = [op for v in last if (op := trace.producer(v)) is not None and op.functional not in without]
        last = {v for op in makers for v in op.inputs} - found
        found |= last
    return found


def with_itself(call: Call, x: Signal, shown: int, other: Signal) -> Signal:
    """Let a factor follow its own rows, where the other does.

    Args:
        call: of the product, or of what is made of it.
        x: the factor.
        shown: its id.
        other: the other factor.
    """
    followed = {s.value for atom in other.atoms for s in atom.follows}
    if not followed or x.dims != other.dims or x.swing or (value := rows_of(call, shown)) not in followed:
        return x
    rows = [d for d, dim in enumerate(other.dims) if any(s.value == value for atom in dim for s in atom.follows)]
    features = [d for d, dim in enumerate(x.dims) if dim and d not in rows]
    if len(features) != 1:
        return x
    source = source_of(call, x, value, features[0])[0].of(math.sqrt(gram.fluctuation(x, features)))
    # Given its rows a value is no function of anything else, so that it need not be Gaussian for their law.
    plain = replace(x, gaussian=True) if x.image is None and x.law is None else x
    return gram.adding(plain, [(rows, source)])
