"""Ordinary functions of one number: powers, roots, exponentials, comparisons, choices; composed as ``functions`` says.

A comparison is the function that is 1 where it holds and 0 elsewhere; a choice between two functions of the same
Gaussian is one more function of it. A choice by what is independent of both takes each with its probability.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from initwell.propagate.given.draws import over_draws
from initwell.propagate.given.measured import measured_weight
from initwell.propagate.laws.averages import decayed
from initwell.propagate.laws.functions import (
    Function,
    as_image,
    combined,
    composed,
    evaluated,
    is_line,
    line,
    nowhere_zero,
    shared_images,
)
from initwell.propagate.laws.gaussian import variances
from initwell.propagate.laws.lengths import heavy, of_rows
from initwell.propagate.laws.rectified import of_known_law
from initwell.propagate.laws.swing import of_square
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import (
    UNLIKE,
    Image,
    Pointwise,
    Signal,
    constant,
    independent,
    merged_fidelity,
    replace,
)
from initwell.propagate.rules.branch import added, fixed, multiplied, operand, product, shifted
from initwell.propagate.rules.decay import known_decay, sign_of, squared_decay, sums_up
from initwell.propagate.rules.extremes import where_extreme
from initwell.propagate.rules.first_rows import of_first_rows
from initwell.propagate.rules.inverses import decreasing
from initwell.propagate.rules.larger import which
from initwell.propagate.rules.loss import weights_by_hand
from initwell.propagate.rules.masks import masked_choice
from initwell.propagate.rules.overwritten import rows_chosen
from initwell.propagate.rules.pointwise import applied, gated
from initwell.propagate.rules.positive import of_positive
from initwell.propagate.rules.sinusoids import of_frequencies
from initwell.propagate.rules.targets import of_targets
from initwell.propagate.table import Call, Rule, UnknowableError, UnknownSignalError
from initwell.trace.trace import ValueRef

_TINY = 1e-300
_ANGLES = "cosines and sines of angles without numbers, as of any angle"
_PLAIN: Mapping[str, Function] = {
    "sqrt": Function(lambda u: np.sqrt(np.maximum(u, 0.0)), (0.0,)),
    "rsqrt": Function(lambda u: 1 / np.sqrt(np.maximum(u, _TINY))),
    "reciprocal": Function(lambda u: 1 / u),
    "exp": Function(np.exp),
    "exp2": Function(np.exp2),
    "expm1": Function(np.expm1),
    "log": Function(lambda u: np.log(np.maximum(u, _TINY))),
    "log1p": Function(lambda u: np.log1p(np.maximum(u, -1 + 1e-16))),
    "log2": Function(lambda u: np.log2(np.maximum(u, _TINY))),
    "abs": Function(np.abs, (0.0,)),
    "sign": Function(np.sign, (0.0,)),
    "sgn": Function(np.sign, (0.0,)),
    "tan": Function(np.tan),
    "atan": Function(np.arctan),
    "sinh": Function(np.sinh),
    "cosh": Function(np.cosh),
    "square": Function(np.square),
    "trunc": Function(np.trunc, tuple(float(i) for i in range(-4, 5) if i)),
    "floor": Function(np.floor, tuple(map(float, range(-4, 5)))),
    "ceil": Function(np.ceil, tuple(map(float, range(-4, 5)))),
    "round": Function(np.round, tuple(i + 0.5 for i in range(-4, 4))),
}
_BOUNDED: Mapping[str, Function] = {
    "acos": Function(lambda u: np.arccos(np.clip(u, -1.0, 1.0)), (-1.0, 1.0)),
    "asin": Function(lambda u: np.arcsin(np.clip(u, -1.0, 1.0)), (-1.0, 1.0)),
}
_COSINE = "an angle of a cosine that is within 1, taken as Gaussian: its powers live of the tails"
_DIRECTIONS = "an angle of a cosine, taken as that of even directions"
# 1/√u and log u of what may be 0 or negative have no moments.
_POSITIVE = frozenset({"rsqrt", "reciprocal", "log", "log2"})
_LOGARITHMS = frozenset({"log", "log2"})


def _erf(u: Array) -> Array:
    from scipy.special import erf

    return np.asarray(erf(u))


def _circular(wave: Literal["sin", "cos"], phi: Function) -> Rule:
    """Cosine or sine; of angles without numbers, as rotary ones on the meta device, over the whole circle."""

    def rule(call: Call) -> Sequence[Signal]:
        drawn = over_draws(call.trace, call.values, call.op.outputs[0])
        if drawn is not None:
            return [drawn]
        if (waves := of_frequencies(call, wave)) is not None:
            return [waves]
        if call.has("self"):
            return [applied(phi, call.signal("self"))]
        if call["self"].id in call.trace.moving:
            raise UnknownSignalError("an angle that a model found")
        return [independent(call.shape(), 0.5).approximate(_ANGLES)]

    return rule


def _angle(phi: Function) -> Rule:
    """Apply what is defined within 1 alone, so that its input is taken as the cosine of two unit vectors.

    Of directions that are even in D dimensions it has the density (1 − c²)^((D − 3)/2), of variance 1/D: c² is a Beta
    of ½ and (D − 1)/2, and c that function of a Gaussian z which has its quantiles. A Gaussian's tails are longer.
    """

    def rule(call: Call) -> Sequence[Signal]:
        x = call.signal("self")
        if x.segmented or not 0 < x.q < 0.5 or x.mean**2 > 0.01 * x.q:
            return [applied(phi, x).approximate(_COSINE)]
        return [applied(Function(lambda u: phi.fn(_of_unit_vectors(u / x.rms, 1 / x.q))), x).approximate(_DIRECTIONS)]

    return rule


def _of_unit_vectors(z: Array, dimensions: float) -> Array:
    from scipy.special import betaincinv, erf

    return np.asarray(np.sign(z) * np.sqrt(betaincinv(0.5, (dimensions - 1) / 2, erf(np.abs(z) / math.sqrt(2)))))


def _of_kept(call: Call, phi: Function) -> Signal | None:
    """Measure a function of a parameter that is as it is, such as the decays log 1 … log 16: these are no Gaussian."""
    numbers = call.values.kept.get(call["self"].id)
    if numbers is None or not numbers.is_floating_point() or numbers.numel() < 2:
        return None
    table = phi.fn(numbers.detach().double().cpu().numpy())
    return measured_weight(torch.from_numpy(table)) if np.isfinite(table).all() else None


def _unary(name: str, phi: Function) -> Rule:
    def rule(call: Call) -> Sequence[Signal]:
        if (kept := _of_kept(call, phi)) is not None:
            return [kept]
        x = call.signal("self")
        refuse_heavy(name, x)
        if name == "square":
            return [replace(squared(x), square_of=x)]
        if name not in _POSITIVE or (name in _LOGARITHMS and nowhere_zero(x)):
            return [applied(phi, x)]
        return [of_positive(call, "self", phi) or decreasing(phi, x, f"{name} of what may be 0")]

    return rule


def refuse_heavy(name: str, x: Signal) -> None:
    """Refuse the root of an average of squares that a few of its entries make, as of products with e to a Gaussian.

    Args:
        name: of the function.
        x: what it is applied to.

    Raises:
        UnknowableError: it is one.
    """
    made = as_image(x).pre.average if name in ("sqrt", "rsqrt") else None
    if made is not None and made.kind != "mean" and heavy(made.of, math.prod(made.of.shape[d] for d in made.dims), 1.0):
        raise UnknowableError("the length of rows of heavy tails, which a few of their entries make")


def _exp(call: Call) -> Sequence[Signal]:
    """Apply exp; of what is nowhere positive, as the decay of a state, not as of a Gaussian.

    E[e^(2x)] of a Gaussian is made 2σ standard deviations above its mean: beyond 4 of them no sum is one, nor has a
    batch such entries. Of a known function of a Gaussian, such as −u², the expectation is that of the whole.
    """
    if (kept := _of_kept(call, _PLAIN["exp"]) or weights_by_hand(call)) is not None:
        return [kept]
    x = call.signal("self")
    wide = variances(x).max(initial=0.0)
    if wide > _LITTLE and sums_up(call.trace, call["self"].id):
        raise UnknowableError("e to running sums, as of a state's decays: each position has a size of its own")
    made = as_image(x)
    bent = made.base is None and not is_line(made.phi) and of_known_law(made.pre)
    if sign_of(call.trace, call["self"].id) < 0 and not (bent or of_known_law(x)) and (x.means < 0).all():
        return [known_decay(call, call["self"].id) or decayed(x)]
    if wide > _WIDE**2 and not bent:
        raise UnknowableError("e to a value of a large spread, which is made of the few largest entries")
    return [applied(_PLAIN["exp"], x)]


_LITTLE = 0.01  # of what is exponentiated: a variance that makes hardly a difference
# Standard deviations of what is exponentiated.
_WIDE = 2.0


def _pow(call: Call) -> Sequence[Signal]:
    x, power = call.signal("self"), call["exponent"]
    if not isinstance(power, (int, float)):
        raise UnknownSignalError("a power that is a tensor")
    p, whole = float(power), float(power) == int(power)

    def fn(u: Array) -> Array:
        return np.asarray(np.power(u, int(p)) if whole and p >= 0 else np.power(np.maximum(u, _TINY), p))

    if p == 2:
        return [squared_decay(call) or replace(of_first_rows(call, squared(x)), square_of=x)]
    phi = Function(fn, () if whole else (0.0,))
    return [decreasing(phi, x, "a negative power of what may be 0") if p < 0 else applied(phi, x)]


def squared(x: Signal) -> Signal:
    """Square entry by entry; of a gated value h·f(u), h independent of u, as h²·f(u)², which has heavier tails."""
    made = as_image(x)
    if made.base is None or not made.base.dims == made.pre.dims == x.dims:
        by_size = x.lengths > UNLIKE and not x.segmented
        return of_square(applied(_PLAIN["square"], x), x.swing if by_size else of_rows(x))
    base, square = squared(made.base), composed(_PLAIN["square"], made)
    factor = evaluated(Image(square, made.pre))
    found = x.changed(base.moments * factor.moments, base.means * factor.means, image=Image(square, made.pre, base))
    return merged_fidelity(found, base, factor)


def _number(call: Call, name: str) -> Any:
    """Return an argument that is a number, or a tensor of one number everywhere."""
    given = call[name]
    return call.signal(name).mean if isinstance(given, ValueRef) and fixed(call.signal(name)) else given


def _limits(call: Call) -> tuple[float, float]:
    low, high = (_number(call, name) for name in ("min", "max"))
    if any(x is not None and not isinstance(x, (int, float)) for x in (low, high)):
        raise UnknownSignalError("limits that are tensors")
    return (-np.inf if low is None else float(low)), (np.inf if high is None else float(high))


def _clamp(call: Call) -> Sequence[Signal]:
    low, high = _limits(call)
    kinks = tuple(x for x in (low, high) if np.isfinite(x))
    return [applied(Function(lambda u: np.clip(u, low, high), kinks), call.signal("self"))]


def _compared(how: Callable[[Array, float], Array]) -> Rule:
    def rule(call: Call) -> Sequence[Signal]:
        x, level = call.signal("self"), _number(call, "other")
        if not isinstance(level, (int, float)):
            return [which(call, how)]
        kinks = (level,) if np.isfinite(level) else ()
        return [applied(Function(lambda u: np.asarray(how(u, level), float), kinks), x)]

    return rule


def _equal(call: Call) -> Sequence[Signal | None]:
    if call["self"] == call["other"]:
        return [constant(call.shape(), 1.0)]  # but for NaN, which there is none of
    found = where_extreme(call)
    return [found] if found is not None else list(_compared(np.equal)(call))


def _logical(how: Callable[[Array, Array], Array]) -> Rule:
    def rule(call: Call) -> Sequence[Signal]:
        images = shared_images(call.signal("self"), call.signal("other"))
        if images is None:
            raise UnknownSignalError("a combination of conditions on different values")
        return [evaluated(Image(combined(images[0].phi, images[1].phi, how), images[0].pre))]

    return rule


def chosen(mask: Signal, a: Signal, b: Signal, shape: Sequence[int]) -> Signal:
    """Take a where the mask is 1 and b where it is 0.

    Of three functions of one Gaussian exactly; of a gradient and 0, the gradient times the mask; else each is taken as
    independent of the mask.

    Args:
        mask: 1 or 0, a function of a Gaussian or random by itself.
        a: taken where it is 1.
        b: taken where it is 0.
        shape: that all three are broadcast to.

    >>> u = replace(independent((4,), 1.0), gaussian=True)
    >>> mask = applied(Function(lambda x: np.greater(x, 0).astype(float), (0.0,)), u)
    >>> round(chosen(mask, u, constant((), 0.0), (4,)).mean, 6)  # relu
    0.398942
    """
    if mask.q == 0 and b.shape == tuple(shape):
        return merged_fidelity(b, mask, a)  # such as where two continuous values are equal
    condition = as_image(mask)
    parts = [_function_of(condition, s) for s in (a, b)]
    if parts[0] is not None and parts[1] is not None and mask.shape == tuple(shape):
        phi = combined(condition.phi, parts[0], np.multiply)
        other = combined(_complement(condition.phi), parts[1], np.multiply)
        image = Image(combined(phi, other, np.add), condition.pre)
        return merged_fidelity(evaluated(image), mask, a, b)
    if fixed(b) and b.mean == 0 and mask.dims == a.dims and condition.base is None:
        return _gated_by(condition, a)
    if fixed(a) and a.mean == 0 and mask.dims == b.dims and condition.base is None:
        return _gated_by(replace(condition, phi=_complement(condition.phi)), b)
    inverse = shifted(mask.changed(mask.moments, -mask.means), 1.0)
    keep, drop = (multiplied(*together(m, s, shape)) for m, s in ((mask, a), (inverse, b)))
    return added(*together(keep, drop, shape)).approximate("a choice by what was taken as independent of the chosen")


def _complement(phi: Pointwise) -> Function:
    return combined(line(0.0, 1.0), phi, np.subtract)


def _function_of(condition: Image, x: Signal) -> Function | None:
    image = as_image(x)
    if fixed(x) and not x.segmented:
        return line(0.0, x.mean)
    if image.pre is condition.pre and image.base is None and condition.base is None and x.dims == image.pre.dims:
        return combined(image.phi, line(0.0), np.add)
    return None


def _gated_by(condition: Image, g: Signal) -> Signal:
    before = g.image
    if before is not None and before.base is not None and before.pre is condition.pre:
        return gated(combined(before.phi, condition.phi, np.multiply), condition.pre, before.base)
    if condition.pre.dims != g.dims:
        return product(g, evaluated(condition), g.shape)
    return gated(condition.phi, condition.pre, g)


def _where(call: Call) -> Sequence[Signal]:
    if (found := of_targets(call)) is not None:
        return [found]
    for kept, fill, shut in (("self", "other", False), ("other", "self", True)):
        for rule in (masked_choice, rows_chosen):
            if (found := rule(call, "condition", kept, fill, shut=shut)) is not None:
                return [found]
    return [chosen(call.signal("condition"), operand(call, "self"), operand(call, "other"), call.shape())]


def _masked_fill(call: Call) -> Sequence[Signal]:
    for rule in (masked_choice, rows_chosen):
        if (found := rule(call, "mask", "self", "value", shut=True)) is not None:
            return [found]
    return [chosen(call.signal("mask"), operand(call, "value"), call.signal("self"), call.shape())]


def _not(call: Call) -> Sequence[Signal]:
    return [applied(line(-1.0, 1.0), call.signal("self"))]


def _zero_like(call: Call) -> Sequence[Signal]:
    return [constant(call.shape(), 0.0)]


_COMPARISONS: Mapping[str, Callable[[Array, float], Array]] = {
    "aten.gt": np.greater,
    "aten.ge": np.greater_equal,
    "aten.lt": np.less,
    "aten.le": np.less_equal,
    "aten.ne": np.not_equal,
}
RULES: Mapping[str, Rule] = {
    **{f"aten.{name}": _unary(name, phi) for name, phi in _PLAIN.items()},
    **{f"aten.{name}": _angle(phi) for name, phi in _BOUNDED.items()},
    "aten.exp": _exp,
    "aten.cos": _circular("cos", Function(np.cos)),
    "aten.sin": _circular("sin", Function(np.sin)),
    "aten.erf": _unary("erf", Function(_erf)),
    "aten.pow": _pow,
    "aten.clamp": _clamp,
    "aten.clamp_min": _clamp,
    "aten.clamp_max": _clamp,
    **{name: _compared(how) for name, how in _COMPARISONS.items()},
    "aten.eq": _equal,
    "aten.logical_and": _logical(np.multiply),
    "aten.bitwise_and": _logical(np.multiply),
    "aten.logical_or": _logical(np.maximum),
    "aten.bitwise_or": _logical(np.maximum),
    "aten.logical_not": _not,
    "aten.bitwise_not": _not,
    "aten.where": _where,
    "aten.masked_fill": _masked_fill,
    **dict.fromkeys(("aten.new_zeros", "aten.isnan", "aten.isinf"), _zero_like),
    "aten.nan_to_num": lambda call: [call.signal("self")],
}
