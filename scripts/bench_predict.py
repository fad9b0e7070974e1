"""How close `predict` comes to measurement: errors of rms over weight seeds, forward and backward, model by model.

Also its single components against the figures published for them, and its speed. `--only` picks models of the zoo by
name, `--random N` takes N architectures of transformers that no list here names, `--timm` one model of each of timm's
families, if that is installed, and `--images DATA` the zoo's models of images on real ones instead of noise.
"""

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

import initwell as iw
from predict_bench import components, drawn, speed
from predict_bench.compare import Outcome, outcome
from predict_bench.tables import TABLES, Table
from predict_bench.zoo import families, pictures
from predict_bench.zoo.catalogue import catalogue

PARTS = ("models", "components", "speed")
Run = Callable[[str], list[Outcome]]


def prepare() -> None:
    """One thread a process; models of others warn of what is none of our business."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # What is imported on first use must not count as the first model's time.
    iw.predict(torch.nn.Linear(2, 2), torch.ones(2, 2))


def of_zoo(name: str, *, starts: Sequence[str], seeds: int, folder: Path | None) -> list[Outcome]:
    """Run one model of the zoo at every start."""
    entry = catalogue()[name]
    return [outcome(name, entry, start, seeds, folder=folder) for start in starts]


def of_families(name: str, *, starts: Sequence[str], seeds: int, folder: Path | None) -> list[Outcome]:
    """Run one of timm's models at every start."""
    entry = families.zoo()[name]
    return [outcome(name, entry, start, seeds, folder=folder) for start in starts]


def of_pictures(name: str, *, starts: Sequence[str], seeds: int, folder: Path | None, source: str) -> list[Outcome]:
    """Run one model of the zoo on real images at every start."""
    entry = pictures.zoo(source)[name]
    held = folder / Path(source).name if folder else None
    return [outcome(name, entry, start, seeds, folder=held) for start in starts]


def of_lot(name: str, *, starts: Sequence[str], seeds: int, folder: Path | None) -> list[Outcome]:
    """Run one architecture of transformers at every start; one outcome that says why, where it cannot be built."""
    try:
        entry = drawn.entry(name)
    except drawn.CannotBuildError as error:
        return [Outcome(name, "", error=" ".join(str(error).split())[:200])]
    return [outcome(name, entry, start, seeds, folder=folder) for start in starts]


@contextmanager
def workers(jobs: int) -> Iterator[Callable[[Run, Sequence[str]], Iterator[list[Outcome]]]]:
    """Give a map over names that runs in so many processes."""
    if jobs == 1:
        yield map
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), prepare) as pool:
        yield pool.map


def run_zoo(names: Iterable[str], only: str, run: Run, jobs: int) -> Iterator[list[Outcome]]:
    """Yield the outcomes of those models in whose names the expression is found."""
    with workers(jobs) as spread:
        yield from spread(run, [name for name in names if re.search(only, name)])


def run_lot(count: int, seed: int, run: Run, jobs: int) -> Iterator[list[Outcome]]:
    """Yield the outcomes of architectures in an order drawn by lot, until so many could be built."""
    with workers(jobs) as spread:
        names = drawn.order(seed)
        for i in range(0, len(names), jobs):
            for found in spread(run, names[i : i + jobs]):
                if count == 0:
                    return
                count -= bool(found[0].start)
                yield found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="draws of the weights")
    parser.add_argument("--schemes", default="pytorch,kaiming,xavier")
    parser.add_argument("--only", default="", help="a regular expression that is found in the models' names")
    parser.add_argument("--random", type=int, default=0, help="this many architectures by lot, instead of the zoo")
    parser.add_argument("--timm", action="store_true", help="one model of each of timm's families, instead of the zoo")
    parser.add_argument(
        "--images", help="mnist-5k, or a folder of MNIST or CIFAR-10: the zoo's models of images on these"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the lot")
    parser.add_argument("--parts", default=None, help=f"of {','.join(PARTS)}; all, or models alone if some are chosen")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--measured", type=Path, help="a folder: keep there what is measured, and read it from there")
    parser.add_argument("--json", type=Path, help="write every value there")
    chosen = parser.parse_args()
    if chosen.parts is None:
        chosen.parts = "models" if chosen.only or chosen.random or chosen.timm or chosen.images else ",".join(PARTS)
    unknown = set(chosen.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    return chosen


def run_models(chosen: argparse.Namespace) -> list[Outcome]:
    """Run the zoo, or what was drawn by lot; say on stderr how far it is."""
    one: Callable[..., list[Outcome]] = of_lot if chosen.random else of_families if chosen.timm else of_zoo
    if chosen.images:
        one = partial(of_pictures, source=chosen.images)
    work = partial(one, starts=chosen.schemes.split(","), seeds=chosen.seeds, folder=chosen.measured)
    outcomes: list[Outcome] = []
    skipped: list[str] = []
    if chosen.random:
        every = run_lot(chosen.random, chosen.seed, work, chosen.jobs)
    else:
        names = pictures.zoo(chosen.images) if chosen.images else families.zoo() if chosen.timm else catalogue()
        every = run_zoo(names, chosen.only, work, chosen.jobs)
    for found in every:
        print(found[0].model, file=sys.stderr, flush=True)
        if found[0].start:
            outcomes += found
        else:
            skipped.append(f"{found[0].model}: {found[0].error}")
    if skipped:
        rows = [{"architecture": line} for line in skipped]
        print(Table("Drawn, but not to be built small", ("architecture",), tuple(rows)), end="\n\n")
    return outcomes


def hashing_evenly() -> None:
    """Start anew with one hash seed: models that go over sets of names run their ops in an order that hangs on it.

    What was kept of a measurement, ModernBERT's for one, would else be compared with other ops.
    """
    if "PYTHONHASHSEED" not in os.environ:
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    chosen = arguments()
    hashing_evenly()
    prepare()
    if "components" in chosen.parts:
        print(components.table(), end="\n\n")
    if "speed" in chosen.parts:
        print(speed.table(), end="\n\n", flush=True)
    if "models" in chosen.parts:
        outcomes = run_models(chosen)
        for table in TABLES:
            print(table(outcomes), end="\n\n")
        if chosen.json:
            chosen.json.write_text(json.dumps([asdict(o) for o in outcomes]), encoding="utf-8")


if __name__ == "__main__":
    main()
