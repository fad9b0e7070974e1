"""Max pooling: the largest of K entries of a Gaussian, or of a rising function of one.

max φ(u_k) = φ(max u_k) for a rising φ, so the moments are those of φ under the law of the largest of K. In the backward
the whole gradient of a window goes to that entry: of K entries one gets it, so E[g²] is shared by K, two entries that
differ get it with probability 1/K², and the entry that gets it is the largest: the gate before must know.
Assumption: entries of a window are independent given what all positions share; windows do not share their maximum.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from initwell.propagate.atoms import plain
from initwell.propagate.gaussian import covariance
from initwell.propagate.rules.pointwise import peak_law
from initwell.propagate.rules.taps import geometry, profiled, spread, tapped
from initwell.propagate.segments import Array
from initwell.propagate.signal import Atom, Signal, constant
from initwell.propagate.table import Call, Rule

_WHY = "max pooling: entries of a window as independent, and its maxima correlated as its inputs are"


def _window(call: Call) -> int:
    return math.prod(spread(call["kernel_size"], len(call.shape()) - 2))


def _itself(u: Array) -> Array:
    return u


def _max_pool(call: Call) -> Sequence[Signal | None]:
    x, count = call.signal("self"), _window(call)
    x = plain(x, *range(len(x.dims)))
    phi, u = (x.image.phi, x.image.pre) if x.image and x.image.base is None else (None, x)
    rank = len(x.dims)
    _, correlations = covariance(u)
    top, chance = peak_law(phi.fn if phi else _itself, phi.kinks if phi else (), u, count)
    mean, q = float(top @ chance), float((top * top) @ chance)
    moments = mean**2 + (q - mean**2) * correlations
    dims = tuple(
        dim if d < 2 else ((Atom(call.shape()[d]),) if call.shape()[d] > 1 else ()) for d, dim in enumerate(x.dims)
    )
    if [len(d) for d in dims] != [len(d) for d in x.dims]:
        gone = [i for d in range(2, rank) if not dims[d] for i in x.axes([d])]
        moments = np.asarray(moments[tuple(0 if i in gone else slice(None) for i in range(moments.ndim))])
    axes = geometry(call, x.shape[2:], call.shape()[2:], spread(call["kernel_size"], rank - 2))
    profile = profiled(x.changed(moments, mean, dims=dims), x, axes, "p").profile
    return [replace(x.changed(np.asarray(moments), mean, dims=dims), profile=profile).approximate(_WHY), None]


def _max_pool_backward(call: Call) -> Sequence[Signal]:
    g, x = call.signal("grad_output"), call.signal("self")
    g = plain(g, *range(len(g.dims)))
    kernel = spread(call["kernel_size"], len(x.dims) - 2)
    count = math.prod(kernel)
    axes = geometry(call, x.shape[2:], g.shape[2:], kernel)
    shared = tapped(g, constant(kernel, 1 / count), axes, "pkx")
    moments = shared.moments.copy()
    alone = math.prod(a.pairs[0, 0, 0] / a.sizes[1] for a in axes)
    moments[(0,) * moments.ndim] += g.q * alone * (1 / count - 1 / count**2)
    found = replace(profiled(shared, g, axes, "x"), moments=moments, gaussian=False, peak=count)
    return [found.approximate(_WHY)]


RULES: Mapping[str, Rule] = {
    "aten.max_pool2d_with_indices": _max_pool,
    "aten.max_pool2d_with_indices_backward": _max_pool_backward,
}
