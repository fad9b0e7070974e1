"""Weight norm: w = g·v/‖v‖, with ‖v‖ over all dimensions but one.

‖v‖ is √n times the root mean square of the n entries it is taken over, so v/‖v‖ is an RMS norm over √n, and both
directions are the rule of ``norm`` without centring:

    dv = g/‖v‖ · (dw − v̂ (v̂·dw))        dg = Σ dw·v/‖v‖

Assumption: the magnitude g is independent of v's direction, and so is dw.
"""

import math
from collections.abc import Mapping, Sequence

from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.branch import multiplied, scaled
from initwell.propagate.rules.norm import normalized, normalized_backward
from initwell.propagate.rules.shape import summed
from initwell.propagate.table import Call, Rule


def _others(call: Call, v: Signal) -> tuple[list[int], float]:
    """Return the dimensions of the norm, and the root of how many entries they hold."""
    dims = [d for d in range(len(v.dims)) if d != call["dim"] % len(v.dims)]
    return dims, math.sqrt(math.prod(v.shape[d] for d in dims))


def _weight_norm(call: Call) -> Sequence[Signal | None]:
    v, g = call.signal("v"), call.signal("g")
    dims, root = _others(call, v)
    direction = scaled(normalized(v, dims, 0.0, centred=False), 1 / root)
    return [multiplied(*together(direction, g, v.shape)), *[None] * (len(call.op.outputs) - 1)]


def _weight_norm_backward(call: Call) -> Sequence[Signal]:
    dw, v, g = call.signal("grad_w"), call.signal("saved_v"), call.signal("saved_g")
    dims, root = _others(call, v)
    inner = multiplied(*together(dw, g, v.shape))
    dv = scaled(normalized_backward(inner, v, dims, 0.0, centred=False), 1 / root)
    direction = scaled(normalized(v, dims, 0.0, centred=False), 1 / root)
    dg = summed(multiplied(*together(dw, direction, v.shape)), dims, keep=True, mean=False)
    return [dv, dg.approximate(_ALONG)]


_ALONG = "weight norm: a weight's gradient as independent of the weight, though what follows bends along it"


RULES: Mapping[str, Rule] = {
    "aten._weight_norm_interface": _weight_norm,
    "aten._weight_norm_interface_backward": _weight_norm_backward,
}
