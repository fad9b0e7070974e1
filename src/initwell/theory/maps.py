"""Mean-field maps of a wide network: how variance and correlation go from layer to layer, and where they settle.

Here ``sigma_w2`` is σ_w² = fan_in·Var(w) and ``sigma_b2`` is σ_b² = Var(b); q is the variance of a pre-activation.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from initwell.errors import ArgumentError
from initwell.records import Record
from initwell.theory import moments
from initwell.theory.activation import Activation
from initwell.theory.activations import activation

# Searched for fixed points: off the round numbers, so that none is hit exactly.
_SEARCHED = 10.0 ** np.linspace(-8.013, 8.017, 129)
_NEAR_ZERO = 1e-12
_LEVEL = 1e-11


@dataclass(frozen=True)
class FixedPoint(Record):
    """A variance that the variance map returns unchanged.

    Attributes:
        q: the variance.
        slope: slope of the map there, Q′(q).
        stable: whether nearby variances are drawn to it.
        chi: χ = σ_w²·E[φ′²], the factor of the gradient's second moment per layer there.
        continuum: whether every variance is a fixed point, of which this is one (ReLU with σ_w² = 2).
    """

    q: float
    slope: float
    stable: bool
    chi: float
    continuum: bool = False


@dataclass(frozen=True)
class DepthScales(Record):
    """How many layers variances and correlations take to settle, as e-folding depths.

    Attributes:
        q: the stable variance.
        c: the stable correlation of two inputs.
        chi: χ at q for identical inputs; 1 is critical.
        phase: "ordered" (χ < 1, inputs merge), "chaotic" (χ > 1, they part) or "critical".
        xi_q: depth scale of the variance, −1/ln|Q′(q)|, in layers.
        xi_c: depth scale of the correlation, −1/ln(σ_w²·E[φ′(u)φ′(v)]) at c, in layers; infinite if critical.
    """

    q: float
    c: float
    chi: float
    phase: Literal["ordered", "critical", "chaotic"]
    xi_q: float
    xi_c: float


def _check_variances(sigma_w2: float, sigma_b2: float) -> None:
    if not (math.isfinite(sigma_w2) and sigma_w2 > 0):
        raise ArgumentError("sigma_w2", sigma_w2, "It is fan_in·Var(w): give a finite number above 0.")
    if not (math.isfinite(sigma_b2) and sigma_b2 >= 0):
        raise ArgumentError("sigma_b2", sigma_b2, "It is Var(b): give a finite number, 0 or more.")


def variance_map(phi: Any, q: float, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """Compute the next layer's pre-activation variance, σ_w²·E[φ(u)²] + σ_b² with u ~ N(0, q).

    Args:
        phi: anything ``activation()`` takes.
        q: variance of the pre-activation.
        sigma_w2: fan_in·Var(w).
        sigma_b2: Var(b).

    Returns:
        The variance.

    Raises:
        ArgumentError: an argument is out of range.

    Source: Poole et al., NIPS 2016, eq. 3.

    >>> round(variance_map("relu", 3.0, 2.0), 12)
    3.0
    """
    _check_variances(sigma_w2, sigma_b2)
    return sigma_w2 * moments.second_moment(phi, q).value + sigma_b2


def overlap_map(phi: Any, c: float, q: float, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """Compute the next layer's correlation of two inputs that have variance q and correlation c in this one.

    Args:
        phi: anything ``activation()`` takes.
        c: correlation of the two pre-activations, within [−1, 1].
        q: variance of each.
        sigma_w2: fan_in·Var(w).
        sigma_b2: Var(b).

    Returns:
        The correlation, (σ_w²·E[φ(u)φ(v)] + σ_b²)/(σ_w²·E[φ²] + σ_b²).

    Raises:
        ArgumentError: an argument is out of range.

    Source: Poole et al., NIPS 2016, eq. 4 and 5.

    >>> round(overlap_map("relu", 0.0, 1.0, 2.0), 6)
    0.31831
    """
    together = sigma_w2 * moments.overlap(phi, q, c).value + sigma_b2
    return together / variance_map(phi, q, sigma_w2, sigma_b2)


def chi(phi: Any, q: float, sigma_w2: float, c: float = 1.0) -> float:
    """Compute χ = σ_w²·E[φ′(u)φ′(v)], the factor of the gradient's second moment per layer if c = 1.

    Args:
        phi: anything ``activation()`` takes; of a gate both ways back are counted.
        q: variance of the pre-activation.
        sigma_w2: fan_in·Var(w).
        c: correlation at which it is taken; 1 for the gradient, c* for the depth scale of correlations.

    Returns:
        The factor; at a fixed point of the variance it is the slope of the correlation map at c.

    Raises:
        ArgumentError: an argument is out of range.

    Source: Schoenholz et al., ICLR 2017, eq. 5.

    >>> chi("relu", 1.0, 2.0)
    1.0
    """
    phi = activation(phi)
    _check_variances(sigma_w2, 0.0)
    return float(sigma_w2 * phi.inputs * moments.derivative_overlap(phi, q, c).value)


def _bisect(f: Callable[[float], float], low: float, high: float) -> float:
    # Illinois: false position that halves a stale end, which bisection alone would take five times as long for.
    f_low, f_high = f(low), f(high)
    middle = low
    for _ in range(100):
        middle = (low * f_high - high * f_low) / (f_high - f_low)
        if not low < middle < high:
            middle = (low + high) / 2
        value = f(middle)
        if value == 0 or high - low <= 4e-16 * abs(middle) or abs(value) < 1e-15:
            break
        if (value > 0) == (f_high > 0):
            high, f_high, f_low = middle, value, f_low / 2
        else:
            low, f_low, f_high = middle, value, f_high / 2
    return middle


def _slope(phi: Activation, q: float, sigma_w2: float) -> float:
    return sigma_w2 * moments.growth(phi, q).value / q


def _at_zero(phi: Activation, slope: float, beyond: float, sigma_w2: float) -> FixedPoint | None:
    # q = 0 stays put if nothing is added and φ(0) = 0. Where the map is the identity as far as can be told, its sign
    # ``beyond`` tells which way a variance drifts.
    if slope > 1e6:
        return None
    level = abs(slope - 1) < 1e-9
    stable = beyond < 0 if level else slope < 1
    return FixedPoint(0.0, 1.0 if level else slope, stable, chi(phi, _NEAR_ZERO, sigma_w2))


def fixed_points(phi: Any, sigma_w2: float, sigma_b2: float = 0.0) -> tuple[FixedPoint, ...]:
    """Find the variances that a layer keeps, between 1e-8 and 1e8, and 0.

    Args:
        phi: anything ``activation()`` takes.
        sigma_w2: fan_in·Var(w).
        sigma_b2: Var(b).

    Returns:
        The fixed points, ascending; empty if the variance grows without end. Two closer than 15 % may go unnoticed.

    Raises:
        ArgumentError: an argument is out of range.

    Source: Poole et al., NIPS 2016, section 2.

    >>> [(p.q, p.stable) for p in fixed_points("tanh", 0.9)]
    [(0.0, True)]
    """
    phi = activation(phi)
    _check_variances(sigma_w2, sigma_b2)

    def excess(q: float) -> float:
        try:
            return variance_map(phi, q, sigma_w2, sigma_b2) / q - 1
        except ArgumentError:  # it grows so fast that at this q it has no moment: the variance runs away
            return math.inf

    values = [excess(q) for q in _SEARCHED.tolist()]
    if all(abs(v) < _LEVEL for v in values):
        return (FixedPoint(1.0, 1.0, False, chi(phi, 1.0, sigma_w2), continuum=True),)
    found = []
    # Stretches where the map is the identity to rounding have no sign of their own.
    signed = [(q, v) for q, v in zip(_SEARCHED.tolist(), values, strict=True) if abs(v) >= _LEVEL]
    zero = _at_zero(phi, excess(_NEAR_ZERO) + 1, signed[0][1], sigma_w2) if sigma_b2 == 0 else None
    if zero:
        found.append(zero)
    for (low, before), (high, after) in itertools.pairwise(signed):
        if (before > 0) != (after > 0) and math.isfinite(before) and math.isfinite(after):
            q = _bisect(excess, low, high)
            slope = _slope(phi, q, sigma_w2)
            found.append(FixedPoint(q, slope, abs(slope) < 1, chi(phi, q, sigma_w2)))
    return tuple(found)


def overlap_fixed_point(phi: Any, q: float, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """Find the correlation that two inputs settle at when their variance has settled at q.

    Args:
        phi: anything ``activation()`` takes.
        q: a fixed point of the variance map.
        sigma_w2: fan_in·Var(w).
        sigma_b2: Var(b).

    Returns:
        1 if χ ≤ 1; otherwise the one stable correlation in [0, 1): the map is a power series with no negative
        coefficient, hence convex, and crosses the diagonal once below 1.

    Raises:
        ArgumentError: an argument is out of range.

    Source: Poole et al., NIPS 2016, section 2; Daniely, Frostig & Singer, NIPS 2016, for the power series.

    >>> overlap_fixed_point("tanh", 1.0, 1.592537420 ** 2)
    0.0
    """
    phi = activation(phi)
    if chi(phi, q, sigma_w2) <= 1 + 1e-9:
        return 1.0

    def excess(c: float) -> float:
        return overlap_map(phi, c, q, sigma_w2, sigma_b2) - c

    if excess(0.0) <= 1e-13:
        return 0.0
    # Close enough to 1 the excess is negative, for its slope there is χ − 1 > 0.
    gap = 0.5
    while excess(1 - gap) >= 0 and gap > 1e-9:
        gap /= 4
    return _bisect(excess, 0.0, 1 - gap)


def _scale(factor: float) -> float:
    if factor <= 0:
        return 0.0
    return math.inf if abs(math.log(factor)) < 1e-9 else -1 / math.log(factor)


def depth_scales(phi: Any, sigma_w2: float, sigma_b2: float = 0.0) -> DepthScales:
    """Compute how fast variance and correlation settle, which bounds the depth that can be trained.

    Args:
        phi: anything ``activation()`` takes.
        sigma_w2: fan_in·Var(w).
        sigma_b2: Var(b).

    Returns:
        The settled variance and correlation with their depth scales, in layers.

    Raises:
        ArgumentError: an argument is out of range, or the variance settles nowhere above 0.

    Source: Schoenholz et al., ICLR 2017, eq. 6 to 9.

    >>> depth_scales("tanh", 1.5, 0.05).phase
    'ordered'
    """
    phi = activation(phi)
    settled = [p for p in fixed_points(phi, sigma_w2, sigma_b2) if p.q > 0 and (p.stable or p.continuum)]
    if not settled:
        got = f"{sigma_w2:g} with {phi} and sigma_b2 {sigma_b2:g}"
        raise ArgumentError("sigma_w2", got, "The variance settles nowhere above 0; see fixed_points().")
    point = settled[-1]
    c = overlap_fixed_point(phi, point.q, sigma_w2, sigma_b2)
    at_one = point.chi
    phase: Literal["ordered", "critical", "chaotic"] = "chaotic" if at_one > 1 else "ordered"
    if abs(at_one - 1) < 1e-9:
        phase = "critical"
    xi_c = _scale(chi(phi, point.q, sigma_w2, c))
    return DepthScales(point.q, c, at_one, phase, _scale(abs(point.slope)), xi_c)
