"""Dry building: nothing allocated, and the draws that are followed are those that a real constructor makes."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.errors import ArgumentError, ModelError
from initwell.propagate.dry import dry


class Custom(nn.Module):
    """Fills its weights in the ways that model code does."""

    truncated: nn.Parameter
    wide: nn.Parameter
    part: nn.Parameter
    copied: nn.Parameter
    scaled: nn.Parameter
    shifted: nn.Parameter
    uniform: nn.Parameter
    turned: nn.Parameter
    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("truncated", "wide", "part", "copied", "scaled", "shifted", "uniform", "turned"):
            setattr(self, name, nn.Parameter(torch.empty(400, 300)))
        self.table = nn.Embedding(200, 64, padding_idx=0)
        self.gain, self.token = nn.Parameter(0.1 * torch.ones(64)), nn.Parameter(torch.zeros(1, 1, 64))
        self.register_buffer("places", torch.arange(10.0))
        with torch.no_grad():
            nn.init.trunc_normal_(self.truncated, mean=0.1, std=0.02, a=-0.04, b=0.06)
            nn.init.normal_(self.wide, 0.5, 2.0)
            self.part.normal_(std=3.0)
            self.part[:100].zero_()
            self.copied.copy_(torch.linspace(-1, 1, 300))
            self.scaled.data.normal_().mul_(0.3)
            self.shifted.data.fill_(2.0).add_(1)
            self.uniform.uniform_(-1, 3)
            nn.init.orthogonal_(self.turned, gain=3.0)


def gru() -> nn.Module:
    return nn.GRU(96, 128, 2)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(300, 200),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(16, 64, 3, groups=2), nn.ConvTranspose1d(64, 64, 5)),
    "norms": lambda: nn.Sequential(nn.BatchNorm2d(8), nn.LayerNorm(64), nn.GroupNorm(2, 8), nn.RMSNorm(16)),
    "recurrent": gru,
    "transformer": lambda: nn.Transformer(64, 4, 2, 2, 128, batch_first=True),
    "own": Custom,
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_moments_are_those_of_a_real_draw(name: str) -> None:
    # n real numbers: their rms is off by √((κ−1)/4n) of itself, at most 0.71/√n for the normal law, their mean by σ/√n.
    torch.manual_seed(0)
    real = dict(LAYERS[name]().named_parameters())
    model, draws = dry(LAYERS[name])
    found = {row.parameter: row.distribution for row in draws.rows}
    assert {n for n, p in model.named_parameters() if p.is_meta} == set(found)
    for parameter, drawn in found.items():
        tensor = real[parameter].detach().double()
        assert drawn is not None
        expected, size = math.sqrt(float(tensor.square().mean())), math.sqrt(tensor.numel())
        assert math.hypot(drawn.mean, drawn.std) == pytest.approx(expected, rel=4 * 0.71 / size + 1e-3, abs=1e-12)
        assert drawn.mean == pytest.approx(
            float(tensor.mean()), abs=4 * drawn.std / size + 2e-3 * abs(drawn.mean) + 1e-9
        )


def test_known_laws_are_sharp() -> None:
    found = {row.parameter: row.distribution for row in dry(lambda: nn.Linear(3072, 10))[1].rows}
    assert found["weight"] and found["weight"].mean == pytest.approx(0, abs=1e-12)
    assert found["weight"].std == pytest.approx(1 / math.sqrt(3 * 3072), rel=1e-6)


def test_what_is_no_weight_stays_real() -> None:
    model, draws = dry(Custom)
    assert isinstance(model, Custom)
    assert model.places.tolist() == list(range(10))
    assert not model.gain.is_meta and not model.token.is_meta
    assert {"gain", "token"}.isdisjoint(row.parameter for row in draws.rows)


def test_no_memory_is_needed() -> None:
    # 40 GB of weights.
    model, draws = dry(lambda: nn.Linear(100_000, 100_000))
    assert all(p.is_meta for p in model.parameters()) and draws.rows[0].shape == (100_000, 100_000)


def test_the_generators_do_not_move() -> None:
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    dry(Custom)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (str(np.random.get_state()), random.getstate()) == states[1:]  # noqa: NPY002


def test_a_prediction_from_draws_is_that_of_real_weights() -> None:
    def build() -> nn.Module:
        layers = [m for _ in range(5) for m in (nn.Linear(256, 256), nn.Tanh())]
        model = nn.Sequential(*layers)
        for p in model.parameters():
            nn.init.normal_(p, std=0.08 if p.ndim > 1 else 0.3)
        return model

    batch = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    real = iw.predict(build(), batch)
    model, draws = iw.dry(build)
    found = iw.predict(model, batch, plan=draws)
    for one, two in zip(found.rows, real.rows, strict=True):
        assert one["forward_rms"] == pytest.approx(two["forward_rms"], rel=0.02)
        assert one["gradient_rms"] == pytest.approx(two["gradient_rms"], rel=0.03)
    assert "No weights were allocated: 10 parameters count as the model's own constructor" in " ".join(found.notes)
    assert not any("PyTorch's default" in note for note in found.notes)


def test_tied_weights_are_one_row() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.table(x))
            return y

    model, draws = dry(Tied)
    (row,) = draws.rows
    assert (row.parameter, row.tied_to) == ("table.weight", ("head.weight",))
    assert iw.predict(model, torch.arange(20).reshape(4, 5), plan=draws).rows[-1]["forward_rms"] > 0


def test_what_cannot_be_followed_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.thin = nn.Linear(8, 8), nn.Parameter(torch.empty(8, 8))
            nn.init.sparse_(self.thin, 0.5)
            self.register_buffer("memory", torch.empty(4))

    draws = dry(Odd)[1]
    assert [row.parameter for row in draws.rows if row.distribution is None] == ["thin"]
    assert draws.notes[1:] == (
        "What the constructor draws could not be followed for thin.",
        "Buffers without numbers: memory.",
    )
    assert draws.table_title() == "Drawn by the constructor, not allocated: 3 parameters"
    assert {row["parameter"]: row.get("std") for row in draws.table_rows()}["thin"] is None


def test_a_constructor_that_needs_numbers_or_fails_says_so() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            assert self.layer.weight.abs().max().item() > 0

    with pytest.raises(ModelError, match=r"could not be built without its weights: RuntimeError: .*meta tensors"):
        dry(Reads)
    with pytest.raises(ArgumentError, match="model"):
        dry(lambda: "net")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 99}),
        ("bert", {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 99}),
        ("llama", {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 99}),
        ("t5", {"num_layers": 2, "d_model": 64, "num_heads": 4, "vocab_size": 99}),
        ("vit", {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "image_size": 32}),
    ],
)
def test_models_of_transformers_are_followed_whole(kind: str, options: dict[str, int]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **options)

    def build() -> nn.Module:
        model: nn.Module = transformers.AutoModel.from_config(config)
        return model

    draws = dry(build)[1]
    torch.manual_seed(0)
    real = dict(build().named_parameters())
    assert len(draws.rows) > 10 and all(row.distribution for row in draws.rows)
    for row in draws.rows:
        tensor = real[row.parameter].detach().double()
        assert row.distribution is not None
        rms = math.hypot(row.distribution.mean, row.distribution.std)
        assert rms == pytest.approx(
            float(tensor.square().mean().sqrt()), rel=4 * 0.71 / math.sqrt(tensor.numel()) + 1e-3
        )


@pytest.mark.parametrize("build", [nn.Linear(3, 2), "resnet", None], ids=["model", "name", "nothing"])
def test_what_does_not_build_is_refused(build: Any) -> None:
    with pytest.raises(ArgumentError, match=r"build: got a \w+\. Give a function that makes the model"):
        dry(build)


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps, self.attention = nn.LSTM(64, 64, batch_first=True), nn.MultiheadAttention(64, 4, batch_first=True)
        self.both, self.own = nn.Bilinear(64, 64, 64), Scaled(64)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.steps(x)
        y, _ = self.attention(h, h, h)
        z: Tensor = self.own(self.both(y, x))
        return z


class Scaled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_modules_on_meta_are_asked_what_they_would_draw() -> None:
    torch.manual_seed(0)
    batch = torch.randn(16, 4, 64, generator=torch.Generator().manual_seed(0))
    real = iw.predict(Attends(), batch)
    with torch.device("meta"):
        unborn = Attends()
    before = torch.get_rng_state()
    found = iw.predict(unborn, batch)
    assert torch.equal(torch.get_rng_state(), before) and all(p.is_meta for p in unborn.parameters())
    assert not any("without numbers, plan or known default" in note for note in found.notes)
    # Of the smallest, 256 biases, the size of a draw is off by √(0.8/256)/2 = 3 %.
    for one, two in zip(found.parameters, real.parameters, strict=True):
        assert one["weight_rms"] == pytest.approx(two["weight_rms"], rel=0.1)


@pytest.mark.parametrize("dim", [0, 2])
def test_the_magnitudes_of_weight_norm_are_the_norms_of_what_is_drawn(dim: int) -> None:
    def build() -> nn.Module:
        layer: nn.Module = nn.utils.parametrizations.weight_norm(nn.Conv1d(64, 48, 5), dim=dim)
        return layer

    model, draws = dry(build)
    assert all(row.distribution is not None for row in draws.rows)
    batch = torch.randn(8, 64, 20, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    found, real = iw.predict(model, batch, plan=draws), iw.predict(build(), batch)
    # 15 360 weights: the size of a draw is off by √(0.8/15360)/2 = 0.4 %.
    for one, two in zip(found.rows, real.rows, strict=True):
        assert one["forward_rms"] == pytest.approx(two["forward_rms"], rel=0.02)
