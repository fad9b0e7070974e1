"""What ``predict`` refuses before it walks: batches, plans and number types that the model would stumble over."""

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
from torch import nn

from initwell.errors import ArgumentError, ModelError
from initwell.propagate.given.known import Known
from initwell.propagate.moments.signal import Signal, replace
from initwell.trace.batch import check_batch, tensors
from initwell.trace.failure import where
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace, ValueRef
from initwell.trace.wrappers import unwrapped_names

# Ops whose operands are all of one number type, and ops that take no whole numbers.
_OF_ONE_TYPE_NAMES = "mm addmm bmm baddbmm mv addmv dot convolution"
_NORM_NAMES = "native_layer_norm native_group_norm native_batch_norm"
_FLOATING_NAMES = "_softmax _log_softmax gelu silu mish elu leaky_relu softplus hardswish hardsigmoid"
_OF_ONE_TYPE, _NORMS, _FLOATING_ONLY = (
    frozenset(f"aten.{name}" for name in names.split()) for names in (_OF_ONE_TYPE_NAMES, _NORM_NAMES, _FLOATING_NAMES)
)
# What a norm takes beside its input, in another type than that.
_MIXED = frozenset({"bfloat16", "float16"})


def check_arguments(model: nn.Module, batch: Any, plan: Any, learning_rate: float | None) -> None:
    """Refuse arguments that are not what they should be, before anything is run.

    Args:
        model: a module.
        batch: what should hold its arguments.
        plan: what should be a Plan, or None.
        learning_rate: what should be a positive number, or None.

    Raises:
        ArgumentError: naming the argument, what it was, and what to do.
    """
    _check_kind(batch)
    check_batch(batch, values=True)
    _check_plan(plan, model)
    if learning_rate is not None and not (is_number(learning_rate) and 0 < learning_rate < math.inf):
        raise ArgumentError("learning_rate", learning_rate, "Give a positive number, or None for no update ratios.")


def is_number(value: Any) -> bool:
    """Whether something is one real number, whatever its type.

    >>> [is_number(x) for x in (1, np.float32(0.5), True, "1", 1j)]
    [True, True, False, False, False]
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_kind(batch: Any) -> None:
    # A tuple or a dict may hold arguments that are no tensors; anything else without one is a mistake.
    if isinstance(batch, (tuple, Mapping)) or next(tensors(batch, "batch"), None) is not None:
        return
    kind = type(batch).__name__
    cure = "Give a tensor, a tuple of positional arguments, or a dict of keyword arguments."
    if kind == "ndarray":
        cure = "Give a tensor: torch.from_numpy(batch)."
    elif kind == "DataLoader":
        cure = "Give one batch of it, without the labels: next(iter(loader))[0]."
    raise ArgumentError("batch", f"a {kind}", cure)


def _check_plan(plan: Any, model: nn.Module) -> None:
    if plan is None:
        return
    if not hasattr(plan, "rows"):
        cure = "Give a Plan: iw.plan(model, 'kaiming')."
        raise ArgumentError("plan", repr(plan) if isinstance(plan, str) else f"a {type(plan).__name__}", cure)
    own = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: tuple(own[there].shape) for name, there in unwrapped_names(model).items()}
    for row in plan.rows:
        shape = tuple(getattr(row, "shape", shapes.get(row.parameter, ())))
        if row.parameter in shapes and shapes[row.parameter] != shape:
            got = f"shape {shape} for {row.parameter}, which has {shapes[row.parameter]}"
            raise ArgumentError("plan", got, "Make the plan for this model.")


def check_types(trace: Trace) -> None:
    """Refuse operands of number types that the op does not take together: real tensors would fail, meta ones do not.

    Raises:
        ArgumentError: an input of the batch is of the wrong type.
        ModelError: a value within the model is.
    """
    for op in trace.forward_ops:
        wrong = _wrong(trace, op)
        if wrong is None:
            continue
        value, wanted = wrong
        got = trace.values[value].dtype
        name = _input_name(trace, value)
        if name is None:
            raise ModelError(f"{op.name} at {where(op.path)} takes {wanted} numbers, and got {got}.")
        cure = f"{op.name} at {where(op.path)} takes {wanted}: give the tensor as .to(torch.{wanted})."
        raise ArgumentError(name, f"{got} numbers", cure)


def _wrong(trace: Trace, op: Op) -> tuple[int, str] | None:
    """Return the value of the wrong type among an op's operands, and the type that it should have."""
    if op.functional in _FLOATING_ONLY:
        return next(((v, "float32") for v in _operands(op) if _whole(trace.values[v].dtype)), None)
    if op.functional not in _OF_ONE_TYPE and op.functional not in _NORMS:
        return None
    operands = list(_operands(op))
    types = {trace.values[v].dtype for v in operands}
    if len(types) < 2 or (op.functional in _NORMS and trace.values[operands[0]].dtype in _MIXED):
        return None
    # The parameter is taken to be right, else the widest operand of real numbers.
    owned = [v for v in operands if _made_of_parameters(trace, v)] or [
        v for v in operands if not _whole(trace.values[v].dtype)
    ]
    wanted = trace.values[owned[0] if owned else operands[-1]].dtype
    return next((v, wanted) for v in operands if trace.values[v].dtype != wanted)


def _operands(op: Op) -> Iterator[int]:
    return (a.id for a in op.arguments.values() if isinstance(a, ValueRef))


def _whole(dtype: str) -> bool:
    return "float" not in dtype and "complex" not in dtype


def _root(trace: Trace, value: int) -> int:
    while (op := trace.producer(value)) is not None and op.inputs:
        if op.functional not in VIEWS and op.functional not in COPIES:
            break
        if trace.values[op.inputs[0]].dtype != trace.values[value].dtype:
            break
        value = op.inputs[0]
    return value


def _made_of_parameters(trace: Trace, value: int) -> bool:
    return trace.values[_root(trace, value)].kind == "parameter"


def _input_name(trace: Trace, value: int) -> str | None:
    root = _root(trace, value)
    return next((name for name, v in trace.inputs.items() if v == root), None)


def without_complex(trace: Trace, notes: list[str]) -> Trace:
    """Return the trace with complex inputs, parameters and buffers taken as unknown, and say where there are some.

    Args:
        trace: of the model; value ids stay.
        notes: gets a line where there are complex numbers.
    """
    odd = {v.id for v in trace.values if v.dtype.startswith("complex")}
    if not odd:
        return trace
    ops = [op for op in trace.forward_ops if odd.intersection(op.outputs)]
    paths = ", ".join(list(dict.fromkeys(where(op.path) for op in ops))[:3])
    notes.append(
        f"Complex numbers have no rows: what {len(ops)} ops make of them is not shown ({paths})."
        if ops
        else "Complex numbers that a model is given have no moments here: what is made of them is unknown."
    )
    values = tuple(replace(v, kind="constant") if v.id in odd and v.kind != "op" else v for v in trace.values)
    kept = {n: v for n, v in trace.inputs.items() if v not in odd}
    parameters = {n: v for n, v in trace.parameters.items() if v not in odd}
    return replace(trace, values=values, inputs=kept, parameters=parameters)


def note_strangers(trace: Trace, values: Known, notes: list[str]) -> None:
    """Say which modules read a tensor that is neither the model's nor the batch's, and has no numbers here.

    Args:
        trace: of the model.
        values: its known numbers.
        notes: gets a line where there are some.
    """
    strange = {v.id for v in trace.values if v.kind == "constant" and v.is_floating and v.id not in values}
    met = [where(op.path) for op in trace.forward_ops if strange.intersection(op.inputs)]
    met += [name for name, value in trace.outputs.items() if value in strange]
    if met:
        named = list(dict.fromkeys(met))
        more = f" and {len(named) - 3} more places" if len(named) > 3 else ""
        notes.append(
            "Unknown, as neither the model's own nor of the batch (a weight that is not registered, or what another "
            f"thread makes): tensors at {', '.join(named[:3])}{more}."
        )


def without_nan(trace: Trace, start: Mapping[int, Signal], values: Known, notes: list[str]) -> dict[int, Signal]:
    """Take signals that are no finite numbers as unknown, and name the weights and buffers that they are of.

    Args:
        trace: of the model.
        start: value id → signal.
        values: known numbers, those of buffers among them.
        notes: gets a line where there are some.
    """
    kept = {value: found for value, found in start.items() if np.isfinite(found.moments).all()}
    lost = [trace.values[value].name for value in start if value not in kept]
    buffers = [v for v in trace.values if v.kind == "buffer" and v.is_floating and v.id in values]
    lost += [v.name for v in buffers if trace.consumers(v.id) and bool(values[v.id].isnan().any())]
    if lost:
        named = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        notes.append(f"NaN or infinite entries, so what is made of them is unknown: {named}.")
    return kept
