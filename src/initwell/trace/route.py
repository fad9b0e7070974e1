"""The route through PyTorch that meta and real tensors share, on every device, so that two walks line up op by op."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from initwell.trace.recurrent import replacements

# Ops that PyTorch runs whole on real tensors and not at all, or in parts, on meta ones → the place of the argument
# whose shape their result has.
_SHAPED_LIKE: Mapping[str, int] = {
    "mish_backward": 1,
    "fractional_max_pool3d_backward": 1,
    "multi_margin_loss_backward": 1,
    "multilabel_margin_loss_backward": 1,
    "_logcumsumexp": 0,
}


@contextmanager
def same_route() -> Iterator[None]:
    """Take that route while inside: attention unfused, recurrent layers step by step, nothing fused or compiled.

    A reentrant checkpoint, whose backward cannot be asked for the gradients of given tensors, is an ordinary call.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        stack.enter_context(_replaced(torch._VF, replacements()))
        stack.enter_context(_replaced(F, {"one_hot": _one_hot}))
        if "torch.utils.checkpoint" in sys.modules:
            function = sys.modules["torch.utils.checkpoint"].CheckpointFunction
            stack.enter_context(_replaced(function, {"apply": staticmethod(_called)}))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for context in (sdpa_kernel(SDPBackend.MATH), torch.inference_mode(False), torch.enable_grad()):
            stack.enter_context(context)
        yield


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    # PyTorch compares on some devices, and scatters on others.
    if not tensor.is_meta:
        with torch._C._DisableTorchDispatch():
            torch._C._nn.one_hot(tensor, num_classes)  # it refuses what is none of the classes
    classes = torch.arange(int(tensor.max()) + 1 if num_classes == -1 else num_classes, device=tensor.device)
    if num_classes != -1:
        classes.index_select(0, tensor.flatten())  # a look-up among the classes, so that the walk knows of it on meta
    return (tensor.unsqueeze(-1) == classes).long()


def _called(function: Callable[..., Any], preserve_rng: bool, *args: Any) -> Any:
    return function(*args)


@contextmanager
def _replaced(owner: Any, new: Mapping[str, Any]) -> Iterator[None]:
    """Set attributes, and put the owner's own back on leaving; those that it only inherited show through again."""
    own = {name: vars(owner)[name] for name in new if name in vars(owner)}
    try:
        for name, value in new.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in new:
            if name in own:
                setattr(owner, name, own[name])
            else:
                delattr(owner, name)


@contextmanager
def shapes_completed() -> Iterator[None]:
    """Give the ops that PyTorch has no meta kernel for, though their shape is plain, one while inside."""
    library = torch._C._dispatch_library("IMPL", "aten", "Meta", __file__, 0)
    try:
        for name, place in _SHAPED_LIKE.items():
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
                library.impl(name, "Meta", _like(place))
        yield
    finally:
        library.reset()


def _like(place: int) -> Callable[..., Tensor]:
    def kernel(*args: Any) -> Tensor:
        return torch.empty_like(args[place])

    return kernel
