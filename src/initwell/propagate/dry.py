"""Building a model dry: no weights are allocated, and what its constructor would draw into them is followed.

PyTorch's layers, and whoever follows their custom, make a weight with ``torch.empty`` and fill it in place. Under a
dispatch mode the first is sent to the meta device, which allocates nothing; each filling is done once more on a
*shadow*, a few thousand numbers that stand for the weight's distribution: evenly spaced quantiles where it is drawn at
random, so that mean and standard deviation come out sharp. Tensors made in other ways (buffers, ``torch.zeros``, …)
stay real.
"""

import copy
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from initwell.errors import ArgumentError, InitwellError, ModelError
from initwell.records import Record, Row, TableRecord, plain
from initwell.trace.batch import check_module
from initwell.trace.keep import random_kept

_POINTS = 4096
_ALIKE = frozenset({"aten.clone", "aten._to_copy", "aten.mul", "aten.div", "aten.add", "aten.sub", "aten.neg"})


_NORMS = frozenset({"aten.norm", "aten.linalg_vector_norm"})
_FILLERS = frozenset({"_no_grad_trunc_normal_", "orthogonal_", "sparse_", "dirac_"})
_IS_META: Any = vars(torch._C.TensorBase)["is_meta"].__get__


@dataclass(frozen=True)
class Drawn(Record):
    """The first two moments of what would be drawn."""

    mean: float
    std: float


@dataclass(frozen=True)
class DrawnRow(Record):
    """One parameter that was not allocated.

    Attributes:
        parameter: its dotted name.
        shape: its shape.
        distribution: what the constructor would draw; None where that could not be followed.
        tied_to: other names of the same tensor.
    """

    parameter: str
    shape: tuple[int, ...]
    distribution: Drawn | None
    tied_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draws(TableRecord):
    """What a model's constructor would draw; ``predict`` takes it as its ``plan``."""

    rows: tuple[DrawnRow, ...]
    notes: tuple[str, ...] = ()

    def table_title(self) -> str:
        """Say what it is."""
        return f"Drawn by the constructor, not allocated: {len(self.rows)} parameters"

    def table_columns(self) -> Sequence[str]:
        """Name the columns."""
        return ("parameter", "shape", "mean", "std")

    def table_rows(self) -> Sequence[Row]:
        """Return one row a parameter."""
        return [
            {"parameter": r.parameter, "shape": r.shape, **(plain(r.distribution) if r.distribution else {})}
            for r in self.rows
        ]

    def table_notes(self) -> Sequence[str]:
        """Return the notes."""
        return self.notes


def dry(build: Callable[[], nn.Module]) -> tuple[nn.Module, Draws]:
    """Build a model without allocating its weights.

    Args:
        build: makes the model; a constructor, or a function around one.

    Returns:
        The model, its weights on the meta device, and what would have been drawn into them.

    Raises:
        ArgumentError: no function, or one that gives no model.
        ModelError: the constructor fails so, as one does that needs numbers of its weights.

    >>> model, draws = dry(lambda: nn.Linear(100, 20))
    >>> model.weight.device.type, round(draws.rows[0].distribution.std, 4)
    ('meta', 0.0577)
    """
    if not callable(build) or isinstance(build, nn.Module):
        cure = "Give a function that makes the model, such as lambda: Net()."
        raise ArgumentError("build", f"a {type(build).__name__}", cure)
    mode = _Dry()
    try:
        with random_kept(), _Skipped(mode), mode:
            model = build()
        check_module(model)
    except InitwellError:
        raise
    except Exception as error:
        raise ModelError(
            f"The model could not be built without its weights: {type(error).__name__}: {error}. "
            "Build it on a real device."
        ) from error
    names: dict[int, list[str]] = {}
    found = dict(model.named_parameters(remove_duplicate=False))
    for name, p in found.items():
        if p.is_meta:
            names.setdefault(id(p), []).append(name)
    rows = tuple(
        DrawnRow(first, tuple(found[first].shape), mode.drawn(found[first]), tuple(others))
        for first, *others in names.values()
    )
    return model, Draws(rows, _notes(rows, [name for name, b in model.named_buffers() if b.is_meta]))


def redrawn(module: nn.Module) -> dict[str, Drawn]:
    """Return what a module's own ``reset_parameters`` would draw into its weights on the meta device.

    Args:
        module: stays as it is: a copy of it is asked.

    Returns:
        Name → what would be drawn; without those that could not be followed, and nothing where it has no such method.

    >>> round(redrawn(nn.LSTM(3, 16, device="meta"))["weight_hh_l0"].std * 48**0.5, 3)
    1.0
    """
    method = next((name for name in ("reset_parameters", "_reset_parameters") if hasattr(module, name)), None)
    if method is None:
        return {}
    mode = _Dry()
    try:
        with random_kept(), _Skipped(mode), mode:
            twin = copy.deepcopy(module)
            getattr(twin, method)()
    except Exception:  # a method of the user's own: whatever it raises, what it would draw is not known
        return {}
    found = {name: mode.drawn(p) for name, p in twin.named_parameters(recurse=False) if p.is_meta}
    return {name: drawn for name, drawn in found.items() if drawn is not None}


def _notes(rows: Sequence[DrawnRow], buffers: Sequence[str]) -> tuple[str, ...]:
    lost = [row.parameter for row in rows if row.distribution is None]
    known = len(rows) - len(lost)
    notes = [f"No weights were allocated: {known} parameters count as the model's own constructor would draw them."]
    if lost:
        notes.append(f"What the constructor draws could not be followed for {_listed(lost)}.")
    if buffers:
        notes.append(f"Buffers without numbers: {_listed(buffers)}.")
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _quantiles() -> tuple[Tensor, Tensor]:
    """Return a uniform and a normal sample without chance: evenly spaced quantiles, of exact mean and variance."""
    even = (torch.arange(_POINTS, dtype=torch.float64) + 0.5) / _POINTS
    normal = torch.special.ndtri(even)
    return even, normal / normal.square().mean().sqrt()


class _Dry(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sends ``torch.empty`` to the meta device, and follows what is written there on shadows."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # As for the recorder: PyTorch's guard would import the whole compiler.
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._even, self._normal = _quantiles()
        # By the address of the storage, which is kept alive so that no other gets it.
        self._shadows: dict[int, tuple[Any, Tensor | None]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.name().replace("::", ".")
        if name.startswith("aten.empty.memory_format") and (kwargs.get("dtype") or torch.float32).is_floating_point:
            kwargs["device"] = torch.device("meta")
            kwargs.pop("pin_memory", None)
        out = func(*args, **kwargs)
        packet = ".".join(name.split(".")[:2])
        if isinstance(out, Tensor) and out.is_meta and out.is_floating_point():
            if packet.endswith("_") and args and isinstance(args[0], Tensor):
                self._store(args[0], self._written(packet, func, args, kwargs))
            elif packet in _NORMS:
                self._shadows[_key(out)] = (out.untyped_storage(), self._normed(args, out))
            elif packet in _ALIKE:
                self._shadows[_key(out)] = (out.untyped_storage(), self._same_on_shadow(func, args, kwargs))
        return out

    def filled(self, tensor: Tensor, filler: str, given: Mapping[str, Any]) -> None:
        """Do on the shadow what a filler of ``torch.nn.init`` skips on the meta device.

        Args:
            tensor: that it was called on.
            filler: its name.
            given: its arguments and other local names.
        """
        new = None
        if filler == "_no_grad_trunc_normal_":
            mean, std, low, high = (float(given[name]) for name in ("mean", "std", "a", "b"))
            edges = torch.special.ndtr(torch.tensor([(low - mean) / std, (high - mean) / std], dtype=torch.float64))
            new = torch.special.ndtri(edges[0] + self._even * (edges[1] - edges[0])) * std + mean
        elif filler == "orthogonal_":
            rows = tensor.shape[0]
            new = self._normal * float(given["gain"]) / math.sqrt(max(rows, tensor.numel() // rows))
        self._store(tensor, new)

    def drawn(self, tensor: Tensor) -> Drawn | None:
        """Return what a tensor holds; None where that is not known."""
        shadow = self._shadow(tensor)
        if shadow is None or not bool(torch.isfinite(shadow).all()):
            return None
        return Drawn(float(shadow.mean()), float(shadow.std(correction=0)))

    def _shadow(self, tensor: Tensor) -> Tensor | None:
        return self._shadows.get(_key(tensor), (None, None))[1]

    def _store(self, target: Tensor, new: Tensor | None) -> None:
        old, share = self._shadow(target), _share(target)
        if share < 1 and new is not None:
            new = _mixed(old, new, share)
        self._shadows[_key(target)] = (target.untyped_storage(), new)

    def _written(self, packet: str, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        if packet == "aten.normal_":
            mean, std = ([*args[1:], 0.0, 1.0][:2]) if len(args) != 2 else (args[1], 1.0)
            return self._normal * float(kwargs.get("std", std)) + float(kwargs.get("mean", mean))
        if packet == "aten.uniform_":
            low = float(args[1] if len(args) > 1 else kwargs.get("from", 0.0))
            high = float(args[2] if len(args) > 2 else kwargs.get("to", 1.0))
            return self._even * (high - low) + low
        if packet == "aten.copy_":
            return self._copied(args[1])
        if packet in ("aten.zero_", "aten.fill_") and not any(_many(a) for a in args[1:]):
            blank = torch.zeros(_POINTS, dtype=torch.float64)
            return func(blank, *args[1:], **kwargs)  # type: ignore[no-any-return]
        return self._same_on_shadow(func, args, kwargs)

    def _normed(self, args: Any, out: Tensor) -> Tensor | None:
        """Return Euclidean norms, as weight norm takes them of what was drawn: next to √(n E[x²]), n entries each."""
        shadow, power = self._shadow(args[0]), args[1] if len(args) > 1 else 2
        if shadow is None or power != 2:
            return None
        size = math.sqrt(float(shadow.square().mean()) * args[0].numel() / max(out.numel(), 1))
        return torch.full((_POINTS,), size, dtype=torch.float64)

    def _copied(self, source: Tensor) -> Tensor | None:
        if source.is_meta:
            return self._shadow(source)
        places = torch.linspace(0, source.numel() - 1, _POINTS, dtype=torch.float64).round().long()
        return source.detach().double().flatten().sort().values[places] if source.numel() else None

    def _same_on_shadow(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        shadow = self._shadow(args[0]) if args and isinstance(args[0], Tensor) else None
        if shadow is None or any(_many(a) for a in (*args[1:], *kwargs.values())):
            return None
        kept = {k: v for k, v in kwargs.items() if k not in ("device", "dtype", "layout", "pin_memory")}
        try:
            return func(shadow.clone(), *args[1:], **kept)  # type: ignore[no-any-return]
        except (RuntimeError, NotImplementedError, TypeError):
            return None


class _Skipped(TorchFunctionMode):
    """Notices the fillers of ``torch.nn.init`` that ask whether a tensor is on the meta device, and then do nothing."""

    def __init__(self, mode: _Dry) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func == _IS_META and found:
            # Whoever imported the filler, and by whatever name, this is the frame in which it runs.
            frame = sys._getframe(1)
            if frame.f_code.co_filename == nn.init.__file__ and frame.f_code.co_name in _FILLERS:
                self._mode.filled(args[0], frame.f_code.co_name, frame.f_locals)
        return found


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _share(tensor: Tensor) -> float:
    """Return which share of its storage a tensor shows."""
    whole = tensor.untyped_storage().nbytes() // max(tensor.element_size(), 1)
    return tensor.numel() / whole if whole else 1.0


def _many(argument: Any) -> bool:
    return isinstance(argument, Tensor) and (argument.numel() > 1 or argument.is_meta)


def _mixed(old: Tensor | None, new: Tensor, share: float) -> Tensor | None:
    """Return a shadow of which a share is new; None where the rest is unknown and no trifle."""
    count = round(share * _POINTS)
    if old is None:
        return new if share > 1 - 1 / math.sqrt(_POINTS) else None
    places = torch.linspace(0, _POINTS - 1, count, dtype=torch.float64).round().long()
    found = old.clone()
    found[places] = new[places]
    return found
