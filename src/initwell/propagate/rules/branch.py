"""Sums and products of branches: residual adds, masks, gates, scalings.

Independent x and y: E[(x+y)(x'+y')] adds the moments and twice the product of the means; the moments of a product are
the product of the moments. Assumption: the branches are independent of each other, which a fresh zero-mean layer
between them makes so.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from initwell.propagate.given.mask import both as opened_by_both
from initwell.propagate.laws.convolved import convolved
from initwell.propagate.laws.functions import (
    Function,
    as_image,
    combined,
    composed,
    evaluated,
    function_moments,
    is_line,
    line,
    multiple,
    shared_images,
    unscaled,
)
from initwell.propagate.laws.rectified import moved, sum_law
from initwell.propagate.laws.swing import by_row, copied, floor_of, of_multiple, of_product, of_sum
from initwell.propagate.moments import gram
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.by_pairs import by_pattern, over_pairs, product_of_means
from initwell.propagate.moments.places import by_axis, even, exactly, times
from initwell.propagate.moments.segments import Array, along
from initwell.propagate.moments.signal import Image, Pointwise, Signal, constant, merged_fidelity, replace
from initwell.propagate.rules import two_images
from initwell.propagate.rules.pointwise import gated
from initwell.propagate.rules.reading import read_places
from initwell.propagate.table import Call, UnknownSignalError
from initwell.trace.trace import ValueRef

_GATED = "a branch times its gate, taken as Gaussian"
_SHARED = "what a gate's gradient shares with the nonlinearity after it, the gate at its root mean square"


def scaled(signal: Signal, factor: float) -> Signal:
    """Multiply by a number; what the signal remembers is scaled along."""
    if factor == 1.0:
        return signal
    before, square = as_image(signal), factor**2
    return signal.changed(
        signal.moments * square,
        signal.means * factor,
        gaussian=signal.gaussian,
        roots=tuple([(tag, a * factor) for tag, a in signal.roots]),
        gates=tuple([replace(g, moments=g.moments * square, power=g.power * square) for g in signal.gates]),
        profile=signal.profile,
        image=Image(composed(line(factor), before), before.pre, before.base),
        law=moved(signal.law, factor) if signal.law is not None else None,
        mask=signal.mask.scaled(factor) if signal.mask is not None else None,
        closed=signal.closed,
        echoes=tuple([echo.times(square) for echo in signal.echoes]),
        **{name: getattr(signal, name) for name in ("peak", "crest", "lengths", "tilt")},
    )


def added(a: Signal, b: Signal, alpha: float = 1.0, beta: float = 1.0, *, gaussian: bool | None = None) -> Signal:
    """Add alpha·a + beta·b of the same atoms, independent of each other.

    Args:
        a: one summand.
        b: the other.
        alpha: factor of a.
        beta: factor of b.
        gaussian: whether the sum is; None for where both are.

    >>> from initwell.propagate.moments.signal import independent
    >>> added(independent((4,), 1.0), independent((4,), 2.0, 1.0), 1.0, 3.0).moments.tolist()
    [19.0, 9.0]
    """
    moments = alpha**2 * a.moments + beta**2 * b.moments + 2 * alpha * beta * _crossed(a, b)
    normal = (a.gaussian and b.gaussian) if gaussian is None else gaussian
    law = sum_law(a, b, alpha, beta) or sum_law(b, a, beta, alpha)
    taken_as_normal = law is not None and not (a.gaussian or b.gaussian)
    parts = (a if _bare(a) else scaled(a, alpha)), (b if _bare(b) else scaled(b, beta))
    found = a.changed(
        moments,
        alpha * a.means + beta * b.means,
        gaussian=normal,
        roots=(*[(tag, c * alpha) for tag, c in a.roots], *[(tag, c * beta) for tag, c in b.roots]),
        gates=parts[0].gates + parts[1].gates,
        law=law or convolved(a, b, alpha, beta),
        profile=_mixed(a, b, alpha**2 * a.q, beta**2 * b.q),
        echoes=parts[0].echoes + parts[1].echoes,
        **_largest_of((a, alpha**2), (b, beta**2)),
        **of_sum(a, b, alpha, beta),
    )
    found = merged_fidelity(gram.summed(found, a, b, alpha, beta), b)
    if a.mask is not None or b.mask is not None:
        # What a mask has shut stays shut, whatever is added to it.
        one, two = (m and m.scaled(factor) for m, factor in ((a.mask, alpha), (b.mask, beta)))
        found = replace(found, mask=opened_by_both(one, two))
    return found.approximate(_GATED) if taken_as_normal else found


def _largest_of(*parts: tuple[Signal, float]) -> dict[str, Any]:
    """Return peak and crest of a sum of gradients, some of which max pooling gave to the largest entries."""
    shares = [(g.crest * factor * g.q, g.peak) for g, factor in parts if g.peak > 1]
    whole = sum(factor * g.q for g, factor in parts) if shares else 0.0
    return {"peak": max(shares)[1], "crest": sum(s for s, _ in shares) / whole} if whole > 0 else {}


def _bare(signal: Signal) -> bool:
    """Whether a signal remembers no gates and no echoes, which a factor would change."""
    return not signal.gates and not signal.echoes


def _crossed(a: Signal, b: Signal) -> Array:
    """Return E[a b'] for every pattern: of g·x and g·y, x and y independent, E[g g']·E[x]E[y]; else E[a]E[b]."""
    one, two = a.image, b.image
    if one is None or two is None or one.base is None or one.base is not two.base or a.dims != one.base.dims:
        return product_of_means(a, b)
    first, second = (np.asarray(function_moments(i.phi, i.pre)[0]) for i in (one, two))
    atoms = a.atoms
    both = over_pairs(atoms, first, second) + over_pairs(atoms, second, first)
    return np.asarray(one.base.moments * both / 2)


def _mixed(a: Signal, b: Signal, qa: float, qb: float) -> tuple[Array, ...]:
    """Return the sizes by position of a sum: of each axis, the average by the second moments."""
    if (not a.profile and not b.profile) or qa + qb == 0:
        return ()
    flat = [even(p.shape[-1]) for p in a.profile or b.profile]
    pairs = [(p, q) for p, q in zip(a.profile or flat, b.profile or flat, strict=False) if p.shape == q.shape]
    return tuple(by_axis(_averaged, *zip(*pairs, strict=True), given=(exactly(qa / (qa + qb)),))) if pairs else ()


def _averaged(one: Array, two: Array, share: float) -> Array:
    return np.asarray(share * one + (1 - share) * two)


def multiplied(a: Signal, b: Signal) -> Signal:
    """Multiply two independent signals of the same atoms, entry by entry."""
    moments, profile = _by_places(a, b)
    found = two_images.multiplied(a.changed(moments, a.means * b.means), a, b)
    more = a if a.peak >= b.peak else b
    found = replace(found, peak=more.peak, crest=more.crest, profile=profile)
    if a.swing > 0 and b.swing > 0:
        floor = a.floor * b.floor
        found = of_product(found, a.swing, b.swing, same=True, axes=[*copied(a), *copied(b)], floor=floor)
    elif a.swing or b.swing:
        found = of_product(found, a.swing, b.swing, floor=floor_of(a) * floor_of(b))
    return merged_fidelity(found, b)


def _by_places(a: Signal, b: Signal) -> tuple[Array, tuple[Array, ...]]:
    """Return the moments of a product, and how its positions differ."""
    moments, count = a.moments * b.moments, max(len(a.profile), len(b.profile))
    first = len(a.dims) - count
    if count == 0 or first < 0 or any(len(p.profile) not in (0, count) for p in (a, b)):
        return moments, ()
    both, profile = bool(a.profile and b.profile), []
    for i, places in enumerate(zip(*(read_places(p, count) for p in (a, b)), strict=True)):
        axes = a.axes([first + i])
        pair = [(p, x.q, x.averaged(axes)) for p, x in zip(places, (a, b), strict=True)]
        factors, found = times(pair[0], pair[1])
        profile.append(found)
        if both and len(axes) == 1 and not a.atoms[axes[0]].parts:
            moments = along(moments, np.diag(factors), axes[0])
    return np.asarray(moments), tuple(profile)


def operand(call: Call, name: str) -> Signal:
    """Return a tensor argument, or the signal of a plain number.

    Raises:
        UnknownSignalError: it is neither, or not known.
    """
    value: Any = call[name]
    if isinstance(value, ValueRef):
        return call.signal(name)
    if isinstance(value, (int, float)):
        return constant((), float(value))
    raise UnknownSignalError(name)


def fixed(signal: Signal) -> bool:
    """Whether it is one known number everywhere, such as a running variance of 1 or a LayerNorm's weight."""
    return abs(signal.q - signal.mean**2) <= 1e-12 * signal.q


def shifted(signal: Signal, offset: float) -> Signal:
    """Add a number: the same everywhere, it changes the mean."""
    if offset == 0:
        return signal
    before = as_image(signal)
    image = replace(before, phi=composed(line(1.0, offset), before)) if before.base is None else None
    both = by_pattern(signal.atoms, signal.means) + by_pattern(signal.atoms, signal.means, second=True)
    moments = signal.moments + offset**2 + offset * both
    found = signal.changed(moments, signal.means + offset, gaussian=signal.gaussian)
    law = signal.law
    law = law and moved(law, 1.0, offset)
    return replace(found, roots=signal.roots, law=law, image=None if law else image)


def summed_jointly(a: Signal, b: Signal, alpha: float, beta: float) -> Signal | None:
    """Add alpha·a + beta·b where both are functions of one Gaussian with the same base; else None.

    h·f(u) and h·g(u) add up to h·(αf + βg)(u), exactly, though neither is independent of the other.

    Args:
        a: one summand.
        b: the other.
        alpha: factor of a.
        beta: factor of b.
    """
    a, b = _alike(a, b)
    images = shared_images(a, b) or _based(a, b)
    if images is not None and (images[0].base is None) != (images[1].base is None):
        return _half_based(images, (alpha, beta), a, b)
    if images is None or images[0].base is not images[1].base:
        return None
    one, two = images
    first, second = composed(line(alpha), one), composed(line(beta), two)
    if is_line(first) and is_line(second):
        (c, d), (e, f) = (phi.line for phi in (first, second))  # type: ignore[attr-defined]
        phi: Pointwise = line(c + e, d + f)
    else:
        phi = combined(first, second, np.add)
    found = of_multiple(_of_image(Image(phi, one.pre, one.base)), a, b)
    return replace(merged_fidelity(found, a, b), joint=True)


def _half_based(images: tuple[Image, Image], factors: tuple[float, float], a: Signal, b: Signal) -> Signal | None:
    """Add f(u) and h·g(u), h independent of u: E[f f'] + (E[f g'] + E[g f'])·E[h] + E[g g']·E[h h']."""
    (one, alpha), (two, beta) = sorted(zip(images, factors, strict=True), key=lambda pair: pair[0].base is not None)
    u, h = one.pre, two.base
    if h is None or h.dims != u.dims or u.segmented or h.segmented:
        return None
    f, g = composed(line(alpha), one), composed(line(beta), two)
    (mean_f, own_f), (mean_g, own_g) = function_moments(f, u), function_moments(g, u)
    cross = function_moments(combined(f, g, np.add), u)[1] - own_f - own_g
    found = u.changed(own_f + cross * h.mean + own_g * h.moments, mean_f + mean_g * h.mean)
    return replace(merged_fidelity(found, a, b), joint=True)


def _alike(a: Signal, b: Signal) -> tuple[Signal, Signal]:
    """Cut two functions as finely as each other: gradients behind a mask have segments that activations have not."""
    if a.shape != b.shape or a.dims == b.dims or (a.image is None and b.image is None):
        return a, b
    return together(a, b, a.shape)


def _of_image(image: Image) -> Signal:
    if image.base is None:
        return evaluated(image)
    return replace(gated(image.phi, image.pre, image.base), image=image)


def _based(a: Signal, b: Signal) -> tuple[Image, Image] | None:
    """Return images where one operand is the other's base itself, as in g + g·f(u)."""
    one, two = as_image(a), as_image(b)
    if two.base is None and one.base is not None:
        found = _based(b, a)
        return found and (found[1], found[0])
    if two.base is None or one.base is not None or one.pre is not two.base or a.dims != b.dims:
        return None
    slope, offset = one.phi.line if isinstance(one.phi, Function) and one.phi.line else (0.0, 1.0)
    return (Image(line(0.0, slope), two.pre, two.base), two) if offset == 0 else None


def multiplied_jointly(a: Signal, b: Signal) -> Signal | None:
    """Multiply where both are functions of one Gaussian, and at most one has a base; else None."""
    a, b = _alike(a, b)
    images = shared_images(a, b)
    if images is None or (images[0].base is not None and images[1].base is not None):
        return None
    one, two = images
    base = one.base if one.base is not None else two.base
    phi = combined(one.phi, two.phi, np.multiply)
    return replace(merged_fidelity(_of_image(Image(phi, one.pre, base)), a, b), joint=True)


def product(base: Signal, factor: Signal, shape: Sequence[int]) -> Signal:
    """Multiply two independent signals; the result remembers which function of what the factor is.

    Args:
        base: in the backward, the gradient.
        factor: an image f(u), such as a gate; else its own.
        shape: that both are broadcast to.

    A gradient that comes from max pooling is there only where what was pooled is largest, and so is the factor.
    """
    if (swing := by_row(base, factor)) or (swing := by_row(factor, base)):
        one, two = together(base, factor, shape)
        return of_product(product(one, two, shape), base.swing if base.shape == tuple(shape) else factor.swing, swing)
    full_factor = factor.shape == tuple(shape)
    full = full_factor and base.shape == factor.shape
    if base.dims != factor.dims or base.shape != tuple(shape):
        one, two = together(base, factor, shape)
        if factor.shape == two.shape and two.image is not None:
            factor = two
        if two.dims != factor.dims:
            # What keeps its shape is what later sums may meet again; the other is repeated.
            one, two, factor = two, one, base
        if two.dims != factor.dims or (factor.image is not None and factor.image.base is not None):
            return multiplied(one, two)
        base = one
    image = as_image(factor)
    if image.base is not None or image.pre.dims != factor.dims:
        image = Image(line(1.0), factor)
    if full and (bent := _bent_with(base, image)) is not None:
        return bent
    if base.peak > 1 and full and image.pre.gaussian:
        return replace(gated(image.phi, image.pre, base), gates=(), peak=base.peak, crest=base.crest)
    whole, scale = unscaled(base)
    law = None
    if full_factor and factor.law is not None and base.mean > 0:
        # A gate, of much the same size everywhere.
        by = np.sqrt(np.maximum(base.diagonal, 0.0)).ravel() if base.dims == factor.dims else base.rms
        law = moved(factor.law, by) if len(factor.law.values) == factor.means.size else None
    return replace(multiplied(base, factor), image=Image(multiple(image.phi, scale), image.pre, whole), law=law)


def _bent_with(g: Signal, factor: Image) -> Signal | None:
    """Multiply h·φ′(y) by ψ(u) where y is s·ψ(u), s a gate: Stein's E[x φ′(y)], and not a product of independents.

    Args:
        g: h·φ′(y).
        factor: ψ(u).

    Returns:
        h·f(u), f = ψ·φ′(s·ψ) with s at its root mean square; None where g is no such thing.
    """
    made = g.image
    if made is None or made.base is None or made.pre.image is None:
        return None
    inner = made.pre.image
    if inner.base is None or inner.pre is not factor.pre or made.base.dims != factor.pre.dims:
        return None
    size = inner.base.rms
    slope = composed(made.phi, Image(composed(line(size), inner), inner.pre))
    found = gated(combined(factor.phi, slope, np.multiply), factor.pre, made.base)
    return replace(found.approximate(_SHARED), gates=())
