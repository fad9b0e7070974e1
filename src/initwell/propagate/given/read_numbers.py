"""Numbers that a model reads of its values and reckons with, as in ``h * (1 / (1 + h.var().item()))``.

What Python makes of a number is no op, so that a walk has of it what one run of the batch had. Such a model is run
again with other weights: a number that is another one then depends on them. Where it varies by little over several
draws it counts as its average; what is made with others is unknown. One that stands as it was read is that value,
and is left to the rules, which know how it goes with others; comparisons alone want a number.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initwell.errors import ModelError
from initwell.propagate.given.start import Planned, distributions
from initwell.trace.keep import versions_kept, written_back
from initwell.trace.trace import Op, Trace, ValueRef
from initwell.trace.wrappers import unwrapped_names

AVERAGED = "a number that the model reads of values and reckons with, as it is on average"
UNSTEADY = "a number that the model reads of values and reckons with, and that each draw of weights makes another"

_DRAWS, _LEAST = 12, 3
# Relative standard deviation: what is made with a number is off by about half of its square.
_LITTLE = 1 / 5
# Relative standard error of an average that is good enough.
_SURE = 1 / 200
# Entries of all values of all draws together, as far as there are more than the least.
_MOST = 2**25
# Of PyTorch's own generator, which is fast; a batch may have been drawn with it, at a seed such as 0.
_SEED = 0x9E3779B9
_READ = "aten._local_scalar_dense"
_PRODUCTS_AND_SUMS = frozenset({"aten.mul", "aten.div", "aten.add", "aten.sub", "aten.rsub"})

# Where a number stands: ("op", index, which of its numbers), or ("value", id, 0) of a tensor that is one.
_Place = tuple[str, int, int]
_Numbers = Mapping[_Place, float]


def with_numbers(model: nn.Module, plan: Planned | None, run: Callable[..., Trace]) -> Trace:
    """Run a model on its batch, and look at what of the numbers in its ops depends on the weights.

    Args:
        model: its weights are as they were afterwards.
        plan: what weights are drawn by; None for those that there are, whose entries change places.
        run: records one walk, with ``backward=False`` of the forward alone.

    Returns:
        The walk with the model's own weights; its numbers are those of the plan on average.
    """
    trace = run()
    if not _may_reckon(trace):
        return trace
    mine = _numbers(trace, trace)
    if not mine:
        return trace
    with _weights_kept(model) as weights:
        draws = _draws(trace, mine, run, lambda seed: _put_others(weights, model, plan, seed))
    found = _averaged(_in_tensors(trace, mine, draws, own=plan is None), mine, draws, own=plan is None)
    few = plan is not None and len(draws) < _DRAWS and not _all_settled(_changed(mine, draws), draws)
    if few and any(found.steady.values()):
        said = (
            f"Numbers that the model reads and reckons with are averages over only {len(draws)} draws of the weights."
        )
        found = replace(found, notes=(*found.notes, said))
    return found


def _may_reckon(trace: Trace) -> bool:
    """Whether a walk reads a floating number that is not known; lists and arrays are read with no op."""
    return not _reads(trace) or any(
        trace.values[op.inputs[0]].is_floating and op.inputs[0] not in trace.folded.tensors for op in _reads(trace)
    )


def _reads(trace: Trace) -> list[Op]:
    return [op for op in trace.ops if op.functional == _READ]


def _draws(trace: Trace, mine: _Numbers, run: Callable[..., Trace], draw: Callable[[int], None]) -> list[_Numbers]:
    """Return the numbers of walks with other weights: of as many as are needed, and as the size allows.

    Forwards are enough where all is read in the forward and the backward's numbers are among the forward's: of that
    one walk with a backward tells.
    """
    reads = _reads(trace)
    both = not reads or any(op.phase == "backward" for op in reads)
    draws: list[_Numbers] = []
    behind: Mapping[_Place, _Place] | None = None
    for seed in range(_most(trace)):
        draw(seed)
        backward = both or (behind is None and bool(_changed(mine, draws)))
        # With other weights a model may refuse its own numbers.
        with suppress(ModelError):
            other = run(backward=backward)
            draws.append(_numbers(other, trace))
            same = _same_route(other, trace)
            if backward and not both and same:
                behind = _behind(mine, draws[-1], draws[0])
                both = behind is None
        changed = _changed(mine, draws)
        if not draws or (not changed and (same or not reads)):
            return []
        if changed and _all_settled([place for place in changed if place not in (behind or ())], draws):
            break
    return [{**{b: d[f] for b, f in (behind or {}).items() if f in d}, **d} for d in draws]


def _most(trace: Trace) -> int:
    entries = sum(math.prod(value.shape) for value in trace.values)
    return max(_LEAST, min(_DRAWS, _MOST // max(entries, 1)))


def _same_route(trace: Trace, first: Trace) -> bool:
    """Whether a walk, or its forward alone, has the ops of the other."""
    whole = len(trace.ops) in (len(first.ops), len(first.forward_ops))
    return whole and all(a.name == b.name for a, b in zip(trace.ops, first.ops, strict=False))


def _behind(mine: _Numbers, draw: _Numbers, forward: _Numbers) -> Mapping[_Place, _Place] | None:
    """Return which number of the forward one of the backward is; None where one that changed is none of these."""
    sources = {(mine[p], draw[p]): p for p in draw if p in forward}
    changed = [p for p in draw if draw[p] != mine[p] and p not in forward]
    pairs = [(p, sources.get((mine[p], draw[p]))) for p in changed]
    found = {p: source for p, source in pairs if source is not None}
    return found if len(found) == len(pairs) else None


def _changed(mine: _Numbers, draws: Sequence[_Numbers]) -> list[_Place]:
    return [p for p, number in mine.items() if any(p in draw and draw[p] != number for draw in draws)]


def _numbers(trace: Trace, first: Trace) -> _Numbers:
    """Return the numbers of a walk, of its ops up to the first that is not as in the other.

    What a product or a sum takes as it was read is left to the rules.
    """
    found: dict[_Place, float] = {}
    for a, b in zip(trace.ops, first.ops, strict=False):
        if a.name != b.name:
            return found
        if b.index in first.took and b.functional in _PRODUCTS_AND_SUMS:
            continue
        numbers = _arguments(trace, a)
        if len(numbers) == len(_arguments(first, b)):
            found |= {("op", a.index, i): number for i, number in enumerate(numbers)}
    if _same_route(trace, first):
        single = {v: t for v, t in trace.folded.tensors.items() if t.numel() == 1 and t.is_floating_point()}
        found |= {("value", v, 0): float(t) for v, t in single.items()}
    return found


def _averaged(trace: Trace, mine: _Numbers, draws: Sequence[_Numbers], *, own: bool) -> Trace:
    """Put the averages of numbers into the ops that take them."""
    ops, steady = list(trace.ops), dict(trace.steady)
    changed = [place for place in _changed(mine, draws) if place[0] == "op"]
    for op in (trace.ops[index] for index in dict.fromkeys(index for _, index, _ in changed)):
        first = _arguments(trace, op)
        places = [("op", op.index, i) for i in range(len(first))]
        found = [[d.get(p, mine[p]) for p in places] for d in draws if any(p in d for p in places)]
        little = all(_varies_little([n[i] for n in found]) for i in range(len(first)))
        if op.index in trace.took and not little:
            continue
        steady[op.index] = little and steady.get(op.index, True)
        if little:
            ops[op.index] = _with(op, first if own else [float(n) for n in np.mean(found, 0)], trace)
    return replace(trace, ops=tuple(ops), steady=steady)


def _in_tensors(trace: Trace, mine: _Numbers, draws: Sequence[_Numbers], *, own: bool) -> Trace:
    """Put them into the tensors that were made of one, which count as known; one of no steady number is not."""
    tensors, steady = dict(trace.folded.tensors), dict(trace.steady)
    for place in _changed(mine, draws):
        kind, value, _ = place
        if kind != "value":
            continue
        found = [draw[place] for draw in draws if place in draw]
        little = _varies_little(found)
        steady |= {op.index: little and steady.get(op.index, True) for op in trace.consumers(value)}
        tensor = tensors.pop(value)
        if little:
            tensors[value] = torch.full_like(tensor, mine[place] if own else float(np.mean(found)))
    return replace(trace, steady=steady, folded=replace(trace.folded, tensors=tensors))


def _all_settled(places: Iterable[_Place], draws: Sequence[_Numbers]) -> bool:
    return all(_settled([draw[place] for draw in draws if place in draw]) for place in places)


def _settled(numbers: Sequence[float]) -> bool:
    """Whether more draws would tell nothing new: the average is known well, or the number varies by far too much."""
    if len(numbers) < _LEAST:
        return False
    mean, deviation = abs(float(np.mean(numbers))), float(np.std(numbers, ddof=1))
    return deviation <= _SURE * mean * math.sqrt(len(numbers)) or not deviation <= 2 * _LITTLE * mean


def _varies_little(numbers: Sequence[float]) -> bool:
    mean = float(np.mean(numbers))
    return math.isfinite(mean) and float(np.std(numbers, ddof=1 if len(numbers) > 1 else 0)) <= _LITTLE * abs(mean)


def _arguments(trace: Trace, op: Op) -> list[float]:
    """Return the floating numbers among an op's arguments, in order."""
    taken = [trace.took[op.index]] if op.index in trace.took else []
    return [*(n for argument in op.arguments.values() for n in _floats(argument)), *taken]


def _floats(argument: Any) -> Iterator[float]:
    if isinstance(argument, float):
        yield argument
    elif isinstance(argument, tuple):
        for part in argument:
            yield from _floats(part)


def _with(op: Op, numbers: Sequence[float], trace: Trace) -> Op:
    """Return an op with other numbers, in the order of ``_arguments``."""
    left = iter(numbers)
    arguments = {name: _replaced(argument, left) for name, argument in op.arguments.items()}
    if op.index not in trace.took:
        return replace(op, arguments=arguments)
    taken = op.arguments["other"]
    inputs = tuple(v for v in op.inputs if not (isinstance(taken, ValueRef) and v == taken.id))
    return replace(op, arguments=arguments | {"other": next(left)}, inputs=inputs)


def _replaced(argument: Any, numbers: Iterator[float]) -> Any:
    if isinstance(argument, float):
        return next(numbers)
    return tuple(_replaced(part, numbers) for part in argument) if isinstance(argument, tuple) else argument


@contextmanager
def _weights_kept(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Give the weights that may be written to while inside, by name; not those that show one entry at many places."""
    named: Iterable[tuple[str, Tensor]] = model.named_parameters()
    own = [(n, p) for n, p in named if p.layout is torch.strided and 0 not in p.stride()]
    with versions_kept([p for _, p in own]), written_back([(p, p.detach().clone()) for _, p in own]):
        yield own


def _put_others(weights: Sequence[tuple[str, Tensor]], model: nn.Module, plan: Planned | None, seed: int) -> None:
    """Put other weights into a model: of the plan, and where it has none its own in another order."""
    drawn = dict(distributions(plan, unwrapped_names(model)))
    generator = torch.Generator().manual_seed(_SEED + seed)
    for name, p in weights:
        p.detach().copy_(_drawn(p.detach(), drawn.get(name), generator))


def _drawn(weight: Tensor, distribution: Any, generator: torch.Generator) -> Tensor:
    if distribution is None:
        # Rows and columns, since an order of all entries takes longer than a walk.
        for dim, size in enumerate(weight.shape):
            weight = weight.index_select(dim, torch.randperm(size, generator=generator).to(weight.device))
        return weight
    noise = torch.empty(weight.shape, dtype=torch.float32, device="cpu").normal_(generator=generator)
    return noise.mul_(float(distribution.std)).add_(float(distribution.mean))
