"""Numbers written into a forward, as in ``torch.tensor([0.5], device=x.device)``: on meta they would be lost."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Function → place and name of its data among the arguments.
_MAKERS: dict[Any, tuple[int, str]] = {
    torch.tensor: (0, "data"),
    torch.as_tensor: (0, "data"),
    torch.asarray: (0, "obj"),
    Tensor.new_tensor: (1, "data"),
}


class Literals(TorchFunctionMode):
    """Tells of every floating meta tensor that is made from plain numbers what these are; whole numbers stay real."""

    def __init__(self, told: Callable[[Tensor, Any], None]) -> None:
        """``told`` gets the meta tensor and the numbers, plain or nested in lists."""
        super().__init__()
        self._told = told

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, and look at what it made if it makes tensors of numbers."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        place = _MAKERS.get(func)
        if place is not None and out.is_meta:
            data = args[place[0]] if len(args) > place[0] else kwargs[place[1]]
            if isinstance(data, Tensor):
                return out
            if not (out.is_floating_point() or out.is_complex()):
                return torch.tensor(data, dtype=out.dtype, device="cpu")
            self._told(out, data)
        return out
