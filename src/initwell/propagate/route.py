"""The walk that a prediction is made on: over meta tensors, and over the given batch where those do not do."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from initwell.errors import ModelError
from initwell.propagate.given.checks import check_types
from initwell.propagate.given.read_numbers import with_numbers
from initwell.propagate.given.start import Planned
from initwell.trace.batch import tensors
from initwell.trace.failure import NeedsValuesError, where
from initwell.trace.recorder import Loss, record
from initwell.trace.trace import Trace

_LOOKS = frozenset({"aten._local_scalar_dense", "aten.is_nonzero", "aten.equal"})


def traced(model: nn.Module, batch: Any, loss: Loss | None, notes: list[str], plan: Planned | None = None) -> Trace:
    """Record a model's forward and backward on meta tensors; where it reads numbers, on the batch itself.

    Args:
        model: any module.
        batch: what it takes.
        loss: where the backward starts, as for ``record``.
        notes: gets a line when the batch was run.
        plan: of the weights that numbers which the model reads are to be of; None for its own.

    Returns:
        The Trace; ``device`` says which of the two it is.

    Raises:
        ArgumentError: the batch is of another number type than the model's weights.
        ModelError: the model fails on real tensors too; or it reads numbers, and there are none to be read.
    """
    try:
        trace = record(model, batch, loss=loss, device="meta")
    except ModelError as error:
        failed = error
    else:
        check_types(trace)
        notes.extend(_by_chance(trace))
        return trace
    missing = _missing(model, batch)
    if missing:
        raise _without_numbers(failed, missing)
    # A failure on meta tensors may be theirs alone; the model's own comes up again, in PyTorch's usual words.
    trace = with_numbers(model, plan, partial(record, model, batch, loss=loss, device="real"))
    notes.append(_said(failed))
    return trace


def _by_chance(trace: Trace) -> Iterator[str]:
    """Say where the model looks at a random number, as stochastic depth does: another draw may take another route."""
    drawn = trace.folded.drawn
    looks = [op.path for op in trace.forward_ops if op.functional in _LOOKS and drawn.intersection(op.inputs)]
    if looks:
        places = ", ".join(where(path) for path in list(dict.fromkeys(looks))[:3])
        yield f"This model looks at random numbers, {len(looks)} times ({places}): the route is that of one draw."


def _missing(model: nn.Module, batch: Any) -> str:
    """Return what has no numbers, so that nothing can be run; "" for nothing."""
    if any(t.is_meta for t in model.parameters()) or any(t.is_meta for t in model.buffers()):
        return "the model is on the meta device"
    return next((f"{name} has no numbers" for name, t in tensors(batch, "batch") if t.is_meta), "")


def _without_numbers(failed: ModelError, missing: str) -> ModelError:
    if not isinstance(failed, NeedsValuesError):
        return failed
    found = ModelError(
        f"This model reads values of its tensors at {failed.place}, and {missing}. "
        "Build the model with real weights and give a batch of real tensors: predict then follows that batch's route."
    )
    found.__cause__ = failed
    return found


def _said(error: ModelError) -> str:
    if isinstance(error, NeedsValuesError):
        why = f"This model reads values of its tensors at {error.place}"
    else:
        why = f"This model does not run on meta tensors ({error.__cause__ or error})"
    return f"{why}: it was run on the given batch instead, and the route is that of this batch."
