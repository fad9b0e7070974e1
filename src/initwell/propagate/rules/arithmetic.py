"""The arithmetic of entries: sums, products, quotients, of what is independent, or of functions of one Gaussian."""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.given.mask import both
from initwell.propagate.given.measured import masked_weight
from initwell.propagate.laws.averages import tails
from initwell.propagate.laws.functions import Function, as_image
from initwell.propagate.laws.lengths import SENT_BACK, behind, of_rows
from initwell.propagate.laws.swing import of_inverse, of_square
from initwell.propagate.laws.unlike_rows import of_unlike_rows
from initwell.propagate.moments.alike import bounded
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.by_pairs import over_pairs
from initwell.propagate.moments.signal import UNLIKE, Signal, merged_fidelity, replace
from initwell.propagate.rules.again import of_sum
from initwell.propagate.rules.beside import beside, law_beside
from initwell.propagate.rules.branch import (
    added,
    fixed,
    multiplied,
    multiplied_jointly,
    operand,
    product,
    scaled,
    shifted,
    summed_jointly,
)
from initwell.propagate.rules.byhand import (
    centred_by_hand,
    gradient_by_hand,
    normalized_by_hand,
    of_gated_rows,
    on_segments,
)
from initwell.propagate.rules.common import common, joined
from initwell.propagate.rules.deviation import of_deviation
from initwell.propagate.rules.first_rows import less_their_length, of_first_rows
from initwell.propagate.rules.inverses import inverted
from initwell.propagate.rules.known_terms import of_known_numbers
from initwell.propagate.rules.lengths import by_length_of_few, refuse_two_ways
from initwell.propagate.rules.masked_terms import of_masked_term
from initwell.propagate.rules.masks import masked_product, masked_sum, multiplied_mask
from initwell.propagate.rules.neighbours import of_neighbours
from initwell.propagate.rules.overwritten import rows_kept
from initwell.propagate.rules.own_gates import with_itself
from initwell.propagate.rules.own_length import of_own_length
from initwell.propagate.rules.positive import LOG_NORMAL, of_positive
from initwell.propagate.rules.quotients import of_quotient, of_shift
from initwell.propagate.rules.ratios import of_ratio
from initwell.propagate.rules.shape import summed
from initwell.propagate.rules.states import refuse_uneven, written
from initwell.propagate.rules.targets import of_targets
from initwell.propagate.rules.turned import turned
from initwell.propagate.rules.unlike import refuse_unlike
from initwell.propagate.rules.weighed import by_index, by_number, refuse_two_orders, weighed_scores
from initwell.propagate.rules.weighted import known_inverse, mean_of_rows, sent_back
from initwell.propagate.table import Call, Rule, UnknownSignalError
from initwell.trace.trace import ValueRef


def _is_number(call: Call, name: str) -> bool:
    return isinstance(call[name], (int, float)) or (call.has(name) and fixed(call.signal(name)))


def _is_gradient(call: Call, name: str) -> bool:
    ref = call[name]
    if not isinstance(ref, ValueRef):
        return False
    producer = call.trace.producer(ref.id)
    return call.trace.values[ref.id].kind == "cotangent" or (producer is not None and producer.phase == "backward")


def _sum(sign: float, first: str = "self", second: str = "other") -> Rule:
    def rule(call: Call) -> Sequence[Signal]:
        beta = sign * float(call["alpha"] if call["alpha"] is not None else 1.0)
        if (found := of_targets(call)) is not None:
            return [found]
        if (masked := masked_sum(call, first, second, beta)) is not None:
            return [masked]
        if call[first] == call[second] and isinstance(call[first], ValueRef):
            return [scaled(call.signal(first), 1.0 + beta)]
        a, b = operand(call, first), operand(call, second)
        if a.mask is not None or b.mask is not None:
            whole = added(*together(a, b, call.shape()), 1.0, beta)
            return [replace(whole, mask=both(a.mask, b.mask))]
        if (found := summed_jointly(a, b, 1.0, beta) or centred_by_hand(a, b, beta)) is not None:
            return [found]
        refuse_two_ways(call, first, second)
        if beta == 1.0 and (found := gradient_by_hand(call, first, second)) is not None:
            return [found]
        if beta == 1.0 and (found := of_quotient(call, first, second) or of_shift(call, first, second)) is not None:
            return [found]
        if (found := of_neighbours(call, first, second, beta)) is not None:
            return [merged_fidelity(found, a, b)]
        if fixed(b) and not b.segmented and a.shape == call.shape():
            return [shifted(a, beta * b.mean)]
        if fixed(a) and not a.segmented and b.shape == call.shape():
            return [shifted(scaled(b, beta), a.mean)]
        if call.values.kept and call.op.phase == "forward":
            a, b = of_known_numbers(call, first, a, b), of_known_numbers(call, second, b, a)
        found = added(*together(a, b, call.shape()), 1.0, beta)
        found = law_beside(call, found, first, second, beta) if found.law is not None else found
        found = joined(found, common(call, found, first, second, beta))
        found = joined(found, beside(call, first, second, beta), (a, b))
        whole = of_sum(call, found, first, second)
        return [bounded(whole) if whole.segmented else whole]

    return rule


def _spread(x: Signal, number: Signal, shape: Sequence[int]) -> Signal:
    # The very signal, where nothing is broadcast: functions of it are known by it.
    return x if x.shape == tuple(shape) else together(x, number, shape)[0]


def _mul(call: Call) -> Sequence[Signal]:
    if (found := of_targets(call)) is not None:
        return [found]
    if (kept := turned(call)) is not None:
        return [kept]
    refuse_unlike(call)
    for one, two in (("self", "other"), ("other", "self")):
        if _is_number(call, two) and call.has(one):
            return [scaled(_spread(call.signal(one), operand(call, two), call.shape()), operand(call, two).mean)]
    if (pruned := _pruned(call)) is not None:
        return [pruned]
    if (kept := masked_product(call) or multiplied_mask(call)) is not None:
        return [kept]
    if (weighed := weighed_scores(call)) is not None:
        return [less_their_length(call, weighed)]
    if (kept := sent_back(call) or rows_kept(call)) is not None:
        return [kept]
    a, b = by_index(call, "self"), by_index(call, "other")
    refuse_two_orders(call, a, b)
    if call.op.phase == "backward":
        refuse_uneven(call, a, b)
    found = multiplied_jointly(a, b) or normalized_by_hand(a, b, call.op.outputs[0])
    if found is not None:
        is_square = call["self"] == call["other"]
        if is_square and a.lengths > UNLIKE and not a.segmented:
            return [replace(of_unlike_rows(Function(np.square), a, found), square_of=a)]
        return [replace(of_first_rows(call, of_square(found, of_rows(a))), square_of=a) if is_square else found]
    by_place = b.segmented and call.value("other") is not None
    if call.op.phase == "backward" and not by_place and (lacking := _lacking(call, a, b)) is not None:
        return [lacking]
    if _is_gradient(call, "self"):
        if a.tilt and (tilted := _tilted(call, a, b)) is not None:
            return [tilted]
        whole = of_masked_term(call, of_inverse(product(a, b, call.shape()), b), a, b)
        whole = of_ratio(call, whole, b)
        return [whole.approximate(SENT_BACK) if b.lengths > UNLIKE else whole]
    if call.op.phase == "forward":
        a, b = with_itself(call, a, call["self"].id, b), with_itself(call, b, call["other"].id, a)
    if _is_gradient(call, "other") or as_image(a).base is None:
        a, b = b, a
    whole = product(a, b, call.shape())
    if call.op.phase == "forward":
        whole = of_ratio(call, of_own_length(call, whole), b if LOG_NORMAL in b.reasons else a)
    if by_number(call, "self", a, b) or by_number(call, "other", a, b):
        whole = replace(whole, gaussian=True)
    return [written(call, whole)]


def _lacking(call: Call, a: Signal, b: Signal) -> Signal | None:
    """Return a product of the backward that is smaller than one of independents; None of any other."""
    share, gated = of_deviation(call), of_gated_rows(call)
    if share == 1.0 and gated is None:
        return None
    whole = multiplied(*together(a, b, call.shape()))
    by = share if gated is None else share * over_pairs(whole.atoms, np.sqrt(on_segments(whole, *gated)))
    return replace(whole, moments=whole.moments * by, joint=True)


_OF_LAYERS = ("aten.mm", "aten._grouped_mm")


def _tilted(call: Call, g: Signal, factor: Signal) -> Signal | None:
    """Multiply what a layer sent back to a product by one of the product's factors; else None."""
    sent, heavy = call.trace.producer(call.trace.shown(call["self"].id)), tails(factor)
    if sent is None or sent.functional not in _OF_LAYERS or heavy is None:
        return None
    return replace(product(scaled(g, behind(g, heavy[0])), factor, call.shape()), tilt=g.tilt * heavy[0])


def _pruned(call: Call) -> Signal | None:
    """Multiply a weight that is not drawn anew by a mask that was made of it; else None."""
    for one, two in (("self", "other"), ("other", "self")):
        weight = call.values.kept.get(call[one].id) if isinstance(call[one], ValueRef) else None
        mask = call.value(two)
        if weight is not None and mask is not None and weight.shape == mask.shape:
            return masked_weight(weight, mask)
    return None


def _div(call: Call) -> Sequence[Signal]:
    if (judged := of_targets(call)) is not None:
        return [judged]
    if by_length_of_few(call):
        raise UnknownSignalError("a gradient divided by the length of a sum of few weights")
    divisor = operand(call, "other")
    if _is_number(call, "other"):
        if divisor.mean == 0:
            raise UnknownSignalError("a division by 0")
        return [scaled(_spread(operand(call, "self"), divisor, call.shape()), 1.0 / divisor.mean)]
    if (whole := mean_of_rows(call)) is not None:
        return [replace(summed(whole, [1], keep=len(call.shape()) == 3, mean=False), joint=True)]
    inverse = by_index(call, "other", inverse=True) if call.value("other") is not None else None
    if inverse is None or (not inverse.segmented and not inverse.reasons):
        inverse = known_inverse(call) or of_positive(call, "other") or inverted(divisor)
    a = operand(call, "self")
    refuse_two_orders(call, a, inverse)
    if fixed(a) and not a.segmented and inverse.shape == call.shape():
        return [scaled(inverse, a.mean)]
    found = multiplied_jointly(a, inverse) or normalized_by_hand(a, inverse, call.op.outputs[0])
    whole = found or product(a, inverse, call.shape())
    if found is None and call.op.phase == "forward":
        whole = of_ratio(call, of_own_length(call, whole), inverse)
    return [replace(whole, gaussian=True) if by_number(call, "other", a, inverse) else whole]


def _plus_product(*, divide: bool) -> Rule:
    """Add a multiple of a product, or of a quotient, of two others."""

    def rule(call: Call) -> Sequence[Signal]:
        x, a, b = (call.signal(name) for name in ("self", "tensor1", "tensor2"))
        b = inverted(b) if divide else b
        both = multiplied_jointly(a, b) or product(a, b, np.broadcast_shapes(a.shape, b.shape))
        value = float(call["value"])
        found = summed_jointly(x, both, 1.0, value) or added(*together(x, both, call.shape()), 1.0, value)
        return [found]

    return rule


def _neg(call: Call) -> Sequence[Signal]:
    return [scaled(call.signal("self"), -1.0)]


RULES: Mapping[str, Rule] = {
    "aten.add": _sum(1.0),
    "aten.sub": _sum(-1.0),
    "aten.rsub": _sum(-1.0, "other", "self"),
    "aten.mul": _mul,
    "aten.div": _div,
    "aten.neg": _neg,
    "aten.addcmul": _plus_product(divide=False),
    "aten.addcdiv": _plus_product(divide=True),
}
