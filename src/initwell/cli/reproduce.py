"""``initwell reproduce``: the claims of papers and tutorials, put to the test."""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initwell.cli.naming import count
from initwell.cli.output import Output
from initwell.errors import ArgumentError, InitwellError, UnknownNameError
from initwell.files import check_folder

if TYPE_CHECKING:
    from initwell.experiments.reproduce.claim import Claim, Outcome


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "reproduce",
        help="claims about initialization, put to the test",
        description="Run claims of papers and tutorials; each gets a verdict from its numbers, and all get one page.",
    )
    parser.add_argument("claim", nargs="*", metavar="NAME", help="claims to run; --list shows them")
    parser.add_argument("--all", action="store_true", help="run every claim")
    parser.add_argument("--list", action="store_true", help="list the claims and stop")
    parser.add_argument("--quick", action="store_true", help="fewer seeds and shorter training")
    parser.add_argument(
        "--data", metavar="DIR", help="folder of idx or CIFAR-10 files (default: the embedded mnist-5k)"
    )
    parser.add_argument("--seeds", type=count, metavar="N", help="seeds of each setting (default: as the claim needs)")
    parser.add_argument("--workers", type=count, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="default runs/reproduce"
    )
    parser.add_argument("--resume", action="store_true", help="keep the claims that DIR holds already")
    parser.add_argument("--json", action="store_true", help="print JSON to stdout and nothing else")
    parser.set_defaults(run=run, interrupted="finished claims stand; add --resume to go on from them.")


def run(options: argparse.Namespace, output: Output) -> int:
    """Run the claims that were named, keep each as it ends, and write the page."""
    from initwell.experiments.reproduce.catalogue import claims
    from initwell.report.tables import Table

    known = {claim.name: claim for claim in claims()}
    if options.list:
        rows = tuple({"name": c.name, "title": c.title, "claim": c.claim, "source": c.source} for c in known.values())
        output.show(Table("Claims; run one with: initwell reproduce NAME", ("name", "claim"), rows))
        return 0
    names = list(known) if options.all else list(dict.fromkeys(options.claim))
    if not names:
        raise ArgumentError("claim", "nothing", "Name at least one, or give --all; --list shows them.")
    for name in names:
        if name not in known:
            raise UnknownNameError.among("claim", name, known)
    check_folder(options.out)
    outcomes, failures = _run_all([known[name] for name in names], options, output)
    page = _page([known[o.name] for o in outcomes], outcomes, failures, options)
    _say(outcomes, output)
    output.path("Page:", page)
    return 2 if failures else 0


def _run_all(
    claims: Sequence["Claim"], options: argparse.Namespace, output: Output
) -> tuple[list["Outcome"], dict[str, str]]:
    from initwell.experiments.pool import Pool
    from initwell.report.text import progress

    outcomes: list[Outcome] = []
    failures: dict[str, str] = {}
    # Processes take seconds to start: the claims share them.
    shared = Pool(options.workers) if len(claims) > 1 and options.workers > 1 else nullcontext()
    with progress(output.stderr, "reproduce") as hear, shared as pool:
        for done, claim in enumerate(claims):
            hear(done, len(claims), claim.name)
            listener = partial(_heard, hear, done, len(claims), claim.name)
            try:
                outcomes.append(_one(claim, options, listener, pool))
            except InitwellError as error:
                failures[claim.name] = str(error)
                output.error(f"{claim.name}: {error}")
        hear(len(claims), len(claims), "")
    return outcomes, failures


def _heard(hear: Any, done: int, total: int, name: str, text: str) -> None:
    hear(done, total, f"{name}: {text}")


def _one(claim: "Claim", options: argparse.Namespace, listener: Any, pool: Any) -> "Outcome":
    from initwell.experiments.reproduce.claim import Settings
    from initwell.report.outcomes import keep, kept

    folder = options.out / claim.name
    if options.resume and (folder / "outcome.json").is_file():
        found = kept(folder / "outcome.json")
        if _same_run(found, options):
            return found
    given = {"seeds": options.seeds} if options.seeds else {}
    settings = Settings(
        quick=options.quick, data=options.data, workers=options.workers, progress=listener, pool=pool, **given
    )
    outcome = claim.reproduce(settings)
    keep(outcome, folder)
    return outcome


def _same_run(found: "Outcome", options: argparse.Namespace) -> bool:
    """Tell whether an outcome comes from the run that is asked for, and not from a shorter one or other images."""
    asked = {"length": "quick" if options.quick else "full"}
    asked |= {"data": options.data} if options.data else {}
    asked |= {"seeds": options.seeds} if options.seeds else {}
    return all(found.conditions.get(name) == value for name, value in asked.items())


def _page(
    claims: Sequence["Claim"], outcomes: Sequence["Outcome"], failures: dict[str, str], options: argparse.Namespace
) -> Path:
    from initwell.report.html import save
    from initwell.report.outcomes import reproduction_page

    return save(reproduction_page(claims, outcomes, failures, options.command), options.out / "index.html")


def _say(outcomes: Sequence["Outcome"], output: Output) -> None:
    from initwell.report.outcomes import verdicts

    if output.json:
        output.list(outcomes)
    elif len(outcomes) == 1:
        output.show(outcomes[0])
    elif outcomes:
        output.show(verdicts(outcomes))
