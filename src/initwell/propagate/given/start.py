"""Where a walk starts: the signals of inputs, parameters, buffers and starting gradients."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from initwell.errors import ArgumentError
from initwell.propagate.dry import redrawn
from initwell.propagate.given.measured import measured, measured_weight, with_lengths, with_places, with_unlike_noted
from initwell.propagate.moments.signal import Signal, constant, independent, replace
from initwell.trace.batch import as_arguments, tensors, uncompiled
from initwell.trace.trace import Trace
from initwell.trace.wrappers import unwrapped_names


class PlannedRow(Protocol):
    """What is read of a row of a Plan."""

    @property
    def parameter(self) -> str:
        """Its dotted name."""

    @property
    def distribution(self) -> Any:
        """What is drawn: has ``mean`` and ``std``; None for nothing."""

    @property
    def tied_to(self) -> tuple[str, ...]:
        """Other names of the same tensor."""


class Planned(Protocol):
    """What is read of a Plan."""

    @property
    def rows(self) -> Sequence[Any]:
        """One row a parameter."""


def input_signals(model: nn.Module, trace: Trace, batch: Any) -> dict[int, Signal]:
    """Measure the floating tensors of the batch.

    Args:
        model: that was traced.
        trace: of the model on this batch.
        batch: what it was called with; what shares the length of its first tensor has samples along dimension 0.

    Returns:
        Their signals, by value id.

    Raises:
        ArgumentError: a tensor of the batch is on the meta device, so that it has no numbers.
    """
    args, kwargs = as_arguments(uncompiled(model), batch)
    given = dict([*tensors(args, "input"), *tensors(kwargs, "input")])
    sizes = [t.shape[0] for t in given.values() if t.ndim]
    found: dict[int, Signal] = {}
    for name, value in trace.inputs.items():
        tensor = given[name]
        if tensor.is_meta:
            raise ArgumentError(name, "a tensor on the meta device", "Its moments are measured: give real numbers.")
        if tensor.is_floating_point():
            sample = 0 if tensor.ndim and tensor.shape[0] == sizes[0] else None
            signal = measured(tensor, sample=sample)
            if sample == 0:
                signal = with_places(signal, tensor) if convolved(trace, value) else with_lengths(signal, tensor)
            found[value] = with_unlike_noted(signal, tensor, "samples of the batch") if sample == 0 else signal
    return found


def convolved(trace: Trace, value: int) -> bool:
    """Whether a convolution or a pooling reads this value itself, so that its last dimensions are positions."""
    return any("conv" in op.functional or "pool" in op.functional for op in trace.consumers(value))


# Relative variance of the squared entries: E[w⁴]/E[w²]² − 1.
_SCATTER = {"constant": 0.0, "uniform": 0.8, "truncated_normal": 1.36}


def parameter_signals(model: nn.Module, trace: Trace, plan: Planned | None, notes: list[str]) -> dict[int, Signal]:
    """Give every parameter its signal: of the plan, else of its real values, else of PyTorch's default.

    Args:
        model: owner of the parameters.
        trace: of the model.
        plan: a Plan, or None.
        notes: gets a line for what could not be known.

    Returns:
        Their signals, by value id.

    Raises:
        ArgumentError: the plan has rows for parameters that the model has not.
    """
    own_names = unwrapped_names(model)
    planned = dict(distributions(plan, own_names))
    unknown = set(planned) - set(trace.parameters)
    if unknown:
        names = ", ".join(sorted(unknown)[:3])
        raise ArgumentError(
            "plan", f"rows for {names}", "The model has no such parameters: make the plan for this model."
        )
    found: dict[int, Signal] = {}
    guessed, missing = [], []
    tensors_by_name = dict(model.named_parameters(remove_duplicate=False))
    for name, value in trace.parameters.items():
        tensor = tensors_by_name[name]
        if 0 in tensor.shape:
            # Such as the registers of a model that has none: there is nothing to know of it.
            continue
        if name in planned:
            distribution = planned[name]
            mean, std = float(distribution.mean), float(distribution.std)
            # What a constructor would draw is known by its mean and std alone.
            spread = _SCATTER.get(getattr(distribution, "kind", ""), 2.0)
            found[value] = replace(independent(tensor.shape, mean**2 + std**2, mean), scatter=(spread,))
        elif value in found:
            continue
        elif not tensor.is_meta:
            numbers = tensor if tensor.layout is torch.strided else tensor.detach().to_dense()
            found[value] = with_unlike_noted(measured_weight(numbers), numbers, f"rows of {name}")
        elif (signal := _default(model, name, tensor)) is not None:
            found[value] = signal
            guessed.append(name)
        else:
            missing.append(name)
    found |= _magnitudes(plan, trace, found, own_names)
    if guessed:
        notes.append(f"{len(guessed)} parameters without numbers (meta device) count as PyTorch's default draws them.")
    if missing:
        notes.append(f"Parameters without numbers, plan or known default: {', '.join(missing)}.")
    if left := _left_out(plan, trace, own_names, tensors_by_name):
        named = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        notes.append(f"Not drawn, for want of a row, so they count as they are: {named}.")
    return found


def kept_parameters(model: nn.Module, trace: Trace, plan: Planned | None) -> dict[int, Tensor]:
    """Return the parameters that are not drawn anew and have numbers, by value id: they are as they are.

    Args:
        model: owner of the parameters.
        trace: of the model.
        plan: a Plan, or None.
    """
    drawn = {name for name, _ in distributions(plan, unwrapped_names(model))}
    own = dict(model.named_parameters(remove_duplicate=False))
    return {value: own[name] for name, value in trace.parameters.items() if name not in drawn and not own[name].is_meta}


def _left_out(plan: Planned | None, trace: Trace, names: Mapping[str, str], own: Mapping[str, Tensor]) -> list[str]:
    rows = {names.get(name, name) for row in plan.rows for name in (row.parameter, *row.tied_to)} if plan else set()
    return [name for name in trace.parameters if rows and name not in rows and not own[name].is_meta]


def distributions(plan: Planned | None, names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Go over the parameters that a plan draws, tied ones too, with what each is drawn from.

    Args:
        plan: a Plan; None draws nothing.
        names: a parameter's name in the plan → its name in the model, where wrappers put something into that.
    """
    for row in plan.rows if plan is not None else ():
        if row.distribution is not None:
            for name in (row.parameter, *row.tied_to):
                yield names.get(name, name), row.distribution


def _magnitudes(
    plan: Planned | None, trace: Trace, found: Mapping[int, Signal], names: Mapping[str, str]
) -> dict[int, Signal]:
    """Give the magnitudes of weight norms, which a plan sets to the norms of what it draws: ‖v‖² is n·E[v²]."""
    sizes: dict[int, Signal] = {}
    for row in plan.rows if plan is not None else ():
        # What a constructor would draw has no such rows.
        direction = names.get(getattr(row, "norm_of", ""), "")
        if direction in trace.parameters:
            value = trace.parameters[names.get(row.parameter, row.parameter)]
            v, shape = found[trace.parameters[direction]], trace.values[value].shape
            sizes[value] = constant(shape, math.sqrt(v.q * math.prod(v.shape) / max(math.prod(shape), 1)))
    return sizes


def _default(model: nn.Module, name: str, tensor: Tensor) -> Signal | None:
    # torch.nn.modules: Linear and convolutions U(±1/√fan_in), Embedding N(0, 1), norms, its own too, the identity;
    # others, such as LSTM and attention, are asked.
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear) and own == "bias":
        return constant(tensor.shape, 0.0)  # the last layer of attention, which sets it so
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        fan = math.prod(module.weight.shape[1:])
        return replace(independent(tensor.shape, 1 / (3 * fan)), scatter=(0.8,))
    if isinstance(module, nn.Embedding):
        return independent(tensor.shape, 1.0)
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    own_norm = type(module).__name__.endswith("Norm") and tensor.ndim == 1
    if isinstance(module, norms) or own_norm:
        return constant(tensor.shape, 1.0 if own == "weight" else 0.0)
    drawn = redrawn(module).get(own)
    return None if drawn is None else independent(tensor.shape, drawn.mean**2 + drawn.std**2, drawn.mean)


def buffer_signals(model: nn.Module, trace: Trace, notes: list[str]) -> dict[int, Signal]:
    """Let running statistics without numbers start at 0 and 1; buffers with numbers are known values.

    Args:
        model: owner of the buffers.
        trace: of the model.
        notes: gets a line for the others that have no numbers.

    Returns:
        The signals of running statistics without numbers, by value id.
    """
    buffers = dict(model.named_buffers())
    found: dict[int, Signal] = {}
    missing = []
    for value in trace.values:
        if value.kind != "buffer" or value.name not in buffers or not buffers[value.name].is_meta:
            continue
        if value.name.endswith(("running_var", "running_mean")):
            found[value.id] = constant(value.shape, float(value.name.endswith("running_var")))
        elif trace.consumers(value.id):
            missing.append(value.name)
    if missing:
        notes.append(f"Buffers without numbers (meta device), so unknown: {', '.join(missing)}.")
    return found


def starting_gradients(trace: Trace) -> dict[int, Signal]:
    """Give each output an independent gradient of unit variance; the loss, its own: 1."""
    found: dict[int, Signal] = {}
    for value in trace.values:
        if value.kind == "cotangent":
            found[value.id] = constant(value.shape, 1.0) if value.name == "loss" else independent(value.shape, 1.0)
    return found


def as_mapping(found: Sequence[Mapping[int, Signal]]) -> dict[int, Signal]:
    """Put several parts together."""
    return {value: signal for part in found for value, signal in part.items()}
