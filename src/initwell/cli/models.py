"""``initwell plan``, ``init`` and ``measure``: what is done to, and seen of, one model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initwell.cli import asked, batches
from initwell.cli.batches import Example
from initwell.cli.output import Output
from initwell.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn

    from initwell.measurement.measurement import Measurement
    from initwell.report.tables import Table

# What a narrow terminal shows before the rest.
PLAN_FIRST = ("parameter", "std", "reason", "initializer")
MEASURED_FIRST = ("path", "op", "forward_rms", "gradient_rms", "shape", "dead_units", "zeros", "overlap")


def add(commands: Any) -> None:
    """Add the three commands to the parser."""
    plan = commands.add_parser(
        "plan", help="which weights a model would get, and why; touches nothing", description="Plan an initialization."
    )
    asked.add(plan, scheme_needed=True)
    plan.add_argument("--out", type=Path, metavar="FILE.json", help="save the plan, for init --plan")
    plan.set_defaults(run=run_plan)

    init = commands.add_parser(
        "init", help="initialize a model and print the receipt", description="Initialize a model; print the receipt."
    )
    asked.add(init, scheme_needed=True)
    init.add_argument("--plan", type=Path, metavar="FILE.json", help="replay a saved plan instead of --scheme")
    init.add_argument("--out", type=Path, metavar="FILE.safetensors", help="save the initialized weights")
    init.set_defaults(run=run_init)

    measure = commands.add_parser(
        "measure",
        help="signal and gradient sizes through a model",
        description="Send one batch forward and backward; print the size of signal and gradient at every layer.",
    )
    asked.add(measure, scheme_needed=False)
    measure.add_argument(
        "--loss",
        choices=["none", "cross-entropy"],
        default="none",
        help="where the backward starts (default: a random gradient)",
    )
    measure.add_argument(
        "--format", choices=["table", "caffe"], default="table", help="caffe: Caffe's debug_info lines"
    )
    measure.add_argument(
        "--lr",
        type=float,
        metavar="RATE",
        help="of plain gradient descent: adds update-to-weight ratios (see --parameters), or Caffe's [Update] lines",
    )
    measure.add_argument("--parameters", action="store_true", help="the table of weights and their gradients instead")
    measure.add_argument("--out", type=Path, metavar="DIR", help="write a page with pictures there")
    measure.set_defaults(run=run_measure)


def run_plan(options: argparse.Namespace, output: Output) -> int:
    """Print a plan, and save it where that was asked for."""
    example = batches.example(options, required=False)
    found = asked.planned(options, asked.build(options, example), example)
    output.show(found, PLAN_FIRST)
    if options.out:
        found.save(options.out)
        output.path("Saved:", options.out)
    return 0


def run_init(options: argparse.Namespace, output: Output) -> int:
    """Initialize a model, print the receipt, and save the weights where that was asked for."""
    if options.plan and options.scheme:
        raise ArgumentError("scheme", options.scheme, "--plan says already what is drawn; leave one of the two out.")
    given = [name for name in ("rule", "only", "activation") if getattr(options, name)] if options.plan else []
    if given:
        raise ArgumentError(given[0], str(options.plan), f"The plan decides that already; leave --{given[0]} out.")
    save = _saver() if options.out else None
    from initwell.apply.plan import Plan
    from initwell.apply.write import init_

    example = batches.example(options, required=False)
    model = asked.build(options, example)
    chosen = Plan.load(options.plan) if options.plan else asked.planned(options, model, example)
    output.show(init_(model, chosen), PLAN_FIRST)
    if save:
        save(model, options.out)
        output.path("Saved:", options.out)
    return 0


def _saver() -> Any:
    """Return what saves weights; found before any work is done, so that no work is lost for the want of it."""
    try:
        from safetensors.torch import save_model
    except ModuleNotFoundError as error:
        cure = "safetensors is not installed: pip install 'initwell[safetensors]'"
        raise ArgumentError("out", "a file for weights", cure) from error

    def save(model: "nn.Module", path: Path) -> None:
        from initwell.files import write_with

        # save_model knows tied weights, which a plain state_dict would refuse.
        write_with(path, lambda neighbour: save_model(model, str(neighbour)))

    return save


def _loss(options: argparse.Namespace, example: Example) -> Any:
    if options.loss == "none":
        return None
    if example.targets is None:
        raise ArgumentError("loss", options.loss, "It needs labels: give --data mnist-5k instead of --input.")
    import torch

    targets = example.targets
    return lambda out: torch.nn.functional.cross_entropy(out, targets)


def run_measure(options: argparse.Namespace, output: Output) -> int:
    """Print what was measured, and write the page where that was asked for."""
    from initwell.apply.write import init_

    if options.format == "caffe" and options.json:
        raise ArgumentError("format", "caffe", "Caffe's lines are no JSON; leave --json out.")
    example = batches.example(options, required=True)
    assert example is not None
    loss = _loss(options, example)
    model = asked.build(options, example)
    if options.scheme:
        init_(model, asked.planned(options, model, example))
    if options.format == "caffe":
        from initwell.measurement.debug_info import caffe_debug_info

        output.write(caffe_debug_info(model, example.batch, loss=loss, learning_rate=options.lr, seed=options.seed))
        return 0
    from initwell.measurement.probe import measure

    found = measure(model, example.batch, loss=loss, seed=options.seed, learning_rate=options.lr)
    output.show(_parameters(found) if options.parameters and not options.json else found, MEASURED_FIRST)
    if options.out:
        output.path("Page:", _page(options, example, found))
    return 0


def _parameters(found: "Measurement") -> "Table":
    from initwell.report.tables import Table

    with_updates = any(row["update_ratio"] is not None for row in found.parameters)
    ratio = ("update_ratio",) if with_updates else ()
    columns = ("parameter", "shape", "weight_rms", "gradient_rms", *ratio, "weight_abs_mean", "gradient_abs_mean")
    return Table("Parameters and their gradients", columns, tuple(found.parameters))


def _page(options: argparse.Namespace, example: Example, found: "Measurement") -> Path:
    from initwell.report.conditions import conditions
    from initwell.report.depth import depth_chart, depth_words
    from initwell.report.html import Page, Section, save
    from initwell.report.plots import draw

    # The loss is no layer: its size says nothing of the signal's.
    rows = [row for row in found.rows if row["path"] != "(loss)"]
    chart = depth_chart({"measured": rows}, "signal-by-depth", f"{options.model}: signal and gradient by depth")
    scheme = options.scheme or "as built"
    page = Page(
        title=f"{options.model} measured",
        lead=f"Initialization: {scheme}. One batch forward and backward: {example.words}.",
        verdict=depth_words(rows),
        sections=(Section("Signal and gradient by depth", charts=(chart,), tables=(found, _parameters(found))),),
        conditions={"input": example.words, "initialization": scheme, "seed": options.seed, **conditions()},
        commands=(options.command,),
    )
    draw(chart, options.out / f"{chart.name}.png")
    return save(page, options.out / "index.html")
