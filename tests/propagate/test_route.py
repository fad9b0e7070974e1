"""Models that read values of their tensors: named with their line, run on the batch, and left as they were."""

import copy
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.errors import ModelError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Reader(nn.Module):
    """Takes one of two layers, by the sign of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return torch.tanh(self.wide(x) if float(x[0, 0]) > 0 else self.narrow(x))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Reader()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gate(x)
        return y


def line_of(function: Any, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def test_the_line_is_named_and_the_route_is_that_of_the_batch() -> None:
    model, batch = Whole(), normal(16, 32)
    low, high = sorted((batch, -batch), key=lambda b: float((b - b.mean(0))[0, 0]))
    for given, width in ((high, 64), (low, 16)):
        found = iw.predict(model, given)
        assert found.trace.device == "real" and found.rows[-1]["shape"] == (16, width)
        place = f"{Path(__file__)}:{line_of(Reader, 'float(x[0, 0])')} (module 'gate')"
        (note,) = (n for n in found.notes if "reads values" in n)
        assert f"at {place}: it was run on the given batch instead, and the route is that of this batch." in note


def test_what_was_run_is_predicted_as_what_was_not() -> None:
    class Straight(Whole):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.gate.wide(self.gate.norm(x)))

    torch.manual_seed(0)
    model = Whole()
    batch = normal(16, 32)
    batch[0, 0] = 3.0
    straight = Straight()
    straight.load_state_dict(model.state_dict())
    ran, walked = iw.predict(model, batch), iw.predict(straight, batch)
    keys = ("op", "forward_rms", "gradient_rms", "overlap")
    expected = [[row[k] for k in keys] for row in walked.rows]
    assert [[row[k] for k in keys] for row in ran.rows if row["path"] != "gate" or row["op"] == "aten.tanh"] == expected


def test_the_model_and_the_generators_are_left_as_they_were() -> None:
    model, batch, random = Whole().train(), normal(8, 32), torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    iw.predict(model, batch)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


class Odd(nn.Module):
    """Calls what meta tensors cannot do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(6, 6), how

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        if self.how == "numpy":
            return y * float(np.abs(x.numpy(force=True)).max())
        if self.how == "nonzero":
            return y[y[:, 0].detach().abs().argsort() >= 0]
        if self.how == "tolist":
            return y * float(x.tolist()[0][0])
        return y if bool((x > 9).any()) else y + 1


@pytest.mark.parametrize("how", ["numpy", "nonzero", "tolist", "bool"])
def test_every_way_to_read_values_falls_back(how: str) -> None:
    found = iw.predict(Odd(how), normal(4, 6))
    assert found.trace.device == "real" and found.rows[0]["forward_rms"] > 0
    assert sum("it was run on the given batch" in note for note in found.notes) == 1


def test_a_loss_that_reads_values_falls_back() -> None:
    def loss(out: Tensor) -> Tensor:
        return out.sum() * (1.0 if out.detach().sum().item() > 0 else 2.0)

    found = iw.predict(nn.Linear(4, 2), normal(3, 4), loss=loss)
    assert found.trace.device == "real" and any("test_route.py" in note for note in found.notes)


def test_on_the_meta_device_there_is_nothing_to_read() -> None:
    with torch.device("meta"):
        unborn = Whole()
    with pytest.raises(ModelError, match=r"reads values .*module 'gate'.*the model is on the meta device\. Build"):
        iw.predict(unborn, normal(4, 32))
    assert all(p.is_meta for p in unborn.parameters())


def test_a_model_that_needs_no_values_is_never_run() -> None:
    class Runs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert x.is_meta
            y: Tensor = self.layer(x)
            return y

    assert not iw.predict(Runs(), normal(2, 3)).trace.notes


class Skips(nn.Module):
    """Leaves its layer out by a number that is drawn on the CPU, as the layer drop of speech models does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return x + y if torch.rand([]) < 0.5 else y


def test_a_route_that_is_drawn_is_said_to_be() -> None:
    found = iw.predict(nn.Sequential(nn.Linear(32, 32), Skips()), normal(16, 32))
    assert "This model looks at random numbers, 1 times (module '1'): the route is that of one draw." in found.notes
    assert not any("random numbers" in note for note in iw.predict(nn.Dropout(0.5), normal(16, 32)).notes)
