"""Numbers that a model brings from elsewhere: kept where they are few, written into the forward or held by it."""

import json

import pytest
import torch
from torch import Tensor, nn

from initwell.trace import fold
from initwell.trace.recorder import record
from initwell.trace.trace import Trace


class Brings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.weight = torch.tensor([2.0, 3.0]), nn.Parameter(torch.ones(2))
        self.hidden = [nn.Parameter(torch.ones(2))]

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale + torch.tensor(4.0, device=x.device)
        x = x + torch.tensor([5, 6], device=x.device) + x.new_tensor([7.0, 8.0])
        return x * self.weight * self.hidden[0]


def constants(trace: Trace) -> dict[int, Tensor]:
    known = trace.folded.tensors
    return {v.id: known[v.id] for v in trace.values if v.kind == "constant" and v.id in known}


def numbers(trace: Trace) -> list[object]:
    return [tensor.tolist() for tensor in constants(trace).values()]


@pytest.mark.parametrize("device", ["meta", "real"])
def test_constants_keep_their_numbers_and_parameters_do_not(device: str) -> None:
    trace = record(Brings(), torch.zeros(1, 2), device="meta" if device == "meta" else "real")
    assert numbers(trace) == [[2.0, 3.0], 4.0, [5, 6], [7.0, 8.0]]
    assert all(t.dtype == getattr(torch, trace.values[v].dtype) for v, t in constants(trace).items())


def test_the_numbers_are_those_before_a_write_and_the_model_keeps_its_own() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = torch.zeros(1)

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            return x * self.count

    model = Writes()
    trace = record(model, torch.ones(1, requires_grad=True))
    assert numbers(trace) == [[0.0]] and float(model.count) == 0.0


def test_what_is_large_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "MOST", 1)
    assert numbers(record(Brings(), torch.zeros(1, 2))) == [4.0]


def test_no_gradient_of_a_real_backward_is_kept() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            return g * torch.tensor([3.0, 3.0])

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = Twice.apply(x)  # type: ignore[no-untyped-call]
            return out

    assert not constants(record(Model(), torch.ones(1, 2), device="real"))


def test_json_leaves_them_out() -> None:
    data = json.loads(record(Brings(), torch.zeros(1, 2)).to_json())
    assert "folded" not in data and data["device"] == "meta"
