"""The zoo's models of images on real ones: neighbours alike, samples of unlike contrast, dark backgrounds."""

from functools import lru_cache

import torch
from torch import Tensor

from initwell.experiments.data import load
from predict_bench.zoo.catalogue import catalogue
from predict_bench.zoo.entry import BATCH, Entry, Zoo

_SMALLEST = 16


def zoo(source: str) -> Zoo:
    """Return name → entry of those models that take images of one or three channels.

    Args:
        source: "mnist-5k", or a folder of idx or CIFAR-10 binary files.
    """
    found = {}
    for name, entry in catalogue().items():
        batch = entry.batch()
        shape = tuple(batch.shape) if isinstance(batch, Tensor) else ()
        if len(shape) == 4 and shape[1] in (1, 3) and min(shape[2:]) >= _SMALLEST:
            found[f"{name} on images"] = _shown(entry, shape, source)
    return found


def _shown(entry: Entry, shape: tuple[int, ...], source: str) -> Entry:
    return Entry(entry.build, lambda: pictures(source, shape))


@lru_cache(maxsize=8)
def pictures(source: str, shape: tuple[int, ...]) -> Tensor:
    """Return the first training images, each channel standardized over all, resized to (N, C, H, W).

    >>> batch = pictures("mnist-5k", (16, 3, 32, 32))
    >>> tuple(batch.shape), round(float(batch.std()), 2)
    ((16, 3, 32, 32), 1.0)
    """
    images = torch.from_numpy(load(source).train_x[:BATCH].astype("float32"))
    images = torch.nn.functional.interpolate(images, shape[2:], mode="bilinear", antialias=True)
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    return images.expand(-1, shape[1], -1, -1).contiguous()
