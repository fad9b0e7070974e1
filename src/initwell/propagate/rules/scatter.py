"""How much channels differ in size that few weights made: what a normalization over samples divides by.

Given its weights w_1 … w_K, independent of mean 0, a channel of y = Σ w_k x_k has the variance wᵀΣw over samples and
positions, Σ that of the x_k. From channel to channel that varies, relative to its mean squared, by

    κ = (E[w⁴]/E[w²]² − 1)/K + 2(1 − 1/K)·c²,      c² the average squared correlation of two different x_k

A depthwise 3×3 convolution has K = 9. Batch norm's backward divides each channel by its own size, and E[1/s²] is
1/(1 − κ) times 1/E[s²] where s² is a gamma variable of that relative variance. The convolution's own backward then
multiplies by w, whose size made s: E[w²/s²] = E[w²]/E[s²] as far as s² = σ_x²·Σ w_k², and the first term of κ is
undone. Channels of x that few weights made differ in size themselves: what reads K/taps of them keeps that share.
"""

import math
from collections.abc import Sequence

from initwell.propagate.rules.branch import scaled
from initwell.propagate.signal import Signal, replace

# Beyond a relative variance of 1 an inverse gamma variable has no mean; s² of few samples, with its ε, has.
_MOST = 0.75


def scattered(y: Signal, x: Signal, weight: Signal, taps: float, fan: float, near: float = 0.0) -> Signal:
    """Note how unlike the channels of y are.

    Args:
        y: what was made of x by the weight.
        x: dimensions (sample, channel, …).
        weight: fresh; its ``scatter`` is E[w⁴]/E[w²]² − 1.
        taps: positions that an entry of y reads of one channel.
        fan: entries that it reads in all.
        near: average squared correlation of what two different taps read of what is each place's own.

    Returns:
        y with the two terms of κ as its ``scatter``, and in the second what x's channels bring along.
    """
    tails = weight.scatter[0]
    if tails == 0 or weight.mean != 0 or fan < 1:
        return y
    others = {*x.axes([0]), *x.axes(range(2, len(x.dims)))}
    channels = set(x.axes([1]))
    level = x.averaged(others)
    variance = x.q - level
    if variance <= 1e-9 * x.q:
        return replace(y, scatter=(tails / fan, 0.0))
    same = (x.averaged(x.axes(range(2, len(x.dims)))) - level) / variance if taps > 1 else 0.0
    apart = (x.averaged(channels) - x.averaged(channels | others)) / variance if fan > taps else 0.0
    inside = min((taps - 1) / max(fan - 1, 1), 1.0)
    squared = inside * max(same**2, near) + (1 - inside) * apart**2
    before = sum(x.scatter) * taps / fan
    return replace(y, scatter=(tails / fan, before + 2 * (1 - 1 / fan) * squared))


def divided_by_size(g: Signal, x: Signal) -> Signal:
    """Correct a gradient that was divided by the average size of x's channels: each is divided by its own.

    >>> from initwell.propagate.signal import independent
    >>> few = replace(independent((4, 3), 1.0), scatter=(0.2, 0.0))
    >>> round(divided_by_size(independent((4, 3), 1.0), few).q, 9)
    1.25
    """
    own, read = (1 - min(part, _MOST) for part in x.scatter)
    return replace(scaled(g, 1 / math.sqrt(own * read)), undone=math.sqrt(own))


def fan_of(shape: Sequence[int]) -> tuple[int, int]:
    """Return (taps, fan-in) of a convolution's weight, (out, in of a group, taps…).

    >>> fan_of((64, 1, 3, 3))
    (9, 9)
    """
    taps = math.prod(shape[2:])
    return taps, taps * shape[1]
