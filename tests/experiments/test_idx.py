"""idx files: what is read is what was written, and every kind of damage is named."""

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from initwell.errors import DataFormatError
from initwell.experiments.data import load
from initwell.experiments.idx import read_idx


def idx_bytes(array: NDArray[np.uint8], kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, suffix: str = ".gz", changed: Mapping[str, bytes] | None = None) -> Path:
    """Write four small idx files; ``changed`` replaces the content of one, by name with underscores."""
    changed = changed or {}
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for what, array, axes in (("images", images, 3), ("labels", labels, 1)):
            content = changed.get(f"{part}_{what}", idx_bytes(array))
            packed = gzip.compress(content) if suffix else content
            (folder / f"{part}-{what}-idx{axes}-ubyte{suffix}").write_bytes(packed)
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_was_written_is_read(tmp_path: Path, suffix: str) -> None:
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(array)) if suffix else idx_bytes(array))
    assert np.array_equal(read_idx(path), array)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_is_recognized(tmp_path: Path, suffix: str) -> None:
    data = load(write_mnist(tmp_path, suffix))
    assert data.train_x.shape == (20, 1, 5, 4)
    assert data.test_x.shape == (10, 1, 5, 4)
    assert data.train_y.tolist() == [k % 10 for k in range(20)]


WHOLE = idx_bytes(np.zeros((20, 5, 4), np.uint8))
BAD_LABEL = np.zeros(20, np.uint8)
BAD_LABEL[7] = 10


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train_images", WHOLE[:-1], r"20×5×4 = 400 bytes, the file holds only 399"),
        ("train_images", WHOLE + b"x", "the file holds more"),
        ("train_images", WHOLE[:6], "ends inside its header"),
        ("train_images", b"", "the first four bytes are missing"),
        ("train_images", b"\x80\x04]q", "the first four bytes are 80 04 5d 71"),
        ("train_images", idx_bytes(np.zeros((20, 5, 4), np.uint8), kind=13), "the first four bytes are 00 00 0d 03"),
        ("train_images", idx_bytes(np.zeros((0, 5, 4), np.uint8)), "holds nothing"),
        ("train_images", b"\0\0\x08\x03" + struct.pack(">3I", *[2**32 - 1] * 3), "the file holds only 0"),
        ("train_images", idx_bytes(np.zeros(20, np.uint8)), "has 1 axes where 3 were expected"),
        ("train_labels", idx_bytes(np.zeros(19, np.uint8)), "19 labels for the 20 images"),
        ("train_labels", idx_bytes(BAD_LABEL), "label 10 at position 7; labels run from 0 to 9"),
        ("t10k_images", idx_bytes(np.zeros((10, 6, 4), np.uint8)), "of two data sets"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    write_mnist(tmp_path, changed={name: content})
    with pytest.raises(DataFormatError, match=said) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    path = write_mnist(tmp_path) / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataFormatError, match=r"train-images-idx3-ubyte.gz: cannot be read"):
        load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (write_mnist(tmp_path) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataFormatError, match=r"has no t10k-labels-idx1-ubyte"):
        load(tmp_path)
