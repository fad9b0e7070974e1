"""The ``initwell`` command: its subcommands, and what becomes of an error."""

import argparse
import errno
import io
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from initwell._version import __version__
from initwell.cli import compare, demo, gain, models, predict, reproduce
from initwell.cli.batches import read_as
from initwell.cli.output import Output
from initwell.errors import InitwellError, ModelError

EPILOG = "exit codes: 0 done, 2 unusable input, 130 interrupted"


def parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="initwell",
        description="Give every layer of a deep network a healthy start: derive, initialize, measure, prove.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="version", version=f"initwell {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (gain, models, predict, compare, reproduce, demo):
        module.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after ``initwell``; those of the process by default.

    Returns:
        The exit code: 0 done, 2 unusable input (said on stderr, never a traceback), 130 interrupted.
    """
    try:
        options = parser().parse_args(arguments)
    except SystemExit as stop:
        # argparse has said it already: 0 after --help, 2 after an argument that it cannot read.
        return stop.code if isinstance(stop.code, int) else 2
    options.command = shlex.join(["initwell", *(sys.argv[1:] if arguments is None else arguments)])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # "×" and the like, where the encoding has none, are no reason to fail
    output = Output(json=bool(getattr(options, "json", False)))
    try:
        # What a model's own code prints is no result.
        with redirect_stdout(sys.stderr):
            code: int = options.run(options, output)
        sys.stdout.flush()
    except InitwellError as error:
        how = read_as(getattr(options, "input", None) or "") if isinstance(error, ModelError) else ""
        output.error(f"{error} {how}".rstrip())
        return 2
    except SystemExit as stop:
        output.error(f"The code of a model or function ended the process: sys.exit({stop.code!r}). Take that call out.")
        return 2
    except KeyboardInterrupt:
        output.error(f"Interrupted: {getattr(options, 'interrupted', 'nothing was written.')}")
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has had enough.
        _drop_stdout()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_stdout()
        output.error(f"The result cannot be written: {error}. Name a place with space left on it.")
        return 2
    return code


def _drop_stdout() -> None:
    """Send what is left to nowhere: Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
