"""How much channels differ in size that few weights made: what a normalization over samples divides by.

Given its weights w_1 … w_K, independent of mean 0, a channel of y = Σ w_k x_k has the variance wᵀΣw over samples and
positions, Σ that of the x_k. From channel to channel that varies, relative to its mean squared, by

    κ = (E[w⁴]/E[w²]² − 1)/K + 2(1 − 1/K)·c²,      c² the average squared correlation of two different x_k

A depthwise 3×3 convolution has K = 9. Batch norm's backward divides each channel by its own size, and E[1/s²] is
1/(1 − κ) times 1/E[s²] where s² is a gamma variable of that relative variance. Assumption: x_k of equal variance.
"""

import math
from collections.abc import Sequence

from initwell.propagate.signal import Signal, replace

_MOST = 0.5


def scattered(y: Signal, x: Signal, weight: Signal, taps: int, fan: int) -> Signal:
    """Note how unlike the channels of y are.

    Args:
        y: what was made of x by the weight.
        x: dimensions (sample, channel, …).
        weight: fresh; its ``scatter`` is E[w⁴]/E[w²]² − 1.
        taps: positions that an entry of y reads of one channel.
        fan: entries that it reads in all.
    """
    if weight.scatter == 0 or weight.mean != 0 or fan < 1:
        return y
    others = {*x.axes([0]), *x.axes(range(2, len(x.dims)))}
    channels = set(x.axes([1]))
    level = x.averaged(others)
    variance = x.q - level
    if variance <= 1e-9 * x.q:
        return replace(y, scatter=weight.scatter / fan)
    same = (x.averaged(x.axes(range(2, len(x.dims)))) - level) / variance if taps > 1 else 0.0
    apart = (x.averaged(channels) - x.averaged(channels | others)) / variance if fan > taps else 0.0
    inside = (taps - 1) / max(fan - 1, 1)
    squared = inside * same**2 + (1 - inside) * apart**2
    return replace(y, scatter=weight.scatter / fan + 2 * (1 - 1 / fan) * squared)


def inverse_size(x: Signal) -> float:
    """Return √(E[1/s²]·E[s²]), s the size of a channel.

    >>> from initwell.propagate.signal import independent
    >>> inverse_size(independent((4, 3), 1.0))
    1.0
    """
    return 1 / math.sqrt(1 - min(x.scatter, _MOST))


def fan_of(shape: Sequence[int]) -> tuple[int, int]:
    """Return (taps, fan-in) of a convolution's weight, (out, in of a group, taps…).

    >>> fan_of((64, 1, 3, 3))
    (9, 9)
    """
    taps = math.prod(shape[2:])
    return taps, taps * shape[1]
