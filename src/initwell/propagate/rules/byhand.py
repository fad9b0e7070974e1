"""Normalization written by hand: x − mean(x), x·rsqrt(mean(x²) + ε), (x − mean(x))/√(var(x) + ε), x/‖x‖.

Taken op by op, x and its own mean would count as independent. Where a value is known to be the average of x or of its
squares over some dimensions, what is made of both is the normalization rule itself. The scale is any function k of the
average that goes as 1/√(v + ε) there; ε and the constant in front are read off k and its slope: of k = c/√(v + ε),

    d log k / d log v = −v / (2(v + ε))        so        ε = v·(−1/(2·slope) − 1)        c = k·√(v + ε)

A slope between −1/2 and 0 is one of such a scale; any other is not, and the product is no norm.
"""

import math

import numpy as np

from initwell.propagate.atoms import centred
from initwell.propagate.functions import as_image
from initwell.propagate.rules.branch import scaled
from initwell.propagate.rules.norm import normalized
from initwell.propagate.signal import Average, Signal, merged_fidelity, replace


def centred_by_hand(x: Signal, mean: Signal, beta: float) -> Signal | None:
    """Return x + beta·mean where that is x less its own mean over some dimensions; else None.

    Args:
        x: any signal.
        mean: what is added, an ``average`` of x or not.
        beta: its factor: -1 where it is taken off.
    """
    average = mean.average
    if beta != -1.0 or average is None or average.kind != "mean" or average.of is not x:
        return None
    found = x.changed(centred(x, x.axes(average.dims)), 0.0, gaussian=x.gaussian)
    return replace(found, centred_of=average, joint=True)


def normalized_by_hand(x: Signal, scale: Signal, tag: int) -> Signal | None:
    """Return x·scale where scale is 1/√(the average square of x, or its variance, + ε); else None.

    Args:
        x: any signal; either of the two may be the scale.
        scale: a function of an ``average`` of x or not.
        tag: under which later sums remember the normalized value.
    """
    one, two = _normalized(x, scale, tag), _normalized(scale, x, tag)
    return one if one is not None else two


def _same_centred(one: Average | None, two: Average | None) -> bool:
    return one is not None and two is not None and one.of is two.of and one.dims == two.dims


def _normalized(x: Signal, scale: Signal, tag: int) -> Signal | None:
    image = as_image(scale)
    average = image.pre.average
    if image.base is not None or average is None or average.kind == "mean":
        return None
    about = x.centred_of
    is_variance = average.kind == "variance" and about is not None and about.of is average.of
    is_square = average.kind == "square" and (average.of is x or _same_centred(average.of.centred_of, about))
    if not (is_variance or is_square):
        return None
    v, step = image.pre.mean, 1e-4
    if v <= 0:
        return None
    k, above, below = (float(image.phi.fn(np.array([v * math.exp(d)]))[0]) for d in (0.0, step, -step))
    if not (k > 0 and above > 0 and below > 0):
        return None
    slope = (math.log(above) - math.log(below)) / (2 * step)
    if not -0.5001 <= slope < -1e-6:
        return None
    eps = max(v * (-0.5 / slope - 1.0), 0.0)
    found = normalized(x, average.dims, eps, centred=False, tag=tag)
    return replace(merged_fidelity(scaled(found, k * math.sqrt(v + eps)), scale), joint=True)
