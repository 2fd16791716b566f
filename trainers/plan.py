"""What a run is going to do, read from its config and checked before anything heavy is imported. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from envs.card_set import load_cards
from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from trainers import assembly
from trainers.client_models import check_client, training_specs
from trainers.config import RunConfig
from trainers.curriculum import Curriculum, check_mixture
from trainers.scoring import check_labels, check_rewards
from trainers.warm_start_data import Example, Who, read_examples
from trainers.watch_rules import WatchRules, load_rules


@dataclass(frozen=True)
class Plan:
    """A checked config: everything that can be read before anything heavy is imported."""

    config: RunConfig
    spec: ClientSpec
    held_out_spec: ClientSpec
    train_cards: list[PersonaCard]
    held_out_cards: list[PersonaCard]
    watch_rules: WatchRules | None = None
    watch_cards: Sequence[PersonaCard] = ()
    further_specs: Sequence[ClientSpec] = ()  # of training, beside spec
    examples: Sequence[Example] = ()  # to imitate before RL

    @classmethod
    def of(cls, config: RunConfig) -> Plan:
        """Read what the config names. Raises InputError for what is missing or wrong."""
        check_rewards(config)
        held_out_spec = assembly.client_spec(config, config.held_out_client)
        train = assembly.cards_of(config, config.cards.train_split)
        held_out = assembly.cards_of(config, config.evaluation.split)
        check_labels(config, train)
        spec, *further = training_specs(config, train)
        check_mixture(config.curriculum, train, [spec.name, *(one.name for one in further)])
        check_client(config.held_out_client, held_out_spec, held_out)
        plan = cls(
            config, spec, held_out_spec, train, held_out, further_specs=further, examples=_examples(config, train)
        )
        if config.watch.rules is None:
            return plan
        watched = assembly.cards_of(config, config.watch.split)[: config.watch.cards]
        check_client(config.held_out_client, held_out_spec, watched)
        return replace(plan, watch_rules=load_rules(config.watch.rules), watch_cards=watched)

    @property
    def training_specs(self) -> list[ClientSpec]:
        """The rules of every client that training may meet."""
        return [self.spec, *self.further_specs]

    def curriculum(self, record: Path) -> Curriculum | None:
        """Whom each step talks with, by the record of those before; None: every card in turn."""
        config = self.config
        if config.curriculum.kind == "rotation":
            return None
        groups, seed = config.trainer.cards_per_step, config.run.seed
        ahead = config.trainer.max_staleness
        return Curriculum(
            config.curriculum,
            self.train_cards,
            self.training_specs,
            seed=seed,
            groups=groups,
            ahead=ahead,
            record=record,
        )


def _examples(config: RunConfig, training: Sequence[PersonaCard]) -> list[Example]:
    """The dialogues of the warm start, checked against every card that the run could know; none without one."""
    if not config.warm_start.data:
        return []
    who = Who.of(load_cards(config.cards.paths), training, config.cards.languages)
    return read_examples(config.warm_start, who, config.run.seed)
