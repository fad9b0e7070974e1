"""Numbers of a walk that depend on nothing random: masks, positions, indices. Folded: really computed, op by op.

Causal masks, position ids, rotary angles and relative buckets are made of arange, ones, comparisons and the batch's
integers. An op whose tensor arguments all have numbers is run on the CPU, unless it draws random ones. Memory is
copied before it is written to, so that each version of a value keeps its own numbers while views still share memory.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from initwell.trace.ops import FROM_SHAPE
from initwell.trace.trace import Op, Trace, Value, ValueRef

MOST = 2**24
"""Entries of one tensor."""
MOST_BYTES = 2**28
"""Bytes of all tensors together."""

_EMPTY_NAMES = "empty empty_like empty_strided empty_permuted new_empty new_empty_strided"
_EMPTY = frozenset(f"aten.{name}" for name in _EMPTY_NAMES.split())
_TEXT = ("str", "Optional[str]")
# Arguments that say where a result is to lie: here, on the CPU.
_ELSEWHERE: Mapping[str, Any] = {"device": torch.device("cpu"), "pin_memory": None}


@dataclass(frozen=True, eq=False)
class Folded:
    """What could be computed.

    Attributes:
        tensors: value id → its numbers, on the CPU; memory that nobody wrote to yet counts as zeros.
        first: value id → the first value that was computed in the same way, and so has the same numbers.
        drawn: values that are random, but not by weights or floating inputs: masks and shuffles.
        notes: what was left because of its size, or failed.
    """

    tensors: Mapping[int, Tensor]
    first: Mapping[int, int]
    drawn: frozenset[int]
    notes: tuple[str, ...]


def fold(trace: Trace, start: Mapping[int, Tensor]) -> Folded:
    """Compute every value of a trace that follows from ``start`` and from nothing else.

    Args:
        trace: from ``record``.
        start: numbers of inputs, buffers and constants by value id; neither written to nor copied.

    Returns:
        The Folded. No random number is drawn.

    >>> from initwell.trace.recorder import record
    >>> class Mask(torch.nn.Module):
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         return x + torch.ones(2, 2, device=x.device).tril()
    >>> trace = record(Mask(), torch.zeros(2, 2))
    >>> list(fold(trace, {}).tensors.values())[-1].tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    folder = _Folder(trace.values, start)
    with torch.no_grad():
        for op in trace.ops:
            folder.feed(op)
    return Folded(folder.tensors, folder.first, frozenset(folder.drawn), folder.notes())


class _UnfitError(Exception):
    """An op that cannot be run from what a trace keeps of its arguments, or gave something else than it did there."""


class _Folder:
    """The state of one call of ``fold``."""

    def __init__(self, values: Sequence[Value], start: Mapping[int, Tensor]) -> None:
        self.values = values
        self.tensors: dict[int, Tensor] = {}
        self.first: dict[int, int] = {}
        self.drawn: set[int] = set()
        self._made: dict[object, tuple[int, ...]] = {}
        self._memory: dict[int, int] = {}
        self._bytes = 0
        self._large: Counter[str] = Counter()
        self._failed: dict[str, str] = {}
        same: dict[object, int] = {}
        for value, tensor in start.items():
            self._keep(value, tensor)
            self.first[value] = same.setdefault((values[value].kind, _content(tensor, value)), value)

    def feed(self, op: Op) -> None:
        """Compute one op, if that is possible."""
        func = _overload(op.name)
        new = (*op.outputs, *(new for _, new in op.mutates))
        self._place(op)
        if func is None or not new:
            return
        needed = () if op.functional in FROM_SHAPE and not op.mutates else op.inputs
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random or not all(value in self.tensors for value in needed):
            if all(value in self.tensors or value in self.drawn for value in needed):
                self.drawn.update(new)
            return
        key = self._key(op)
        if not op.mutates and key in self._made:
            for value, same in zip(op.outputs, self._made[key], strict=True):
                self.tensors[value], self.first[value] = self.tensors[same], self.first[same]
        elif self._fits(op):
            self._compute(op, func)
            if all(value in self.tensors for value in op.outputs):
                self._made[key] = op.outputs

    def _place(self, op: Op) -> None:
        """Note which memory each new value shows: that of its base, or of the value that it replaces."""
        for value in op.outputs:
            base = self.values[value].base
            self._memory[value] = value if base is None else self._memory.get(base, base)
        for old, new in op.mutates:
            self._memory[new] = self._memory.get(old, old)

    def notes(self) -> tuple[str, ...]:
        """Say what was left out."""
        found = []
        if self._large:
            ops = ", ".join(f"{name} ({n}×)" for name, n in self._large.items())
            found.append(f"Too large to be computed as real numbers: {ops}.")
        found += [f"{name} could not be computed as real numbers: {why}." for name, why in self._failed.items()]
        return tuple(found)

    def _key(self, op: Op) -> object:
        """Return what decides an op's result: layers that each build the same mask share one."""
        shape_only = op.functional in FROM_SHAPE
        made = tuple((self.values[v].shape, self.values[v].dtype) for v in op.outputs)

        def canonical(argument: Any) -> object:
            if isinstance(argument, ValueRef):
                return made if shape_only else ("%", self.first[argument.id])
            if isinstance(argument, tuple):
                return tuple(canonical(a) for a in argument)
            # 1, 1.0 and True are equal, and so are 0.0 and -0.0, but their results are not.
            return repr(argument)

        return op.name, made, tuple((name, canonical(a)) for name, a in op.arguments.items())

    def _fits(self, op: Op) -> bool:
        fresh = [v for v in op.outputs if self.values[v].base is None]
        sizes = [math.prod(self.values[v].shape) for v in fresh]
        needed = sum(n * _itemsize(self.values[v].dtype) for v, n in zip(fresh, sizes, strict=True))
        if max(sizes, default=0) > MOST or self._bytes + needed > MOST_BYTES:
            if op.functional not in FROM_SHAPE | _EMPTY:
                shape = "×".join(map(str, self.values[op.outputs[0]].shape))
                self._large[f"{op.packet} of shape {shape}"] += 1
            return False
        self._bytes += needed
        return True

    def _compute(self, op: Op, func: Any) -> None:
        copies: dict[int, torch.UntypedStorage] = {}
        try:
            args, kwargs = _arguments(func, op, self._argument, partial(self._fresh, copies))
            out = func(*args, **kwargs)
            found = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            if op.functional in _EMPTY:
                found[0].zero_()
            results = dict(zip(op.outputs, found, strict=False))
            for old, new in op.mutates:
                storage = copies.get(self._memory[new])
                if old in self.tensors and storage is not None:
                    results[new] = _placed(self.tensors[old], storage)
            for value, tensor in results.items():
                self._check(value, tensor)
        except Exception as error:
            # Whatever an op may raise, it only means that its result is not known.
            said = str(error).splitlines() or [""]
            self._failed.setdefault(op.packet, f"{type(error).__name__}: {said[0]}")
            return
        for value, tensor in results.items():
            self._keep(value, tensor)

    def _keep(self, value: int, tensor: Tensor) -> None:
        self.tensors[value] = tensor
        self.first.setdefault(value, value)

    def _check(self, value: int, tensor: Tensor) -> None:
        expected = self.values[value]
        if tuple(tensor.shape) != expected.shape or str(tensor.dtype) != f"torch.{expected.dtype}":
            raise _UnfitError(f"{tuple(tensor.shape)} {tensor.dtype} in place of {expected.shape} {expected.dtype}")

    def _argument(self, ref: ValueRef) -> Tensor:
        if ref.id in self.tensors:
            return self.tensors[ref.id]
        value = self.values[ref.id]
        return torch.empty((), dtype=getattr(torch, value.dtype), device="cpu").expand(value.shape)

    def _fresh(self, copies: dict[int, torch.UntypedStorage], ref: ValueRef) -> Tensor:
        """Return a tensor that is to be written, in a copy of its memory: the same copy for all views of it."""
        tensor, memory = self.tensors[ref.id], self._memory.get(ref.id, ref.id)
        if memory not in copies:
            copies[memory] = tensor.untyped_storage().clone()  # type: ignore[no-untyped-call]
            self._bytes += copies[memory].nbytes()
        return _placed(tensor, copies[memory])


def _placed(tensor: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """Return what a tensor would show if it lay in another memory."""
    empty = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def _overload(name: str) -> Any:
    """Return one of PyTorch's own ops by its full name; None for others, which may do more than compute."""
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != "aten":
        return None
    return getattr(getattr(torch.ops.aten, parts[1], None), parts[2], None)


def _arguments(
    func: Any, op: Op, real: Callable[[ValueRef], Tensor], fresh: Callable[[ValueRef], Tensor]
) -> tuple[list[Any], dict[str, Any]]:
    """Turn an op's arguments back into what the op takes."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in func._schema.arguments:
        written = argument.alias_info is not None and argument.alias_info.is_write
        if argument.name in _ELSEWHERE:
            value = _ELSEWHERE[argument.name]
        else:
            value = _resolved(op.arguments.get(argument.name), fresh if written else real, str(argument.type) in _TEXT)
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return args, kwargs


def _resolved(value: Any, tensor: Callable[[ValueRef], Tensor], text: bool) -> Any:
    if isinstance(value, ValueRef):
        return tensor(value)
    if isinstance(value, tuple):
        return [_resolved(v, tensor, text) for v in value]
    return _from_text(value) if isinstance(value, str) and not text else value


def _from_text(text: str) -> Any:
    found = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
        raise _UnfitError(f"an argument {text}")
    return found


def _itemsize(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)


def _content(tensor: Tensor, value: int) -> object:
    """Return what is the same for tensors of the same numbers: each Swin block has its own buffer of one index."""
    if tensor.is_quantized or tensor.layout is not torch.strided or tensor.numel() > MOST // 16:
        return value
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, flat.numpy().tobytes()
