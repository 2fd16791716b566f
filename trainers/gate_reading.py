"""The second reader of a run's gates: asked, with each reading written down before it counts, or from the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from envs.cards import Language
from envs.errors import InputError
from envs.models.model_client import ModelClient
from envs.trajectory import Trajectory
from rewards.gates import GateVerdict
from rewards.gates.reader import (
    GateReading,
    ReadingRules,
    check_names,
    combined,
    load_readings,
    read_dialogue,
    reading_line,
    replayed,
    unsettled,
)
from rewards.judgments import digest_of
from trainers.client_config import ModelSource
from trainers.config import RunConfig
from trainers.run_files import append_lines

READINGS = Path("judgments") / "gates.jsonl"
ModelViews = Callable[[Sequence[ModelSource]], tuple[Sequence[str], Callable[[], Sequence[ModelClient]]]]


class GateReader(Protocol):
    """Reads the gates after the patterns."""

    async def __call__(
        self, trajectory: Trajectory, language: Language, found: Sequence[GateVerdict]
    ) -> list[GateVerdict]:
        """The verdicts ``found`` by patterns, with the models' own where no pattern closed."""
        ...


class AskedReader:
    """Asks the models once about each dialogue. ``file``: where a reading is written; None: it is not kept."""

    def __init__(self, config: RunConfig, models: Callable[[], Sequence[ModelClient]], file: Path | None) -> None:
        self._judged, self._rules, self._models, self._file = config.gates.judged, _rules(config), models, file
        # What the models changed, by digest: a dialogue that is compared within its group is scored a second time.
        self._changed: dict[str, list[GateVerdict]] = {}

    async def __call__(
        self, trajectory: Trajectory, language: Language, found: Sequence[GateVerdict]
    ) -> list[GateVerdict]:
        """The combined verdicts. Raises RunError when the reading can't be written."""
        digest = digest_of(trajectory)
        if digest in self._changed:
            return combined(found, self._changed[digest])
        asked = unsettled(found, self._judged)
        reading = await read_dialogue(trajectory, asked, self._models(), language, self._rules)
        if self._file:
            self._file.parent.mkdir(exist_ok=True)
            append_lines(self._file, [reading_line(reading)])
        verdicts = combined(found, reading.verdicts)
        self._changed[digest] = [new for old, new in zip(found, verdicts, strict=True) if new != old]
        return verdicts


class RecordedReader:
    """Looks readings up by trajectory, and takes none that its own raw answers don't bring back."""

    def __init__(self, config: RunConfig, file: Path) -> None:
        self._judged, self._rules = config.gates.judged, _rules(config)
        self._named = [source.endpoint.model if source.endpoint else None for source in config.gates.models]
        self._readings = load_readings(file) if file.exists() else {}

    async def __call__(
        self, trajectory: Trajectory, language: Language, found: Sequence[GateVerdict]
    ) -> list[GateVerdict]:
        """The combined verdicts. Raises ValueError where the record holds no reading, or one that was changed."""
        reading = self._readings.get(digest_of(trajectory))
        if reading is None:
            raise ValueError(f"the record holds no reading of the gates of {trajectory.dialogue_id}")
        if (why := self._foreign(reading)) or reading.language != language:
            raise ValueError(f"the reading of {reading.dialogue_id} was made by {why or 'another prompt'}")
        if await replayed(reading, trajectory, unsettled(found, self._judged)) != reading:
            raise ValueError(f"the reading of {reading.dialogue_id} is not what its recorded answers come to")
        return combined(found, reading.verdicts)

    def _foreign(self, reading: GateReading) -> str | None:
        """What of a reading differs from what the config names; a served model's name is known only to the run."""
        if reading.rules != self._rules:
            return "other rules"
        if len(reading.models) != len(self._named):
            return "other models"
        pairs = zip(reading.models, self._named, strict=True)
        return "other models" if any(named not in (None, model) for model, named in pairs) else None


def _rules(config: RunConfig) -> ReadingRules:
    return ReadingRules(seed=config.run.seed)


def live_reader(config: RunConfig, views: ModelViews, folder: Path | None) -> GateReader | None:
    """The reader that asks; None where the config names no gate for it. Raises InputError for two models of a name."""
    if not config.gates.judged:
        return None
    names, models = views(config.gates.models)
    check_names(names)
    return AskedReader(config, models, folder / READINGS if folder else None)


def recorded_reader(config: RunConfig, folder: Path) -> GateReader | None:
    """The reader from what a run's folder holds; None as above. Raises InputError for a line that can't be read."""
    return RecordedReader(config, folder / READINGS) if config.gates.judged else None


def check_reader(config: RunConfig, rubrics: Sequence[str]) -> None:
    """Raises InputError where a rubric's judgments would be written to the readings' file."""
    if config.gates.judged and READINGS.stem in rubrics:
        raise InputError(
            f"judges: a rubric named {READINGS.stem} would share {READINGS} with gates.judged; rename the rubric"
        )
