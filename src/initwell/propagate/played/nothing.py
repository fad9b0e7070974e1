"""What is 0 for certain of a loss that is run on drawn numbers: of a margin that no output is near, of a term times 0.

A margin that one output in thousands is within leaves 0 in every draw, too, and its gradient is not 0: that is not to
be known of draws. So 0 is certain where it stays when every entry is four times as far from its average over all draws
as it was in each; of Gaussian numbers that is some eleven standard deviations. Assumption: no other entries have tails
so heavy that it is not rare beyond that.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from initwell.propagate.given.known import Known
from initwell.trace.trace import Op

_FURTHER = 4.0
# Fewer draws say too little of an entry's own average.
_FEW = 16

Numbers = Mapping[int, Sequence[Tensor]]


class Nothing:
    """Values of a loss that are 0 whatever is drawn, and comparisons that always come out as they do."""

    def __init__(self, values: Known, run: Callable[[Op, Numbers], list[list[Tensor]]]) -> None:
        """Begin with none.

        Args:
            values: what has real numbers.
            run: runs an op on numbers of its inputs, for each draw.
        """
        self._values, self._run = values, run
        self.certain = set[int]()

    def look(self, op: Op, numbers: Numbers) -> None:
        """Find which values that an op made are 0, or of a comparison the same, in each draw and would be in any other.

        Args:
            op: that was run.
            numbers: of what it made, and of all that it reads.
        """
        for value in op.outputs:
            made = numbers[value]
            bare = not made[0].is_floating_point() or not any(bool(t.any()) for t in made)
            if bare and self._holds(op, value, numbers):
                self.certain.add(value)

    def _holds(self, op: Op, value: int, numbers: Numbers) -> bool:
        read = [i for i in op.inputs if i not in self._values]
        if all(i in self.certain for i in read):
            return True
        left = [i for i in read if i not in self.certain]
        if op.mutates or any(self._is_left_open(numbers[i]) for i in left):
            return False
        further = {i: _further(numbers[i]) if i in left else numbers[i] for i in op.inputs}
        others = [each[op.outputs.index(value)] for each in self._run(op, further)]
        return all(torch.equal(one, two) for one, two in zip(numbers[value], others, strict=True))

    def _is_left_open(self, tensors: Sequence[Tensor]) -> bool:
        """Whether it may be otherwise in another draw, though these do not show how far that is."""
        return not tensors[0].is_floating_point() or not any(bool(t.any()) for t in tensors)


def _further(tensors: Sequence[Tensor]) -> list[Tensor]:
    whole = torch.stack(list(tensors))
    mean = whole.mean(0, keepdim=True) if len(tensors) >= _FEW else whole.mean()
    return [*(mean + _FURTHER * (whole - mean))]
