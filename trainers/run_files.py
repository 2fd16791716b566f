"""Files of lines that a run appends to: written through to the disk, and cut back when a run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from envs.errors import RunError


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines and wait until they are on disk. Raises RunError naming the file."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(
            f"{path}: can't be written ({error}); free some space or mend the rights, then resume"
        ) from error


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop lines that aren't ``wanted``, and a last line that was cut off in mid-write; the file changes at once."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if wanted(json.loads(line)):
                kept.append(line)
        except json.JSONDecodeError:
            continue
    replacement = path.with_name(path.name + ".tmp")
    replacement.unlink(missing_ok=True)
    append_lines(replacement, kept)
    replacement.replace(path)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
