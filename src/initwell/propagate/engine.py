"""The walk: one Signal for every value of a Trace, op by op. It knows no op by name."""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from initwell.errors import ModelError
from initwell.propagate.blank.walk import Blank
from initwell.propagate.given.known import Known, Signals
from initwell.propagate.given.read_numbers import AVERAGED, UNSTEADY
from initwell.propagate.moments.atoms import viewed
from initwell.propagate.moments.places import Remembered
from initwell.propagate.moments.signal import Signal
from initwell.propagate.played.play import Played
from initwell.propagate.routing.choices import Choices
from initwell.propagate.shared.dropped import Dropped
from initwell.propagate.shared.joint import Joint
from initwell.propagate.shared.partners import partners_of
from initwell.propagate.shared.radial import Radial
from initwell.propagate.shared.twice import Twice
from initwell.propagate.table import Call, RuleTable, UnknowableError, UnknownSignalError
from initwell.propagate.writes import overwritten
from initwell.records import Record
from initwell.trace.keep import uncollected
from initwell.trace.trace import Op, Trace

_TOO_DEEP = "a value made in so many steps that what it is a function of cannot be followed"


class RuleError(ModelError):
    """A rule of the caller's own failed; names the op and the module path, from the original error."""


class RuleWarning(UserWarning):
    """A rule of initwell failed: what its op makes is unknown. Names the op, the module path and the error."""


@dataclass(frozen=True)
class Walk(Record):
    """What a walk found.

    Attributes:
        signals: value id → signal; values that are not there are unknown. Known numbers are measured when asked for.
        unsupported: ops without a rule → how often they ran.
        unknown: ops that have a rule, but whose first output stayed unknown → how often.
        causes: why values cannot be known → where that was met first.
    """

    signals: Mapping[int, Signal]
    unsupported: Mapping[str, int]
    unknown: Mapping[str, int]
    causes: Mapping[str, str]


@np.errstate(all="ignore")
def walk(trace: Trace, table: RuleTable, start: Mapping[int, Signal], values: Known | None = None) -> Walk:
    """Give every value of a trace its signal.

    Args:
        trace: from ``record``.
        table: the rules.
        start: signals of inputs, parameters, buffers and starting gradients, by value id.
        values: what has real numbers, if anything; an op that only makes such needs no rule.

    Returns:
        The Walk.

    Raises:
        RuleError: a rule of the caller's own failed, or returned what does not fit its op's outputs.

    Warns:
        RuleWarning: another rule did; what it was to find is unknown, and the walk goes on.
    """
    values = Known.nothing() if values is None else values
    with uncollected(), values.once("remembered", Remembered).during():
        return _walked(trace, table, Signals(start, values), values)


class _Rules:
    """What is said of an op: by the table, and by what has been met so far of several ops together."""

    def __init__(self, trace: Trace, table: RuleTable, known: Signals, values: Known) -> None:
        self.trace, self.table, self.known, self.values = trace, table, known, values
        partners = values.once("partners", lambda: partners_of(trace, values))
        self.shared = partners.shared
        self.twice = Twice(trace, partners, known, values)
        self.joint = Joint(trace, known, values, table)
        self.choices = Choices(trace, known, values, table)
        self.blank = Blank(trace, known, values)
        self.dropped = Dropped(trace, known, values)
        pair = self.joint.pair if self.joint.any else None
        self.radial = Radial(trace, known, values, self.blank.others, pair)
        self.played = Played(trace, known, values, table, self.joint.pair)
        self.radial.measured = self.played.along_rows

    def found(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> Sequence[Signal | None] | None:
        """Return the signals of an op's outputs; None where it has no rule."""
        if op.index not in self.trace.steady:
            return self._found(op, shapes)
        if not self.trace.steady[op.index]:
            raise UnknowableError(UNSTEADY)
        found = self._found(op, shapes)
        return found and [s and s.approximate(AVERAGED) for s in found]

    def _found(self, op: Op, shapes: Sequence[tuple[int, ...]]) -> Sequence[Signal | None] | None:
        judged = self.played.any and self.played.is_of_loss(op)
        if self.twice.any and not judged and (why := self.twice.why(op)) is not None:
            raise UnknowableError(why)
        if self.played.any and (made := self.played.found(op)) is not None:
            return self.dropped.amended(op, made) if self.dropped.any and not judged else made
        if op.index in self.played.lost:
            raise UnknowableError(self.played.lost[op.index])
        chosen = self.choices.rule(op) if self.choices.any else None
        rule = chosen or self.table.rules.get(op.packet) or self.table.rules.get(op.functional)
        if rule is None:
            return None
        found = tuple(rule(Call(op, self.trace, self.known, self.values)))
        _check(shapes, found)
        whole = self.joint.amended(op, found) if self.joint.any else found
        along = self.radial.amended(op, whole) if self.radial.any else whole
        if self.blank.any:
            along = self.blank.amended(op, along, others=along is not whole)
        if self.dropped.any:
            along = self.dropped.amended(op, along)
        if op.index in self.shared:
            along = [s if s is None or s.joint else s.approximate(self.shared[op.index]) for s in along]
        if op.index in self.played.left:
            return [s and s.approximate(self.played.left[op.index]) for s in along]
        return along


def _walked(trace: Trace, table: RuleTable, known: Signals, values: Known) -> Walk:
    unsupported: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    causes: dict[str, str] = {}
    rules = _Rules(trace, table, known, values)
    for op, shapes in values.once("random", lambda: _random(trace, values)):
        try:
            found = rules.found(op, shapes)
        except UnknownSignalError as error:
            found = (None,) * len(op.outputs)
            if isinstance(error, UnknowableError):
                causes.setdefault(str(error), f"{op.packet} at {op.path or 'the model itself'}")
        except RecursionError:
            found = (None,) * len(op.outputs)
            causes.setdefault(_TOO_DEEP, f"{op.packet} at {op.path or 'the model itself'}")
        except Exception as error:
            found = (None,) * len(op.outputs)
            causes.setdefault(*_failure(op, error, table))
        if found is None:
            if op.packet not in table.ignored and op.functional not in table.ignored:
                unsupported[op.packet] += 1
            _forget(op, known)
            continue
        found = [s if _is_known(s) else None for s in found]
        if found and found[0] is None:
            unknown[op.packet] += 1
        if op.mutates or len(found) != 1 or found[0] is None:
            _keep(trace, op, found, known)
        else:
            known[op.outputs[0]] = found[0]
    rules.blank.settle(known)
    rules.dropped.settle(known)
    return Walk(known, dict(sorted(unsupported.items())), dict(+unknown), causes)


def _failure(op: Op, error: Exception, table: RuleTable) -> tuple[str, str]:
    """Return what failed and where, as a cause; a rule of the caller's own is for the caller to mend."""
    where = op.path or "the model itself"
    message = f"The rule of {op.name} failed at {where} ({op.phase}): {type(error).__name__}: {error}"
    if not table.given.isdisjoint((op.packet, op.functional)):
        raise RuleError(message) from error
    warnings.warn(f"{message}. Its values are unknown. Please report this.", RuleWarning, stacklevel=2)
    return f"what a rule failed at, with {type(error).__name__}: {error}", f"{op.packet} at {where}"


def _random(trace: Trace, values: Known) -> list[tuple[Op, tuple[tuple[int, ...], ...]]]:
    """Return the ops that make something random, each with the shapes of its outputs."""
    found = [op for op in trace.ops if _makes_something_random(trace, op, values)]
    return [(op, tuple([trace.values[value].shape for value in op.outputs])) for op in found]


def _makes_something_random(trace: Trace, op: Op, values: Known) -> bool:
    """Whether some of what an op makes or writes has entries, unlike a slice of length 0, which are not all known."""
    new = (*op.outputs, *(value for _, value in op.mutates))
    return not values.made(op) and any(0 not in trace.values[value].shape for value in new)


def _forget(op: Op, known: Signals) -> None:
    for value in (*op.outputs, *(new for _, new in op.mutates)):
        known.forget(value)


def _check(shapes: Sequence[tuple[int, ...]], found: Sequence[Signal | None]) -> None:
    if len(found) != len(shapes):
        raise ValueError(f"{len(found)} signals for {len(shapes)} outputs: return None for one that is unknown")
    for shape, signal in zip(shapes, found, strict=True):
        if signal is not None and signal.shape != shape:
            raise ValueError(f"a signal of shape {signal.shape} for an output of shape {shape}")


def _is_known(signal: Signal | None) -> bool:
    # A sum is finite only of what is; sums of what is may overflow.
    return signal is not None and (
        math.isfinite(np.add.reduce(signal.moments, axis=None)) or bool(np.isfinite(signal.moments).all())
    )


def _keep(trace: Trace, op: Op, found: Sequence[Signal | None], known: Signals) -> None:
    if op.mutates:
        _forget(op, known)
    for value, signal in zip(op.outputs, found, strict=True):
        if signal is None:
            known.forget(value)
        else:
            known[value] = signal
    if not op.mutates:
        return
    whole = known.get(op.outputs[0]) if op.outputs else None
    for _, new in op.mutates:
        size = int(np.prod(trace.values[new].shape))
        if new not in known and whole is not None and size == int(np.prod(whole.shape)):
            # Another view of all that was written.
            known[new] = viewed(whole, trace.values[new].shape)
    for new, signal in overwritten(trace, op, known).items():
        if new not in known and _is_known(signal):
            known[new] = signal
