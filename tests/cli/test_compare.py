"""``initwell compare``: it resumes, records what diverges, and says what it cannot use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from initwell.cli.main import main
from initwell.experiments.store import RunStore, StoreError

SMALL = ["compare", "--model", "zoo:mlp:depth=1,width=4", "--epochs", "1", "--batch-size", "500", "--workers", "1"]


def compare(out: Path, *words: str) -> int:
    return main([*SMALL, "--out", str(out), "--schemes", "xavier,zeros", "--seeds", "2", *words])


def test_it_trains_resumes_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path) == 0
    first = capsys.readouterr()
    assert "compare: 4/4" in first.err
    assert "xavier" in first.out and str(tmp_path / "index.html") in first.out.replace("\n", "")
    assert compare(tmp_path) == 0
    assert "4 of 4 runs were finished before" in " ".join(capsys.readouterr().out.split())
    assert compare(tmp_path, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["scheme"] for row in rows] == ["xavier", "zeros", "xavier", "zeros"]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "xavier is best" in page
    assert "initwell compare --model zoo:mlp:depth=1,width=4" in page
    assert {p.name for p in tmp_path.glob("*.png")} == {"curves-1.png"}


def test_a_learning_rate_that_diverges_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, "--lr", "1e30", "--seeds", "1", "--json") == 0
    status = {row["scheme"]: row["status"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert status["xavier"] == "diverged"
    assert set(status) == {"xavier", "zeros"}
    # Nothing is left to draw for the runs that diverged; the page is there all the same.
    assert (tmp_path / "index.html").is_file()
    assert main([*SMALL, "--out", str(tmp_path), "--schemes", "xavier", "--seeds", "1", "--lr", "1e30"]) == 0
    assert "no run came to its end" in (tmp_path / "index.html").read_text(encoding="utf-8")


LOUD = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        print("built", flush=True)
        self.layer = nn.Linear(784, 10)
    def forward(self, x):
        if self.broken:
            raise ValueError("no way through")
        return self.layer(x.flatten(1))
class Works(Net):
    broken = False
class Broken(Net):
    broken = True
"""


def test_a_model_that_never_runs_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "never_runs.py").write_text(LOUD)
    words = ["compare", "--model", f"{tmp_path}/never_runs.py:Broken", "--schemes", "xavier", "--seeds", "1"]
    assert main([*words, "--epochs", "1", "--workers", "1", "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "No run could be made" in err and "no way through" in err


def test_what_a_model_prints_in_the_workers_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    words = [sys.executable, "-m", "initwell", "compare", "--model", "loud.py:Works", "--schemes", "xavier", "--json"]
    words += ["--seeds", "2", "--epochs", "1", "--batch-size", "500", "--workers", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [row["status"] for row in json.loads(done.stdout)["rows"]] == ["done", "done"]
    assert "built" in done.stderr


def test_a_full_disk_is_said_and_finished_runs_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = RunStore.finish
    kept: list[object] = []

    def fills_up(store: RunStore, *given: object) -> object:
        if kept:
            raise StoreError("runs.db: the run could not be kept (database or disk is full). 1 finished runs stand.")
        kept.append(given)
        return keep(store, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(RunStore, "finish", fills_up)
    assert compare(tmp_path) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "1 finished runs stand" in said.err
    monkeypatch.undo()
    assert compare(tmp_path) == 0
    assert "1 of 4 runs were finished before" in " ".join(capsys.readouterr().out.split())


def test_interrupted_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunStore, "finish", interrupt)
    assert compare(tmp_path) == 130
    assert "run the same command to resume" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--schemes", "xavier,kaimin"], "Did you mean 'kaiming'?"),
        (["--schemes", "xavier,xavier"], "Name each scheme once"),
        (["--schemes", ","], "write names with commas"),
        (["--lr", "0"], "above zero"),
        (["--lr", "nan"], "above zero"),
        (["--optimizer", "sdg"], "Did you mean 'sgd'?"),
        (["--policy", "stepp"], "Did you mean 'step'?"),
        (["--activation", "rellu"], "relu"),
        (["--depth", "2"], "--depth names it too"),
        (["--norm", "bach"], "batch"),
        (["--data", "mnist-5"], "mnist-5"),
        (["--model", "zoo:mpl"], "Did you mean 'mlp'?"),
        (["--model", "nothing"], "Name it as path.py:callable"),
        (["--preparation", "whitten"], "whiten"),
        (["--warmup-steps", "-1"], "warmup_steps"),
    ],
)
def test_bad_input_is_exit_code_2_and_a_cure(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, *words) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert said in " ".join(err.split())


@pytest.mark.parametrize(
    ("name", "content"),
    [("data_batch_1.bin", b"\x00" * 3000), ("train-images-idx3-ubyte", b"\x00\x00\x08\x03\x00\x00\x00\x05")],
)
def test_a_truncated_data_file_is_named(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for other in ("test_batch.bin", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        if other.endswith(".bin") == name.endswith(".bin"):
            (folder / other).write_bytes(content)
    (folder / name).write_bytes(content)
    assert compare(tmp_path / "out", "--data", str(folder)) == 2
    said = capsys.readouterr().err
    assert str(folder) in said.replace("\n", "")


def test_models_of_a_file_are_trained_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my_compared_models.py"
    path.write_text(
        "from torch import nn\n"
        "def net(shape, classes, width=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, classes))\n"
        "def empty():\n    return nn.Flatten()\n"
    )
    assert compare(tmp_path / "out", "--model", f"{path}:net", "--seeds", "1", "--width", "3,5") == 0
    capsys.readouterr()
    assert compare(tmp_path / "out", "--model", f"{path}:empty", "--seeds", "1") == 2
    assert "no parameters" in capsys.readouterr().err


def test_out_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert compare(tmp_path / "file") == 2
    assert "It is a file" in " ".join(capsys.readouterr().err.split())
