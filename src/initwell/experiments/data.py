"""Images and labels: the embedded MNIST-5k, idx and CIFAR-10 files, arrays and DataLoaders. No pickle is ever read."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from initwell.errors import ArgumentError, DataFormatError, UnknownNameError
from initwell.experiments import cifar, idx

EMBEDDED = "mnist-5k"
_FILE = "mnist5k.npz"
# More classes than any data set has: a label above is something else, such as an ID or a missing value.
MOST_CLASSES = 1_000_000


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and labels, as they were read.

    Attributes:
        name: what to call it in tables.
        train_x: (N, *shape) uint8 in 0..255, or float32.
        train_y: (N,) int64 class numbers.
        test_x: (M, *shape), of the type of ``train_x``.
        test_y: (M,) int64.
        classes: the names of the classes, by number.
    """

    name: str
    train_x: NDArray[Any]
    train_y: NDArray[np.int64]
    test_x: NDArray[Any]
    test_y: NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample; (C, H, W) for images."""
        return tuple(self.train_x.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every sample and label, so that kept runs know their data."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def subset(self, train: int | None = None, test: int | None = None) -> "Dataset":
        """Keep the first samples of each class, in equal numbers, in their order.

        Args:
            train: how many training samples to keep, or None for all.
            test: how many test samples to keep, or None for all.

        Returns:
            The smaller data set; its name says how many.

        Raises:
            ArgumentError: a class has too few samples, or the number is below one a class.

        >>> load("mnist-5k").subset(train=200, test=50).train_x.shape
        (200, 1, 28, 28)
        """
        kept_train = _balanced("train", self.train_y, train, len(self.classes))
        kept_test = _balanced("test", self.test_y, test, len(self.classes))
        return replace(
            self,
            name=f"{self.name}[{len(kept_train)}+{len(kept_test)}]",
            train_x=self.train_x[kept_train],
            train_y=self.train_y[kept_train],
            test_x=self.test_x[kept_test],
            test_y=self.test_y[kept_test],
        )


def _balanced(argument: str, labels: NDArray[np.int64], count: int | None, classes: int) -> NDArray[np.int64]:
    if count is None:
        return np.arange(len(labels))
    if count < classes or count > len(labels):
        raise ArgumentError(argument, count, f"Ask for {classes} to {len(labels)} samples.")
    wanted = [count // classes + (k < count % classes) for k in range(classes)]
    places = [np.flatnonzero(labels == k)[:n] for k, n in enumerate(wanted)]
    for k, (place, n) in enumerate(zip(places, wanted, strict=True)):
        if len(place) < n:
            raise ArgumentError(argument, count, f"Class {k} has only {len(place)} samples, {n} are needed.")
    return np.sort(np.concatenate(places))


def load(source: str | Path) -> Dataset:
    """Load the embedded images, or a folder of idx or CIFAR-10 binary files.

    Args:
        source: ``"mnist-5k"``, or a folder; which of the two layouts it holds is seen from the file names.

    Returns:
        The data set.

    Raises:
        UnknownNameError: neither a known name nor a folder.
        DataFormatError: the folder holds neither layout, or a file is truncated or mislabelled.

    >>> load("mnist-5k").train_x.shape
    (5000, 1, 28, 28)
    """
    if source == EMBEDDED:
        return _load_embedded()
    if not isinstance(source, (str, Path)):
        raise ArgumentError("data", f"a {type(source).__name__}", f"Give {EMBEDDED!r} or a folder.")
    directory = Path(source)
    if not directory.is_dir():
        if directory.exists():
            raise ArgumentError("data", str(source), "Name the folder that holds the files, not one file.")
        if "/" in str(source):
            raise ArgumentError("data", str(source), f"There is no such folder; the embedded data is {EMBEDDED!r}.")
        near = UnknownNameError.among("data", str(source), [EMBEDDED])
        cure = f"There is no folder of that name. {near.cure}"
        raise UnknownNameError("data", repr(str(source)), cure)
    has_cifar = bool(cifar.training_files(directory))
    has_idx = any(idx.find_idx(directory, part, what) for part in ("train", "test") for what in ("images", "labels"))
    if has_cifar and has_idx:
        raise DataFormatError(
            f"{directory}: holds idx files and CIFAR-10 files. Put each data set into its own folder."
        )
    if has_cifar:
        return _load_cifar(directory)
    if has_idx:
        return _load_idx(directory)
    raise DataFormatError(
        f"{directory}: holds neither idx files (train-images-idx3-ubyte.gz, …) nor CIFAR-10 binary files "
        "(data_batch_1.bin, …, test_batch.bin). Name the folder that holds them; Python pickles are not read."
    )


def _load_embedded() -> Dataset:
    with resources.files("initwell.experiments").joinpath(_FILE).open("rb") as stream:
        kept = np.load(stream, allow_pickle=False)
        arrays = {name: kept[name] for name in ("train_x", "train_y", "test_x", "test_y")}
    return Dataset(
        EMBEDDED,
        arrays["train_x"][:, None],
        arrays["train_y"].astype(np.int64),
        arrays["test_x"][:, None],
        arrays["test_y"].astype(np.int64),
        tuple("0123456789"),
    )


def _load_idx(directory: Path) -> Dataset:
    train_x, train_y = idx.read_idx_part(directory, "train")
    test_x, test_y = idx.read_idx_part(directory, "test")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise DataFormatError(
            f"{directory}: training images are {train_x.shape[2:]}, test images {test_x.shape[2:]}. "
            "The files are of two data sets."
        )
    return Dataset(directory.resolve().name, train_x, train_y, test_x, test_y, tuple("0123456789"))


def _load_cifar(directory: Path) -> Dataset:
    test = directory / "test_batch.bin"
    if not test.is_file():
        raise DataFormatError(f"{directory}: has no test_batch.bin. Put it beside the data_batch_*.bin files.")
    files = cifar.training_files(directory)
    missing = [
        f"data_batch_{k}.bin" for k in range(1, len(files) + 1) if directory / f"data_batch_{k}.bin" not in files
    ]
    if missing:
        raise DataFormatError(f"{directory}: has no {missing[0]}, but later ones. Put it back, or number them from 1.")
    batches = [cifar.read_batch(path) for path in files]
    train_x = np.concatenate([images for images, _ in batches])
    train_y = np.concatenate([labels for _, labels in batches])
    test_x, test_y = cifar.read_batch(test)
    return Dataset(directory.resolve().name, train_x, train_y, test_x, test_y, cifar.read_names(directory))


def from_arrays(
    train: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike],
    *,
    name: str = "arrays",
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Make a data set from arrays or CPU tensors.

    Args:
        train: samples (N, …) as uint8 or floats, and labels (N,) as integers from 0.
        test: the same for the test part.
        name: what to call it.
        classes: names by number; numbered where left out.

    Returns:
        The data set; floats are kept as float32.

    Raises:
        ArgumentError: NaN or infinite samples, labels that are no class numbers, or lengths that differ.

    >>> import numpy as np
    >>> x, y = np.zeros((4, 3)), np.array([0, 1, 0, 1])
    >>> from_arrays((x, y), (x, y)).shape
    (3,)
    """
    for part, pair in (("train", train), ("test", test)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ArgumentError(part, f"a {type(pair).__name__}", "Give a pair (samples, labels).")
    train_x, train_y = _samples("train", train[0]), _labels("train", train[1])
    test_x, test_y = _samples("test", test[0]), _labels("test", test[1])
    for part, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if len(x) != len(y):
            raise ArgumentError(part, f"{len(x)} samples and {len(y)} labels", "Give one label for each sample.")
    if train_x.shape[1:] != test_x.shape[1:] or train_x.dtype != test_x.dtype:
        got = f"{test_x.dtype} samples of shape {test_x.shape[1:]}"
        raise ArgumentError("test", got, f"The training samples are {train_x.dtype} of shape {train_x.shape[1:]}.")
    count = int(max(train_y.max(), test_y.max())) + 1
    names = tuple(classes) if classes is not None else tuple(str(k) for k in range(count))
    if len(names) < count:
        raise ArgumentError("classes", f"{len(names)} names", f"Labels run up to {count - 1}: name {count} classes.")
    return Dataset(name, train_x, train_y, test_x, test_y, names)


def _array(part: str, values: Any) -> NDArray[Any]:
    # Tensors are taken as they come: on any device, needing a gradient, in bfloat16.
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ArgumentError(part, f"a sequence that is no array ({error})", "Give arrays of equal rows.") from error


def _samples(part: str, values: ArrayLike) -> NDArray[Any]:
    array = _array(part, values)
    if array.ndim < 2 or array.size == 0:
        raise ArgumentError(part, f"samples of shape {array.shape}", "Give samples along the first axis, (N, …).")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "fiu":
        raise ArgumentError(part, f"samples of type {array.dtype}", "Give uint8 or floating-point numbers.")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if bad.size:
        got = f"NaN or infinite values (as float32) in {bad.size} samples, the first at index {bad[0]}"
        raise ArgumentError(part, got, "Remove or mend these samples before training.")
    return array


def _labels(part: str, values: ArrayLike) -> NDArray[np.int64]:
    array = _array(part, values)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.size == 0:
        got = f"labels of shape {array.shape} and type {array.dtype}"
        raise ArgumentError(part, got, "Give one integer class number for each sample, (N,).")
    if array.min() < 0 or array.max() >= MOST_CLASSES:
        wrong = array.min() if array.min() < 0 else array.max()
        raise ArgumentError(part, f"the label {wrong}", f"Number the classes from 0, fewer than {MOST_CLASSES:,}.")
    return array.astype(np.int64)


def from_loaders(train: Iterable[Any], test: Iterable[Any], *, name: str = "loaders") -> Dataset:
    """Make a data set by going once through two DataLoaders of (samples, labels) batches.

    Args:
        train: yields (samples (B, …), labels (B,)).
        test: the same for the test part.
        name: what to call it.

    Returns:
        The data set, held in memory; random augmentation is frozen as it was drawn.

    Raises:
        ArgumentError: a batch is no pair, or as for ``from_arrays``.
    """
    # A DataLoader draws its worker seed, and a shuffling one its order, from the global generators.
    from initwell.trace.keep import random_kept

    with random_kept():
        parts = [_collected("train", train), _collected("test", test)]
    return from_arrays(parts[0], parts[1], name=name)


def _collected(part: str, loader: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    if not isinstance(loader, Iterable):
        raise ArgumentError(part, f"a {type(loader).__name__}", "Give a DataLoader, or what else yields batches.")
    samples, labels = [], []
    for batch in loader:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ArgumentError(part, f"batches of type {type(batch).__name__}", "Yield (samples, labels) pairs.")
        samples.append(_array(part, batch[0]))
        labels.append(_array(part, batch[1]))
    if not samples:
        raise ArgumentError(part, "no batches", "Give a loader that yields at least one.")
    shapes = sorted({array.shape[1:] for array in samples})
    if len(shapes) > 1:
        raise ArgumentError(part, f"samples of shapes {shapes}", "Bring them to one shape first.")
    return np.concatenate(samples), np.concatenate(labels)
