"""The same jobs on a Ray cluster (or a local Ray), one core each; the caller keeps the results."""

import importlib
import sys
import sysconfig
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from initwell.errors import ArgumentError
from initwell.experiments.ended import Ended, JobError, call, sendable


def run_on_ray(
    function: Callable[..., Any], items: Iterable[Any], *, shared: Any = None, workers: int | None = None
) -> Generator[Ended]:
    """Run the function on every item as Ray tasks and yield each as it ends; see ``jobs.run_jobs``.

    Args:
        function: called as ``function(item)``, or ``function(shared, item)`` if something is shared.
        items: taken one by one, as cores come free.
        shared: put into Ray's object store once.
        workers: tasks in flight at most; None for the cluster's cores.

    Returns:
        A generator of ``Ended``. A Ray that is already running is used and left running; one that was started here
        is shut down at the end.

    Raises:
        ArgumentError: Ray is not installed.
    """
    ray = _ray()
    started_here = not ray.is_initialized()
    if started_here:
        # No number of cores: Ray refuses one where RAY_ADDRESS or `ray start` names a cluster that runs already.
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        with _sent_along():
            yield from _in_flight(ray, function, items, shared, workers or int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if started_here:
            ray.shutdown()


@contextmanager
def _sent_along() -> Iterator[None]:
    """Have the code of modules that a worker could not import travel with what uses it, as a model's own file."""
    pickler = importlib.import_module("ray.cloudpickle")
    own = [m for m in _modules_elsewhere() if m.__name__ not in pickler.list_registry_pickle_by_value()]
    for module in own:
        pickler.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            pickler.unregister_pickle_by_value(module)


def _modules_elsewhere() -> list[ModuleType]:
    """Return the loaded modules that are neither installed nor in the folders that Ray hands to its workers."""
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    # Ray gives its workers this folder and that of the script.
    reached = {Path.cwd(), Path(sys.argv[0]).resolve().parent}
    apart = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        top = name.partition(".")[0]
        if not file or top in ("__main__", "__mp_main__", "initwell", "ray"):
            continue
        path = Path(file).resolve()
        up = 1 + name.count(".") if path.name == "__init__.py" else name.count(".")
        home = path.parents[up] if up < len(path.parents) else path.parent
        if home not in reached and not any(path.is_relative_to(root.resolve()) for root in installed):
            apart.append(module)
    return apart


def _in_flight(
    ray: ModuleType, function: Callable[..., Any], items: Iterable[Any], shared: Any, limit: int
) -> Generator[Ended]:
    environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    task = ray.remote(num_cpus=1, max_retries=0, runtime_env=environment)(_task)
    kept = ray.put(shared)
    flying: dict[Any, tuple[int, Any]] = {}
    queue = enumerate(items)
    try:
        while True:
            while len(flying) < limit and (job := next(queue, None)) is not None:
                flying[task.remote(function, job[0], job[1], kept)] = job
            if not flying:
                return
            ready, _ = ray.wait(list(flying), num_returns=1)
            for reference in ready:
                yield _ended(ray, reference, *flying.pop(reference))
    finally:
        for reference in flying:
            ray.cancel(reference, force=True)


def _ended(ray: ModuleType, reference: Any, index: int, item: Any) -> Ended:
    try:
        result, error = ray.get(reference)
    except ray.exceptions.RayError as trouble:
        return Ended(index, item, error=JobError(f"the Ray task was lost: {trouble}"))
    return Ended(index, item, result, error)


def _task(function: Callable[..., Any], index: int, item: Any, shared: Any) -> tuple[Any, Exception | None]:
    import torch

    torch.set_num_threads(1)
    ended = call(function, index, item, shared)
    return ended.result, None if ended.error is None else sendable(ended.error)


def _ray() -> ModuleType:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ArgumentError("backend", "'ray'", "Ray is not installed: pip install 'initwell[ray]'.") from error
