"""What a loss is made of, up to the layers that it judges: played with drawn numbers where no rule serves it.

Cross-entropy, squared, absolute and binary losses have rules of their own, and so has all that is linear about them.
Others are written in ops: a KL divergence e^v − v + m², 1/(Σp + Σt), distances between rows of which each is the
other's negative, margins that most rows are within. Their gradients are no products of averages. But what is judged is
the output of layers of fresh weights, a Gaussian with moments that the walk has found, and the targets are known: so
the loss itself is run on numbers drawn by these, and its own backward with it. Rows of a layer's output are images of
few features, W a, so that their products vary as those of a; of two inputs that one layer reads W is the same, and the
rows go together as their covariances say.
"""

import math
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field

from initwell.trace.ops import ACTIVATIONS, BENDING, CONTRACTIONS, COPIES, VIEWS
from initwell.trace.trace import Op, Trace, ValueRef

_LOSS = "(loss)"
_MOST, _INPUTS, _LARGEST = 400, 16, 1 << 21
_DRAWN = frozenset({"aten.randn", "aten.randn_like", "aten.normal_functional"})
# Rows of a table are drawn as its weights are, which may not be Gaussian; a layer's outputs are sums of many.
_TABLES = frozenset({"aten.embedding"})
_UNPLAYED = (
    _TABLES
    | frozenset({"aten.bernoulli", "aten.native_dropout", "aten.rand", "aten.rand_like", "aten.uniform"})
    | {
        "aten.exponential",
        "aten.multinomial",
    }
)
_LAYERS = frozenset(CONTRACTIONS)
_SAVING = frozenset({"aten.detach", "aten.alias", *VIEWS, *COPIES})
_SUMS = frozenset({"aten.add", "aten.sub", "aten.rsub"})
_REDUCED = frozenset({"aten.sum", "aten.mean"})
_LINEAR = frozenset({*VIEWS, *COPIES, *_SUMS, *_REDUCED, "aten.neg", "aten.detach", "aten.alias", "aten.gather"})
_JUDGED_NAMES = """
    _log_softmax nll_loss_forward nll_loss2d_forward mse_loss smooth_l1_loss huber_loss soft_margin_loss
    binary_cross_entropy binary_cross_entropy_with_logits log_sigmoid_forward
"""
_JUDGED = frozenset(f"aten.{name}" for name in _JUDGED_NAMES.split())
"""Losses, and parts of such, that have rules of their own."""
_TAIL = frozenset({*VIEWS, *COPIES, *ACTIVATIONS, *BENDING, *_REDUCED, "aten.mul", "aten.div", "aten.detach"}) | {
    "aten.alias",
    "aten.linalg_vector_norm",
    "aten.norm",
    "aten._softmax",
    "aten._log_softmax",
    "aten.native_layer_norm",
}
"""Ops between the last layers of a model and its loss that are played with it."""


@dataclass
class Judging:
    """The forward of a stretch: its ops, what they read of layers and of parameters, and where it starts back.

    Attributes:
        ops: by index.
        inputs: values that layers make, random numbers, and inputs of the model.
        parameters: that it reads itself.
        arriving: gradients that a walk starts back with → the losses that they belong to.
    """

    ops: dict[int, Op] = field(default_factory=dict)
    inputs: set[int] = field(default_factory=set)
    parameters: set[int] = field(default_factory=set)
    arriving: dict[int, int] = field(default_factory=dict)


def judging(trace: Trace, values: Container[int], is_weight: Callable[[int], bool]) -> Judging | None:
    """Find what is to be played of the losses of a trace; None for nothing.

    Args:
        trace: from ``record``.
        values: ids of what has real numbers.
        is_weight: whether a value shows a parameter.
    """
    found = Judging(arriving=dict(_losses(trace)))
    waiting = [op for op in map(trace.producer, found.arriving.values()) if op is not None]
    written_out = any(op.path.startswith(_LOSS) for op in waiting)
    while waiting:
        op = waiting.pop()
        if op.index in found.ops:
            continue
        found.ops[op.index] = op
        if len(found.ops) > _MOST or any(math.prod(trace.values[o].shape) > _LARGEST for o in op.outputs):
            return None
        for value in (i for i in op.inputs if i not in values):
            made = trace.producer(value)
            if made is None and trace.values[value].kind in ("parameter", "buffer"):
                found.parameters.add(value)
            elif made is not None and made.functional in _UNPLAYED:
                return None
            elif made is None or _is_end(trace, values, made, is_weight, written_out=written_out):
                found.inputs.add(value)
            else:
                waiting.append(made)
    here = [op for op in found.ops.values() if op.path.startswith(_LOSS) or not written_out]
    if len(found.inputs) > _INPUTS or all(_has_rule(values, op) for op in here):
        return None
    found.ops |= {op.index: op for op in _saved(trace, found)}
    return found


def _saved(trace: Trace, found: Judging) -> Iterator[Op]:
    """Go over the copies, for the backward, of what a stretch makes and reads."""
    made = {value for op in found.ops.values() for value in op.outputs} | found.inputs
    for op in trace.forward_ops:
        if op.functional in _SAVING and made.issuperset(op.inputs):
            made.update(op.outputs)
            yield op


def _losses(trace: Trace) -> Iterator[tuple[int, int]]:
    """Go over the gradients that a walk starts back with at single numbers, and these."""
    begun = {v.name: v.id for v in trace.values if v.kind == "cotangent"}
    for value in [*trace.outputs.values()] if trace.loss is None else [trace.loss]:
        gradient = trace.gradients.get(value) if trace.loss is None else begun.get("loss")
        if gradient is not None and math.prod(trace.values[value].shape) == 1 and trace.producer(value) is not None:
            yield gradient, value


def _is_end(
    trace: Trace, values: Container[int], made: Op, is_weight: Callable[[int], bool], *, written_out: bool
) -> bool:
    """Whether what a loss reads is taken as it comes: a layer made it, or what else sums many terms of a model."""
    name = made.functional
    if name in _DRAWN or (name in _LAYERS and any(is_weight(i) for i in made.inputs)):
        return True
    if not written_out or made.path.startswith(_LOSS):
        return False
    random = [i for i in made.inputs if i not in values]
    if name in _REDUCED:
        return len(trace.values[made.inputs[0]].shape) > 3
    return name not in _TAIL and not (name in _SUMS and len(random) == 1)


def _has_rule(values: Container[int], op: Op) -> bool:
    """Whether rules of moments serve an op of a loss: it is linear, or one of those with a rule of its own."""
    if op.functional in ("aten.mul", "aten.div"):
        one, two = (
            isinstance(ref, ValueRef) and ref.id not in values for ref in (op.arguments["self"], op.arguments["other"])
        )
        return not (one and two) and not (two and op.functional == "aten.div")
    return op.functional in _LINEAR or op.functional in _JUDGED
