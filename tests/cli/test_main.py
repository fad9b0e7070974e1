"""Exit codes, streams and messages of the command line."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from initwell.cli.main import main
from initwell.cli.output import Output
from initwell.records import Record

MLP = "zoo:mlp:depth=2,width=8"
INPUT = ["--input", "4x1x4x4"]


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must fail on its input; return what it says, which is never a traceback."""
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return " ".join(err.split())


def parsed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """Run a command with --json; return its output, which must be JSON from the first byte to the last."""
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gain", "gelux"], "'gelux'. Did you mean 'gelu'"),
        (["gain"], "activation: got nothing"),
        (["gain", "leaky_relu:slope"], "key=value"),
        (["gain", "relu", "--q", "-1"], "q: got -1"),
        (["gain", "nosuch.py:f"], "There is no file nosuch.py"),
        (["gain", "no.such.module:f"], "There is no module 'no'"),
        (["plan", MLP, *INPUT], "Give --scheme with one of:"),
        (["plan", MLP, *INPUT, "--scheme", "kaimin"], "Did you mean 'kaiming'?"),
        (["plan", MLP, *INPUT, "--scheme", "kaiming", "--activation", "rellu"], "'relu'"),
        (["plan", MLP, *INPUT, "--scheme", "kaiming", "--rule", "x"], "Write PATTERN=SCHEME"),
        (["plan", "resnet", "--scheme", "kaiming"], "Name it as path.py:callable"),
        (["plan", "zoo:mlp", "--scheme", "kaiming"], "give --input 8x1x28x28 or --data"),
        (["predict", "zoo:lenet", "--input", "8,16"], "was read as 2 inputs, of shapes (8,) and (16,)"),
        (
            ["predict", "zoo:lenet", "--input", "8"],
            "input: got '8'. Its samples are single numbers",
        ),
        (["plan", "zoo:mpl", *INPUT, "--scheme", "kaiming"], "Did you mean 'mlp'?"),
        (["plan", "zoo:mlp:dept=3", *INPUT, "--scheme", "kaiming"], "Did you mean 'depth'?"),
        (["plan", MLP, "--input", "4xx4", "--scheme", "kaiming"], "'4xx4'. Write a shape"),
        (["plan", MLP, "--input", "0x3", "--scheme", "kaiming"], "'0x3'. Write a shape"),
        (["measure", MLP], "input: got nothing. Give --input"),
        (["measure", MLP, *INPUT, "--data", "mnist-5k"], "leave one of the two out"),
        (["measure", MLP, *INPUT, "--loss", "cross-entropy"], "It needs labels: give --data"),
        (["measure", MLP, "--data", "/no/such/dir"], "/no/such/dir"),
        (["measure", MLP, *INPUT, "--format", "caffe", "--json"], "leave --json out"),
        (["measure", "torch.nn:ReLU", "--input", "2x3"], "has no parameters"),
        (["init", MLP, *INPUT, "--plan", "no.json"], "no.json"),
        (["reproduce"], "--list shows them"),
        (["reproduce", "calibratd"], "Did you mean 'calibrated'?"),
        ([], "the following arguments are required"),
        (["frobnicate"], "invalid choice"),
        (["reproduce", "calibrated", "--seeds", "0"], "write a whole number of at least 1"),
    ],
)
def test_bad_input_is_exit_code_2_and_a_cure(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in fails(capsys, *words)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_are_exit_code_0(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    assert "initwell" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["gain", "plan", "init", "measure", "predict", "compare", "reproduce", "demo"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: initwell {command}" in out
    assert len(out.splitlines()) > 5


def test_help_speaks_of_no_option_that_no_command_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    named = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert named <= {"--help", "--version"}


def test_a_callable_that_is_not_pointwise_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd_functions.py"
    path.write_text("def total(x):\n    return x - x.sum()\ndef pole(x):\n    return 1 / (x * 0)\n")
    assert "pointwise" in fails(capsys, "gain", f"{path}:total")
    assert "finite" in fails(capsys, "gain", f"{path}:pole")
    assert "has no 'nothere'; it has pole, total" in fails(capsys, "gain", f"{path}:nothere")


def test_a_model_file_that_fails_is_named_with_its_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken_model.py"
    path.write_text(
        "def net():\n    raise RuntimeError('no such layer')\n"
        "def number():\n    return 3\n"
        "import not_installed_at_all\n"
    )
    words = ["plan", f"{path}:net", "--scheme", "kaiming"]
    assert "import of 'not_installed_at_all' failed" in fails(capsys, *words)
    path.write_text(path.read_text().rpartition("import")[0])
    assert "RuntimeError: no such layer" in fails(capsys, *words)
    assert "It gave an object of type int, not a torch.nn.Module" in fails(
        capsys, "plan", f"{path}:number", "--scheme", "kaiming"
    )


def test_a_model_that_ends_the_process_prints_or_is_no_function(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "loud_models.py"
    path.write_text(
        "import sys\nfrom torch import nn\n"
        "def leaves():\n    sys.exit(7)\n"
        "def prints():\n    print('one layer')\n    return nn.Linear(4, 2)\n"
        "made = nn.Linear(4, 2)\n"
    )
    assert "sys.exit(7)" in fails(capsys, "plan", f"{path}:leaves", "--scheme", "kaiming")
    assert "It is a model already; name a function" in fails(capsys, "plan", f"{path}:made", "--scheme", "kaiming")
    assert main(["plan", f"{path}:prints", "--scheme", "kaiming", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"] and "one layer" in err


def test_what_would_have_no_effect_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "plan.json"
    assert main(["plan", MLP, *INPUT, "--scheme", "kaiming", "--out", str(saved)]) == 0
    capsys.readouterr()
    for option in (["--rule", "output=zeros"], ["--only", "output*"], ["--activation", "tanh"]):
        said = fails(capsys, "init", MLP, *INPUT, "--plan", str(saved), *option)
        assert f"The plan decides that already; leave {option[0]} out" in said
    assert "--all names it too" in fails(capsys, "gain", "--all", "relu")
    assert "There is no folder of that name. Known: mnist-5k." in fails(capsys, "measure", MLP, "--data", "nowhere")


@pytest.mark.parametrize(
    ("library", "package"), [("timm", "timm"), ("torchvision", "torchvision"), ("hf", "transformers")]
)
def test_a_library_that_is_absent_is_named_with_its_cure(
    library: str, package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = fails(capsys, "plan", f"{library}:resnet18", "--scheme", "kaiming")
    assert f"{package} is not installed: pip install {package}" in said


def test_nan_input_and_shapes_without_a_fan_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd_models.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "class Nan(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.inner = nn.Linear(4, 2)\n"
        "    def forward(self, x):\n        raise ValueError('cannot run here')\n"
    )
    said = fails(capsys, "measure", f"{path}:Nan", "--input", "2x4")
    assert "ValueError: cannot run here. Check that the batch" in said


def test_interrupted_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("initwell.cli.reproduce._run_all", interrupt)
    assert main(["reproduce", "calibrated"]) == 130
    assert "finished claims stand; add --resume" in " ".join(capsys.readouterr().err.split())


def test_json_is_pure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    gains = parsed(capsys, "gain", "gelu", "relu")["rows"]
    assert [g["activation"] for g in gains] == ["gelu", "relu"]
    assert gains[1]["forward"] == pytest.approx(2**0.5, rel=1e-12)
    rows = parsed(capsys, "plan", MLP, *INPUT, "--scheme", "kaiming", "--out", str(tmp_path / "p.json"))["rows"]
    assert [r["parameter"] for r in rows][:2] == ["hidden1.weight", "hidden1.bias"]
    assert {"forward_rms", "gradient_rms"} <= set(parsed(capsys, "measure", MLP, *INPUT)["rows"][0])
    assert "calibrated" in [row["name"] for row in parsed(capsys, "reproduce", "--list")["rows"]]


@pytest.mark.parametrize(
    "words", [["gain", "--all"], ["plan", MLP, *INPUT, "--scheme", "kaiming"], ["measure", MLP, *INPUT]]
)
def test_eighty_columns_are_enough_and_what_is_left_out_is_said(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(words) == 0
    narrow = capsys.readouterr().out
    assert max(len(line) for line in narrow.splitlines()) <= 80
    assert "No room here for:" in narrow
    assert "\x1b[" not in narrow
    monkeypatch.setenv("COLUMNS", "400")
    assert main(words) == 0
    assert "No room here for:" not in capsys.readouterr().out


def test_a_plan_can_be_saved_replayed_and_its_weights_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file

    saved, direct, again = tmp_path / "plan.json", tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    scheme = ["--scheme", "orthogonal", "--seed", "3"]
    assert main(["plan", MLP, *INPUT, *scheme, "--out", str(saved)]) == 0
    capsys.readouterr()
    receipt = parsed(capsys, "init", MLP, *INPUT, *scheme, "--out", str(direct))
    assert main(["init", MLP, *INPUT, "--plan", str(saved), "--out", str(again)]) == 0
    weights = load_file(direct)
    assert list(weights) == sorted(r["parameter"] for r in receipt["rows"])
    assert direct.read_bytes() == again.read_bytes()
    square = weights["hidden2.weight"]
    assert (square.T @ square - torch.eye(8)).abs().max() < 1e-5


def test_without_safetensors_the_cure_comes_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    said = fails(capsys, "init", MLP, *INPUT, "--scheme", "xavier", "--out", str(tmp_path / "w.safetensors"))
    assert "pip install 'initwell[safetensors]'" in said


def test_measure_prints_caffe_lines_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["measure", MLP, "--data", "mnist-5k", "--batch-size", "8", "--scheme", "xavier", "--loss", "cross-entropy"]
    assert main([*words, "--format", "caffe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("    [Forward] Layer data, top blob data data: ")
    assert lines[-1].startswith("    [Backward] All net params (data, diff): L1 norm = (")
    assert main([*words, "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "The signal is level" in page
    assert (tmp_path / "page" / "signal-by-depth.png").stat().st_size > 10_000


def test_the_installed_command_runs_and_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m initwell gain --all | head -n 2"
    ended = subprocess.run(["/bin/bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[0].startswith("Gain at second moment 1")


@dataclass(frozen=True)
class Named(Record):
    name: str


def shell(command: str) -> subprocess.CompletedProcess[str]:
    words = f"{sys.executable} -m initwell predict {MLP} {' '.join(INPUT)} {command}"
    return subprocess.run(["/bin/bash", "-o", "pipefail", "-c", words], capture_output=True, text=True, check=False)


def test_a_pipe_that_is_closed_before_the_table_is_no_error() -> None:
    ended = shell("| true")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_letters_that_the_terminal_has_not_are_no_failure() -> None:
    table = shell("| cat").stdout
    poor = subprocess.run(
        [sys.executable, "-m", "initwell", "predict", MLP, *INPUT],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert poor.returncode == 0 and poor.stderr == "" and "×" in table
    assert "hidden1" in poor.stdout and poor.stdout.isascii()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("form", ["", "--json"])
def test_a_full_disk_is_said(form: str) -> None:
    ended = shell(f"{form} > /dev/full")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "The result cannot be written: [Errno 28] No space left on device" in ended.stderr


def test_json_in_a_poor_alphabet_is_the_same_json(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    Output(json=True).list([Named("ü × 日本")])
    sys.stdout.flush()
    assert json.loads(written.getvalue().decode("ascii")) == [{"name": "ü × 日本"}]


def test_a_learning_rate_adds_the_size_of_the_updates(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["measure", MLP, *INPUT, "--lr", "0.1"]
    assert main([*words, "--json"]) == 0
    for row in json.loads(capsys.readouterr().out)["parameters"]:
        assert row["update_ratio"] == pytest.approx(0.1 * row["gradient_rms"] / row["weight_rms"])
    assert main([*words, "--parameters"]) == 0
    assert "update_ratio" in capsys.readouterr().out
    assert main([*words, "--format", "caffe"]) == 0
    assert "    [Update] Layer " in capsys.readouterr().out
    assert main(["measure", MLP, *INPUT, "--lr", "-1"]) == 2
    assert "learning_rate: got -1.0" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, "reproduce", "--all", "--quick", "--out", "/proc/initwell")
    assert "out: got /proc/initwell" in said and "cannot be written" in said
