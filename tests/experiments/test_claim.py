"""What the reproductions stand on: settings, outcomes, the catalogue."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from initwell.errors import ArgumentError, InitwellError, UnknownNameError
from initwell.experiments.reproduce import catalogue
from initwell.experiments.reproduce.claim import Claim, Finding, Outcome, Settings


def run(settings: Settings) -> Finding:
    rows = ({"layer": 1, "low": 0.9, "high": 1.1}, {"layer": 2, "low": 0.8, "high": 1.2, "note": "<b>"})
    return Finding("confirmed", "It held.", rows, (), {"seeds": settings.seeds})


def test_settings_give_data_and_seeds() -> None:
    settings = Settings(seeds=3)
    assert settings.seed_list() == (0, 1, 2)
    assert settings.dataset(train=50, test=10**6).train_x.shape == (50, 1, 28, 28)
    assert len(settings.dataset().test_x) == 1000
    assert settings.prepared("scale", train=20, test=10).train_x.max() <= 1


def test_settings_map_in_order_and_tell() -> None:
    told: list[str] = []
    settings = Settings(workers=1, progress=told.append)
    assert settings.map(math.sqrt, [9.0, 4.0]) == [3.0, 2.0]
    assert settings.map(math.pow, [2.0, 3.0], shared=2.0) == [4.0, 8.0]
    assert told == ["1 of 2 runs", "2 of 2 runs"] * 2
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        settings.map(math.sqrt, [-1.0])


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ArgumentError, match="seeds: got 0"):
        Settings(seeds=0)
    with pytest.raises(ArgumentError, match="workers: got 0"):
        Settings(workers=0)
    with pytest.raises(ArgumentError, match="no such folder"):
        Settings(data="/no/such/folder").dataset()


def test_an_outcome_prints_its_verdict_and_escapes() -> None:
    outcome = Claim("a-claim", "T", "It holds.", "S", run).reproduce(Settings())
    assert "a-claim: confirmed" in str(outcome)
    assert "Found: It held." in str(outcome)
    assert (outcome.conclusion, outcome.figures) == ("It held.", "")
    assert "seeds 5" in str(outcome)
    assert outcome.table_columns() == ("layer", "low", "high", "note")
    assert "&lt;b&gt;" in outcome._repr_html_()


def test_the_conclusion_ends_at_a_full_stop_and_not_within_a_number() -> None:
    outcome = Outcome("n", "c", "depends", "By 2.5 points 0.01·randn: not by 1.5. Of 3.5, 2. More.", (), ())
    assert outcome.conclusion == "By 2.5 points 0.01·randn: not by 1.5."
    assert outcome.figures == "Of 3.5, 2. More."


def test_reproducing_notes_data_length_and_time() -> None:
    outcome = Claim("a-claim", "T", "It holds.", "S", run).reproduce(Settings(seeds=2, quick=False))
    assert (outcome.name, outcome.claim, outcome.verdict) == ("a-claim", "It holds.", "confirmed")
    assert outcome.conditions == {"data": "mnist-5k", "length": "full", "seeds": 2}
    assert outcome.seconds > 0


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of claims in place of the real one."""
    module = ModuleType("claims_of_a_test")
    module.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "claims_of_a_test", module)
    monkeypatch.setattr(catalogue, "reproduce", module)
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("claims_of_a_test.")]:
        del sys.modules[name]


IMPORT = "from initwell.experiments.reproduce.claim import Claim\n"


def test_a_file_is_a_claim(package: Path) -> None:
    (package / "one_claim.py").write_text(IMPORT + "CLAIM = Claim('one-claim', 'T', 'C', 'S', print)\n")
    (package / "another.py").write_text(IMPORT + "CLAIM = Claim('another', 'T', 'C', 'S', print)\n")
    (package / "helper.py").write_text("x = 1\n")
    assert [entry.name for entry in catalogue.claims()] == ["another", "one-claim"]
    assert isinstance(catalogue.claim("one-claim"), Claim)
    with pytest.raises(UnknownNameError, match="Did you mean 'one-claim'"):
        catalogue.claim("one-clam")


def test_a_file_that_is_no_claim_is_named(package: Path) -> None:
    (package / "odd.py").write_text("CLAIM = 3\n")
    with pytest.raises(InitwellError, match=r"odd.CLAIM: is a int"):
        catalogue.claims()


def test_a_claim_under_another_name_is_named(package: Path) -> None:
    (package / "odd.py").write_text(IMPORT + "CLAIM = Claim('even', 'T', 'C', 'S', print)\n")
    with pytest.raises(InitwellError, match="Name file and claim alike"):
        catalogue.claims()
