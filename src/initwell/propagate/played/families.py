"""Families: values that a loss judges and one layer made of several inputs, as of two views of one image.

What one layer makes of two inputs varies together as these do, row by row, and both are of one weight: so they are
drawn one after another, each with what it has in common with those before it. What a loss sends back to them goes as
these rows again, its own and, of losses that compare samples, those of others; and Wᵀ g is then not what it is of an
independent W. As W is drawn here, that is measured,

    E|Wᵀ g|² = σ² (n |g|² + Σ_e [(w_e·g)² − |g|²])        w_e the columns of W/σ along what rows have, n inputs

of which what goes as the row itself is followed further back: see ``responses``.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from initwell.propagate.given.known import Known
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.played.drawn import Layers, beyond, images_of, numbers, one_a_row, part_of, signed, subsets
from initwell.propagate.played.likeness import check_likeness
from initwell.propagate.played.sizes import LAYERS, Sizes, chances, factors
from initwell.propagate.shared.pairs import Pair
from initwell.propagate.shared.pairs import of as own
from initwell.propagate.table import UnknowableError
from initwell.trace.trace import Trace

Together = Callable[[int, int], Pair | None]
_SEGMENTS = "a loss of values that one layer made of several inputs, whose rows differ"
_LEAST = 1e-12
# A tensor with less than this of its own is a copy of those before it.
_NEW = 1e-3
# Where roots of sizes are kept, beside those of parts by the axes that they vary along.
_SIZES = (-1,)
_SMALLEST = 0.25


class Siblings:
    """Draws tensors one after another that vary together, as what one layer makes of several inputs.

    Of each part v_S that varies along axes S, tensor j is Σ_k L_jk z_k, z_k new with the k-th and L the root of the
    covariances of that part, row by row as tensors come.
    """

    def __init__(self, generator: Generator) -> None:
        """Begin with none.

        Args:
            generator: of the numbers.
        """
        self._generator = generator
        self._new: list[dict[tuple[int, ...], Tensor]] = []
        self._roots: dict[tuple[int, ...], list[Array]] = {}
        self._layers: dict[tuple[int, ...], Tensor] = {}
        self._chances = list[Tensor]()
        self._bias: Tensor | None = None

    def drawn(
        self,
        signal: Signal,
        covariances: Sequence[Array],
        unlike: Sequence[float] | None = None,
        bias: float = 0.0,
    ) -> Tensor:
        """Draw the next one.

        Args:
            signal: of it, with the atoms of those before it, and no segments.
            covariances: E[x x'] − E[x]E[x'] by pattern, with each of those before it, and with itself.
            unlike: by what rows vary in size, if it is known, but for the bias: see ``sizes``.
            bias: second moment of what is added to all rows alike.

        >>> from initwell.propagate.moments.signal import independent
        >>> one, siblings = independent((500, 8), 2.0), Siblings(Generator().manual_seed(0))
        >>> x = siblings.drawn(one, [one.moments])
        >>> y = siblings.drawn(one, [one.moments / 2, one.moments])
        >>> 0.9 < float((x * y).mean()) < 1.1, 1.9 < float((y * y).mean()) < 2.1
        (True, True)
        """
        lengths, images = [a.size for a in signal.atoms], images_of(signal, unlike)
        features = {i for i, n in enumerate(one_a_row(signal)) if n < lengths[i]}
        new, terms = dict[tuple[int, ...], Tensor](), [torch.zeros(lengths, dtype=torch.float64) for _ in covariances]
        for kept in subsets(len(lengths)):
            common = bias if features == {*kept} else 0.0
            shares = [signed(c, kept) - common for c in covariances]
            root = self._root(kept, shares, _LEAST * signal.q)
            if not root.any():
                continue
            shape = [n if i in kept else 1 for i, n in enumerate(lengths)]
            new[kept] = part_of(shape, kept, images, self._generator, torch.float64, Layers({}, self._layers))
            for k, (factor, parts) in enumerate(zip(root, (*self._new, new), strict=True)):
                terms[k] = terms[k] + factor * parts[kept] if factor else terms[k]
        self._new.append(new)
        if bias and self._bias is None:
            shape = [n if i in features else 1 for i, n in enumerate(lengths)]
            self._bias = math.sqrt(bias) * numbers(shape, self._generator, torch.float64, uniform=False)
        if unlike is not None:
            self._chances.append(chances(signal, one_a_row(signal), self._generator))
            terms = [term * factors(unlike, chance) for term, chance in zip(terms, self._chances, strict=True)]
        found = torch.stack(terms).sum(0) + signal.mean + (0.0 if self._bias is None else self._bias)
        return found.reshape(signal.shape).to(torch.float32)

    def sent_back(self, gradients: Tensor) -> float | None:
        """Return Σ (w·g)² over all columns w of W, less what it is of another W: E over rows, of W of unit variance.

        What a loss makes of rows W a sends back goes as these, its own and those of other samples, and Wᵀ g is larger
        than of an independent W, or smaller.

        Args:
            gradients: of the last dimension's features, along W a.

        Returns:
            The average; None where W is not known, as of rows that were drawn as numbers of their own.
        """
        g = gradients.double().reshape(-1, gradients.shape[-1])
        kept = {k: w for k, w in self._layers.items() if len(w) == g.shape[-1]}
        alone = [part.reshape(-1, 1) for new in self._new for k, part in new.items() if part.numel() == g.shape[-1]]
        if not kept:
            return None
        return sum(beyond(g, w) for w in (*kept.values(), *alone))

    def _root(self, kept: tuple[int, ...], shares: Sequence[float], least: float) -> Array:
        """Return the next row of L; nothing of what an earlier one had nothing of."""
        rows = self._roots.setdefault(kept, [])
        found = np.zeros(len(shares))
        if shares[-1] > least:
            for k, row in enumerate(rows):
                if row[k] > _NEW * float(np.linalg.norm(row)):
                    found[k] = (shares[k] - float(row[:k] @ found[:k])) / row[k]
            size = float(found @ found)
            found *= math.sqrt(min(1.0, shares[-1] / size)) if size > 0 else 1.0
            found[-1] = math.sqrt(max(shares[-1] - float(found @ found), 0.0))
        rows.append(found)
        return found


class Families:
    """Draws what a loss judges, and says how its gradients go back through the layers that made that."""

    def __init__(
        self, trace: Trace, known: Mapping[int, Signal], values: Known, together: Together, generator: Generator
    ) -> None:
        """Begin with none.

        Args:
            trace: that is walked.
            known: value id → signal, of all values so far.
            values: what has real numbers.
            together: how two values vary together, where they share a weight.
            generator: of the numbers.
        """
        self._trace, self._known, self._values = trace, known, values
        self._together, self._generator = together, generator
        self._sizes = Sizes(trace, known, values)
        self.unlike = self._sizes.of
        self._groups = list[tuple[list[int], list[Siblings]]]()

    def drawn(self, value: int, signal: Signal, before: Collection[int], draws: int) -> list[Tensor] | None:
        """Draw a value together with those that the same layer made of other inputs; None where that is no matter.

        Args:
            value: its id.
            signal: that it is to have.
            before: those that were drawn before it.
            draws: how many tensors.

        Raises:
            UnknowableError: it is not known how it goes together with these.
        """
        check_likeness(self._trace, self._values, self._known, value, before)
        if signal.segmented or signal.profile:
            return None
        related = [(g, s) for g, s in self._groups if any(self._together(i, value) is not None for i in g)]
        if not related:
            related = [([], [Siblings(self._generator) for _ in range(draws)])]
            self._groups += related
        group, siblings = related[0]
        pairs, frame = [self._together(i, value) for i in group], own(signal)
        none = Pair(frame.dims, np.zeros_like(frame.moments))
        rows = [none if pair is None else pair for pair in pairs]
        if any(pair.dims != frame.dims for pair in rows):
            raise UnknowableError(_SEGMENTS)
        group.append(value)
        shares = [*(pair.moments for pair in rows), frame.moments]
        bias, unlike = self._sizes.beside_bias(value)
        return [each.drawn(signal, shares, unlike, bias) for each in siblings]

    def of(self, value: int) -> list[int]:
        """Return a value and its siblings."""
        group = next((g for g, _ in self._groups if value in g), [value])
        return [value, *(i for i in group if i != value)]

    def undone(self, value: int, g: Signal, gradients: Sequence[Tensor]) -> float:
        """Return by how much what goes back through a value's layer is larger than of an independent weight.

        Args:
            value: what the layer made.
            g: the gradient that arrives there, with what of it goes as the value.
            gradients: its numbers, of each draw.
        """
        op, u = self._trace.producer(value), self._known[value]
        siblings = next((s for group, s in self._groups if value in group), None)
        if siblings is None or op is None or op.functional not in LAYERS or g.q <= 0:
            return 1.0
        x, of_bias = op.arguments[LAYERS[op.functional][0]], self._sizes.beside_bias(value)[0]
        each = [s.sent_back(t) for s, t in zip(siblings, gradients, strict=True)]
        beyond = [e for e in each if e is not None]
        if len(beyond) < len(each):
            return 1.0
        outputs, inputs = u.shape[-1], self._trace.values[x.id].shape[-1]
        followed = g.answer**2 * outputs * (outputs + 1) * max(u.q - of_bias, 0.0)
        return math.sqrt(max(1 + (float(np.mean(beyond)) - followed) / (inputs * outputs * g.q), _SMALLEST))
