"""Responses: what of a loss's gradient goes as the output that it judges, and so as what the layers before have made.

A loss's gradient is g = b·u + rest, u = W x the output, of n inputs and m outputs, with b = E[∂g/∂u]. The rest does not
know of W, but b·Wᵀ W x is not what independent Wᵀ and W x make of it: with fresh weights of variance σ²

    E[(Wᵀ W)_ij (Wᵀ W)_i'j'] = σ⁴ (m² δ_ij δ_i'j' + m δ_ii' δ_jj' + m δ_ij' δ_ji')

the second of which is that, so that what comes back has b²σ⁴ m (m + 1) E[x x'] more. It is an echo of x: a nonlinearity
before, x = φ(v), multiplies it by φ′(v) as a whole, and what is left goes as v again, with b of the layer before that,

    b' = b σ² m · E[(v − E v) φ φ′]/Var v.

Of squared errors of an output of as many features as its layer read the gradient is so 1.4 times as large, and each
layer before adds its own. Assumption: other samples' outputs are not in a sample's gradient, or hardly.
"""

import math

import numpy as np

from initwell.propagate.laws.echoes import Echo
from initwell.propagate.laws.functions import Function, as_image, function_moments
from initwell.propagate.moments.signal import Pointwise, Signal, replace
from initwell.propagate.table import Call

# Of a gradient's second moment; less is not worth following.
_LEAST = 1e-3
_ROWS = {"aten.mm": "self", "aten.addmm": "mat1"}


def responding(call: Call, found: Signal, g: Signal, weight: Signal) -> Signal:
    """Add to what a layer sends back what of it goes as what the layer read.

    Args:
        call: of the product of a gradient with a weight.
        found: what it makes of independent ones.
        g: the gradient.
        weight: of that layer.
    """
    found = _met(found, g.undone)
    if not g.answer or call.op.of is None or weight.mean**2 > _LEAST * weight.q:
        return found
    layer = call.forward()
    name = _ROWS.get(layer.functional)
    x, outputs = (None if name is None else call.known.get(layer.arguments[name].id)), g.shape[-1]
    if x is None or x.shape != found.shape or found.segmented or x.segmented:
        return found
    if [a.size for a in found.atoms] != [a.size for a in x.atoms]:
        return found
    size = g.answer * weight.q * math.sqrt(outputs * (outputs + 1.0))
    if size**2 * x.q < _LEAST * found.q:
        return found
    made = as_image(x)
    echoes = found.echoes
    if made.base is None and made.pre.dims == x.dims:
        echoes = (*echoes, Echo(made.phi, made.pre, np.full_like(x.moments, size**2)))
    moments, means = found.moments + size**2 * x.moments, found.means + g.answer * weight.q * outputs * x.means
    return replace(found, moments=moments, means=means, echoes=echoes, answer=size)


def _met(found: Signal, factor: float) -> Signal:
    return replace(found, moments=found.moments * factor**2, means=found.means * factor) if factor != 1 else found


def before(answer: float, slope: Pointwise, phi: Pointwise, u: Signal) -> float:
    """Return how much of a gradient at u goes as u, of a gradient at φ(u) that goes as that.

    Args:
        answer: of the gradient at φ(u).
        slope: φ′.
        phi: φ.
        u: Gaussian.
    """
    return answer * rise(Function(lambda v: phi.fn(v) * slope.fn(v), (*phi.kinks, *slope.kinks)), u)


def rise(f: Pointwise, u: Signal) -> float:
    """Return E[f′(u)] of a Gaussian u, by Stein's lemma.

    >>> from initwell.propagate.moments.signal import independent
    >>> round(rise(Function(np.square), replace(independent((4,), 5.0, 1.0), gaussian=True)), 6)
    2.0
    """
    variance, mean = u.q - u.mean**2, u.mean
    if variance <= 0 or u.segmented:
        return 0.0
    both = Function(lambda v: (v - mean) * f.fn(v), f.kinks)
    return float(function_moments(both, replace(u, law=None))[0].flat[0]) / variance
