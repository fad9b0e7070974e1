"""Rows of numbers in place of tokens: what ops that do the same with every token's row make of them.

A value of such an op is held as rows × its entries of one token. A gradient is held as what it is linear in: rows ×
entries × entries of the gradient that arrived.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from initwell.propagate.given.known import Known
from initwell.propagate.moments.segments import Array
from initwell.propagate.routing.chains import Chain
from initwell.trace.trace import Op, Trace, ValueRef


class UnfitError(Exception):
    """An op that does more than the same with every token's row, or something else than is known here."""


def rest_of(shape: tuple[int, ...], tokens: int) -> tuple[int, ...] | None:
    """Return the dimensions that a token's own entries have; None where they share one with the tokens.

    >>> rest_of((16, 12, 8), 192), rest_of((384,), 192)
    ((8,), None)
    """
    lead = 1
    for i, n in enumerate(shape):
        if lead == tokens:
            return shape[i:]
        lead *= n
    return () if lead == tokens else None


def _expit(x: Array) -> Array:
    from scipy.special import expit

    return np.asarray(expit(x))


_ONE: Mapping[str, Callable[[Array], Array]] = {
    "aten.neg": np.negative,
    "aten.sigmoid": _expit,
    "aten.exp": np.exp,
    "aten.log": np.log,
    "aten.sqrt": np.sqrt,
    "aten.tanh": np.tanh,
    "aten.relu": lambda x: np.maximum(x, 0.0),
    "aten.logical_not": np.logical_not,
    "aten.bitwise_not": np.logical_not,
}
_TWO: Mapping[str, Callable[[Any, Any], Any]] = {
    "aten.add": np.add,
    "aten.sub": np.subtract,
    "aten.rsub": lambda x, y: y - x,
    "aten.mul": np.multiply,
    "aten.div": np.divide,
    "aten.clamp_min": np.maximum,
    "aten.clamp_max": np.minimum,
    "aten.pow": np.power,
}
_SHAPE_NAMES = "view _unsafe_view reshape unsqueeze squeeze clone detach alias _to_copy contiguous"
_SHAPES = frozenset(f"aten.{name}" for name in _SHAPE_NAMES.split())
_SUMS: Mapping[str, Callable[..., Any]] = {
    "aten.sum": np.sum,
    "aten.amax": np.max,
    "aten.logsumexp": np.logaddexp.reduce,
}
_DERIVATIVES = frozenset(
    f"aten.{name}" for name in ("_softmax_backward_data", "sigmoid_backward", "tanh_backward", "log_sigmoid_backward")
)


class Rows:
    """The values of one chain, for rows of logits that are given."""

    def __init__(
        self, trace: Trace, values: Known, chain: Chain, logits: Array, numbers: Mapping[int, float] | None = None
    ) -> None:
        """Begin with logits, rows × experts, and the model's own vectors of one number."""
        self.trace, self.values, self.chain, self.numbers = trace, values, chain, numbers or {}
        self._found: dict[int, Array] = {chain.root: logits.reshape(len(logits), *self._rest(chain.root))}
        self._linear: dict[int, Array] = {}

    def value(self, ref: object) -> Any:
        """Return a value of the forward, or a known one, as rows × a token's entries; a number as it is.

        Raises:
            UnfitError: it cannot be worked out row by row.
        """
        if not isinstance(ref, ValueRef):
            return ref
        if ref.id in self._found:
            return self._found[ref.id]
        if ref.id in self.values:
            return self._constant(ref.id)
        if ref.id in self.numbers:
            return self.numbers[ref.id]
        op = self.trace.producer(ref.id)
        if op is None or op.index not in self.chain.forward:
            raise UnfitError(str(ref))
        made = self._forward(op, ref.id)
        self._found[ref.id] = made
        return made

    def _constant(self, value: int) -> Any:
        low, high = self.values.range(value)
        if low == high:
            return low
        numbers = self.values[value]
        if numbers.numel() == numbers.shape[-1]:
            return numbers.reshape(1, -1).double().numpy()
        raise UnfitError("known numbers that differ from token to token")

    def _rest(self, value: int) -> tuple[int, ...]:
        shape = self.trace.values[value].shape
        size = int(np.prod(shape)) // self.chain.tokens
        return rest_of(shape, self.chain.tokens) or (size,)

    def _axes(self, value: int, dims: Any) -> tuple[int, ...]:
        """Return which axes of rows × entries some dimensions of a value are."""
        shape = self.trace.values[value].shape
        rest = rest_of(shape, self.chain.tokens)
        lead = len(shape) - len(rest or ())
        given = [dims] if isinstance(dims, int) else list(dims or ())
        axes = tuple(d % len(shape) - lead + 1 for d in given)
        if rest is None or not axes or min(axes) < 1:
            raise UnfitError("a dimension of the tokens")
        return axes

    def _forward(self, op: Op, value: int) -> Any:
        a, kind = op.arguments, op.functional
        rest = self._rest(value)
        if kind == "aten.cat":
            return np.concatenate(_rows_of([self.value(ref) for ref in a["tensors"]]), -1)
        x = self.value(a.get("self"))
        if kind == "aten.log_sigmoid_forward":
            return -np.logaddexp(0.0, -x) if value == op.outputs[0] else np.exp(-np.abs(x))
        if kind in _SHAPES:
            return x.reshape(len(x), *rest)
        if kind == "aten.expand":
            return np.broadcast_to(x.reshape(len(x), *_padded(self._rest(a["self"].id), rest)), (len(x), *rest))
        if kind in _ONE:
            return _ONE[kind](x)
        if kind in _TWO:
            y = self.value(a.get("other", a.get("exponent", a.get("min", a.get("max")))))
            return _TWO[kind](*_aligned(x, y * (a.get("alpha") or 1) if kind in ("aten.add", "aten.sub") else y))
        if kind in _SUMS:
            return _reduced(_SUMS[kind], x, self._axes(a["self"].id, a["dim"]), a)
        return self._choosing(op, value, x)

    def _choosing(self, op: Op, value: int, x: Array) -> Any:
        a, kind = op.arguments, op.functional
        if kind == "aten.index":
            return x  # in the order of a sort: the rows of a token are told apart by its experts
        if kind == "aten.masked_fill":
            mask, fill = self.value(a["mask"]), self.value(a["value"])
            return np.where(np.asarray(mask, bool), fill, x)
        if kind == "aten.where":
            condition = np.asarray(self.value(a["condition"]), bool)
            return np.where(*_aligned(condition, x), _aligned(self.value(a["other"]), x)[0])
        (axis,) = self._axes(a["self"].id, a["dim"])
        if kind == "aten.slice":
            return x[..., slice(a["start"], a["end"], a["step"])]
        if kind == "aten.topk":
            order = np.argsort(-x, axis=axis, kind="stable").take(range(a["k"]), axis)
            return np.take_along_axis(x, order, axis) if value == op.outputs[0] else order
        if kind == "aten.sort":
            order = np.argsort(-x if a["descending"] else x, axis=axis, kind="stable")
            return np.take_along_axis(x, order, axis) if value == op.outputs[0] else order
        if kind == "aten._softmax":
            return _softmax(x, axis)
        index = np.asarray(self.value(a["index"]), int)
        if kind == "aten.gather":
            return np.take_along_axis(x, index, axis)
        if kind == "aten.scatter":
            source = self.value(a["src"] if a.get("src") is not None else a["value"])
            empty = np.full((len(index), *self._rest(value)), x, dtype=float) if np.ndim(x) == 0 else x.copy()
            np.put_along_axis(empty, index, source, axis)
            return empty
        raise UnfitError(kind)

    def linear(self, ref: Any) -> Array:
        """Return what a gradient is linear in, as rows × its entries × those of the one that arrived.

        Raises:
            UnfitError: it cannot be worked out row by row.
        """
        value = ref.id if isinstance(ref, ValueRef) else int(ref)
        if value in self.chain.bases:
            rest = self._rest(value)
            size = int(np.prod(rest))
            return np.broadcast_to(np.eye(size).reshape(1, *rest, size), (1, *rest, size))
        if value not in self._linear:
            op = self.trace.producer(value)
            if op is None or op.index not in self.chain.backward:
                raise UnfitError(str(ref))
            self._linear[value] = self._backward(op, value)
        return self._linear[value]

    def _is_linear(self, ref: Any) -> bool:
        if not isinstance(ref, ValueRef):
            return False
        op = self.trace.producer(ref.id)
        return ref.id in self.chain.bases or (op is not None and op.index in self.chain.backward)

    def _backward(self, op: Op, value: int) -> Array:
        a, kind = op.arguments, op.functional
        rest = self._rest(value)
        if kind in _DERIVATIVES:
            return self._through(op)
        name = next((n for n in ("self", "src", "values", "source", "grad_output") if self._is_linear(a.get(n))), "")
        if kind in ("aten.add", "aten.sub", "aten.mul", "aten.div") and not name:
            name = "other"
        if kind == "aten.where":
            name = next(n for n in ("self", "other") if self._is_linear(a.get(n)))
        g = self.linear(a[name])
        if kind in _SHAPES or kind in ("aten.index", "aten.index_put"):
            if math.prod(rest) != math.prod(g.shape[1:-1]):
                raise UnfitError("rows that are picked from others")
            return g.reshape(len(g), *rest, g.shape[-1])
        if kind == "aten.expand":
            small = _padded(self._rest(a["self"].id), rest)
            return np.broadcast_to(g.reshape(len(g), *small, g.shape[-1]), (len(g), *rest, g.shape[-1]))
        if kind == "aten.neg":
            return -g
        if kind == "aten.slice":
            return g[..., slice(a["start"], a["end"], a["step"]), :]
        if kind == "aten.slice_backward":
            empty = np.zeros((len(g), *rest, g.shape[-1]))
            empty[..., slice(a["start"], a["end"], a["step"]), :] = g
            return empty
        if kind == "aten.sum":
            return _reduced(np.sum, g, self._axes(a["self"].id, a["dim"]), a)
        return self._combined(op, value, name, g)

    def _combined(self, op: Op, value: int, name: str, g: Array) -> Array:
        a, kind = op.arguments, op.functional
        if kind in ("aten.add", "aten.sub"):
            sign = (1.0 if kind == "aten.add" else -1.0) * (a.get("alpha") or 1)
            one, two = (self.linear(a[n]) if self._is_linear(a[n]) else None for n in ("self", "other"))
            if one is None or two is None:
                raise UnfitError("a gradient and something else")
            return np.asarray(one + sign * two)
        if kind in ("aten.mul", "aten.div"):
            factor = self.value(a["self" if name == "other" else "other"])
            if kind == "aten.div" and name == "other":
                raise UnfitError("a division by a gradient")
            factor = factor if np.ndim(factor) == 0 else np.asarray(factor)[..., None]
            return np.asarray(g * factor if kind == "aten.mul" else g / factor)
        if kind in ("aten.masked_fill", "aten.where"):
            mask = np.asarray(self.value(a["mask" if kind == "aten.masked_fill" else "condition"]), bool)
            keep = ~mask if kind == "aten.masked_fill" or name == "other" else mask
            return np.asarray(g * keep[..., None])
        if kind == "aten.gather":
            index = np.asarray(self.value(a["index"]), int)[..., None]
            return np.take_along_axis(g, index, self._axes(a["self"].id, a["dim"])[0])
        if kind in ("aten.scatter", "aten.scatter_add"):
            index = np.asarray(self.value(a["index"]), int)
            (axis,) = self._axes(value, a["dim"])
            rows = max(len(index), len(g))
            empty = np.zeros((rows, *self._rest(value), g.shape[-1]))
            index = np.broadcast_to(index[..., None], (*index.shape, g.shape[-1]))
            np.put_along_axis(empty, index, np.broadcast_to(g, (rows, *g.shape[1:])), axis)
            return empty
        raise UnfitError(kind)

    def _through(self, op: Op) -> Array:
        """Take a gradient back through a function that the op has the result of."""
        a, kind = op.arguments, op.functional
        g = self.linear(a["grad_output"])
        if kind == "aten.log_sigmoid_backward":
            return np.asarray(g * _expit(-self.value(a["self"]))[..., None])
        y = self.value(a["output"])[..., None]
        if kind == "aten._softmax_backward_data":
            (axis,) = self._axes(a["output"].id, a["dim"])
            return np.asarray(y * (g - (y * g).sum(axis, keepdims=True)))
        return np.asarray(g * (y * (1 - y) if kind == "aten.sigmoid_backward" else 1 - y * y))


def _softmax(x: Array, axis: int) -> Array:
    found = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(found / found.sum(axis, keepdims=True))


def _reduced(how: Callable[..., Any], x: Array, axes: tuple[int, ...], arguments: Mapping[str, Any]) -> Array:
    return np.asarray(how(x, axis=axes[0] if len(axes) == 1 else axes, keepdims=bool(arguments["keepdim"])))


def _rows_of(arrays: list[Array]) -> list[Array]:
    rows = max(len(x) for x in arrays)
    return [np.broadcast_to(x, (rows, *x.shape[1:])) for x in arrays]


def _padded(small: tuple[int, ...], large: tuple[int, ...]) -> tuple[int, ...]:
    return (*(1,) * (len(large) - len(small)), *small)


def _aligned(x: Any, y: Any) -> tuple[Any, Any]:
    """Let rows × entries broadcast against each other from the last entry on, and rows against rows."""
    if np.ndim(x) == 0 or np.ndim(y) == 0:
        return x, y
    rank = max(np.ndim(x), np.ndim(y))
    one, two = (z.reshape(len(z), *(1,) * (rank - z.ndim), *z.shape[1:]) for z in (x, y))
    return one, two
