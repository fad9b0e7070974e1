"""How close `predict` comes to measurement: errors of rms over weight seeds, forward and backward, model by model.

Also its single components against the figures published for them, and its speed. `--only` picks models by name,
`--random N` takes N architectures of transformers that are in no list here.
"""

import argparse
import json
import re
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

import initwell as iw
from predict_bench.compare import Outcome, outcome
from predict_bench.tables import TABLES
from predict_bench.zoo.catalogue import catalogue


def prepare() -> None:
    """One thread a process; models of others warn of what is none of our business."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # What is imported on first use must not count as the first model's time.
    iw.predict(torch.nn.Linear(2, 2), torch.ones(2, 2))


def of_zoo(task: tuple[str, tuple[str, ...], int]) -> list[Outcome]:
    """Run one model of the zoo at every start."""
    name, starts, seeds = task
    entry = catalogue()[name]
    return [outcome(name, entry, start, seeds) for start in starts]


def run_zoo(only: str, starts: tuple[str, ...], seeds: int, jobs: int) -> Iterator[Outcome]:
    """Yield the outcomes of the zoo's models in whose names the expression is found."""
    names = [name for name in catalogue() if re.search(only, name)]
    tasks = [(name, starts, seeds) for name in names]
    if jobs == 1:
        yield from (found for task in tasks for found in of_zoo(task))
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), prepare) as pool:
        for found in pool.map(of_zoo, tasks):
            yield from found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="draws of the weights; with --random, see --seed")
    parser.add_argument("--schemes", default="pytorch,kaiming,xavier")
    parser.add_argument("--only", default="", help="a regular expression that is found in the models' names")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--json", type=Path, help="write every value there")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    prepare()
    outcomes: list[Outcome] = []
    starts = tuple(chosen.schemes.split(","))
    for found in run_zoo(chosen.only, starts, chosen.seeds, chosen.jobs):
        outcomes.append(found)
        print(f"{len(outcomes)}. {found.model}, {found.start}", file=sys.stderr, flush=True)
    for table in TABLES:
        print(table(outcomes), end="\n\n")
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(o) for o in outcomes]), encoding="utf-8")


if __name__ == "__main__":
    main()
