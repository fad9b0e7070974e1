"""docs/claims.md: every claim of the catalogue is on it, in the words of today; the script that writes it."""

import runpy
from pathlib import Path

import pytest

from initwell.experiments.reproduce.catalogue import claims
from initwell.experiments.reproduce.claim import Claim, Finding, Outcome
from initwell.report.outcomes import keep

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "claims_page.py"))
PAGE = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.name)
def test_every_claim_is_on_the_page_with_its_verdict(claim: Claim) -> None:
    section = PAGE.split(f"\n## {claim.name}\n")[1].split("\n## ")[0]
    assert f"Claim: {claim.claim}\n" in section
    assert f"Source: {claim.source}.\n" in section
    told = section.split("**")
    assert told[1] in ("Confirmed.", "Refuted.", "Depends.")
    assert len(told[2].strip()) > 40
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| [{claim.name}]"))
    assert told[1].rstrip(".").lower() in row
    assert told[2].strip().replace("|", r"\|") in row


def test_the_page_holds_no_claim_that_is_gone() -> None:
    headings = [line.removeprefix("## ") for line in PAGE.splitlines() if line.startswith("## ")]
    assert headings == [claim.name for claim in claims()]


def test_a_page_counts_verdicts_and_keeps_cells_whole() -> None:
    claim = Claim("a-claim", "T", "All is well.", "A paper", lambda _: Finding("refuted", "", (), ()))
    outcome = Outcome(
        "a-claim", "All is well.", "refuted", "No mean|x| is. More.", (), (), {"data": "d", "length": "quick"}, 61.0
    )
    text = SCRIPT["page"]([(claim, outcome)])
    assert "found on d (the quick runs; 1 min 1 s with two processes): of 1 claims 1 refuted." in text
    assert r"| [a-claim](#a-claim) | refuted | No mean\|x\| is. | 61 |" in text
    assert text.endswith("**Refuted.** No mean|x| is.\n")


def test_a_run_that_lacks_claims_is_named(tmp_path: Path) -> None:
    first, second, *_ = claims()
    keep(Outcome(first.name, "", "depends", "It is.", (), (), {"data": "d", "length": "quick"}), tmp_path / first.name)
    with pytest.raises(SystemExit, match=rf"lacks {second.name}, .*reproduce --all --quick --out") as ended:
        SCRIPT["main"](tmp_path, tmp_path / "claims.md")
    assert first.name not in str(ended.value).split("Run first")[0].split("lacks")[1].split(", ")
    assert not (tmp_path / "claims.md").exists()
