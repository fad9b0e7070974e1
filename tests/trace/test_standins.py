"""What keeps its numbers in a walk without numbers, and what does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from initwell.measurement.probe import measure
from initwell.trace.failure import NeedsValuesError
from initwell.trace.recorder import record
from initwell.trace.trace import Trace


class Wrapped(nn.Module):
    """A function as a module with one weight."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.ones(4))
        self.register_buffer("places", torch.arange(3))

    def forward(self, x: Tensor, *rest: Tensor) -> Any:
        return self.function(x * self.w, *rest)


def longest(x: Tensor, lengths: Tensor) -> Tensor:
    return x[: int(lengths.max())]


def where_all(x: Tensor, mask: Tensor) -> Tensor:
    return x if bool(mask.to(x.device, torch.bool).all()) else x * 2


def counted(x: Tensor) -> Tensor:
    return x[: int(torch.arange(5, device=x.device).sum()) - 8]


def ones(x: Tensor) -> Tensor:
    return x if bool(torch.ones(2, 3, device=x.device).bool().all()) else x * 2


def picked(x: Tensor, lengths: Tensor) -> Tensor:
    return x[lengths > 1]


def moved(x: Tensor, lengths: Tensor) -> Tensor:
    return x[: int(lengths.to(x.device).to("cpu").min())]


LENGTHS = torch.tensor([3, 1, 2])


@pytest.mark.parametrize(
    ("function", "rest"),
    [
        (longest, (LENGTHS,)),
        (where_all, (LENGTHS,)),
        (where_all, (LENGTHS - 1,)),
        (counted, ()),
        (ones, ()),
        (picked, (LENGTHS,)),
        (moved, (LENGTHS,)),
    ],
    ids=["lengths", "full mask", "mask", "positions", "ones", "picked by a mask", "moved"],
)
def test_models_that_look_at_whole_numbers_take_the_same_route(
    function: Callable[..., Any], rest: tuple[Tensor, ...]
) -> None:
    model, batch = Wrapped(function), (torch.randn(3, 4), *rest)
    meta, real = (record(model, batch, device=device) for device in ("meta", "real"))
    assert route(meta) == route(real)
    assert {v.shape for v in meta.values} == {v.shape for v in real.values}


def route(trace: Trace) -> list[Any]:
    return [(op.name, op.phase, op.inputs, op.outputs) for op in trace.ops]


def test_buffers_of_whole_numbers_are_known() -> None:
    class Own(Wrapped):
        def forward(self, x: Tensor, *rest: Tensor) -> Any:
            return (x * self.w)[: int(self.get_buffer("places").max())]

    assert (2, 4) in {v.shape for v in record(Own(longest), torch.randn(3, 4)).values}


def test_floating_numbers_are_not_known() -> None:
    with pytest.raises(NeedsValuesError, match="looks at the numbers"):
        record(Wrapped(lambda x: x if bool(x.sum() > 0) else x * 2), torch.randn(3, 4))


def test_numbers_that_were_written_over_with_unknown_ones_are_unknown() -> None:
    # The mask starts as known zeros; what is written into it depends on the signal. To answer from the zeros would be
    # to walk a branch that the model may not take.
    def forward(x: Tensor) -> Tensor:
        mask = torch.zeros(3, dtype=torch.bool, device=x.device)
        view = mask[:2]
        mask[:] = x.sum(1) > 0
        return x if bool(view.any()) else x * 2

    with pytest.raises(NeedsValuesError):
        record(Wrapped(forward), torch.ones(3, 4))
    taken = record(Wrapped(forward), torch.ones(3, 4), device="real")
    assert [op.packet for op in taken.forward_ops if op.packet == "aten.mul"] == ["aten.mul"]


def test_numbers_written_over_with_known_ones_stay_known() -> None:
    def forward(x: Tensor, lengths: Tensor) -> Tensor:
        lengths[1:] = 2
        return x[: int(lengths.sum()) - 5]

    lengths = LENGTHS.clone()
    trace = record(Wrapped(forward), (torch.randn(3, 4), lengths))
    assert (2, 4) in {v.shape for v in trace.values}
    assert lengths.tolist() == [3, 1, 2]


@pytest.mark.parametrize("device", ["meta", "real"])
def test_a_model_that_sets_its_inputs_gradient_is_walked_without_it(device: Any) -> None:
    # As speech models do before a checkpointed stack; PyTorch allows it on leaves alone.
    def forward(x: Tensor) -> Tensor:
        y = x[:, None]
        y.requires_grad = True
        return y * 2

    class Own(Wrapped):
        def forward(self, x: Tensor, *rest: Tensor) -> Any:
            return forward(x) * self.w

    trace = record(Own(forward), torch.randn(3, 4), device=device)
    assert any("requires_grad" in note for note in trace.notes)
    assert trace.inputs["input.0"] not in trace.gradients
    assert trace.parameters["w"] in trace.gradients
    measured = measure(Own(forward), torch.randn(3, 4))
    assert [row["op"] for row in measured.rows] == ["aten.mul", "aten.mul"]
