"""Sums and products of branches: residual adds, masks, gates, scalings.

Independent x and y: E[(x+y)(x'+y')] adds the moments and twice the product of the means; the moments of a product are
the product of the moments. Assumption: the branches are independent of each other, which a fresh zero-mean layer
between them makes so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from initwell.propagate.atoms import together
from initwell.propagate.gram import mixed
from initwell.propagate.laws import sum_law
from initwell.propagate.segments import Array
from initwell.propagate.signal import Signal, constant, independent, merged_fidelity, product_of_means
from initwell.propagate.table import Call, Rule, UnknownSignalError
from initwell.trace.trace import ValueRef


def scaled(signal: Signal, factor: float) -> Signal:
    """Multiply by a number; what the signal remembers is scaled along."""
    if factor == 1.0:
        return signal
    found = signal.changed(signal.moments * factor**2, signal.means * factor, gaussian=signal.gaussian)
    roots = tuple((tag, a * factor) for tag, a in signal.roots)
    square = factor**2
    gates = tuple(replace(g, moments=g.moments * square, power=g.power * square) for g in signal.gates)
    return replace(found, roots=roots, gates=gates, peak=signal.peak, profile=signal.profile)


def added(a: Signal, b: Signal, alpha: float = 1.0, beta: float = 1.0, *, gaussian: bool | None = None) -> Signal:
    """Add alpha·a + beta·b of the same atoms, independent of each other."""
    moments = alpha**2 * a.moments + beta**2 * b.moments + 2 * alpha * beta * product_of_means(a, b)
    normal = (a.gaussian and b.gaussian) if gaussian is None else gaussian
    found = a.changed(moments, alpha * a.means + beta * b.means, gaussian=normal)
    roots = [(tag, c * alpha) for tag, c in a.roots] + [(tag, c * beta) for tag, c in b.roots]
    gates = scaled(a, alpha).gates + scaled(b, beta).gates
    law = sum_law(a, b, alpha, beta) or sum_law(b, a, beta, alpha)
    profile = _mixed(a, b, alpha**2 * a.q, beta**2 * b.q)
    found = replace(found, roots=tuple(roots), gates=gates, law=law, profile=profile, spread=mixed(a, b, alpha, beta))
    return merged_fidelity(found, b)


def _mixed(a: Signal, b: Signal, qa: float, qb: float) -> tuple[Array, ...]:
    """Return the sizes by position of a sum: of each axis, the average by the second moments."""
    if (not a.profile and not b.profile) or qa + qb == 0:
        return ()
    flat = tuple(np.ones_like(p) for p in a.profile or b.profile)
    pairs = zip(a.profile or flat, b.profile or flat, strict=False)
    return tuple(np.asarray((qa * p + qb * q) / (qa + qb)) for p, q in pairs if p.shape == q.shape)


def multiplied(a: Signal, b: Signal) -> Signal:
    """Multiply two independent signals of the same atoms, entry by entry."""
    return merged_fidelity(a.changed(a.moments * b.moments, a.means * b.means), b)


def operand(call: Call, name: str) -> Signal:
    """Return a tensor argument, or the signal of a plain number."""
    value: Any = call[name]
    if isinstance(value, ValueRef):
        return call.signal(name)
    if isinstance(value, (int, float)):
        return constant((), float(value))
    raise UnknownSignalError(name)


def _is_number(call: Call, name: str) -> bool:
    return isinstance(call[name], (int, float)) or (call.has(name) and _fixed(call.signal(name)))


def _fixed(signal: Signal) -> bool:
    # A tensor that holds one known number everywhere, such as a running variance of 1 or a LayerNorm's weight.
    return abs(signal.q - signal.mean**2) <= 1e-12 * signal.q


def _sum(sign: float) -> Rule:
    def rule(call: Call) -> Sequence[Signal]:
        beta = sign * float(call["alpha"] if call["alpha"] is not None else 1.0)
        if call["self"] == call["other"]:
            return [scaled(call.signal("self"), 1.0 + beta)]
        a, b = together(operand(call, "self"), operand(call, "other"), call.shape())
        fixed = _is_number(call, "other")
        return [added(a, b, 1.0, beta, gaussian=a.gaussian if fixed else None)]

    return rule


def _mul(call: Call) -> Sequence[Signal]:
    for one, two in (("self", "other"), ("other", "self")):
        if _is_number(call, two) and call.has(one):
            factor = operand(call, two).mean
            a, _ = together(call.signal(one), operand(call, two), call.shape())
            same = a.dims == call.signal(one).dims
            return [scaled(call.signal(one) if same else a, factor)]
    a, b = together(operand(call, "self"), operand(call, "other"), call.shape())
    product = multiplied(a, b)
    if call["self"] == call["other"]:
        product = product.approximate("a value multiplied with itself was taken as a product of independent ones")
    return [product]


def _div(call: Call) -> Sequence[Signal]:
    if not _is_number(call, "other"):
        raise UnknownSignalError("a division by a tensor")
    divisor = operand(call, "other")
    a, _ = together(operand(call, "self"), divisor, call.shape())
    return [scaled(a, 1.0 / divisor.mean)]


def _bernoulli(call: Call) -> Sequence[Signal]:
    """A mask of independent ones with probability p: dropout's, before it is divided by p."""
    p = float(call["p"])
    return [independent(call.shape(), p, p)]


def _neg(call: Call) -> Sequence[Signal]:
    return [scaled(call.signal("self"), -1.0)]


RULES: Mapping[str, Rule] = {
    "aten.add": _sum(1.0),
    "aten.sub": _sum(-1.0),
    "aten.mul": _mul,
    "aten.div": _div,
    "aten.neg": _neg,
    "aten.bernoulli": _bernoulli,
}
