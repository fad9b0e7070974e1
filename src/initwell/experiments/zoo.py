"""The networks of the papers and the tutorials; their weights are PyTorch's defaults until a scheme writes others."""

import functools
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from types import MappingProxyType
from typing import Any, Literal, ParamSpec

from torch import nn

from initwell.errors import ArgumentError, ShapeError, UnknownNameError
from initwell.experiments.activations import ActivationSpec, activation_layer
from initwell.trace.keep import random_kept

P = ParamSpec("P")
Norm = Literal["batch", "layer"]
NORMS = ("batch", "layer")


def _deterministic(builder: Callable[P, nn.Sequential]) -> Callable[P, nn.Sequential]:
    # Layers draw their default weights from the global generator; lend them a copy, always at the same place.
    @functools.wraps(builder)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> nn.Sequential:
        with random_kept(0):
            return builder(*args, **kwargs)

    return wrapped


@_deterministic
def mlp(
    shape: Sequence[int],
    classes: int,
    *,
    depth: int = 3,
    width: int = 128,
    activation: ActivationSpec = "relu",
    norm: Norm | None = None,
    bias: bool = True,
) -> nn.Sequential:
    """Build a plain network of equal hidden layers.

    Args:
        shape: of one sample; it is flattened.
        classes: how many logits.
        depth: hidden layers, each Linear (+ norm) + activation; one Linear to the logits follows.
        width: units of a hidden layer.
        activation: a name or a layer factory.
        norm: ``batch``, ``layer`` or None, before the activation.
        bias: whether the Linear layers have one.

    Returns:
        A Sequential of ``flatten``, ``hidden1``, ``norm1``, ``act1``, …, ``output``.

    >>> mlp((1, 28, 28), 10, depth=2, width=8)[-1]
    Linear(in_features=8, out_features=10, bias=True)
    """
    _positive(depth=depth, width=width)
    return _dense(shape, classes, (width,) * depth, activation, norm, bias)


@_deterministic
def mlp_widths(
    shape: Sequence[int],
    classes: int,
    *,
    widths: Sequence[int] = (400, 200),
    activation: ActivationSpec = "relu",
    norm: Norm | None = None,
    bias: bool = True,
) -> nn.Sequential:
    """Build a plain network with the hidden layers named by width; on CIFAR-10 by default 3072-400-200-10.

    Args:
        shape: of one sample; it is flattened.
        classes: how many logits.
        widths: units of each hidden layer.
        activation: a name or a layer factory.
        norm: ``batch``, ``layer`` or None, before the activation.
        bias: whether the Linear layers have one.
    """
    return _dense(shape, classes, tuple(widths), activation, norm, bias)


@_deterministic
def caffe_cnn(
    shape: Sequence[int],
    classes: int,
    *,
    channels: Sequence[int] = (32, 32, 64),
    hidden: int | None = None,
    activation: ActivationSpec = "relu",
    norm: Norm | None = None,
    bias: bool = True,
) -> nn.Sequential:
    """Build Caffe's CIFAR-10 network: 5×5 convolutions, 3×3 pooling of stride 2, the first by maximum, then a layer.

    Args:
        shape: (C, H, W).
        classes: how many logits.
        channels: of each convolution.
        hidden: units of a layer before the logits (64, without activation, in ``cifar10_quick``), or None.
        activation: a name or a layer factory.
        norm: ``batch``, ``layer`` or None, before the activation.
        bias: whether layers have one.

    Source: Caffe, ``examples/cifar10/cifar10_quick_train_test.prototxt`` and ``cifar10_full`` (without its LRN), after
        cuda-convnet (Krizhevsky 2012). The first stage pools before its activation, the others after.
    """
    planes, height, breadth = _image(shape)
    layers: list[tuple[str, nn.Module]] = []
    for k, count in enumerate(channels, start=1):
        _positive(channels=count)
        layers.append((f"conv{k}", nn.Conv2d(planes, count, 5, padding=2, bias=bias)))
        acting = [*_norm2d(norm, k, count), (f"act{k}", activation_layer(activation, count))]
        if k == 1:
            layers += [("pool1", nn.MaxPool2d(3, 2, ceil_mode=True)), *acting]
        else:
            layers += [*acting, (f"pool{k}", nn.AvgPool2d(3, 2, ceil_mode=True))]
        planes, height, breadth = count, _pooled(height), _pooled(breadth)
    layers.append(("flatten", nn.Flatten()))
    features = planes * height * breadth
    if hidden is not None:
        layers.append(("hidden", nn.Linear(features, hidden, bias=bias)))
        features = hidden
    layers.append(("output", nn.Linear(features, classes, bias=bias)))
    return nn.Sequential(OrderedDict(layers))


@_deterministic
def lenet(
    shape: Sequence[int],
    classes: int,
    *,
    activation: ActivationSpec = "relu",
    norm: Norm | None = None,
    bias: bool = True,
) -> nn.Sequential:
    """Build Caffe's LeNet (20 and 50 filters 5×5, 500 units), with the activation after every layer but the last.

    Args:
        shape: (C, H, W), at least 12 by 12.
        classes: how many logits.
        activation: a name or a layer factory; Caffe's file has one after the 500 units alone.
        norm: ``batch``, ``layer`` or None, before the activation.
        bias: whether layers have one.

    Source: LeCun, Bottou, Bengio and Haffner (1998); Caffe, ``examples/mnist/lenet_train_test.prototxt``.
    """
    planes, height, breadth = _image(shape, least=12)
    layers: list[tuple[str, nn.Module]] = []
    for k, count in enumerate((20, 50), start=1):
        layers += [
            (f"conv{k}", nn.Conv2d(planes, count, 5, bias=bias)),
            *_norm2d(norm, k, count),
            (f"act{k}", activation_layer(activation, count)),
            (f"pool{k}", nn.MaxPool2d(2)),
        ]
        planes, height, breadth = count, (height - 4) // 2, (breadth - 4) // 2
    layers += [
        ("flatten", nn.Flatten()),
        ("hidden", nn.Linear(planes * height * breadth, 500, bias=bias)),
        *_norm1d(norm, 3, 500),
        ("act3", activation_layer(activation, 500)),
        ("output", nn.Linear(500, classes, bias=bias)),
    ]
    return nn.Sequential(OrderedDict(layers))


@_deterministic
def small_cnn(
    shape: Sequence[int],
    classes: int,
    *,
    depth: int = 3,
    width: int = 16,
    activation: ActivationSpec = "relu",
    norm: Norm | None = None,
    bias: bool = True,
) -> nn.Sequential:
    """Build a small network of 3×3 convolutions that a CPU trains in seconds: the first two have stride 2.

    Args:
        shape: (C, H, W).
        classes: how many logits.
        depth: convolutions, each with its activation.
        width: channels of each.
        activation: a name or a layer factory.
        norm: ``batch``, ``layer`` or None, before the activation.
        bias: whether layers have one.
    """
    _positive(depth=depth, width=width)
    planes, height, breadth = _image(shape)
    layers: list[tuple[str, nn.Module]] = []
    for k in range(1, depth + 1):
        stride = 2 if k <= 2 else 1
        layers += [
            (f"conv{k}", nn.Conv2d(planes, width, 3, stride, padding=1, bias=bias)),
            *_norm2d(norm, k, width),
            (f"act{k}", activation_layer(activation, width)),
        ]
        planes, height, breadth = width, -(-height // stride), -(-breadth // stride)
    layers += [("flatten", nn.Flatten()), ("output", nn.Linear(planes * height * breadth, classes, bias=bias))]
    return nn.Sequential(OrderedDict(layers))


NETWORKS: Mapping[str, Callable[..., nn.Sequential]] = MappingProxyType(
    {"mlp": mlp, "mlp_widths": mlp_widths, "caffe_cnn": caffe_cnn, "lenet": lenet, "small_cnn": small_cnn}
)


def build(name: str, shape: Sequence[int], classes: int, **options: Any) -> nn.Sequential:
    """Build a network by name.

    Args:
        name: one of ``NETWORKS``.
        shape: of one sample, (C, H, W) for the convolutional ones.
        classes: how many logits.
        options: those of the network's function.

    Returns:
        The network; its weights are PyTorch's defaults, the same at every call, and no global generator moves.

    Raises:
        UnknownNameError: no such network, option, activation or norm, with the nearest names.

    >>> build("mlp", (784,), 10, depth=1, width=16)[1]
    Linear(in_features=784, out_features=16, bias=True)
    """
    if name not in NETWORKS:
        raise UnknownNameError.among("model", name, NETWORKS)
    known = network_options(name)
    for option in options:
        if option not in known:
            raise UnknownNameError.among(f"option of {name}", option, known)
    return NETWORKS[name](shape, classes, **options)


def network_options(name: str) -> tuple[str, ...]:
    """List the options that a network of the zoo takes."""
    parameters = inspect.signature(NETWORKS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def _dense(
    shape: Sequence[int],
    classes: int,
    widths: tuple[int, ...],
    activation: ActivationSpec,
    norm: str | None,
    bias: bool,
) -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    fan_in = math.prod(shape)
    for k, width in enumerate(widths, start=1):
        _positive(widths=width)
        layers += [
            (f"hidden{k}", nn.Linear(fan_in, width, bias=bias)),
            *_norm1d(norm, k, width),
            (f"act{k}", activation_layer(activation, width)),
        ]
        fan_in = width
    layers.append(("output", nn.Linear(fan_in, classes, bias=bias)))
    return nn.Sequential(OrderedDict(layers))


def _norm1d(norm: str | None, k: int, width: int) -> list[tuple[str, nn.Module]]:
    _known_norm(norm)
    return [] if norm is None else [(f"norm{k}", nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width))]


def _norm2d(norm: str | None, k: int, width: int) -> list[tuple[str, nn.Module]]:
    # Layer normalization of an image is over channels and positions together: one group.
    _known_norm(norm)
    return [] if norm is None else [(f"norm{k}", nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(1, width))]


def _known_norm(norm: str | None) -> None:
    if norm is not None and norm not in NORMS:
        raise UnknownNameError.among("norm", str(norm), NORMS)


def _positive(**values: object) -> None:
    for name, value in values.items():
        if not (isinstance(value, Integral) and int(value) >= 1):
            raise ArgumentError(name, value, "Give a whole number from 1.")


def _pooled(size: int) -> int:
    # Windows of 3, stride 2, rounded up as Caffe does; PyTorch drops a window that would start outside.
    return max(-(-(size - 3) // 2) + 1, 1)


def _image(shape: Sequence[int], least: int = 4) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ShapeError("shape", tuple(shape), f"This network takes (channels, height, width), from {least}×{least}.")
    return shape[0], shape[1], shape[2]
