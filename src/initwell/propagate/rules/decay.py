"""Decays e^(a·y) of numbers a, such as a = −1 … −16 of a state, times a step y of its own.

What −a·y is distributed like is no matter of a mean and a variance: a are the known entries of a parameter that is as
it is, or a function of Gaussian ones that are drawn, and y = φ(u) is a function of a Gaussian u. With f_a = e^(a φ),

    E[f_a(u) f_a′(u′)] = r · E_a[E[f_a(u) f_a(u′)]]  +  (1 − r) · E[f̄(u) f̄(u′)],      f̄ = E_a[f_a]

at the correlation that u and u′ have in each segment and pattern, and r that of a and a′: 1 where they are one number,
0 where they are independent, and −1/(n − 1) of two different ones of n, for which it is exact.

Numbers that all rows repeat, as a state's rates −1 … −16, are known level by level, and so is what is made of them:
the gradient of a step is Σ_a a e^(a·y) g h, whose large rates have the small decays. With levels taken as alike it is
60 % too large.

Assumption: numbers a that correlate are, in that share, one number; all of them meet the same steps.
"""

from collections.abc import Callable, Mapping

import numpy as np

from initwell.propagate.laws.averages import decayed
from initwell.propagate.laws.functions import Function, as_image, function_moments
from initwell.propagate.laws.gaussian import covariance, unlike_moments
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Image, Signal, merged_fidelity, replace
from initwell.propagate.table import Call
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Trace

_WHY = "e to a product of known numbers and steps, whose entries go together as those of the product"
_LEVELS = 64
_STEPS = 12
_POINTS = 16


def known_decay(call: Call, value: int, power: float = 1.0) -> Signal | None:
    """Return e to a product of numbers and steps; None where a value is no such product, or may grow.

    Args:
        call: of the exponential, or of a power of it.
        value: what it is of.
        power: that power.
    """
    op = call.trace.producer(value)
    if op is None or op.functional != "aten.mul" or len(op.inputs) != 2:
        return None
    for one, two in (op.inputs, op.inputs[::-1]):
        numbers = known_numbers(call, one) or _drawn(call, one)
        steps = _steps(call, two)
        if numbers is None or steps is None or one not in call.known:
            continue
        rates = numbers[0] * power, numbers[1]
        if power != 1.0 and call.known[one].segmented:
            continue
        if (found := _averaged(rates, steps, call.known[one], call.shape())) is not None:
            return merged_fidelity(found.approximate(_WHY), call.known[one], call.known[two])
    return None


def _averaged(numbers: tuple[Array, Array], steps: Image, a: Signal, shape: tuple[int, ...]) -> Signal | None:
    """Return E over numbers and steps, at the correlations of both."""
    levels, shares = numbers
    phi, u = steps.phi.fn, steps.pre
    reach = phi(np.concatenate([u.means.ravel(), [u.mean - 8 * u.rms, u.mean + 8 * u.rms]]))
    if len(levels) > _LEVELS or np.multiply.outer(levels, reach).max() > 1e-9:
        return None

    if a.segmented:
        return _by_level(steps, a, shape)

    each = [function_moments(Function(_decay(level, phi), steps.phi.kinks), u) for level in levels.tolist()]
    agree = sum(share * moments for share, (_, moments) in zip(shares, each, strict=True))
    mean = sum(share * means for share, (means, _) in zip(shares, each, strict=True))

    def average(x: Array) -> Array:
        return np.asarray(
            sum(share * _decay(level, phi)(x) for level, share in zip(levels.tolist(), shares, strict=True))
        )

    other = function_moments(Function(average, steps.phi.kinks), u)[1]
    one, rate = together(u.changed(np.asarray(agree), np.asarray(mean)), replace(a, image=None), shape)
    two = together(u.changed(np.asarray(other), np.asarray(mean)), replace(a, image=None), shape)[0]
    alike = covariance(rate)[1]
    return one.changed(alike * one.moments + (1 - alike) * two.moments, one.means)


def _by_level(steps: Image, a: Signal, shape: tuple[int, ...]) -> Signal | None:
    """Return e to numbers that are known entry by entry, by segments, times steps: each level has its own f_a."""
    u, rates = together(replace(steps.pre, image=None), a, shape)
    if np.abs(rates.diagonal - rates.means**2).max() > 1e-9 * rates.q:
        return None
    phi = steps.phi.fn
    levels, which = np.unique(np.broadcast_to(rates.means, u.means.shape), return_inverse=True)
    means, moments = unlike_moments([_decay(level, phi) for level in levels], which, steps.phi.kinks, u)
    return u.changed(moments, means)


def _decay(level: float, phi: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: np.exp(level * phi(x))


def known_numbers(call: Call, value: int) -> tuple[Array, Array] | None:
    """Return the numbers of a value that is made of a parameter that is as it is, in any order, and their shares.

    Args:
        call: of any op.
        value: made of the parameter within few steps.
    """
    found = _table(call, value, _STEPS)
    if found is None:
        return None
    levels, counts = np.unique(found, return_counts=True)
    return levels, counts / counts.sum()


def _table(call: Call, value: int, steps: int) -> Array | None:
    kept = call.values.kept.get(value)
    if kept is not None:
        return kept.detach().double().cpu().numpy().ravel()
    op = call.trace.producer(value)
    if op is None or len(op.inputs) != 1 or steps == 0:
        return None
    found = _table(call, op.inputs[0], steps - 1)
    if found is None or op.functional in VIEWS or op.functional in COPIES:
        return found
    how = _MADE.get(op.functional)
    return None if how is None else how(found)


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, 0.0)


_MADE: Mapping[str, Callable[[Array], Array]] = {
    "aten.exp": np.exp,
    "aten.neg": np.negative,
    "aten.softplus": _softplus,
}


def _drawn(call: Call, value: int) -> tuple[Array, Array] | None:
    """Return points and weights of a function of a drawn parameter."""
    a = call.known.get(call.trace.shown(value))
    if a is None or a.segmented:
        return None
    image = as_image(a)
    if image.base is not None or not image.pre.gaussian or image.pre.law is not None:
        return None
    z, weights = np.polynomial.hermite_e.hermegauss(_POINTS)
    points = image.phi.fn(image.pre.mean + np.sqrt(max(image.pre.q - image.pre.mean**2, 0.0)) * z)
    return np.asarray(points), np.asarray(weights / weights.sum())


def _steps(call: Call, value: int) -> Image | None:
    """Return what a value is as a function of a Gaussian, the Gaussian with the dimensions of the value."""
    y, shown = call.known.get(value), call.known.get(call.trace.shown(value))
    if y is None or shown is None or y.atoms != shown.atoms:
        return None
    image = as_image(shown)
    u = image.pre
    if image.base is not None or u.average is not None or u.law is not None or u.dims != shown.dims:
        return None
    return replace(image, pre=u.regrouped(y.dims, u.moments, u.means))


def squared_decay(call: Call) -> Signal | None:
    """Return the square of e to what is nowhere positive, which is e to twice that; None of anything else.

    The moments of e^x do not say what those of its square are: of a Gaussian of these it would be more than 1.
    """
    op = call.trace.producer(call["self"].id)
    x = None if op is None or op.functional != "aten.exp" else call.known.get(op.inputs[0])
    if op is None or x is None or call.signal("self").image is not None:
        return None
    if sign_of(call.trace, op.inputs[0]) >= 0 or not (x.means < 0).all():
        return None
    return known_decay(call, op.inputs[0], 2.0) or decayed(x.changed(4 * x.moments, 2 * x.means))


def sign_of(trace: Trace, value: int) -> int:
    """Return the sign of what can have only one, such as a product of exponentials; 0 of anything else.

    Args:
        trace: of the walk.
        value: its id.
    """
    op = trace.producer(value)
    if op is None or not op.inputs:
        return 0
    if op.functional in _NOWHERE_NEGATIVE:
        return 1
    if op.functional == "aten.neg":
        return -sign_of(trace, op.inputs[0])
    number = op.arguments.get("other")
    if op.functional in ("aten.mul", "aten.div") and isinstance(number, (int, float)):
        return int(np.sign(number)) * sign_of(trace, op.inputs[0])
    if op.functional in ("aten.mul", "aten.div") and len(op.inputs) == 2:
        return sign_of(trace, op.inputs[0]) * sign_of(trace, op.inputs[1])
    return sign_of(trace, op.inputs[0]) if op.functional in VIEWS or op.functional in COPIES else 0


_NOWHERE_NEGATIVE = frozenset({"aten.exp", "aten.softplus", "aten.sigmoid", "aten.relu", "aten.abs"})


def sums_up(trace: Trace, value: int) -> bool:
    """Whether a value is made of running sums: these themselves, what is left of them, or the difference of two.

    Args:
        trace: of the walk.
        value: its id.
    """
    for _ in range(_STEPS):
        op = trace.producer(value)
        if op is None or not op.inputs:
            return False
        if op.functional == "aten.cumsum":
            return True
        if op.functional not in _PASSED and op.functional not in VIEWS and op.functional not in COPIES:
            return False
        value = op.inputs[0]
    return False


_PASSED = frozenset({"aten.sub", "aten.neg", "aten.masked_fill", "aten.constant_pad_nd", "aten.tril", "aten.where"})
