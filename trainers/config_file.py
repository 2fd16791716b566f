"""Reading a run's configuration: defaults, then the file, then ``a.b=c`` from the command line.

Every problem is told at once, each with the file (or the command line), the dotted key and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from envs.errors import InputError
from trainers.client_config import BOOTSTRAP
from trainers.config import RunConfig
from trainers.trainer_config import zero_stage

COMMAND_LINE = "command line"
# What the same thing is called elsewhere, mostly in TRL.
OTHER_NAMES = {
    "lr": "learning_rate",
    "beta": "kl",
    "kl_coef": "kl",
    "num_generations": "dialogues_per_card",
    "num_iterations": "iterations",
    "max_steps": "steps",
    "per_device_train_batch_size": "micro_batch",
    "max_completion_length": "max_new_tokens",
    "model_name_or_path": "model",
    "lora_r": "rank",
    "r": "rank",
    "target_modules": "targets",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
    "lr_scheduler_type": "lr_schedule",
}


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """The checked configuration. ``overrides``: "trainer.steps=10", values read as YAML. Raises InputError."""
    data = _read(path) if path else {}
    given = [parse_override(override) for override in overrides]
    for key, value in given:
        _set(data, key, value)
    source = _Source(str(path) if path else "defaults", tuple(key for key, _ in given))
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(_described(error, source))) from error
    if problems := missing_files(config):
        raise InputError("\n".join(f"{source.of(problem.split(':')[0])}: {problem}" for problem in problems))
    return config


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, which ``load_config`` reads back to the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Source:
    """Where a key was given: on the command line or in the file."""

    def __init__(self, file: str, overridden: tuple[str, ...]) -> None:
        self._file, self._overridden = file, overridden

    def of(self, key: str) -> str:
        """The file's name, or the command line where it set ``key``, something in it, or what it is part of."""
        touched = any(f"{key}.".startswith(f"{given}.") or given.startswith(f"{key}.") for given in self._overridden)
        return COMMAND_LINE if touched else self._file


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(str(file) for file in sorted(Path("configs").glob("*.yaml")))
        raise InputError(f"{path}: there is no such file" + (f"; configs here: {known}" if known else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(
            f"{path}: must be a mapping of sections ({', '.join(RunConfig.model_fields)}), not a {type(data).__name__}"
        )
    return data


def parse_override(override: str) -> tuple[str, Any]:
    """The key and the value of "trainer.steps=10". Raises InputError where it is nothing of the kind."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"{COMMAND_LINE}: {override!r} is not of the form section.key=value, such as trainer.steps=10")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{COMMAND_LINE}: {key}: {text!r} is not valid YAML: {error}; put quotes around it") from error


def _set(data: Any, key: str, value: Any) -> None:
    """Set a dotted key in nested mappings and lists, making the mappings that are missing."""
    *parents, last = key.split(".")
    if key.startswith("rewards.") and "rewards" not in data:
        data["rewards"] = RunConfig().model_dump(mode="json")["rewards"]
    for part in parents:
        data = data[_index(data, part, key)] if isinstance(data, list) else _child(data, part, key)
    if isinstance(data, list):
        data[_index(data, last, key)] = value
    else:
        data[last] = value


def _child(data: dict[str, Any], part: str, key: str) -> Any:
    child = data.setdefault(part, {})
    if child is None:
        child = data[part] = {}
    if not isinstance(child, dict | list):
        raise InputError(f"{COMMAND_LINE}: {key}: {part} holds the value {child!r}, so nothing can be set inside it")
    return child


def _index(data: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(data):
        raise InputError(f"{COMMAND_LINE}: {key}: {part!r} is no position in a list of {len(data)}; the first is 0")
    return int(part)


def _described(error: ValidationError, source: _Source) -> Iterator[str]:
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        message = str(problem["msg"]).removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            yield f"{source.of(key)}: {key}: is not a known key; {_remedy(key)}"
        elif problem["type"] == "missing":
            yield f"{source.of(key)}: {key}: is missing; add it"
        elif problem["type"] == "value_error":
            for line in message.splitlines():
                yield f"{source.of(line.split(':')[0])}: {line}"
        else:
            yield f"{source.of(key)}: {key}: {message} (given: {str(problem['input'])[:60]!r})"


def _remedy(key: str) -> str:
    """What to write instead of an unknown key: the likeliest in its section, else in any."""
    *parents, last = key.split(".")
    section = ".".join(parents)
    known = list(_keys(RunConfig))
    last = OTHER_NAMES.get(last, last)
    here = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    if close := get_close_matches(last, here, n=1):
        return f"did you mean {'.'.join([*parents, close[0]])!r}?"
    elsewhere = {name.rpartition(".")[2]: name for name in known}
    if close := get_close_matches(last, elsewhere, n=1, cutoff=0.75):
        return f"did you mean {elsewhere[close[0]]!r}?"
    return f"known here: {', '.join(here)}" if here else "remove it"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a model, sections before what they hold."""
    for name, field in model.model_fields.items():
        yield prefix + name
        annotation = next(iter(get_args(field.annotation)), field.annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            index = "0." if get_origin(field.annotation) is list else ""
            yield from _keys(annotation, f"{prefix}{name}.{index}")


def missing_files(config: RunConfig) -> list[str]:
    """One line for each file that the config names and that isn't there, with its key and the remedy."""
    named: list[tuple[str, Path | None]] = [
        ("policy.system_prompt", config.policy.system_prompt),
        ("policy.chat_template", config.policy.chat_template),
        ("trainer.deepspeed", config.trainer.deepspeed),
        *((f"cards.paths.{index}", path) for index, path in enumerate(config.cards.paths)),
        *((f"{key}.serve.chat_template", s.serve.chat_template) for key, s in config.model_sources.items() if s.serve),
    ]
    problems = [
        f"{key}: there is no {path} (paths are taken from the current folder, {Path.cwd()}); correct it"
        for key, path in named
        if path is not None and not path.exists()
    ]
    problems += _model_problems("policy.model", config.policy.model)
    for key, source in config.model_sources.items():
        if source.serve:
            problems += _model_problems(f"{key}.serve.model", source.serve.model)
    return problems + _deepspeed_problems(config.trainer.deepspeed)


def _model_problems(key: str, model: str) -> list[str]:
    folder = Path(model)
    if model == BOOTSTRAP:
        return []
    if folder.is_dir():
        return (
            [] if (folder / "config.json").is_file() else [f"{key}: {model} has no config.json; name a model's folder"]
        )
    is_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    return [] if is_hub_id else [f"{key}: {model!r} is neither `{BOOTSTRAP}`, nor a folder, nor a hub id (owner/name)"]


def _deepspeed_problems(path: Path | None) -> list[str]:
    if path is None or not path.is_file():
        return []
    try:
        stage = zero_stage(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"trainer.deepspeed: {path} is not a DeepSpeed file with zero_optimization.stage ({error!r})"]
    return (
        []
        if stage in (0, 1, 2, 3)
        else [f"trainer.deepspeed: {path} asks for ZeRO stage {stage}; there are 0, 1, 2 and 3"]
    )
