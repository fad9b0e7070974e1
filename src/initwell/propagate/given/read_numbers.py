"""Numbers that a model reads of its values and reckons with, as in ``h * (1 / (1 + h.var().item()))``.

What Python makes of a number is no op, so that a walk has of it what one run of the batch had. Such a model is run
again with other weights: a number that is another one then depends on them. Where it varies by little over several
draws it counts as its average; what is made with others is unknown. One that stands as it was read is that value,
and is left to the rules, which know how it goes with others; comparisons alone want a number.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initwell.errors import ModelError
from initwell.initializers.distributions import Normal
from initwell.propagate.given.start import Planned, distributions
from initwell.sampling.fill import fill
from initwell.trace.keep import written_back
from initwell.trace.trace import Op, Trace, ValueRef
from initwell.trace.wrappers import unwrapped_names

AVERAGED = "a number that the model reads of values and reckons with, as it is on average"
UNSTEADY = "a number that the model reads of values and reckons with, and that each draw of weights makes another"

_DRAWS = 12
# Relative standard deviation: what is made with a number is off by about half of its square.
_LITTLE = 1 / 5
_READ = "aten._local_scalar_dense"
_PRODUCTS_AND_SUMS = frozenset({"aten.mul", "aten.div", "aten.add", "aten.sub", "aten.rsub"})


@dataclass(frozen=True)
class _Numbers:
    """The floating numbers of a walk: of each op as far as it goes as another does, and those put into tensors."""

    ops: list[list[float]]
    tensors: Mapping[int, float]


def with_numbers(model: nn.Module, plan: Planned | None, run: Callable[[], Trace]) -> Trace:
    """Run a model on its batch, and look at what of the numbers in its ops depends on the weights.

    Args:
        model: its weights are as they were afterwards.
        plan: what weights are drawn by; None for those that there are, whose entries change places.
        run: records one walk.

    Returns:
        The walk with the model's own weights; its numbers are those of the plan on average.
    """
    trace = run()
    if not _reads(trace):
        return trace
    mine, draws = _numbers(trace, trace), []
    for seed in range(_DRAWS):
        # With other weights a model may refuse its own numbers.
        with _other_weights(model, plan, seed), suppress(ModelError):
            draws.append(_numbers(run(), trace))
        if not draws or draws == [mine]:
            return trace
    return _averaged(_in_tensors(trace, mine, draws, own=plan is None), mine, draws, own=plan is None)


def _reads(trace: Trace) -> bool:
    """Whether a walk reads a floating number that is not known; lists and arrays are read with no op."""
    reads = [op.inputs[0] for op in trace.ops if op.functional == _READ]
    return not reads or any(trace.values[v].is_floating and v not in trace.folded.tensors for v in reads)


def _numbers(trace: Trace, model: Trace) -> _Numbers:
    """Return the numbers of a walk, of its ops up to the first that is not as in the other."""
    pairs = enumerate(zip(trace.ops, model.ops, strict=False))
    same = next((i for i, (a, b) in pairs if a.name != b.name), min(len(trace.ops), len(model.ops)))
    single = {v: t for v, t in trace.folded.tensors.items() if t.numel() == 1 and t.is_floating_point()}
    whole = same == len(trace.ops) == len(model.ops)
    ops = [_arguments(trace, op) for op in trace.ops[:same]]
    return _Numbers(ops, {v: float(t) for v, t in single.items()} if whole else {})


def _averaged(trace: Trace, mine: _Numbers, draws: Sequence[_Numbers], *, own: bool) -> Trace:
    """Put the averages of numbers into the ops that take them."""
    ops, steady = list(trace.ops), dict(trace.steady)
    for op, first in zip(trace.ops, mine.ops, strict=True):
        found = [draw.ops[op.index] for draw in draws if op.index < len(draw.ops)]
        if not first or all(numbers == first for numbers in found) or any(len(n) != len(first) for n in found):
            continue
        little = all(_varies_little([n[i] for n in found]) for i in range(len(first)))
        if op.index in trace.took and (op.functional in _PRODUCTS_AND_SUMS or not little):
            continue
        steady[op.index] = little and steady.get(op.index, True)
        if little:
            ops[op.index] = _with(op, first if own else [float(n) for n in np.mean(found, 0)], trace)
    return replace(trace, ops=tuple(ops), steady=steady)


def _in_tensors(trace: Trace, mine: _Numbers, draws: Sequence[_Numbers], *, own: bool) -> Trace:
    """Put them into the tensors that were made of one, which count as known; one of no steady number is not."""
    tensors, steady = dict(trace.folded.tensors), dict(trace.steady)
    for value, first in mine.tensors.items():
        found = [draw.tensors[value] for draw in draws if value in draw.tensors]
        if all(number == first for number in found):
            continue
        little = _varies_little(found)
        steady |= {op.index: little and steady.get(op.index, True) for op in trace.consumers(value)}
        tensor = tensors.pop(value)
        if little:
            tensors[value] = torch.full_like(tensor, first if own else float(np.mean(found)))
    return replace(trace, steady=steady, folded=replace(trace.folded, tensors=tensors))


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
def _other_weights(model: nn.Module, plan: Planned | None, seed: int) -> Iterator[None]:
    """Put other weights into a model while inside: of the plan, and where it has none its own in another order."""
    drawn = dict(distributions(plan, unwrapped_names(model)))
    generator = torch.Generator().manual_seed(seed)
    own = [(name, p) for name, p in model.named_parameters() if p.layout is torch.strided]
    with written_back([(p, p.detach().clone()) for _, p in own]):
        for name, p in own:
            p.detach().copy_(_drawn(p.detach(), drawn.get(name), generator, name))
        yield


def _drawn(weight: Tensor, distribution: Any, generator: torch.Generator, name: str) -> Tensor:
    if distribution is None:
        return weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight)
    # Of initwell's own generator: a batch may have been drawn with PyTorch's, at the same seed.
    noise = fill(Normal(), tuple(weight.shape), seed=generator.initial_seed(), name=name)
    return torch.from_numpy(noise) * float(distribution.std) + float(distribution.mean)
