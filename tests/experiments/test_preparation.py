"""Preparations: the moments they promise, from the training samples alone."""

import numpy as np
import pytest
import torch

from initwell.errors import UnknownNameError
from initwell.experiments.data import Dataset, from_arrays, load
from initwell.experiments.preparation import FLOOR, prepared


@pytest.fixture(scope="module")
def images() -> Dataset:
    return load("mnist-5k").subset(train=1000, test=100)


def correlated(count: int = 4000, seed: int = 3) -> Dataset:
    rng = np.random.default_rng(seed)
    mixing = np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.5, -0.5, 0.7]])
    x = rng.standard_normal((count, 3)) @ mixing.T + [1.0, -2.0, 3.0]
    return from_arrays((x, np.arange(count) % 2), (x[:10] + 100.0, np.arange(10) % 2))


def test_raw_and_scale(images: Dataset) -> None:
    raw, scaled = prepared(images, "raw"), prepared(images, "scale")
    assert raw.train_x.max() == 255
    assert torch.allclose(scaled.train_x * 255, raw.train_x)
    assert raw.train_x.dtype == torch.float32
    assert raw.train_y.dtype == torch.int64


def test_floats_are_scaled_by_the_largest_training_value() -> None:
    data = prepared(correlated(), "scale")
    assert data.train_x.abs().max() == 1
    assert data.test_x.abs().max() > 1


def test_standardize_is_per_channel() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((50, 2, 6, 6)) * np.array([3.0, 0.1])[:, None, None] + 5).astype(np.float32)
    data = prepared(from_arrays((x, np.zeros(50, int)), (x, np.zeros(50, int))), "standardize")
    assert torch.allclose(data.train_x.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(data.train_x.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-4)


def test_a_pixel_that_never_changes_becomes_zero(images: Dataset) -> None:
    for how in ("standardize-pixel", "whiten"):
        data = prepared(images, how)
        assert torch.isfinite(data.train_x).all()
        assert data.train_x[:, 0, 0, 0].abs().max() < 1e-6


def test_pixels_of_little_variance_are_not_blown_up(images: Dataset) -> None:
    # A pixel value lies at most 255 from its mean; the floor bounds what it can be divided by.
    variance = images.train_x.astype(np.float64).var(axis=0).mean()
    assert prepared(images, "standardize-pixel").test_x.abs().max() < 255 / np.sqrt(FLOOR * variance)


@pytest.mark.parametrize("how", ["whiten", "whiten-pca"])
def test_whitening_uncorrelates(how: str) -> None:
    # Eigenvalues of the covariance are 5.3, 0.9 and 0.4; the floor of 1 % of their mean leaves the least 5 % short.
    data = prepared(correlated(), how)
    covariance = torch.cov(data.train_x.T)
    assert torch.allclose(covariance, torch.eye(3), atol=0.06)
    off = covariance - torch.diag(covariance.diag())
    assert off.abs().max() < (0.03 if how == "whiten" else 1e-3)
    assert abs(float((data.train_x**2).mean()) - 1) < 1e-5


def test_zca_stays_closest_to_the_pixels_and_pca_sorts() -> None:
    source = correlated()
    centred = torch.tensor(source.train_x - source.train_x.mean(0))
    zca, pca = prepared(source, "whiten").train_x, prepared(source, "whiten-pca").train_x
    # ZCA is the rotation of a whitening that moves the samples least, so the symmetric one: cov(x, zca) is symmetric.
    cross = centred.T @ zca / len(zca)
    assert torch.allclose(cross, cross.T, atol=1e-3)
    strength = (centred.T @ pca / len(pca)).norm(dim=0)
    assert strength[0] > strength[1] > strength[2]


@pytest.mark.parametrize("how", ["standardize", "standardize-pixel", "whiten", "whiten-pca"])
def test_the_test_samples_have_no_say(how: str) -> None:
    source = correlated()
    moved = from_arrays((source.train_x, source.train_y), (source.test_x * 7, source.test_y))
    assert torch.equal(prepared(source, how).train_x, prepared(moved, how).train_x)
    # The test samples lie 100 from the training mean, and stay far.
    assert prepared(source, how).test_x.abs().mean() > 10


def test_unknown_preparation(images: Dataset) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'whiten'"):
        prepared(images, "whitened")
