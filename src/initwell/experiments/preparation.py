"""From pixels to what a network is fed; whatever is estimated is estimated on the training samples alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from initwell.errors import UnknownNameError
from initwell.experiments.data import Dataset

# Added to the variance of each pixel or component, as a share of their mean: MNIST's border pixels have none.
FLOOR = 1e-2


@dataclass(frozen=True, eq=False)
class Prepared:
    """A data set as float tensors, ready for training.

    Attributes:
        name: the data set's name.
        preparation: what was done to it.
        train_x: (N, *shape) float32.
        train_y: (N,) int64.
        test_x: (M, *shape) float32.
        test_y: (M,) int64.
        classes: number of classes.
        fingerprint: the data set's hash.
    """

    name: str
    preparation: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    fingerprint: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.train_x.shape[1:])


Pair = tuple[NDArray[Any], NDArray[Any]]


def _raw(train: NDArray[Any], test: NDArray[Any]) -> Pair:
    return train, test


def _scale(train: NDArray[Any], test: NDArray[Any]) -> Pair:
    top = 255.0 if train.dtype == np.uint8 else float(np.abs(train).max()) or 1.0
    return train / np.float32(top), test / np.float32(top)


def _standardized(train: NDArray[Any], test: NDArray[Any], axes: tuple[int, ...]) -> Pair:
    mean = train.mean(axis=axes, keepdims=True, dtype=np.float64)
    std = train.std(axis=axes, keepdims=True, dtype=np.float64)
    # A pixel that never changes carries nothing: it becomes 0, not a division by 0.
    std[std == 0] = 1.0
    return (train - mean) / std, (test - mean) / std


def _standardize(train: NDArray[Any], test: NDArray[Any]) -> Pair:
    # (N, features) has no channels: every feature is its own.
    return _standardized(train, test, (0, *range(2, train.ndim)))


def _standardize_pixel(train: NDArray[Any], test: NDArray[Any]) -> Pair:
    mean = train.mean(axis=0, dtype=np.float64)
    variance = train.var(axis=0, dtype=np.float64)
    # Without the floor a border pixel that is set in one image only would come out hundreds of units large.
    std = np.sqrt(variance + FLOOR * (float(variance.mean()) or 1.0))
    return (train - mean) / std, (test - mean) / std


def _whitener(flat: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the eigenvectors (features, features) of the covariance, largest first, and 1/√ of its eigenvalues."""
    covariance = flat.T @ flat / len(flat)
    values, vectors = np.linalg.eigh(covariance)
    floor = FLOOR * max(float(values.mean()), np.finfo(np.float64).tiny)
    return vectors[:, ::-1], 1.0 / np.sqrt(np.maximum(values[::-1], 0.0) + floor)


def _whitened(train: NDArray[Any], test: NDArray[Any], zca: bool) -> Pair:
    flat_train = train.reshape(len(train), -1).astype(np.float64)
    flat_test = test.reshape(len(test), -1).astype(np.float64)
    mean = flat_train.mean(axis=0)
    vectors, inverse = _whitener(flat_train - mean)
    rotation = vectors * inverse
    if zca:
        rotation = rotation @ vectors.T
    out_train, out_test = (flat_train - mean) @ rotation, (flat_test - mean) @ rotation
    # The floor and the constant pixels leave less than one unit of variance in all; give it back by one factor.
    size = np.sqrt(np.mean(out_train**2)) or 1.0
    return (out_train / size).reshape(train.shape), (out_test / size).reshape(test.shape)


def _zca(train: NDArray[Any], test: NDArray[Any]) -> Pair:
    return _whitened(train, test, zca=True)


def _pca(train: NDArray[Any], test: NDArray[Any]) -> Pair:
    return _whitened(train, test, zca=False)


_PREPARATIONS: dict[str, Callable[[NDArray[Any], NDArray[Any]], Pair]] = {
    "raw": _raw,
    "scale": _scale,
    "standardize": _standardize,
    "standardize-pixel": _standardize_pixel,
    "whiten": _zca,
    "whiten-pca": _pca,
}


def preparation_names() -> tuple[str, ...]:
    """List the preparations."""
    return tuple(_PREPARATIONS)


def prepared(dataset: Dataset, how: str = "standardize") -> Prepared:
    """Turn a data set into float32 tensors.

    Args:
        dataset: what was loaded.
        how: ``raw`` (0..255 as they are), ``scale`` (into 0..1; floats are divided by the largest training magnitude),
            ``standardize`` (mean 0, variance 1 per channel, or per feature of flat samples), ``standardize-pixel``
            (per pixel, its variance raised as below), ``whiten`` (ZCA: uncorrelated pixels that still look like the
            image), ``whiten-pca`` (principal components, largest first, in the place of pixels).

    Returns:
        The tensors; means, variances and rotations come from the training samples alone. Whitening adds
        ``FLOOR`` times the mean eigenvalue to each, and scales to a second moment of 1.

    Raises:
        UnknownNameError: no such preparation.

    Source: LeCun, Bottou, Orr and Müller (1998), "Efficient BackProp", section 4.3.

    >>> from initwell.experiments.data import load
    >>> data = prepared(load("mnist-5k"), "standardize")
    >>> f"{data.train_x.std(correction=0):.3f}"
    '1.000'
    """
    if how not in _PREPARATIONS:
        raise UnknownNameError.among("preparation", how, _PREPARATIONS)
    train_x, test_x = _PREPARATIONS[how](dataset.train_x, dataset.test_x)
    return Prepared(
        name=dataset.name,
        preparation=how,
        train_x=torch.tensor(train_x, dtype=torch.float32),
        train_y=torch.tensor(dataset.train_y),
        test_x=torch.tensor(test_x, dtype=torch.float32),
        test_y=torch.tensor(dataset.test_y),
        classes=len(dataset.classes),
        fingerprint=dataset.fingerprint,
    )
