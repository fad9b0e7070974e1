"""Which axis of a weight is which, and the true fans that follow from it."""

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from initwell.errors import ArgumentError, ShapeError, UnknownNameError
from initwell.records import Record

KINDS = ("linear", "conv", "conv_transpose", "bilinear", "embedding", "recurrent", "vector")
_STRIDED = ("conv", "conv_transpose")


@dataclass(frozen=True)
class Layout(Record):
    """A weight's shape and the meaning of its axes.

    Args:
        shape: the tensor's shape, as PyTorch stores it; all axes besides the in and the out axis are the kernel's.
        kind: one of ``KINDS``.
        in_axis: the axis that inputs are summed along: 1, but 0 for transposed convolutions and (in, out) weights.
        out_axis: the axis that counts outputs: 0, but 1 for those.
        groups: groups of a convolution; its in axis, of a transposed one the out axis, counts those of one group.
        stride: a convolution's stride per kernel axis; () for 1.
        parts: matrices stacked along the out axis: 3 for an attention's packed in_proj, 4 for an LSTM's gates.

    Raises:
        ShapeError: the axes, groups, stride or parts do not fit the shape.
        UnknownNameError: an unknown kind.

    Source: He et al. 2015, eqs. 6 to 14, count the terms of one response and of one gradient. With groups g, stride s
        and kernel area k² these are (in/g)·k² and (out/g)·k²/s²; transposed, (in/g)·k²/s² and (out/g)·k².

    >>> layout = Layout((16, 4, 3, 3), "conv", groups=2, stride=(2, 2))
    >>> layout.fan_in, layout.fan_out
    (36.0, 18.0)
    """

    shape: tuple[int, ...]
    kind: str = "linear"
    in_axis: int = 1
    out_axis: int = 0
    groups: int = 1
    stride: tuple[int, ...] = ()
    parts: int = 1

    def __post_init__(self) -> None:
        """Refuse what does not fit together, so that a Layout that exists has meaning."""
        if self.kind not in KINDS:
            raise UnknownNameError.among("kind", self.kind, KINDS)
        object.__setattr__(self, "shape", _whole("shape", self.shape))
        object.__setattr__(self, "stride", _whole("stride", self.stride))
        if any(n < 0 for n in self.shape):
            raise ShapeError("shape", self.shape, "Give lengths of 0 or more.")
        if self.groups < 1 or self.parts < 1:
            raise ArgumentError("groups, parts", (self.groups, self.parts), "Give whole numbers of 1 or more.")
        if self.kind != "vector":
            self._check_axes()
            self._check_split()

    def _check_axes(self) -> None:
        if len(self.shape) < 2:
            cure = "A weight has an in and an out axis; use kind='vector' for biases and scales."
            raise ShapeError("shape", self.shape, cure)
        axes = range(len(self.shape))
        if self.in_axis not in axes or self.out_axis not in axes or self.in_axis == self.out_axis:
            got = f"in_axis {self.in_axis}, out_axis {self.out_axis} for shape {self.shape}"
            raise ShapeError("in_axis, out_axis", got, f"Give two different axes of 0 to {len(self.shape) - 1}.")

    def _check_split(self) -> None:
        if self.stride and (self.kind not in _STRIDED or len(self.stride) != len(self.shape) - 2):
            cure = "Only convolutions have a stride: one number for each kernel axis."
            raise ShapeError("stride", f"{self.stride} for {self.kind} of shape {self.shape}", cure)
        if any(s < 1 for s in self.stride):
            raise ArgumentError("stride", self.stride, "Give whole numbers of 1 or more.")
        if self.groups > 1 and self.kind not in _STRIDED:
            raise ArgumentError(
                "groups", self.groups, f"A {self.kind} weight has no groups; use parts for packed matrices."
            )
        split_axis = self.in_axis if self.kind == "conv_transpose" else self.out_axis
        if self.shape[split_axis] % self.groups:
            got = f"{self.groups} for {self.shape[split_axis]} channels of shape {self.shape}"
            raise ShapeError("groups", got, "The number of channels must be a multiple of the groups.")
        if self.shape[self.out_axis] % self.parts:
            got = f"{self.parts} for {self.shape[self.out_axis]} outputs of shape {self.shape}"
            raise ShapeError("parts", got, "The number of outputs must be a multiple of the parts.")

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> "Layout":
        """Take a plain tensor as PyTorch would: (out, in), (out, in, kernel…), or a vector.

        Args:
            shape: the tensor's shape.

        Returns:
            The layout; one with fewer than two axes is a vector, and has no fan.

        >>> Layout.of((8, 4, 3)).fan_in
        12.0
        """
        if len(shape) < 2:
            return cls(tuple(shape), "vector", 0, 0)
        return cls(tuple(shape), "linear" if len(shape) == 2 else "conv")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Layout":
        """Rebuild a layout from what ``to_dict`` gave.

        Raises:
            ArgumentError: a key is missing or unknown, or a value is of another type.
        """
        known = {f.name: f.type for f in fields(cls)}
        if set(data) != set(known):
            raise ArgumentError("layout", sorted(data), f"It must have exactly the keys {', '.join(sorted(known))}.")
        for name, value in data.items():
            if not _fits(value, known[name]):
                raise ArgumentError(f"layout.{name}", value, "Give a layout as to_dict() wrote it.")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in data.items()}
        return cls(**values)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Lengths of the axes that are neither the in nor the out axis; () for a vector."""
        if self.kind == "vector":
            return ()
        return tuple(n for axis, n in enumerate(self.shape) if axis not in (self.in_axis, self.out_axis))

    @property
    def receptive_field(self) -> int:
        """Number of kernel positions, 1 for a matrix."""
        return math.prod(self.kernel)

    @property
    def fan_in(self) -> float:
        """True forward fan: the mean number of terms that are summed to one output.

        Raises:
            ShapeError: the shape has no fan.
        """
        self._need_fan()
        if self.kind == "embedding":
            return 1.0  # one row is looked up: the input is one-hot
        terms = self.shape[self.in_axis] * self.receptive_field
        if self.kind == "conv_transpose":
            return terms / self.groups / math.prod(self.stride)
        return float(terms)

    @property
    def fan_out(self) -> float:
        """True backward fan: the mean number of terms that are summed to the gradient of one input.

        Of a bilinear form it is that of the input that ``in_axis`` names.

        Raises:
            ShapeError: the shape has no fan.
        """
        self._need_fan()
        if self.kind == "embedding":
            return float(self.shape[self.out_axis])
        terms = self.shape[self.out_axis] * self.receptive_field
        if self.kind == "conv_transpose":
            return float(terms)
        return terms / self.groups / self.parts / math.prod(self.stride)

    def _need_fan(self) -> None:
        if self.kind == "vector" or self.size == 0:
            why = "is empty" if self.size == 0 else "is a vector, and sums over no inputs"
            cure = "Use a rule without a fan, such as constant or normal(std=...), for it."
            raise ShapeError("shape", f"{self.shape}, which {why}, so that it has no fan", cure)

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Shape (matrices, outputs, inputs·kernel) of the independent matrices: one per group and packed part."""
        if self.kind == "vector":
            return (1, self.size, 1)
        count = self.groups * self.parts
        columns = self.shape[self.in_axis] * self.receptive_field
        rows = self.shape[self.out_axis]
        if self.kind == "conv_transpose":
            return (count, rows // self.parts, columns // self.groups)
        return (count, rows // count, columns)

    def from_blocks(self, blocks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Put the independent matrices into the tensor.

        Args:
            blocks: (matrices, outputs, inputs·kernel), of the shape that ``blocks`` tells.

        Returns:
            The tensor, of shape ``shape``.
        """
        if self.kind == "vector":
            return blocks.reshape(self.shape)
        count, rows, _ = self.blocks
        if self.kind == "conv_transpose" and self.groups > 1:
            per_group = self.shape[self.in_axis] // self.groups
            split = blocks.reshape(self.groups, self.parts * rows, per_group, *self.kernel)
            tensor = np.moveaxis(split, 2, 1).reshape(self.shape[self.in_axis], self.shape[self.out_axis], *self.kernel)
            return np.moveaxis(tensor, (0, 1), (self.in_axis, self.out_axis))
        tensor = blocks.reshape(count * rows, self.shape[self.in_axis], *self.kernel)
        return np.moveaxis(tensor, (0, 1), (self.out_axis, self.in_axis))


def _whole(argument: str, lengths: Iterable[int]) -> tuple[int, ...]:
    try:
        return tuple(operator.index(n) for n in lengths)
    except TypeError as error:
        raise ArgumentError(argument, repr(lengths), "Give whole numbers, such as (64, 3, 3, 3).") from error


def _fits(value: object, kind: object) -> bool:
    if kind is str:
        return isinstance(value, str)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, (list, tuple)) and all(_fits(item, int) for item in value)
