"""``predict``: the size of every activation and gradient, from moments."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from initwell.propagate.default import default_table
from initwell.propagate.engine import walk
from initwell.propagate.given.checks import check_arguments, note_strangers, without_complex, without_nan
from initwell.propagate.given.described import given_numbers, given_signals, stood_in
from initwell.propagate.given.indices import check_indices
from initwell.propagate.given.known import Known, known_values
from initwell.propagate.given.prepared import prepared
from initwell.propagate.given.start import (
    Planned,
    as_mapping,
    buffer_signals,
    kept_parameters,
    parameter_signals,
    starting_gradients,
)
from initwell.propagate.moments.signal import Signal
from initwell.propagate.result.prediction import Prediction, prediction
from initwell.propagate.route import traced
from initwell.propagate.table import Rule
from initwell.trace.batch import check_module
from initwell.trace.recorder import ONE_AT_A_TIME, Loss
from initwell.trace.trace import Folded, Trace


def predict(
    model: nn.Module,
    batch: Any,
    *,
    loss: Loss | None = None,
    plan: Planned | None = None,
    rules: Mapping[str, Rule] | None = None,
    learning_rate: float | None = None,
) -> Prediction:
    """Predict how large every activation and every gradient of a model is, without running it on data.

    The model's own forward and backward are recorded on the meta device, which computes shapes only, and walked once
    with second moments. Those of the batch, of what is made of it before any weight, and of real weights are measured;
    the model is left as it was. A model that reads values of its tensors, so that the meta device does not do, is run
    on the batch, and the notes say so; again with other weights where it may reckon with what it reads.

    Args:
        model: any module, in the mode (train or eval) to be predicted; real or on the meta device.
        batch: a tensor, a tuple of positional arguments, a dict of keyword arguments, or the one argument. Only
            moments are used, of it and of what is made of it before any weight: mean, and second moments by which of
            sample, channel, position two entries share. A ``Signal`` (see ``signal``) may stand in the place of any
            floating tensor.
        loss: output → differentiable scalar. Without it the backward starts from an independent gradient of unit
            variance on every floating output, as in ``measure``.
        plan: weights as this ``Plan`` would draw them, in place of those there are.
        rules: further or other rules for this call: op packet → function of a ``Call`` that returns a Signal, or None
            for unknown, for each output.
        learning_rate: of plain gradient descent, for the update-to-weight ratios.

    Returns:
        The Prediction, whose rows are those of ``measure``.

    Raises:
        ArgumentError: no module, an empty or sparse batch, NaN or infinite inputs, inputs of the wrong number type, a
            plan of another model, rules that are none, a loss that gives no differentiable scalar, a learning rate
            that is not positive.
        ModelError: the model's own failure, with the module path; a rule's; or the model reads values and is on the
            meta device.

    Source: mean-field theory of signal propagation, Poole et al. 2016 and Schoenholz et al. 2017, for whole tensors.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.ReLU())
    >>> _ = nn.init.normal_(model[0].weight, std=0.1)
    >>> found = predict(model, torch.randn(64, 100))
    >>> [(row["path"], row["op"], round(row["forward_rms"] / 0.1) * 0.1) for row in found.rows]
    [('0', 'aten.mm', 1.0), ('1', 'aten.relu', 0.7000000000000001)]
    """
    check_module(model)
    with ONE_AT_A_TIME:  # another thread's walk of this model has its weights on meta
        batch, described = stood_in(model, batch)
        check_arguments(model, batch, plan, learning_rate)
        table = default_table().with_rules(rules)
        notes = [*getattr(plan, "notes", ())]
        trace = traced(model, batch, loss, notes, plan)
        values, start = _begun(model, trace, batch, described, plan, notes, rules or {})
    found = walk(trace, table, without_nan(trace, start, values, notes), values)
    # The numbers have done their work: a prediction may be kept long, and they are up to 256 MB.
    return prediction(replace(trace, folded=Folded()), found, [*notes, *values.folded.notes], learning_rate)


def _begun(
    model: nn.Module,
    trace: Trace,
    batch: Any,
    described: Mapping[int, Signal],
    plan: Planned | None,
    notes: list[str],
    ruled: Collection[str],
) -> tuple[Known, Mapping[int, Signal]]:
    """Return the known numbers of a trace, and the signals that its walk starts with; notes get what was left out."""
    numbers = given_numbers(model, trace, batch, described)
    kept = kept_parameters(model, trace, plan)
    made, rows = prepared(trace, numbers, ruled)
    values = known_values(trace, kept, rows, made, numbers)
    check_indices(trace, values)
    note_strangers(trace, values, notes)
    moving = without_complex(trace, notes)
    parts = [
        given_signals(model, moving, batch, described),
        parameter_signals(model, moving, plan, notes),
        buffer_signals(model, moving, notes),
        starting_gradients(trace),
    ]
    return values, as_mapping(parts)
