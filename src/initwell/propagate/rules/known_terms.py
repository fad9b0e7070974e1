"""Known numbers beside a Gaussian, φ(u + b): b the entries of a parameter that is as it is, such as a bias of steps.

Their mean and variance do not say what φ makes of them: softplus(u + b) of b whose e^b are spread evenly by their
logarithm from 0.001 to 0.1, as in a state space model, is a third smaller than of Gaussian b. So the sum keeps the law
Σ N(b_i, σ²)/n, which is exact for E[φ] and E[φ²]. Assumption: two entries go together as φ of a Gaussian would.
"""

from initwell.propagate.laws.rectified import discrete
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.branch import fixed
from initwell.propagate.rules.decay import known_numbers
from initwell.propagate.table import Call
from initwell.trace.ops import ACTIVATIONS, BENDING
from initwell.trace.trace import ValueRef

_WHY = "a function of a Gaussian and known numbers, entries of which go together as if these were Gaussian, too"


def of_known_numbers(call: Call, name: str, term: Signal, other: Signal) -> Signal:
    """Return a term of a sum that only functions of entries read, with the law of its numbers if these are known.

    Args:
        call: of the sum.
        name: of the argument that the term is.
        term: its signal.
        other: the other term.
    """
    value = call[name]
    if not isinstance(value, ValueRef) or not other.gaussian or term.gaussian or term.segmented or fixed(term):
        return term
    later = [op for op in call.trace.consumers(call.op.outputs[0]) if op.phase == "forward"]
    if not later or any(op.functional not in ACTIVATIONS and op.functional not in BENDING for op in later):
        return term
    found = known_numbers(call, value.id)
    if found is None or term.law is not None or term.image is not None:
        return term
    levels, shares = found
    return replace(term, law=discrete(levels[None], shares[None])).approximate(_WHY)
