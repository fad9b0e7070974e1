"""``measure``: one real forward and backward, with the statistics of every value and gradient on the way."""

import math
from collections import Counter
from typing import Any

from torch import Tensor, nn

from initwell.errors import ArgumentError, ModelError
from initwell.measurement.axes import AxisTracker
from initwell.measurement.measurement import Measurement
from initwell.measurement.stats import TensorStats, dead_units, overlap, saturated, tensor_stats
from initwell.records import Row
from initwell.trace.batch import check_batch, check_module
from initwell.trace.ops import ACTIVATIONS, COPIES, RECTIFIERS, VIEWS
from initwell.trace.recorder import Loss, record
from initwell.trace.trace import Op, Trace, Value


def measure(
    model: nn.Module, batch: Any, *, loss: Loss | None = None, seed: int = 0, learning_rate: float | None = None
) -> Measurement:
    """Run a model's forward and backward once on real data, and measure every value and gradient.

    The model is left as it was: weights, mode, hooks, ``.grad``, BatchNorm's running statistics, random numbers. Each
    statistic is taken as the value passes by; no activation is kept for it.

    Args:
        model: any module with parameters, in the mode (train or eval) to be measured.
        batch: a tensor, a tuple of positional arguments, a dict of keyword arguments, or the one argument. Axis 0 of
            its tensors counts the samples.
        loss: output → differentiable scalar. Without it the backward starts from an independent gradient of unit
            variance on every floating output.
        seed: of dropout masks and of the starting gradient.
        learning_rate: of plain gradient descent, for the update-to-weight ratios.

    Returns:
        The Measurement.

    Raises:
        ArgumentError: no module, an empty batch, NaN or infinite inputs, a learning rate that is not positive.
        ModelError: no parameters, weights on the meta device, or the model's own failure, with the module path.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    >>> found = measure(model, torch.tensor([[3.0, 4.0], [3.0, 4.0]]), loss=lambda y: y.sum())
    >>> [(r["path"], r["op"], round(r["forward_rms"], 4), r["dead_units"], r["overlap"]) for r in found.rows[:2]]
    [('0', 'aten.mm', 3.5355, None, 1.0), ('1', 'aten.relu', 2.1213, 0.5, 1.0)]
    """
    check_module(model)
    if learning_rate is not None and not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ArgumentError("learning_rate", learning_rate, "Give a positive number, or None for no update ratios.")
    if next(model.parameters(), None) is None:
        raise ModelError(
            f"{type(model).__name__} has no parameters, so there is nothing to initialize or to measure. "
            "Pass the module that holds the layers."
        )
    check_batch(batch, values=True)
    weights = {n: tensor_stats(p) for n, p in model.named_parameters() if not p.is_meta}
    statistics = _Statistics()
    trace = record(model, batch, loss=loss, device="real", observer=statistics, seed=seed, fold=False)
    return _measurement(trace, statistics, weights, learning_rate)


class _Statistics:
    """The observer that turns tensors into numbers."""

    def __init__(self) -> None:
        self.restarted()

    def restarted(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.inputs: dict[int, dict[str, Any]] = {}
        self.gradients: dict[int, TensorStats] = {}
        self._axes = AxisTracker()
        self._done: set[int] = set()

    def given(self, value: Value, tensor: Tensor) -> None:
        self._axes.given(value)
        if tensor.is_floating_point():
            place = {"value": value.id, "path": "", "op": "input", "call": 0, "name": value.name}
            self.inputs[value.id] = {**place, **self._numbers(value, tensor), "activation": None}

    def replaced(self, old: int, new: int) -> None:
        self._axes.replaced(old, new)

    def value(self, value: Value, op: Op, tensor: Tensor) -> None:
        self._axes.made(value, op)
        silent = op.functional in VIEWS or op.functional in COPIES or not op.inputs
        if silent or not tensor.is_floating_point() or op.index in self._done:
            return
        self._done.add(op.index)
        place = {"value": value.id, "path": op.path, "op": op.packet, "call": op.call}
        self.rows[value.id] = {**place, **self._numbers(value, tensor), **self._activation(value, op, tensor)}

    def gradient(self, value: int, tensor: Tensor) -> None:
        self.gradients[value] = tensor_stats(tensor)

    def _numbers(self, value: Value, tensor: Tensor) -> dict[str, Any]:
        stats, samples = tensor_stats(tensor), self._axes.samples(value.id)
        return {
            "shape": value.shape,
            "forward_rms": stats.rms,
            "mean": stats.mean,
            "std": stats.std,
            "abs_mean": stats.abs_mean,
            "zeros": stats.zeros,
            "saturated": None,
            "dead_units": None,
            "overlap": None if samples is None else overlap(tensor, samples),
            "fidelity": "exact",
        }

    def _activation(self, value: Value, op: Op, tensor: Tensor) -> dict[str, Any]:
        name = ACTIVATIONS.get(op.functional)
        if name is None:
            return {"activation": None}
        if name == "hardtanh" and op.arguments["min_val"] == 0:
            name = "relu6"  # clipped at any height: below it is a rectifier
        units = self._axes.units(value.id)
        dead = dead_units(tensor, units) if name in RECTIFIERS and units is not None else None
        return {"activation": name, "saturated": saturated(tensor, name, op.arguments), "dead_units": dead}


def _measurement(
    trace: Trace, found: _Statistics, weights: dict[str, TensorStats], learning_rate: float | None
) -> Measurement:
    state = (v.id for v in trace.values if v.kind in ("input", "parameter", "buffer"))
    moving = trace.dependents(state)
    rows = [row for row in found.rows.values() if row["value"] in moving]
    kept = {row["value"] for row in rows}
    skipped = Counter(op.packet for op in trace.forward_ops if not kept.intersection(op.outputs))
    return Measurement(
        rows=tuple(_with_gradient(row, found) for row in rows),
        inputs=tuple(_with_gradient(row, found) for row in found.inputs.values()),
        parameters=tuple(_parameter(trace, n, s, found, learning_rate) for n, s in weights.items()),
        loss=None if trace.loss is None else found.rows[trace.loss]["mean"],
        skipped=dict(sorted(skipped.items())),
        trace=trace,
        notes=trace.notes + trace.tied_notes,
    )


def _with_gradient(row: dict[str, Any], found: _Statistics) -> Row:
    stats = found.gradients.get(row["value"])
    rms, absolute = (None, None) if stats is None else (stats.rms, stats.abs_mean)
    return {**row, "gradient_rms": rms, "gradient_abs_mean": absolute}


def _parameter(trace: Trace, name: str, weight: TensorStats, found: _Statistics, learning_rate: float | None) -> Row:
    value = trace.parameters[name]
    stats = found.gradients.get(value)
    rms, absolute = (None, None) if stats is None else (stats.rms, stats.abs_mean)
    ratio = None
    if learning_rate is not None and rms is not None and weight.rms > 0:
        ratio = learning_rate * rms / weight.rms
    return {
        "parameter": name,
        "shape": trace.values[value].shape,
        "weight_rms": weight.rms,
        "weight_std": weight.std,
        "weight_abs_mean": weight.abs_mean,
        "gradient_rms": rms,
        "gradient_abs_mean": absolute,
        "update_ratio": ratio,
    }
