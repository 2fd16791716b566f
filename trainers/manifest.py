"""The manifest: every file that is record of a finished run, with its hash. Written last: only a whole run has one.

SHA-256 over a file's bytes proves it. For text a short sum per line says where a change lies. Trajectory logs also name
their number of lines and the last digest of their chain of receipts.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from envs.errors import InputError, RunError
from envs.hashing import content_hash, without
from trainers.run_files import flush

MANIFEST = "manifest.json"
FORMAT = 1
# What lies in a run folder and is no record of it: it may change, or go, after the run has finished.
NOT_RECORD = (".*", "*.tmp", "*.log", "logs/*", "checkpoints/*", "release/*", MANIFEST)
TEXT = {".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".jinja", ".csv"}
LINE_SUM = 8  # hex digits; they locate a change, the file's SHA-256 is the proof


class Problem(Exception):
    """The first thing that is not as recorded. ``file`` is relative to the run; ``line`` counts from 1."""

    def __init__(self, file: str, line: int | None, message: str) -> None:
        super().__init__(file, line, message)
        self.file, self.line, self.message = file, line, message

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is either whole or not there. Raises RunError naming the file and the remedy."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        flush(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as readable JSON, whole or not at all. NaN is refused (ValueError)."""
    write_whole(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def unwritable(path: Path, error: OSError) -> RunError:
    """The error for a file that can't be written, with what to do about it."""
    return RunError(
        f"{path}: can't be written: {error.strerror or error}. Free some space or make the folder writable, then resume"
    )


def record_files(folder: Path) -> list[Path]:
    """The files below ``folder`` that are record, sorted by their path."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_record(path.relative_to(folder))]


def _is_record(relative: Path) -> bool:
    path = relative.as_posix()
    return not any(fnmatch(path, pattern) or fnmatch(relative.name, pattern) for pattern in NOT_RECORD)


def is_trajectory_log(path: Path) -> bool:
    """Whether a file is a chain of receipts."""
    return fnmatch(path.name, "trajectories*.jsonl")


def write_manifest(folder: Path, finished: str) -> Path:
    """Describe every record file of ``folder``. ``finished``: the time, ISO 8601."""
    data: dict[str, Any] = {"format": FORMAT, "finished": finished}
    data["files"] = [describe(path, folder) for path in record_files(folder)]
    data["digest"] = content_hash(data)
    path = folder / MANIFEST
    write_json(path, data)
    return path


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run. Raises InputError where there is none, Problem where it was changed."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such run folder")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        digest, files = data["digest"], data["files"]
    except FileNotFoundError:
        raise InputError(
            f"{folder}: has no {MANIFEST}: the run is unfinished, or this is no run folder. Resume it, or name another"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(MANIFEST, None, f"can't be read as a manifest: {error}") from error
    if not isinstance(files, list) or content_hash(without(data, "digest")) != digest:
        raise Problem(MANIFEST, None, "does not have the digest that it names; it was changed")
    return data


def describe(path: Path, folder: Path) -> dict[str, Any]:
    """The manifest's entry for one file."""
    entry: dict[str, Any] = {
        "path": path.relative_to(folder).as_posix(),
        "sha256": file_hash(path),
        "bytes": path.stat().st_size,
    }
    if path.suffix in TEXT:
        entry["line_sums"] = line_sums(path)
    if is_trajectory_log(path):
        lines = path.read_bytes().splitlines()
        entry["lines"] = len(lines)
        entry["last_digest"] = json.loads(lines[-1])["receipt"]["digest"] if lines else None
    return entry


def file_hash(path: Path) -> str:
    """SHA-256 (hex) over the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def line_sums(path: Path) -> str:
    """A short sum of each line of a text file, with spaces between."""
    return " ".join(_line_sum(line) for line in path.read_bytes().splitlines(keepends=True))


def _line_sum(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:LINE_SUM]


def check_files(folder: Path, manifest: dict[str, Any]) -> int:
    """Compare every record file with the manifest; returns how many. Raises Problem naming the first that differs."""
    entries = {entry["path"]: entry for entry in manifest["files"]}
    found = {path.relative_to(folder).as_posix(): path for path in record_files(folder)}
    for name, entry in entries.items():
        if name not in found:
            raise Problem(name, None, "is in the manifest and no longer in the folder")
        if file_hash(found[name]) != entry["sha256"] or found[name].stat().st_size != entry["bytes"]:
            line = _changed_line(found[name], entry.get("line_sums", ""))
            raise Problem(name, line, "differs from the manifest's hash; it was changed after the run had finished")
    if extra := sorted(set(found) - set(entries)):
        raise Problem(extra[0], None, "is not in the manifest; it was added after the run had finished")
    return len(entries)


def _changed_line(path: Path, sums: str) -> int | None:
    if not sums:
        return None
    recorded = sums.split(" ")
    lines = path.read_bytes().splitlines(keepends=True)
    for number, (line, recorded_sum) in enumerate(zip(lines, recorded, strict=False), 1):
        if _line_sum(line) != recorded_sum:
            return number
    return None if len(lines) == len(recorded) else min(len(lines), len(recorded)) + 1
