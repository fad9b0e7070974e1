"""Every claim, by the command a user types: a verdict, evidence with intervals that hold their estimates, figures."""

import json
import math
from pathlib import Path

import pytest

from initwell.cli.main import main
from initwell.experiments.reproduce.catalogue import claims
from initwell.experiments.reproduce.wording import first_sentence

NAMES = {
    *("variance-rules", "zero-init", "small-random", "calibrated", "cifar-mlp", "as-written", "relu-gaussian"),
    *("relu-amplitude", "linear-tanh", "compromise", "xavier-vs-kaiming", "dead-relu", "half-active", "prelu-slopes"),
    *("input-whitening", "batch-norm", "sparse", "bias-zero", "l1-is-std"),
}


def test_the_catalogue_holds_the_nineteen_claims() -> None:
    assert {claim.name for claim in claims()} >= NAMES


def check(outcome: dict[str, object], folder: Path) -> None:
    assert outcome["verdict"] in ("confirmed", "refuted", "depends")
    statement = str(outcome["statement"])
    # A conclusion that can stand alone: of some length, begun with a word, and with figures to follow.
    conclusion = first_sentence(statement)
    assert 40 < len(conclusion) < 300 and conclusion != statement
    assert conclusion[0].isupper()
    assert isinstance(outcome["rows"], list) and outcome["rows"]
    # Most rows call their estimate "value", those of a share of the loss "learnt"; what has no interval has None.
    estimates = [(row.get("value", row.get("learnt")), row.get("low"), row.get("high")) for row in outcome["rows"]]
    with_intervals = [tuple(map(float, found)) for found in estimates if None not in found]
    assert with_intervals, "no row has an interval"
    for value, low, high in with_intervals:
        assert math.isnan(value) or low <= value <= high, (low, value, high)
    assert isinstance(outcome["charts"], list) and outcome["charts"]
    assert len(list(folder.glob("*.png"))) == len(outcome["charts"])


@pytest.mark.slow
def test_every_claim_gets_its_verdict(tmp_path: Path) -> None:
    assert main(["reproduce", "--all", "--quick", "--out", str(tmp_path)]) == 0
    for name in NAMES:
        folder = tmp_path / name
        check(json.loads((folder / "outcome.json").read_text(encoding="utf-8")), folder)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(name in page for name in NAMES)
