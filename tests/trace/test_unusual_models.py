"""Models that PyTorch runs in unusual ways, or that keep unusual things: own autograd functions, checkpoints, compiled
graphs, inference mode, generators of their own."""

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from initwell.errors import ModelError
from initwell.trace.recorder import record


class Wrapped(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.exp() * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        return gradients[0] * 3  # type: ignore[no-any-return]


def apply(function: Any, x: Tensor) -> Any:
    return function.apply(x)


def test_own_autograd_functions_are_walked_as_they_run() -> None:
    trace = record(Wrapped(lambda x: apply(Doubled, x.tanh())), torch.zeros(2))
    assert [op.packet for op in trace.forward_ops if op.packet != "aten.detach"] == [
        "aten.tanh",
        "aten.exp",
        "aten.mul",
    ]
    times_three = trace.backward_ops[0]
    assert (times_three.packet, times_three.arguments["other"]) == ("aten.mul", 3)
    tanh = next(op for op in trace.forward_ops if op.packet == "aten.tanh")
    assert trace.gradients[tanh.outputs[0]] == times_three.outputs[0]


def test_checkpointed_parts_run_again_in_the_backward_under_their_own_name() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(checkpoint(lambda y: self.a(y).tanh(), x, use_reentrant=False))  # type: ignore[no-any-return]

    trace = record(Checkpointed(), torch.zeros(2, 3))
    again = [op for op in trace.backward_ops if op.packet == "aten.addmm"]
    assert [(op.path, op.call) for op in again] == [("a", 1)]
    assert set(trace.gradients) >= set(trace.parameters.values())


def test_compiled_models_run_as_written() -> None:
    class Compiled(nn.Module):
        """Stands for torch.compile's wrapper, which keeps the module under this name."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self._orig_mod = module

        def forward(self, *args: Any) -> Any:
            raise AssertionError("the compiled graph hides its ops")

    trace = record(Compiled(nn.Linear(3, 2)), torch.zeros(2, 3))
    assert {op.path for op in trace.ops} == {"_orig_mod"}
    assert set(trace.parameters) == {"_orig_mod.weight", "_orig_mod.bias"}


def test_within_inference_mode_the_backward_still_runs() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    with torch.inference_mode():
        trace = record(model, torch.ones(3, 5), device="real")
        assert torch.is_inference_mode_enabled()
    assert set(trace.parameters.values()) <= set(trace.gradients)


def test_a_failing_backward_is_a_model_error() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Tensor:
            raise ValueError("no derivative")

    with pytest.raises(ModelError, match=r"backward failed .*no derivative"):
        record(Wrapped(lambda x: apply(Broken, x) + 1), torch.zeros(2))


def test_nested_containers_and_generators_of_its_own_come_back() -> None:
    class Busy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))
            self.recent, self.by_name = deque([1, 2], maxlen=2), defaultdict(list, {"a": [1]})
            self.settings: dict[str, Any] = {"inner": ({"calls": 0}, [1])}
            self.counts = Counter(calls=2)
            self.draws = torch.Generator().manual_seed(1), np.random.default_rng(1), random.Random(1)
            self.old = np.random.RandomState(1)

        def held(self) -> list[object]:
            torchs, numpys, pythons = self.draws
            states = torchs.get_state().tolist(), numpys.bit_generator.state, pythons.getstate(), self.old.get_state()
            return [str(v) for v in (self.recent, self.by_name, self.settings, self.counts, *states)]

        def forward(self, x: Tensor) -> Tensor:
            self.recent.append(3)
            self.by_name["a"].append(2)
            self.by_name["b"].append(2)
            self.settings["inner"][0]["calls"] += 1
            self.settings["inner"][1].clear()
            self.counts["calls"] += 1
            torchs, numpys, pythons = self.draws
            scale = numpys.random() + pythons.random() + self.old.random()
            return (x + torch.randn(2, generator=torchs)) * self.w * scale

    model = Busy()
    before = model.held()
    record(model, torch.ones(2), device="real")
    assert model.held() == before
    model(torch.ones(2))
    assert all(now != then for now, then in zip(model.held(), before, strict=True))


@pytest.mark.parametrize("device", ["meta", "real"])
def test_an_op_whose_other_outputs_get_no_gradient(device: Any) -> None:
    # Group norm returns its statistics too, and autograd runs their hooks with None.
    trace = record(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.ReLU()), torch.ones(2, 3, 2, 2), device=device
    )
    norm = next(op for op in trace.forward_ops if op.packet == "aten.native_group_norm")
    assert [value in trace.gradients for value in norm.outputs] == [True, False, False]


def test_modules_made_in_the_forward_are_told_apart_by_where_they_run() -> None:
    """Each is freed before the next is made, which then lies where it lay: as one module, it was called 5 times."""

    class Makes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = nn.Softmax(dim=-1)(self.layer(x))
            return out

    trace = record(nn.Sequential(*(Makes() for _ in range(5))), torch.zeros(2, 4))
    assert [(op.path, op.call) for op in trace.forward_ops if op.functional == "aten._softmax"] == [
        (f"{i}.<Softmax>", 0) for i in range(5)
    ]
