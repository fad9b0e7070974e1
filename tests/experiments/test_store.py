"""The run store: what is kept stays kept; other files, other versions and full disks are named."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from initwell.experiments.store import SCHEMA_VERSION, RunStore, StoreError, key_of


def test_a_finished_run_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.db"
    with RunStore(path) as store:
        kept = store.finish({"seed": 1, "lr": 0.1}, "done", {"loss": [1.0, float("nan")]})
    with RunStore(path) as store:
        again = store.get(kept.key)
    assert again is not None
    assert again.settings == {"seed": 1, "lr": 0.1}
    assert str(again.result) == str(kept.result)
    assert again.status == "done"


def test_the_first_to_finish_stands(tmp_path: Path) -> None:
    with RunStore(tmp_path / "runs.db") as one, RunStore(tmp_path / "runs.db") as two:
        one.finish({"seed": 1}, "done", {"loss": 1})
        assert two.finish({"seed": 1}, "done", {"loss": 2}).result == {"loss": 1}
        assert len(two.finished()) == 1


def test_what_is_finished_is_on_the_disk_at_once(tmp_path: Path) -> None:
    # Durable means: WAL, and a sync at every commit; a copy of the files taken now has the run.
    path = tmp_path / "runs.db"
    with RunStore(path) as store:
        store.finish({"seed": 1}, "done", {})
        pragma = store._connection.execute
        assert pragma("PRAGMA journal_mode").fetchone() == ("wal",)
        assert pragma("PRAGMA synchronous").fetchone() == (2,)
        copy = tmp_path / "copy"
        copy.mkdir()
        for file in tmp_path.glob("runs.db*"):
            (copy / file.name).write_bytes(file.read_bytes())
    with RunStore(copy / "runs.db") as store:
        assert len(store.finished()) == 1


def test_many_open_and_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"

    def write(writer: int) -> None:
        with RunStore(path) as store:
            for seed in range(5):
                store.finish({"writer": writer, "seed": seed}, "done", {"writer": writer})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    with RunStore(path) as store:
        assert len(store.finished()) == 40


def test_a_full_disk_is_named_and_what_was_kept_stands(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with RunStore(path) as store:
        store.finish({"seed": 0}, "done", {})
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match=r"database or disk is full.* 1 finished runs stand.*same command"):
            store.finish({"seed": 1}, "done", {"loss": [0.5] * 100_000})
        store._connection.execute("PRAGMA max_page_count = 1000000")
        store.finish({"seed": 1}, "done", {"loss": [0.5] * 100_000})
    with RunStore(path) as store:
        assert [run.settings["seed"] for run in store.finished()] == [0, 1]


def test_another_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(b"not a database at all, but long enough to look like one" * 50)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"is no run store"):
        RunStore(path)
    assert path.read_bytes() == before


def test_another_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE holidays (place TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="but not of runs"):
        RunStore(path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    RunStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match=f"schema version {SCHEMA_VERSION + 1}, this initwell reads {SCHEMA_VERSION}"):
        RunStore(path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be opened"):
        RunStore(tmp_path / "file" / "runs.db")


def test_the_key_knows_the_settings_and_not_their_order() -> None:
    assert key_of({"a": 1, "b": {"c": 2.0, "d": None}}) == key_of({"b": {"d": None, "c": 2.0}, "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 1.5})
    # Fixed for ever: a store of today is read tomorrow.
    assert key_of({"seed": 0}) == "cae4c3f6d166bc33c44b075faeb33168"
