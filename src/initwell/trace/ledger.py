"""SSA over tensors that are written in place: which value a tensor holds right now."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from initwell.trace.trace import Kind, Value


@dataclass
class Memory:
    """One piece of memory that a tensor and its views share.

    Args:
        root: id of the current value of the whole tensor.
        version: how often it has been written.
        writer: index of the op that wrote it last.
        kind: the kind of the first value that lived there.
        stale: whether a meta tensor that stands for a real one was written, so that the real one's numbers are not it.
    """

    root: int
    kind: Kind
    version: int = 0
    writer: int | None = None
    stale: bool = False


@dataclass
class Held:
    """What one tensor object holds: a value, current as of a version of its memory; forgotten when the object dies."""

    value: int
    memory: Memory
    version: int
    whole: bool
    alive: "ref[Tensor]"


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype without the library's name.

    >>> dtype_name(torch.float32)
    'float32'
    """
    return str(dtype).removeprefix("torch.")


class Ledger:
    """Gives every tensor that passes by a value id; tensors are held weakly, so nothing is kept alive."""

    def __init__(self, *told: Callable[[int, int], None]) -> None:
        """Start with no values; each of ``told`` gets (old id, new id) whenever a write makes a new version."""
        self.told = list(told)
        self.values: list[Value] = []
        self.replaced: dict[int, list[tuple[int, int]]] = {}
        # By the id of the tensor object, as a tensor's == compares entries; its weak reference takes it out again.
        self._held: dict[int, Held] = {}

    def _hold(self, tensor: Tensor, value: int, memory: Memory, version: int, *, whole: bool) -> None:
        key, held = id(tensor), self._held
        held[key] = Held(value, memory, version, whole, ref(tensor, lambda _: held.pop(key, None)))

    def _append(self, shape: tuple[int, ...], dtype: str, kind: Kind, **rest: Any) -> int:
        self.values.append(Value(len(self.values), shape, dtype, kind, **rest))
        return len(self.values) - 1

    def add(
        self, tensor: Tensor, kind: Kind, *, producer: int | None = None, source: Tensor | None = None, name: str = ""
    ) -> int:
        """Give a tensor a new value; ``source`` is the tensor that it is a view of."""
        shared = None if source is None else self._held.get(id(source))
        base = None if shared is None else shared.memory.root
        value = self._append(
            tuple(tensor.shape), dtype_name(tensor.dtype), kind, producer=producer, base=base, name=name
        )
        memory = Memory(value, kind) if shared is None else shared.memory
        self._hold(tensor, value, memory, memory.version, whole=shared is None)
        return value

    def same(self, tensor: Tensor, other: Tensor) -> None:
        """Let a tensor object stand for the value that another already holds."""
        held = self._held[id(other)]
        self._hold(tensor, held.value, held.memory, held.version, whole=held.whole)

    def memory(self, tensor: Tensor) -> Memory | None:
        """Return the memory that a tensor shows, None for one never seen."""
        held = self._held.get(id(tensor))
        return None if held is None else held.memory

    def find(self, tensor: Tensor) -> int | None:
        """Return the value that a tensor holds now, None for a tensor never seen.

        A tensor whose memory was written through another view gets a new value here, made by the op that wrote.
        """
        held = self._held.get(id(tensor))
        if held is None:
            return None
        if held.version != held.memory.version:
            old = held.value
            held.value = held.memory.root if held.whole else self._shown(tensor, held.memory)
            held.version = held.memory.version
            if not held.whole:
                self._note(held.memory.writer, old, held.value)
        return held.value

    def alive(self) -> Iterator[tuple[Tensor, int]]:
        """Yield the tensors that are still held by somebody, unwritten since they were seen, with their values."""
        for held in list(self._held.values()):
            tensor = held.alive()
            if tensor is not None and held.version == held.memory.version:
                yield tensor, held.value

    def _shown(self, tensor: Tensor, memory: Memory) -> int:
        writer, root = memory.writer, memory.root
        return self._append(tuple(tensor.shape), dtype_name(tensor.dtype), "op", producer=writer, base=root)

    def _note(self, writer: int | None, old: int, new: int) -> None:
        if writer is not None:
            self.replaced.setdefault(writer, []).append((old, new))
            for tell in self.told:
                tell(old, new)

    def write(self, tensor: Tensor, op: int) -> int:
        """Record that an op wrote into a tensor; return the id of the tensor's new value."""
        old = self.find(tensor)
        held = self._held[id(tensor)]
        memory = held.memory
        memory.version, memory.writer, held.version = memory.version + 1, op, memory.version + 1
        if held.whole:
            held.value = self._append(tuple(tensor.shape), dtype_name(tensor.dtype), "op", producer=op)
            memory.root = held.value
        else:
            whole = self.values[memory.root]
            memory.root = self._append(whole.shape, whole.dtype, "op", producer=op)
            self._note(op, whole.id, memory.root)
            held.value = self._shown(tensor, memory)
        if old is not None:
            self._note(op, old, held.value)
        return held.value
