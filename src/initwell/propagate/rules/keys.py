"""Columns of a masked softmax: keys that are read by unlike numbers of rows, each segment of them with its own share.

Of a causal mask the first key is read by all rows and the last by one; of blocks that are padded to one length some
keys are read by none. So the weights have segments by column, too. The open entries of a row are exchangeable, so that
each has 1/n_i on average, and E[p_t p'_t] of two rows grows by one factor at all t where both are open, from what it is
at equal scores, which is known number by number. Pairs of different entries share what is left by what both rows have
open there, as each row adds up to 1. Scores and gradients count where they are open:

    d_t = p_t(g_t − Σ p g):  what is each place's own goes as E[p_t p'_t], what places have in common is taken off by w

the weights at equal scores. Assumption: scores of a row are of one size, and entries of a segment open alike. Heads
with masks of their own are averaged over: where one opens few keys of a row and another many, and scores are large,
what a segment gets can be off by half while all together get what they should.
"""

from dataclasses import dataclass

import numpy as np

from initwell.propagate.moments.alike import refined
from initwell.propagate.moments.by_pairs import by_pattern
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal

# Less than this share of a row is none.
_NONE = 1e-12


@dataclass(frozen=True, eq=False)
class Keys:
    """The weights at equal scores, by segments of columns.

    Attributes:
        even: the weights, of the atoms of the scores; it has segments along ``axis``.
        axis: the atom of the columns.
    """

    even: Signal
    axis: int

    @property
    def parts(self) -> tuple[int, ...]:
        """Lengths of the segments."""
        return self.even.atoms[self.axis].parts

    @property
    def same(self) -> Array:
        """E[p p'] of the same place, over all places, by pattern of the rows."""
        return np.asarray(np.tensordot(self._columns, self.even.atoms[self.axis].patterns.agree, 1))

    @property
    def _columns(self) -> Array:
        return np.moveaxis(self.even.moments, self.axis, -1)

    def weights(self, s: Signal, agree: Array) -> Signal:
        """Return the weights.

        Args:
            s: scores of the same atoms.
            agree: by pattern of the rows, E[p p'] of the same place, over all places.
        """
        found = refined(s, self.axis, self.parts)
        moments = self._columns * np.concatenate(self._growth(agree), -1)
        return found.changed(np.moveaxis(moments, -1, self.axis), self.even.means)

    def _growth(self, agree: Array) -> tuple[Array, Array]:
        """Return by which factors both kinds of moments are larger than at equal scores, by pattern of the rows."""
        same, count = self.same, self.even.atoms[self.axis].size
        left = 1 / count - same
        alone = np.where(same > _NONE, agree / np.where(same > _NONE, same, 1.0), 0.0)
        apart = np.where(left > _NONE, (1 / count - agree) / np.where(left > _NONE, left, 1.0), 0.0)
        s = len(self.parts)
        return np.repeat(alone[..., None], s, -1), np.repeat(apart[..., None], s * s, -1)

    def at_one(self, s: Signal) -> Array:
        """Return the moments of scores at one open entry, centred along the columns, by pattern of the rows.

        Args:
            s: scores of the same atoms, with segments or without.
        """
        moments = np.moveaxis(refined(s, self.axis, self.parts).moments, self.axis, -1)
        counts, n = self.even.atoms[self.axis].patterns.counts, len(self.parts)
        found = []
        for kind in (slice(n), slice(n, None)):
            weights = self._columns[..., kind] * counts[kind]
            total = weights.sum(-1)
            plain = (moments[..., kind] * counts[kind]).sum(-1) / max(counts[kind].sum(), 1.0)
            there = total > _NONE
            found.append(np.where(there, (weights * moments[..., kind]).sum(-1) / np.where(there, total, 1.0), plain))
        return np.asarray(found[0] - found[1])

    def gradient(self, g: Signal, sizes: Array, agree: Array) -> Array:
        """Return the moments of p(g − Σ p g).

        Args:
            g: of the same atoms and segments.
            sizes: by pattern of the rows, E[d d'] of the same place, over all places, of g of variance 1.
            agree: as of ``weights``.
        """
        n, pairs = len(self.parts), self.even.atoms[self.axis].patterns
        moments, even, same = np.moveaxis(g.moments, self.axis, -1), self._columns, self.same
        common = self._between(moments)
        own = moments[..., :n] - np.diagonal(common, axis1=-2, axis2=-1)
        common = self._centred(common)
        apart = self._growth(agree)[1]
        grown = np.where(same > _NONE, sizes / np.where(same > _NONE, same, 1.0), 0.0)
        others = np.maximum(1 - same * self.even.atoms[self.axis].size, _NONE)[..., None]
        agreed = even[..., :n] * grown[..., None] * (own + np.diagonal(common, axis1=-2, axis2=-1) / others)
        differ = even[..., n:] * apart * common.reshape(*common.shape[:-2], n * n)
        # Each row of d adds up to 0.
        whole = agreed @ pairs.counts[:n] + differ @ pairs.counts[n:]
        left = even[..., n:] @ pairs.counts[n:]
        share = np.where(left > _NONE, whole / np.where(left > _NONE, left, 1.0), 0.0)
        found = np.concatenate([agreed, differ - share[..., None] * even[..., n:]], -1)
        return np.moveaxis(found, -1, self.axis)

    def _between(self, moments: Array) -> Array:
        """Return what different columns have in common, by segments of both.

        A segment of one column has no other: with itself it would be as alike as with its neighbour.
        """
        n = len(self.parts)
        found = moments[..., n:].reshape(*moments.shape[:-1], n, n).copy()
        for i in (i for i, length in enumerate(self.parts) if length == 1 and n > 1):
            other = i + 1 if i + 1 < n else i - 1
            size, near = moments[..., i], moments[..., other]
            found[..., i, i] = found[..., i, other] * np.sqrt(np.abs(size) / np.maximum(np.abs(near), 1e-300))
        return found

    def _centred(self, common: Array) -> Array:
        """Take off what the weights at equal scores average over."""
        means = np.moveaxis(self.even.means, self.axis, -1) * np.array(self.parts, float)
        atoms = [atom for i, atom in enumerate(self.even.atoms) if i != self.axis]
        rows = [by_pattern([*atoms, self.even.atoms[self.axis]][:-1], means, second=second) for second in (False, True)]
        first = np.einsum("...d,...dc->...c", rows[0], common)
        second = np.einsum("...d,...cd->...c", rows[1], common)
        both = np.einsum("...c,...c->...", rows[1], first)
        return np.asarray(common - first[..., None, :] - second[..., :, None] + both[..., None, None])
