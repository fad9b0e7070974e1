"""Long-lived worker processes: each imports torch once, takes one job at a time, and may die without the others."""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from initwell.errors import ArgumentError
from initwell.experiments.ended import Ended, JobError, call, call_here, sendable

_NESTED = 93
_READY = b"ready"
_PATIENCE = 10.0


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    ready: bool = False
    holds: int = 0
    job: tuple[int, Any] | None = field(default=None)


class Pool:
    """Processes that wait for jobs; a context manager.

    >>> import math
    >>> with Pool(1) as pool:
    ...     print([ended.result for ended in pool.run(math.sqrt, [4.0, 9.0])])
    [2.0, 3.0]
    """

    def __init__(self, workers: int) -> None:
        """Make a pool of so many processes; they start with the first job."""
        if workers < 1:
            raise ArgumentError("workers", workers, "Give a whole number from 1.")
        _stop_if_nested()
        self._size = workers
        self._workers: list[_Worker] = []
        self._shares = itertools.count(1)

    def __enter__(self) -> "Pool":
        """Return the pool."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the processes."""
        self.close()

    def close(self) -> None:
        """End the processes; they keep nothing, so at once."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in list(self._workers):
            self._drop(worker)

    def run(self, function: Callable[..., Any], items: Iterable[Any], shared: Any = None) -> Generator[Ended]:
        """Run the function on every item and yield each as it ends; see ``jobs.run_jobs``."""
        session = _Session(function, shared, next(self._shares))
        queue = enumerate(items)
        again: deque[tuple[int, Any]] = deque()
        try:
            while True:
                yield from self._assign(session, queue, again)
                busy = [worker for worker in self._workers if worker.job is not None]
                if not busy:
                    return
                for connection in wait([worker.connection for worker in busy]):
                    worker = next(w for w in busy if w.connection is connection)
                    if (ended := self._hear(worker, session, again)) is not None:
                        yield ended
        finally:
            # Left early (an interrupt, a caller that stopped listening): what still works on this must not linger.
            for worker in [w for w in self._workers if w.job is not None]:
                worker.process.terminate()
                self._drop(worker)

    def _assign(
        self, session: "_Session", queue: Iterator[tuple[int, Any]], again: deque[tuple[int, Any]]
    ) -> Iterator[Ended]:
        while True:
            full = len(self._workers) == self._size and all(w.job is not None for w in self._workers)
            if full and not session.here:
                return
            job = again.popleft() if again else next(queue, None)
            if job is None:
                return
            payload = None if session.here else session.pack(*job)
            if payload is None:
                index, item = job
                yield call_here(session.function, index, item, session.shared, session.here or session.unsendable)
                continue
            while len(self._workers) < self._size:
                self._start()  # all together: each takes seconds to import torch
            idle = next(w for w in self._workers if w.job is None)
            self._send(idle, session, job, payload)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))

    def _send(self, worker: _Worker, session: "_Session", job: tuple[int, Any], payload: bytes) -> None:
        worker.job = job
        try:
            if worker.holds != session.number:
                worker.connection.send_bytes(session.packed_shared)
                worker.holds = session.number
            worker.connection.send_bytes(payload)
        except OSError:
            return  # it died; reading from it will say so

    def _hear(self, worker: _Worker, session: "_Session", again: deque[tuple[int, Any]]) -> Ended | None:
        assert worker.job is not None
        index, item = worker.job
        try:
            message = worker.connection.recv_bytes()
        except (EOFError, OSError):
            code = self._drop(worker)
            if not worker.ready:
                session.here = _why_no_start(code)
                again.append((index, item))
                return None
            error = JobError(f"the worker process died with exit code {code}; the other jobs went on.")
            return Ended(index, item, error=error)
        if message == _READY:
            worker.ready = True
            return None
        worker.job = None
        kind, value = pickle.loads(message)  # from our own child process
        if kind == "unloadable":
            session.here = f"Run in one process, one after another: {value}. Define it in a module of its own."
            again.append((index, item))
            return None
        return Ended(index, item, result=value) if kind == "result" else Ended(index, item, error=value)

    def _drop(self, worker: _Worker) -> int | None:
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join(_PATIENCE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        code = worker.process.exitcode
        worker.process.close()
        return code


class _Session:
    """One call of ``run``: what is run, and the bytes of what is shared."""

    def __init__(self, function: Callable[..., Any], shared: Any, number: int) -> None:
        self.function, self.shared, self.number = function, shared, number
        self.here = ""  # why the rest must run in this process
        self.unsendable = ""
        self.packed_shared = b""
        try:
            pickle.dumps(function)
            self.packed_shared = b"S" + pickle.dumps(shared, protocol=5)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.here = (
                f"Run in one process, one after another: it cannot be sent to another ({error}). "
                "Define functions at the top of a module to use all cores."
            )

    def pack(self, index: int, item: Any) -> bytes | None:
        try:
            return b"J" + pickle.dumps((self.function, index, item), protocol=5)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.unsendable = f"Run in this process: it cannot be sent to another ({error})."
            return None


def _stop_if_nested() -> None:
    # A script without `if __name__ == "__main__"` runs again in each child while it starts; end that child quietly,
    # the parent notices the exit code and says what to do.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(_NESTED)


def _why_no_start(code: int | None) -> str:
    if code == _NESTED:
        return (
            "Run in one process, one after another: the script starts work while it is imported. "
            'Put its last part under `if __name__ == "__main__":` to use all cores.'
        )
    return f"Run in one process, one after another: no worker process could be started (exit code {code})."


def _serve(connection: Connection) -> None:
    """Be a worker: answer jobs until the other side closes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # What a model's own code prints here is no result of the parent's.
    with contextlib.suppress(OSError):
        os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears the interrupt and ends us
    import torch

    torch.set_num_threads(1)
    shared: Any = None
    try:
        connection.send_bytes(_READY)
        while True:
            message = connection.recv_bytes()
            try:
                value = pickle.loads(memoryview(message)[1:])  # from our own parent process
            except Exception as error:
                # The share too is answered through the job that follows it: nobody waits for an answer to a share.
                if message[:1] == b"J":
                    connection.send_bytes(pickle.dumps(("unloadable", f"it cannot be loaded in another ({error})")))
                continue
            if message[:1] == b"S":
                shared = value
                continue
            function, index, item = value
            connection.send_bytes(_answer(function, index, item, shared))
    except (EOFError, OSError):
        return


def _answer(function: Callable[..., Any], index: int, item: Any, shared: Any) -> bytes:
    ended = call(function, index, item, shared)
    if ended.error is not None:
        return pickle.dumps(("error", sendable(ended.error)), protocol=5)
    try:
        return pickle.dumps(("result", ended.result), protocol=5)
    except Exception as error:
        return pickle.dumps(("error", JobError(f"its result cannot be sent back: {error}")), protocol=5)
