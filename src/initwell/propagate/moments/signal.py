"""Signal: a whole tensor as its mean and its second moments by which indices agree.

At initialization the entries of a tensor are exchangeable along each of its axes: no sample, position or channel is
special. Then E[x_i x_j] depends only on *which axes i and j differ in*, and a tensor of any size is one small array,
``moments[0, 0, …]`` being the second moment q that Xavier and Kaiming carry:

    moments[b] = E[x_i x_j] for indices that agree on the axes where b is 0 and differ on those where b is 1

**Segments.** Where an axis is exchangeable only within consecutive parts (a class token and the patches), "agree or
differ" becomes "agree in which segment, differ between which two", with their counts: see ``segments``.

**Atoms.** A reshape must lose nothing, so the axes of that array are not the tensor's dimensions but *atoms*: each
dimension is a row-major tuple of atoms whose sizes multiply to its length. (N, T, C) seen as (N·T, C) is the same three
atoms, grouped otherwise. An atom of size a·b can be cut in two exactly: indices agree on it when they agree on both
parts: ``moments[.., d, ..]`` becomes ``moments[.., d1, d2, ..] = moments[.., d1 or d2, ..]``. A length of 1 has none.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np

from initwell.errors import ArgumentError
from initwell.propagate.moments import labels
from initwell.propagate.moments.axes import Atom, Dims
from initwell.propagate.moments.copies import names, worked_out
from initwell.propagate.moments.segments import Array, Layout, average

if TYPE_CHECKING:
    from initwell.propagate.given.mask import Mask
    from initwell.propagate.laws.channels import Channels
    from initwell.propagate.laws.echoes import Echo
    from initwell.propagate.moments.remembered import Average, Gate, Law

Fidelity = Literal["exact", "approximate"]
UNLIKE = 0.25
"""Relative variance of rows' mean squares beyond which a function of them is not that of their average."""


class Pointwise(Protocol):
    """A function of one number, such as an ``Activation``."""

    @property
    def fn(self) -> Callable[[Array], Array]:
        """The function, of float64 arrays."""

    @property
    def kinks(self) -> tuple[float, ...]:
        """Where it is not smooth."""


@dataclass(frozen=True, eq=False)
class Image:
    """Says that a value is base·φ(u), u the signal ``pre``; with no base, φ(u) alone.

    Attributes:
        phi: the function.
        pre: what it is a function of.
        base: what it is multiplied by, independent of u: a gradient, or another branch.
    """

    phi: Pointwise
    pre: "Signal"
    base: "Signal | None" = None


@dataclass(frozen=True, eq=False)
class Signal:
    """One tensor at initialization; see the module's text.

    Attributes:
        dims: the atoms of each dimension, row-major.
        moments: one axis for each atom, in the order of ``dims``, of length 2, or S + S² for S segments.
        means: E[x] by segment: one axis for each atom, of length 1, or S; a number where all are the same.
        fidelity: "exact" under mean-field's independence, or "approximate".
        reasons: why it is only approximate.
        gaussian: whether entries may be taken as jointly Gaussian: sums of many independent terms, and sums of those.
        image: the Gaussian that it is a function of, where it is one.
        law: how its entries are distributed, where they are the sum of a Gaussian and a function of one.
        gates: the masks that its parts went through last, where it is a gradient that met some.
        roots: (tag, a): it contains a times the normalized value of that tag, plus what is independent of it.
        peak: above 1 where only the largest of so many entries of a window got a gradient: max pooling's backward.
        crest: which share of its second moment that gradient is, where others were added to it.
        average: what it is the average of, where it is one.
        square_of: what it is the square of, where it is one.
        numbers: of squares of rows that few numbers made: how many, by segment of rows.
        centred_of: the mean that was taken off, where one was.
        atoms: all atoms, in the order of ``moments``.
        scatter: of a weight, the relative variance of its squared entries; of what few weights made: rules/scatter.
        channels: how unlike its channels are, since those that it was made of were bent: see ``channels``.
        undone: of a gradient, the factor by which going back through the weights before it is made smaller or larger.
        joint: whether operands that have something in common were put together here as what they are.
        profile: for each of the last dimensions, how positions differ: see ``places``.
        mask: of scores, which of them are open to the softmax; all, if none.
        closed: of a gradient, the mask that has set it to 0 already.
        spread: relative variance of the average product of two rows that earlier layers left: see ``gram``.
        echoes: terms of a gradient that go with the value it arrives at.
        swing: relative variance of rows' mean squares, where each was multiplied by a number of its own: ``swing``.
        floor: where rows swing, what all of them have, over their average mean square.
        lengths: the same where it comes of a layer that read few entries a row, and the sum of squares of few varies.
        skew: third central moment of these sizes, in units of the mean and of ``lengths`` squared: 2 of a gamma law.
        excess: by how much E[x⁴]/E[x²]² is more than a Gaussian's 3, where no image and no law says: see ``few``.
        tilt: of a gradient, by how much less of it large entries get of the row that it belongs to: see ``lengths``.
        answer: of a gradient, b where it is b·u and what does not go as u, the value that it is of: see ``responses``.
    """

    BASIS: ClassVar = frozenset({"dims", "moments", "means"})

    dims: Dims
    moments: Array
    means: Array = field(default_factory=lambda: np.zeros(()))
    fidelity: Fidelity = "exact"
    reasons: tuple[str, ...] = ()
    gaussian: bool = False
    image: Image | None = None
    law: "Law | None" = None
    gates: "tuple[Gate, ...]" = ()
    roots: tuple[tuple[int, float], ...] = ()
    peak: int = 1
    crest: float = 1.0
    profile: tuple[Array, ...] = ()
    average: "Average | None" = None
    square_of: "Signal | None" = None
    numbers: tuple[float, ...] = ()
    centred_of: "Average | None" = None
    joint: bool = False
    scatter: tuple[float, ...] = ()
    channels: "Channels | None" = None
    undone: float = 1.0
    spread: float = 0.0
    swing: float = 0.0
    floor: float = 0.0
    lengths: float = 0.0
    tilt: float = 0.0
    skew: float = 0.0
    excess: float = 0.0
    answer: float = 0.0
    mask: "Mask | None" = None
    closed: "Mask | None" = None
    echoes: "tuple[Echo, ...]" = ()
    atoms: tuple[Atom, ...] = field(init=False, repr=False)
    _has_parts: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse moments that do not belong to the atoms; write a mean that is one number out."""
        self._count(tuple([atom for dim in self.dims for atom in dim]))

    def _count(self, atoms: tuple[Atom, ...]) -> None:
        segments = tuple([atom.segments for atom in atoms])
        lengths = tuple([n + n * n for n in segments])
        parts = [atom.parts for atom in atoms]
        self.__dict__.update(atoms=atoms, _has_parts=any(parts))
        if self.moments.shape != lengths:
            cure = f"Give one axis for each atom, of lengths {lengths}; a dimension of length 1 has none."
            raise ArgumentError("moments", f"shape {self.moments.shape} for {len(lengths)} atoms", cure)
        if self.means.shape != segments:
            self._write_out(segments)
        if not atoms:
            self._write_one()

    def _fit_as(self, other: "Signal") -> None:
        """Refuse moments that do not belong to the atoms, which are those of another signal."""
        if self.moments.shape != other.moments.shape:
            self._count(self.atoms)
        elif self.means.shape != other.means.shape:
            self._write_out(other.means.shape)
        if not self.atoms:
            self._write_one()

    def _write_one(self) -> None:
        """Keep one number as an array: NumPy's arithmetic returns scalars, which rules could not write to."""
        self.__dict__.update(moments=np.asarray(self.moments), means=np.asarray(self.means))

    def _write_out(self, segments: tuple[int, ...]) -> None:
        means = self.means
        if means.size == 1:
            found = np.empty(segments)
            found.fill(means.item())
        else:
            found = np.broadcast_to(means, segments)
        self.__dict__["means"] = found

    @worked_out
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple([dim[0].size if len(dim) == 1 else math.prod([a.size for a in dim]) for dim in self.dims])

    @worked_out
    def layout(self) -> Layout:
        """The segments of each atom."""
        return tuple([atom.parts or (atom.size,) for atom in self.atoms])

    @worked_out
    def cuts(self) -> dict[Dims, "Signal"]:
        """The same value with finer atoms, where it was needed so."""
        return {}

    @worked_out
    def kept(self) -> dict[object, Any]:
        """What functions of dims, moments and means alone found; see ``copies.kept``."""
        return {}

    @property
    def segmented(self) -> bool:
        """Whether some axis has segments."""
        return self._has_parts

    @worked_out
    def mean(self) -> float:
        """E[x], over all entries."""
        found = self.means
        for atom in self.atoms if self._has_parts else ():
            if n := len(atom.parts):
                found = atom.patterns.agree[:n] @ found.reshape(n, -1)
        return float(found.item()) if found.size else 0.0

    @worked_out
    def q(self) -> float:
        """The second moment E[x²], over all entries."""
        return self.averaged(()) if self._has_parts else float(self.moments.item(0))

    @worked_out
    def diagonal(self) -> Array:
        """E[x²] by segment: of the shape of ``means``."""
        return np.asarray(self.moments[tuple(slice(n) for n in self.means.shape)])

    def averaged(self, differ: Collection[int]) -> float:
        """Return E[x x'] over all pairs that differ along these atoms and agree along the others."""
        if not self._has_parts:
            place = [0] * len(self.atoms)
            for i in differ:
                place[i] = 1
            return float(self.moments.item(*place))
        known, key = self.kept, tuple(differ)
        if key not in known:
            known[key] = average(self.moments, self.layout, key)
        return float(known[key])

    @property
    def rms(self) -> float:
        """The root mean square, √E[x²]."""
        q = max(self.q, 0.0)
        return math.sqrt(q) if self.mask is None else self.mask.rms(math.sqrt(q), self.mean)

    @property
    def overlap(self) -> float | None:
        """The moment between the same entry of different samples over q; None without a sample axis, or at q = 0."""
        samples = [i for i, atom in enumerate(self.atoms) if atom.sample]
        return self.averaged(samples) / self.q if samples and self.q > 0 else None

    def axes(self, dims: Sequence[int]) -> tuple[int, ...]:
        """Return which axes of ``moments`` belong to these dimensions."""
        spans = self.spans
        return tuple([i for d in dims for i in spans[d]])

    @worked_out
    def spans(self) -> tuple[range, ...]:
        """Which axes of ``moments`` belong to each dimension."""
        return labels.spans(tuple(map(len, self.dims)))

    def changed(
        self, moments: Array, means: Array | float, *, dims: Dims | None = None, gaussian: bool = False, **more: Any
    ) -> "Signal":
        """Return a signal of other numbers, and fields, that keeps the fidelity and forgets where it came from."""
        if not isinstance(means, np.ndarray):
            number, means = means, np.empty(self.means.shape if dims is None else ())
            means.fill(number)
        dims = self.dims if dims is None else dims
        return _bare(self, dims=dims, moments=moments, means=means, gaussian=gaussian, **more)

    def regrouped(
        self, dims: Dims, moments: Array, means: Array | None = None, shape: tuple[int, ...] | None = None
    ) -> "Signal":
        """Return the same entries under other dimensions; given their shape, numbers are taken to fit."""
        found, means = object.__new__(Signal), self.means if means is None else means
        state, old = found.__dict__, self.__dict__
        state.update(_named(old, _OF_ENTRIES), dims=dims, moments=moments, means=means)
        if self.law is not None and self.law.near is not None:
            state["law"] = replace(self.law, near=np.zeros(()))
        atoms = tuple([atom for dim in dims for atom in dim])
        if moments is self.moments and means is self.means and atoms == self.atoms:
            state.update(_named(old, _OF_NUMBERS), atoms=atoms)
        elif shape is None:
            found._count(atoms)
        else:
            state.update(atoms=atoms, _has_parts=self._has_parts)
        if shape is not None:
            state["shape"] = shape
        return found

    def approximate(self, reason: str) -> "Signal":
        """Return it marked as approximate, and why."""
        if reason in self.reasons:
            return self
        return replace(self, fidelity="approximate", reasons=(*self.reasons, reason))


def _bare(origin: Signal, **given: Any) -> Signal:
    """Return a signal of these fields and the fidelity of its origin: a constructor would set each field by itself."""
    found = object.__new__(Signal)
    state, old = found.__dict__, origin.__dict__
    for name in _KEPT:
        if name in old:
            state[name] = old[name]
    state.update(given)
    if given["dims"] is origin.dims:
        state.update(_named(old, _OF_DIMS))
        found._fit_as(origin)
    else:
        found.__post_init__()
    return found


R = TypeVar("R")
# What a signal made of another keeps.
_KEPT = ("fidelity", "reasons", "spread", "swing", "floor")
# What holds of its entries wherever these stand.
_OF_SIZES = ("lengths", "skew", "tilt", "excess")
_OF_ENTRIES = (*_KEPT, *_OF_SIZES, "gaussian", "law", "peak", "crest", "roots", "scatter", "channels")
# What a Signal works out of its dims alone.
_OF_DIMS = ("atoms", "_has_parts", "shape", "layout", "spans")
# … and of its moments, means and atoms, however these are grouped.
_OF_NUMBERS = ("_has_parts", "layout", "mean", "q", "diagonal", "kept")


def _named(state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: state[name] for name in names if name in state}


def replace(record: R, **changes: Any) -> R:
    """Return a copy with other fields, as ``dataclasses.replace`` would, at a tenth of its time.

    A walk makes thousands of them; what was worked out of the old fields is forgotten.

    >>> replace(Atom(4, parts=(1, 3)), size=5, parts=(1, 4)).patterns.counts.tolist()
    [1.0, 4.0, 0.0, 4.0, 4.0, 12.0]
    """
    kind: type = type(record)
    found: R = object.__new__(kind)
    known, derived, basis = names(kind)
    if not known.issuperset(changes):
        raise TypeError(f"{kind.__name__} has no field {min(changes.keys() - known)}")
    state = found.__dict__
    state.update(record.__dict__)
    state.update(changes)
    if basis.isdisjoint(changes):
        return found
    for name in derived:
        if "dims" in changes or name not in _OF_DIMS:
            state.pop(name, None)
    if isinstance(found, Signal) and isinstance(record, Signal):
        found.__post_init__() if "dims" in changes else found._fit_as(record)
    return found


def independent(shape: Sequence[int], q: float, mean: float = 0.0, *, sample: int | None = None) -> Signal:
    """Return a signal of independent entries.

    Args:
        shape: of the tensor.
        q: E[x²].
        mean: E[x].
        sample: the dimension that counts samples, if any.

    Returns:
        A signal whose moments are q where all indices agree and mean² elsewhere.

    >>> independent((4, 3), 2.0).moments.tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    dims = tuple((Atom(n, i == sample),) if n > 1 else () for i, n in enumerate(shape))
    moments = np.full((2,) * sum(map(len, dims)), mean * mean)
    moments[(0,) * moments.ndim] = q
    return Signal(dims, moments, np.asarray(mean, float))


def constant(shape: Sequence[int], value: float) -> Signal:
    """Return a signal that is the same known number everywhere.

    >>> constant((2, 1), 3.0).moments.tolist()
    [9.0, 9.0]
    """
    return independent(shape, value * value, value)


def merged_fidelity(signal: Signal, *others: Signal) -> Signal:
    """Return ``signal`` no more trusted than the others it was made with."""
    for other in others:
        for reason in other.reasons:
            signal = signal.approximate(reason)
    return signal
