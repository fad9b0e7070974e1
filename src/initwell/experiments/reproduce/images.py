"""Real images as a matrix, for the claims that measure without training."""

import numpy as np
from numpy.typing import NDArray

from initwell.experiments.reproduce.claim import Settings


def flat_images(settings: Settings, how: str, count: int) -> NDArray[np.float64]:
    """Return training images of the settings' data, ``count`` at most, flattened to (count, pixels).

    Args:
        settings: says which data.
        how: the preparation, such as ``standardize`` or ``scale``.
        count: how many, balanced by class.
    """
    x = settings.prepared(how, train=count).train_x.numpy().astype(np.float64)
    return x.reshape(len(x), -1)


def of_unit_rms(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale every image to a mean square of 1 over its own pixels, so that one q describes them all.

    >>> of_unit_rms(np.array([[3.0, 4.0]])) ** 2 @ [0.5, 0.5]
    array([1.])
    """
    return np.asarray(x / np.sqrt(np.mean(x**2, axis=1, keepdims=True)))
