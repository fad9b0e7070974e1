"""Where samples and units are: a tensor that carries its own sample and unit number says what is true."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initwell.measurement.axes import AxisTracker
from initwell.trace.recorder import record
from initwell.trace.trace import Op, Value

N, T, C = 3, 4, 6


class Marks:
    """Checks at every value that shows one of the marked entries alone."""

    def __init__(self) -> None:
        self.tracker = AxisTracker()
        self.seen: list[tuple[str, list[Tensor]]] = []

    def restarted(self) -> None:
        raise AssertionError("nothing here needs a second walk")

    def given(self, value: Value, tensor: Tensor) -> None:
        self.tracker.given(value)

    def replaced(self, old: int, new: int) -> None:
        self.tracker.replaced(old, new)

    def value(self, value: Value, op: Op, tensor: Tensor) -> None:
        self.tracker.made(value, op)
        axis = self.tracker.samples(value.id)
        if axis is not None:
            self.seen.append((op.packet, [s.detach().clone() for s in axis.split(tensor).unbind(1)]))

    def gradient(self, value: int, tensor: Tensor) -> None:
        pass


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda x: x.transpose(0, 1) * 1,
    "permute": lambda x: x.permute(2, 0, 1) * 1,
    "flatten": lambda x: x.reshape(N * T, C) * 1,
    "heads": lambda x: x.reshape(N, T, 2, 3).transpose(1, 2).reshape(N * 2, T, 3) * 1,
    "fold-after-transpose": lambda x: x.transpose(0, 1).reshape(T * N, C) * 1,
    "fold-and-transpose": lambda x: x.reshape(N * T, C).t() * 1,
    "unsqueeze": lambda x: x.unsqueeze(0).unsqueeze(2).expand(2, N, 5, T, C) * 1,
    "squeeze": lambda x: (x[:, :1].squeeze(1) * 1).squeeze(0) * 1,
    "select": lambda x: x.transpose(0, 1)[1] * 1,
    "unbind": lambda x: x.unbind(1)[2] * 1,
    "stack": lambda x: torch.stack((x, x), 1) * 1,
    "cat": lambda x: torch.cat((x, x), 1) * 1,
    "mean": lambda x: x.mean(1) * 1,
    "mean-keep": lambda x: x.mean((1, 2), keepdim=True) * 1,
    "norm": lambda x: F.layer_norm(x, (C,)) * 1,
    "product": lambda x: (x @ torch.ones(C, C)) * 1,
    "batched": lambda x: (x @ x.transpose(1, 2)) * 1,
    "square-product": lambda x: (torch.ones(T, T) @ x) * 1,
}


class Module(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", MOVES)
def test_samples_stay_apart(name: str) -> None:
    marks = Marks()
    # One sample changes; at every value, exactly that sample's part must change. `mul` at the end must be known.
    x = torch.randn(N, T, C, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[1] = torch.randn(T, C, generator=torch.Generator().manual_seed(1))
    other = Marks()
    for batch, observer in ((x, marks), (changed, other)):
        record(Module(MOVES[name]), batch, device="real", observer=observer, backward=False)
    assert marks.seen[-1][0] == "aten.mul"
    for (op, one), (_, two) in zip(marks.seen, other.seen, strict=True):
        assert [torch.equal(a, b) for a, b in zip(one, two, strict=True)] == [True, False, True], op


@pytest.mark.parametrize(
    "mixing",
    [lambda x: x.sum(0), lambda x: x.reshape(N * T, C).t() @ x.reshape(N * T, C), lambda x: x.mean((0, 2))],
    ids=["sum", "gram", "mean"],
)
def test_mixed_samples_are_not_told_apart(mixing: Callable[[Tensor], Tensor]) -> None:
    marks = Marks()
    trace = record(Module(mixing), torch.randn(N, T, C), device="real", observer=marks, backward=False)
    assert marks.tracker.samples(trace.outputs["output.0"]) is None


@pytest.mark.parametrize(
    ("layer", "shape", "units"),
    [
        (lambda: nn.Sequential(nn.Linear(C, 5), nn.ReLU()), (N, C), 5),
        (lambda: nn.Sequential(nn.Linear(C, 5), nn.ReLU()), (N, T, C), 5),
        (lambda: nn.Sequential(nn.Conv1d(T, 5, 3), nn.BatchNorm1d(5), nn.ReLU()), (N, T, C), 5),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.ReLU()),
            (N, 1, 8, 8),
            5,
        ),
        (nn.ReLU, (N, T, C), T),
    ],
)
def test_units_are_channels_or_features(layer: Any, shape: tuple[int, ...], units: int) -> None:
    marks = Marks()
    trace = record(layer(), torch.randn(shape), device="real", observer=marks, backward=False)
    found = marks.tracker.units(trace.outputs["output.0"])
    assert found is not None
    assert found.size == units
