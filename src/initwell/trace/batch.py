"""Any batch a model takes, and any output it returns, as named tensors; and how to call the model with one."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from initwell.errors import ArgumentError


def map_tensors(structure: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """Rebuild a nest of tuples, lists, mappings and dataclasses with every tensor changed; other things stay.

    Args:
        structure: the nest.
        change: tensor → tensor.
        kind: of what is changed, where it is not tensors.
    """
    if isinstance(structure, kind):
        return change(structure)
    if isinstance(structure, PackedSequence):
        # Its other tensors are lengths and order, which PyTorch reads on the CPU.
        return structure._replace(data=map_tensors(structure.data, change, kind))
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(map_tensors(v, change, kind) for v in structure))
    if type(structure) in (tuple, list):
        return type(structure)(map_tensors(v, change, kind) for v in structure)
    if isinstance(structure, Mapping):
        return {k: map_tensors(v, change, kind) for k, v in structure.items()}
    if dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        found = copy.copy(structure)
        for f in dataclasses.fields(structure):
            # Past what forbids it to frozen ones: nobody else has this copy yet.
            object.__setattr__(found, f.name, map_tensors(getattr(structure, f.name), change, kind))
        return found
    return structure


def tensors(structure: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield (dotted name, tensor) of every tensor in a nest of sequences, mappings and dataclasses.

    >>> [n for n, _ in tensors({"logits": torch.zeros(1), "states": (torch.zeros(2),)}, "out")]
    ['out.logits', 'out.states.0']
    """
    if isinstance(structure, Tensor):
        yield name, structure
    elif isinstance(structure, Mapping):
        for key, value in structure.items():
            yield from tensors(value, f"{name}.{key}")
    elif isinstance(structure, (tuple, list)):
        for i, value in enumerate(structure):
            yield from tensors(value, f"{name}.{i}")
    elif dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        for f in dataclasses.fields(structure):
            yield from tensors(getattr(structure, f.name), f"{name}.{f.name}")


def as_arguments(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the (positional, keyword) arguments with which a batch is handed to a model.

    A plain tuple is positional arguments. A mapping is keyword arguments when the model's forward takes all of its
    keys, and one positional argument when it does not. Anything else is one positional argument.
    """
    if isinstance(batch, tuple) and not hasattr(batch, "_fields"):
        return batch, {}
    if isinstance(batch, Mapping) and _takes(model, batch):
        return (), {str(k): v for k, v in batch.items()}
    return (batch,), {}


def _takes(model: nn.Module, batch: Mapping[Any, Any]) -> bool:
    if not all(isinstance(k, str) for k in batch):
        return False
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return True
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return set(batch) <= named


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wrapped, or the model itself: a compiled graph hides its ops."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def call_model(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch: a tensor, a tuple, a dict, or anything that its forward takes."""
    inner = uncompiled(model)
    args, kwargs = as_arguments(inner, batch)
    return inner(*args, **kwargs)


def check_module(model: object) -> None:
    """Refuse what is no model.

    Raises:
        ArgumentError: not an ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        cure = "Pass a torch.nn.Module; wrap a function in one that holds its parameters."
        raise ArgumentError("model", f"a {type(model).__name__}", cure)


def check_batch(batch: Any, *, values: bool) -> None:
    """Refuse an empty batch, a sparse one and, where ``values`` can be looked at, one with NaN or infinite entries.

    Raises:
        ArgumentError: naming the tensor within the batch, and what to do.
    """
    for name, tensor in tensors(batch, "batch"):
        if tensor.layout is not torch.strided:
            kind = str(tensor.layout).removeprefix("torch.")
            raise ArgumentError(name, f"a tensor of layout {kind}", "Give it dense: tensor.to_dense().")
        if tensor.is_quantized or tensor.is_nested:
            cure = "dequantized: tensor.dequantize()" if tensor.is_quantized else "padded: tensor.to_padded_tensor(0.0)"
            raise ArgumentError(
                name, f"a {'quantized' if tensor.is_quantized else 'nested'} tensor", f"Give it {cure}."
            )
        if tensor.numel() == 0:
            raise ArgumentError(name, f"an empty tensor of shape {tuple(tensor.shape)}", "Give at least one sample.")
        if values and not tensor.is_meta and tensor.is_floating_point():
            # PyTorch does not ask numbers of 8 bits.
            bad = int((~torch.isfinite(tensor if tensor.itemsize > 1 else tensor.float())).sum())
            if bad:
                cure = "Clean or mask them first: statistics of such a batch would all be NaN."
                raise ArgumentError(name, f"{bad} NaN or infinite entries of {tensor.numel()}", cure)
