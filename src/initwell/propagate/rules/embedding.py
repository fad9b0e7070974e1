"""Embeddings: a look-up by one index in the rows of a table, and its backward; see ``lookup``."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from initwell.propagate.given.agreement import places
from initwell.propagate.given.measured import measured
from initwell.propagate.moments.atoms import expanded, together, viewed
from initwell.propagate.moments.gram import of_table
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.branch import multiplied, scaled
from initwell.propagate.rules.lookup import Lookup, looked_up, lookup, put_back
from initwell.propagate.rules.shape import summed
from initwell.propagate.table import Call, Rule, UnknownSignalError

_PADDED = "rows of a padding token, which are 0: followed by their sizes alone, as any other behind ops that do not"


def _indices(call: Call) -> tuple[Tensor, int | None]:
    index = call.value("indices")
    if index is None:
        raise UnknownSignalError("which tokens are equal")
    return index, call.values.sample(call["indices"].id)


def _embedding(call: Call) -> Sequence[Signal]:
    """Two places hold the same row as often as their tokens are equal; the padding token's is 0.

    Of a table that is neither drawn nor trained, such as one of sinusoids, the rows that are looked up are measured.
    """
    index, sample = _indices(call)
    table = call.values.frozen.get(call["weight"].id)
    if table is not None:
        shown = f"frozen {call['weight'].id} {call.values.folded.first[call['indices'].id]}"
        rows = call.values.once(shown, lambda: _shown(table.cpu()[index], sample))
        return [replace(rows, gaussian=True)]
    weight = call.signal("weight")
    found = looked_up(weight, lookup(weight.dims, {0: index}, sample))
    found = found.changed(found.moments, found.means, gaussian=True)
    padding = int(call["padding_idx"])
    name = f"padding {call.values.folded.first[call['indices'].id]} {padding}"
    kept = (
        call.values.once(name, lambda: measured((index != padding).double(), sample=sample)) if padding >= 0 else None
    )
    if kept is None or kept.q == 1.0:
        return [found]
    kept = viewed(kept, (*index.shape, *(1,) * (len(found.dims) - index.ndim)))
    product = multiplied(*together(found, kept, found.shape))
    return [replace(product, gaussian=True).approximate(_PADDED)]


def _shown(rows: Tensor, sample: int | None) -> Signal:
    found = measured(rows, sample=sample)
    return of_table(found, rows.detach().double().numpy()) if rows.ndim > 1 else found


def _embedding_backward(call: Call) -> Sequence[Signal]:
    """Add the gradients of equal tokens into their row; those of the padding token are left out."""
    index, sample = _indices(call)
    if call["scale_grad_by_freq"]:
        raise UnknownSignalError("gradients divided by how often their token occurs")
    g, rows, padding = call.signal("grad_output"), int(call["num_weights"]), int(call["padding_idx"])
    shape = (rows, *g.shape[index.ndim :])
    found = lookup(places(shape), {0: index}, sample)
    if padding >= 0 and rows > 1:
        g, found = _unpadded(g, found, index == padding)
    # That some tokens are rarer than others is what every table has: the average over all rows is meant.
    return [put_back(g, found, shape)]


def _unpadded(g: Signal, found: Lookup, padded: Tensor) -> tuple[Signal, Lookup]:
    """Leave out the pairs of places of which one is padding, by which their rows are equal where both are."""
    both, none = measured(padded.double()).moments, measured((~padded).double()).moments
    equal = found.shares[0] - both
    kept = float((~padded).double().mean())
    shares = np.stack([equal, none - equal])
    moments = g.changed(g.moments, g.means * kept, gaussian=g.gaussian)
    return moments, Lookup(found.dims, found.sizes, shares, found.places, found.least, found.most)


def _bags(call: Call, length: int) -> tuple[Tensor, float]:
    """Return the indices of bags of equal size, bag by bag, and what each of them counts.

    Raises:
        UnknownSignalError: the bags are of unequal sizes, or take the largest, or weigh their tokens.
    """
    index, starts = call.value("indices"), call.value("offsets")
    if index is None or starts is None or call["per_sample_weights"] is not None or int(call["padding_idx"]) >= 0:
        raise UnknownSignalError("bags of tokens that are not known, weighed or padded")
    size = index.numel() // max(length, 1)
    even = bool((starts[:length] == torch.arange(length) * size).all()) and size * length == index.numel()
    if call["mode"] not in (0, 1) or not even or size == 0:
        raise UnknownSignalError("bags of unequal size, or their largest")
    return index.view(length, size), 1.0 if call["mode"] == 0 else 1.0 / size


def _embedding_bag(call: Call) -> Sequence[Signal | None]:
    """Sum or average the rows of each bag."""
    index, weight = _bags(call, call.shape()[0])
    table = call.signal("weight")
    rows = looked_up(table, lookup(table.dims, {0: index}, call.values.sample(call["offsets"].id)))
    found = scaled(summed(rows, [1], keep=False, mean=False), weight)
    return [found, *[None] * (len(call.op.outputs) - 1)]


def _embedding_bag_backward(call: Call) -> Sequence[Signal]:
    g = call.signal("grad")
    index, weight = _bags(call, g.shape[0])
    if call["scale_grad_by_freq"]:
        raise UnknownSignalError("gradients divided by how often their token occurs")
    g = scaled(g, weight)
    wide = expanded(g.regrouped((g.dims[0], (), g.dims[1]), g.moments), (*index.shape, g.shape[1]))
    shape = (int(call["num_weights"]), g.shape[1])
    return [put_back(wide, lookup(places(shape), {0: index}), shape)]


RULES: Mapping[str, Rule] = {
    "aten.embedding": _embedding,
    "aten.embedding_dense_backward": _embedding_backward,
    **dict.fromkeys(("aten._embedding_bag", "aten._embedding_bag_forward_only"), _embedding_bag),
    **dict.fromkeys(("aten._embedding_bag_backward", "aten._embedding_bag_dense_backward"), _embedding_bag_backward),
}
