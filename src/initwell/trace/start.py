"""What a walk starts from: meta twins of a model's state, and the gradient at its outputs."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from initwell.errors import ModelError
from initwell.initializers.distributions import Normal
from initwell.sampling.fill import fill


@contextmanager
def on_meta(model: nn.Module, twins: MutableMapping[Tensor, Tensor]) -> Iterator[None]:
    """Put meta twins in the place of a model's parameters and buffers while inside; nothing is allocated.

    Args:
        model: any module.
        twins: is filled with tensor → its twin, so that a reference kept elsewhere is met by the same twin.
    """
    stores: list[dict[str, Any]] = [s for m in model.modules() for s in (m._parameters, m._buffers)]
    saved = [(store, n, t) for store in stores for n, t in store.items() if t is not None]
    try:
        for store, name, tensor in saved:
            if tensor not in twins:
                twins[tensor] = _twin(name, tensor)
            store[name] = twins[tensor]
        yield
    finally:
        for store, name, tensor in saved:
            store[name] = tensor


def _twin(name: str, tensor: Tensor) -> Tensor:
    try:
        twin = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    except (NotImplementedError, RuntimeError) as error:
        said = str(error).partition(".")[0]
        raise ModelError(f"{name!r} cannot lie on the meta device: {type(error).__name__}: {said}") from None
    if not isinstance(tensor, nn.Parameter):
        return twin
    parameter = nn.Parameter(twin, tensor.requires_grad)
    parameter._backward_hooks = tensor._backward_hooks  # what a hook makes of its gradient is its gradient
    return parameter


def unit_gradient(tensor: Tensor, *, seed: int, name: str) -> Tensor:
    """Draw an independent N(0, 1) gradient for an output from initwell's own generator.

    Args:
        tensor: the output; the gradient has its shape, dtype and device.
        seed: of the draw.
        name: of the output, "output.0"; two outputs get independent gradients.
    """
    # As the output lies in memory, transposed or not: the backward's copies then are the same on meta and real tensors.
    gradient = torch.empty_like(tensor, requires_grad=False)
    if tensor.is_meta:
        return gradient
    drawn = fill(Normal(0.0, 1.0), tuple(tensor.shape), seed=seed, name=name)
    return gradient.copy_(torch.from_numpy(drawn))
