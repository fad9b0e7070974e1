"""Which axis of a module's parameter is which: true fans come from the module, not from the shape alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv
from torch.nn.utils import parametrize

from initwell.errors import ArgumentError, ShapeError
from initwell.initializers.layout import Layout
from initwell.records import Record

Role = Literal["weight", "bias", "norm_weight", "norm_bias", "embedding", "slope", "other"]

# Packed gates, stacked along the output axis: (input, forget, cell, output), (reset, update, new), one.
_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.RNN: 1, nn.RNNCell: 1}


@dataclass(frozen=True)
class Slot(Record):
    """What a parameter is to its module.

    Attributes:
        role: how schemes treat it; "other" is left alone unless a rule names it.
        layout: which axis is which; None where the shape has no meaning that initwell knows.
        note: why, when that does not go without saying.
    """

    role: Role
    layout: Layout | None
    note: str = ""


def layout_of(module: nn.Module, parameter: str) -> Layout:
    """Find the layout, and with it the true fans, of one parameter of a module.

    Args:
        module: the module that owns the parameter.
        parameter: its name there, such as "weight" or "in_proj_weight".

    Returns:
        The layout; a bias, a norm's scale and other 1-D parameters are vectors, which have no fan.

    Raises:
        ArgumentError: the module has no such parameter, or it has no shape yet.
        ShapeError: nothing is known about which of its axes is input and which is output.

    Source: the true fans of grouped, strided, transposed and packed weights are derived in ``initializers.layout``.

    >>> layout_of(nn.Conv2d(8, 16, 3, groups=2), "weight").fan_in
    36.0
    """
    slot = slot_of(module, parameter)
    if slot.layout is None:
        shape = tuple(getattr(module, parameter).shape)
        raise ShapeError("parameter", f"{parameter!r} {shape} of {type(module).__name__}", f"{slot.note}.")
    return slot.layout


def slot_of(module: nn.Module, parameter: str) -> Slot:
    """Find the role and the layout of one parameter; for a kind of module that is not known, from the shape alone.

    Args:
        module: the module that owns the parameter.
        parameter: its name there.

    Returns:
        Its slot.

    Raises:
        ArgumentError: the module has no such parameter, or it has no shape yet.

    >>> slot_of(nn.BatchNorm1d(4), "weight").role
    'norm_weight'
    """
    value = module._parameters.get(parameter)
    if value is None and parametrize.is_parametrized(module, parameter):
        value = getattr(module, parameter)
    if value is None:
        known = ", ".join(name for name, p in module._parameters.items() if p is not None) or "none"
        raise ArgumentError("parameter", repr(parameter), f"{type(module).__name__} has the parameters: {known}.")
    if nn.parameter.is_lazy(value):
        raise ArgumentError(
            "model",
            f"{type(module).__name__}, whose {parameter!r} has no shape yet",
            "Run one batch through the model first, so that lazy modules get their shapes: model(batch).",
        )
    return slot_for(module, parameter, value)


def slot_for(module: nn.Module, parameter: str, value: Tensor) -> Slot:
    """Find the slot of a tensor that stands for one parameter of a module, under the name that the module knows.

    Args:
        module: the module.
        parameter: the name, such as "weight" for what weight normalization calls "weight_v".
        value: the tensor; only its shape is looked at.

    Returns:
        Its slot.
    """
    for kinds, describe in _KNOWN:
        if isinstance(module, kinds):
            return describe(module, parameter, value)
    if _is_transposed_linear(module):
        return _transposed_linear(module, parameter, value)
    return _unknown(module, parameter, value)


def vector(value: Tensor) -> Layout:
    """Lay out a parameter of which no axis is an input: a bias, a scale, a slope."""
    return Layout(shape=tuple(value.shape), kind="vector", in_axis=0, out_axis=0)


def matrix(value: Tensor, *, in_axis: int = 1, parts: int = 1, kind: str = "linear") -> Layout:
    """Lay out a weight that is multiplied with its input, ``parts`` matrices stacked along the output axis."""
    return Layout(shape=tuple(value.shape), kind=kind, in_axis=in_axis, out_axis=1 - in_axis, parts=parts)


def _linear(module: Any, name: str, value: Tensor) -> Slot:
    return Slot("weight", matrix(value)) if name == "weight" else _or_bias(module, name, value)


def _transposed_linear(module: Any, name: str, value: Tensor) -> Slot:
    if name == "weight":
        return Slot("weight", matrix(value, in_axis=0), "Conv1D keeps its weight as (in, out)")
    return _or_bias(module, name, value)


def _is_transposed_linear(module: Any) -> bool:
    # Hugging Face's Conv1D, known by its name and shape so that transformers need not be imported.
    weight, width = getattr(module, "weight", None), getattr(module, "nf", None)
    named = type(module).__name__ == "Conv1D"
    return named and isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[1] == width


def _convolution(module: Any, name: str, value: Tensor) -> Slot:
    if name != "weight":
        return _or_bias(module, name, value)
    kind, in_axis = ("conv_transpose", 0) if module.transposed else ("conv", 1)
    layout = Layout(
        shape=tuple(value.shape),
        kind=kind,
        in_axis=in_axis,
        out_axis=1 - in_axis,
        groups=module.groups,
        stride=tuple(module.stride),
    )
    return Slot("weight", layout)


def _bilinear(module: Any, name: str, value: Tensor) -> Slot:
    return Slot("weight", matrix(value, kind="bilinear")) if name == "weight" else _or_bias(module, name, value)


def _embedding(module: Any, name: str, value: Tensor) -> Slot:
    if name == "weight":
        return Slot("embedding", matrix(value, in_axis=0, kind="embedding"))
    return _unknown(module, name, value)


def _attention(module: Any, name: str, value: Tensor) -> Slot:
    if name == "in_proj_weight":
        return Slot("weight", matrix(value, parts=3), "queries, keys and values packed")
    if name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return Slot("weight", matrix(value))
    if name in ("in_proj_bias", "bias_k", "bias_v"):
        return Slot("bias", vector(value))
    return _unknown(module, name, value)


def _recurrent(module: Any, name: str, value: Tensor) -> Slot:
    if name.startswith("bias"):
        return Slot("bias", vector(value))
    if name.startswith("weight_hr"):
        return Slot("weight", matrix(value, kind="recurrent"), "projection of the hidden state")
    parts = next((gates for kind, gates in _GATES.items() if isinstance(module, kind)), 1)
    return Slot("weight", matrix(value, parts=parts, kind="recurrent"), f"{parts} gates packed" if parts > 1 else "")


def _norm(module: Any, name: str, value: Tensor) -> Slot:
    if name == "weight":
        return Slot("norm_weight", vector(value))
    return Slot("norm_bias", vector(value)) if name == "bias" else _unknown(module, name, value)


def _slopes(module: Any, name: str, value: Tensor) -> Slot:
    return Slot("slope", vector(value)) if name == "weight" else _unknown(module, name, value)


def _or_bias(module: Any, name: str, value: Tensor) -> Slot:
    return Slot("bias", vector(value)) if name == "bias" else _unknown(module, name, value)


def _unknown(module: Any, name: str, value: Tensor) -> Slot:
    kind = type(module).__name__
    if value.ndim < 2:
        return Slot("other", None, f"{kind}.{name} is not a parameter that initwell knows")
    if value.ndim > 2 and value.shape[0] == 1:
        return Slot("other", None, f"{kind}.{name} starts with an axis of length 1, so is no weight matrix")
    if value.ndim > 2 and math.prod(value.shape[1:]) == 1:
        return Slot("other", None, f"{kind}.{name} has one number for each of its first axis, so is no weight matrix")
    guess = f"{kind}.{name} is not a parameter that initwell knows: taken as (out, in, …) from its shape"
    kernel = tuple(value.shape[2:])
    layout = Layout(shape=tuple(value.shape), kind="conv" if kernel else "linear", in_axis=1, out_axis=0)
    return Slot("weight", layout, guess)


# First match wins, over subclasses too; a new kind of module is one more line.
_KNOWN: tuple[tuple[tuple[type, ...], Callable[[Any, str, Tensor], Slot]], ...] = (
    ((nn.Linear,), _linear),
    ((conv._ConvNd,), _convolution),
    ((nn.Bilinear,), _bilinear),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    ((nn.MultiheadAttention,), _attention),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    ((batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), _norm),
    ((nn.PReLU,), _slopes),
)
