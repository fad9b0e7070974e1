"""The same jobs on a local Ray, in a process of its own: Ray leaves sockets and warnings behind that are not ours."""

import builtins
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from initwell.errors import ArgumentError
from initwell.experiments.jobs import run_jobs

SCRIPT = """
    import math, operator, os, sys
    import ray, torch
    from initwell.experiments.compare import compare
    from initwell.experiments.data import load
    from initwell.experiments.jobs import run_jobs

    ended = sorted(run_jobs(math.sqrt, [4.0, -1.0, 9.0], workers=2, backend="ray"), key=lambda e: e.index)
    assert [e.result for e in ended] == [2.0, None, 3.0], ended
    assert type(ended[1].error) is ValueError, ended[1]
    assert not ray.is_initialized()

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    died = list(run_jobs(os._exit, [7], backend="ray"))
    assert "Ray task was lost" in str(died[0].error), died
    assert [e.result for e in run_jobs(operator.sub, [1], shared=10, backend="ray")] == [9]
    assert [e.result for e in run_jobs(operator.call, [torch.get_num_threads], backend="ray")] == [1]
    data = load("mnist-5k").subset(100, 50)
    grid = dict(schemes=["xavier", "kaiming"], seeds=2, epochs=1, depths=1, widths=8)
    far = compare("mlp", data, backend="ray", out=sys.argv[1], **grid)
    near = compare("mlp", data, workers=1, **grid)
    for a, b in zip(far.runs, near.runs, strict=True):
        assert a.result.loss_curve == b.result.loss_curve, (a, b)
    # A model of the user's own, in a folder that Ray tells its workers nothing of.
    from initwell.cli.naming import load_callable
    build = load_callable(sys.argv[2] + ":build", "model")
    own = compare(build, data, ["xavier"], 1, epochs=1, backend="ray")
    assert [row["status"] for row in own.rows] == ["done"], own.rows
    again = compare("mlp", data, backend="ray", out=sys.argv[1], **grid)
    assert "4 of 4 runs were finished before" in again.notes[0], again.notes
    assert ray.is_initialized()
    ray.shutdown()
    print("all well")
"""


MODEL = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(784, 10)

        def forward(self, x):
            return self.layer(x.flatten(1))

    def build():
        return Net()
"""


@pytest.mark.slow
def test_a_local_ray_gives_the_same_runs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    away = tmp_path / "elsewhere" / "my_own_model.py"
    away.parent.mkdir()
    away.write_text(textwrap.dedent(MODEL), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out"), str(away)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["all well"], done.stderr[-3000:]


def test_without_ray_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(ArgumentError, match=r"pip install 'initwell\[ray\]'"):
        list(run_jobs(len, ["abc"], backend="ray"))
