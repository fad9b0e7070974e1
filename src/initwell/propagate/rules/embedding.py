"""Table look-up: two places hold the same row as often as their tokens are equal, which is measured from the batch.

moments(y) = same · W[row agrees] + (1 − same) · W[row differs], with ``same`` by which of the batch's axes differ.
In the backward the gradients of equal tokens are summed into their row.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.atoms import viewed
from initwell.propagate.signal import Signal, independent, merged_fidelity
from initwell.propagate.table import Call, Rule, UnknownSignalError
from initwell.trace.trace import ValueRef


def _tokens(call: Call) -> Signal:
    ref = call["indices"]
    if isinstance(ref, ValueRef):
        if ref.id in call.tokens:
            return call.tokens[ref.id]
        producer = call.trace.producer(ref.id)
        if producer is not None and producer.functional == "aten.arange":
            return independent(call.trace.values[ref.id].shape, 1.0)
        if producer is not None and producer.inputs and producer.functional in _CARRIERS:
            first = producer.inputs[0]
            if first in call.tokens:
                return viewed(call.tokens[first], call.trace.values[ref.id].shape)
            before = call.trace.producer(first)
            if before is not None and before.functional == "aten.arange":
                return independent(call.trace.values[ref.id].shape, 1.0)
    raise UnknownSignalError("which tokens are equal")


_CARRIERS = frozenset({"aten.view", "aten.clone", "aten.unsqueeze", "aten.detach"})


def _embedding(call: Call) -> Sequence[Signal]:
    weight, same = call.signal("weight"), _tokens(call)
    if len(weight.dims[0]) != 1:
        raise UnknownSignalError("a table of one row")
    agree, differ = weight.moments.take(0, 0), weight.moments.take(1, 0)
    moments = np.multiply.outer(same.moments, agree) + np.multiply.outer(1 - same.moments, differ)
    return [weight.changed(moments, weight.mean, dims=(*same.dims, *weight.dims[1:]), gaussian=True)]


def _embedding_backward(call: Call) -> Sequence[Signal]:
    g, same = call.signal("grad_output"), _tokens(call)
    rows = int(call["num_weights"])
    places = len(same.atoms)
    if tuple(a.size for a in g.atoms[:places]) != tuple(a.size for a in same.atoms):
        raise UnknownSignalError("a gradient whose axes are not the tokens'")
    total = np.zeros(g.moments.shape[places:])
    for place in np.ndindex(same.moments.shape):
        pairs = math.prod(a.size * (a.size - 1 if p else 1) for a, p in zip(same.atoms, place, strict=True))
        total = total + pairs * same.moments[place] * g.moments[place]
    found = independent((rows, *g.shape[len(same.dims) :]), 1.0)
    moments = np.stack([total / rows, np.zeros_like(total)], 0)
    return [merged_fidelity(found.changed(moments, 0.0), g)]


RULES: Mapping[str, Rule] = {
    "aten.embedding": _embedding,
    "aten.embedding_dense_backward": _embedding_backward,
}
