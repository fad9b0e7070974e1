"""``initwell demo``: the whole story in one run, from formula to trained network."""

import argparse
import time
from pathlib import Path
from typing import Any

from initwell.cli.naming import count
from initwell.cli.output import Output

# What a narrow terminal shows before the rest.
FIRST = ("scheme", "signal", "gradient", "test_accuracy", "low", "high")


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="signal, gradient and training under six initializations, on one page",
        description="Follow signal and gradient through a deep network and a conv net under six initializations, train "
        "each with several seeds, and write one page. Finished runs are kept; the same command goes on from them.",
    )
    parser.add_argument("--quick", action="store_true", help="few images and one epoch, to see that it works")
    parser.add_argument("--seeds", type=count, default=4, metavar="N", help="runs of each setting (default 4)")
    parser.add_argument("--workers", type=count, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument(
        "--data",
        default="mnist-5k",
        metavar="NAME_OR_DIR",
        help="mnist-5k (default), or a folder of idx or CIFAR-10 files",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="default runs/demo")
    parser.add_argument("--json", action="store_true", help="print JSON to stdout and nothing else")
    parser.set_defaults(run=run, interrupted="finished runs stand; run the same command to resume.")


def run(options: argparse.Namespace, output: Output) -> int:
    """Run the demonstration, print its tables and sentences, and write the page."""
    from initwell.experiments.demo import demo
    from initwell.files import write
    from initwell.report.demo_page import demo_page, demo_table
    from initwell.report.files import safe_name
    from initwell.report.html import save
    from initwell.report.plots import draw
    from initwell.report.text import duration, progress

    began = time.monotonic()
    with progress(output.stderr, "demo") as hear:
        found = demo(
            out=options.out,
            quick=options.quick,
            seeds=options.seeds,
            workers=options.workers,
            data=options.data,
            progress=hear,
        )
    output.remark("Drawing the pictures …")
    pictures = [
        draw(chart, options.out / f"{safe_name(chart.name)}.png") for result in found.results for chart in result.charts
    ]
    write(options.out / "demo.json", found.to_json(indent=1))
    seconds = time.monotonic() - began
    page = save(demo_page(found, seconds, options.command), options.out / "index.html")
    if output.json:
        output.show(found)
        return 0
    for result in found.results:
        output.show(demo_table(result, reading=result is found.results[-1]), FIRST)
        output.say("")
    for verdict in found.results[0].verdicts:
        output.say(f"  {verdict}")
    output.say("")
    output.path(f"{len(pictures)} pictures, done in {duration(seconds)}. Page:", page)
    return 0
