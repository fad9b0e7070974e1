"""``initwell predict``: what it prints, at which width, to which stream, and with which exit code."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import initwell as iw
from initwell.cli.main import main

MLP = "zoo:mlp:depth=3,width=32,activation=tanh"
INPUT = ["--input", "16x1x8x8"]
DEEP = "zoo:mlp:depth=30,width=32,activation=tanh"

MODELS = """
import torch
from torch import nn

class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
    def forward(self, x):
        return self.layer(x) if x.sum() != 0 else x

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix = nn.Embedding(50, 8), nn.Linear(8, 8)
    def forward(self, tokens, picture):
        return self.table(tokens) + self.mix(picture)[:, None]

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 5)
    def forward(self, x):
        return {"logits": self.layer(x), "hidden": x}

class Bare(Heads):
    def forward(self, x):
        return {"hidden": self.layer(x)}

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU())
    def forward(self, x):
        return x + self.mix(x)

def deep():
    return nn.Sequential(nn.Linear(8, 8), *(Block() for _ in range(12)))

def large():
    return nn.Sequential(nn.Linear(8, 200_000), nn.ReLU(), nn.Linear(200_000, 200_000))
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    path = tmp_path / "models_to_predict.py"
    path.write_text(MODELS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield str(path)
    # Not a copy of sys.modules in its place: extension modules that are first imported meanwhile, as SciPy's, miss it.
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(path)]:
        del sys.modules[name]


def out(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["predict", *words]) == 0
    return capsys.readouterr().out


def parsed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    return json.loads(out(capsys, *words, "--json"))


def said(text: str) -> str:
    return " ".join(text.split())


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["predict", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return said(captured.err)


def test_the_table_the_growth_and_the_notes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = out(capsys, MLP, *INPUT)
    assert max(map(len, text.splitlines())) <= 80 and "\x1b[" not in text
    table, growth, notes = (
        text.index(words) for words in ("Prediction: 7 values", "Growth by block: 3", "A block from")
    )
    assert table < growth < notes
    assert "A block from hidden1 to hidden3 multiplies the signal by" in said(text)


def test_json_is_the_prediction_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed(capsys, MLP, *INPUT, "--lr", "0.1")
    assert [row["path"] for row in found["rows"]][:2] == ["hidden1", "act1"]
    assert {row["block"] for row in found["growth"][0]["rows"]} == {"hidden1", "hidden2", "hidden3"}
    weights = [row for row in found["parameters"] if row["parameter"].endswith("weight")]
    assert all(row["update_ratio"] == 0.1 * row["gradient_rms"] / row["weight_rms"] for row in weights)


def test_a_large_model_is_summed_up_by_module_unless_all_rows_are_asked_for(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"{models}:deep", "--input", "4x8"]
    summed, every = said(out(capsys, *words)), said(out(capsys, *words, "--rows", "all"))
    assert "61 values, 50 parameters, training mode; the last value of each module" in summed
    assert "12.mix.3" not in summed and " 12.mix 4 4×8 " in summed
    assert "the last value of each module" not in every and every.count("aten.gelu") == 24
    # A plain stack has one value a module: there is nothing to sum up.
    assert "the last value of each module" not in said(out(capsys, DEEP, *INPUT))
    assert "the last value of each module" in said(out(capsys, MLP, *INPUT, "--rows", "modules"))


def test_a_scheme_is_predicted_and_nothing_is_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("initwell.apply.write.init_", None)
    as_built, zeros = (parsed(capsys, MLP, *INPUT, *scheme) for scheme in ([], ["--scheme", "zeros"]))
    assert as_built["rows"][-1]["forward_rms"] > 0 == zeros["rows"][-1]["forward_rms"]
    xavier = parsed(capsys, MLP, *INPUT, "--scheme", "xavier", "--rule", "output=zeros")
    assert xavier["rows"][0]["forward_rms"] > 0 == xavier["rows"][-1]["forward_rms"]


def test_cross_entropy_takes_the_labels_of_the_data_or_random_ones(capsys: pytest.CaptureFixture[str]) -> None:
    # At nearly equal logits each of N·C gradients is √((1 − 1/C)/C)/N.
    for words, samples in ((["--data", "mnist-5k", "--batch-size", "8"], 8), (INPUT, 16)):
        found = parsed(capsys, MLP, *words, "--loss", "cross-entropy")
        logits = next(row for row in found["rows"] if row["path"] == "output")
        assert logits["gradient_rms"] == pytest.approx(0.3 / samples, rel=0.02)


def test_the_loss_finds_the_logits(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed(capsys, f"{models}:Heads", "--input", "4x8", "--loss", "cross-entropy")
    assert found["rows"][0]["gradient_rms"] == pytest.approx(0.4 / 4, rel=0.2)
    text = fails(capsys, f"{models}:Bare", "--input", "4x8", "--loss", "cross-entropy")
    assert "The model returned a dict without logits: leave --loss out" in text


def test_parameters_and_their_updates(capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, MLP, *INPUT, "--parameters", "--lr", "0.1")
    assert "update_ratio" in text and "hidden1.weight" in text and "Growth" not in text
    assert "One step of gradient descent at learning rate 0.1 changes a weight by" in said(text)
    assert "update_ratio" not in out(capsys, MLP, *INPUT, "--parameters")


def test_on_the_meta_device_no_weights_are_allocated(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    # 160 GB of them.
    text = out(capsys, f"{models}:large", "--input", "4x8", "--device", "meta")
    assert "No weights were allocated: 4 parameters count as the model's own constructor would draw them." in said(text)
    real = parsed(capsys, MLP, *INPUT)
    meta = parsed(capsys, MLP, *INPUT, "--device", "meta")
    for one, two in zip(meta["rows"], real["rows"], strict=True):
        # 32 × 32 weights: their variance is off by √(0.8/1024) = 3 % at random, each layer anew.
        assert one["forward_rms"] == pytest.approx(two["forward_rms"], rel=0.15)


def test_a_model_that_reads_values_is_run_and_that_is_said(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(out(capsys, f"{models}:Reads", "--input", "4x8"))
    assert "reads values of its tensors at" in text and "it was run on the given batch instead" in text
    words = fails(capsys, f"{models}:Reads", "--input", "4x8", "--device", "meta")
    assert "the model is on the meta device. Build the model with real weights" in words


def test_inputs_by_name(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed(capsys, f"{models}:Pair", "--input", "picture=4x8, tokens=4x6:int50")
    assert [row["name"] for row in found["inputs"]] == ["input.picture"]
    assert found["rows"][-1]["shape"] == [4, 6, 8]
    for text, words in (("picture=4x8,4x6:int50", "or none"), ("a=4x8,a=4x8", "by its own"), ("1a=4x8", "NAME=SHAPE")):
        assert words in fails(capsys, f"{models}:Pair", "--input", text)


def test_a_page_with_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, DEEP, *INPUT, "--out", str(tmp_path / "page"))
    assert f"Page: {tmp_path / 'page' / 'index.html'}" in text
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    for words in ("The gradient is vanishing", "Growth by block: 30 × Linear", "hidden30", "Parameters"):
        assert words in page
    for name in ("predicted-by-depth", "growth-by-block"):
        assert (tmp_path / "page" / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([MLP], "give --input 8x1x28x28"),
        (["torch.nn:Identity"], "torch.nn:Identity does not say what it takes: give --input"),
        ([MLP, *INPUT, "--only", "hidden*"], "only: got no scheme that it could change. Give --scheme"),
        ([MLP, *INPUT, "--lr", "-1"], "learning_rate: got -1.0"),
        ([MLP, *INPUT, "--scheme", "kaimin"], "Did you mean 'kaiming'?"),
        ([MLP, "--input", "16x3x9x9x2:int5"], "addmm"),
        ([MLP, *INPUT, "--device", "cuda"], "invalid choice"),
        ([MLP, *INPUT, "--seed", str(2**64)], "write a whole number from 0 to 2**64 - 1"),
        ([MLP, *INPUT, "--seed", "-1"], "write a whole number from 0"),
        ([MLP, "--input", "99999999x99999999"], "more than fits in memory"),
        ([MLP, "--input", "99999999999999999999x8"], "more than fits in memory"),
        ([MLP, *INPUT, "--out", "/proc/initwell"], "cannot be written"),
        (["torch.nn:Flatten", "--input", "8, 16"], "shapes (8,) and (16,): for one of shape (8, 16) write 8x16."),
    ],
)
def test_bad_input(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *words]) == 2
    assert text in said(capsys.readouterr().err)


def library(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def pictured(size: Any) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(size[0], 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    setattr(model, "pretrained_cfg", {"input_size": size})  # noqa: B010
    return model


def test_where_what_a_library_says_does_not_fit_the_cure_is_an_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def film(name: str, pretrained: bool) -> nn.Module:
        model = nn.Sequential(nn.Conv3d(3, 4, 3))
        setattr(model, "pretrained_cfg", {"input_size": (3, 2, 8)})  # noqa: B010
        return model

    library(monkeypatch, "timm", list_models=lambda: ["film"], create_model=film)
    text = fails(capsys, "timm:film")
    assert (
        "It was tried with random input 8x3x2x8, as timm:film takes it, seed 0: give --input, a shape such as" in text
    )


def test_a_library_says_what_its_models_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library(
        monkeypatch, "timm", list_models=lambda: ["net"], create_model=lambda name, pretrained: pictured((1, 20, 24))
    )
    assert parsed(capsys, "timm:net")["inputs"][0]["shape"] == [8, 1, 20, 24]

    def builder(weights: Any = None, weights_backbone: Any = "trained") -> nn.Module:
        assert weights_backbone is None
        return pictured((3, 0, 0))

    library(monkeypatch, "torchvision")
    library(
        monkeypatch,
        "torchvision.models",
        list_models=lambda: ["inception_v3"],
        get_model_builder=lambda name: builder,
        get_model=lambda name, **given: builder(**given),
    )
    assert parsed(capsys, "torchvision:inception_v3")["inputs"][0]["shape"] == [8, 3, 299, 299]


def test_models_of_transformers_say_what_they_take() -> None:
    from initwell.cli.natural import natural

    text = SimpleNamespace(vocab_size=90, max_position_embeddings=20, is_encoder_decoder=True)
    picture = SimpleNamespace(image_size=(16, 12), num_channels=1)
    cases = {
        "input_ids": (text, {"input_ids": (8, 16), "decoder_input_ids": (8, 16)}),
        "pixel_values": (picture, {"pixel_values": (8, 1, 16, 12)}),
        "input_values": (SimpleNamespace(), {"input_values": (8, 16_000)}),
        "input_features": (
            SimpleNamespace(max_source_positions=50, num_mel_bins=8),
            {"input_features": (8, 8, 100)},
        ),
    }
    for main_input, (config, expected) in cases.items():
        model: Any = SimpleNamespace(config=config, main_input_name=main_input)
        batch = natural("hf:x", model, 0).batch
        assert {name: tuple(t.shape) for name, t in batch.items()} == expected
    pair: Any = SimpleNamespace(
        config=SimpleNamespace(vision_config=picture, text_config=text, get_text_config=lambda: text),
        main_input_name="input_ids",
    )
    batch = natural("hf:clip", pair, 0).batch
    assert set(batch) == {"pixel_values", "input_ids"} and int(batch["input_ids"].max()) < 90
    odd: Any = SimpleNamespace(config=SimpleNamespace(), main_input_name="mesh")
    with pytest.raises(iw.InitwellError, match="hf:odd does not say what it takes"):
        natural("hf:odd", odd, 0)


def test_a_configuration_of_transformers_is_predicted_from_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    with torch.random.fork_rng():
        found = parsed(capsys, "hf:mobilenet_v1", "--device", "meta")
    assert found["inputs"][0]["shape"] == [8, 3, 224, 224]
    assert any("No weights were allocated" in note for note in found["notes"])
    assert found["rows"][0]["forward_rms"] > 0
