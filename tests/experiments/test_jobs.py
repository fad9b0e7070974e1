"""Jobs on processes: results, failures, deaths, and what cannot be sent. The jobs are other modules' functions, for a
worker process must be able to import them."""

import math
import operator
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from initwell.errors import ArgumentError, UnknownNameError
from initwell.experiments.ended import Ended, JobError, sendable
from initwell.experiments.jobs import run_all, run_jobs
from initwell.experiments.pool import Pool
from initwell.experiments.train import TrainConfig


def sorted_by_place(ended: Iterator[Ended]) -> list[Ended]:
    return sorted(ended, key=lambda end: end.index)


def test_results_and_failures(pool: Pool) -> None:
    ended = sorted_by_place(pool.run(math.sqrt, [4.0, -1.0, 9.0]))
    assert [end.result for end in ended] == [2.0, None, 3.0]
    assert isinstance(ended[1].error, ValueError)
    assert "Raised in a worker process" in ended[1].error.__notes__[0]
    assert [end.item for end in ended] == [4.0, -1.0, 9.0]


def test_the_workers_live_on_with_one_thread_each(pool: Pool) -> None:
    first = {end.result for end in pool.run(operator.call, [os.getpid] * 6)}
    again = {end.result for end in pool.run(operator.call, [os.getpid] * 6)}
    assert len(first | again) <= 2
    assert os.getpid() not in first
    threads = [end.result for end in pool.run(operator.call, [torch.get_num_threads] * 2)]
    assert threads == [1, 1]
    assert [end.result for end in pool.run(os.getenv, ["OMP_NUM_THREADS"])] == ["1"]


def test_what_is_shared_comes_first_and_changes_with_each_call(pool: Pool) -> None:
    assert sorted(end.result for end in pool.run(operator.sub, [1, 2, 3], 10)) == [7, 8, 9]
    assert [end.result for end in pool.run(operator.sub, [1], 20)] == [19]
    tensor = torch.arange(3)
    assert run_all(torch.add, [1, 2], shared=tensor, pool=pool)[1].tolist() == [2, 3, 4]


def test_a_worker_that_dies_costs_its_own_job_only(pool: Pool) -> None:
    ended = sorted_by_place(run_jobs(os._exit, [7], pool=pool))
    assert isinstance(ended[0].error, JobError)
    assert "exit code 7" in str(ended[0].error)
    mixed = sorted_by_place(pool.run(operator.call, [os.getpid, os.abort, os.getpid, os.getpid]))
    assert [type(end.error) for end in mixed] == [type(None), JobError, type(None), type(None)]


def test_a_closure_runs_here_and_says_so(pool: Pool) -> None:
    here = os.getpid()
    ended = list(run_jobs(lambda item: (item, os.getpid()), [1, 2], pool=pool))
    assert [end.result for end in ended] == [(1, here), (2, here)]
    assert all("Run in one process" in end.note for end in ended)


def test_an_item_that_cannot_be_sent_runs_here(pool: Pool) -> None:
    ended = sorted_by_place(pool.run(operator.call, [os.getpid, lambda: 3]))
    assert ended[0].result != os.getpid()
    assert ended[1].result == 3
    assert "Run in this process" in ended[1].note


def test_items_are_taken_when_there_is_room(pool: Pool) -> None:
    taken = []

    def items() -> Iterator[float]:
        for k in range(6):
            taken.append(k)
            yield float(k)

    running = pool.run(math.sqrt, items())
    next(running)
    assert len(taken) < 6
    running.close()
    # A caller that stops listening leaves a pool that still works.
    assert [end.result for end in pool.run(math.sqrt, [4.0])] == [2.0]


def test_in_this_process_with_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ended = list(run_jobs(operator.call, [torch.get_num_threads], workers=1))
        assert [(end.result, end.note) for end in ended] == [(1, "")]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_run_all_keeps_the_order_counts_and_raises(pool: Pool) -> None:
    told: list[tuple[int, int]] = []
    assert run_all(math.sqrt, [9.0, 4.0, 1.0], pool=pool, progress=lambda *a: told.append(a)) == [3, 2, 1]
    assert told == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        run_all(math.sqrt, [4.0, -1.0], pool=pool)
    assert run_all(math.sqrt, [], workers=2) == []


def test_bad_input_is_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'local'"):
        run_jobs(math.sqrt, [], backend="locall")
    with pytest.raises(ArgumentError, match="workers: got 0"):
        run_jobs(math.sqrt, [], workers=0)
    with pytest.raises(ArgumentError, match=r"workers: got 1\.5"):
        run_jobs(math.sqrt, [], workers=1.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="workers: got 0"):
        Pool(0)


def test_errors_that_cannot_travel_are_told_as_text() -> None:
    class Local(Exception):
        """Cannot be pickled: it is defined in a function."""

    told = sendable(Local("odd"))
    assert isinstance(told, JobError)
    assert "Local: odd" in str(told)
    with pytest.raises(ArgumentError) as caught:
        TrainConfig(learning_rate=-1)
    assert sendable(caught.value) is caught.value


def run_script(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text), encoding="utf-8")
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)


def test_a_script_without_a_main_guard_still_runs(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        import math
        from initwell.experiments.jobs import run_jobs
        for end in run_jobs(math.sqrt, [4.0, 9.0], workers=2):
            print(end.result, "__main__" in end.note, flush=True)
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split("\n")) == ["", "2.0 True", "3.0 True"]


def test_an_interrupt_ends_the_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, os, signal, time
            from initwell.experiments.pool import Pool
            if __name__ == "__main__":
                # A shell's background job inherits interrupts that are ignored.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                with Pool(1) as pool:
                    print(next(pool.run(os.getppid, []), "idle"), flush=True)
                    running = pool.run(time.sleep, [0, 60])
                    next(running)
                    print(multiprocessing.active_children()[0].pid, flush=True)
                    next(running)
            """
        ),
        encoding="utf-8",
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        worker = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    assert gone(worker)


def gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
