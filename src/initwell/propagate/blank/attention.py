"""How blank rows mix with others in attention; see ``walk``.

A blank row asks for nothing: its query is 0, so its weights are 1/V over the V rows that it may see, and its result
is their average,

    E[y²] = S·mean(e_s) + (1 − S)·d·mean(√(e_s e_s′)/e),     S = Σ p² = e^v/V at scores of a small variance v

over those rows s, d being the moment of two values that differ; where it sees none but blank ones, that is 0 again. The
gradient that it sends to the values that it saw is spread over them in the same way, and what it sends to its scores
is (1 − 1/V) of what any row of V equal weights does: of a row that sees only itself, 0.
"""

import math

import numpy as np
from torch import Tensor

from initwell.propagate.blank.rows import Rows
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace


def masked(rows: Rows, is_open: Tensor) -> Rows | None:
    """Return scores with what a known mask leaves open of them; None where it is not one of these rows and columns."""
    count, length = rows.tokens.padded.shape
    if is_open.ndim not in (2, 3, 4) or is_open.shape[-1] != length:
        return None
    # Heads have one mask.
    table = {2: lambda: is_open[None], 3: lambda: is_open, 4: lambda: is_open[:, 0]}[is_open.ndim]().numpy()
    if table.shape[0] not in (1, count) or table.shape[1] not in (1, length):
        return None
    return replace(rows, open=table if rows.open is None else table & rows.open)


def softmaxed(rows: Rows, found: Signal) -> Rows:
    """Return weights of scores: Σ p² is e^v/V of a blank row, and never above 1.

    To a blank key other rows' scores are 0, and where they scatter e^0 is less than what the others have on average.
    """
    length, share = rows.tokens.padded.shape[1], rows.tokens.share
    squares = np.minimum(np.exp(np.minimum(rows.sizes, 50.0)) / rows.many, 1.0)
    key = 1.0 if rows.columns is None else min(float(rows.columns.mean()), 1.0)
    kept = 1 - share + share * math.exp(-rows.rest * (1 - key) / 2)
    return replace(rows, sizes=squares / length, rest=found.q, weights=True, whole=kept)


def softmax_backward(g: Rows, gradient: Signal, p: Rows, found: Signal) -> Rows:
    """Return what blank rows' scores get: of p_j(g_j − Σ p g), g but for what all of its row have in common."""
    axes = gradient.axes([len(gradient.dims) - 1])
    own = max(1 - gradient.averaged(axes) / gradient.q, 0.0)
    sizes = g.sizes * own * p.sizes * (1 - 1 / p.many)
    if g.columns is not None:
        each = _table(replace(g, sizes=g.columns, rest=1.0))
        sizes = sizes * (each[p.tokens.at[0]] * p.seen).sum(1) / p.many / each.mean()
    rest = found.q * g.rest / gradient.q / p.whole**2
    return replace(g, sizes=sizes, rest=rest, pairs=True, open=p.open, turned=False, whole=0.0)


def _table(rows: Rows) -> Array:
    """Return E[x²] of every row: shape (samples, places)."""
    found = np.full(rows.tokens.padded.shape, rows.rest)
    found[rows.tokens.padded] = rows.sizes
    return found


def mixed(p: Rows, v: Rows, values: Signal, found: Signal) -> Rows:
    """Return weights times values: blank rows see an average of what is open to them."""
    samples, length = p.tokens.at[0], p.tokens.padded.shape[1]
    each = _table(v)[samples]
    root = np.sqrt(np.minimum(each / max(v.rest, 1e-300), 1.0)) * p.seen
    alone = np.minimum(p.sizes * length, 1.0)
    axes = [i for i in values.axes([len(values.dims) - 2]) if values.atoms[i].size == length]
    other = values.averaged(axes) / (1 - p.tokens.share) ** 2 if axes else 0.0
    pairs = np.maximum(root.sum(1) ** 2 - (root**2).sum(1), 0.0) / np.maximum(p.many * (p.many - 1), 1.0)
    sizes = alone * (each * p.seen).sum(1) / p.many + (1 - alone) * max(other, 0.0) * pairs
    return replace(v, sizes=sizes, rest=found.q / p.whole**2, turned=False, pairs=False)


def gathered(p: Rows, g: Rows, gradient: Signal, found: Signal) -> Rows:
    """Return what values get: of each blank row's gradient, what it saw of them."""
    length = p.tokens.padded.shape[1]
    from_others, share = g.rest * found.q / gradient.q / p.whole**2, p.tokens.share
    as_key = max(p.whole - 1 + share, 0.0) / share
    sent = g.sizes * np.minimum(p.sizes * length, 1.0) / p.many
    got = np.zeros(p.tokens.padded.shape)
    np.add.at(got, p.tokens.at[0], sent[:, None] * p.seen)
    padded = p.tokens.padded
    return replace(
        g, sizes=from_others * as_key**2 + got[padded], rest=float(from_others + got[~padded].mean()), turned=False
    )


def asked(rows: Rows, scores: Rows, square: float) -> Rows:
    """Return what keys get: the gradient of a score with a blank row's value is what is taken off all of them alone.

    It is p_j(g_j − Σ p g) with g_j = 0: in a row of V equal weights 1/V of what others have.

    Args:
        rows: of what is asked for.
        scores: of their gradient.
        square: E[x²] of what keys get, over all rows.
    """
    share, padded = scores.tokens.share, scores.tokens.padded
    size = scores.columns if scores.columns is not None else np.ones(scores.tokens.count)
    table = np.ones((1, 1, padded.shape[1]), bool) if scores.open is None else scores.open
    many = np.maximum(table.sum(-1, keepdims=True), 1).astype(float)
    alone = (table / many**3).sum(1) / np.maximum((table / many**2).sum(1), 1e-300)
    alone = np.broadcast_to(alone, padded.shape)[padded]
    sizes = size + np.maximum(1 - size, 0.0) * alone
    rest = square / (share * float(sizes.mean()) + 1 - share)
    return replace(rows, sizes=rest * sizes, rest=rest, pairs=False, open=None, columns=None, weights=False)
