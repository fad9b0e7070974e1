"""Which network is which: a kept run must not be taken for that of another, nor be made again for nothing."""

import functools
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from initwell.errors import ArgumentError, ModelError
from initwell.experiments.behaviour import behaviour
from initwell.experiments.compare import compare
from initwell.experiments.data import Dataset, load
from initwell.experiments.network import Network

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 40, "workers": 1}
FACTOR = 1.0


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load("mnist-5k").subset(train=120, test=60)


class Scaled(nn.Module):
    """A factor that no repr shows."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(4, 3), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.layer(x)  # type: ignore[no-any-return]


def scaled(factor: float) -> nn.Module:
    return Scaled(factor)


def closure(factor: float) -> Callable[[], nn.Module]:
    return lambda: Scaled(factor)


def by_global() -> nn.Module:
    return Scaled(1.0) if FACTOR > 0 else Scaled(2.0)


def identity(build: Callable[..., nn.Module], **options: Any) -> dict[str, str]:
    return Network.of(build).identity((4,), 3, options)


def test_the_same_network_is_known_again() -> None:
    for build in (functools.partial(scaled, 1.0), closure(1.0), by_global, lambda: Scaled(1.0)):
        assert identity(build) == identity(build)
    assert identity(closure(1.0)) == identity(closure(1.0))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (functools.partial(scaled, 1.0), functools.partial(scaled, 2.0)),
        (closure(1.0), closure(2.0)),
        (lambda: Scaled(1.0), lambda: Scaled(2.0)),
    ],
    ids=["partial", "closure", "lambda"],
)
def test_a_factor_that_no_layer_shows_makes_another_network(
    one: Callable[..., nn.Module], other: Callable[..., nn.Module]
) -> None:
    assert identity(one) != identity(other)


def test_a_global_that_is_read_makes_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    before = behaviour(by_global)
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert behaviour(by_global) != before


def test_another_forward_makes_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(closure(1.0))
    monkeypatch.setattr(Scaled, "forward", lambda self, x: self.layer(x).relu())
    assert identity(closure(1.0)) != before


def test_values_of_every_kind_are_told_apart() -> None:
    class Held:
        def __init__(self, *held: object) -> None:
            self.held = held

        @property
        def first(self) -> object:
            return self.held[0]

        @staticmethod
        def nothing() -> None: ...

    loop: list[Any] = []
    loop.append(loop)
    values = [
        1,
        1.0,
        "1",
        None,
        (1, 2),
        [2, 1],
        {"a": 1},
        {1, 2},
        torch.ones(2),
        torch.zeros(2),
        np.ones(2),
        np.ones(3),
    ]
    different = [*values, Held(1), Held(2), Held(1).nothing, len, nn.Linear, loop, functools.partial(len), "x".upper]
    texts = [behaviour(value) for value in different]
    assert len(set(texts)) == len(texts)
    assert not any(" at 0x" in text for text in texts)


SCRIPT = """
from torch import nn
from initwell.experiments.network import Network
def swish(x, beta=2): return x * (beta * x).sigmoid()
class Net(nn.Module):
    names = {"a", "b", "c"}
    def __init__(self, act):
        super().__init__()
        self.layer, self.act = nn.Linear(4, 3), act
    def forward(self, x):
        return self.act(self.layer(x)) if x in {"d", "e", "f"} else x
print(Network.of(lambda: Net(swish)).identity((4,), 3, {}))
"""


def test_the_identity_is_the_same_in_every_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Addresses and the order of sets differ from process to process.
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")
    here = capsys.readouterr().out
    other = str(int(os.environ.get("PYTHONHASHSEED", "0").replace("random", "0")) + 1)
    there = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": other}
    )
    assert here == there.stdout != ""


def test_two_functions_of_one_name_are_refused(data: Dataset) -> None:
    acts = [closure(1.0), closure(2.0)]
    with pytest.raises(ArgumentError, match="functions need names of their own"):
        compare("mlp", data, ["xavier"], 1, activations=acts, **QUICK)
    named = [functools.partial(nn.LeakyReLU, slope) for slope in (0.1, 0.2)]
    result = compare("mlp", data, ["xavier"], 1, depths=1, activations=named, **QUICK)
    assert [row["activation"] for row in result.rows] == ["LeakyReLU(0.1)", "LeakyReLU(0.2)"]
    assert result.rows[0]["train_loss"] != result.rows[1]["train_loss"]


def insists(hidden: int) -> nn.Module:
    return nn.Linear(hidden, 1)


def breaks() -> nn.Module:
    raise RuntimeError("out of bricks")


ONE = nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("build", "error", "said"),
    [
        (insists, ArgumentError, "insists on hidden.*give the rest defaults"),
        (breaks, ModelError, "build: breaks failed: RuntimeError: out of bricks"),
        (lambda: ONE, ArgumentError, "the same model twice"),
    ],
)
def test_builders_that_cannot_be_used(build: Callable[..., nn.Module], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        identity(build)


class Drawn(nn.Module):
    """Draws from all three global generators, when built and when run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)
        self.mask = torch.from_numpy(np.random.rand(784)).float()  # noqa: NPY002

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1) * self.mask) * (1 + random.random())  # type: ignore[no-any-return]


def test_no_global_generator_decides_a_run(data: Dataset) -> None:
    def curves() -> list[Any]:
        return [run.result.loss_curve for run in compare(Drawn, data, ["xavier"], 2, **QUICK).runs if run.result]

    first = curves()
    np.random.rand(3)  # noqa: NPY002
    random.random()
    torch.rand(3)
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    assert curves() == first
    assert before[:2] == (random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    assert torch.equal(before[2], torch.get_rng_state())
