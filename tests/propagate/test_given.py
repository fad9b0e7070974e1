"""Inputs described by their moments: they predict as numbers of these moments would, and nothing is drawn."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.errors import ArgumentError, ModelError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mlp() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers)


def same(one: iw.Prediction, other: iw.Prediction, rel: float) -> None:
    assert [row["op"] for row in one.rows] == [row["op"] for row in other.rows]
    for a, b in zip(one.rows, other.rows, strict=True):
        assert a["forward_rms"] == pytest.approx(b["forward_rms"], rel=rel)
        assert a["gradient_rms"] == pytest.approx(b["gradient_rms"], rel=rel)


def test_a_described_input_predicts_as_normal_numbers_do() -> None:
    # 4096 × 64 numbers: q of the drawn batch is off by 0.3 % (one standard error, √(2/N)).
    state = torch.get_rng_state()
    model = mlp()
    torch.set_rng_state(state)
    drawn = iw.predict(model, 1.5 * normal(4096, 64) + 0.5)
    described = iw.predict(model, iw.signal((4096, 64), q=2.5, mean=0.5))
    assert torch.equal(state, torch.get_rng_state())
    same(described, drawn, 0.01)
    assert described.inputs[0]["forward_rms"] == pytest.approx(math.sqrt(2.5), rel=1e-12)
    assert described.rows[-1]["overlap"] == pytest.approx(drawn.rows[-1]["overlap"], abs=0.01)


def test_samples_that_share_a_part_are_described_by_their_overlap() -> None:
    # x = √0.6·shared + √0.4·own: E[x y] = 0.6 between samples. 1024 shared entries: 0.6 ± 0.027.
    shared, own = normal(1, 1024, seed=2), normal(64, 1024, seed=3)
    model = nn.Sequential(nn.Linear(1024, 256, bias=False), nn.Tanh())
    drawn = iw.predict(model, math.sqrt(0.6) * shared + math.sqrt(0.4) * own)
    described = iw.predict(model, iw.signal((64, 1024), overlap=0.6))
    assert described.rows[0]["overlap"] == pytest.approx(0.6, abs=1e-9)
    assert described.rows[1]["overlap"] == pytest.approx(drawn.rows[1]["overlap"], abs=0.08)


class Named(NamedTuple):
    left: object
    right: object


def test_a_signal_may_stand_anywhere_in_a_batch() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 4), nn.Linear(6, 4)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            y: Tensor = self.one(left) + self.two(right)
            return y

    class Nested(Two):
        def forward(self, pair: Named) -> Tensor:  # type: ignore[override]
            return super().forward(pair.left, pair.right)  # type: ignore[arg-type]

    left, right = iw.signal((5, 8)), normal(5, 6)
    for model, batch in (
        (Two(), (left, right)),
        (Two(), {"right": right, "left": left}),
        (Nested(), Named(left, right)),
    ):
        found = iw.predict(model, batch)
        assert sorted(row["forward_rms"] for row in found.inputs)[1] == pytest.approx(1.0, abs=0.3)
        assert 1.0 in {row["forward_rms"] for row in found.inputs}
        assert found.rows[-1]["forward_rms"] is not None


def test_a_described_input_has_the_models_own_floating_type() -> None:
    found = iw.predict(mlp().bfloat16(), iw.signal((8, 64)))
    assert {v.dtype for v in found.trace.values if v.kind in ("input", "parameter")} == {"bfloat16"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"shape": (4, 0)}, "shape: got .4, 0.. Give whole numbers from 1"),
        ({"shape": 7.5}, "shape"),
        ({"shape": (4, 3), "q": 0.0}, "q: got 0.0"),
        ({"shape": (4, 3), "q": math.nan}, "q: got nan"),
        ({"shape": (4, 3), "mean": 1.1}, "mean: got 1.1. Its square may not exceed"),
        ({"shape": (4, 3), "overlap": 1.1}, "overlap: got 1.1. Give a number from -0.3333 to 1 for 4"),
        ({"shape": (1, 3), "overlap": 7.0}, "overlap: got 7.0"),
        ({"shape": (4, 3), "overlap": "1"}, "overlap: got 1. Give a number"),
        ({"shape": (4, 3), "q": "1"}, "q: got 1. Give the second moment"),
        ({"shape": (4, 3), "mean": "0"}, "mean: got 0."),
        ({"shape": (4, 3), "overlap": -0.5}, "overlap: got -0.5"),
    ],
)
def test_moments_that_no_numbers_have_are_refused(given: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        iw.signal(**given)  # type: ignore[arg-type]


def test_four_samples_can_be_a_third_apart_and_no_further() -> None:
    # The corners of a tetrahedron: E[x y] = −q/3, and their sum is 0.
    assert iw.signal((4, 3), overlap=-1 / 3).overlap == pytest.approx(-1 / 3)
    assert iw.signal((1, 3), overlap=0.5).overlap is None


def test_a_model_that_reads_values_needs_numbers() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(ModelError, match=r"reads values of its tensors at .*test_given.py:\d+ .*batch has no numbers"):
        iw.predict(Reads(), iw.signal((4, 8)))


class Halves(nn.Module):
    """Two gates of a row, whose biases are two numbers written into one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.made = nn.Linear(64, 8, bias=False)
        self.base = nn.Parameter(torch.tensor([-1.1] * 4 + [0.5] * 4))

    def forward(self, x: Tensor) -> Tensor:
        one, two = (self.made(x) + self.base).split(4, -1)
        gates: Tensor = one.sigmoid() * two.sigmoid()
        return gates


def test_numbers_written_in_runs_are_known_run_by_run() -> None:
    """32 draws of 256 gates: standard errors below 2 %. As one lot of numbers both would be alike, and 20 % off."""
    model, batch = Halves(), torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    found = iw.predict(model, batch, plan=iw.plan(model, "lecun")).rows
    squares = np.zeros((32, len(found)))
    for seed in range(len(squares)):
        iw.init_(model, "lecun", seed=seed)
        squares[seed] = [row["forward_rms"] ** 2 for row in iw.measure(model, batch, seed=seed).rows]
    assert [row["forward_rms"] for row in found] == pytest.approx(np.sqrt(squares.mean(0)), rel=0.04)


@dataclass(frozen=True)
class Pictures:
    pixels: Any
    scale: float = 2.0


def test_a_batch_may_be_a_dataclass_and_stays_as_it_is() -> None:
    class Takes(nn.Module):
        def __init__(self, *, reads: bool) -> None:
            super().__init__()
            self.layer, self.reads = nn.Linear(8, 4), reads

        def forward(self, batch: Pictures) -> Tensor:
            batch.pixels.mul_(batch.scale)
            if self.reads:
                assert batch.pixels.sum().item() != 0
            y: Tensor = self.layer(batch.pixels)
            return y

    for reads in (False, True):
        pixels = normal(5, 8)
        found = iw.predict(Takes(reads=reads), Pictures(pixels))
        assert torch.equal(pixels, normal(5, 8))
        assert found.inputs[0]["gradient_rms"] > 0 and found.inputs[0]["name"] == "input.0.pixels"
    described = iw.predict(Takes(reads=False), Pictures(iw.signal((5, 8))))
    assert (described.inputs[0]["forward_rms"], described.rows[0]["forward_rms"]) == (1.0, 2.0)


class Graph(nn.Module):
    """Attention between neighbours in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.one, self.two = nn.Linear(16, 32), nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        h = self.inner(x)
        scores = torch.where(graph > 0, self.one(h) + self.two(h).mT, -9e15)
        found: Tensor = scores.softmax(-1) @ h
        return found


def test_floats_of_ones_and_zeros_beside_data_are_a_mask() -> None:
    """As random numbers, what such a graph shuts was open, or unknown."""
    graph, x = (normal(24, 24, seed=2) > 0) | torch.eye(24).bool(), normal(24, 16)
    torch.manual_seed(0)
    model = Graph()
    plain, whole = iw.predict(model, (x, graph)), iw.predict(model, (x, graph.float()))
    measured = iw.measure(model, (x, graph.float())).rows
    for row, one in zip(plain.rows[-3:], whole.rows[-3:], strict=True):
        assert (row["forward_rms"], row["gradient_rms"]) == (one["forward_rms"], one["gradient_rms"])
    assert whole.rows[-2]["forward_rms"] == pytest.approx(measured[-2]["forward_rms"], rel=0.1)


def test_black_and_white_images_are_data() -> None:
    """Where there is no other data, ones and zeros are it."""
    x = (normal(64, 64) > 0).float()
    assert iw.predict(mlp(), x).rows[0]["gradient_rms"] is not None
    assert iw.predict(mlp(), x).rows[0]["overlap"] == pytest.approx(iw.predict(mlp(), x + 1e-9).rows[0]["overlap"])
