"""The immutable record of one walk: ops in order, and SSA value ids for every tensor that passed by."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from typing import Any, Literal

from torch import Tensor

from initwell.records import Record, Row, TableRecord, plain
from initwell.trace.ops import COPIES, FROM_SHAPE, VIEWS

Kind = Literal["op", "input", "parameter", "buffer", "constant", "cotangent"]
Phase = Literal["forward", "backward"]


@dataclass(frozen=True)
class ValueRef:
    """Stands for a tensor among an op's arguments."""

    id: int

    def __str__(self) -> str:
        """Write the reference as tables show it.

        >>> str(ValueRef(7))
        '%7'
        """
        return f"%{self.id}"


@dataclass(frozen=True)
class Value(Record):
    """One version of one tensor; writing into a tensor makes a new Value.

    Args:
        id: its index in ``Trace.values``.
        shape: the sizes of its axes.
        dtype: such as "float32" or "int64".
        kind: what made it: an op, the caller ("input"), the model ("parameter", "buffer"), the start of the
            backward ("cotangent"), or "constant" for a tensor that the model brought from elsewhere.
        producer: index of the op that made it; None unless ``kind`` is "op".
        base: id of the value whose memory it shows, when it is a view; views of views name the whole tensor.
        name: of a parameter or buffer, as ``model.named_parameters()`` has it; of an input, "input.0" or its keyword.
    """

    id: int
    shape: tuple[int, ...]
    dtype: str
    kind: Kind = "op"
    producer: int | None = None
    base: int | None = None
    name: str = ""

    @property
    def is_floating(self) -> bool:
        """Whether its entries are real floating-point numbers."""
        return "float" in self.dtype


@dataclass(frozen=True)
class Op(Record):
    """One call of one ATen op.

    Args:
        index: its place in ``Trace.ops``.
        name: with the overload, "aten.addmm.default".
        inputs: ids of the values it reads, in argument order, each once.
        outputs: ids of the values it returns, then of those it wrote without returning.
        arguments: every schema argument by name, defaults filled in; tensors are ValueRef, dtypes and devices text.
        path: dotted path of the innermost module that ran it, "" for the model itself; in the backward, that of the
            forward op it is the derivative of.
        module_type: that module's type, "torch.nn.modules.linear.Linear".
        call: 0, 1, … counts the uses of a module that runs more than once.
        phase: "forward" or "backward".
        of: for a backward op, or one of a derivative that the forward itself takes, the index of the forward op it is
            the derivative of, where that is known.
        mutates: (old id, new id) of every value that this op replaced by writing into its memory: the tensor written,
            the whole tensor it is a view of, and other views of it that were read later.
    """

    index: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arguments: Mapping[str, Any]
    path: str
    module_type: str
    call: int
    phase: Phase
    of: int | None = None
    mutates: tuple[tuple[int, int], ...] = ()

    @cached_property
    def packet(self) -> str:
        """The name without its overload, an in-place op by its own name: "aten.addmm", "aten.relu_"."""
        return packet(self.name)

    @cached_property
    def functional(self) -> str:
        """The packet of the op that would do the same out of place: "aten.relu" for "aten.relu_.default"."""
        return functional(self.name)


@cache
def packet(name: str) -> str:
    """Return an op's name without its overload.

    >>> packet("aten.relu_.default")
    'aten.relu_'
    """
    return name.rpartition(".")[0] if name.count(".") >= 2 else name


@cache
def functional(name: str) -> str:
    """Return the packet of the out-of-place op: one trailing underscore less.

    >>> functional("aten.relu_.default"), functional("aten.mm.default")
    ('aten.relu', 'aten.mm')
    """
    short = packet(name)
    return short[:-1] if short.endswith("_") and not short.endswith("__") else short


@dataclass(frozen=True, eq=False)
class Folded:
    """Numbers of a walk that depend on nothing random, as far as they could be computed.

    Attributes:
        tensors: value id → its numbers, on the CPU, not to be written to; memory that nobody wrote to yet counts as
            zeros. Those of buffers are the model's own memory.
        first: value id → the first value that was computed in the same way, and so has the same numbers.
        drawn: values that are random, but not by weights or floating inputs: masks and shuffles.
        notes: what was left because of its size, or failed.
    """

    tensors: Mapping[int, Tensor] = field(default_factory=dict)
    first: Mapping[int, int] = field(default_factory=dict)
    drawn: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace(TableRecord):
    """One walk over a model, forward and backward.

    Args:
        ops: every op that ran, in order.
        values: every value that an op read or made; ``values[i].id == i``.
        inputs: name ("input.0", or the keyword) → value id, for each tensor of the batch.
        outputs: name ("output.0", …) → value id, for each tensor of the model's output.
        parameters: name → value id; tied names share one id.
        gradients: value id → id of its gradient, for every value that a gradient reached.
        tied: name of a parameter → the other names that it goes by.
        modules: module path → type, for every module of the model.
        training: whether the model was in training mode.
        device: "meta" or "real".
        loss: id of the loss, when one was given.
        took: op → the number that it took as its argument "other", which stands there as the value it was read of.
        steady: op that takes a number which other weights would change → whether by little.
        notes: what was skipped or could not be known.
        folded: the numbers that follow from the batch's integers, from buffers and from constants.
    """

    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    parameters: Mapping[str, int]
    gradients: Mapping[int, int]
    tied: Mapping[str, tuple[str, ...]]
    modules: Mapping[str, str]
    training: bool
    device: str
    loss: int | None = None
    took: Mapping[int, float] = field(default_factory=dict)
    steady: Mapping[int, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())
    folded: Folded = field(default_factory=Folded, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data; those numbers are left out."""
        names = (f.name for f in fields(self) if f.name != "folded")
        return {name: plain(getattr(self, name)) for name in names}

    @cached_property
    def forward_ops(self) -> tuple[Op, ...]:
        """The ops of the forward, in order; those of the loss included."""
        return tuple(op for op in self.ops if op.phase == "forward")

    @cached_property
    def backward_ops(self) -> tuple[Op, ...]:
        """The ops of autograd's backward, in order."""
        return tuple(op for op in self.ops if op.phase == "backward")

    def producer(self, value: int) -> Op | None:
        """Return the op that made a value; None for parameters, buffers, inputs and constants."""
        index = self.values[value].producer
        return None if index is None else self.ops[index]

    def shown(self, value: int) -> int:
        """Return the value that a view, or a copy, shows; of anything else the value itself."""
        if value not in self._shown:
            end, op = value, self.producer(value)
            while op is not None and op.inputs and (op.functional in VIEWS or op.functional in COPIES):
                end = op.inputs[0]
                op = self.producer(end)
            self._shown[value] = end
        return self._shown[value]

    @cached_property
    def _shown(self) -> dict[int, int]:
        return {}

    @property
    def tied_notes(self) -> tuple[str, ...]:
        """Say which parameters go under several names, one line each."""
        groups = {tuple(sorted((name, *others))) for name, others in self.tied.items()}
        return tuple(f"Tied, one parameter under several names: {', '.join(group)}." for group in sorted(groups))

    def consumers(self, value: int) -> tuple[Op, ...]:
        """Return the ops, forward and backward, that read a value, in order."""
        return tuple(self.ops[i] for i in self._consumers.get(value, ()))

    def dependents(self, sources: Iterable[int]) -> set[int]:
        """Return the forward values whose entries depend on those of ``sources``, these included.

        An op that reads only the shape of its input, such as the start of a dropout mask, passes nothing on.
        """
        found = set(sources)
        for op in self.forward_ops:
            if op.functional not in FROM_SHAPE and any(value in found for value in op.inputs):
                found.update(op.outputs, (new for _, new in op.mutates))
        return found

    @cached_property
    def moving(self) -> frozenset[int]:
        """The forward values that depend on the batch; weights, and what is made of weights alone, do not."""
        return frozenset(self.dependents(self.inputs.values()))

    @cached_property
    def containers(self) -> frozenset[str]:
        """The paths of modules that hold other modules or parameters."""
        names = (*self.modules, *self.parameters)
        return frozenset(name[:i] for name in names for i, letter in enumerate(name) if letter == ".")

    def run_of(self, op: Op) -> tuple[Op, ...]:
        """Return the forward ops of one call of one module, that which ran ``op``, in order."""
        return tuple(self._runs[op.path, op.call])

    @cached_property
    def _runs(self) -> dict[tuple[str, int], list[Op]]:
        found: dict[tuple[str, int], list[Op]] = {}
        for op in self.forward_ops:
            found.setdefault((op.path, op.call), []).append(op)
        return found

    @cached_property
    def _consumers(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for op in self.ops:
            for value in op.inputs:
                found.setdefault(value, []).append(op.index)
        return found

    def names(self, value: int) -> Iterator[str]:
        """Yield every parameter name of a value, none for other values."""
        return (name for name, id in self.parameters.items() if id == value)

    def table_title(self) -> str:
        """Say what was walked."""
        forward = len(self.forward_ops)
        mode = "training" if self.training else "eval"
        return (
            f"Trace: {forward} forward and {len(self.ops) - forward} backward ops, {mode} mode, {self.device} tensors"
        )

    def table_columns(self) -> Sequence[str]:
        """Name the columns."""
        return ("#", "phase", "path", "call", "op", "inputs", "outputs", "shape")

    def table_rows(self) -> Sequence[Row]:
        """Return one row an op."""
        return [self._row(op) for op in self.ops]

    def _row(self, op: Op) -> Row:
        shape = self.values[op.outputs[0]].shape if op.outputs else ()
        return {
            "#": op.index,
            "phase": op.phase,
            "path": op.path,
            "call": op.call,
            "op": op.name,
            "inputs": " ".join(f"%{i}" for i in op.inputs),
            "outputs": " ".join(f"%{i}" for i in op.outputs),
            "shape": shape,
        }

    def table_notes(self) -> Sequence[str]:
        """Return the notes."""
        return self.notes

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table as plain dicts, ready for pandas."""
        return [plain(row) for row in self.table_rows()]
