"""Write docs/claims.md, the page of all claims, from the outcome.json files of `initwell reproduce --all --quick`.

Usage: python scripts/claims_page.py [RUN] [OUTPUT], by default runs/reproduce and docs/claims.md.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from initwell.experiments.reproduce.catalogue import claims
from initwell.experiments.reproduce.claim import Claim, Outcome
from initwell.files import write
from initwell.report.outcomes import kept
from initwell.report.text import duration

ROOT = Path(__file__).parents[1]
COMMAND = "initwell reproduce --all --quick"


SETTINGS = (
    "What was chosen when: tolerances and thresholds were written down before the runs they judge. Lengths, seeds "
    "and widths of the quick runs were then fitted to the time they may take. And some settings were changed "
    "after a first look: the rate and length of zero-init (until its sigmoid control learned at all), the net, "
    "batch, steps and rates of relu-gaussian, the depth and rates of dead-relu (until runs no longer diverged), "
    "the number of fresh draws in half-active, the reference of compromise under ReLU, the layer that speaks in "
    "as-written, and the second measure of cifar-mlp. Read those verdicts as: there is a setting in which it is "
    "so."
)


def page(found: Sequence[tuple[Claim, Outcome]]) -> str:
    """Return the page: a table of what was found, then each claim with its source."""
    seconds = sum(outcome.seconds for _, outcome in found)
    data = _list(outcome.conditions["data"] for _, outcome in found)
    length = _list(outcome.conditions["length"] for _, outcome in found)
    counted = {v: sum(o.verdict == v for _, o in found) for v in ("confirmed", "refuted", "depends")}
    verdicts = ", ".join(f"{n} {'depend' if v == 'depends' else v}" for v, n in counted.items() if n)
    lines = [
        "# Claims about initialization, put to the test",
        "",
        f"What `{COMMAND}` found on {data} (the {length} runs; {duration(seconds)} with two processes): "
        f"of {len(found)} claims {verdicts}. Each verdict and each sentence below is computed from the numbers "
        "of its run; `initwell reproduce NAME` runs one again and draws its figures, on other images with `--data`.",
        "",
        "This page is written by `python scripts/claims_page.py`.",
        "",
        SETTINGS,
        "",
        "| name | verdict | what was found | seconds |",
        "|---|---|---|---:|",
        *(
            f"| [{c.name}](#{c.name}) | {o.verdict} | {_cell(o.conclusion)} | {o.seconds:.0f} |"
            for c, o in found
        ),
    ]  # fmt: skip
    for claim, outcome in found:
        lines += ["", f"## {claim.name}", "", f"Claim: {claim.claim}", "", f"Source: {claim.source}."]
        lines += ["", f"**{outcome.verdict.capitalize()}.** {outcome.conclusion}"]
    return "\n".join(lines) + "\n"


def _list(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def _cell(text: str) -> str:
    # A bar ends a cell, even in mean|x|.
    return text.replace("|", r"\|")


def main(run: Path, output: Path) -> None:
    files = {claim: run / claim.name / "outcome.json" for claim in claims()}
    missing = [claim.name for claim, file in files.items() if not file.is_file()]
    if missing:
        sys.exit(f"{run} lacks {', '.join(missing)}. Run first: {COMMAND} --out {run}")
    found = [(claim, kept(file)) for claim, file in files.items()]
    print(write(output, page(found)))


if __name__ == "__main__":
    if len(sys.argv) > 3:
        sys.exit(__doc__)
    given = [Path(argument) for argument in sys.argv[1:]]
    main(*given, *(ROOT / "runs" / "reproduce", ROOT / "docs" / "claims.md")[len(given) :])
