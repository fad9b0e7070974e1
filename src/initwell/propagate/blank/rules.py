"""What each op does to blank rows: beside the rule of the op itself, which knows of none."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Protocol

import numpy as np
import torch

from initwell.propagate.blank import attention as mixing
from initwell.propagate.blank.rows import Rows, inverse, scaled
from initwell.propagate.given.known import Known
from initwell.propagate.given.mask import SHUT
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace
from initwell.trace.trace import Op, Trace, ValueRef

_NODES = 64


class Way(Protocol):
    """A walk so far."""

    trace: Trace
    signals: Mapping[int, Signal]
    values: Known
    rows: dict[int, Rows]

    def of(self, op: Op, name: str) -> tuple[Rows | None, float]:
        """Return the rows of an operand, None if they are all alike, and its E[x²]; 0 where that is not known."""

    def signal(self, op: Op, name: str) -> Signal | None:
        """Return an operand's signal, if it is known."""


def _alike(way: Way, op: Op, found: Signal) -> Rows | None:
    """Hand on what every row is multiplied by alike."""
    rows, square = way.of(op, next(iter(op.arguments)))
    if rows is None or square <= 0:
        return None
    if rows.level:
        return rows
    return scaled(rows, found.q / square)


def _cut(way: Way, op: Op, found: Signal) -> Rows | None:
    """A slice of features; rows that are cut away, or put among others, are not followed."""
    ref = next(iter(op.arguments.values()))
    rank = len(way.trace.values[op.outputs[0]].shape)
    before = way.trace.values[ref.id].shape
    last = int(op.arguments.get("dim", 0)) % rank == rank - 1
    same = before == way.trace.values[op.outputs[0]].shape
    return _alike(way, op, found) if last or same else None


def _turned(way: Way, op: Op, found: Signal) -> Rows | None:
    rows, last = _alike(way, op, found), len(found.dims) - 1
    if op.functional == "aten.permute":
        moves = int(op.arguments["dims"][-1]) % (last + 1) != last
    else:
        dims = (op.arguments.get("dim0", 0), op.arguments.get("dim1", 1))
        moves = any(int(d) % (last + 1) == last for d in dims)
    return rows and (replace(rows, turned=not rows.turned) if moves else rows)


def _joined(way: Way, op: Op, found: Signal) -> Rows | None:
    """Features side by side."""
    refs = [ref for ref in op.arguments["tensors"] if 0 not in way.trace.values[ref.id].shape]
    if int(op.arguments.get("dim") or 0) % len(found.dims) != len(found.dims) - 1:
        return None
    first = next(way.rows[r.id] for r in refs if r.id in way.rows)
    parts = []
    for ref in refs:
        rows, signal = way.rows.get(ref.id), way.signals.get(ref.id)
        if signal is None or (rows is not None and rows.tokens is not first.tokens):
            return None
        each = rows or replace(first, sizes=np.full_like(first.sizes, signal.q), rest=signal.q)
        parts.append((way.trace.values[ref.id].shape[-1], each))
    whole = sum(n for n, _ in parts)
    sizes = np.asarray(sum(n * r.sizes for n, r in parts)) / whole
    return replace(first, sizes=sizes, rest=sum(n * r.rest for n, r in parts) / whole)


def _summed(way: Way, op: Op, found: Signal) -> Rows | None:
    """A sum over features, or over the heads that share keys."""
    rank = len(way.trace.values[op.inputs[0]].shape)
    dims = [int(d) % rank for d in op.arguments.get("dim") or range(rank)]
    return _alike(way, op, found) if dims == [rank - 1] or (dims == [2] and rank == 5) else None


_POWERS = {"aten.rsqrt": -0.5, "aten.sqrt": 0.5, "aten.reciprocal": -1}


def _of_level(way: Way, op: Op, found: Signal) -> Rows | None:
    """A function of the average square of a row, and of anything else a power of it."""
    rows, _ = way.of(op, "self")
    power = op.arguments.get("exponent", _POWERS.get(op.functional))
    if rows is None or not isinstance(power, (int, float)):
        return None
    if rows.level:
        with np.errstate(divide="ignore"):
            sizes = np.minimum(rows.sizes**power, 1e300)
        return replace(rows, sizes=sizes, rest=rows.rest**power, whole=rows.whole**power)
    if power == 1:
        return rows
    return _squared(rows) if power == 2 else None


def _squared(rows: Rows) -> Rows:
    """Squares of a row's entries: what they are on average is all that is asked of them."""
    return replace(rows, sizes=rows.sizes**2, rest=rows.rest**2, level=True, whole=rows.average**2)


def _sum(way: Way, op: Op, found: Signal) -> Rows | None:
    """A sum: of numbers with an ε, of scores with a mask, of branches."""
    other, times = op.arguments.get("other"), float(op.arguments.get("alpha") or 1) ** 2
    (one, a), (two, b) = way.of(op, "self"), way.of(op, "other")
    if isinstance(other, (int, float)):
        if one is None or not one.level:
            return None
        sign = math.sqrt(times) * (1 if op.functional == "aten.add" else -1)
        sizes, rest, whole = ((np.sqrt(x) + sign * other) ** 2 for x in (one.sizes, one.rest, one.whole))
        return replace(one, sizes=sizes, rest=float(rest), whole=float(whole))
    for rows, name in ((one, "other"), (two, "self")):
        at = op.arguments[name].id
        if rows is not None and rows.pairs and at in way.values and way.values[at].is_floating_point():
            return mixing.masked(rows, way.values[at] > SHUT)
    first = one if one is not None else two
    if first is None or (one is not None and two is not None and one.tokens is not two.tokens) or a <= 0 or b <= 0:
        return None
    x, y = (
        r if r is not None else replace(first, sizes=np.full_like(first.sizes, q), rest=q)
        for r, q in ((one, a), (two, b))
    )
    alike = found.q / (a + times * b)
    return replace(first, sizes=x.sizes + times * y.sizes, rest=alike * (x.rest + times * y.rest), level=False)


def _product(way: Way, op: Op, found: Signal) -> Rows | None:
    """A product or a quotient, entry by entry, or of a row with a number of its own."""
    (one, a), (two, b) = way.of(op, "self"), way.of(op, "other")
    if two is None:
        return _alike(way, op, found)
    if op.functional == "aten.mul" and one is two and not two.level:
        return _squared(two)
    if op.functional == "aten.div":
        two = inverse(two)
    if one is None:
        one = replace(two, sizes=np.full_like(two.sizes, a), rest=a, level=False)
    if one.tokens is not two.tokens or a <= 0 or b <= 0:
        return None
    factor = found.q / max(one.alike * two.alike, 1e-300)
    larger = one if not one.level else two
    return replace(larger, sizes=factor * one.sizes * two.sizes, rest=factor * one.rest * two.rest, level=False)


def _curved(way: Way, op: Op, found: Signal) -> Rows | None:
    """A nonlinearity: E[φ²] of a Gaussian row of each size."""
    rows, square = way.of(op, next(iter(op.arguments)))
    if rows is None or square <= 0 or rows.pairs:
        return None
    sizes, rest, whole = _under(op, rows, square, 0)
    factor = found.q / whole if whole > 0 else 1.0
    return replace(rows, sizes=factor * sizes, rest=factor * rest)


def _curved_back(way: Way, op: Op, found: Signal) -> Rows | None:
    """A gradient through a nonlinearity: E[φ′²] of a Gaussian row of each size."""
    names = [name for name, ref in op.arguments.items() if isinstance(ref, ValueRef)]
    (g, own), (rows, square) = way.of(op, names[0]), way.of(op, names[1])
    if own <= 0 or square <= 0:
        return None
    if rows is None:
        return g and scaled(g, found.q / own)
    if g is None:
        g = replace(rows, sizes=np.full_like(rows.sizes, own), rest=own)
    sizes, rest, whole = _under(op, rows, square, 1)
    factor = found.q / max(own * whole, 1e-300)
    return replace(g, sizes=factor * g.sizes * sizes, rest=factor * g.rest * rest)


def _under(op: Op, rows: Rows, square: float, place: int) -> tuple[Array, float, float]:
    """Return E[f²] of Gaussians of the blank rows' sizes, of the others', and of all; f the op at a gradient of 1."""
    z, weights = _gauss()
    spreads = np.sqrt(np.concatenate([rows.sizes, [rows.rest, square]]))
    points = torch.from_numpy(spreads[:, None] * z)
    names = [name for name, ref in op.arguments.items() if isinstance(ref, ValueRef)]
    given = {name: value for name, value in op.arguments.items() if not isinstance(value, ValueRef)}
    packet = getattr(torch.ops.aten, op.functional.partition(".")[2])
    tensors = {names[place]: points} if place == 0 else {names[0]: torch.ones_like(points), names[1]: points}
    found = packet(**tensors, **given).numpy() ** 2 @ weights
    return found[:-2], float(found[-2]), float(found[-1])


@cache
def _gauss() -> tuple[Array, Array]:
    z, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return z, weights / weights.sum()


def _norm(way: Way, op: Op, found: Signal) -> Rows | None:
    rows, square = way.of(op, "input")
    eps, weight, bias = float(op.arguments.get("eps") or 0.0), way.signal(op, "weight"), way.signal(op, "bias")
    if rows is None or square <= 0:
        return None
    scale, shift = 1.0 if weight is None else weight.q, 0.0 if bias is None else bias.q
    sizes, rest, whole = (x / (x + eps) * scale + shift for x in (rows.sizes, rows.rest, square))
    return replace(rows, sizes=np.asarray(sizes), rest=float(rest * found.q / whole))


def _norm_back(way: Way, op: Op, found: Signal) -> Rows | None:
    (g, own), (rows, square) = way.of(op, "grad_out"), way.of(op, "input")
    if rows is None or square <= 0 or own <= 0 or found.shape != way.trace.values[op.arguments["input"].id].shape:
        return g and scaled(g, found.q / own) if own > 0 else None
    forward = way.trace.ops[op.of] if op.of is not None else op
    eps, weight = float(forward.arguments.get("eps") or 0.0), way.signal(op, "weight")
    if g is None:
        g = replace(rows, sizes=np.full_like(rows.sizes, own), rest=own)
    scale = 1.0 if weight is None else weight.q
    # Rows as small as √ε have next to nothing along themselves that is taken off.
    taken = found.q / (own * scale / (square + eps))
    sizes = g.sizes * scale / (rows.sizes + eps) * (1 - (1 - taken) * (rows.sizes / (rows.sizes + eps)) ** 2)
    return replace(g, sizes=sizes, rest=g.rest * scale / (rows.rest + eps) * taken)


def _softmax(way: Way, op: Op, found: Signal) -> Rows | None:
    rows, _ = way.of(op, "self")
    last = int(op.arguments["dim"]) % len(found.dims) == len(found.dims) - 1
    # Of rows that were counted as samples, or that ask for others than themselves, weights are as any.
    own = rows is not None and found.shape[-1] == rows.tokens.padded.shape[1]
    return mixing.softmaxed(rows, found) if rows is not None and last and own else None


def _softmax_back(way: Way, op: Op, found: Signal) -> Rows | None:
    (g, own), (p, _) = way.of(op, "grad_output"), way.of(op, "output")
    signal = way.signal(op, "grad_output")
    if signal is None or own <= 0:
        return None
    if p is None or not p.weights:
        return g and scaled(g, found.q / own)
    if g is None:
        g = replace(p, sizes=np.full_like(p.sizes, own), rest=own, weights=False)
    return mixing.softmax_backward(g, signal, p, found)


def _matmul(way: Way, op: Op, found: Signal) -> Rows | float | None:
    """Products of matrices: with a weight, of queries with keys, of weights with values, and over rows."""
    names = ("mat1", "mat2") if "mat1" in op.arguments else ("self", "mat2")
    (one, a), (two, b) = (way.of(op, name) for name in names)
    if a <= 0 or b <= 0 or (one is not None and two is not None and one.tokens is not two.tokens):
        return None
    values = way.signal(op, names[1])
    if one is not None and one.weights:
        if two is None or values is None:
            return None
        return (mixing.gathered if one.turned else mixing.mixed)(one, two, values, found)
    if one is not None and not one.turned:
        return _by_rows(way, op, found, one, two, a)
    if one is None or two is None:
        return None
    # Over rows: what is large in both in the same rows, or in neither.
    both = replace(one, sizes=one.sizes * two.sizes, rest=one.rest * two.rest)
    factor = both.average / max(one.average * two.average, 1e-300)
    if one.pairs == two.pairs or op.functional != "aten.bmm":
        return factor
    queries, scores = (two, one) if one.pairs else (one, two)
    return mixing.asked(replace(queries, turned=two.pairs), scores, factor * found.q)


def _by_rows(way: Way, op: Op, found: Signal, one: Rows, two: Rows | None, square: float) -> Rows | None:
    """A product that keeps rows apart: with a weight, with keys, of scores with keys."""
    if two is not None and not two.turned and not one.pairs:
        return None
    bias = way.signal(op, "self") if op.functional == "aten.addmm" else None
    shift = 0.0 if bias is None else bias.q
    found_rows = scaled(one, max(found.q - shift, 0.0) / square)
    pairs = op.functional == "aten.bmm" and not one.pairs and two is not None
    columns = two.sizes / two.rest if pairs and two is not None and two.rest > 0 else None
    if one.pairs and two is not None and one.columns is not None and two.rest > 0:
        # Over rows that are large in both, or in neither.
        share, both = one.tokens.share, one.columns * (two.sizes / two.rest)
        apart = [1 - share + share * float(x.mean()) for x in (both, one.columns, two.sizes / two.rest)]
        found_rows = scaled(found_rows, apart[0] / (apart[1] * apart[2]))
    sizes, rest = found_rows.sizes + shift, found_rows.rest + shift
    return replace(found_rows, sizes=sizes, rest=rest, pairs=pairs, columns=columns)


def _table(way: Way, op: Op, found: Signal) -> float | None:
    """The gradient of the embedding itself leaves the padding token's out."""
    rows, square = way.of(op, "grad_output")
    return rows.rest / square if rows is not None and square > 0 and int(op.arguments["padding_idx"]) >= 0 else None


Rule = Callable[[Way, Op, Signal], Rows | float | None]
_SAME = """
    view _unsafe_view reshape clone detach alias neg _to_copy contiguous expand squeeze unsqueeze native_dropout
    masked_fill where
"""
_ACTIVATIONS = "silu gelu relu tanh sigmoid"
RULES: Mapping[str, Rule] = {
    **{f"aten.{name}": _alike for name in _SAME.split()},
    **{f"aten.{name}": _curved for name in _ACTIVATIONS.split()},
    **{f"aten.{name}": _product for name in ("mul", "div")},
    **{f"aten.{name}": _sum for name in ("add", "sub")},
    **{f"aten.{name}": _of_level for name in ("pow", "rsqrt", "sqrt", "reciprocal")},
    **{f"aten.{name}": _turned for name in ("t", "transpose", "permute")},
    **{f"aten.{name}": _cut for name in ("slice", "slice_backward", "split", "split_with_sizes")},
    **{f"aten.{name}": _curved_back for name in ("silu_backward", "gelu_backward")},
    **{f"aten.{name}": _matmul for name in ("mm", "bmm", "addmm")},
    **{f"aten.{name}": _alike for name in ("threshold_backward", "tanh_backward", "sigmoid_backward")},
    "aten.cat": _joined,
    "aten.sum": _summed,
    "aten.mean": _summed,
    "aten.native_layer_norm": _norm,
    "aten.native_layer_norm_backward": _norm_back,
    "aten._softmax": _softmax,
    "aten._safe_softmax": _softmax,
    "aten._softmax_backward_data": _softmax_back,
    "aten.embedding_dense_backward": _table,
}
