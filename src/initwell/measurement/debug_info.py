"""The measured sizes as Caffe prints them with ``debug_info: true``, to the byte."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from initwell.errors import ArgumentError
from initwell.measurement.measurement import Measurement
from initwell.measurement.probe import measure
from initwell.records import Row
from initwell.trace.recorder import Loss

# Modules that are no layer in Caffe: an InnerProduct layer flattens its bottom by itself.
_NO_LAYER = (nn.Flatten, nn.Identity)


def caffe_debug_info(
    model: nn.Module, batch: Any, *, loss: Loss | None = None, learning_rate: float | None = None, seed: int = 0
) -> str:
    """Run one forward and backward, and print it as a Caffe net with ``debug_info`` does, without the log's prefix.

    Each figure is mean|x| = asum/count in float32, printed as C++ prints a float. Layers go by their names in the
    model; a top blob by its layer, or by its bottom where the layer works in place; the batch is the layer "data",
    the loss the layer "loss". Without a loss the backward starts from a unit Gaussian gradient, and there is no such
    layer. Flatten and Identity are no layers in Caffe and are passed over. A parameter that several layers share shows
    its whole gradient at each of them, where Caffe prints what has been added up so far.

    Args:
        model: a Sequential, or Sequentials within one; each layer one module without children.
        batch: one tensor, samples first.
        loss: output → differentiable scalar.
        learning_rate: of plain gradient descent; with it come the [Update] lines, where "diff" is what is subtracted:
            learning rate × gradient.
        seed: of dropout masks and of the starting gradient.

    Returns:
        The lines, ending in a newline.

    Raises:
        ArgumentError: a model that is not sequential.

    Source: Caffe, src/caffe/net.cpp: ForwardDebugInfo, BackwardDebugInfo, UpdateDebugInfo.

    >>> import torch
    >>> from collections import OrderedDict
    >>> net = nn.Sequential(OrderedDict(ip=nn.Linear(2, 1, bias=False)))
    >>> _ = nn.init.constant_(net.ip.weight, 0.5)
    >>> print(caffe_debug_info(net, torch.tensor([[1.0, 2.0]]), loss=lambda y: y.sum()), end="")
        [Forward] Layer data, top blob data data: 1.5
        [Forward] Layer ip, top blob ip data: 1.5
        [Forward] Layer ip, param blob 0 data: 0.5
        [Forward] Layer loss, top blob loss data: 1.5
        [Backward] Layer loss, bottom blob ip diff: 1
        [Backward] Layer ip, param blob 0 diff: 1.5
        [Backward] All net params (data, diff): L1 norm = (1, 3); L2 norm = (0.707107, 2.23607)
    """
    _check_sequential(model)
    found = measure(model, batch, loss=loss, seed=seed, learning_rate=learning_rate)
    layers = _layers(model, found)
    lines = [*_forward(layers), *_backward(layers), _norms(found)]
    if learning_rate is not None:
        lines += _update(layers, learning_rate)
    return "".join(f"    {line}\n" for line in lines)


@dataclass(frozen=True)
class _Layer:
    """One layer: its name, its top's and bottom's blob names, what was measured at them, and its parameters."""

    name: str
    top: str
    bottom: str
    data: float
    bottom_diff: float | None
    parameters: Sequence[tuple[Row, bool]]
    bottom_needs_backward: bool


def caffe_float(value: float) -> str:
    """Print a float32 as C++'s ``operator<<`` does: six significant digits, no trailing zeros.

    >>> caffe_float(0.1), caffe_float(1.0), caffe_float(1.23456789e-5), caffe_float(1234567.0)
    ('0.1', '1', '1.23457e-05', '1.23457e+06')
    """
    with np.errstate(over="ignore"):
        return f"{float(np.float32(value)):g}"


def _check_sequential(model: nn.Module) -> None:
    cure = "Caffe's lines describe a chain of layers: pass a torch.nn.Sequential (nested ones are flattened)."
    if not isinstance(model, nn.Sequential):
        raise ArgumentError("model", f"a {type(model).__name__}", cure)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Sequential) and next(module.children(), None) is not None:
            raise ArgumentError("model", f"layer {name!r}, a {type(module).__name__} with layers inside", cure)


def _chain(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    # Not named_modules(): a module that stands twice in the chain is two layers.
    for name, child in model._modules.items():
        if isinstance(child, nn.Sequential):
            yield from _chain(child, f"{prefix}{name}.")
        elif child is not None and not isinstance(child, _NO_LAYER):
            yield prefix + name, child


def _layers(model: nn.Module, found: Measurement) -> list[_Layer]:
    if len(found.inputs) != 1:
        raise ArgumentError("batch", f"{len(found.inputs)} floating tensors", "Give the one tensor that the net takes.")
    last: dict[tuple[str, int], Row] = {(row["path"], row["call"]): row for row in found.rows}
    paths = {id(m): name for name, m in model.named_modules()}
    names = {id(p): name for name, p in model.named_parameters()}
    weights = {row["parameter"]: row for row in found.parameters}
    calls: dict[int, int] = {}
    here, blob, needs = found.inputs[0], "data", False
    layers = [_Layer("data", "data", "", here["abs_mean"], None, (), False)]
    for name, module in _chain(model):
        call = calls[id(module)] = calls.get(id(module), -1) + 1
        # A layer that ran no op, such as dropout in eval mode, hands its bottom on.
        out = last.get((paths[id(module)], call), here)
        top = blob if getattr(module, "inplace", False) else name
        parameters = [(weights[names[id(p)]], p.requires_grad) for p in module.parameters()]
        layers.append(_Layer(name, top, blob, out["abs_mean"], here["gradient_abs_mean"], parameters, needs))
        here, blob, needs = out, top, needs or any(learned for _, learned in parameters)
    if found.loss is not None:
        layers.append(_Layer("loss", "loss", blob, abs(found.loss), here["gradient_abs_mean"], (), needs))
    return layers


def _forward(layers: Sequence[_Layer]) -> Iterator[str]:
    for layer in layers:
        yield f"[Forward] Layer {layer.name}, top blob {layer.top} data: {caffe_float(layer.data)}"
        for i, (row, _) in enumerate(layer.parameters):
            value = caffe_float(row["weight_abs_mean"])
            yield f"[Forward] Layer {layer.name}, param blob {i} data: {value}"


def _backward(layers: Sequence[_Layer]) -> Iterator[str]:
    for layer in reversed(layers):
        if layer.bottom_needs_backward:
            diff = caffe_float(layer.bottom_diff or 0.0)
            yield f"[Backward] Layer {layer.name}, bottom blob {layer.bottom} diff: {diff}"
        for i, (row, learned) in enumerate(layer.parameters):
            if learned:
                yield f"[Backward] Layer {layer.name}, param blob {i} diff: {caffe_float(_diff(row))}"


def _diff(row: Row) -> float:
    return float(row["gradient_abs_mean"] or 0.0)


def _norms(found: Measurement) -> str:
    l1, l2 = [0.0, 0.0], [0.0, 0.0]
    for row in found.parameters:
        count = math.prod(row["shape"])
        for i, (absolute, rms) in enumerate(
            ((row["weight_abs_mean"], row["weight_rms"]), (_diff(row), row["gradient_rms"] or 0.0))
        ):
            l1[i] += absolute * count
            l2[i] += rms * rms * count
    ends = [caffe_float(x) for x in (*l1, *map(math.sqrt, l2))]
    return f"[Backward] All net params (data, diff): L1 norm = ({ends[0]}, {ends[1]}); L2 norm = ({ends[2]}, {ends[3]})"


def _update(layers: Sequence[_Layer], learning_rate: float) -> Iterator[str]:
    done: set[str] = set()
    for layer in layers:
        for i, (row, _) in enumerate(layer.parameters):
            if row["parameter"] in done:
                continue
            done.add(row["parameter"])
            data, diff = caffe_float(row["weight_abs_mean"]), caffe_float(learning_rate * _diff(row))
            yield f"[Update] Layer {layer.name}, param {i} data: {data}; diff: {diff}"
