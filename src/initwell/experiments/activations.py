"""Activations by name, as the layers that networks are built with."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from initwell.errors import ArgumentError, UnknownNameError

ActivationSpec = str | Callable[[], nn.Module]

# PyTorch's pointwise layers that need no argument, under their snake_case names.
_LAYERS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "relu": nn.ReLU,
        "leaky_relu": nn.LeakyReLU,
        "prelu": nn.PReLU,
        "rrelu": nn.RReLU,
        "relu6": nn.ReLU6,
        "elu": nn.ELU,
        "selu": nn.SELU,
        "celu": nn.CELU,
        "gelu": nn.GELU,
        "gelu_tanh": partial(nn.GELU, approximate="tanh"),
        "silu": nn.SiLU,
        "mish": nn.Mish,
        "softplus": nn.Softplus,
        "softsign": nn.Softsign,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "hardtanh": nn.Hardtanh,
        "hardswish": nn.Hardswish,
        "hardsigmoid": nn.Hardsigmoid,
        "logsigmoid": nn.LogSigmoid,
        "tanhshrink": nn.Tanhshrink,
        "softshrink": nn.Softshrink,
        "hardshrink": nn.Hardshrink,
        "identity": nn.Identity,
        "linear": nn.Identity,
    }
)
PRELU_PER_CHANNEL = "prelu_channel"


def activation_layer_names() -> tuple[str, ...]:
    """List the names that the networks take."""
    return (*_LAYERS, PRELU_PER_CHANNEL)


def activation_layer(spec: ActivationSpec, channels: int) -> nn.Module:
    """Make one activation layer.

    Args:
        spec: a name, as ``relu``, ``gelu`` or ``prelu_channel`` (one slope for each channel), or something that
            returns a new layer when called, such as a module class.
        channels: how many channels or units it will see.

    Returns:
        A new layer.

    Raises:
        UnknownNameError: no such name.
        ArgumentError: what was called gave no ``nn.Module``.

    >>> activation_layer("prelu_channel", channels=3).num_parameters
    3
    """
    if isinstance(spec, str):
        # torch.nn's own spelling (LeakyReLU) is understood too.
        name = next((n for n in _LAYERS if n.replace("_", "") == spec.lower().replace("_", "")), spec)
        if spec == PRELU_PER_CHANNEL:
            return nn.PReLU(channels)
        if name not in _LAYERS:
            raise UnknownNameError.among("activation", spec, activation_layer_names())
        return _LAYERS[name]()
    layer = spec()
    if not isinstance(layer, nn.Module):
        raise ArgumentError("activation", repr(spec), "Give a name or something that returns an nn.Module when called.")
    return layer
