"""Recurrent layers step by step, by the formulas of their documentation, in ops that meta and real tensors share.

PyTorch runs ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` by another route on every device: fused on one, all projections of
the input at once on the next, one by one on a third. What is computed is the same, and here it is: one projection of
the whole input, then a step for each time, every gate a value of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# The output of a step comes first; an LSTM's cell state second.
State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Weights:
    """The parameters of one layer in one direction.

    Args:
        w_ih: (gates · hidden, input).
        w_hh: (gates · hidden, output).
        b_ih: (gates · hidden,), or None.
        b_hh: the same.
        w_hr: (projection, hidden) of a projected LSTM, else None.
    """

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None


# From the projected input (n, gates · hidden) and the state before, the state after.
Step = Callable[[Tensor, State, Weights], State]


def _lstm(x: Tensor, state: State, w: Weights) -> State:
    h, c = state
    i, f, g, o = (x + F.linear(h, w.w_hh, w.b_hh)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if w.w_hr is None else F.linear(h, w.w_hr)), c


def _gru(x: Tensor, state: State, w: Weights) -> State:
    (h,) = state
    x_r, x_z, x_n = x.chunk(3, 1)
    h_r, h_z, h_n = F.linear(h, w.w_hh, w.b_hh).chunk(3, 1)
    z = (x_z + h_z).sigmoid()
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return ((1 - z) * n + z * h,)


def _simple(bend: Callable[[Tensor], Tensor]) -> Step:
    def step(x: Tensor, state: State, w: Weights) -> State:
        return (bend(x + F.linear(state[0], w.w_hh, w.b_hh)),)

    return step


_STEPS: Mapping[str, Step] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _simple(torch.tanh),
    "rnn_relu": _simple(torch.relu),
}


def replacements() -> Mapping[str, Callable[..., Any]]:
    """Return name in ``torch._VF`` → function of the same arguments that computes the same, step by step."""
    layers = {name: _whole(name, getattr(torch, name)) for name in _STEPS}
    return layers | {f"{name}_cell": _cell(name) for name in _STEPS}


def _cell(name: str) -> Callable[..., Any]:
    def run(x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Any:
        state = tuple(hx) if name == "lstm" else (hx,)
        found = _STEPS[name](F.linear(x, w_ih, b_ih), state, Weights(w_ih, w_hh, b_ih, b_hh))
        return found if name == "lstm" else found[0]

    return run


def _whole(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 9:
            return original(*args, **kwargs)
        if isinstance(args[3], bool):
            x, hx, flat, biased, layers, dropout, train, both_ways, batch_first = args
            sizes = None
        else:
            x, sizes, hx, flat, biased, layers, dropout, train, both_ways = args
            batch_first = False
        starts = list(zip(*(h.unbind(0) for h in (hx if name == "lstm" else (hx,))), strict=True))
        weights = list(_weights(flat, layers * (1 + both_ways), biased=biased))
        drop = dropout if train else 0.0
        x = x.transpose(0, 1) if batch_first else x
        y, final = _stack(_STEPS[name], x, sizes, starts, weights, 1 + both_ways, drop)
        return (y.transpose(0, 1) if batch_first else y), *(torch.stack(parts) for parts in zip(*final, strict=True))

    return run


def _weights(flat: Sequence[Tensor], count: int, *, biased: bool) -> Iterator[Weights]:
    each, plain = len(flat) // count, 4 if biased else 2
    for first in range(0, len(flat), each):
        group = flat[first : first + each]
        found = Weights(*group[:plain])
        yield replace(found, w_hr=group[-1]) if each > plain else found


def _stack(
    step: Step,
    x: Tensor,
    sizes: Tensor | None,
    starts: Sequence[State],
    weights: Sequence[Weights],
    directions: int,
    dropout: float,
) -> tuple[Tensor, list[State]]:
    """Run all layers; return the last one's output and the final state of each layer and direction."""
    final: list[State] = []
    for layer in range(0, len(weights), directions):
        outputs = []
        for way in range(directions):
            w = weights[layer + way]
            projected = F.linear(x, w.w_ih, w.b_ih)
            steps = list(projected.unbind(0) if sizes is None else torch.split(projected, sizes.tolist()))
            made, last = _run(step, steps, starts[layer + way], w, backwards=way == 1)
            outputs.append(torch.stack(made) if sizes is None else torch.cat(made))
            final.append(last)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if dropout and layer + directions < len(weights):
            x = torch.dropout(x, dropout, train=True)
    return x, final


def _run(
    step: Step, steps: Sequence[Tensor], start: State, w: Weights, *, backwards: bool
) -> tuple[list[Tensor], State]:
    """Run one layer in one direction; return its outputs in order of time, and the state each sample ends in.

    Packed sequences are sorted by length, so with time fewer and fewer samples are left: running forward, the last ones
    drop out with the state they have; running backward, they join with the state they start from.
    """
    order = steps[::-1] if backwards else steps
    state = tuple(_rows(h, 0, len(order[0])) for h in start)
    outputs: list[Tensor] = []
    ended: list[State] = []
    for x in order:
        before, now = len(state[0]), len(x)
        if now < before:
            ended.append(tuple(_rows(h, now, before) for h in state))
            state = tuple(_rows(h, 0, now) for h in state)
        elif now > before:
            state = tuple(torch.cat([h, _rows(h0, before, now)]) for h, h0 in zip(state, start, strict=True))
        state = step(x, state, w)
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(parts) for parts in zip(*reversed([*ended, state]), strict=True))
    return (outputs[::-1] if backwards else outputs), state


def _rows(h: Tensor, start: int, stop: int) -> Tensor:
    return h if (start, stop) == (0, len(h)) else h[start:stop]
