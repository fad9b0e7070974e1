"""Gates that a layer of one output makes: one number for all rows, another one in each draw of weights.

Let f = w·m be the gate, m what all samples and places have in common, so that f² is q·χ²₁ over draws of w and the same
for all rows of one. A stream y + f·x that a norm divides by s² = a + b f² sends back 1/s², which a draw with a small f
makes several times as large as others, and f times that: no two draws are alike, and blocks of such gates multiply
them. Where each row has an f of its own, a tensor shows the average over rows; here it shows one f. So what comes back
through such a norm is not known, if s² is made of gates for the most part: of fewer free numbers than 1/s² needs.
"""

from initwell.propagate.laws.swing import by_row, few
from initwell.propagate.moments.signal import Signal
from initwell.propagate.table import Call, UnknowableError
from initwell.trace.trace import ValueRef

_WHY = "a gradient through a norm of rows as large as a gate of one number, which each draw of weights makes anew"
# Of a gate's variance: more is the same for all rows.
_MOST = 0.5


def refuse_one_gate(call: Call, value: int) -> None:
    """Refuse what a norm sends back to rows whose size is one number of a draw.

    Args:
        call: of the norm's backward.
        value: what is normalized.

    Raises:
        UnknowableError: it is.
    """
    x = call.known.get(value)
    if x is None or not few(x.swing):
        return
    for op in call.trace.forward_ops:
        if op.functional != "aten.mul":
            continue
        refs = [op.arguments["self"], op.arguments["other"]]
        one, two = (call.known.get(r.id) if isinstance(r, ValueRef) else None for r in refs)
        if one is not None and two is not None and (_of_a_draw(one, two) or _of_a_draw(two, one)):
            raise UnknowableError(_WHY)


def _of_a_draw(base: Signal, factor: Signal) -> bool:
    own = factor.q - factor.mean**2
    common = factor.averaged(range(len(factor.atoms))) - factor.mean**2
    return by_row(base, factor) > 0 and common > _MOST * own
