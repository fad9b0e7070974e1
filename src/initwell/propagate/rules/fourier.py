"""Discrete Fourier transforms: a known map of n entries, X_k = Σ x_j e^(−2πijk/n), orthogonal but for a factor.

Entries are taken as alike but for the first, as a token that gets a gradient of its own, or what a transform before has
put into the constant frequency. With a₀ = E[x₀²], c = E[x₀ x_j], a = E[x_j²] and d = E[x_j x_l], and as the roots of
unity add up to 0,

    E|X₀|²     = a₀ + 2(n − 1)c + (n − 1)(a + (n − 2)d)        E[X₀ X*_k] = a₀ + (n − 2)c − a − (n − 2)d
    E|X_k|²    = a₀ − 2c + (n − 1)a − (n − 2)d                 E[X_k X*_l] = a₀ − 2c − a + 2d

where c = d and a₀ = a nothing is left of the last column. The moments of complex values are E[z z'*]. For real x the
conjugate of X_l is X_−l, so that E[X_k²] is E[X_k X*_l] of different k and l, and real and imaginary parts have half
of their sum and half of their difference; else half each. (The highest frequency of an even length is left at that.)

Real parts are even, X_−k = X_k, and what a second transform makes of an even part is real. Limit: how the entries of
what is even go together is not said.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.moments.alike import merged, plain, refined
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.segments import along
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.parts import one_atom
from initwell.propagate.rules.turned import is_turn
from initwell.propagate.table import Call, Rule, UnknownSignalError
from initwell.trace.ops import COPIES
from initwell.trace.trace import Op, Trace

_READERS = frozenset({"aten._fft_c2c", "aten.view_as_real", "aten.detach", "aten.alias", *COPIES})
_EVEN = "what was the real part of a Fourier transform before: entries of what is even as if they were independent"
_ODD = "complex numbers that more than a Fourier transform is made of"

_KEEP_EVEN = frozenset(
    {
        "aten.native_layer_norm",
        "aten.native_layer_norm_backward",
        "aten.view_as_complex",
        "aten.select_backward",
        *COPIES,
    }
)
# Of segments (1, n − 1): agree in the first, in the second, differ within the first, 1-2, 2-1, within the second.
_CONJUGATE = (0, 5, 2, 3, 4, 5)


def transformed(x: Signal, dim: int) -> Signal:
    """Transform along one dimension, without a factor.

    >>> from initwell.propagate.moments.signal import independent
    >>> found = transformed(independent((4, 3), 2.0, 1.0), 0)
    >>> found.atoms[0].parts, found.diagonal[:, 0].tolist()
    ((1, 3), [20.0, 4.0])
    """
    x = one_atom(x, dim)
    if not x.dims[dim]:
        return x
    axis, n = x.axes([dim])[0], x.shape[dim]
    parts = x.atoms[axis].patterns.parts
    if parts[0] == 1 and len(parts) > 1:
        x = merged(x, axis, (0, *(1 for _ in parts[1:])))
    else:
        x = refined(plain(x, dim), axis, (1, n - 1))
    level = [1, n - 1, 0, n - 1, n - 1, (n - 1) * (n - 2)]
    rest, apart = [1, n - 1, 0, -1, -1, 2 - n], [1, -1, 0, -1, -1, 2]
    one, two = [1, -1, 0, -1, n - 1, 2 - n], [1, -1, 0, n - 1, -1, 2 - n]
    moments = along(x.moments, np.array([level, rest, level, one, two, apart], float), axis)
    means = along(x.means, np.array([[1.0, n - 1.0], [1.0, -1.0]]), axis)
    atom = replace(x.atoms[axis], follows=())
    return x.changed(moments, means, dims=(*x.dims[:dim], (atom,), *x.dims[dim + 1 :]), gaussian=True)


def _readers(call: Call) -> None:
    readers = call.trace.consumers(call.op.outputs[0])
    if not all(op.functional in _READERS or is_turn(call.trace, op) for op in readers):
        raise UnknownSignalError(_ODD)


def _transform(call: Call) -> Sequence[Signal]:
    _readers(call)
    x, factor = call.signal("self"), 1.0
    for dim in call["dim"]:
        x = transformed(x, dim % len(x.dims))
        n = x.shape[dim]
        factor *= {0: 1.0, 1: 1.0 / n, 2: 1.0 / n**2}[int(call["normalization"])]
    found = x.changed(x.moments * factor, x.means * factor**0.5, gaussian=True)
    found = replace(found, spread=0.0)
    return [found.approximate(_EVEN) if _comes_from_another(call) else found]


def _comes_from_another(call: Call) -> bool:
    """Whether a transform of the same phase came before."""
    return any(op.functional == "aten._fft_c2c" and op.phase == call.op.phase for op in call.trace.ops[: call.op.index])


def _as_complex(call: Call) -> Sequence[Signal]:
    """Put real and imaginary parts together: |z|² is their sum."""
    _readers(call)
    parts = one_atom(call.signal("self"), len(call.shape()))
    axis = parts.moments.ndim - 1
    agree = parts.atoms[axis].patterns.agree
    moments = 2 * np.tensordot(parts.moments, agree, (axis, 0))
    means = np.asarray(parts.means.take(0, axis))
    return [parts.changed(moments, means, dims=parts.dims[:-1], gaussian=parts.gaussian)]


def _as_real(call: Call) -> Sequence[Signal]:
    """Take a complex value apart into a last dimension of two."""
    made = call.trace.producer(call["self"].id)
    if made is not None and is_turn(call.trace, made):
        return [_in_pairs(call.signal("self"))]
    if made is None or made.functional != "aten._fft_c2c":
        raise UnknownSignalError(_ODD)
    z = call.signal("self")
    other = np.zeros_like(z.moments)
    if _of_real(call.trace, made):
        other = z.moments
        for axis in z.axes([int(d) % len(z.dims) for d in made.arguments["dim"]]):
            other = other.take(_CONJUGATE, axis)
    none = np.zeros_like(other)
    even = _even(call, made.inputs[0], [int(d) for d in made.arguments["dim"]])
    imaginary = (1 - even) * (z.moments - other) / 2
    columns = [z.moments - imaginary, imaginary, *(none for _ in range(4))]
    means = np.stack([z.means, np.zeros_like(z.means)], -1)
    dims = (*z.dims, (Atom(2, parts=(1, 1)),))
    return [z.changed(np.stack(columns, -1), means, dims=dims, gaussian=True)]


def _in_pairs(z: Signal) -> Signal:
    """Take a value whose real and imaginary parts are alike, and have nothing in common, apart into these."""
    moments = np.stack([z.moments / 2, np.zeros_like(z.moments)], -1)
    return z.changed(moments, z.means[..., None], dims=(*z.dims, (Atom(2),)), gaussian=z.gaussian)


def _even(call: Call, value: int, dims: Sequence[int]) -> float:
    """Return which share of E[x²] is even, x_−k = x_k, as a real part of a transform of the same dimensions is.

    A sum has the shares of its parts, and a layer norm, rows k and −k of which are of one length, that of its input.
    """
    made = call.trace.producer(value)
    if made is None:
        return 0.0
    if made.functional == "aten.select":
        whole = call.trace.producer(made.inputs[0])
        before = call.trace.producer(whole.inputs[0]) if whole is not None and whole.inputs else None
        known = before is not None and before.functional == "aten._fft_c2c" and made.arguments["index"] == 0
        return float(known and before is not None and [int(d) for d in before.arguments["dim"]] == list(dims))
    if made.functional in _KEEP_EVEN:
        return _even(call, made.inputs[0], dims)
    if made.functional != "aten.add" or len(made.inputs) != 2 or any(i not in call.known for i in made.inputs):
        return 0.0
    sizes = [call.known[i].q for i in made.inputs]
    parts = [_even(call, i, dims) for i in made.inputs]
    return float(np.dot(sizes, parts) / sum(sizes)) if sum(sizes) > 0 else 0.0


def _of_real(trace: Trace, op: Op) -> bool:
    """Whether a transform's input has no imaginary part: it was real, or a gradient of real parts alone."""
    made = trace.producer(op.inputs[0])
    if made is not None and made.functional == "aten.view_as_complex":
        filled = trace.producer(made.inputs[0])
        return filled is not None and filled.functional == "aten.select_backward" and filled.arguments["index"] == 0
    while made is not None and made.functional in COPIES:
        if trace.values[made.inputs[0]].is_floating:
            return True
        made = trace.producer(made.inputs[0])
    return False


RULES: Mapping[str, Rule] = {
    "aten._fft_c2c": _transform,
    "aten.view_as_complex": _as_complex,
    "aten.view_as_real": _as_real,
}
