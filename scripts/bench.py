"""Time what initwell promises to be quick: medians of several runs, one thread, ratios taken within one run."""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

import initwell as iw
from initwell.initializers.distributions import Distribution, Normal, TruncatedNormal, Uniform
from initwell.records import Row, TableRecord
from initwell.sampling.fill import fill

SIZE = 4_000_000
GAINS = """
import time
from initwell.theory.activations import activation_names
from initwell.theory.gain import gain
started = time.process_time()
found = [gain(name) for name in activation_names()]
print(time.process_time() - started)
"""
IMPORT = """
import time
import torch
started = time.perf_counter()
import initwell
{first_use}
print(time.perf_counter() - started)
"""


class Bench(TableRecord):
    """What was timed, one a row."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def table_title(self) -> str:
        return f"Medians; one thread, torch {torch.__version__}"

    def table_columns(self) -> tuple[str, ...]:
        return ("what", "seconds", "per_second", "over_torch")

    def table_rows(self) -> list[Row]:
        return self.rows


def in_fresh_process(code: str, runs: int) -> float:
    """Median of the number that ``code`` prints, each run in a process of its own."""
    command = [sys.executable, "-c", code]
    return statistics.median(
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(runs)
    )


def medians(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> tuple[float, float]:
    """Median time of ours, and the median of the ratios to theirs, run in turn."""
    times, ratios = [], []
    for _ in range(runs):
        pair = []
        for function in (ours, theirs):
            started = time.perf_counter()
            function()
            pair.append(time.perf_counter() - started)
        times.append(pair[0])
        ratios.append(pair[0] / pair[1])
    return statistics.median(times), statistics.median(ratios)


def draws(runs: int) -> list[Row]:
    """Draw four million values each way, beside PyTorch's own generator."""
    tensor = torch.empty(SIZE)
    cases: list[tuple[str, Distribution, Callable[[], object]]] = [
        ("uniform", Uniform(-1.0, 1.0), lambda: nn.init.uniform_(tensor)),
        ("normal", Normal(0.0, 1.0), lambda: nn.init.normal_(tensor)),
        ("truncated normal", TruncatedNormal(0.0, 1.0), lambda: nn.init.trunc_normal_(tensor)),
    ]
    rows: list[Row] = []
    with torch.random.fork_rng(devices=[]):
        for name, distribution, theirs in cases:
            seconds, ratio = medians(lambda d=distribution: fill(d, (SIZE,), seed=0, name="w"), theirs, runs)  # type: ignore[misc]
            rows.append(
                {"what": f"draw {SIZE:,} {name}", "seconds": seconds, "per_second": SIZE / seconds, "over_torch": ratio}
            )
    return rows


def model_init(runs: int) -> Row:
    """Initialize a 16-layer network of 17 million parameters, beside ``kaiming_normal_`` on each weight."""
    model = nn.Sequential(*(m for _ in range(16) for m in (nn.Linear(1024, 1024), nn.ReLU())))
    weights = [p for p in model.parameters() if p.dim() == 2]
    with torch.random.fork_rng(devices=[]):
        seconds, ratio = medians(
            lambda: iw.init_(model, "kaiming"), lambda: [nn.init.kaiming_normal_(w) for w in weights], runs
        )
    count = sum(p.numel() for p in model.parameters())
    return {
        "what": "init_ kaiming, 17 M weights",
        "seconds": seconds,
        "per_second": count / seconds,
        "over_torch": ratio,
    }


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=5, help="of each (default 5)")
    runs: int = options.parse_args().runs
    torch.set_num_threads(1)
    names = len(iw.activation_names())
    rows: list[Row] = [
        {"what": f"gains of all {names} activations, first use (CPU)", "seconds": in_fresh_process(GAINS, runs)},
        {"what": "import initwell, after torch", "seconds": in_fresh_process(IMPORT.format(first_use=""), runs)},
        {
            "what": "import initwell and reach init_",
            "seconds": in_fresh_process(IMPORT.format(first_use="initwell.init_"), runs),
        },
        *draws(runs),
        model_init(runs),
    ]
    print(Bench(rows))


if __name__ == "__main__":
    main()
