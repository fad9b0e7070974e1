"""Lengths: rows that differ in size since few entries made them; and what a norm of such rows sends back.

Of C independent entries p the sum of squares varies by (κ − 1)/C of itself, κ = E[p⁴]/E[p²]²: by 2/C of Gaussian ones,
5/C of rectified ones, 8/C of products of two. So do the mean squares of rows y = W p that a fresh layer makes of them,
beyond the 2/D that its own D outputs vary by. A norm of y divides by these sizes, and its backward has E[1/s²].

What comes back goes with p. Of a norm of rows of which y is a share β, and p = h·f, the layer before gets g·f. 1/s² is
small where this f is large, by β(κ_f − 1)/C to first order; and since a norm lets nothing through along y, it lacks as
much once more. Together that is the *tilt*, and β follows from what E[1/s²] has gained, β²(κ − 1)/C:

    E[(g f)²] = E[g²] E[f²] (1 − tilt·(κ_f − 1))        tilt = 2β/C        κ_f = E[p²f²]/(E[p²]E[f²])

Behind f a second factor has E[f²p²…] in its own: the tilt is then κ_f times as large. Assumptions: entries of p are
independent of each other, as behind a layer whose inputs are of one length; (κ − 1)/C is small.
"""

import math
from collections.abc import Mapping

from initwell.propagate.laws.averages import tails
from initwell.propagate.moments.signal import UNLIKE, Signal, replace

# Of so many entries rows are as good as of one length, and so are those whose sizes vary by less than this.
_WIDEST = 2048
_LEAST = 0.01
_GAUSSIAN = 3.0
SENT_BACK = "what comes back to rows of unlike size, which few inputs made, as if all were of one"
# Where first order leaves less than this of a square, it says no more.
_LEFT = 0.25


def of_layer(x: Signal) -> float:
    """Return by how much the mean squares of rows vary that a fresh layer makes of others.

    Args:
        x: what the layer reads along its last dimension, and whose rows are not of one length.

    >>> from initwell.propagate.moments.signal import independent, replace
    >>> of_layer(replace(independent((4, 64), 3.0), gaussian=True))
    0.03125

    A swing of next to nothing, as what ε leaves of one behind a norm, says no more than none does:

    >>> of_layer(replace(independent((4, 64), 3.0), excess=3.0, swing=1e-8))
    0.078125
    """
    swings = abs(x.swing) > _LEAST and not x.gaussian
    if swings or not x.dims or x.shape[-1] > _WIDEST or any(atom.parts for atom in x.dims[-1]):
        return 0.0
    heavy = (_GAUSSIAN,) if x.gaussian else tails(x)
    if heavy is None or x.shape[-1] == 1:
        return max(x.lengths, 0.0)  # of a batch it was measured
    found = (1 + max(x.lengths, 0.0)) * (1 + (heavy[0] - 1) / x.shape[-1]) - 1
    return found if found > _LEAST else 0.0


def by_layer(x: Signal) -> Mapping[str, float]:
    """Return lengths and skew of rows that a fresh layer makes of others.

    Sums of C entries have the third central moment (E[p⁶]/E[p²]³ − 3κ + 2)/C²: 2 of their squared variance for Gaussian
    entries, 3.1 for products of two, more for those of more. An inverse Gaussian has 3.

    Args:
        x: what the layer reads; see ``of_layer``.
    """
    found = of_layer(x)
    heavy = None if x.gaussian or found == 0 else tails(x)
    if heavy is None or not heavy[0] > 1:
        return {"lengths": found}
    return {"lengths": found, "skew": (heavy[1] - 3 * heavy[0] + 2) / (heavy[0] - 1) ** 2}


def heavy(x: Signal, count: int, most: float = UNLIKE) -> bool:
    """Whether rows of so many entries vary much in size since these have heavy tails, as products with e to a Gaussian.

    Args:
        x: the entries.
        count: how many are summed.
        most: of the relative variance of their mean square.
    """
    if x.gaussian or count <= 1:
        return False
    found = [tails(x)]
    if found[0] is None and x.image is not None and x.image.base is not None:
        # One factor alone is the least that it can be.
        found = [tails(replace(x, image=replace(x.image, base=None))), tails(x.image.base)]
    return any(t is not None and t[0] - 1 > most * count for t in found)


def of_rows(x: Signal) -> float:
    """Return by how much rows vary in size in all: by their lengths, and by numbers that they were multiplied by."""
    return (1 + max(x.swing, 0.0)) * (1 + max(x.lengths, 0.0)) - 1


def sent_back(g: Signal, x: Signal) -> float:
    """Return the tilt of what a layer sends back.

    Args:
        g: the gradient at the layer's output, with the lengths that a norm gave it.
        x: the rows that the layer read.
    """
    own = of_layer(x) if g.lengths < 0 else 0.0
    return 2 * math.sqrt(min(-g.lengths / own, 1.0)) / x.shape[-1] if own > 0 else 0.0


def behind(g: Signal, kurtosis: float | None) -> float:
    """Return the root of 1 − tilt·(κ_f − 1), what a gradient g times f is smaller by.

    Args:
        g: the gradient.
        kurtosis: κ_f, if it is known.
    """
    if not g.tilt or kurtosis is None:
        return 1.0
    return math.sqrt(max(1 - g.tilt * max(kurtosis - 1, 0.0), _LEFT))
