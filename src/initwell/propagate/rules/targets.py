"""Losses written out in ops: sums of known numbers times functions of one Gaussian, the output that they judge.

Whatever is computed entry by entry from an output u and known targets is y = Σ_k b_k f_k(u), the b_k known tensors.
With B_kl the average of b_k b_l' over the pairs of a pattern,

    E[y y'] = Σ_kl B_kl E[f_k(u) f_l(u')]        E[y] = Σ_k E[b_k] E[f_k(u)]

in which nothing is independent of u but the targets: (1 − t/e^u)·e^u is e^u − t, and where each target chooses one of
two functions both terms are of one u. The mixed averages are those of sums and differences, by polarization.

Assumption: targets are independent of the output.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from initwell.propagate.given.measured import measured
from initwell.propagate.laws.functions import Function, as_image, combined, function_moments, line, multiple, unscaled
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Image, Pointwise, Signal, replace
from initwell.propagate.rules.responses import rise
from initwell.propagate.table import Call
from initwell.trace.ops import COPIES
from initwell.trace.trace import Op, Trace, ValueRef

LOSS = "(loss)"
TARGETS = "targets of a loss as drawn at random, independent of the model's output"
_ONE = line(0.0, 1.0)
_UNIT: "list[Term]" = [(torch.ones(()), _ONE)]
_MOST = 6
_DEEPEST = 24
_PASSED = frozenset({*COPIES, "aten.detach", "aten.alias", "aten.expand"})
Term = tuple[Tensor, Pointwise]


class _Search:
    """Take values of one walk apart into terms, known numbers times functions of one Gaussian."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.u: Signal | None = None

    def terms(self, given: object, depth: int = 0) -> list[Term] | None:
        """Return the terms of an argument; None where it is no such sum."""
        if isinstance(given, (int, float)):
            return [(torch.tensor(float(given)), _ONE)]
        if not isinstance(given, ValueRef) or depth > _DEEPEST:
            return None
        known, signal = self._call.value_of(given), self._call.known.get(given.id)
        if known is not None:
            alike = known.numel() > 0 and bool(known.min() == known.max())
            return [((known.flatten()[0] if alike else known).double(), _ONE)]
        if signal is not None and signal.q - signal.mean**2 <= 1e-12 * signal.q and not signal.segmented:
            return [(torch.tensor(signal.mean, dtype=torch.float64), _ONE)]
        if signal is not None and (phi := self._function(signal)) is not None:
            return [(torch.ones(()), phi)]
        found = self.made(given.id, depth + 1)
        if found is None and signal is not None:
            found = self._composed(given.id, signal, depth + 1) or self._own(given.id, signal)
        return found if found is not None and len(found) <= _MOST else None

    def _function(self, signal: Signal) -> Pointwise | None:
        image = as_image(signal)
        if image.base is not None or (self.u is not None and image.pre is not self.u):
            return None
        if not image.pre.gaussian and not any(image.pre is u for u in self._outputs()):
            return None
        self.u = image.pre
        return image.phi

    def _outputs(self) -> list[Signal]:
        """Return what a loss reads of the model."""
        known = self._call.known
        read = self._call.values.once("judged", lambda: _read(self._call.trace))
        return [known[i] for i in read if i in known and i not in self._call.values]

    def _own(self, value: int, signal: Signal) -> list[Term] | None:
        """Take what is made by no op of entries, such as a log-softmax, for u itself."""
        made = self._call.trace.producer(value)
        if signal.image is not None or self.u not in (None, signal) or made is None or made.phase == "backward":
            return None
        self.u = signal
        return [(torch.ones(()), line(1.0))]

    def _composed(self, value: int, signal: Signal, depth: int) -> list[Term] | None:
        """Return a function of a value that is one of u, though that value does not say so."""
        op, image = self._call.trace.producer(value), signal.image
        if op is None or image is None or image.base is not None or not op.inputs:
            return None
        if image.pre is not self._call.known.get(op.inputs[0]):
            return None
        inner, outer = self.terms(ValueRef(op.inputs[0]), depth), image.phi
        if inner is None or any(b.numel() > 1 for b, _ in inner):
            return None
        parts = [(float(b), f.fn) for b, f in inner]
        return [(torch.ones(()), Function(lambda u: outer.fn(np.asarray(sum(c * f(u) for c, f in parts)))))]

    def made(self, value: int, depth: int) -> list[Term] | None:
        op = self._call.trace.producer(value)
        if op is None or (op.mutates and op.functional not in _SUMS | _PRODUCTS):
            return None
        name, a = op.functional, op.arguments
        if name in _PASSED and op.inputs:
            return self.terms(ValueRef(op.inputs[0]), depth)
        if name == "aten.neg":
            return _times(self.terms(a["self"], depth), [(torch.tensor(-1.0), _ONE)])
        if name in _SUMS:
            alpha = float(a["alpha"] if a.get("alpha") is not None else 1.0)
            one, two = self.terms(a["self"], depth), self.terms(a["other"], depth)
            signs = {"aten.add": (1.0, alpha), "aten.sub": (1.0, -alpha), "aten.rsub": (-alpha, 1.0)}[name]
            return _plus(_scaled(one, signs[0]), _scaled(two, signs[1]))
        if name == "aten.mul":
            return _times(self.terms(a["self"], depth), self.terms(a["other"], depth))
        if name == "aten.div":
            return _times(self.terms(a["self"], depth), _inverse(self.terms(a["other"], depth)))
        if name == "aten.where":
            chosen = self.terms(a["condition"], depth)
            rest = _plus(_UNIT, _scaled(chosen, -1.0))
            one, two = self.terms(a["self"], depth), self.terms(a["other"], depth)
            return _plus(_times(chosen, one), _times(rest, two))
        if name in JUDGED:
            return JUDGED[name](self, op, depth)
        return self._bent(value, a.get("grad_output"), depth)

    def _bent(self, value: int, gradient: object, depth: int) -> list[Term] | None:
        """Return a gradient times the slope of a function of u."""
        signal = self._call.known.get(value)
        image = None if signal is None else signal.image
        if image is None or image.base is None or not isinstance(gradient, ValueRef):
            return None
        g = self._call.known.get(gradient.id)
        slope = None if g is None else slope_of(image, g)
        if slope is None or (self.u is not None and image.pre is not self.u):
            return None
        self.u = image.pre
        return _times(self.terms(gradient, depth), [(torch.ones(()), slope)])

    def judged(self, op: Op, depth: int) -> tuple[list[Term] | None, list[Term] | None, Pointwise | None]:
        """Return target, weights times what an op of a loss is multiplied by, and the output as a function of u."""
        a = op.arguments
        mean = 1 / math.prod(self._call.trace.values[a["self"].id].shape) if a["reduction"] == _MEAN else 1.0
        back = self.terms(a["grad_output"], depth) if "grad_output" in a else _UNIT
        weight = _UNIT if a.get("weight") is None else self.terms(a["weight"], depth)
        x = self.terms(a["self"], depth)
        phi = x[0][1] if x is not None and len(x) == 1 and x[0][0].numel() == 1 == float(x[0][0]) else None
        return self.terms(a["target"], depth), _scaled(_times(back, weight), mean if "grad_output" in a else 1.0), phi


def _read(trace: Trace) -> list[int]:
    inside = [op for op in trace.forward_ops if op.path.startswith(LOSS)]
    made = {value for op in inside for value in op.outputs}
    return sorted({i for op in inside for i in op.inputs} - made)


def _of(phi: Pointwise, outer: Callable[[Array], Array]) -> Function:
    return Function(lambda u: outer(phi.fn(u)), phi.kinks)


def _chosen(
    search: _Search, op: Op, depth: int, one: Callable[[Array], Array], other: Callable[[Array], Array]
) -> list[Term] | None:
    """Return t·one(x) + (1 − t)·other(x)."""
    target, weight, phi = search.judged(op, depth)
    if phi is None or target is None:
        return None
    rest = _plus(_UNIT, _scaled(target, -1.0))
    both = _plus(_times(target, [(torch.ones(()), _of(phi, one))]), _times(rest, [(torch.ones(()), _of(phi, other))]))
    return _times(weight, both)


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _logistic(x: Array) -> Array:
    return np.exp(-_softplus(-x))


def _log(p: Array) -> Array:
    return np.maximum(np.log(np.maximum(p, 1e-300)), -100.0)


def _binary(search: _Search, op: Op, depth: int) -> list[Term] | None:
    return _chosen(search, op, depth, lambda p: -_log(p), lambda p: -_log(1 - p))


def _binary_backward(search: _Search, op: Op, depth: int) -> list[Term] | None:
    return _chosen(search, op, depth, lambda p: -1 / np.maximum(p, 1e-12), lambda p: 1 / np.maximum(1 - p, 1e-12))


def _with_logits(search: _Search, op: Op, depth: int) -> list[Term] | None:
    """Binary cross-entropy of logits, whose positive targets may count more."""
    target, weight, phi = search.judged(op, depth)
    more = op.arguments.get("pos_weight")
    times = _UNIT if more is None else search.terms(more, depth)
    if phi is None or target is None:
        return None
    one, other = _of(phi, lambda x: _softplus(-x)), _of(phi, _softplus)
    rest = _plus(_UNIT, _scaled(target, -1.0))
    both = _plus(_times(_times(target, times), [(torch.ones(()), one)]), _times(rest, [(torch.ones(()), other)]))
    return _times(weight, both)


def _soft_margin(search: _Search, op: Op, depth: int) -> list[Term] | None:
    return _by_sign(search, op, depth, lambda x: _softplus(-x), _softplus)


def _soft_margin_backward(search: _Search, op: Op, depth: int) -> list[Term] | None:
    return _by_sign(search, op, depth, lambda x: -_logistic(-x), _logistic)


def _by_sign(
    search: _Search, op: Op, depth: int, one: Callable[[Array], Array], other: Callable[[Array], Array]
) -> list[Term] | None:
    """Return one(x) where the target is 1 and other(x) where it is −1."""
    target = search.judged(op, depth)[0]
    if target is None or len(target) > 1 or not bool((target[0][0].abs() == 1).all()):
        return None
    _, weight, phi = search.judged(op, depth)
    if phi is None:
        return None
    positive = (target[0][0] + 1) / 2
    return _times(weight, [(positive, _of(phi, one)), (1 - positive, _of(phi, other))])


JUDGED: Mapping[str, Callable[[_Search, Op, int], list[Term] | None]] = {
    "aten.binary_cross_entropy": _binary,
    "aten.binary_cross_entropy_backward": _binary_backward,
    "aten.binary_cross_entropy_with_logits": _with_logits,
    "aten.soft_margin_loss": _soft_margin,
    "aten.soft_margin_loss_backward": _soft_margin_backward,
}
_REDUCED = frozenset(name for name in JUDGED if not name.endswith("_backward"))
_MEAN = 1
_SUMS = frozenset({"aten.add", "aten.sub", "aten.rsub"})
_PRODUCTS = frozenset({"aten.mul", "aten.div"})


def _scaled(terms: list[Term] | None, factor: float) -> list[Term] | None:
    return terms and [(b * factor, f) for b, f in terms]


def _plus(one: list[Term] | None, two: list[Term] | None) -> list[Term] | None:
    """Add up; what has the same function is one term."""
    if one is None or two is None:
        return None
    found = list(one)
    for b, f in two:
        place = next((i for i, (_, g) in enumerate(found) if g is f), None)
        if place is None:
            found.append((b, f))
        else:
            found[place] = (found[place][0] + b, f)
    return [(b, f) for b, f in found if bool((b != 0).any())] or [(torch.zeros(()), _ONE)]


def _times(one: list[Term] | None, two: list[Term] | None) -> list[Term] | None:
    if one is None or two is None:
        return None
    return [(b * c, _both(f, g)) for b, f in one for c, g in two]


def _both(f: Pointwise, g: Pointwise) -> Pointwise:
    return g if f is _ONE else f if g is _ONE else combined(f, g, np.multiply)


def _inverse(terms: list[Term] | None) -> list[Term] | None:
    if terms is None or len(terms) > 1:
        return None
    ((b, f),) = terms
    if bool((b == 0).any()):
        return None
    return [(1 / b, f if f is _ONE else Function(lambda u: 1 / f.fn(u), f.kinks))]


def slope_of(image: Image, g: Signal) -> Pointwise | None:
    """Return f where an image is g·f(u); None where its base is something else."""
    base, factor = unscaled(g)
    if image.base is g:
        return image.phi
    return multiple(image.phi, 1 / factor) if image.base is base and factor != 0 else None


def of_targets(call: Call) -> Signal | None:
    """Return what an op of a loss makes of known targets and functions of one output; else None."""
    return judged(call, None) if call.op.path.startswith(LOSS) else None


def judged(call: Call, bent: tuple[ValueRef, Pointwise, Signal] | None) -> Signal | None:
    """Return what an op makes of known numbers and functions of one Gaussian; None where it is something else.

    Args:
        call: of the op.
        bent: where it is a gradient times f(u): the gradient, f, and u.
    """
    search = _Search(call)
    if bent is None:
        found = search.made(call.op.outputs[0], 0)
    else:
        search.u = bent[2]
        found = _times(search.terms(bent[0]), [(torch.ones(()), bent[1])])
    u = search.u
    if found is None or u is None or len(found) > _MOST or all(b.numel() == 1 for b, _ in found):
        return None
    shape = call.trace.values[call["self"].id].shape if call.op.functional in _REDUCED else call.shape()
    if u.shape != shape:
        return None
    whole = summed_over(u, found)
    ref = call["self"]
    if call.op.phase == "forward" or not isinstance(ref, ValueRef) or call.known.get(ref.id) is not u:
        return whole
    return replace(whole, answer=sum(float(b.mean()) * rise(f, u) for b, f in found))


def of_judged(call: Call, found: Signal, g: Signal, ref: object) -> Signal:
    """Return what an activation sends back of what a loss of its output sends; ``found`` where that is something else.

    Args:
        call: of the op.
        found: g·φ′(u), as of a g that is independent of u.
        g: the gradient.
        ref: it, as an argument.
    """
    made = call.trace.producer(ref.id) if isinstance(ref, ValueRef) else None
    image = found.image
    if made is None or not made.path.startswith(LOSS) or image is None or not isinstance(ref, ValueRef):
        return found
    slope = slope_of(image, g)
    better = None if slope is None else judged(call, (ref, slope, image.pre))
    return found if better is None else replace(better, image=image)


def summed_over(u: Signal, terms: Sequence[Term]) -> Signal:
    """Return Σ b_k f_k(u), b_k known tensors that broadcast to the shape of u."""
    full = [torch.broadcast_to(b, u.shape).double() for b, _ in terms]
    shape, sample = u.shape, next((d for d, atoms in enumerate(u.dims) if any(a.sample for a in atoms)), None)
    u = together(u, measured(full[0], sample=sample), shape)[0]
    moments: Array | float = 0.0
    means: Array | float = 0.0
    for k, (b, (_, f)) in enumerate(zip(full, terms, strict=True)):
        own, _ = together(measured(b, sample=sample), u, shape)
        mean, pairs = function_moments(f, u)
        moments, means = moments + own.moments * pairs, means + float(b.mean()) * mean
        for c, (_, g) in zip(full[:k], list(terms)[:k], strict=True):
            known = [together(measured(b + s * c, sample=sample), u, shape)[0].moments for s in (1, -1)]
            both = [function_moments(_mixed(f, g, s), u)[1] for s in (1, -1)]
            moments = moments + (known[0] - known[1]) * (both[0] - both[1]) / 8
    return u.changed(np.asarray(moments), np.asarray(means)).approximate(TARGETS)


def _mixed(f: Pointwise, g: Pointwise, sign: float) -> Pointwise:
    return combined(f, g, lambda x, y: x + sign * y)
