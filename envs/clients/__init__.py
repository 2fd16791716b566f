"""Simulated clients, one module a kind; ``make_client`` builds the kind that a spec names."""

from __future__ import annotations

from collections.abc import Mapping

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.clients.appraisal import AppraisalClient
from envs.clients.calls import ClientModels
from envs.clients.client import Client
from envs.clients.ensemble import EnsembleClient, Member
from envs.clients.llm import LlmClient
from envs.errors import InputError
from envs.hashing import derived_seed

Models = ClientModels | Mapping[str, ClientModels]  # for every played client, or by the name of its spec


def make_client(card: PersonaCard, spec: ClientSpec, seed: int, models: Models | None = None) -> Client:
    """A fresh client for one dialogue. ``models`` play clients of kind llm, an ensemble's members among them.

    Raises InputError when a model is needed and none is given, or the card lacks what the client is played from.
    """
    if spec.ensemble is None:
        return _single(card, spec, seed, models)
    members = [
        _single(card, member, derived_seed(seed, member.name), models, silent=index > 0)
        for index, member in enumerate(spec.ensemble.members)
    ]
    return EnsembleClient(spec, members)


def _single(card: PersonaCard, spec: ClientSpec, seed: int, models: Models | None, silent: bool = False) -> Member:
    if spec.kind == "appraisal":
        return AppraisalClient(card, spec, seed)
    own = models.get(spec.name) if isinstance(models, Mapping) else models
    if own is None:
        raise InputError(
            f"client spec {spec.name} is played by a language model, and none is given; name one in the config (client "
            "models), or take a client without one (client.spec=appraisal-v1)"
        )
    return LlmClient(card, spec, seed, own, silent)
