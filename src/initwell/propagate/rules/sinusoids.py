"""Sines and cosines of one number times many known frequencies: positions that a model found, as waves.

With u Gaussian of mean μ and variance v, u′ another entry with Cov(u, u′) = C, and frequencies c and d,

    E[sin(cu) sin(du′)] = ½·(E cos(cu − du′) − E cos(cu + du′))        cosines: their sum

    E cos(cu ∓ du′) = cos((c ∓ d)μ)·e^(−½(c² v + d² v ∓ 2cd C))

averaged over the frequencies, those of one entry and those of two. The products c·u have sizes from 1 to 10⁻⁴, and are
no Gaussian of their average size: slow waves of small angles are as small as these. Assumption: u is Gaussian.
"""

from typing import Literal

import numpy as np

from initwell.propagate.laws.functions import NOT_GAUSSIAN
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.table import Call
from initwell.trace.trace import ValueRef

# So many frequencies are looked at, and so many ops between the product and the wave.
_MOST = 512
_STEPS = 4
# Frequencies of one size, nearly, are a number.
_ALIKE = 1.25


def of_frequencies(call: Call, wave: Literal["sin", "cos"]) -> Signal | None:
    """Return the wave of a value u·c, c known numbers along the last dimension, u one number for all; else None."""
    found = _product(call)
    if found is None:
        return None
    u, c = found
    size = np.abs(c)
    if u.segmented or size.max() <= _ALIKE * size.min():
        return None
    mean, v = u.mean, max(u.q - u.mean**2, 0.0)
    between = u.moments - mean**2
    sign = -1.0 if wave == "sin" else 1.0
    one = _both(c, c, mean, v, between, sign)
    every = _both(c[:, None], c[None, :], mean, v, between[..., None], sign)
    apart = (every.sum((-2, -1)) - one.sum(-1)) / (len(c) * (len(c) - 1))
    moments = np.stack([one.mean(-1), apart], -1)
    level = np.exp(-(c**2) * v / 2) * (np.sin(c * mean) if wave == "sin" else np.cos(c * mean))
    dims = (*u.dims[:-1], (Atom(len(c)),))
    return u.changed(moments, np.full((1,) * moments.ndim, level.mean()), dims=dims).approximate(NOT_GAUSSIAN)


def _both(c: Array, d: Array, mean: float, v: float, between: Array, sign: float) -> Array:
    """Return E[w(cu) w(du′)] of a wave w by pattern of u, the frequencies in dimensions behind."""
    covariance = between[..., None]
    difference, whole = (
        np.cos((c - s * d) * mean) * np.exp(-((c**2 + d**2) * v - 2 * s * c * d * covariance) / 2) for s in (1.0, -1.0)
    )
    return np.asarray((difference + sign * whole) / 2)


def _product(call: Call) -> tuple[Signal, Array] | None:
    """Return u and c of an operand that shows u·c or u/c, or every so many of its last dimension."""
    value, picked = call["self"].id, slice(None)
    for _ in range(_STEPS):
        op = call.trace.producer(value)
        if op is None:
            return None
        rank = len(call.trace.values[value].shape)
        if op.functional == "aten.slice" and (op.arguments["dim"] or 0) % rank == rank - 1:
            if picked != slice(None):
                return None
            picked, value = slice(op.arguments["start"], op.arguments["end"], op.arguments["step"]), op.inputs[0]
        elif op.functional in ("aten.mul", "aten.div"):
            ways = (("self", "other"), ("other", "self")) if op.functional == "aten.mul" else (("self", "other"),)
            for one, two in ways:
                found = _factors(call, op.arguments[one], op.arguments[two], call.trace.values[value].shape)
                if found is not None:
                    u, c = found
                    c = (1 / c if op.functional == "aten.div" else c)[picked]
                    return (u, c) if 1 < len(c) <= _MOST and np.isfinite(c).all() and (c != 0).all() else None
            return None
        else:
            return None
    return None


def _factors(call: Call, one: object, two: object, shape: tuple[int, ...]) -> tuple[Signal, Array] | None:
    known = call.value_of(two)
    u = call.known.get(one.id) if isinstance(one, ValueRef) else None
    if known is None or u is None or not shape or known.numel() != shape[-1] or known.shape[-1:] != shape[-1:]:
        return None
    if u.shape != (*shape[:-1], 1) or u.dims[-1]:
        return None
    return u, known.double().flatten().numpy()
