"""What a router makes of its scores: the chosen ones, their weights, and the gradient that only these get.

At initialization the logits z_e of a token are independent Gaussians for its E experts, and those of two tokens go
together by ρ, as the tokens do, expert by expert. Everything up to the weights of the k chosen ones is a function of a
token's row of logits, and every moment of it an integral over one such row, or two with this ρ. These are taken at
points of a Richtmyer sequence (2E dimensions, some thousand rows: an error of about ½ %). The share of pairs of rows of
two tokens that have one expert is such an integral, too; so are, of a gradient g_j that arrives at the k weights,

    E[dz_e dz'_e'] = Σ_jl E[A_ej A'_e'l] · E[g_j g'_l]

with A what the ops of the backward multiply it by. Assumption: g is independent of the logits, as the chosen experts'
weights are of the router's, and depends on slots by whether they are of one expert. See ``slots`` for these.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from initwell.propagate.default import default_table
from initwell.propagate.given.known import Known
from initwell.propagate.laws.rectified import discrete
from initwell.propagate.moments.alike import plain
from initwell.propagate.moments.atoms import joined, matched, viewed
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.gram import forgotten
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, merged_fidelity, replace
from initwell.propagate.moments.slots import Slots
from initwell.propagate.routing.chains import Chain, chains, is_tail, numbers
from initwell.propagate.routing.rowwise import Rows, UnfitError
from initwell.propagate.table import Rule, RuleTable
from initwell.trace.trace import Op, Trace, ValueRef

_WHY = "which experts are chosen: by logits as Gaussian, independent of what experts and gradients make of it"
# Numbers drawn at most, and rows at least.
_MOST = 1 << 18
_LEAST = 1 << 11
# Choices among more than these are left unknown.
_WIDEST = 1 << 10
_UNRELATED = 1e-3

Found = list[Signal | None]
Key = tuple[float, float]


class Choices:
    """Gives the values behind a choice their signals, as a walk comes by."""

    def __init__(self, trace: Trace, known: Mapping[int, Signal], values: Known, table: RuleTable) -> None:
        """Begin a walk.

        Args:
            trace: that is walked.
            known: value id → signal, of all values so far.
            values: what has real numbers.
            table: of rules; those that a caller gave come first.
        """
        self.trace, self.known, self.values = trace, known, values
        own = default_table().rules
        self._given = {packet for packet, rule in table.rules.items() if own.get(packet) is not rule}
        self._numbers = numbers(trace, values, known)
        kept, given = f"chains {sorted(self._numbers)}", {*values.folded.tensors, *self._numbers}
        self._chains: Mapping[int, Chain] = values.once(kept, lambda: chains(trace, given))
        self._routers: dict[int, _Router | None] = {}
        self.any = bool(self._chains)
        """Whether there is any choice."""

    def rule(self, op: Op) -> Rule | None:
        """Return the rule of an op of a choice; None where it is none, or cannot be worked out."""
        chained = op.index in self._chains and op.packet not in self._given and op.functional not in self._given
        found = self._found(op) if chained else None
        return None if found is None else lambda _: found

    def _found(self, op: Op) -> Found | None:
        chain = self._chains[op.index]
        if chain.width > _WIDEST or not (op.index in chain.backward or any(o in chain.chosen for o in op.outputs)):
            return None
        if chain.root not in self._routers:
            root = self.known.get(chain.root)
            self._routers[chain.root] = (
                None if root is None else _Router(self.trace, self.values, chain, root, self._numbers)
            )
        router = self._routers[chain.root]
        if router is None:
            return None
        try:
            if op.index in chain.backward:
                base = chain.backward[op.index]
                return [router.gradient(o, base, self.known[base]) for o in op.outputs] if base in self.known else None
            floating = [self.trace.values[o].is_floating for o in op.outputs]
            return [router.signal(o) if real else None for o, real in zip(op.outputs, floating, strict=True)]
        except UnfitError:
            return None


class _Router:
    """One chain, with what is known of its logits."""

    def __init__(self, trace: Trace, values: Known, chain: Chain, root: Signal, numbers: Mapping[int, float]) -> None:
        self.trace, self.values, self.chain, self.numbers = trace, values, chain, numbers
        frame = plain(viewed(root, (chain.tokens, chain.width)), 0, 1)
        while len(frame.dims[1]) > 1:
            frame = joined(frame, frame.axes([1])[0])
        # What is chosen does not go with the tokens' products as logits themselves do.
        self.frame = frame.regrouped((forgotten(frame.dims[0]), frame.dims[1]), frame.moments)
        self._rows: dict[Key, Rows] = {}
        self._slots: Slots | None = None
        choice = None if chain.topk is None else trace.ops[chain.topk]
        self.k = 0 if choice is None else int(choice.arguments["k"])
        self.index = -1 if choice is None else choice.outputs[1]

    def _keys(self, frame: Signal) -> dict[tuple[int, ...], Key]:
        """Return the correlations of two tokens by pattern of the tokens' atoms: of logits' own, and common, parts."""
        agree, differ = (np.asarray(frame.moments.take(i, -1)) - frame.mean**2 for i in (0, 1))
        own = agree - differ
        here = (0,) * own.ndim
        found = {}
        for pattern in np.ndindex(own.shape):
            parts = []
            for part in (own, differ):
                size = float(part[here])
                parts.append(round(float(np.clip(part[pattern] / size, -1, 1)), 3) if size > 1e-12 else 0.0)
            found[pattern] = (parts[0], parts[1]) if any(pattern) else (1.0, 1.0)
        return found

    def rows(self, key: Key) -> Rows:
        """Return rows that go with those at (1, 1) by these correlations."""
        if key not in self._rows:
            here = (0,) * (len(self.frame.atoms) - 1)
            own = max(float(self.frame.moments[(*here, 0)] - self.frame.moments[(*here, 1)]), 0.0)
            common = max(float(self.frame.moments[(*here, 1)]) - self.frame.mean**2, 0.0)
            # What all have in common takes a column of its own.
            alone, shared = (normals(self.chain.width + 1, correlation) for correlation in key)
            logits = self.frame.mean + np.sqrt(own) * alone[:, :-1]
            if common > 1e-12:
                logits = logits + np.sqrt(common) * shared[:, -1:]
            self._rows[key] = Rows(self.trace, self.values, self.chain, logits, self.numbers)
        return self._rows[key]

    @property
    def slots(self) -> Slots:
        """How often rows have one expert."""
        if self._slots is None:
            keys = self._keys(self.frame)
            tokens = tuple(a.size for a in self.frame.dims[0])
            shares = {key: float(self._same(key).mean()) for key in set(keys.values())}
            same = np.array([shares[key] for key in keys.values()]).reshape((2,) * len(tokens))
            self._slots = Slots(self.chain.experts, tokens, same)
        return self._slots

    def _same(self, key: Key) -> Array:
        """Say which slots of two tokens are of one expert."""
        one, two = (np.asarray(self.rows(k).value(ValueRef(self.index)), int) for k in ((1.0, 1.0), key))
        return np.asarray(one[:, :, None] == two[:, None, :])

    def _slotted(self, value: int, rest: tuple[int, ...]) -> bool:
        return (
            self.k > 1
            and self.k != self.chain.experts
            and int(np.prod(rest)) == self.k
            and value in self.chain.chosen
            and not is_tail(self.trace, value)
        )

    def signal(self, value: int) -> Signal:
        """Return the signal of a value of the forward."""
        here = np.asarray(self.rows((1.0, 1.0)).value(ValueRef(value)), float)
        rest, flat = here.shape[1:], here.reshape(len(here), -1)
        slotted = self._slotted(value, rest)
        keys, found = self._keys(self.frame), {}
        for key in set(keys.values()):
            there = np.asarray(self.rows(key).value(ValueRef(value)), float).reshape(flat.shape)
            found[key] = _pairs(flat, there, self._same(key) if slotted else None)
        table = {pattern: found[key] for pattern, key in keys.items()}
        made = self._assembled(value, self.frame, table, float(flat.mean()), slotted)
        if not np.isfinite(flat).all():
            return made
        # Nearly all of a row's gates may be 0, and the others nearly one number.
        return replace(made, law=discrete(flat.reshape(1, -1), np.full((1, flat.size), 1 / flat.size)))

    def gradient(self, value: int, base: int, g: Signal) -> Signal:
        """Return the signal of a gradient that is linear in the one that arrived."""
        owner = self.chain.bases[base]
        size = int(np.prod(g.shape)) // self.chain.tokens
        g = viewed(g, (self.chain.tokens, size))
        while len(g.dims[1]) > 1:
            g = joined(g, g.axes([1])[0])
        frame, g = matched(self.frame, plain(g, 0, 1), [(0, 0)])
        keys, slotted = self._keys(frame), self._slotted(owner, (size,))
        here = self.rows((1.0, 1.0)).linear(ValueRef(value))
        out = here.shape[1:-1]
        whole = self._slotted(owner, out)
        table: dict[tuple[int, ...], Array] = {}
        for pattern, key in keys.items():
            there = self.rows(key).linear(ValueRef(value))
            moments = g.moments[pattern] if size > 1 else np.repeat(g.moments[pattern], 2)
            same = self._same(key) if slotted else np.eye(size, dtype=bool)[None]
            table[pattern] = _linear_pairs(here, there, same, moments, self._same(key) if whole else None)
        return merged_fidelity(self._assembled(value, frame, table, 0.0, whole), g)

    def _assembled(
        self, value: int, frame: Signal, table: Mapping[tuple[int, ...], Array], mean: float, slotted: bool
    ) -> Signal:
        size = int(np.prod(self.trace.values[value].shape)) // self.chain.tokens
        moments = np.array(list(table.values())).reshape((2,) * len(frame.dims[0]) + (2,))
        last: tuple[Atom, ...] = (Atom(size, slots=self.slots if slotted else None),)
        if size == 1:
            moments, last = moments[..., 0], ()
        found = frame.changed(moments, mean, dims=(frame.dims[0], last)).approximate(_WHY)
        return replace(viewed(found, self.trace.values[value].shape), joint=True)


def _pairs(one: Array, two: Array, same: Array | None) -> Array:
    """Return E[x_i x'_j] of rows × entries where i and j are the same, and where they differ.

    Args:
        one: rows × entries of a token.
        two: those of another, or the same.
        same: rows × entries × entries: whether they agree; None where they do by their place.
    """
    size = one.shape[1]
    total = float((one.sum(1) * two.sum(1)).mean())
    if same is None:
        agree = float((one * two).sum(1).mean())
        return np.array([agree / size, (total - agree) / (size * (size - 1)) if size > 1 else agree / size])
    agree = float(np.einsum("ri,rij,rj->", one, same, two)) / len(one)
    share = float(same.sum()) / len(one)
    differ = (total - agree) / (size * size - share) if size * size - share > _UNRELATED else one.mean() * two.mean()
    return np.array([agree / share if share > _UNRELATED else differ, differ])


def _linear_pairs(one: Array, two: Array, same: Array, g: Array, slots: Array | None) -> Array:
    """Return E[y_i y'_j] as ``_pairs`` does, of y = A g.

    Args:
        one: A, as rows × entries × entries of g.
        two: A of another token.
        same: rows × entries of g × entries of g: whether they are of one expert.
        g: E[g_j g'_l] where they are, and where they are not.
        slots: as ``same`` of ``_pairs``.
    """
    a, b = (x.reshape(len(x), -1, x.shape[-1]) for x in (one, two))
    carried = np.where(same, g[0], g[1]) @ np.swapaxes(b, 1, 2)  # rows × of g × entries
    size, rows = a.shape[1], max(len(a), len(carried))
    total = float(np.einsum("rl,rl->", *np.broadcast_arrays(a.sum(1), carried.sum(2)))) / rows
    if slots is None:
        agree = float(np.einsum("ril,rli->", *_rows_of(rows, a, carried))) / rows
        return np.array([agree / size, (total - agree) / (size * (size - 1)) if size > 1 else agree / size])
    pairs = np.einsum("ril,rlj->rij", *_rows_of(rows, a, carried))
    agree = float((pairs * slots).sum()) / rows
    share = float(slots.sum()) / len(slots)
    differ = (total - agree) / (size * size - share) if size * size - share > _UNRELATED else 0.0
    return np.array([agree / share if share > _UNRELATED else 0.0, differ])


def _rows_of(rows: int, *arrays: Array) -> Sequence[Array]:
    return [np.broadcast_to(x, (rows, *x.shape[1:])) for x in arrays]


def normals(width: int, correlation: float) -> Array:
    """Return rows of standard Gaussian numbers that go with those at correlation 1 by ``correlation``.

    >>> one, two = normals(4, 1.0), normals(4, 0.5)
    >>> round(float((one * one).mean()), 2), abs(round(float((one * two).mean()), 2) - 0.5) <= 0.01
    (1.0, True)
    """
    first, second = _drawn(width)
    return first if correlation == 1 else correlation * first + np.sqrt(1 - correlation**2) * second


@lru_cache(maxsize=8)
def _drawn(width: int) -> tuple[Array, Array]:
    from scipy.special import ndtri

    rows = max(min(_MOST // width, 1 << 13), _LEAST)
    # Multiples of the roots of primes, without their whole parts, spread evenly in so many dimensions.
    steps = np.sqrt(_primes(2 * width))
    points = (0.5 + np.outer(np.arange(1, rows + 1), steps)) % 1.0
    numbers = ndtri(np.clip(points, 1e-12, 1 - 1e-12))
    return numbers[:, :width], numbers[:, width:]


def _primes(count: int) -> Array:
    """Return the first prime numbers.

    >>> _primes(4).tolist()
    [2.0, 3.0, 5.0, 7.0]
    """
    end = max(16, int(2 * count * np.log(count + 2)))
    left = np.ones(end, dtype=bool)
    left[:2] = False
    for i in range(2, int(end**0.5) + 1):
        left[i * i :: i] = False
    return np.flatnonzero(left)[:count].astype(float)
