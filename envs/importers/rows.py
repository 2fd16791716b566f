"""Rows of other people's collections: JSON, JSON lines, CSV, Parquet, a dataset's folder or a name on the hub.

Gzipped text is known by its first bytes, JSON lines by their content, since some collections call them ``.json``.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from envs.errors import InputError

HUB = "hf:"
GZIP = b"\x1f\x8b"


class Row(NamedTuple):
    """One row: where it stands, as ``file:line`` or ``file, row n``, and its fields."""

    where: str
    data: dict[str, Any]


def read_rows(source: str) -> list[Row]:
    """Every row of ``source``: a file, a folder, or ``hf:owner/name``. Raises InputError naming file and line."""
    if source.startswith(HUB):
        return list(_dataset_rows(source))
    path = Path(source)
    if not path.exists():
        raise InputError(f"{source}: there is no such file or folder; a dataset of the hub is named hf:owner/name")
    if path.is_dir() or ".parquet" in path.suffixes:
        return list(_dataset_rows(source))
    if {".csv", ".tsv"} & set(path.suffixes):
        return list(_table_rows(path, "\t" if ".tsv" in path.suffixes else ","))
    text = read_text(path)
    whole = _whole_json(path, text)
    return list(json_lines(path, text)) if whole is None else whole


def read_text(path: Path) -> str:
    """A text file, plain or gzipped. Raises InputError naming it when it can't be read."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if raw.startswith(GZIP) else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as UTF-8 text, plain or gzipped: {error}") from error


def json_lines(path: Path, text: str) -> Iterator[Row]:
    """The objects of JSON lines; blank lines are passed over. Raises InputError naming a broken line and its file."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: is not valid JSON ({error}); mend or remove this line") from error
        if not isinstance(data, dict):
            raise InputError(f"{path}:{number}: an object with named fields belongs here; mend or remove this line")
        yield Row(f"{path}:{number}", data)


def _whole_json(path: Path, text: str) -> list[Row] | None:
    """The rows of one JSON document, or None where the file holds an object on each line."""
    if _has_json_lines(path, text):
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{path}{line}: is not valid JSON ({error})") from error
    if isinstance(document, dict):
        # One object is a row itself, unless it holds nothing but rows by their names.
        rows = list(document.values())
        document = rows if rows and all(isinstance(row, dict) for row in rows) else [document]
    if not isinstance(document, list):
        raise InputError(f"{path}: a list of objects belongs here, a card each")
    for number, row in enumerate(document, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number}: an object with named fields belongs here")
    return [Row(f"{path}, row {number}", row) for number, row in enumerate(document, start=1)]


def _has_json_lines(path: Path, text: str) -> bool:
    """Whether each line is an object of its own; a single line counts as one document, but for its file's name."""
    if {".jsonl", ".ndjson"} & set(path.suffixes):
        return True
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        return len(lines) > 1 and isinstance(json.loads(lines[0]), dict)
    except (ValueError, RecursionError):
        return False


def _table_rows(path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        for row in reader:
            if None in row:
                raise InputError(f"{path}:{reader.line_num}: has more cells than the first line names columns")
            yield Row(f"{path}:{reader.line_num}", dict(row))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: can't be read as a table: {error}") from error


def _dataset_rows(source: str) -> Iterator[Row]:
    """The rows of all splits of a dataset. The library is imported here alone: it is heavy."""
    import datasets

    path = Path(source)
    try:
        if source.startswith(HUB):
            found = datasets.load_dataset(source.removeprefix(HUB))
        elif path.is_file():
            found = datasets.load_dataset("parquet", data_files=str(path))
        elif (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path))
    except Exception as error:  # the library raises many kinds: no network, no such name, no such format
        raise InputError(f"{source}: can't be loaded as a dataset: {type(error).__name__}: {error}") from error
    splits: dict[Any, Any] = dict(found) if isinstance(found, dict) else {"": found}
    for name, rows in splits.items():
        for number, row in enumerate(rows, start=1):
            yield Row(f"{source}, {name} row {number}".replace(",  ", ", "), dict(row))
