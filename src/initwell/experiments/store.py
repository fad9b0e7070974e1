"""Finished runs in SQLite: once kept, a run is neither lost (kill -9, a full disk) nor repeated."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from initwell.errors import InitwellError
from initwell.records import Record

Result = TypeVar("Result")
SCHEMA_VERSION = 1
_APPLICATION = 0x49574C31  # "IWL1": tells a run store from any other database
_PATIENCE = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    key TEXT PRIMARY KEY,
    settings TEXT NOT NULL,
    status TEXT NOT NULL,
    result TEXT NOT NULL,
    finished_at REAL NOT NULL
) WITHOUT ROWID
"""


class StoreError(InitwellError):
    """The runs cannot be kept or read: a full disk, a foreign or damaged file, another version's schema."""


@dataclass(frozen=True)
class KeptRun(Record):
    """A finished run.

    Attributes:
        key: hash of its settings.
        settings: everything that the result depends on.
        status: how it ended, ``done`` or ``diverged``.
        result: what came of it, as plain data.
        finished_at: seconds since 1970.
    """

    key: str
    settings: Mapping[str, Any]
    status: str
    result: Mapping[str, Any]
    finished_at: float


def key_of(settings: Mapping[str, Any]) -> str:
    """Hash settings (plain data) to 32 hexadecimal digits; the order of the keys does not matter.

    >>> key_of({"seed": 1, "lr": 0.1}) == key_of({"lr": 0.1, "seed": 1})
    True
    """
    return hashlib.blake2b(_canonical(settings).encode(), digest_size=16).hexdigest()


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


class RunStore:
    """The finished runs in one file, or in memory; several processes may use one file at a time.

    >>> with RunStore(None) as store:
    ...     kept = store.finish({"seed": 1}, "done", {"test_accuracy": 0.9})
    ...     store.get(kept.key).result["test_accuracy"]
    0.9
    """

    def __init__(self, path: Path | None) -> None:
        """Open the store, making it where there is none.

        Args:
            path: the file, such as ``out/runs.db``, or None to keep the runs in memory only.

        Raises:
            StoreError: the folder cannot be made, or the file is no run store of this version.
        """
        self.path = path
        self._name = "memory" if path is None else str(path)
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path or ":memory:", timeout=_PATIENCE, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self._name}: cannot be opened ({error}). Give a folder that can be written.") from error
        try:
            self._patiently(self._prepare)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> "RunStore":
        """Return the store."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def get(self, key: str) -> KeptRun | None:
        """Return the finished run of this key, or None."""
        rows = self._read("SELECT key, settings, status, result, finished_at FROM runs WHERE key = ?", (key,))
        return _kept(rows[0]) if rows else None

    def finished(self) -> tuple[KeptRun, ...]:
        """Return all finished runs, in the order in which they ended."""
        rows = self._read("SELECT key, settings, status, result, finished_at FROM runs ORDER BY finished_at, key", ())
        return tuple(_kept(row) for row in rows)

    def finish(self, settings: Mapping[str, Any], status: str, result: Mapping[str, Any]) -> KeptRun:
        """Keep a finished run; when this returns it is on the disk.

        Args:
            settings: everything that the result depends on, as plain data.
            status: how it ended.
            result: what came of it, as plain data.

        Returns:
            What is kept: if another process kept the same run first, that one.

        Raises:
            StoreError: the disk is full or fails; the runs kept before stand.
        """
        key = key_of(settings)
        row = (key, _canonical(settings), status, _canonical(result), time.time())
        try:
            # One statement is one transaction; WAL with synchronous=FULL returns when it is on the disk.
            self._connection.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise StoreError(
                f"{self._name}: the run could not be kept ({error}). {len(self.finished())} finished runs stand. "
                "Make room on the disk and give the same command again; it goes on from there."
            ) from error
        kept = self.get(key)
        assert kept is not None
        return kept

    def _read(self, query: str, values: tuple[str, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self._name}: cannot be read ({error}). Move it away to start afresh.") from error

    def _prepare(self) -> None:
        run = self._connection.execute
        version, application, tables = self._header()
        foreign = application not in (0, _APPLICATION)
        if foreign or (version == 0 and tables):
            raise StoreError(f"{self._name}: is a database, but not of runs. Name another folder.")
        if version not in (0, SCHEMA_VERSION):
            raise StoreError(
                f"{self._name}: has schema version {version}, this initwell reads {SCHEMA_VERSION}. "
                "Use the initwell that wrote it, or name another folder."
            )
        run("PRAGMA journal_mode = WAL").fetchall()
        run("PRAGMA synchronous = FULL")
        if version == 0:
            self._create()

    def _header(self) -> tuple[int, int, set[str]]:
        run = self._connection.execute
        # One transaction, one view: between two of these reads another process may create the tables.
        run("BEGIN")
        try:
            version, application = (run(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id"))
            tables = {name for (name,) in run("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            run("ROLLBACK")
        return version, application, tables

    def _create(self) -> None:
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        try:
            run(_SCHEMA)
            run(f"PRAGMA application_id = {_APPLICATION}")
            run(f"PRAGMA user_version = {SCHEMA_VERSION}")
            run("COMMIT")
        except sqlite3.Error:
            run("ROLLBACK")
            raise

    def _patiently(self, action: Callable[[], Result]) -> Result:
        # Turning WAL on meets a lock without waiting for it when two processes open a new file at once.
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise StoreError(f"{self._name}: cannot be used ({error}). Name another folder.") from error
                time.sleep(0.05)
            except sqlite3.DatabaseError as error:
                raise StoreError(f"{self._name}: is no run store ({error}). Move it away to start afresh.") from error


def _kept(row: tuple[Any, ...]) -> KeptRun:
    key, settings, status, result, finished_at = row
    return KeptRun(key, json.loads(settings), status, json.loads(result), finished_at)
