"""A walk without numbers: meta tensors stand in for real ones, and what is whole stays real.

Floating tensors are shapes only. Integers and booleans, which are lengths, positions and masks, stay what they are:
they are small, and models look at them. Where a real tensor meets a meta one, a meta twin takes its place.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from initwell.trace.batch import map_tensors
from initwell.trace.failure import NeedsValuesError
from initwell.trace.ledger import Ledger
from initwell.trace.shapes import shapers

aten = torch.ops.aten
_COUNTS = (aten.arange.default, aten.arange.start, aten.arange.start_step)
_FILLED = (aten.zeros.default, aten.full.default, aten.scalar_tensor.default, aten.eye.default)
_MAKES_OR_MOVES = frozenset((aten._to_copy.default, aten.ones.default, *_COUNTS, *_FILLED))
# So many entries a mask of floating ones may have.
_MASK = 2**16
# Lengths are read on the CPU, whatever they are the lengths of.
_PACKS = "aten::_pack_padded_sequence"


class Standins:
    """Turns the calls of a model into calls that need no numbers."""

    def __init__(self, ledger: Ledger, bring: Callable[[Tensor], object]) -> None:
        """Start without twins.

        Args:
            ledger: learns of each twin that it stands for the same value as its original.
            bring: gives a tensor that nobody has seen before a value.
        """
        self.twins: Any = WeakTensorKeyDictionary()
        self._ledger, self._bring = ledger, bring
        self._shapers = shapers()

    def prepared(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]] | None:
        """Return an op's arguments with twins where they are needed; None where it would only move its first away."""
        if func in _MAKES_OR_MOVES and _stays_real(func, args, kwargs):
            kwargs = {name: value for name, value in kwargs.items() if name != "device"}
            if func is aten._to_copy.default and kwargs.get("dtype") in (None, args[0].dtype):
                return None
        found = tensors_in((args, kwargs))
        on_meta = sum(t.is_meta for t in found)
        if on_meta in (0, len(found)) and not any(self._unknown(t) for t in found):
            return args, kwargs
        change = self._floating_twin if func.name().startswith(_PACKS) else self._twin
        return map_tensors(args, change), map_tensors(kwargs, change)

    def run(self, func: Any, given: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Run an op.

        Args:
            func: the op.
            given: its positional arguments before they were prepared.
            args: after.
            kwargs: prepared.

        Raises:
            NeedsValuesError: its result depends on numbers that are not there.
        """
        if not any(t.is_meta for t in tensors_in((args, kwargs))):
            return func(*args, **kwargs)
        if func is aten.index.Tensor:
            args = args[0], self._picked(given[1], args[1])
        shaper = self._shapers.get(func)
        plain = None if shaper is None or kwargs.get("dtype") is not None else shaper(*args)
        if plain is not None:
            return plain
        try:
            return func(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            # Ops whose result depends on the numbers have no meta kernel, or say that they cannot be called on one.
            if isinstance(error, NotImplementedError) or "meta tensor" in str(error):
                raise NeedsValuesError(f"{func} has no result on meta tensors") from error
            raise

    def _picked(self, given: Any, twins: Any) -> list[Tensor | None]:
        """Return indices in which known masks are written as the places of their ones, of which there are so many."""
        places: list[Tensor | None] = []
        for mask, twin in zip(given, twins, strict=True):
            known = mask is not None and not mask.is_meta and not self._unknown(mask)
            if known and mask.dtype is torch.bool:
                places += mask.nonzero().to("meta").unbind(1)
            else:
                places.append(twin)
        return places

    def _unknown(self, tensor: Tensor) -> bool:
        memory = None if tensor.is_meta else self._ledger.memory(tensor)
        return memory is not None and memory.unknown

    def _floating_twin(self, tensor: Tensor) -> Tensor:
        return self._twin(tensor) if tensor.is_floating_point() else tensor

    def _twin(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        twin: Tensor | None = self.twins.get(tensor)
        if twin is None:
            twin = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
            self.twins[tensor] = twin
            if self._ledger.find(tensor) is None:
                self._bring(tensor)
            self._ledger.same(twin, tensor)
        return twin


def _stays_real(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether what is put on the meta device is a mask or whole numbers, and could as well stay where it is."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    if device is None or torch.device(device).type != "meta":
        return False
    if func is aten._to_copy.default:
        real: bool = not args[0].is_meta
        return real and not (dtype or args[0].dtype).is_floating_point
    if func is aten.ones.default:
        return len(args[0]) > 1 and math.prod(args[0]) <= _MASK
    if dtype is None:
        return func in _COUNTS and all(isinstance(a, int) for a in args)
    return not dtype.is_floating_point


def tensors_in(structure: Any) -> list[Tensor]:
    """Return the tensors among an op's arguments or results, in order.

    >>> len(tensors_in(([torch.zeros(1), None], {"weight": torch.zeros(2)}, 3)))
    2
    """
    found: list[Tensor] = []
    _collect(structure, found)
    return found


def _collect(structure: Any, found: list[Tensor]) -> None:
    # Ops take lists, tuples and, higher-order ones, dicts; PyTorch's own walk over any nest is many times slower.
    if isinstance(structure, Tensor):
        found.append(structure)
    elif isinstance(structure, (list, tuple)):
        for part in structure:
            _collect(part, found)
    elif isinstance(structure, dict):
        for part in structure.values():
            _collect(part, found)
