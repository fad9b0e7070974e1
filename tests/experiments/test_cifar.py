"""CIFAR-10's binary layout: what is read is what was written, and every kind of damage is named."""

from pathlib import Path

import numpy as np
import pytest

from initwell.errors import DataFormatError
from initwell.experiments.cifar import RECORD, read_batch, training_files
from initwell.experiments.data import load


def records(count: int, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 256, (count, RECORD), dtype=np.uint8)
    table[:, 0] = np.arange(count) % 10
    return table.tobytes()


def write_cifar(folder: Path, batches: int = 2, count: int = 10) -> Path:
    for k in range(1, batches + 1):
        (folder / f"data_batch_{k}.bin").write_bytes(records(count, k))
    (folder / "test_batch.bin").write_bytes(records(count, 0))
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n", encoding="utf-8")
    return folder


def test_pixels_and_labels_stand_where_they_were(tmp_path: Path) -> None:
    data = load(write_cifar(tmp_path, batches=3))
    assert data.train_x.shape == (30, 3, 32, 32)
    assert data.classes == tuple("abcdefghij")
    raw = (tmp_path / "data_batch_2.bin").read_bytes()
    # Record 4 of the second file: channel 2, row 1, column 3 lies at 1 + 2·1024 + 1·32 + 3.
    assert data.train_x[14, 2, 1, 3] == raw[4 * RECORD + 1 + 2 * 1024 + 32 + 3]
    assert data.train_y[14] == raw[4 * RECORD]


def test_files_are_taken_by_number(tmp_path: Path) -> None:
    for k in (10, 2, 1):
        (tmp_path / f"data_batch_{k}.bin").touch()
    (tmp_path / "data_batch_x.bin").touch()
    assert [p.stem for p in training_files(tmp_path)] == ["data_batch_1", "data_batch_2", "data_batch_10"]


@pytest.mark.parametrize("content", [b"", records(2)[:-1], records(1) + b"x"])
def test_a_broken_record_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=rf"data_batch_1.bin: {len(content)} bytes are not a whole number"):
        read_batch(path)


def test_a_label_out_of_range_is_named(tmp_path: Path) -> None:
    content = bytearray(records(5))
    content[3 * RECORD] = 77
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match="record 3 has the label 77"):
        read_batch(path)


def test_a_gap_between_the_training_batches_is_named(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_9.bin").write_bytes(records(2))
    with pytest.raises(DataFormatError, match=r"has no data_batch_\d\.bin, but later ones"):
        load(tmp_path)


def test_two_layouts_in_one_folder_are_refused(tmp_path: Path) -> None:
    (write_cifar(tmp_path) / "train-images-idx3-ubyte").touch()
    with pytest.raises(DataFormatError, match="idx files and CIFAR-10 files"):
        load(tmp_path)


def test_a_missing_test_batch_is_named(tmp_path: Path) -> None:
    (write_cifar(tmp_path) / "test_batch.bin").unlink()
    with pytest.raises(DataFormatError, match=r"has no test_batch\.bin"):
        load(tmp_path)


def test_wrong_class_names_are_named(tmp_path: Path) -> None:
    (write_cifar(tmp_path) / "batches.meta.txt").write_text("one\ntwo\n", encoding="utf-8")
    with pytest.raises(DataFormatError, match=r"batches.meta.txt: 2 names, ten are expected"):
        load(tmp_path)


def test_without_names_the_classes_are_numbered(tmp_path: Path) -> None:
    (write_cifar(tmp_path) / "batches.meta.txt").unlink()
    assert load(tmp_path).classes == tuple("0123456789")
