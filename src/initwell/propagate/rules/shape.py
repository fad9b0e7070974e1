"""Views, sums and means of whole axes: with atoms, views are bookkeeping."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.laws.averages import tails
from initwell.propagate.laws.functions import as_image, line
from initwell.propagate.laws.swing import of_longer_rows, seen
from initwell.propagate.moments.atoms import expanded, permuted, viewed
from initwell.propagate.moments.centring import over_all
from initwell.propagate.moments.places import off_average, sizes, spread
from initwell.propagate.moments.remembered import Average
from initwell.propagate.moments.segments import along
from initwell.propagate.moments.signal import Image, Signal, constant, replace
from initwell.propagate.moments.slots import resolved
from initwell.propagate.rules import row_products
from initwell.propagate.rules.branch import scaled
from initwell.propagate.rules.cropping import cropped
from initwell.propagate.rules.even_rows import of_even_rows
from initwell.propagate.rules.parts import padded
from initwell.propagate.rules.reading import read_places
from initwell.propagate.rules.staggered import staggered
from initwell.propagate.rules.weighted import of_rows_left
from initwell.propagate.table import Call, Rule, UnknownSignalError
from initwell.trace.trace import ValueRef


def _same(call: Call) -> Sequence[Signal]:
    return [call.signal("self")]


def _view(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    if call.op.phase == "backward" and (moved := staggered(call)) is not None:
        return [moved]
    found = _flattened(x, viewed(x, call.shape()))
    if call.op.phase == "forward" and x.image is not None and x.image.base is not None:
        found = _of_factors(x, call.shape())
    if x.swing > 0:
        found = of_longer_rows(found, x)
    if (x.mask is None and x.closed is None) or x.shape == found.shape:
        return [found]
    mask, closed = (m and m.seen_as(x.shape, call.shape()) for m in (x.mask, x.closed))
    return [replace(found, mask=mask, closed=closed)]


def _flattened(x: Signal, found: Signal) -> Signal:
    """Say of places that become rows by how much products of two of these vary; see ``places.spread``."""
    rank = len(x.dims) - len(x.profile)
    if len(x.profile) < 2 or len(found.dims) >= len(x.dims) or x.segmented or rank < 1 or found.profile:
        return found
    space = x.axes(range(rank, len(x.dims)))
    places = read_places(x, len(x.profile))
    level = math.prod(off_average(tables[1]) for tables in places if tables.ndim == 3)
    common = max((x.averaged(space) - x.q * level) / (1 - level), 0.0) if level < 1 else 0.0
    more = spread(places, common, x.q - common)
    return replace(found, spread=found.spread + more) if more > 0 else found


def _of_factors(x: Signal, shape: Sequence[int]) -> Signal:
    """View a gated value h·f(u) as what it is made of: its squares have tails of their own, those of h and f(u)."""
    found, made = viewed(x, shape), x.image
    if made is None or x.segmented or any(part.dims != x.dims for part in (made.pre, made.base) if part is not None):
        return found
    base = None if made.base is None else _of_factors(made.base, shape)
    return replace(found, image=replace(made, pre=viewed(made.pre, shape), base=base))


def _t(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    return [permuted(x, range(len(x.dims) - 1, -1, -1))]


def _transpose(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    order = list(range(len(x.dims)))
    i, j = call["dim0"], call["dim1"]
    order[i], order[j] = order[j], order[i]
    return [_in_order(x, order)]


def _permute(call: Call) -> Sequence[Signal]:
    x = call.signal("self")
    return [_in_order(x, [d % len(x.dims) for d in call["dims"]])]


def _in_order(x: Signal, order: Sequence[int]) -> Signal:
    found = permuted(_unread_apart(x), order)
    if x.image is not None and x.image.base is not None and (heavy := tails(x)) is not None:
        found = replace(found, excess=heavy[0] - 3)
    if x.mask is None and x.closed is None:
        return found
    mask, closed = (m and m.permuted(order) for m in (x.mask, x.closed))
    return replace(found, mask=mask, closed=closed)


def _unread_apart(x: Signal) -> Signal:
    """Make positions at an end that have nothing segments of their own, since places are known of the last axes only.

    Such is a gradient where no output read: patches of 2 leave the last of 9 rows out.
    """
    if not x.profile or x.segmented:
        return x
    first, ends = len(x.dims) - len(x.profile), {}
    for i, places in enumerate(x.profile):
        there = np.flatnonzero(sizes(places) > 0)
        if 0 < there.size < places.shape[-1]:
            ends[first + i] = (int(there[0]), places.shape[-1] - 1 - int(there[-1]))
    for dim, (before, after) in ends.items():
        x = cropped(x, dim, before, x.shape[dim] - after) if before or after else x
    for dim, (before, after) in ends.items():
        x = padded(x, dim, before, after) if before or after else x
    return x


def _expand(call: Call) -> Sequence[Signal]:
    x, shape = call.signal("self"), call.shape()
    found = repeated(x, shape)
    # Scores that several heads share are shut where they were.
    ends = len(shape) == len(x.shape) and (shape[0], shape[-1]) == (x.shape[0], x.shape[-1])
    return [replace(found, mask=x.mask) if x.mask is not None and ends else found]


def repeated(x: Signal, shape: Sequence[int]) -> Signal:
    """Repeat along dimensions of length 1; the result remembers the average that it is a function of."""
    found, image = expanded(x, shape), as_image(x)
    if found is x or image.base is not None or image.pre.average is None or image.pre.dims != x.dims:
        return found
    pre = replace(expanded(image.pre, shape), average=image.pre.average)
    return pre if image.pre is x else replace(found, image=Image(image.phi, pre))


def summed(signal: Signal, dims: Sequence[int], *, keep: bool, mean: bool) -> Signal:
    """Sum or average over dimensions: agree/n + differ·(1 − 1/n) for a mean, n² times that for a sum.

    Args:
        signal: any signal.
        dims: the dimensions.
        keep: whether they stay, of length 1.
        mean: whether to divide by n.

    >>> from initwell.propagate.moments.signal import independent
    >>> summed(independent((4, 3), 1.0), [0], keep=False, mean=True).moments.tolist()
    [0.25, 0.0]
    """
    signal = resolved(signal, dims)
    axes = signal.axes(dims)
    moments, means, count = over_all(signal, signal.moments, axes), signal.means, 1
    for axis in axes:
        atom = signal.atoms[axis]
        means = along(means, atom.patterns.agree[None, : means.shape[axis]], axis) if atom.parts else means
        count *= atom.size
    kept = tuple(() if i in dims else d for i, d in enumerate(signal.dims) if keep or i not in dims)
    factor = 1 if mean else count
    moments, means = moments.squeeze(axes) * factor**2, means.squeeze(axes) * factor
    return signal.changed(moments, means, dims=kept, gaussian=True)


def _reduce(*, mean: bool) -> Rule:
    def rule(call: Call) -> Sequence[Signal]:
        x = call.signal("self")
        given = call["dim"]
        dims = range(len(x.dims)) if given is None or given == () else given
        whole = tuple(d % len(x.dims) for d in ([dims] if isinstance(dims, int) else dims))
        x = of_rows_left(call, x) if x.segmented and whole == (1,) else x
        found = row_products.summed(call, x, summed(x, whole, keep=bool(call["keepdim"]), mean=mean), whole)
        if not mean and call.op.phase == "backward" and len(x.dims) > 3 and min(whole) > 1 and _is_gate(call):
            return [found.approximate(_GATE)]
        if x.swing < 0 and not mean and whole == ((1,) if len(x.dims) == 4 else (len(x.dims) - 1,)):
            return [scaled(replace(found, swing=0.0), math.sqrt(seen(x.swing)))]
        if x.square_of is not None and call.op.phase == "forward":
            squares = summed(x, whole, keep=bool(call["keepdim"]), mean=True)
            squares = of_even_rows(call, squares, x.square_of)
            squares = replace(squares, average=Average("square", x.square_of, whole, x.numbers))
            count = math.prod(x.shape[d] for d in whole)
            return [squares if mean else replace(found, image=Image(line(float(count)), squares))]
        return [replace(found, average=Average("mean", x, whole)) if mean else found]

    return rule


def _is_gate(call: Call) -> bool:
    """Whether what is summed is g·x, x a value of the forward and g its gradient: the gradient of what multiplied x."""
    op = call.trace.producer(call["self"].id)
    refs = [op.arguments["self"], op.arguments["other"]] if op is not None and op.functional == "aten.mul" else []
    shapes = [call.trace.values[r.id].shape for r in refs if isinstance(r, ValueRef)]
    makers = [call.trace.producer(r.id) for r in refs if isinstance(r, ValueRef)]
    forward = [m for m in makers if m is not None and m.phase == "forward"]
    return len(shapes) == 2 and shapes[0] == shapes[1] and bool(forward)


_GATE = "a gate's gradient, the sum of g·x over positions, g and x taken as independent"


def _filled(value: float) -> Rule:
    def rule(call: Call) -> Sequence[Signal]:
        return [constant(call.shape(), value)]

    return rule


def _full(call: Call) -> Sequence[Signal]:
    return [constant(call.shape(), float(call["fill_value"]))]


def _fill(call: Call) -> Sequence[Signal]:
    known = call.value("value")  # x[:, 0] = 1 makes a tensor of 1
    value = call["value"] if known is None or known.numel() != 1 else float(known)
    if not isinstance(value, (int, float)):
        raise UnknownSignalError("a fill with a tensor")
    return [constant(call.shape(), float(value))]


def _scalar_tensor(call: Call) -> Sequence[Signal]:
    return [constant((), float(call["s"]))]


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("aten.detach", "aten.clone", "aten.alias", "aten._to_copy", "aten.contiguous", "aten.lift_fresh"), _same
    ),
    **dict.fromkeys(
        ("aten.view", "aten._unsafe_view", "aten.reshape", "aten.unsqueeze", "aten.squeeze", "aten._reshape_alias"),
        _view,
    ),
    "aten.t": _t,
    "aten.transpose": _transpose,
    "aten.permute": _permute,
    "aten.expand": _expand,
    "aten.sum": _reduce(mean=False),
    "aten.mean": _reduce(mean=True),
    "aten.zeros_like": _filled(0.0),
    "aten.ones_like": _filled(1.0),
    "aten.zeros": _filled(0.0),
    "aten.ones": _filled(1.0),
    "aten.scalar_tensor": _scalar_tensor,
    "aten.fill": _fill,
    "aten.zero": _filled(0.0),
    "aten.full": _full,
    "aten.full_like": _full,
}
