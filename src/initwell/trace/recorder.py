"""``record``: one walk over a model, forward and backward, that leaves no trace in the model itself."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from initwell.errors import ArgumentError, ModelError
from initwell.trace.batch import as_arguments, check_batch, check_module, map_tensors, tensors, uncompiled
from initwell.trace.failure import NeedsValuesError, forward_failure, where
from initwell.trace.keep import model_kept, random_kept, uncollected, written_back
from initwell.trace.ledger import Ledger
from initwell.trace.literals import Literals
from initwell.trace.mode import Observer, Recorder
from initwell.trace.route import same_route, shapes_completed
from initwell.trace.scope import Scope
from initwell.trace.start import on_meta, unit_gradient
from initwell.trace.trace import Folded, Trace

Loss = Callable[[Any], Tensor]

# A walk sets global generators and functions of PyTorch for a while, and the model's own weights: of two at once, each
# would put back what the other had set.
ONE_AT_A_TIME = threading.RLock()


def record(
    model: nn.Module,
    batch: Any,
    *,
    loss: Loss | None = None,
    device: Literal["meta", "real"] = "meta",
    observer: Observer | None = None,
    backward: bool = True,
    seed: int = 0,
    fold: bool = True,
) -> Trace:
    """Run a model's own forward and backward once, and return every op of both.

    Afterwards the model is as it was: weights, mode, hooks, ``.grad``, buffers; so are the random number generators.
    Walks of several threads wait for one another.

    Args:
        model: any module.
        batch: a tensor, a tuple of positional arguments, a dict of keyword arguments, or the one argument.
        loss: output → scalar tensor; without it the backward starts from an independent gradient of unit variance on
            every floating output.
        device: "meta" computes shapes only and allocates no weights, but knows the numbers that depend on nothing
            random; "real" runs on the caller's tensors.
        observer: sees the tensors as they pass by.
        backward: False stops after the forward.
        seed: of dropout masks and of the starting gradient.
        fold: whether a walk on "real" tensors, too, is to tell apart the numbers that depend on nothing random.

    Returns:
        The Trace; ``folded`` has these numbers.

    Raises:
        ModelError: the model's forward or backward failed; names the module path, from the original error.
            Its subclass NeedsValuesError: the forward looks at numbers that depend on weights, on floating
            inputs or on chance, which meta tensors do not have.
        ArgumentError: an empty batch, an unknown device, a loss that is no differentiable scalar.

    >>> trace = record(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(4, 3))
    >>> [(op.path, op.name) for op in trace.forward_ops if op.packet != "aten.detach"]
    [('0', 'aten.t.default'), ('0', 'aten.addmm.default'), ('1', 'aten.relu.default')]
    """
    if device not in ("meta", "real"):
        raise ArgumentError("device", repr(device), "Use 'meta' or 'real'.")
    if loss is not None and not callable(loss):
        raise ArgumentError("loss", f"a {type(loss).__name__}", "Give a function from the output to a scalar tensor.")
    _check_model(model, real=device == "real")
    check_batch(batch, values=False)
    walk = _Walk(model, meta=device == "meta", fold=fold, observer=observer, seed=seed)
    try:
        return _walked(walk, batch, loss, backward=backward)
    except ModelError as error:
        if "requires_grad flags of leaf" not in str(error.__cause__):
            raise
    # A model that turns its input's gradient on or off by itself cannot do so where the input has one already.
    if observer is not None:
        observer.restarted()
    walk = _Walk(model, meta=walk.meta, fold=fold, observer=observer, seed=seed, input_gradients=False)
    return _walked(walk, batch, loss, backward=backward)


def _walked(walk: "_Walk", batch: Any, loss: Loss | None, *, backward: bool) -> Trace:
    model, seed = walk.model, walk.seed
    with ONE_AT_A_TIME, ExitStack() as stack:
        for context in (model_kept(model), written_back(walk.recorder.written), random_kept(seed), same_route()):
            stack.enter_context(context)
        if walk.recorder.standins is not None:
            stack.enter_context(on_meta(model, walk.recorder.standins.twins))
            stack.enter_context(shapes_completed())
            # Real tensors may hang in cycles, and their memory is wanted back; meta tensors have none.
            stack.enter_context(uncollected())
        walk.forward(batch, loss)
        if backward:
            walk.backward()
        return walk.trace()


def _check_model(model: nn.Module, *, real: bool) -> None:
    check_module(model)
    for name, p in model.named_parameters():
        if torch.nn.parameter.is_lazy(p):
            raise ModelError(f"Parameter {name!r} has no shape yet (lazy module). Call the model on a batch once.")
        if real and p.is_meta:
            raise ModelError(
                f"Parameter {name!r} is on the meta device, so it has no numbers. Materialize the model first "
                "(model.to_empty(device=...) and an initialization), or use device='meta'."
            )


def _normal(tensor: Tensor) -> Tensor:
    # A tensor made in inference mode cannot take a gradient; its copy made outside can.
    return tensor.clone() if tensor.is_inference() else tensor


def _has_moments(tensor: Tensor) -> bool:
    """Whether a tensor of the batch may be data, of which only moments count, and not lengths, positions, a mask."""
    return tensor.is_floating_point() or tensor.is_complex()


def _masks(batch: Sequence[Tensor]) -> list[bool]:
    """Which floating tensors of a batch are masks, or graphs: of ones and zeros beside tensors that are not.

    By itself such a tensor is data, as a black and white image is.

    >>> _masks([torch.randn(2, 3), torch.eye(2)]), _masks([torch.eye(2)])
    ([False, True], [False])
    """
    found = [_is_of_ones_and_zeros(tensor) for tensor in batch]
    return found if any(not mask for mask in found) else [False] * len(batch)


def _is_of_ones_and_zeros(tensor: Tensor) -> bool:
    if tensor.is_meta or not tensor.is_floating_point() or tensor.layout is not torch.strided:
        return False
    first = tensor.detach().flatten()[:_FIRST]
    return all(bool(((part == 0) | (part == 1)).all()) for part in (first, tensor.detach()))


# Of so many entries most data has one that is neither 0 nor 1: no need to look at the rest.
_FIRST = 64


class _Walk:
    """The state of one call of ``record``."""

    def __init__(
        self,
        model: nn.Module,
        *,
        meta: bool,
        fold: bool,
        observer: Observer | None,
        seed: int,
        input_gradients: bool = True,
    ) -> None:
        self.model, self.meta, self.seed, self.input_gradients = model, meta, seed, input_gradients
        self.scope = Scope(model)
        ledger = Ledger() if observer is None else Ledger(observer.replaced)
        self.recorder = Recorder(ledger, self.scope, meta=meta, fold=fold, observer=observer)
        self.inputs: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self.parameters: dict[str, int] = {}
        self.leaves: list[Tensor] = []
        self.starts: list[tuple[Tensor, Tensor]] = []
        self.loss: int | None = None
        self.notes: list[str] = []
        if not input_gradients:
            self.notes.append("The model sets its input's requires_grad itself: no gradient of the input is known.")

    def _add_state(self) -> None:
        ledger = self.recorder.ledger
        for name, p in self.model.named_parameters(remove_duplicate=False):
            known = ledger.find(p)
            self.parameters[name] = ledger.add(p, "parameter", name=name) if known is None else known
        for name, b in self.model.named_buffers():
            ledger.add(b, "buffer", name=name)
        self._give_buffers()

    def _give_buffers(self) -> None:
        folder, standins = self.recorder.folder, self.recorder.standins
        if folder is None:
            return
        twins = {b: b for b in self.model.buffers()} if standins is None else standins.twins
        for real, held in twins.items():
            value = self.recorder.ledger.find(held)
            given = value is not None and self.recorder.ledger.values[value].kind == "buffer"
            if value is not None and given and not (real.is_meta or real.requires_grad):
                # On meta the model's own buffers are not written to.
                folder.give(value, real, copy=not self.meta)

    def _own(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the model's arguments as copies: a model may write into its input, and its gradient is wanted."""
        given = as_arguments(uncompiled(self.model), batch)
        args, kwargs = map_tensors(given[0], self._copy), map_tensors(given[1], self._copy)
        originals = [t for part in given for _, t in tensors(part, "input")]
        named = [*tensors(args, "input"), *tensors(kwargs, "input")]
        for (name, tensor), original, mask in zip(named, originals, _masks(originals), strict=True):
            self.inputs[name] = value = self.recorder.ledger.add(tensor, "input", name=name)
            data = _has_moments(original) and not mask
            if self.recorder.folder is not None and not (original.is_meta or data):
                self.recorder.folder.give(value, original)
            if self.recorder.observer is not None:
                self.recorder.observer.given(self.recorder.ledger.values[value], tensor)
            if tensor.requires_grad:
                self.recorder.watch(tensor, value)
        return args, kwargs

    def _copy(self, tensor: Tensor) -> Tensor:
        leaf = torch.empty_like(tensor, device="meta") if self.meta else _normal(tensor.detach())
        if leaf.is_floating_point() and self.input_gradients:
            leaf.requires_grad_()
            self.leaves.append(leaf)
        return leaf.clone()

    def _literals(self) -> AbstractContextManager[object]:
        return Literals(self.recorder.written_as, self.recorder.real) if self.meta else nullcontext()

    def forward(self, batch: Any, loss: Loss | None) -> None:
        self._add_state()
        args, kwargs = self._own(batch)
        try:
            with self.scope.watching(), self._literals(), self.recorder:
                output = uncompiled(self.model)(*args, **kwargs)
                self.recorder.flush()
        except Exception as error:
            raise forward_failure(error, self.scope.paths, type(self.model).__name__) from error
        found = [(f"output.{i}", t) for i, (_, t) in enumerate(tensors(output, "output"))]
        self.outputs = {name: self._id(t) for name, t in found}
        if not found:
            self.notes.append(f"The model returned no tensor that could be found in a {type(output).__name__}.")
        if loss is not None:
            self._start_from(loss, output)
        else:
            for name, tensor in found:
                self._start_at(name, tensor)

    def _id(self, tensor: Tensor) -> int:
        value = self.recorder.ledger.find(tensor)
        return self.recorder.bring(tensor) if value is None else value

    def _start_at(self, name: str, tensor: Tensor) -> None:
        if not tensor.is_floating_point() or not tensor.requires_grad:
            kind = str(tensor.dtype).removeprefix("torch.")
            self.notes.append(f"{name} ({kind}) is not differentiable: no gradient starts there.")
            return
        gradient = unit_gradient(tensor, seed=self.seed, name=name)
        self.recorder.ledger.add(gradient, "cotangent", name=name)
        self.starts.append((tensor, gradient))

    def _start_from(self, loss: Loss, output: Any) -> None:
        try:
            with self.scope.watching(), self.scope.loss(), self._literals(), self.recorder:
                value = loss(output)
                self.recorder.flush()
        except Exception as error:
            if isinstance(error.__cause__, NeedsValuesError) or isinstance(error, NeedsValuesError):
                raise forward_failure(error, self.scope.paths, "the loss") from error
            cure = "A loss takes the model's output alone, such as lambda output: criterion(output, target)."
            said = f"{type(error).__name__}: {error}"
            raise ModelError(f"The loss failed on the model's output: {said}. {cure}") from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError("loss", f"a function that returns {got}", "Return a differentiable scalar tensor.")
        start = torch.ones_like(value)
        self.loss = self._id(value)
        self.recorder.ledger.add(start, "cotangent", name="loss")
        self.starts.append((value, start))

    def backward(self) -> None:
        parameters = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        wanted = [*(p for _, p in parameters), *self.leaves]
        if not self.starts or not wanted:
            self.notes.append("No backward: no output depends on a parameter or input that takes a gradient.")
            return
        self.recorder.phase = "backward"
        heads, gradients = zip(*self.starts, strict=True)
        try:
            with self.scope.watching(), self.recorder:
                found = torch.autograd.grad(heads, wanted, gradients, allow_unused=True)
        except Exception as error:
            path = self.recorder.ops[-1].path if self.recorder.ops else None
            raise ModelError(f"The backward failed after {where(path)}: {type(error).__name__}: {error}") from error
        unused = []
        found_or_none: Sequence[Tensor | None] = found
        for (name, p), gradient in zip(parameters, found_or_none, strict=False):
            if gradient is None:
                unused.append(name)
            else:
                self.recorder.record_gradient(self._id(p), gradient)
        if unused:
            self.notes.append(f"No gradient reached (unused in this forward?): {', '.join(unused)}.")
        frozen = [n for n, p in self.model.named_parameters() if not p.requires_grad]
        if frozen:
            self.notes.append(f"Frozen, so without a gradient: {', '.join(frozen)}.")

    def trace(self) -> Trace:
        self.recorder.leave_numbers()
        names: dict[int, list[str]] = {}
        for name, value in self.parameters.items():
            names.setdefault(value, []).append(name)
        return Trace(
            ops=self.recorder.finished_ops(),
            values=tuple(self.recorder.ledger.values),
            inputs=self.inputs,
            outputs=self.outputs,
            parameters=self.parameters,
            gradients=self.recorder.gradients,
            tied={n: tuple(o for o in group if o != n) for group in names.values() if len(group) > 1 for n in group},
            modules=self.scope.types,
            training=self.model.training,
            device="meta" if self.meta else "real",
            loss=self.loss,
            took=self.recorder.took,
            notes=tuple(self.notes),
            folded=Folded() if self.recorder.folder is None else self.recorder.folder.folded(),
        )
