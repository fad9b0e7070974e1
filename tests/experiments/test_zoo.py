"""The zoo: shapes, counts from the papers' files, options, and no generator moved."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from initwell.errors import ArgumentError, ShapeError, UnknownNameError
from initwell.experiments.activations import activation_layer, activation_layer_names
from initwell.experiments.zoo import NETWORKS, build, caffe_cnn, lenet, mlp, mlp_widths, network_options, small_cnn


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 17, 23)])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_takes_images_of_every_size(name: str, shape: tuple[int, ...], norm: str | None) -> None:
    model = build(name, shape, 7, norm=norm, activation="tanh")
    assert model(torch.randn(2, *shape)).shape == (2, 7)
    assert any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in model) == (norm == "batch")
    assert any(isinstance(m, (nn.LayerNorm, nn.GroupNorm)) for m in model) == (norm == "layer")


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_are_those_of_the_files() -> None:
    # Caffe prints 145,578 parameters for cifar10_quick and 431,080 for LeNet; the MLP is counted by hand.
    assert count(caffe_cnn((3, 32, 32), 10, hidden=64)) == 145578
    assert count(lenet((1, 28, 28), 10)) == 431080
    assert count(mlp_widths((3, 32, 32), 10)) == 3072 * 400 + 400 + 400 * 200 + 200 + 200 * 10 + 10
    assert count(mlp((784,), 10, depth=3, width=16, bias=False)) == 784 * 16 + 2 * 16 * 16 + 16 * 10


def test_pooling_rounds_up_as_caffe_does() -> None:
    sizes = []
    x = torch.randn(1, 3, 32, 32)
    for name, layer in caffe_cnn((3, 32, 32), 10).named_children():
        x = layer(x)
        if name.startswith("pool"):
            sizes.append(x.shape[-1])
    assert sizes == [16, 8, 4]


def test_depth_counts_the_hidden_layers() -> None:
    model = mlp((5,), 3, depth=20, width=4)
    assert sum(isinstance(m, nn.Linear) for m in model) == 21
    assert sum(isinstance(m, nn.ReLU) for m in model) == 20
    assert sum(isinstance(m, nn.Conv2d) for m in small_cnn((1, 28, 28), 3, depth=5)) == 5


@pytest.mark.parametrize("name", activation_layer_names())
def test_every_activation_is_pointwise(name: str) -> None:
    layer = activation_layer(name, 3).eval()
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    together, apart = layer(x), torch.stack([layer(sample[None])[0] for sample in x])
    assert together.shape == x.shape
    assert torch.allclose(together, apart)


def test_slopes_by_layer_or_channel_and_own_factories() -> None:
    assert mlp((4,), 2, depth=1, width=6, activation="prelu").get_submodule("act1").num_parameters == 1
    assert mlp((4,), 2, depth=1, width=6, activation="prelu_channel").get_submodule("act1").num_parameters == 6
    assert isinstance(mlp((4,), 2, activation=nn.Hardtanh).get_submodule("act1"), nn.Hardtanh)
    assert isinstance(activation_layer("LeakyReLU", 1), nn.LeakyReLU)


def test_building_moves_no_generator_and_is_the_same_each_time() -> None:
    before = torch.random.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    first = build("lenet", (1, 28, 28), 10)
    after = torch.random.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.rand(3)
    second = build("lenet", (1, 28, 28), 10)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    hidden = mlp((8,), 2, depth=3, width=8)
    assert not torch.equal(hidden.get_parameter("hidden1.weight"), hidden.get_parameter("hidden2.weight"))


def test_unknown_names_have_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'lenet'"):
        build("lennet", (1, 28, 28), 10)
    with pytest.raises(UnknownNameError, match=r"option of mlp: .* Did you mean 'width'"):
        build("mlp", (4,), 2, widht=3)
    with pytest.raises(UnknownNameError, match="Did you mean 'gelu"):
        build("mlp", (4,), 2, activation="gellu")
    with pytest.raises(UnknownNameError, match="Did you mean 'batch'"):
        build("lenet", (1, 28, 28), 2, norm="batchnorm")


def test_what_cannot_be_built() -> None:
    with pytest.raises(ShapeError, match=r"shape: got \(784,\)"):
        build("small_cnn", (784,), 10)
    with pytest.raises(ShapeError, match="from 12×12"):
        build("lenet", (1, 8, 8), 10)
    with pytest.raises(ArgumentError, match="depth: got 0"):
        build("mlp", (4,), 2, depth=0)
    with pytest.raises(ArgumentError, match="Give a name or something that returns"):
        mlp((4,), 2, activation=lambda: 3)  # type: ignore[arg-type, return-value]


def test_options_are_listed() -> None:
    assert network_options("mlp") == ("depth", "width", "activation", "norm", "bias")
