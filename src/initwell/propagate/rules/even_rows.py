"""Rows that hold a normalized value: x̂ is as long in each of them, and what a norm divides by varies less.

Of y = a·x̂ + r, as in a stream that begins with a norm, the average of n squares has the variance

    (4a²·E[r²] + 2E[r²]²)/n = 2(E[y²]² − a⁴)/n

where Gaussian entries have 2E[y²]²/n. So a norm of a norm has E[1/s²] = 1/E[s²], and not n/(n − 2) of it. Assumption:
each normalized value in y is independent of what is beside it.
"""

from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.table import Call

_ROW_NORMS = frozenset({"aten.native_layer_norm", "aten._fused_rms_norm"})
# Rounding apart, rows are never quite of one length.
_LEAST = 1e-3


def of_even_rows(call: Call, squares: Signal, rows: Signal) -> Signal:
    """Let averages of squares vary less where rows hold a normalized value, whose length is the same in all.

    Args:
        call: of the average.
        squares: the average, as of Gaussian entries.
        rows: what is squared.
    """
    same = sum(a**4 for tag, a in rows.roots if _by_row(call, tag))
    if same <= 0 or rows.q <= 0:
        return squares
    left = 1 - same / rows.q**2
    level = over_pairs(squares.atoms, squares.means)
    return replace(squares, moments=level + max(left, _LEAST) * (squares.moments - level))


def _by_row(call: Call, value: int) -> bool:
    """Whether a value was normalized along the dimension that is averaged over now."""
    op, shape = call.trace.producer(value), call.trace.values[call["self"].id].shape
    dims = call["dim"]
    last = isinstance(dims, (list, tuple)) and [d % len(shape) for d in dims] == [len(shape) - 1]
    if op is None or not last or call.trace.values[value].shape[-1:] != shape[-1:]:
        return False
    if op.functional in ("aten.mul", "aten.div"):
        return any(call.trace.values[i].shape[-1:] == (1,) for i in op.inputs)
    return op.functional in _ROW_NORMS and len(op.arguments.get("normalized_shape", ())) == 1
