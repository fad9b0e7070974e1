"""Experts: one matrix product for the rows of each expert, and rows in the order of their experts.

The rows of one expert share its weights; see ``slots`` for how pairs of rows are told apart. The product of rows with
weights looked up by expert is the contraction rule, row by row; the weights' gradient adds up the rows of each expert,
tokens·k/E of them on average, and pairs of rows by whether they have one expert. Sorts of indices and what is counted
of them are whole numbers that nobody reads but the products themselves.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.laws.lengths import by_layer
from initwell.propagate.moments.alike import plain
from initwell.propagate.moments.atoms import expanded, matched, permuted, viewed
from initwell.propagate.moments.labels import labels
from initwell.propagate.moments.signal import Signal, merged_fidelity, replace
from initwell.propagate.moments.slots import Slots, by_row, marked, slot_axis, summed_by_expert
from initwell.propagate.routing.chains import choice, is_order, is_token
from initwell.propagate.rules import row_products
from initwell.propagate.rules.contraction import contract, tilt_of_layer
from initwell.propagate.rules.extremes import of_one
from initwell.propagate.rules.ordered import cumulated
from initwell.propagate.rules.parts import one_atom
from initwell.propagate.rules.shape import summed
from initwell.propagate.table import Call, Rule, UnknownSignalError
from initwell.trace.trace import ValueRef


def slots_of(call: Call, ref: object) -> Slots | None:
    """Return the slots of the choice that whole numbers come from, where it is known."""
    op = choice(call.trace, ref)
    chosen = call.known.get(op.outputs[0]) if op is not None else None
    axis = slot_axis(chosen) if chosen is not None else None
    return chosen.atoms[axis].slots if chosen is not None and axis is not None else None


def _rows_of(x: Signal, slots: Slots) -> Signal:
    """Say of rows that the last atom of them counts a token's experts."""
    tokens = int(np.prod(slots.tokens))
    if x.shape[0] % tokens or x.shape[0] == tokens:
        raise UnknownSignalError("rows of experts that are none of the tokens")
    split = viewed(x, (tokens, x.shape[0] // tokens, *x.shape[1:]))
    whole = viewed(one_atom(plain(split, 1), 1), x.shape)
    return whole if whole.dims[0][-1].slots is not None else marked(whole, 0, slots)


def rows_looked_up(call: Call, ref: object) -> Sequence[Signal | None]:
    """Look up rows by a choice: what is sorted by expert, its token, or what its expert has; nothing for others.

    Args:
        call: of an index with one index, of dimension 0.
        ref: that index.
    """
    slots = slots_of(call, ref)
    if slots is None:
        return []
    if not call.trace.values[call.op.outputs[0]].is_floating:
        return [None]
    x, rows = call.signal("self"), call.shape()[0]
    if is_order(call.trace, ref):
        return [_rows_of(x, slots)]
    if is_token(call.trace, ref):
        tokens = x.shape[0]
        wide = expanded(viewed(x, (tokens, 1, *x.shape[1:])), (tokens, rows // tokens, *x.shape[1:]))
        return [_rows_of(viewed(wide, (rows, *x.shape[1:])), slots)]
    if x.shape[0] != slots.experts:
        return []
    chosen = call.known[_choice_id(call, ref)]
    return [by_row(one_atom(plain(x, 0), 0), tuple(a for d in chosen.dims for a in d), slots)]


def _choice_id(call: Call, ref: object) -> int:
    op = choice(call.trace, ref)
    if op is None:
        raise UnknownSignalError("an index that is no choice")
    return op.outputs[0]


def rows_put_back(call: Call, ref: object) -> Sequence[Signal | None]:
    """Add gradients of rows into what they were looked up from by a choice; nothing for others."""
    slots = slots_of(call, ref)
    if slots is None:
        return []
    if not call.trace.values[call.op.outputs[0]].is_floating:
        return [None]
    g, length = call.signal("values"), call.shape()[0]
    if is_order(call.trace, ref):
        return [_rows_of(g, slots)]
    rows = _rows_of(g, slots)
    if not is_token(call.trace, ref):
        return [summed_by_expert(rows)] if length == slots.experts else []
    split = viewed(rows, (length, rows.shape[0] // length, *g.shape[1:]))
    return [summed(split, [1], keep=False, mean=False)]


def _grouped(call: Call) -> Sequence[Signal]:
    a, b = call.signal("self"), call.signal("mat2")
    slots = slots_of(call, call["offs"])
    if slots is None or call["bias"] is not None:
        raise UnknownSignalError("groups of rows that come from no known choice")
    if (len(a.dims), len(b.dims)) == (2, 3):
        rows = _rows_of(a, slots)
        found = contract(rows, by_row(one_atom(plain(b, 0), 0), rows.dims[0], slots), [(1, 1)], [(0, 0)])
        backward = call.op.phase == "backward"
        return [replace(found, tilt=tilt_of_layer(call, a)) if backward else replace(found, **by_layer(a))]
    if (len(a.dims), len(b.dims)) == (2, 2):
        return [_by_expert(_rows_of(permuted(a, [1, 0]), slots), _rows_of(b, slots))]
    raise UnknownSignalError("groups of another kind")


def _by_expert(a: Signal, b: Signal) -> Signal:
    """Return Σ a_s ⊗ b_s over the rows s of each expert."""
    a, b = matched(a, b, [(0, 0)])
    names = labels(tuple(map(len, a.dims)), tuple(map(len, b.dims)), (), ((0, 0),))
    dims = (a.dims[0], a.dims[1], b.dims[1])
    moments = np.einsum(names.moments, a.moments, b.moments)
    means = np.einsum(names.means, a.means, b.means)
    return merged_fidelity(summed_by_expert(a.changed(moments, means, dims=dims)), b)


def _whole_numbers(call: Call) -> Sequence[Signal | None]:
    """Give whole numbers no signal, where they are those of a choice; what is alone in its row is in order."""
    if call.trace.values[call.op.outputs[0]].is_floating and (alone := of_one(call)) is not None:
        return alone
    if choice(call.trace, call["self"]) is None:
        raise UnknownSignalError("whole numbers that come from no known choice")
    return [None] * len(call.op.outputs)


def _cumsum(call: Call) -> Sequence[Signal | None]:
    """Return running sums; of the counts of a choice, where a group ends, which nobody reads but the products."""
    if choice(call.trace, call["self"]) is not None:
        return [None]
    x, dim = call.signal("self"), call["dim"] % max(len(call.shape()), 1)
    found = cumulated(x, dim)
    return [row_products.summed(call, x, found, [dim]) if x.dims else found]


def _counts(call: Call) -> Sequence[Signal | None]:
    """Count the rows of each expert: E[n_e n_e'] adds up all pairs of rows by whether they have one expert."""
    slots = slots_of(call, call["self"])
    if slots is None or call["bins"] != slots.experts:
        raise UnknownSignalError("a histogram of what comes from no known choice")
    if not call.trace.values[call.op.outputs[0]].is_floating or not isinstance(call["self"], ValueRef):
        return [None]
    chosen = call.known[_choice_id(call, call["self"])]
    ones = chosen.changed(np.ones_like(chosen.moments), 1.0, dims=(tuple(a for d in chosen.dims for a in d),))
    return [summed_by_expert(marked(ones, 0, slots))]


RULES: Mapping[str, Rule] = {
    "aten._grouped_mm": _grouped,
    "aten.histc": _counts,
    "aten.cumsum": _cumsum,
    **dict.fromkeys(("aten.sort", "aten.floor_divide"), _whole_numbers),
}
