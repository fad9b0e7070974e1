"""The blocks of a model: its repeated modules, chained as the signal goes through them, with what enters each."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from initwell.records import Record
from initwell.trace.ops import FROM_SHAPE, VIEWS
from initwell.trace.trace import Op, Trace

# Modules that cover nearly as much of the model as those that cover most: the more numerous are its blocks.
_NEARLY = 0.85
# Modules that cover less than this are no backbone; then the layers themselves are looked at.
_LEAST = 0.3
# A chain of fewer than this share of all blocks is a branch.
_SHARE = 0.2
_SUMS = frozenset({"aten.add", "aten.addcmul"})


@dataclass(frozen=True)
class Passage(Record):
    """One block as the signal passes it.

    Attributes:
        path: of the module.
        enters: the value that comes in.
        leaves: the last value that it makes for others; of the last block, what that is added to outside, if it is.
    """

    path: str
    enters: int
    leaves: int


def chains(trace: Trace) -> list[list[Passage]]:
    """Return the chains of blocks in which each is entered by what came through the one before, longest first.

    An encoder and a decoder are two chains; short ones beside many others, such as the branches of an Inception
    module, are no backbone and left out.

    Args:
        trace: of the model.
    """
    blocks = repeated(trace)
    found = list(_runs(trace, blocks))
    return sorted((chain for chain in found if len(chain) >= max(2, _SHARE * len(blocks))), key=len, reverse=True)


def _runs(trace: Trace, blocks: set[str]) -> Iterator[list[Passage]]:
    follower = _Follower(trace)
    for op in trace.forward_ops if blocks else ():
        if op.path != "(loss)":
            follower.take(op, next((part for part in _ancestors(op.path) if part in blocks), None))
    follower.finish()
    chain: list[Passage] = []
    for path in follower.order:
        entrance = follower.entrance(path)
        if entrance is None or path not in follower.leaves:
            continue
        value, before = entrance
        if chain and before != chain[-1].path:
            yield _ended(chain, follower)
            chain = []
        chain.append(Passage(path, follower.stream(value), follower.leaves[path]))
    yield _ended(chain, follower)


def _ended(chain: list[Passage], follower: "_Follower") -> list[Passage]:
    return [*chain[:-1], *(replace(last, leaves=follower.onto(last)) for last in chain[-1:])]


def repeated(trace: Trace) -> set[str]:
    """Return the paths of the repeated modules that a model is made of: numbered ones of one type.

    Of the types that cover nearly as many ops as any, the most numerous: the blocks of a stage, not the stages.
    Modules without modules of their own, such as the layers of a plain stack, only where no others are the backbone.
    """
    parents = {path.rpartition(".")[0] for path in trace.modules}
    owners = {name.rpartition(".")[0] for name in trace.parameters}
    numbered = [path for path in trace.modules if re.search(r"\d$", path)]
    moving = trace.dependents(trace.inputs.values())
    ran = Counter(op.path for op in trace.forward_ops if moving.intersection(op.outputs))
    composed = _most([path for path in numbered if path in parents], trace, ran, _LEAST * ran.total())
    return composed or _most([path for path in numbered if path not in parents and path in owners], trace, ran, 1)


def _most(paths: Sequence[str], trace: Trace, ran: Counter[str], least: float) -> set[str]:
    kinds: dict[str, set[str]] = {}
    for path in paths:
        kinds.setdefault(trace.modules[path], set()).add(path)
    groups = [group for group in kinds.values() if len(group) > 1]
    covered = [sum(n for path, n in ran.items() if not group.isdisjoint(_ancestors(path))) for group in groups]
    best = max(covered, default=0)
    good = [group for group, n in zip(groups, covered, strict=True) if n >= max(_NEARLY * best, least)]
    return max(good, key=len, default=set())


def _ancestors(path: str) -> list[str]:
    """List the modules that a module lies in, outermost first, and itself.

    >>> _ancestors("layers.0.mlp")
    ['layers', 'layers.0', 'layers.0.mlp']
    """
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


class _Follower:
    """One pass over the forward: through which block each value went last, and what entered and left each block."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.order: dict[str, int] = {}
        self.reads: dict[str, dict[int, str | None]] = {}
        self.leaves: dict[str, int] = {}
        self._last: dict[int, str | None] = dict.fromkeys(trace.inputs.values())
        self._made_in: dict[int, str] = {}
        self._readers: Counter[int] = Counter()

    def take(self, op: Op, block: str | None) -> None:
        """Look at one op, which lies in a block or in none."""
        arriving = [v for v in op.inputs if v in self._last]
        if not arriving or op.functional in FROM_SHAPE:
            return
        for value in arriving:
            if self._made_in.get(value) != block:
                self._leave(value)
        if block is not None:
            self._read(block, arriving)
        last = block if block is not None else max((self._last[v] for v in arriving), key=self._rank)
        for value in (*op.outputs, *(new for _, new in op.mutates)):
            self._last[value] = last
            if block is not None:
                self._made_in[value] = block

    def finish(self) -> None:
        """Let what the model returns leave its block, and count by how many blocks each value was read."""
        for value in self.trace.outputs.values():
            self._leave(value)
        self._readers = Counter(value for read in self.reads.values() for value in read)

    def _rank(self, block: str | None) -> int:
        return -1 if block is None else self.order[block]

    def _leave(self, value: int) -> None:
        home = self._made_in.get(value)
        if home is not None and self.trace.values[value].is_floating:
            self.leaves[home] = max(value, self.leaves.get(home, value))

    def _read(self, block: str, arriving: Sequence[int]) -> None:
        self.order.setdefault(block, len(self.order))
        for value in arriving:
            if self._made_in.get(value) != block and self.trace.values[value].is_floating:
                self.reads.setdefault(block, {}).setdefault(value, self._last[value])

    def entrance(self, block: str) -> tuple[int, str | None] | None:
        """Return the value that enters a block, and the block that it came through last; None where none does.

        Of what a block reads from outside, the stream is read by the fewest other blocks: a mask, a bias or what an
        encoder found are read by all. Of several, it is the one that came through the block before, else the first.
        """
        found = self.reads.get(block, {})
        before = self.order.get(block, 0) - 1
        return min(found.items(), key=lambda v: (self._readers[v[0]], self._rank(v[1]) != before), default=None)

    def stream(self, value: int) -> int:
        """Return what an entrance is a view of, made between blocks: all who read the stream give it a gradient."""
        op = self.trace.producer(value)
        while op is not None and op.functional in VIEWS and value not in self._made_in and op.inputs:
            if math.prod(self.trace.values[op.inputs[0]].shape) != math.prod(self.trace.values[value].shape):
                break
            value = op.inputs[0]
            op = self.trace.producer(value)
        return value

    def onto(self, passage: Passage) -> int:
        """Return what leaves a block: where what it makes is added outside to what entered it, the sum.

        Args:
            passage: the last one of a chain, which no other follows whose entrance would be that sum.
        """
        trace, stream = self.trace, self.trace.shown(passage.enters)
        made = trace.dependents([passage.leaves])
        for op in trace.forward_ops:
            entered = [v for v in op.inputs if trace.shown(v) == stream]
            if op.functional in _SUMS and entered and made.intersection(op.inputs) and made.isdisjoint(entered):
                return passage.leaves if any(v in self._made_in for v in op.outputs) else op.outputs[0]
        return passage.leaves
