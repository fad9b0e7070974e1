"""Where a command's words go: results to stdout, everything else to stderr."""

import json
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from initwell.records import Record, TableRecord

if TYPE_CHECKING:
    from rich.console import Console


class Output:
    """The two streams of one command.

    Args:
        json: print results in the machine's form, and nothing else, to stdout.
    """

    def __init__(self, *, json: bool = False) -> None:
        """Remember which form was asked for, and where results go even while stdout is turned aside."""
        self.json = json
        self.results = sys.stdout

    @cached_property
    def stdout(self) -> "Console":
        """The console for results."""
        return _console(self.results)

    @cached_property
    def stderr(self) -> "Console":
        """The console for progress, remarks and errors."""
        return _console(sys.stderr)

    def show(self, record: Record, first: Sequence[str] = ()) -> None:
        """Print a record: as JSON, or as a table no wider than the terminal, the columns wanted most first."""
        if self.json:
            self.write(self._written(record.to_json(indent=2)) + "\n")
            return
        from initwell.report.text import fitted

        self.stdout.print(fitted(record, self.stdout.width, first) if isinstance(record, TableRecord) else record)

    def list(self, records: Sequence[Record]) -> None:
        """Print several records as one JSON list."""
        text = json.dumps([json.loads(r.to_json()) for r in records], indent=2, ensure_ascii=False)
        self.write(self._written(text) + "\n")

    def _written(self, text: str) -> str:
        """Return JSON as the stream can take it: with letters that it has none for escaped."""
        try:
            text.encode(self.results.encoding or "utf-8")
        except UnicodeEncodeError:
            return json.dumps(json.loads(text), indent=2)
        return text

    def write(self, text: str) -> None:
        """Write a result to stdout as it is."""
        print(text, end="", file=self.results)

    def say(self, text: str) -> None:
        """Print a line for a person; a machine reading JSON is spared it."""
        if not self.json:
            self.stdout.print(text, markup=False, highlight=False)

    def path(self, words: str, path: object) -> None:
        """Print a path on a line that can be copied: not wrapped, not coloured."""
        if not self.json:
            self.stdout.print(f"{words} {path}", markup=False, highlight=False, soft_wrap=True)

    def remark(self, text: str) -> None:
        """Print a line to stderr, whatever form the results have."""
        self.stderr.print(text, markup=False, highlight=False)

    def error(self, text: str) -> None:
        """Print an error to stderr, in red where there is colour."""
        from rich.text import Text

        self.stderr.print(Text("error: ", style="bold red") + Text(text, style="red"), soft_wrap=True)


def _console(stream: Any) -> "Console":
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            # Rich would end the process with an error.
            raise BrokenPipeError

    return Quiet(file=stream)
