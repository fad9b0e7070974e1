"""The model that a command is asked about: its options, building it, and the plan that they describe."""

import argparse
from typing import TYPE_CHECKING

from initwell.cli import batches
from initwell.cli.batches import Example
from initwell.cli.naming import HOW, count, seed
from initwell.cli.nets import Builder
from initwell.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn

    from initwell.apply.plan import Plan


def add(parser: argparse.ArgumentParser, *, scheme_needed: bool) -> None:
    """Add the arguments that name a model and its initialization.

    Args:
        parser: of the command.
        scheme_needed: whether the command does nothing without a scheme.
    """
    parser.add_argument("model", help=HOW)
    default = "required unless --plan" if scheme_needed else "as the model was built"
    parser.add_argument("--scheme", metavar="NAME", help=f"initialize with this scheme ({default})")
    batches.add(parser)
    parser.add_argument(
        "--classes", type=count, default=0, metavar="N", help="classes of a zoo net (default: the data's, or 10)"
    )
    parser.add_argument(
        "--activation", metavar="NAME", help="take this activation to follow every layer; 'linear' for none"
    )
    parser.add_argument(
        "--rule", action="append", default=[], metavar="PATTERN=SCHEME", help="another scheme for some modules"
    )
    parser.add_argument("--only", metavar="PATTERN", help="leave every other module as it is")
    parser.add_argument("--seed", type=seed, default=0, help="of weights and random input (default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON to stdout and nothing else")


def build(options: argparse.Namespace, example: Example | None) -> "nn.Module":
    """Build the model that was named, for the example where it asks for its shape."""
    import torch

    shape = example.shape if example else ()
    if options.model.startswith("zoo:") and getattr(options, "input", None) and not shape:
        cure = batches.read_as(options.input) or "Its samples are single numbers."
        raise ArgumentError("input", repr(options.input), f"{cure} A zoo net is built for images: give 8x1x28x28.")
    classes = options.classes or (example.classes if example else 0)
    # A model's own constructor draws its weights from the global generator: --seed decides them too.
    torch.manual_seed(options.seed)
    return Builder(options.model)(shape, classes)


def _rules(texts: list[str]) -> dict[str | type, object] | None:
    rules: dict[str | type, object] = {}
    for text in texts:
        pattern, equals, scheme = text.rpartition("=")
        if not (pattern and equals and scheme):
            raise ArgumentError("rule", repr(text), "Write PATTERN=SCHEME, such as 'head*=zeros'.")
        rules[pattern] = scheme
    return rules or None


def planned(options: argparse.Namespace, model: "nn.Module", example: Example | None) -> "Plan":
    """Plan the initialization that was asked for."""
    from initwell.apply.plan import plan

    if not options.scheme:
        from initwell.apply.schemes.registry import scheme_names

        raise ArgumentError("scheme", "nothing", f"Give --scheme with one of: {', '.join(scheme_names())}.")
    return plan(
        model,
        options.scheme,
        example=example.batch if example else None,
        seed=options.seed,
        activation=options.activation,
        rules=_rules(options.rule),
        only=options.only,
    )
