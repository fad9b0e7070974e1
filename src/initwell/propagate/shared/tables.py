"""What one table shows at two sets of places, and what goes back into its rows from both.

Where the left and the right edge of each word's box are looked up in one table, two places show the same row as often
as their numbers are equal, and with P[place] the share of such pairs, row r of the table being independent of others,

    E[y_p y'_p'] = P[place] · moments(table)[row agrees] + (1 − P[place]) · moments(table)[row differs]

as in the look-up by one index (``rules.lookup``). A row of padding is 0 and varies with nothing. Gradients g and h that
are added into one table's rows vary together there as the sums over places that they are, by the same shares.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from initwell.propagate.given.agreement import Array, agreement, places
from initwell.propagate.given.known import Known
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.lookup import Lookup, looked_up, put_back
from initwell.propagate.shared.pairs import Pair
from initwell.propagate.shared.reuse import argument
from initwell.trace.trace import Op

SHOWN = "aten.embedding"
PUT_BACK = "aten.embedding_dense_backward"


def both_shown(p: Op, q: Op, known: Mapping[int, Signal], values: Known) -> Pair | None:
    """Return the covariances of what two look-ups in one table show; None where that is not known.

    Args:
        p: one look-up.
        q: another one, in the same table.
        known: value id → signal.
        values: what has real numbers.
    """
    weight = argument(p, "weight")
    table = None if weight is None or weight in values.frozen else known.get(weight)
    rows = 0 if table is None else table.shape[0]
    found = _shares(p, q, rows, values)
    one, two = (known.get(op.outputs[0]) for op in (p, q))
    if table is None or found is None or one is None or two is None or len(table.dims[0]) != 1 or table.segmented:
        return None
    shown = looked_up(table, found)
    return Pair(shown.dims, shown.moments - one.mean * two.mean)


def both_put_back(gradients: Pair, p: Op, q: Op, values: Known) -> Pair | None:
    """Return the covariances of two gradients of one table, given those of what comes back at its rows."""
    rows = int(p.arguments["num_weights"])
    found = _shares(p, q, rows, values)
    if found is None or p.arguments["scale_grad_by_freq"] or q.arguments["scale_grad_by_freq"] or rows < 2:
        return None
    whole = gradients.signal()
    made = put_back(whole, found, (rows, *whole.shape[len(found.places) :]))
    return Pair(made.dims, made.moments)


def _shares(p: Op, q: Op, rows: int, values: Known) -> Lookup | None:
    """Count how often a place of one look-up and a place of the other show one row that is not padding."""
    ids = [i for op in (p, q) if (i := argument(op, "indices")) is not None and i in values]
    if len(ids) < 2 or values[ids[0]].shape != values[ids[1]].shape:
        return None
    one, two = values[ids[0]], values[ids[1]]
    padding = int(p.arguments["padding_idx"])
    key = f"rows of two {values.folded.first[ids[0]]} {values.folded.first[ids[1]]} {padding}"
    shares = values.once(key, lambda: _counted(one, two, padding))
    return Lookup((0,), (rows,), shares, places(tuple(one.shape), values.sample(ids[0])), 0, 0)


def _counted(one: Tensor, two: Tensor, padding: int) -> Array:
    """Return the shares of pairs whose rows are one, and whose rows are two, neither of them padding."""
    # Two axes of one tensor more: pairs that differ there are of one place of each look-up.
    numbers = torch.stack([one, two])
    empty = numbers == padding
    apart = torch.tensor([-1, -2]).reshape(2, *(1,) * one.ndim)
    same = agreement(torch.where(empty, apart, numbers))[1]
    neither = agreement(torch.where(empty, apart, torch.zeros_like(numbers)))[1]
    return np.stack([same, neither - same])
