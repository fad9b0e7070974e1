"""Data sets: the embedded one, folders, arrays, loaders, subsets; nothing unusable gets through, no generator moves."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from initwell.errors import ArgumentError, DataFormatError, UnknownNameError
from initwell.experiments.data import Dataset, from_arrays, from_loaders, load


def tiny(count: int = 8, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    return np.linspace(-1, 1, count * 3).reshape(count, 3), np.arange(count) % classes


def test_the_embedded_images_are_balanced_and_whole() -> None:
    data = load("mnist-5k")
    assert np.bincount(data.train_y).tolist() == [500] * 10
    assert np.bincount(data.test_y).tolist() == [100] * 10
    assert data.train_x.dtype == np.uint8
    assert data.shape == (1, 28, 28)
    # The mean grey of MNIST is 33.3 (0.1307 of 255); a subset of 5,000 lies within 1 %.
    assert abs(float(data.train_x.mean()) / 33.3 - 1) < 0.01


def test_no_test_image_is_a_training_image() -> None:
    data = load("mnist-5k")
    assert not {x.tobytes() for x in data.train_x} & {x.tobytes() for x in data.test_x}


def test_the_script_rebuilds_the_same_choice(tmp_path: Path) -> None:
    # The rule of scripts/build_mnist5k.py: the first images of each class, in their order.
    labels = np.array([0, 0, 1, 0, 1, 1, 1, 0], dtype=np.int64)
    images = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1)
    part = Dataset("x", images, labels, images, labels, ("a", "b")).subset(train=4, test=2)
    assert part.train_x.ravel().tolist() == [0, 1, 2, 4]
    assert part.test_x.ravel().tolist() == [0, 2]


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": 1}))
    with pytest.raises(DataFormatError, match="neither idx files"):
        load(tmp_path)


def test_unknown_names_and_folders() -> None:
    with pytest.raises(UnknownNameError, match=r"There is no folder of that name\. Did you mean 'mnist-5k'"):
        load("mnist5k")
    with pytest.raises(ArgumentError, match="There is no such folder"):
        load("/nowhere/at/all")
    with pytest.raises(ArgumentError, match="Name the folder"):
        load(__file__)


def test_arrays_keep_their_values_and_tell_their_hash() -> None:
    x, y = tiny()
    data = from_arrays((x, y), (x[:4], y[:4]))
    assert np.array_equal(data.train_x, x.astype(np.float32))
    assert data.classes == ("0", "1")
    again = from_arrays((x, y), (x[:4], y[:4]), name="other")
    assert again.fingerprint == data.fingerprint
    x[3, 1] += 1
    assert from_arrays((x, y), (x[:4], y[:4])).fingerprint != data.fingerprint


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_samples_that_are_not_finite_are_named(bad: float) -> None:
    x, y = tiny()
    x[5, 2] = bad
    with pytest.raises(ArgumentError, match=r"train: got NaN or infinite values \(as float32\) in 1 samples.*index 5"):
        from_arrays((x, y), tiny())


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ((tiny()[0], tiny()[1][:5]), "8 samples and 5 labels"),
        ((tiny()[0][:0], tiny()[1][:0]), r"samples of shape \(0, 3\)"),
        ((np.zeros(8), tiny()[1]), r"samples of shape \(8,\)"),
        ((tiny()[0].astype(str), tiny()[1]), "samples of type"),
        ((tiny()[0], tiny()[1] * 1.0), "labels of shape"),
        ((tiny()[0], tiny()[1] - 1), "the label -1"),
        ((tiny()[0], tiny()[1] + 10**9), "the label 100000000.*Number the classes from 0"),
        (([[1.0], [1.0, 2.0]], tiny()[1]), "a sequence that is no array"),
        (None, "train: got a NoneType. Give a pair"),
        ((tiny()[0][:, :2], tiny()[1]), r"test: got float32 samples of shape \(3,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(train: tuple[np.ndarray, np.ndarray], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        from_arrays(train, tiny())


def test_tensors_are_taken_as_they_come() -> None:
    x = torch.arange(24.0).reshape(8, 3)
    y = torch.arange(8) % 2
    for odd in (x.clone().requires_grad_(), x.bfloat16(), x.t().contiguous().t()):
        assert from_arrays((odd, y), (odd, y)).train_x.tolist() == x.tolist()


def test_too_few_class_names() -> None:
    with pytest.raises(ArgumentError, match="1 names"):
        from_arrays(tiny(), tiny(), classes=["only"])


def test_loaders_are_collected_without_moving_a_generator() -> None:
    x = torch.arange(24, dtype=torch.uint8).reshape(12, 2)
    y = torch.arange(12) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
    before = torch.random.get_rng_state()
    data = from_loaders(loader, DataLoader(TensorDataset(x, y), batch_size=12))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sorted(map(tuple, data.train_x.tolist())) == sorted(map(tuple, x.tolist()))
    assert np.array_equal(data.test_x, x.numpy())


def test_loaders_of_something_else_are_named() -> None:
    with pytest.raises(ArgumentError, match="batches of type Tensor"):
        from_loaders([torch.zeros(2, 3)], [])
    with pytest.raises(ArgumentError, match="no batches"):
        from_loaders([], [])


def test_loaders_that_do_not_fit_are_named() -> None:
    y = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ArgumentError, match=r"train: got samples of shapes \[\(3,\), \(4,\)\]"):
        from_loaders([(torch.zeros(2, 3), y), (torch.zeros(2, 4), y)], [])
    with pytest.raises(ArgumentError, match="train: got a NoneType"):
        from_loaders(None, [])  # type: ignore[arg-type]


def test_a_source_that_is_none_is_named() -> None:
    with pytest.raises(ArgumentError, match="data: got a int"):
        load(3)  # type: ignore[arg-type]


def test_a_subset_that_cannot_be() -> None:
    data = from_arrays(tiny(8), tiny(8))
    with pytest.raises(ArgumentError, match="Ask for 2 to 8"):
        data.subset(train=9)
    lopsided = from_arrays((tiny(8)[0], np.array([0] * 7 + [1])), tiny(8))
    with pytest.raises(ArgumentError, match="Class 1 has only 1 samples, 3 are needed"):
        lopsided.subset(train=6)
