"""A walk without numbers: meta tensors stand in for real ones, and numbers that are known lie beside them.

Where a real tensor meets a meta one, a meta twin takes its place. What models read of tensors, such as lengths,
positions and masks, is answered from the ``Folder``, which knows what depends on nothing random.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from initwell.trace.batch import map_tensors
from initwell.trace.failure import NeedsValuesError, misses_numbers
from initwell.trace.fold import Folder
from initwell.trace.ledger import Ledger
from initwell.trace.shapes import shapers

aten = torch.ops.aten
_PACKS = aten._pack_padded_sequence.default


class Standins:
    """Turns the calls of a model into calls that need no numbers."""

    def __init__(self, ledger: Ledger, folder: Folder, bring: Callable[[Tensor], int]) -> None:
        """Start without twins.

        Args:
            ledger: learns of each twin that it stands for the same value as its original.
            folder: what is known.
            bring: gives a tensor that nobody has seen before a value.
        """
        self.twins: Any = WeakTensorKeyDictionary()
        self._ledger, self._folder, self._bring = ledger, folder, bring
        self._shapers = shapers()

    def moved(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
        """Return what a mere move from or to the meta device gives, which makes no new value; None for other ops."""
        if func is not aten._to_copy.default:
            return None
        tensor, device = args[0], kwargs.get("device")
        if device is None or kwargs.get("dtype") not in (None, tensor.dtype) or tensor.requires_grad:
            return None
        if torch.device(device).type == "meta":
            return None if tensor.is_meta else self._twin(tensor)
        return self.real(tensor) if tensor.is_meta else None

    def prepared(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """Return an op's arguments with twins where they are needed."""
        if func is _PACKS:
            # Lengths are read on the CPU, whatever they are the lengths of.
            lengths = self.real(args[1]) if args[1].is_meta else args[1]
            return (self._twin(args[0]), args[1] if lengths is None else lengths, *args[2:]), kwargs
        found = tensors_in((args, kwargs))
        on_meta = sum(t.is_meta for t in found)
        if on_meta in (0, len(found)) and not any(self._stale(t) for t in found):
            return args, kwargs
        return map_tensors(args, self._twin), map_tensors(kwargs, self._twin)

    def run(self, func: Any, args: Any, kwargs: Mapping[str, Any], arguments: Mapping[str, Any], inputs: Any) -> Any:
        """Run an op.

        Args:
            func: the op.
            args: prepared.
            kwargs: prepared.
            arguments: the same as an Op has them.
            inputs: ids of the values among them.

        Raises:
            NeedsValuesError: its result depends on numbers that are not there.
        """
        if not any(t.is_meta for t in tensors_in((args, kwargs))):
            return func(*args, **kwargs)
        if func is aten.index.Tensor:
            args = args[0], self._picked(args[1])
        elif func is aten.masked_select.default and (mask := self._known(args[1])) is not None:
            shape = aten.broadcast_tensors([args[0], args[1]])[0].shape
            return torch.empty(int(mask.expand(shape).sum()), dtype=args[0].dtype, device="meta")
        shaper = self._shapers.get(func)
        plain = None if shaper is None or kwargs.get("dtype") is not None else shaper(*args)
        if plain is not None:
            return plain
        try:
            return func(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            # Ops whose result depends on the numbers have no meta kernel, or say that they cannot be called on one.
            if not isinstance(error, NotImplementedError) and not misses_numbers(error):
                raise
            answer = self._folder.answer(func, arguments, inputs)
            if answer is None:
                raise NeedsValuesError(f"{func} has no result on meta tensors") from error
            return answer if func is aten._to_copy.default else map_tensors(answer, _on_meta)

    def _picked(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return indices in which known masks are written as the places of their ones, of which there are so many."""
        places: list[Tensor | None] = []
        for mask in indices:
            known = self._known(mask) if mask is not None and mask.dtype is torch.bool else None
            places += [mask] if known is None else known.nonzero().to("meta").unbind(1)
        return places

    def _known(self, tensor: Tensor) -> Tensor | None:
        value = self._ledger.find(tensor)
        return self._folder.number(self._bring(tensor) if value is None else value)

    def real(self, tensor: Tensor) -> Tensor | None:
        """Return a real tensor of the same value as a meta one; None where its numbers are not known."""
        known = self._known(tensor)
        if known is None:
            return None
        real = known.clone()
        self._ledger.same(real, tensor)
        self.twins[real] = tensor
        return real

    def _stale(self, tensor: Tensor) -> bool:
        memory = None if tensor.is_meta else self._ledger.memory(tensor)
        return memory is not None and memory.stale

    def _twin(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        twin: Tensor | None = self.twins.get(tensor)
        if twin is None:
            twin = _on_meta(tensor)
            self.twins[tensor] = twin
            if self._ledger.find(tensor) is None:
                self._bring(tensor)
            self._ledger.same(twin, tensor)
        return twin


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


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
