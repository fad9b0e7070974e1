"""Deep plain stacks in NumPy, y = W·φ(x) again and again, and the second moments that travel through them.

No biases, no normalization: the object that the variance formulas speak of. Weights come from the package's own
initializers and its sampler; training claims use real modules instead.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from initwell.initializers.base import Initializer
from initwell.initializers.distributions import Normal
from initwell.initializers.layout import Layout
from initwell.sampling.fill import fill
from initwell.theory.activations import activation as find_activation
from initwell.theory.chain import Chain, ChainLayer, chain

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Moments:
    """Second moments through one stack, each a tuple with one entry per layer, first layer first.

    Attributes:
        forward: E[y²] of each layer's output before φ.
        spread: mean over units of the variance over images of the same: what still tells two images apart.
        backward: E[g²] of the gradient that reaches each layer's input, from N(0, 1) at the last layer's output.
    """

    forward: tuple[float, ...]
    spread: tuple[float, ...]
    backward: tuple[float, ...]


def draw_weights(widths: Sequence[int], initializer: Initializer, seed: int) -> list[Array]:
    """Draw the (out, in) weights of a plain stack whose successive widths are ``widths``, input first."""
    weights = []
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        layout = Layout.of((fan_out, fan_in))
        distribution = initializer.recipe(layout).distribution
        weights.append(fill(distribution, layout.shape, seed=seed, name=f"layers.{layer}.weight"))
    return weights


def rescaled(weights: Sequence[Array], drawn_by: Initializer, wanted: Initializer) -> list[Array]:
    """Return the weights that another zero-mean rule of the same kind would have drawn from the same numbers.

    The same seed and names give both rules the same normal numbers, so one draw serves all, up to float32 rounding.
    """
    return [
        w * np.float32(math.sqrt(weight_variance(wanted, *w.shape[::-1]) / weight_variance(drawn_by, *w.shape[::-1])))
        for w in weights
    ]


def run_stack(weights: Sequence[Array], phi: str, x: Array, seed: int) -> Moments:
    """Push images forward and an independent unit gradient backward through a plain stack.

    Args:
        weights: one (out, in) matrix a layer.
        phi: the activation's name; it follows every layer but the last.
        x: images, shape (samples, widths[0]).
        seed: of the gradient that starts the backward pass.

    Returns:
        The second moments of every layer, in float64 from float32 passes, so that underflow shows as it would in use.
    """
    act = find_activation(phi)
    outputs: list[Array] = []
    h = x
    for weight in weights:
        outputs.append(h @ weight.T)
        h = act.fn(outputs[-1].astype(np.float64)).astype(np.float32)
    g = fill(Normal(0.0, 1.0), outputs[-1].shape, seed=seed, name="cotangent")
    backward = []
    for layer in reversed(range(len(weights))):
        g = g @ weights[layer]
        backward.append(second_moment(g))
        if layer:
            g = (g * act.derivative(outputs[layer - 1].astype(np.float64))).astype(np.float32)
    spread = tuple(float(np.var(y.astype(np.float64), axis=0).mean()) for y in outputs)
    return Moments(tuple(second_moment(y) for y in outputs), spread, tuple(reversed(backward)))


def weight_variance(initializer: Initializer, fan_in: int, fan_out: int) -> float:
    """Return the variance an initializer gives the entries of an (out, in) matrix."""
    return float(initializer.recipe(Layout.of((fan_out, fan_in))).distribution.std ** 2)


def second_moment(x: Array) -> float:
    """Return E[x²] over all entries, summed in float64."""
    return float(np.mean(np.square(x, dtype=np.float64)))


def chain_of(widths: Sequence[int], initializer: Initializer, phi: str, q0: float) -> Chain:
    """Return the chain formula's prediction for the stack that ``draw_weights`` and ``run_stack`` make."""
    layers = []
    pairs = list(pairwise(widths))
    for layer, (fan_in, fan_out) in enumerate(pairs, start=1):
        follows = phi if layer < len(pairs) else "identity"
        layers.append(ChainLayer(fan_in, fan_out, weight_variance(initializer, fan_in, fan_out), activation=follows))
    return chain(layers, q0=q0)
