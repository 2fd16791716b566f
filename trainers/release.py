"""Release: an adapter with its evidence, shaped like a model repository, and the check that it is what was evaluated.

adapter_model.safetensors   the weights             evaluation.json   base, tuned, difference, language, in full
adapter_config.json         less machine paths      SHA256SUMS        for `sha256sum -c`
README.md                   the model card
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from envs.errors import InputError, RunError
from envs.hashing import derived_seed
from envs.trajectory import Generation, Record, Trajectory
from trainers.manifest import file_hash, unwritable, write_json, write_whole
from trainers.model_card import evaluation_json, read_run, render
from trainers.policy_server import PolicyServer, Sampled
from trainers.verification import Verification, verify_run

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
SUMS = "SHA256SUMS"
# The share of replayed replies that may take another turn: a draw that falls between two tokens can go either way when
# another batch rounds likelihoods in the last digit. All tokens up to there still have to agree.
DIVERGENT = 0.1


def release(run: Path, out: Path | None = None, verification: Verification | None = None) -> Path:
    """Write the release of a finished run to ``out`` (default: ``release`` in its folder) and return it.

    ``verification``: that of this run, where the caller has just made it. Raises InputError for an unfinished run or a
    folder that holds something else, RunError for a run that does not verify or an adapter that can't be released.
    """
    verification = verification or verify_run(run)
    out = out or run / "release"
    if out.exists() and any(out.iterdir()) and not (out / SUMS).exists():
        raise InputError(f"{out}: holds files that are no release; name an empty or a new folder with --out")
    if problem := verification.problem:
        raise RunError(
            f"{run}: is not released, because it does not verify: {problem['file']}: {problem['message']}. "
            "Restore what was changed, or run it again"
        )
    unfinished = out.parent / f".{out.name}.tmp"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _write(run, unfinished, verification, name=out.name)
        if out.exists():
            shutil.rmtree(out)
        os.replace(unfinished, out)
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def _write(run: Path, folder: Path, verification: Verification, *, name: str) -> None:
    adapter = run / "adapters" / "final"
    parameters = count_parameters(adapter / WEIGHTS)
    record = read_run(run, verification)
    shutil.copyfile(adapter / WEIGHTS, folder / WEIGHTS)
    write_json(folder / CONFIG, portable_config(_read_config(adapter / CONFIG), record.base))
    write_json(folder / "evaluation.json", evaluation_json(record))
    card = render(record, folder=name, parameters=parameters, adapter_hash=file_hash(adapter / WEIGHTS))
    write_whole(folder / "README.md", card)
    check_nothing_leaks(folder, run)
    files = sorted(path.name for path in folder.iterdir())
    write_whole(folder / SUMS, "".join(f"{file_hash(folder / file)}  {file}\n" for file in files))


def count_parameters(weights: Path) -> int:
    """How many numbers an adapter holds. Raises RunError when it is no safetensors file, or an empty one."""
    try:
        with safe_open(weights, framework="numpy") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (not a dict)
    except (FileNotFoundError, SafetensorError) as error:
        raise RunError(f"{weights}: is no safetensors file: {error}; only such adapters are released") from error
    if not shapes:
        raise RunError(f"{weights}: holds no weights; the run did not write its final adapter")
    return sum(math.prod(shape) for shape in shapes)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: can't be read: {error}; an adapter needs its config beside the weights") from error


def portable_config(config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's config less what belongs to this machine: the base model by its name, no absolute path anywhere."""
    local = {key for key, value in config.items() if isinstance(value, str) and os.path.isabs(value)}
    return dict(config) | dict.fromkeys(local) | {"base_model_name_or_path": base["name"], "inference_mode": True}


def check_nothing_leaks(folder: Path, run: Path) -> None:
    """Raise RunError when a text of the release names this machine or a folder on it."""
    host = socket.gethostname()
    # A plain word, as a container's name may be, tells nothing and could stand in any sentence.
    names = {str(run.resolve().parent), str(Path.home()), str(Path.cwd()), host if not host.isalpha() else "/"} - {"/"}
    for path in sorted(folder.iterdir()):
        text = path.read_bytes().decode("utf-8", "replace") if path.name != WEIGHTS else ""
        if found := next((name for name in sorted(names) if name in text), None):
            raise RunError(f"{path.name}: names {found!r}, which tells of this machine; take it out of config or cards")


class ReleaseCheck(Record):
    """How replies sampled again from a released adapter compare with those that were evaluated.

    ``same``: replies with the same ids. ``max_logprob_difference`` (nats) is over the ``tokens`` up to where a reply
    takes another turn, that is over all of them in a reply that is the same; None when no token agrees.
    """

    adapter: str
    replies: int
    same: int
    tokens: int
    max_logprob_difference: float | None


async def check_release(
    folder: Path,
    server: PolicyServer,
    evaluated: Sequence[Trajectory],
    *,
    temperature: float,
    max_tokens: int,
    stop_ids: Sequence[int],
    replies: int = 16,
    tolerance: float = 1e-4,
    seed_of: Callable[[Trajectory, int], int] = lambda trajectory, turn: derived_seed(trajectory.seed, turn),
) -> ReleaseCheck:
    """Load a release into ``server`` and sample recorded replies of the tuned policy again, with the same seeds.

    ``evaluated``: its evaluation's dialogues; the replies are taken evenly from them. ``seed_of`` (dialogue, turn from
    0): what a reply was sampled with. The adapter is retired afterwards. Raises RunError when it answers otherwise.
    """
    chosen = _spread(evaluated, replies)
    if not chosen:
        raise RunError(f"{folder}: can't be checked: the evaluation holds no reply with token ids")
    name = server.publish(folder)
    try:
        again = [
            await server.generate(
                generation.prompt_ids,
                adapter=name,
                seed=seed_of(trajectory, turn),
                max_tokens=max_tokens,
                temperature=temperature,
                stop_ids=stop_ids,
            )
            for trajectory, turn, generation in chosen
        ]
    finally:
        server.retire(name)
    check = _compared(name, [generation for _, _, generation in chosen], again)
    difference = check.max_logprob_difference
    if check.replies - check.same > DIVERGENT * check.replies or difference is None or not difference < tolerance:
        raise RunError(
            f"{folder}: does not answer as the evaluated adapter did: {check.same} of {check.replies} replies are the "
            f"same, log-probabilities differ by up to {difference} nats (tolerance {tolerance:g}). Check that the "
            "server serves the same base model in the same dtype and at the same temperature, then release again"
        )
    return check


def _spread(trajectories: Sequence[Trajectory], count: int) -> list[tuple[Trajectory, int, Generation]]:
    """``count`` recorded replies, evenly over all of them."""
    every = [(dialogue, turn) for dialogue in trajectories for turn in range(len(dialogue.turns))]
    said = [(dialogue, turn, dialogue.turns[turn].supporter) for dialogue, turn in every]
    spoken = [reply for reply in said if reply[2].ids]
    return spoken[:: max(1, len(spoken) // count)][:count]


def _compared(name: str, recorded: Sequence[Generation], again: Sequence[Sampled]) -> ReleaseCheck:
    same, differences = 0, []
    for was, now in zip(recorded, again, strict=True):
        same += was.ids == now.ids
        for token, other, before, after in zip(was.ids, now.ids, was.logprobs, now.logprobs, strict=False):
            if token != other:
                break
            differences.append(abs(before - after))
    return ReleaseCheck(
        adapter=name,
        replies=len(recorded),
        same=same,
        tokens=len(differences),
        max_logprob_difference=max(differences, default=None),
    )
