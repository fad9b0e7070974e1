"""Runs a model's own forward and backward under a dispatch mode, and writes down every op as it passes by."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from initwell.trace.fold import Folder
from initwell.trace.ledger import Ledger
from initwell.trace.schema import Signature, signature
from initwell.trace.scope import Place, Scope
from initwell.trace.standins import Standins, tensors_in
from initwell.trace.trace import Op, Phase, Value, ValueRef


class Observer(Protocol):
    """Sees the tensors of a walk as they pass by; must not keep or change them."""

    def restarted(self) -> None:
        """Forget what was seen: the walk begins anew."""

    def given(self, value: Value, tensor: Tensor) -> None:
        """See an input of the batch, before the forward."""

    def replaced(self, old: int, new: int) -> None:
        """Learn that a write made a new version of a value; ``new`` is not shown to ``value`` if it is another view."""

    def value(self, value: Value, op: Op, tensor: Tensor) -> None:
        """See an output of a forward op, right after it ran."""

    def gradient(self, value: int, tensor: Tensor) -> None:
        """See the whole gradient of a value, after every use of it has added its part."""


# What `torch.tensor` ends with on real tensors alone; it makes nothing.
_LIFTED = torch.ops.aten.lift_fresh.default
_READ = torch.ops.aten._local_scalar_dense.default
# What is a whole number of 1/4096 is of few digits.
_SHORT = 4096
# Where a meta tensor that outlives a walk has its numbers, with the version of it that they are of.
_LEFT = "_initwell_numbers"
_WRITTEN_AS_IS = (bool, int, float, complex, str)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes every op down; the ledger gives its tensors ids, the scope its module.

    Autograd sits above the mode: an output has its ``grad_fn`` only after the op has returned. So what needs it, the
    gradient hook and the node's sequence number, is done for each output when the next op arrives, and, since that is
    before the next op runs, a later in-place op does not change whose gradient the hook sees.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # PyTorch wraps a mode in a guard against the compiler, and the guard imports the whole compiler, seconds of it,
        # at the first op. Compiled models are unwrapped before the walk, so there is nothing to guard against.
        return False

    def __init__(
        self, ledger: Ledger, scope: Scope, *, meta: bool, fold: bool = True, observer: Observer | None = None
    ) -> None:
        """Record into ``ledger``.

        Args:
            ledger: gives ids to tensors.
            scope: knows which module runs.
            meta: whether real tensors met on the way are to be replaced by meta ones.
            fold: whether to compute what depends on nothing random; always done where ``meta`` is.
            observer: sees the tensors.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger, self.scope, self.observer = ledger, scope, observer
        self.folder = Folder(ledger.values) if meta or fold else None
        self.standins = Standins(ledger, self.folder, self.bring) if meta and self.folder is not None else None
        if self.folder is not None:
            ledger.told.append(self.folder.replaced)
        self.ops: list[Op] = []
        self.gradients: dict[int, int] = {}
        self.written: list[tuple[Tensor, Tensor]] = []
        self._numbers: Any = WeakTensorKeyDictionary()
        self.phase: Phase = "forward"
        # Numbers that were read of values → these; ops that took one as their "other" → the number.
        self._read: dict[float, int] = {}
        self.took: dict[int, float] = {}
        self._paused = False
        self._pending: list[tuple[Tensor, int, int]] = []
        self._signatures: dict[Any, tuple[str, Signature]] = {}
        self._op_of_node: dict[int, int] = {}
        self._first_node: list[int] = []

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Let ops pass unrecorded while inside."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one op and write it down."""
        kwargs = kwargs or {}
        if self._paused or func is _LIFTED:
            return func(*args, **kwargs)
        if self._pending:
            self.flush()
        if self.standins is not None:
            moved = self.standins.moved(func, args, kwargs)
            if moved is not None:
                return moved
            args, kwargs = self.standins.prepared(func, args, kwargs)
        if func not in self._signatures:
            self._signatures[func] = str(func), signature(func)
        name, known = self._signatures[func]
        bound = known.bind(args, kwargs)
        inputs: dict[int, None] = {}
        arguments = {name: self._described(a, inputs) for name, a in bound.items()}
        if self._read and arguments.get("other") in self._read:
            self.took[len(self.ops)] = arguments["other"]
            inputs[source := self._read[arguments["other"]]] = None
            arguments["other"] = ValueRef(source)
        targets = [t for name in known.written for t in tensors_in(bound.get(name))]
        self._look(func, bound, targets)
        for target in targets:
            self._save(target)
        run = self.standins
        out = func(*args, **kwargs) if run is None else run.run(func, args, kwargs, arguments, tuple(inputs))
        op = self._write_down(name, tuple(inputs), arguments, known, bound, targets, out)
        if self.folder is not None:
            self.folder.feed(func, op, self.ledger.replaced.get(op.index, ()))
            if func is _READ:
                self._remember(out, op.inputs[0])
        return out

    def written_as(self, twin: Tensor, data: Any) -> None:
        """Remember the plain numbers that a meta tensor was made from, for when it is used."""
        with self.unrecorded():
            self._numbers[twin] = torch.tensor(data, dtype=twin.dtype, device="cpu")

    def real(self, tensor: Tensor) -> Tensor | None:
        """Return the real tensor that a meta one stands for; None where its numbers are not known."""
        with self.unrecorded():
            return None if self.standins is None else self.standins.real(tensor)

    def bring(self, tensor: Tensor) -> int:
        """Give a tensor that came from elsewhere a value, and keep its numbers if it has some."""
        value = self.ledger.add(tensor, "constant")
        known = self._written_at(tensor) if tensor.is_meta else tensor
        if self.folder is not None and self.phase == "forward" and known is not None and not tensor.requires_grad:
            self.folder.give(value, known)
        return value

    def _written_at(self, tensor: Tensor) -> Tensor | None:
        known: Tensor | None = self._numbers.get(tensor)
        version, left = getattr(tensor, _LEFT, (None, None))
        return left if known is None and version == _version(tensor) else known

    def leave_numbers(self) -> None:
        """Write known numbers at the meta tensors that outlive the walk, for the next one.

        A model may keep what it makes of shapes alone, such as the coordinates of patches, and show it again in every
        later forward: on meta tensors too, which have no numbers of their own.
        """
        for tensor, value in self.ledger.alive():
            known = None if self.folder is None else self.folder.computed(value)
            if tensor.is_meta and known is not None and self.ledger.values[value].kind == "op":
                setattr(tensor, _LEFT, (_version(tensor), known))

    def _described(self, argument: Any, inputs: dict[int, None]) -> Any:
        if isinstance(argument, Tensor):
            id = self.ledger.find(argument)
            if id is None:
                id = self.bring(argument)
            inputs[id] = None
            return ValueRef(id)
        if argument is None or isinstance(argument, _WRITTEN_AS_IS):
            return argument
        if isinstance(argument, (list, tuple)):
            return tuple(self._described(a, inputs) for a in argument)
        return str(argument)

    def _remember(self, number: Any, source: int) -> None:
        """Remember what a number was read of: multiplied by it, another value goes with that, and not with a constant.

        One of so few digits that a model may write it down itself, as 0.5, is none of these.
        """
        known = self.folder is None or self.folder.computed(source) is not None
        if isinstance(number, float) and not known and not (number * _SHORT).is_integer():
            self._read[number] = source

    def _look(self, func: Any, bound: Mapping[str, Any], targets: list[Tensor]) -> None:
        """Take the numbers of memory that no op wrote to and one reads: lengths, as PyTorch puts a list in a tensor."""
        if self.folder is None or self.standins is not None or targets or getattr(func, "is_view", False):
            return
        for tensor in tensors_in([*bound.values()]):
            value = self.ledger.find(tensor)
            if value is not None and self.folder.unwritten(value):
                self.folder.give(value, tensor)

    def _save(self, tensor: Tensor) -> None:
        # What the caller owns is copied before its first and every further write, and written back at the end.
        memory = self.ledger.memory(tensor)
        owned = memory is None or memory.kind in ("parameter", "constant")
        if owned and not tensor.is_meta:
            self.written.append((tensor, tensor.detach().clone()))
        if memory is not None and tensor.is_meta:
            memory.stale = True

    def _write_down(
        self,
        name: str,
        inputs: tuple[int, ...],
        arguments: Mapping[str, Any],
        known: Signature,
        bound: Mapping[str, Any],
        targets: list[Tensor],
        out: Any,
    ) -> Op:
        index = len(self.ops)
        outputs: dict[int, None] = {}
        made: list[tuple[Tensor, int]] = [(t, self.ledger.write(t, index)) for t in targets]
        of_target = {id(t): value for t, value in made}
        returned = out if isinstance(out, tuple) and len(known.sources) > 1 else (out,)
        for place, group in enumerate(returned):
            source = bound.get(known.sources[place] or "") if place < len(known.sources) else None
            for tensor in tensors_in(group):
                value = of_target.get(id(tensor))
                if value is None:
                    value = self._add_output(tensor, index, source)
                    made.append((tensor, value))
                outputs[value] = None
        outputs |= dict.fromkeys(of_target.values())
        (path, kind, call), of = self._place()
        op = Op(index, name, inputs, tuple(outputs), arguments, path, kind, call, self.phase, of)
        self.ops.append(op)
        if self.phase == "forward":
            self._first_node.append(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]
            self._pending = [(t, v, index) for t, v in made]
            self._observe(op, made)
        return op

    def _add_output(self, tensor: Tensor, index: int, source: Any) -> int:
        shown = source if isinstance(source, Tensor) else next(iter(tensors_in(source)), None)
        return self.ledger.add(tensor, "op", producer=index, source=shown)

    def _observe(self, op: Op, made: list[tuple[Tensor, int]]) -> None:
        if self.observer is not None:
            # What an op writes beside what it returns, as RReLU its slopes, is made first and told last.
            for tensor, value in sorted(made, key=lambda pair: op.outputs.index(pair[1])):
                self.observer.value(self.ledger.values[value], op, tensor)

    def _place(self) -> tuple[Place, int | None]:
        here = self.scope.here
        node = torch._C._current_autograd_node()
        of = None if node is None else self._forward_op(node._sequence_nr())
        if self.phase == "forward" or self.scope.inside or of is None:
            # A forward may derive what it made before.
            # A checkpointed module runs its forward again within the backward: the scope knows its name.
            return here, of
        return Place(self.ops[of].path, self.ops[of].module_type, self.ops[of].call), of

    def _forward_op(self, node: int) -> int | None:
        """Return the forward op whose autograd node has this sequence number.

        Numbers grow along the forward, so a node that is not an output's own lies between those of its neighbours.
        """
        if node in self._op_of_node:
            return self._op_of_node[node]
        if not self._first_node or not 0 <= node < self._first_node[-1]:
            return None
        return bisect_right(self._first_node, node)

    def flush(self) -> None:
        """Finish the outputs of the last forward op, whose autograd metadata is set by now."""
        pending, self._pending = self._pending, []
        with self.unrecorded():
            for tensor, value, op in pending:
                whole = tensor._base if tensor._is_view() else None
                memory = self.ledger.memory(tensor)
                if whole is not None and memory is not None and memory.writer == op and whole.requires_grad:
                    self._finish_written(tensor, value, whole, memory.root, op)
                elif tensor.requires_grad and tensor.grad_fn is not None:
                    self._op_of_node.setdefault(tensor.grad_fn._sequence_nr(), op)
                    self.watch(tensor, value)

    def _finish_written(self, view: Tensor, value: int, whole: Tensor, root: int, op: int) -> None:
        """Finish a write through a view: autograd carries its gradient by the whole tensor, of which it is a part."""
        for tensor in (view, whole):
            if tensor.grad_fn is not None:
                self._op_of_node.setdefault(tensor.grad_fn._sequence_nr(), op)
        sizes, strides, offset = view.size(), view.stride(), view.storage_offset() - whole.storage_offset()
        layout = torch.empty_strided(whole.size(), whole.stride(), device="meta")
        all_of_it = view.numel() == whole.numel()

        def arrived(gradient: Tensor) -> None:
            with self.unrecorded(), torch.no_grad():
                self.record_gradient(root, gradient)
                placed = gradient.new_empty_strided(layout.size(), layout.stride()).copy_(gradient)
                shown = placed.as_strided(sizes, strides, offset)
                self.record_gradient(value, shown, same=gradient if all_of_it else shown)

        whole.register_hook(arrived)  # type: ignore[no-untyped-call]

    def watch(self, tensor: Tensor, value: int) -> None:
        """Have the gradient of a tensor, as it is now, recorded as that of a value."""

        def arrived(gradient: Tensor | None) -> None:
            # An op with several outputs, as group norm with its statistics, runs the hooks of the unused ones too.
            if gradient is not None:
                self.record_gradient(value, gradient)

        tensor.register_hook(arrived)  # type: ignore[no-untyped-call]

    def record_gradient(self, value: int, gradient: Tensor, *, same: Tensor | None = None) -> None:
        """Tie a gradient to the value it is the gradient of, and show it to the observer.

        Args:
            value: its id.
            gradient: of the value's shape.
            same: a tensor of the trace with the same entries, where that is another.
        """
        known = gradient if same is None else same
        id = self.ledger.find(known)
        if id is None:
            id = self.ledger.add(known, "constant")
        self.gradients[value] = id
        if self.observer is not None:
            with self.unrecorded(), torch.no_grad():
                self.observer.gradient(value, gradient)

    def finished_ops(self) -> tuple[Op, ...]:
        """Return the ops, each with the values that it replaced."""
        replaced = self.ledger.replaced
        return tuple(replace(op, mutates=tuple(replaced[i])) if i in replaced else op for i, op in enumerate(self.ops))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
