"""Sums of known numbers times functions of one Gaussian, by where their numbers are the same.

Targets of a loss are often of two kinds, as 1 and 0: then all that is made of them and of an output u, such as
p·t + (1 − p)(1 − t) in focal loss, is one function of u where t is 1 and another one where it is 0,

    Σ_k b_k f_k(u) = Σ_c 1[c] Σ_k b_k(c) f_k(u)        c over the kinds of entries

and a power or a logarithm of it is that of each. Products of such sums have no more terms than there are kinds.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from initwell.propagate.laws.functions import Function
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Pointwise

Term = tuple[Tensor, Pointwise]
# Entries of targets among which kinds are looked for, and kinds.
_LARGEST = 1 << 20
_KINDS = 4


def by_kind(terms: Sequence[Term]) -> list[Term] | None:
    """Return one term for each kind of entries, its known numbers 1 there and 0 elsewhere; None for too many.

    Args:
        terms: known numbers and functions of u.

    >>> t = torch.tensor([1.0, 0.0, 1.0])
    >>> kinds = by_kind([(2 * t, Function(abs)), (t, Function(abs))])
    >>> [(b.tolist(), float(f.fn(np.array([3.0]))[0])) for b, f in kinds or ()]
    [([0.0, 1.0, 0.0], 0.0), ([1.0, 0.0, 1.0], 9.0)]
    """
    shape = np.broadcast_shapes(*[tuple(b.shape) for b, _ in terms])
    numbers = [b.double().broadcast_to(shape) for b, _ in terms]
    if not 0 < numbers[0].numel() <= _LARGEST:
        return None
    kinds, which = torch.unique(torch.stack([b.flatten() for b in numbers]), dim=1, return_inverse=True)
    if kinds.shape[1] > _KINDS:
        return None
    phis = [f for _, f in terms]
    kinks = tuple(sorted({k for f in phis for k in f.kinks}))
    found: list[Term] = []
    for c in range(kinds.shape[1]):
        here = (which == c).double().reshape(shape)
        found.append((here, Function(partial(_sum, phis, kinds[:, c].tolist()), kinks)))
    return found


def _sum(phis: Sequence[Pointwise], factors: Sequence[float], u: Array) -> Array:
    whole = np.zeros(np.shape(u))
    for f, b in zip(phis, factors, strict=True):
        whole = whole + b * f.fn(u) if b else whole
    return whole


def fewer(terms: list[Term] | None) -> list[Term] | None:
    """Return the terms by kinds, where these are fewer."""
    if terms is None or len(terms) <= 2:
        return terms
    found = by_kind(terms)
    return found if found is not None and len(found) < len(terms) else terms


def _power(arguments: Mapping[str, Any]) -> Callable[[Array], Array] | None:
    exponent = arguments.get("exponent")
    return None if not isinstance(exponent, (int, float)) else lambda x: np.power(x, exponent)


def _clamped(arguments: Mapping[str, Any]) -> Callable[[Array], Array]:
    low, high = (arguments.get(name) for name in ("min", "max"))
    return lambda x: np.clip(x, -np.inf if low is None else low, np.inf if high is None else high)


BENT: Mapping[str, Callable[[Mapping[str, Any]], Callable[[Array], Array] | None]] = {
    "aten.pow": _power,
    "aten.log": lambda _: np.log,
    "aten.exp": lambda _: np.exp,
    "aten.sqrt": lambda _: np.sqrt,
    "aten.clamp": _clamped,
    "aten.clamp_min": _clamped,
}
"""Ops of entries → their function, of each kind by itself."""


def bent(terms: list[Term] | None, outer: Callable[[Array], Array] | None) -> list[Term] | None:
    """Apply a function of entries to a sum of terms, kind by kind."""
    kinds = by_kind(terms) if terms is not None and outer is not None else None
    if kinds is None or outer is None:
        return None
    return [(b, Function(partial(_outer, outer, f.fn), f.kinks)) for b, f in kinds]


def _outer(outer: Callable[[Array], Array], inner: Callable[[Array], Array], u: Array) -> Array:
    return outer(inner(u))
