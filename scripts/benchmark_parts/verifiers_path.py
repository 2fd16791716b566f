"""verifiers against the benchmark's server, each release in a process and an environment of its own.

The environments are made on first use. 0.3.1 is the newest release with ``MultiTurnEnv``, 0.4.0 the newest of all; see
verifiers_program.py for how each plays.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from envs.errors import RunError
from scripts.benchmark_parts.variants import Bench, counted
from scripts.benchmark_parts.work import Played, Talk
from trainers import supervise
from trainers.vllm_server import BASE_NAME

VERSIONS = ("0.3.1", "0.4.0")
PROGRAM = Path(__file__).with_name("verifiers_program.py")
ANSWER_SECONDS = 120.0  # several times what the slowest job takes on two cores
ATTEMPTS = 3


def ensure_environment(release: str, folder: Path, log_file: Path) -> Path:
    """The Python of an environment with a release of verifiers, made at ``folder`` where there is none.

    Raises RunError when it can't be installed.
    """
    python = folder / "bin" / "python"
    done = folder / "installed"
    if done.exists():
        return python
    venv.create(folder, with_pip=True, clear=True)
    with log_file.open("ab") as log:
        command = [str(python), "-m", "pip", "install", "--quiet", f"verifiers=={release}"]
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise RunError(f"verifiers {release} can't be installed; {log_file} says why, or leave it out")
    done.touch()
    return python


class Verifiers:
    """The process that plays talks with one release; started once, so that no import is timed.

    0.4.0 sometimes waits for ever while nobody owes it an answer. Such a measurement is told and made again.
    """

    def __init__(
        self, command: Sequence[str | Path], log_file: Path, tell: Callable[[str], None], limit: float = ANSWER_SECONDS
    ) -> None:
        self._command, self._log_file, self._tell, self._limit = command, log_file, tell, limit
        self._process = self._started()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process at once: a release may keep SIGTERM for itself."""
        self._process.kill()
        self._process.wait()

    def play(self, bench: Bench, work: Sequence[Talk]) -> Played:
        """All talks at once. Raises RunError when verifiers fails, hangs, or plays other turns than it was given."""

        async def ask() -> float:
            return self._seconds(bench, work)

        for attempt in range(ATTEMPTS):
            try:
                if attempt:
                    self._process = self._started()
                    self._seconds(bench, work[:2])  # imports and connections
                return counted(bench, work, ask, own_prompts=False)
            except TimeoutError:
                self._tell(f"{self._command[0]} gave no answer in {self._limit:g} s, {attempt + 1} of {ATTEMPTS} times")
                self.close()
        raise RunError(f"verifiers hung {ATTEMPTS} times; leave it out (--other trl), or see {self._log_file}")

    def _seconds(self, bench: Bench, work: Sequence[Talk]) -> float:
        job = {
            "url": f"{bench.server.url}/v1",
            "model": BASE_NAME,
            "system": bench.system_prompt,
            "tokens": bench.tokens,
            "talks": [{"opening": talk.opening, "answers": talk.answers, "waits": talk.waits} for talk in work],
        }
        answer = self._ask(job)
        if answer.get("turns") != sum(len(talk.waits) for talk in work):
            raise RunError(f"verifiers did not play the talks: {answer}; see {self._log_file}")
        return float(answer["seconds"])

    def _started(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with self._log_file.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, supervise.__file__, str(os.getpid()), *self._command],  # so that none outlives us
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,
            )

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except OSError:
            return {"error": "the process has ended"}
        if not select.select([self._process.stdout], [], [], self._limit)[0]:
            raise TimeoutError
        line = self._process.stdout.readline()
        try:
            return json.loads(line) if line else {"error": "the process ended"}
        except ValueError:
            return {"error": f"no answer: {line[:100]!r}"}
