"""Numbers written into a forward, as in ``torch.tensor([0.5], device=x.device)``: on meta they would be lost."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Function → place and name of its data among the arguments.
_MAKERS: dict[Any, tuple[int, str]] = {
    torch.tensor: (0, "data"),
    torch.as_tensor: (0, "data"),
    torch.asarray: (0, "obj"),
    Tensor.new_tensor: (1, "data"),
}
_INDEXED = (Tensor.__getitem__, Tensor.__setitem__)


class Literals(TorchFunctionMode):
    """Tells of every meta tensor that is made from plain numbers what these numbers are."""

    def __init__(self, told: Callable[[Tensor, Any], None]) -> None:
        """``told`` gets the meta tensor and the numbers, plain or nested in lists."""
        super().__init__()
        self._told = told

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, and look at what it made if it makes tensors of numbers."""
        kwargs = kwargs or {}
        if func in _INDEXED and args[0].is_meta:
            args = args[0], _as_tensors(args[1]), *args[2:]
        out = func(*args, **kwargs)
        place = _MAKERS.get(func)
        if place is not None and out.is_meta:
            data = args[place[0]] if len(args) > place[0] else kwargs[place[1]]
            if not isinstance(data, Tensor):
                self._told(out, data)
        return out


def _as_tensors(index: Any) -> Any:
    """Write lists of numbers within an index as the real tensors that PyTorch would make of them, unseen."""
    if isinstance(index, tuple):
        return tuple(_as_tensors(part) for part in index)
    if isinstance(index, list) and index and all(isinstance(n, (bool, int)) for n in tree_leaves(index)):
        return torch.tensor(index, device="cpu")
    return torch.from_numpy(index) if isinstance(index, np.ndarray) else index
