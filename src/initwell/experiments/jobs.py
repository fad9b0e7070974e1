"""Independent jobs, one spawned process a core with one torch thread each; results come as they end."""

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import Any, TypeVar

from initwell.errors import ArgumentError, UnknownNameError
from initwell.experiments.ended import Ended, call_here
from initwell.experiments.pool import Pool

Result = TypeVar("Result")
BACKENDS = ("local", "ray")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_workers(workers: int | None) -> None:
    """Refuse a number of processes that is none.

    Raises:
        ArgumentError: not a whole number from 1, nor None.
    """
    if workers is not None and not (isinstance(workers, int) and workers >= 1):
        raise ArgumentError("workers", workers, "Give a whole number from 1, or None for one a core.")


def run_jobs(
    function: Callable[..., Any],
    items: Iterable[Any],
    *,
    shared: Any = None,
    workers: int | None = None,
    backend: str = "local",
    pool: Pool | None = None,
) -> Generator[Ended]:
    """Run a function on every item and yield each as it ends, in no fixed order.

    Args:
        function: called as ``function(item)``, or ``function(shared, item)`` if something is shared. One that cannot
            be sent to another process (a lambda, a closure) runs in this one, and ``Ended.note`` says so.
        items: taken one by one, when a process is free for it.
        shared: sent to every process once; None for nothing.
        workers: processes; None for one a core, 1 to stay in this process.
        backend: ``local`` or ``ray``.
        pool: running workers to use instead of starting some.

    Returns:
        A generator of ``Ended``; a job that raised, or whose process died, has its ``error``, and the others go on.
        Closing it ends the workers that were started for it.

    Raises:
        UnknownNameError: no such backend.
        ArgumentError: ``workers`` below 1, or Ray is not installed.

    >>> import math
    >>> sorted(ended.result for ended in run_jobs(math.sqrt, [4.0, 9.0], workers=1))
    [2.0, 3.0]
    """
    if backend not in BACKENDS:
        raise UnknownNameError.among("backend", backend, BACKENDS)
    check_workers(workers)
    if backend == "ray":
        from initwell.experiments.ray_backend import run_on_ray

        return run_on_ray(function, items, shared=shared, workers=workers)
    if pool is None and (workers or cores()) == 1:
        return run_here(function, items, shared=shared, note="")
    return _run_on(pool, workers or cores(), function, items, shared)


def run_all(
    function: Callable[..., Result],
    items: Iterable[Any],
    *,
    shared: Any = None,
    workers: int | None = None,
    pool: Pool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Run a function on every item and return the results in the items' order; the first failure is raised.

    Args:
        function: as for ``run_jobs``.
        items: as for ``run_jobs``.
        shared: as for ``run_jobs``.
        workers: as for ``run_jobs``.
        pool: as for ``run_jobs``.
        progress: told how many are done, and of how many.

    >>> import math
    >>> run_all(math.sqrt, [4.0, 9.0], workers=1)
    [2.0, 3.0]
    """
    work = list(items)
    results: dict[int, Result] = {}
    many = min(workers or cores(), len(work) or 1)
    with closing(run_jobs(function, work, shared=shared, workers=many, pool=pool)) as running:
        for ended in running:
            if ended.error is not None:
                raise ended.error
            results[ended.index] = ended.result
            if progress:
                progress(len(results), len(work))
    return [results[index] for index in range(len(work))]


def run_here(function: Callable[..., Any], items: Iterable[Any], *, shared: Any, note: str) -> Generator[Ended]:
    """Run every item in this process, with one torch thread as the workers have."""
    for index, item in enumerate(items):
        yield call_here(function, index, item, shared, note)


def _run_on(
    pool: Pool | None, workers: int, function: Callable[..., Any], items: Iterable[Any], shared: Any
) -> Generator[Ended]:
    if pool is not None:
        yield from pool.run(function, items, shared)
        return
    with Pool(workers) as fresh:
        yield from fresh.run(function, items, shared)
