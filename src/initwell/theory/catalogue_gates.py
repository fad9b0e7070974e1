"""The GLU family: one half of the input times an activation of the other half."""

import numpy as np

from initwell.errors import ShapeError
from initwell.theory.activation import Activation, Array
from initwell.theory.catalogue_piecewise import identity, relu
from initwell.theory.catalogue_smooth import gelu, gelu_tanh, sigmoid, silu

_DAUPHIN = "Dauphin, Fan, Auli & Grangier, ICML 2017"
_SHAZEER = "Shazeer, GLU variants improve transformer, arXiv:2002.05202"


def _halves(x: Array) -> tuple[Array, Array]:
    if x.ndim == 0 or x.shape[-1] % 2:
        raise ShapeError("x", f"shape {x.shape}", "A gate splits the last axis in two halves, so it must be even.")
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def gated(name: str, gate: Activation, citation: str) -> Activation:
    """Build the gate a·ψ(b) from ψ; a is the first half of the last axis and b the second, as in ``nn.GLU``.

    Args:
        name: canonical name.
        gate: ψ.
        citation: where it comes from.

    Returns:
        The gate. Its moments are those of ψ: the two halves come from different rows of fresh weights, and so are
        independent.

    >>> glu().fn(np.array([3.0, 0.0]))
    array([1.5])
    """

    def fn(x: Array) -> Array:
        a, b = _halves(x)
        return a * gate.fn(b)

    def derivative(x: Array) -> Array:
        a, b = _halves(x)
        return np.concatenate([gate.fn(b), a * gate.derivative(b)], axis=-1)

    return Activation(name=name, fn=fn, derivative=derivative, citation=citation, gate=gate)


def glu() -> Activation:
    """Gated linear unit, a·sigmoid(b)."""
    return gated("glu", sigmoid(), _DAUPHIN)


def bilinear() -> Activation:
    """Bilinear gate, a·b."""
    return gated("bilinear", identity(), _DAUPHIN)


def reglu() -> Activation:
    """ReLU gate, a·relu(b)."""
    return gated("reglu", relu(), _SHAZEER)


def geglu() -> Activation:
    """GELU gate, a·gelu(b)."""
    return gated("geglu", gelu(), _SHAZEER)


def geglu_tanh() -> Activation:
    """Gate by the tanh approximation of GELU, as in Gemma and T5 v1.1."""
    return gated("geglu_tanh", gelu_tanh(), _SHAZEER)


def swiglu() -> Activation:
    """SiLU gate, a·silu(b)."""
    return gated("swiglu", silu(), _SHAZEER)


ENTRIES = {
    "glu": glu,
    "bilinear": bilinear,
    "reglu": reglu,
    "geglu": geglu,
    "geglu_tanh": geglu_tanh,
    "swiglu": swiglu,
}
