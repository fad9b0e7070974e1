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

from initwell.trace.calls import UnfitError, called
from initwell.trace.ops import FROM_SHAPE
from initwell.trace.trace import Folded, Op, Value, ValueRef, functional

MOST = 2**24
"""Entries of one tensor."""
MOST_BYTES = 2**28
"""Bytes of all tensors together."""

_EMPTY_NAMES = "empty empty_like empty_strided empty_permuted new_empty new_empty_strided"
_EMPTY = frozenset(f"aten.{name}" for name in _EMPTY_NAMES.split())
# Ops whose last output says at which places of an axis entries were picked.
_PICK_NAMES = "topk sort max min argmax argmin argsort kthvalue median"
_PICKS = frozenset(f"aten.{name}" for name in _PICK_NAMES.split())

# (old id, new id) of values that a write replaced.
Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class _Kind:
    """What decides whether an op can be computed."""

    random: bool
    shape_only: bool
    empty: bool


class Folder:
    """Computes beside a walk what follows from given numbers and from nothing else, op by op as they pass.

    >>> from initwell.trace.recorder import record
    >>> class Mask(torch.nn.Module):
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         return x + torch.ones(2, 2, device=x.device).tril()
    >>> trace = record(Mask(), torch.zeros(2, 2))
    >>> list(trace.folded.tensors.values())[-1].tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """

    def __init__(self, values: Sequence[Value]) -> None:
        """Know nothing; ``values`` are the walk's, by id, and grow while it goes on."""
        self.values = values
        self._tensors: dict[int, Tensor] = {}
        self._first: dict[int, int] = {}
        self._drawn: set[int] = set()
        # Whole numbers that are all places of an axis, in some order → the axis.
        self._orders: dict[int, int] = {}
        self._unwritten: dict[int, tuple[Any, Mapping[str, Any]]] = {}
        self._same: dict[object, int] = {}
        self._made: dict[object, tuple[int, ...]] = {}
        self._memory: dict[int, int] = {}
        self._kinds: dict[Any, _Kind | None] = {}
        self._bytes = 0
        self._large: Counter[str] = Counter()
        self._failed: dict[str, str] = {}

    def give(self, value: int, tensor: Tensor, *, copy: bool = True) -> None:
        """Say what the numbers of an input, a buffer or a constant are.

        Args:
            value: its id.
            tensor: its numbers, on any device; never written to.
            copy: whether somebody else may write to them.
        """
        kind = self.values[value].kind
        if copy and not self._reserved([value]):
            self._too_large(kind, value)
            return
        self._unwritten.pop(value, None)
        found = tensor.detach().to("cpu", copy=copy)
        self._keep(value, found)
        self._first[value] = self._same.setdefault((kind, _content(found, value)), value)

    def feed(self, func: Any, op: Op, replaced: Pairs) -> None:
        """Compute one op, if that is possible.

        Args:
            func: the overload that ran.
            op: what was written down of it.
            replaced: the values that it replaced by writing.
        """
        kind = self._kind(func)
        self._place(op, replaced)
        if not replaced and (self._filled(op) or self._only_place(op)):
            return
        new = (*op.outputs, *(new for _, new in replaced))
        if kind is None or not new:
            return
        needed = () if kind.shape_only and not replaced else op.inputs
        unknown = [value for value in needed if value not in self._tensors and value not in self._unwritten]
        if kind.random or unknown:
            if self._drawn.issuperset(unknown):
                self._drawn.update(new)
            return
        if kind.empty:
            # Most of it is never read: dropout masks begin like this.
            self._unwritten[op.outputs[0]] = func, op.arguments
            self._first[op.outputs[0]] = op.outputs[0]
            return
        key = self._key(op, kind.shape_only)
        if not replaced and key in self._made:
            for value, same in zip(op.outputs, self._made[key], strict=True):
                self._tensors[value], self._first[value] = self._tensors[same], self._first[same]
        elif all(map(self._ready, needed)) and self._fits(op, kind.shape_only):
            self._compute(func, op, replaced)
            if all(value in self._tensors for value in op.outputs):
                self._made[key] = op.outputs

    def _filled(self, op: Op) -> bool:
        """Learn of orders; and of a number that is put at all places of an axis, in whatever order: that is known."""
        a, name = op.arguments, functional(op.name)
        index = a.get("index")
        if name == "aten.topk" and len(op.inputs) == 1:
            shape = self.values[op.inputs[0]].shape
            if shape and a["k"] == shape[a["dim"]]:
                self._orders[op.outputs[1]] = a["dim"] % len(shape)
        elif name in ("aten._to_copy", "aten.detach") and op.inputs[0] in self._orders:
            self._orders[op.outputs[0]] = self._orders[op.inputs[0]]
        elif name == "aten.scatter" and isinstance(index, ValueRef) and isinstance(a.get("value"), (bool, int, float)):
            shape = self.values[op.outputs[0]].shape
            whole = self.values[index.id].shape == shape and self._orders.get(index.id) == a["dim"] % max(len(shape), 1)
            if whole and self._reserved(op.outputs):
                dtype = getattr(torch, self.values[op.outputs[0]].dtype)
                self._keep(op.outputs[0], torch.full(shape, a["value"], dtype=dtype, device="cpu"))
                return True
        return False

    def _only_place(self, op: Op) -> bool:
        """Learn where the largest is along an axis of length 1, as of a router with one expert: at 0."""
        dim, packet = op.arguments.get("dim"), functional(op.name)
        if packet not in _PICKS or not isinstance(dim, int) or len(op.inputs) != 1:
            return False
        shape, index = self.values[op.inputs[0]].shape, op.outputs[-1]
        if not shape or shape[dim] != 1 or not self._reserved([index]):
            return False
        self._keep(index, torch.zeros(self.values[index].shape, dtype=torch.int64, device="cpu"))
        return True

    def replaced(self, old: int, new: int) -> None:
        """Learn of a view that is read again after its memory was written, and so is a new value."""
        self._memory[new] = self._memory.get(old, old)
        whole = self.values[new].base
        if whole in self._drawn:
            self._drawn.add(new)
        elif whole in self._tensors and old in self._tensors:
            self._keep(new, _placed(self._tensors[old], self._tensors[whole].untyped_storage()))

    def unwritten(self, value: int) -> bool:
        """Whether a value is memory that no op has written to: where it is read, something else may have."""
        return value in self._unwritten

    def number(self, value: int) -> Tensor | None:
        """Return the numbers of a value, on the CPU, not to be written to; None where they are not known.

        Memory that nobody wrote to yet counts as zeros.
        """
        return self._tensors[value] if self._ready(value) else None

    def computed(self, value: int) -> Tensor | None:
        """Return the numbers of a value if they were computed, not to be written to."""
        return self._tensors.get(value)

    def answer(self, func: Any, arguments: Mapping[str, Any], inputs: Sequence[int]) -> Any:
        """Run an op that has no result without numbers, such as ``item`` or ``nonzero``, on those there are.

        Args:
            func: the overload.
            arguments: as an Op has them.
            inputs: ids of the values among them.

        Returns:
            What it returns, on the CPU; None where not all numbers are known, or the op fails.
        """
        kind = self._kind(func)
        if kind is None or kind.random or func._schema.is_mutable or not all(map(self._ready, inputs)):
            return None
        try:
            return self._run(func, arguments, self._argument)
        except Exception:
            return None

    def folded(self) -> Folded:
        """Return what could be computed."""
        tensors = dict(self._tensors)
        for value in self._unwritten:
            shape, dtype = self.values[value].shape, getattr(torch, self.values[value].dtype)
            tensors[value] = torch.zeros((), dtype=dtype, device="cpu").expand(shape)
        return Folded(tensors, self._first, frozenset(self._drawn), self._notes())

    def _notes(self) -> tuple[str, ...]:
        """Say what was left out."""
        found = []
        if self._large:
            ops = ", ".join(f"{name} ({n}×)" for name, n in self._large.items())
            found.append(f"Too large to be computed as real numbers: {ops}.")
        found += [f"{name} could not be computed as real numbers: {why}." for name, why in self._failed.items()]
        return tuple(found)

    def _kind(self, func: Any) -> _Kind | None:
        """Return what is known of an overload; None for what is not PyTorch's own, which may do more than compute."""
        if func not in self._kinds:
            kind = None
            if isinstance(func, torch._ops.OpOverload) and func.namespace == "aten":
                name = functional(str(func))
                random = torch.Tag.nondeterministic_seeded in func.tags
                kind = _Kind(random, name in FROM_SHAPE, name in _EMPTY)
            self._kinds[func] = kind
        return self._kinds[func]

    def _place(self, op: Op, replaced: Pairs) -> None:
        """Note which memory each new value shows: that of its base, or of the value that it replaces."""
        for value in op.outputs:
            base = self.values[value].base
            if base is not None:
                self._memory[value] = self._memory.get(base, base)
        for old, new in replaced:
            self._memory[new] = self._memory.get(old, old)

    def _key(self, op: Op, shape_only: bool) -> object:
        """Return what decides an op's result: layers that each build the same mask share one."""
        made = tuple((self.values[v].shape, self.values[v].dtype) for v in op.outputs)

        def canonical(argument: Any) -> object:
            if isinstance(argument, ValueRef):
                return made if shape_only else ("%", self._first[argument.id])
            if isinstance(argument, tuple):
                return tuple(canonical(a) for a in argument)
            # 1, 1.0 and True are equal, and so are 0.0 and -0.0, but their results are not.
            return repr(argument)

        return op.name, made, tuple((name, canonical(a)) for name, a in op.arguments.items())

    def _fits(self, op: Op, shape_only: bool) -> bool:
        fresh = [v for v in op.outputs if self.values[v].base is None]
        if self._reserved(fresh):
            return True
        if not shape_only:
            self._too_large(op.packet, op.outputs[0])
        return False

    def _too_large(self, name: str, value: int) -> None:
        shape = "×".join(map(str, self.values[value].shape))
        self._large[f"{name} of shape {shape}"] += 1

    def _reserved(self, values: Sequence[int]) -> bool:
        """Take the memory of some values from what is left, if that is enough."""
        sizes = [math.prod(self.values[v].shape) for v in values]
        needed = sum(n * _itemsize(self.values[v].dtype) for v, n in zip(values, sizes, strict=True))
        fits = max(sizes, default=0) <= MOST and self._bytes + needed <= MOST_BYTES
        self._bytes += needed if fits else 0
        return fits

    def _compute(self, func: Any, op: Op, replaced: Pairs) -> None:
        copies: dict[int, torch.UntypedStorage] = {}
        try:
            out = self._run(func, op.arguments, partial(self._fresh, copies))
            results = dict(zip(op.outputs, (t for t in tree_leaves(out) if isinstance(t, Tensor)), strict=False))
            for old, new in replaced:
                storage = copies.get(self._memory[new])
                if storage is not None and old in self._tensors:
                    results[new] = _placed(self._tensors[old], storage)
            for value, tensor in results.items():
                self._check(value, tensor)
        except Exception as error:
            # Whatever an op may raise, it only means that its result is not known.
            said = str(error).splitlines() or [""]
            self._failed.setdefault(op.packet, f"{type(error).__name__}: {said[0]}")
            return
        for value, tensor in results.items():
            self._keep(value, tensor)

    def _run(self, func: Any, arguments: Mapping[str, Any], fresh: Callable[[ValueRef], Tensor]) -> Any:
        return called(func, arguments, self._argument, fresh)

    def _keep(self, value: int, tensor: Tensor) -> None:
        self._tensors[value] = tensor
        self._first.setdefault(value, value)

    def _check(self, value: int, tensor: Tensor) -> None:
        expected = self.values[value]
        if tuple(tensor.shape) != expected.shape or str(tensor.dtype) != f"torch.{expected.dtype}":
            raise UnfitError(f"{tuple(tensor.shape)} {tensor.dtype} in place of {expected.shape} {expected.dtype}")

    def _ready(self, value: int) -> bool:
        """Whether a value has numbers; those of memory that nobody wrote to are made now."""
        if value in self._unwritten:
            func, arguments = self._unwritten.pop(value)
            if self._reserved([value]):
                self._tensors[value] = self._run(func, arguments, self._argument).zero_()
        return value in self._tensors

    def _argument(self, ref: ValueRef) -> Tensor:
        if ref.id in self._tensors:
            return self._tensors[ref.id]
        value = self.values[ref.id]
        return torch.empty((), dtype=getattr(torch, value.dtype), device="cpu").expand(value.shape)

    def _fresh(self, copies: dict[int, torch.UntypedStorage], ref: ValueRef) -> Tensor:
        """Return a tensor that is to be written, in a copy of its memory: the same copy for all views of it."""
        tensor, memory = self._tensors[ref.id], self._memory.get(ref.id, ref.id)
        if memory not in copies:
            copies[memory] = tensor.untyped_storage().clone()  # type: ignore[no-untyped-call]
            self._bytes += copies[memory].nbytes()
        return _placed(tensor, copies[memory])


def _placed(tensor: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """Return what a tensor would show if it lay in another memory."""
    empty = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def _itemsize(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)


def _content(tensor: Tensor, value: int) -> object:
    """Return what is the same for tensors of the same numbers: each Swin block has its own buffer of one index."""
    if tensor.is_quantized or tensor.layout is not torch.strided or tensor.numel() > MOST // 16:
        return value
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, flat.numpy().tobytes()
