"""Radial parts of what a convolution reads: the rows are the channels of each place.

Output p of a convolution adds up d terms, one a tap, each of another place's row: y_p = Σ_k w_k x_(p+k). With R as in
``radial`` and a_pk = g_p·(w_k x_(p+k)),

    R(y_p) = Σ_k a_pk          R(x_q) = Σ a_pk over the p that read x_q          a_pk = R(y_p)/d + s_pk,  Σ_k s_pk = 0

as the taps' weights are independent, so that the terms of y_p have nothing in common and are of one size. Over all
rows Σ a² is Σ x² g² of what is read, and Σ_p g_p² E[(w_k x)²] is the share that one tap of each output has of it, ρ =
P/E of P outputs and E pairs of output and tap that have gradients: 1 − ρ of it is left of s, and ρ Var R(y) comes of y.
That of its own place goes with other ways to that row, that of its neighbours with none. So before a norm,
where R(y) = 0, a convolution of one tap leaves nothing of R, and one of three taps two thirds of what chance gives.
Assumption: what is read is of one size at all places.
"""

from collections.abc import Iterable, Mapping, MutableMapping

from initwell.propagate.moments.signal import Signal
from initwell.propagate.shared.handwritten import Norm, carrying, is_weight, met, operand, size
from initwell.propagate.shared.routed import Parts
from initwell.trace.trace import Op, Trace

_FURTHEST = 24
_SWAPPED = frozenset({"aten.transpose", "aten.permute"})


class Taps:
    """Says what R is of what convolutions read, of what the walk has found so far."""

    def __init__(
        self,
        trace: Trace,
        signals: Mapping[int, Signal],
        across: frozenset[int],
        variance: MutableMapping[object, float],
    ) -> None:
        """Begin a walk.

        Args:
            trace: that is walked.
            signals: so far, by value id.
            across: convolutions that read rows which do not lie along their channels, by index.
            variance: of each source, which those of taps are put into.
        """
        self._trace, self._signals, self._across, self._variance = trace, signals, across, variance

    def of(self, op: Op, parts: Parts | None) -> Parts | None:
        """Return R of what a convolution reads; None where that is random.

        Args:
            op: the convolution.
            parts: of its result, less its bias.
        """
        weight, sent = operand(op, "weight"), self._trace.gradients.get(op.outputs[0], -1)
        back = next((o for o in self._trace.consumers(sent) if o.functional == "aten.convolution_backward"), None)
        values = (operand(op, "input"), weight, sent, None if back is None else back.outputs[0])
        x, w, g, own = (self._signals.get(-1 if i is None else i) for i in values)
        if parts is None or op.index in self._across or not is_weight(self._trace, weight):
            return None
        if x is None or w is None or g is None or own is None:
            return None
        chance = size(self._trace, op.inputs[0]) * met(x, own)
        if chance <= 0:
            return {}
        one = size(self._trace, op.outputs[0]) * g.q * x.shape[1] / int(op.arguments["groups"]) * w.q * x.q
        share = min(one / chance, 1.0)
        here = share if _reads_its_own_place(w.shape[2:], op) else 0.0
        whole = sum(c * c * self._variance[source] for source, c in parts.items())
        self._variance[op.index, "elsewhere"] = (share - here * here) * whole
        self._variance[op.index, "taps"] = (1 - share) * chance
        ways: Parts = {source: c * here for source, c in parts.items()}
        return {**ways, (op.index, "elsewhere"): 1.0, (op.index, "taps"): 1.0}


def _reads_its_own_place(kernel: tuple[int, ...], op: Op) -> bool:
    stride, padding, dilation = (
        tuple(given) * len(kernel) if len(given) == 1 else tuple(given)
        for given in (op.arguments[name] for name in ("stride", "padding", "dilation"))
    )
    if op.arguments["transposed"] or any(s != 1 for s in stride):
        return False
    return all(p % d == 0 and p // d < k for k, p, d in zip(kernel, padding, dilation, strict=True))


def across_channels(trace: Trace, scales: Iterable[Norm]) -> frozenset[int]:
    """Return the convolutions that read rows which do not lie along their channels, by index.

    Such as those behind a gate of each channel, whose rows are the places of one channel.

    Args:
        trace: of the model.
        scales: norms by hand and gates by row.
    """
    found = set[int]()
    for norm in scales:
        row, scale = (trace.values[i].shape for i in (norm.op.outputs[0], norm.scale))
        if len(scale) == len(row):
            dims = frozenset(i for i in range(1, len(row)) if scale[i] == 1 < row[i])
            found |= _across(trace, norm.op.outputs[0], dims)
    return frozenset(found)


def _across(trace: Trace, value: int, dims: frozenset[int]) -> set[int]:
    """Return the convolutions soon after a value that rows along these dimensions do not come to as channels."""
    found, ahead, seen = set[int](), [(value, dims)], {value}
    while ahead and len(seen) < _FURTHEST:
        here, along = ahead.pop(0)
        shape = trace.values[here].shape
        for op in carrying(trace, here):
            after = trace.values[op.outputs[0]].shape
            if op.functional == "aten.convolution":
                found |= {op.index} if along != {1} else set()
            elif op.functional in _SWAPPED or after == shape:
                ahead += [(o, _moved(op, along, len(shape))) for o in op.outputs if o not in seen]
                seen.update(op.outputs)
    return found


def _moved(op: Op, dims: frozenset[int], rank: int) -> frozenset[int]:
    """Return where dimensions are after an op."""
    order = list(range(rank))
    if op.functional == "aten.permute":
        order = [int(d) % rank for d in op.arguments["dims"]]
    elif op.functional == "aten.transpose":
        i, j = (int(op.arguments[name]) % rank for name in ("dim0", "dim1"))
        order[i], order[j] = order[j], order[i]
    return frozenset(order.index(d) for d in dims)
