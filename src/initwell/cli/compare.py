"""``initwell compare``: which initialization trains best, over seeds and settings, with intervals."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initwell.cli.naming import HOW, count, counts, is_callable_name, load_callable, names, numbers, options
from initwell.cli.nets import LIBRARIES, Builder
from initwell.cli.output import Output
from initwell.errors import ArgumentError, ModelError

if TYPE_CHECKING:
    from initwell.charts import Chart
    from initwell.experiments.comparison import Comparison

# What a narrow terminal shows before the rest.
FIRST = (
    "scheme",
    "activation",
    "depth",
    "width",
    "norm",
    "test_accuracy",
    "low",
    "high",
    "learning_rate",
    "diverged",
    "seeds",
)
# Option of a zoo net → the argument of the comparison that varies it.
AXES = {"activation": "activations", "depth": "depths", "width": "widths", "norm": "norms"}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="train under several initializations, with several seeds",
        description="Train a network under each scheme with each seed; finished runs are kept in DIR/runs.db, and the "
        "same command goes on from them.",
    )
    parser.add_argument("--model", required=True, help=HOW)
    parser.add_argument(
        "--data",
        default="mnist-5k",
        metavar="NAME_OR_DIR",
        help="mnist-5k (default), or a folder of idx or CIFAR-10 files",
    )
    parser.add_argument("--schemes", required=True, type=names, metavar="A,B,C", help="initializations to compare")
    parser.add_argument("--seeds", type=count, default=5, metavar="N", help="runs of each setting (default 5)")
    parser.add_argument("--lr", type=numbers, default=[0.1], metavar="A,B", help="learning rates (default 0.1)")
    parser.add_argument("--optimizer", type=names, default=["sgd"], metavar="A,B", help="sgd (default), momentum, adam")
    parser.add_argument("--activation", type=names, metavar="A,B", help="activations, for a model that takes one")
    parser.add_argument("--depth", type=counts, metavar="A,B", help="depths, for a model that takes one")
    parser.add_argument("--width", type=counts, metavar="A,B", help="widths, for a model that takes one")
    parser.add_argument("--norm", type=names, metavar="A,B", help="none, batch, layer, for a model that takes one")
    parser.add_argument("--epochs", type=count, default=5, metavar="N", help="default 5")
    parser.add_argument("--batch-size", type=count, default=128, metavar="N", help="default 128")
    parser.add_argument("--policy", default="fixed", help="learning-rate policy: fixed (default), step, inv, cosine")
    parser.add_argument("--warmup-steps", type=int, default=0, metavar="N", help="steps of linear warm-up (default 0)")
    parser.add_argument(
        "--preparation", default="standardize", metavar="NAME", help="standardize (default), raw, scale, whiten"
    )
    parser.add_argument("--backend", choices=["local", "ray"], default="local", help="where the runs are made")
    parser.add_argument("--workers", type=count, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), metavar="DIR", help="default runs/compare")
    parser.add_argument("--json", action="store_true", help="print JSON to stdout and nothing else")
    parser.set_defaults(run=run, interrupted="finished runs stand; run the same command to resume.")


def run(options: argparse.Namespace, output: Output) -> int:
    """Train what is not trained yet, print the summary, and write the page."""
    from initwell.experiments.compare import compare
    from initwell.report.text import progress

    build, axes = _network(options)
    with progress(output.stderr, "compare") as hear:
        found = compare(
            build,
            options.data,
            options.schemes,
            options.seeds,
            preparation=options.preparation,
            out=options.out,
            backend=options.backend,
            workers=options.workers,
            progress=hear,
            learning_rate=options.lr,
            optimizer=options.optimizer,
            epochs=options.epochs,
            batch_size=options.batch_size,
            policy=options.policy,
            warmup_steps=options.warmup_steps,
            **axes,
        )
    if all(row["status"] == "failed" for row in found.rows):
        raise ModelError(f"No run could be made. {'; '.join(dict.fromkeys(row['reason'] for row in found.rows))}")
    page = _page(options, found)
    if output.json:
        output.show(found)
    else:
        output.show(found.summary(), FIRST)
    output.path("Page:", page)
    return 0


def _network(given: argparse.Namespace) -> tuple[str | Callable[..., Any], Any]:
    """Return what builds the model, and the axes of the grid that belong to it."""
    axes: dict[str, Any] = {"activations": given.activation, "depths": given.depth, "widths": given.width}
    axes["norms"] = [None if norm == "none" else norm for norm in given.norm] if given.norm else None
    axes = {name: values for name, values in axes.items() if values}
    library, _, rest = given.model.partition(":")
    if library == "zoo":
        name, _, written = rest.partition(":")
        own = options(written, "model")
        for option in sorted(set(own) & set(AXES)):
            if AXES[option] in axes:
                raise ArgumentError(option, given.model, f"--{option} names it too; leave one of the two out.")
            axes[AXES[option]] = [own.pop(option)]
        return (Builder(f"zoo:{name}", tuple(own.items())) if own else name), axes
    if library in LIBRARIES or not is_callable_name(given.model):
        return Builder(given.model), axes
    return load_callable(given.model, "model"), axes


def shown(charts: Sequence["Chart"]) -> tuple["Chart", ...]:
    """Return the charts without the panels that nothing is left for, as when every run diverged."""
    from dataclasses import replace

    kept = (replace(chart, panels=tuple(p for p in chart.panels if p.series)) for chart in charts)
    return tuple(chart for chart in kept if chart.panels)


def _page(given: argparse.Namespace, found: "Comparison") -> Path:
    from initwell.files import write
    from initwell.report.conditions import conditions
    from initwell.report.files import safe_name
    from initwell.report.html import Page, Section, save
    from initwell.report.plots import draw
    from initwell.report.tables import Table

    charts = shown(found.charts())
    rows = tuple({k: v for k, v in row.items() if k != "reason" or v} for row in found.rows)
    every = Table("Every run", tuple(dict.fromkeys(k for row in rows for k in row)), rows)
    page = Page(
        title=f"Initializations compared: {found.title}",
        lead=f"{len(found.rows)} runs; mean over {given.seeds} seeds.",
        verdict=verdict(found),
        sections=(Section("Summary", tables=(found.summary(),), charts=charts), Section("Runs", tables=(every,))),
        conditions={
            "data": given.data,
            "model": given.model,
            "seeds": given.seeds,
            "epochs": given.epochs,
            **conditions(),
        },
        commands=(given.command,),
    )
    for chart in charts:
        draw(chart, given.out / f"{safe_name(chart.name)}.png")
    write(given.out / "comparison.json", found.to_json(indent=1))
    return save(page, given.out / "index.html")


def verdict(found: "Comparison") -> tuple[str, ...]:
    """Say in plain words which scheme came out best in each group, and which cannot be told from it."""
    said = []
    for group in found.best():
        first, *others = group
        where = ", ".join(f"{name} {value}" for name, value in first.group.items())
        if not any(entry.finished for entry in group):
            said.append(f"{where}: no run came to its end, so nothing can be said of the schemes.")
            continue
        gaps = {row["scheme"]: row for row in found.summary().rows if all(row[k] == v for k, v in first.group.items())}
        ties = [o.scheme for o in others if (low := gaps[o.scheme]["behind_low"]) is not None and low <= 0]
        text = f"{where}: {first.scheme} is best, {100 * first.accuracy.value:.1f} % of test images right"
        text += f", but {', '.join(ties)} cannot be told from it." if ties else "."
        said.append(text)
    return tuple(said)
