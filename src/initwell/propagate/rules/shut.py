"""Functions of scores that a mask has shut: sigmoid, exp or ReLU of them, which are 0 there, and not as of open ones.

With m = 1 where scores are open and 0 elsewhere, and φ(level) = 0 of what stands in the place of the others,

    y = m·φ(s)        dφ/ds·g = m·φ′(s)·g

products with a known tensor. What φ makes of the level is as good as shut where that is no more than ``SHUT``, as of a
clamp above the smallest number; the mask then stays. What it is else, as −1 of tanh, is not known, nor is the gradient
of a function of a function, nor what is made of all scores, as their mean: these say so. A log-sum-exp is that of
``open_sums``. The largest is known where it is only taken off again, as softmax does itself: p of s − max s is p of s.
Assumption: which entries are open has nothing to do with the scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace as changed

import numpy as np
import torch

from initwell.propagate.given.mask import SHUT, Mask
from initwell.propagate.given.measured import measured
from initwell.propagate.laws.functions import as_image, evaluated
from initwell.propagate.moments.alike import plain
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules import pointwise
from initwell.propagate.rules.branch import multiplied, operand
from initwell.propagate.rules.open_sums import log_sum_of_open
from initwell.propagate.rules.parts import sliced
from initwell.propagate.table import Call, Rule, UnknowableError
from initwell.trace.calls import called
from initwell.trace.ops import COPIES
from initwell.trace.trace import Op, ValueRef

_WHY = "a function of scores, some of which a mask has shut, whose value there cannot be known"
_TWICE = "the gradient of a function of a function of scores, some of which a mask has shut"
_OF_ALL = "what is made of scores of which a mask has shut some, as of all"
_OTHERS = "exp exp2 expm1 erf abs square pow clamp clamp_min clamp_max"
_FUNCTIONS = frozenset({*pointwise.RULES, *(f"aten.{name}" for name in _OTHERS.split())})
_LARGEST = "the largest of open scores, as if rows of unlike numbers of them were of one kind"
_SOFTMAX = frozenset({"aten._softmax", "aten._safe_softmax"})
# What they make is made of what is shut, too.
_BLIND = (
    "aten._log_softmax aten.logsumexp aten.amax aten.amin aten.max aten.min aten.mean aten.var aten.var_mean aten.std"
)
# Of another level a flat function makes the same.
_OTHER = 1.5


def aware(rules: Mapping[str, Rule]) -> Mapping[str, Rule]:
    """Return rules of which those of functions of entries, and of products, know what a mask has shut.

    Args:
        rules: op packet → its rule.
    """
    wrappers = dict.fromkeys(_FUNCTIONS, _function) | dict.fromkeys(_BLIND.split(), _blind)
    wrappers |= {"aten.mul": _product, "aten.where": _product, "aten.add": _sum}
    return {name: wrappers.get(name, _same)(rule) for name, rule in rules.items()}


def _same(rule: Rule) -> Rule:
    return rule


def _function(rule: Rule) -> Rule:
    def aware_of_masks(call: Call) -> Sequence[Signal | None]:
        backward = "_backward" in call.op.functional
        if not backward and call.has("self") and call.signal("self").closed is not None:
            return _again(rule, call, call.signal("self"))
        found = rule(call)
        of = call.forward() if backward else call.op
        mask = _mask(call, of)
        if mask is None or not found or found[0] is None or found[0].shape != call.shape():
            return found
        if found[0].closed is not None:
            return found  # weights by hand are 0 there already
        if backward:
            if call.signal("grad_output" if call.has("grad_output") else "grad_out").closed is not None:
                raise UnknowableError(_TWICE)
            flat = _at(of, mask.level) == _at(of, mask.level * _OTHER)
            return [_left(found[0], mask) if flat else found[0], *found[1:]]
        return [_with_shut(found[0], mask, _at(of, mask.level)), *found[1:]]

    return aware_of_masks


def _again(rule: Rule, call: Call, x: Signal) -> Sequence[Signal | None]:
    """Apply a function to what is 0 where a mask has shut scores: to what it is of open ones."""
    if x.closed is None or x.image is None or len(call.op.outputs) != 1:
        raise UnknowableError(_WHY)
    open_ = evaluated(replace(x.image, base=None))
    (found,) = rule(Call(call.op, call.trace, {**call.known, call["self"].id: open_}, call.values))
    return [None if found is None else _with_shut(found, x.closed, _at(call.op, 0.0))]


def _blind(rule: Rule) -> Rule:
    def aware_of_masks(call: Call) -> Sequence[Signal | None]:
        mask = _mask(call, call.op) if call.op.phase == "forward" else None
        if mask is not None and call.op.functional == "aten.logsumexp":
            return [log_sum_of_open(call, mask)]
        if mask is not None and not _is_taken_off(call):
            raise UnknowableError(_OF_ALL)
        return rule(call) if mask is None else _of_open(rule, call, mask)

    return aware_of_masks


def _is_taken_off(call: Call) -> bool:
    """Whether what is largest in a row of scores is only taken off it for a softmax, which that does not change."""
    of = call.op.arguments.get("self")
    if call.op.packet not in ("aten.amax", "aten.max") or not isinstance(of, ValueRef) or not call["keepdim"]:
        return False
    taken = _uses(call, call.op.outputs[0])
    moved = [op for op in taken if op.functional == "aten.sub" and op.inputs[:1] == (of.id,)]
    after = [use for op in moved for use in _uses(call, op.outputs[0])]
    return len(moved) == len(taken) > 0 < len(after) and all(use.functional in _SOFTMAX for use in after)


def _uses(call: Call, value: int) -> list[Op]:
    """Return the ops of the forward that use a value, or a copy of it."""
    uses = [op for op in call.trace.consumers(value) if op.phase == "forward"]
    copied = [(op, op.functional in COPIES) for op in uses]
    return [use for op, same in copied for use in (_uses(call, op.outputs[0]) if same else [op])]


def _of_open(rule: Rule, call: Call, mask: Mask) -> Sequence[Signal | None]:
    """Return the largest open score of each row, on average over how many are open in a row."""
    x = replace(call.signal("self"), mask=None)
    x = plain(x, len(x.dims) - 1)
    whole: Signal | None = None
    for count, share in mask.sizes:
        some = sliced(x, len(x.dims) - 1, 0, max(round(count), 1))
        found = rule(Call(call.op, call.trace, {**call.known, call["self"].id: some}, call.values))[0]
        if found is None:
            raise UnknowableError(_OF_ALL)
        one = (share * found.moments, share * found.means)
        whole = found.changed(*one) if whole is None else found.changed(whole.moments + one[0], whole.means + one[1])
    if whole is None:
        raise UnknowableError(_OF_ALL)
    return [whole.approximate(_LARGEST), *[None] * (len(call.op.outputs) - 1)]


def _product(rule: Rule) -> Rule:
    def aware_of_masks(call: Call) -> Sequence[Signal | None]:
        found = rule(call)
        for name, other in (("self", "other"), ("other", "self")):
            x = call.signal(name) if call.has(name) else None
            if x is None or x.closed is None or not found or found[0] is None or x.shape != found[0].shape:
                continue
            if call.op.functional == "aten.mul" or operand(call, other).q == 0:
                return [replace(found[0], closed=x.closed)]
        return found

    return aware_of_masks


def _sum(rule: Rule) -> Rule:
    """What is 0 in both operands is 0 in their sum, as of the gradients of a softmax and a log-sum-exp of scores."""

    def aware_of_masks(call: Call) -> Sequence[Signal | None]:
        found = rule(call)
        if call.op.phase == "forward" or not found or found[0] is None or not (call.has("self") and call.has("other")):
            return found
        one, two = call.signal("self").closed, call.signal("other").closed
        if one is None or two is None or not (one is two or np.array_equal(one.open, two.open)):
            return found
        return [replace(found[0], closed=one)]

    return aware_of_masks


def _mask(call: Call, op: Op) -> Mask | None:
    """Return the mask of what a function is of; None where it shuts nothing."""
    ref = op.arguments.get("self")
    x = call.known.get(ref.id) if isinstance(ref, ValueRef) else None
    return x.mask if x is not None and x.mask is not None and x.mask.shut > 0 else None


def _at(op: Op, level: float) -> float:
    """Return what a function makes of a number."""
    _, packet, overload = op.name.split(".")
    number = torch.tensor(level, dtype=torch.float64)
    try:
        return float(called(getattr(getattr(torch.ops.aten, packet), overload), op.arguments, lambda _: number.clone()))
    except (RuntimeError, TypeError, ValueError) as error:
        raise UnknowableError(_WHY) from error


def _with_shut(open_: Signal, mask: Mask, level: float) -> Signal:
    """Return a function of scores, from that of open ones and its value where they are shut."""
    if level <= SHUT:
        return replace(open_, mask=changed(mask, level=level, added=False))
    if level != 0:
        raise UnknowableError(_WHY)
    image = as_image(open_)
    there = _there(mask, open_)
    base = there if image.base is None else multiplied(image.base, there)
    return replace(_left(open_, mask), image=replace(image, base=base))


def _left(x: Signal, mask: Mask) -> Signal:
    """Set to 0 what is shut."""
    return replace(multiplied(*together(x, _there(mask, x), x.shape)), closed=mask)


def _there(mask: Mask, x: Signal) -> Signal:
    """Return 1 where scores are open and 0 elsewhere, in the shape of all of them."""
    found = measured(torch.from_numpy(np.ascontiguousarray(mask.open, float)), sample=0 if mask.samples else None)
    return together(found, x, x.shape)[0]
