"""``initwell predict``: signal and gradient sizes through a model, from moments."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initwell.cli import asked, batches
from initwell.cli.batches import Example
from initwell.cli.output import Output
from initwell.errors import ArgumentError, ModelError

if TYPE_CHECKING:
    from torch import nn

    from initwell.propagate.result.prediction import Prediction

# What a narrow terminal shows before the rest.
FIRST = ("path", "forward_rms", "gradient_rms", "fidelity", "overlap", "op", "shape")
GROWTH_FIRST = ("block", "forward_growth", "backward_growth", "overlap")
PARAMETERS_FIRST = ("parameter", "gradient_rms", "update_ratio", "weight_rms", "fidelity")


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "predict",
        help="signal and gradient sizes from moments, no data run",
        description="Predict the size of every activation and gradient of a model by one walk with second moments. Of "
        "the input only the moments count: a model of timm, torchvision or transformers needs no --input.",
    )
    asked.add(parser, scheme_needed=False)
    parser.add_argument(
        "--loss",
        choices=["none", "cross-entropy"],
        default="none",
        help="where the backward starts (default: a random gradient); without --data the labels are random",
    )
    parser.add_argument(
        "--lr",
        type=float,
        metavar="RATE",
        help="of plain gradient descent: adds update-to-weight ratios (see --parameters)",
    )
    parser.add_argument("--parameters", action="store_true", help="the table of weights and their gradients instead")
    parser.add_argument(
        "--rows", choices=["auto", "all", "modules"], default="auto", help="all values, or one row a module"
    )
    parser.add_argument(
        "--device",
        choices=["real", "meta"],
        default="real",
        help="meta: allocate no weights; they count as the model's constructor would draw them",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a page with pictures there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, output: Output) -> int:
    """Print what is predicted, and write the page where that was asked for."""
    from initwell.propagate.predict import predict

    given = [name for name in ("rule", "only", "activation") if getattr(options, name)]
    if given and not options.scheme:
        raise ArgumentError(given[0], "no scheme that it could change", f"Give --scheme, or leave --{given[0]} out.")
    example = batches.example(options, required=False)
    model, plan = _built(options, example)
    guessed = example is None
    if example is None:
        from initwell.cli.natural import natural

        example = natural(options.model, model, options.seed)
    if options.scheme:
        plan = asked.planned(options, model, example)
    loss = cross_entropy(example, options.seed) if options.loss == "cross-entropy" else None
    try:
        found = predict(model, example.batch, loss=loss, plan=plan, learning_rate=options.lr)
    except ModelError as error:
        if not guessed:
            raise
        raise ModelError(f"{error} It was tried with {example.words}: give --input, {batches.SHAPE}.") from error
    _show(options, output, found)
    if options.out:
        output.path("Page:", _page(options, example, found))
    return 0


def _built(options: argparse.Namespace, example: Example | None) -> tuple["nn.Module", Any]:
    """Build the model; on the meta device with what its constructor would draw, as a plan."""
    if options.device == "real":
        return asked.build(options, example), None
    from initwell.propagate.dry import dry

    return dry(lambda: asked.build(options, example))


def cross_entropy(example: Example, seed: int) -> Any:
    """Return the loss: the mean cross-entropy of the model's logits with the labels of the data, or random ones."""
    import numpy as np
    import torch

    def loss(output: Any) -> Any:
        logits = _logits(output)
        # Classes are the last axis of text and plain outputs, axis 1 of pictures and sounds.
        flat = logits.movedim(1, -1) if logits.ndim > 3 else logits
        flat = flat.reshape(-1, flat.shape[-1])
        targets = example.targets
        if targets is None or len(targets) != len(flat):
            targets = torch.from_numpy(np.random.default_rng(seed).integers(flat.shape[-1], size=len(flat)))
        return torch.nn.functional.cross_entropy(flat, targets)

    return loss


def _logits(output: Any) -> Any:
    from torch import Tensor

    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None and isinstance(output, dict):
        found = output.get("logits", output.get("out"))
    if found is None:
        cure = (
            f"The model returned a {type(output).__name__} without logits: leave --loss out, or build one with a head."
        )
        raise ArgumentError("loss", "cross-entropy", cure)
    return found


def _show(options: argparse.Namespace, output: Output, found: "Prediction") -> None:
    from initwell.report.predicted import MANY, growth_table, module_table, parameter_table, value_table

    if output.json:
        output.show(found)
        return
    if options.parameters:
        output.show(parameter_table(found), PARAMETERS_FIRST)
    else:
        table = value_table(found)
        summed = module_table(found)
        # A plain stack has as many modules as values.
        if options.rows == "modules" or (options.rows == "auto" and MANY < len(table.rows) > len(summed.rows)):
            table = summed
        output.show(table, FIRST)
    for growth in () if options.parameters else found.growth:
        if growth.said() and (len(growth.rows) <= MANY or options.rows == "all"):
            output.show(growth_table(growth), GROWTH_FIRST)
    for note in found.notes:
        output.say(note)


def _page(options: argparse.Namespace, example: Example, found: "Prediction") -> Path:
    from initwell.report.html import save
    from initwell.report.plots import draw
    from initwell.report.predicted import prediction_page

    scheme = options.scheme or ("as its constructor draws" if options.device == "meta" else "as built")
    page = prediction_page(
        found,
        title=f"{options.model} predicted",
        lead=f"Initialization: {scheme}. From moments, those of the input among them: {example.words}.",
        given={"input": example.words, "initialization": scheme, "loss": options.loss, "seed": options.seed},
        command=options.command,
    )
    for chart in found.charts():
        draw(chart, options.out / f"{chart.name}.png")
    return save(page, options.out / "index.html")
