"""Answers on disk, found by what was asked: a run can be repeated without a model, and asks nothing twice.

One SQLite file in WAL mode, shared by tasks, threads and processes on one machine (WAL does not work over a network
file system). The key is the SHA-256 of the canonical JSON of the model's name and the ask; what was asked is not kept.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from envs.errors import InputError, RunError
from envs.hashing import content_hash
from envs.models.model_client import Answer, Ask, ModelClient, ModelError

APPLICATION_ID = 0x61747475  # "attu"; marks the file as ours
LAYOUT = 1
LOCK_SECONDS = 30.0
TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"


def cache_key(model: str, ask: Ask) -> str:
    """SHA-256 (hex) of the model's name and everything that is asked."""
    return content_hash({"model": model, "ask": ask.model_dump(mode="json")})


class ResponseCache:
    """The file. Raises InputError when it can't be opened or is not a cache, RunError when it fails later.

    ``hits`` and ``misses`` count this process's look-ups.
    """

    def __init__(self, path: Path, lock_seconds: float = LOCK_SECONDS) -> None:
        self.path = path
        self.hits = self.misses = 0
        self._lock_seconds = lock_seconds
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._database = self._open()

    def find(self, key: str) -> Answer | None:
        """The answer kept under ``key``, marked as cached, or None."""
        with self._using() as database:
            row = database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            self.hits, self.misses = self.hits + (row is not None), self.misses + (row is None)
        return None if row is None else self._read(row[0])

    def keep(self, key: str, answer: Answer) -> Answer:
        """Keep ``answer``, unless another came first; what is returned is the one that is kept."""
        text = answer.model_copy(update={"cached": False}).model_dump_json()
        with self._using() as database:
            database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, text))
            (kept,) = database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return answer if kept == text else self._read(kept)

    def size(self) -> int:
        """How many answers are kept. (Not ``__len__``, which would make an empty cache false.)"""
        with self._using() as database:
            return database.execute("SELECT count(*) FROM answers").fetchone()[0]

    def close(self) -> None:
        """Close the file. May be called twice."""
        with self._lock:
            self._database.close()

    def _read(self, text: str) -> Answer:
        try:
            return Answer.model_validate_json(text).model_copy(update={"cached": True})
        except ValidationError as error:
            raise RunError(f"{self.path}: holds an answer that can't be read; delete the file and run again") from error

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._process != os.getpid():  # a connection must not be used on both sides of a fork
                self._database, self._process = self._open(), os.getpid()
            try:
                yield self._database
            except sqlite3.Error as error:
                raise RunError(f"{self.path}: {_remedy(error)}") from error

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(
                self.path, timeout=self._lock_seconds, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{self.path}: can't be opened ({error}); give a path that can be written") from error
        try:
            self._prepare(database)
        except sqlite3.Error as error:
            database.close()
            raise InputError(f"{self.path}: {_remedy(error)}") from error
        except InputError:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        marks = (_pragma(database, "application_id"), _pragma(database, "user_version"))
        if marks == (APPLICATION_ID, LAYOUT):
            database.execute("PRAGMA synchronous = NORMAL")
            return
        if tables or marks != (0, 0):
            raise InputError(
                f"{self.path}: is not a response cache of this version; give another path, or move it away"
            )
        _turn_on_wal(database, self._lock_seconds)
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("BEGIN IMMEDIATE")
        database.execute(TABLE)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {LAYOUT}")
        database.execute("COMMIT")


class CachedModel:
    """A model whose answers are kept and taken from ``cache``; without ``inner`` only the cache answers."""

    def __init__(self, inner: ModelClient | None, cache: ResponseCache, model: str | None = None) -> None:
        name = inner.model if inner else model
        if name is None:
            raise ValueError("a cache without a model behind it needs the name of the model that it stands for")
        self._inner, self._cache, self._model = inner, cache, name

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._model

    async def ask(self, ask: Ask) -> Answer:
        """The kept answer, with ``cached=True``, or a new one. Raises ModelError when there is neither."""
        key = cache_key(self._model, ask)
        found = await asyncio.to_thread(self._cache.find, key)
        if found is not None:
            return found
        if self._inner is None:
            raise ModelError(
                f"{self._cache.path}: holds no answer of {self._model} to '{ask.schema_name}' (seed {ask.seed}, "
                f"attempt {ask.attempt}, key {key[:12]}); run it once with the model's endpoint, all else unchanged"
            )
        return await asyncio.to_thread(self._cache.keep, key, await self._inner.ask(ask))


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return database.execute(f"PRAGMA {name}").fetchone()[0]


def _turn_on_wal(database: sqlite3.Connection, seconds: float) -> None:
    """SQLite does not wait for a lock here, whatever the connection's timeout."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _remedy(error: sqlite3.Error) -> str:
    remedies = {
        sqlite3.SQLITE_BUSY: "is locked by another process; end that one, or give another path",
        sqlite3.SQLITE_FULL: "the disk is full; free some space and run again: what was kept is not lost",
        sqlite3.SQLITE_READONLY: "can't be written; change its permissions, or give another path",
        sqlite3.SQLITE_CANTOPEN: "can't be opened; give a path to a file that can be written",
        sqlite3.SQLITE_CORRUPT: "is damaged; delete it and run again: its answers will be asked for anew",
        sqlite3.SQLITE_NOTADB: "is not a response cache; give another path",
    }
    code = getattr(error, "sqlite_errorcode", None)
    return f"{remedies.get((code or 0) & 0xFF, 'the cache failed; delete it, or give another path')} ({error})"
