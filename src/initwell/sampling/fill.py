"""Fill any slice of any tensor: the one way in which initwell draws."""

import math

import numpy as np
from numpy.typing import NDArray

from initwell.errors import ArgumentError
from initwell.initializers.distributions import Distribution
from initwell.sampling.stream import PhiloxStream

# Entries drawn at a time: the dozen float64 arrays in use then stay in a core's cache, and memory small.
CHUNK = 1 << 15


def fill(
    distribution: Distribution, shape: tuple[int, ...], *, seed: int, name: str, start: int = 0, stop: int | None = None
) -> NDArray[np.float32]:
    """Draw a tensor, or a flat slice of it; an entry depends on the seed, the name and its index only.

    Args:
        distribution: what to draw.
        shape: the whole tensor's shape.
        seed: a whole number from 0 to 2**64 − 1.
        name: the parameter's name.
        start: flat index, in C order, of the first entry.
        stop: flat index after the last; None for the end.

    Returns:
        float32: the whole tensor in its shape where start and stop are left out, else the (stop − start,) flat slice.

    Raises:
        ArgumentError: no such seed or slice.
        ShapeError: the distribution cannot be drawn in that shape.

    >>> from initwell.initializers.distributions import Normal
    >>> whole = fill(Normal(), (2, 3), seed=0, name="weight")
    >>> part = fill(Normal(), (2, 3), seed=0, name="weight", start=3, stop=5)
    >>> bool((whole[1, :2] == part).all())
    True
    """
    shape = tuple(int(n) for n in shape)
    distribution.check_shape(shape)
    size = math.prod(shape)
    end = size if stop is None else stop
    if not 0 <= start <= end <= size:
        raise ArgumentError("start, stop", (start, stop), f"Give 0 <= start <= stop <= {size} for shape {shape}.")
    stream = PhiloxStream(seed, (name,))
    step = CHUNK if distribution.elementwise else max(end - start, 1)
    values = np.empty(end - start, np.float32)
    for first in range(start, end, step):
        last = min(first + step, end)
        values[first - start : last - start] = distribution.draw_slice(stream, first, last)
    return values.reshape(shape) if start == 0 and stop is None else values
