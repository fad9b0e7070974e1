"""What of a gradient goes with the value that it arrives at: where few weights read that value.

Let y = Σ w_k x_k, of few weights each, as of a depthwise convolution, and what comes back at y be h_a·χ′(v_a) at
position a, h independent of v, the size of y being taken off in v. Then dx_p = Σ_k w_k h_a χ′(v_a), a = p − k, is not
independent of x_p, nor are its terms of each other: every v_a contains w_k x_p. With ω = w/|w|, n weights, x̃ of unit
variance, and z the rest of v,

    E_w[dx_p | x_p] ∝ r(x̃_p) Σ_k h_{p−k}                  r(x̃) = n E[ω χ′(ωx̃ + √(1 − ω²) z)],   about x̃·E[χ″]
    E[ω_k² χ′(v_a)² | x_p] ∝ E[ω² χ′(ωx̃_p + √(1 − ω²) z)²]

The first is a term that goes as x_p: small where h is new at every position, but as large as the rest where h is alike
at all of them, as behind an average over positions. The second grows with x̃². A nonlinearity before the convolution,
x = ψ(u), then multiplies by ψ′(u) what goes with u itself. So a gradient remembers which part of it is an *echo*:
base·f(u). With 1 + t = E[w⁴]/E[w²]² the law of ω is taken as ±α or 0, of the same second and fourth moment:

    α² = (1 + t)/(n + t)        r(x̃) = (F(αx̃) − F(−αx̃))/(2α),   F(c) = E[χ′(c + √(1 − α²) z)]

and pairs of weights have E[ω_k²ω_l²] = 1/(n(n + t)).
Behind a norm that divides by more than x's own variance, since borders read less of its mean, x̃ has a smaller share of
v, and the rest is an answer to the borders, at each position by itself.
Assumption: neighbours of x are independent of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from initwell.propagate.laws.functions import combined, function_moments
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Pointwise, Signal, replace


@dataclass(frozen=True, eq=False)
class Echo:
    """One term of a gradient, base·f(u), base of mean 0 and independent of u and of the other terms.

    Attributes:
        phi: f.
        pre: u.
        moments: E[base base'] by pattern.
        gated: f once it is multiplied by what u is the gate of, in units of that, if it goes with it too.
    """

    phi: Pointwise
    pre: Signal
    moments: Array
    gated: Pointwise | None = None

    def times(self, square: float) -> "Echo":
        """Return the echo in a gradient whose square is so many times larger."""
        return replace(self, moments=self.moments * square)


def through_slope(echo: Echo, slope: Pointwise, u: Signal) -> tuple[Array, Array]:
    """Return what an echo adds to the moments of a gradient, before and after it is multiplied by slope(u)."""
    before = function_moments(echo.phi, u)[1]
    after = function_moments(combined(echo.phi, slope, np.multiply), u)[1]
    return echo.moments * before, echo.moments * after


def about(echoes: Sequence[Echo], u: Signal, origin: Signal | None, shape: tuple[int, ...]) -> list[Echo]:
    """Return those that go with u, which may have been cut finer than when they were noted."""
    return [e for e in echoes if (e.pre is u or e.pre is origin) and e.moments.shape == shape == u.moments.shape]
