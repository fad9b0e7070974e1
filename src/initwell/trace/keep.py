"""Context managers that leave a model and the random number generators exactly as they were."""

import gc
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, deque, set)


@contextmanager
def model_kept(model: nn.Module) -> Iterator[None]:
    """Restore a model on leaving: attributes, mode, hooks, ``.grad`` fields, requires_grad flags, buffers, versions.

    Weights that the forward itself writes into are the recorder's business, which sees each write. While inside,
    every ``.grad`` is None. Lists, dicts, sets and deques that a module owns get their members back, however deep they
    are nested, and random generators that it owns their state; what other objects hold is not looked at.
    """
    attributes = [(m, dict(m.__dict__)) for m in model.modules()]
    owned = [value for m in model.modules() for value in _owned(m.__dict__)]
    contents = [(v, v.copy()) for v in owned if type(v) in _CONTAINERS]
    generators = [restore for v in owned if (restore := _rewind(v)) is not None]
    grads = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers() if not b.is_meta]
    for p, _, _ in grads:
        p.grad = None
    with versions_kept([*model.parameters(), *model.buffers()]):
        try:
            yield
        finally:
            for module, saved in attributes:
                _refill(module.__dict__, saved)
            for container, members in contents:
                _refill(container, members)
            for restore in generators:
                restore()
            for b, value in buffers:
                _write_back(b, value)
            for p, grad, flag in grads:
                if p.requires_grad is not flag:  # what was made in inference mode takes no flag, not even its own
                    p.requires_grad_(flag)
                p.grad = grad


def _owned(attributes: dict[str, Any]) -> list[Any]:
    """Return what the attributes hold, and what their containers hold, each object once."""
    found: dict[int, Any] = {}
    waiting = list(attributes.values())
    while waiting:
        value = waiting.pop()
        if id(value) in found:
            continue
        found[id(value)] = value
        if type(value) in _CONTAINERS or type(value) is tuple:
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return list(found.values())


def _rewind(value: Any) -> Callable[[], object] | None:
    """Return what puts a random generator back where it is now, None for anything else."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    return partial(value.setstate, value.getstate()) if isinstance(value, random.Random) else None


def _refill(container: Any, members: Any) -> None:
    if _same(container, members):
        return
    container.clear()
    container.extend(members) if isinstance(container, (list, deque)) else container.update(members)


def _same(a: Any, b: Any) -> bool:
    # By identity: comparing tensors with == would not give a truth value.
    if isinstance(a, dict):
        return list(a) == list(b) and all(a[k] is b[k] for k in a)
    if isinstance(a, (list, deque)):
        return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
    return {id(x) for x in a} == {id(x) for x in b}


def _write_back(tensor: Tensor, value: Tensor) -> None:
    now = tensor.detach()
    one, two = (t if t.layout is torch.strided else t.to_dense() for t in (now, value))
    if not torch.equal(one, two):
        now.copy_(value)


@contextmanager
def versions_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Let autograd not know on leaving that tensors were written to: their values are as they were.

    A graph made before could not be walked back otherwise, since it has kept them.
    """
    with ExitStack() as stack:
        for tensor in tensors:
            if not (tensor.is_meta or tensor.is_inference()):
                stack.enter_context(_unsafe_preserve_version_counter(tensor))
        yield


@contextmanager
def written_back(saved: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Write saved values back on leaving, last first; ``saved`` is filled while inside with (tensor, copy)."""
    try:
        yield
    finally:
        for tensor, value in reversed(saved):
            tensor.detach().copy_(value)


@contextmanager
def random_kept(seed: int | None = None) -> Iterator[None]:
    """Put PyTorch's, NumPy's and Python's global generators back where they were on leaving.

    Args:
        seed: of all three while inside, or None to go on from where they are.

    >>> before = torch.initial_seed()
    >>> with random_kept(7):
    ...     inside = torch.rand(1)
    >>> torch.initial_seed() == before
    True
    """
    cpu, python, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if initialized else []
    try:
        if seed is not None:
            _seed_all(seed, cuda=initialized)
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002


def _seed_all(seed: int, *, cuda: bool) -> None:
    # Not torch.manual_seed: it would also leave a seed behind for devices that are not initialized yet.
    torch.default_generator.manual_seed(seed)
    if cuda:
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no cycles of references for a while: a recording, or a walk, makes thousands of records and no cycle.

    Each full search goes over all that was ever imported, and takes as long as a walk.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()
