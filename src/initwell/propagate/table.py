"""The table of rules: every op has a rule, is ignored on purpose, or is unsupported; all three can be listed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from initwell.errors import ArgumentError
from initwell.propagate.given.known import Known
from initwell.propagate.moments.signal import Signal
from initwell.records import Record
from initwell.trace.trace import Op, Trace, ValueRef


@dataclass(eq=False, slots=True)
class Call:
    """One op as its rule sees it; a walk makes thousands.

    Attributes:
        op: the op, its arguments by the schema's names.
        trace: the walk that it is part of.
        known: value id → signal, of all values so far; what is missing is unknown.
        values: what has real numbers, because nothing random goes into it.
    """

    op: Op
    trace: Trace
    known: Mapping[int, Signal]
    values: Known = field(default_factory=Known.nothing)

    def __getitem__(self, name: str) -> Any:
        """Return a plain argument by its schema name."""
        return self.op.arguments.get(name)

    def has(self, name: str) -> bool:
        """Whether a tensor was given for this argument and its signal is known."""
        ref = self.op.arguments.get(name)
        return isinstance(ref, ValueRef) and ref.id in self.known

    def signal(self, name: str) -> Signal:
        """Return the signal of a tensor argument.

        Raises:
            UnknownSignalError: it is not known.
        """
        return self.of(self.op.arguments.get(name))

    def of(self, ref: Any) -> Signal:
        """Return the signal that a reference stands for.

        Raises:
            UnknownSignalError: it is no reference to a tensor, or not known.
        """
        signal = self.known.get(ref.id) if isinstance(ref, ValueRef) else None
        if signal is None:
            raise UnknownSignalError(str(ref))
        return signal

    def tensors(self, *names: str) -> list[ValueRef] | None:
        """Return the values that these arguments are; None where one of them is a number, or is not given."""
        found = []
        for name in names:
            ref = self.op.arguments.get(name)
            if not isinstance(ref, ValueRef):
                return None
            found.append(ref)
        return found

    def value(self, name: str) -> Tensor | None:
        """Return the real numbers of a tensor argument that depends on nothing random: a mask, positions, an index.

        The tensor is on the CPU and must not be written to. None where they are not known.
        """
        return self.value_of(self.op.arguments.get(name))

    def value_of(self, ref: Any) -> Tensor | None:
        """Return the real numbers that a reference stands for, such as one among another op's arguments."""
        return self.values[ref.id] if isinstance(ref, ValueRef) and ref.id in self.values else None

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Return the shape of an output."""
        return self.trace.values[self.op.outputs[index]].shape

    def forward(self) -> Op:
        """Return the forward op that this backward op is the derivative of.

        Raises:
            UnknownSignalError: that is not known, or is itself a derivative, as where a forward takes gradients.
        """
        forward = None if self.op.of is None else self.trace.ops[self.op.of]
        if forward is None or "_backward" in forward.functional:
            raise UnknownSignalError("the forward op")
        return forward


class UnknownSignalError(Exception):
    """A rule asked for a value that an earlier op left unknown; its outputs are unknown too."""


class UnknowableError(UnknownSignalError):
    """What an op makes cannot be known, though all that it reads is: the message says why, and is told."""


Rule = Callable[[Call], Sequence[Signal | None]]


@dataclass(frozen=True)
class RuleTable(Record):
    """Op packet → what is done about it.

    Attributes:
        rules: packet of the out-of-place op → rule.
        ignored: packet → why its outputs need no signal.
        given: packets whose rules are the caller's own.
    """

    rules: Mapping[str, Rule]
    ignored: Mapping[str, str]
    given: frozenset[str] = frozenset()

    @classmethod
    def build(cls, parts: Iterable[Mapping[str, Rule]], ignored: Mapping[str, str]) -> "RuleTable":
        """Put a table together.

        Args:
            parts: rules by packet; no packet twice.
            ignored: reasons by packet.

        Returns:
            The RuleTable.

        Raises:
            ArgumentError: a packet twice, a name that is no packet, a rule that cannot be called, an empty reason.
        """
        rules: dict[str, Rule] = {}
        for part in parts:
            for packet, rule in part.items():
                _check(packet, rule)
                if packet in rules:
                    raise ArgumentError("rules", f"{packet} twice", "Give each op one rule.")
                rules[packet] = rule
        for packet, reason in ignored.items():
            if packet in rules or not reason or not isinstance(reason, str):
                raise ArgumentError("ignored", packet, "Say why, and only for ops without a rule.")
        return cls(rules, dict(ignored))

    def with_rules(self, rules: Mapping[str, Rule] | None) -> "RuleTable":
        """Return a copy in which these rules come before its own.

        Args:
            rules: packet, such as "aten.relu" or "mylib.myop" → function of a ``Call`` that returns one signal, or
                None for unknown, for each output.

        Returns:
            The copy; without rules, the table itself.

        Raises:
            ArgumentError: no mapping, a name that is no packet, or a rule that cannot be called.
        """
        if rules is None:
            return self
        if not isinstance(rules, Mapping):
            raise ArgumentError("rules", type(rules).__name__, "Give a mapping from op packet to rule.")
        for packet, rule in rules.items():
            _check(packet, rule)
        ignored = {k: v for k, v in self.ignored.items() if k not in rules}
        return RuleTable({**self.rules, **rules}, ignored, self.given | rules.keys())


def _check(packet: object, rule: object) -> None:
    if not isinstance(packet, str) or packet.count(".") != 1 or packet.endswith("."):
        raise ArgumentError("rules", packet, "Name the op's packet without its overload, such as 'aten.relu'.")
    if not callable(rule):
        cure = "A rule is a function of a Call that returns one Signal, or None, for each output."
        raise ArgumentError(f"rules[{packet!r}]", type(rule).__name__, cure)
