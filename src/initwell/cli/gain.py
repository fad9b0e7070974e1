"""``initwell gain``: the gains of activations."""

import argparse
from typing import Any

from initwell.cli.naming import is_callable_name, load_callable, split_name
from initwell.cli.output import Output
from initwell.errors import ArgumentError

COLUMNS = ("activation", "forward", "backward", "chi", "stability", "compromise", "method", "error")
MEANING = (
    "chi: growth of the gradient a layer at the forward gain. stability: slope of the variance map; "
    "above 1 its fixed point is unstable."
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "gain",
        help="gain of an activation: what its weights must be multiplied by",
        description="Forward, backward and compromise gain of activations, and how each was computed.",
    )
    parser.add_argument(
        "activation", nargs="*", help="a name, a name with options (leaky_relu:slope=0.2), or path.py:function"
    )
    parser.add_argument("--all", action="store_true", help="every activation in the catalogue")
    parser.add_argument("--q", type=float, default=1.0, metavar="Q", help="second moment of the input (default 1)")
    parser.add_argument("--json", action="store_true", help="print JSON to stdout and nothing else")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, output: Output) -> int:
    """Print the gains."""
    from initwell.theory.activations import activation_names
    from initwell.theory.gain import gain

    if options.all and options.activation:
        raise ArgumentError("activation", ", ".join(options.activation), "--all names it too; leave one of them out.")
    wanted = list(activation_names()) if options.all else options.activation
    if not wanted:
        raise ArgumentError("activation", "nothing", "Name at least one, such as gelu, or give --all.")
    known = set(activation_names())
    found = []
    for text in wanted:
        if is_callable_name(text) and text.partition(":")[0] not in known:
            found.append(gain(load_callable(text, "activation"), q=options.q))
        else:
            name, parameters = split_name(text)
            found.append(gain(name, q=options.q, **parameters))
    if len(found) == 1 and not output.json:
        output.show(found[0])
        return 0
    from initwell.report.tables import Table

    noted = [g.activation for g in found if g.notes]
    remarks = (f"There is more to say of {', '.join(noted)}: initwell gain NAME.",) if noted else ()
    rows = tuple({**g.to_dict(), "notes": g.notes} for g in found)
    output.show(
        Table(f"Gain at second moment {options.q:g}: weight std = gain / √fan", COLUMNS, rows, (MEANING, *remarks))
    )
    return 0
