"""Simulated clients, one module a kind; ``make_client`` builds the kind that a spec names."""

from __future__ import annotations

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec
from envs.clients.appraisal import AppraisalClient
from envs.clients.client import Client


def make_client(card: PersonaCard, spec: ClientSpec, seed: int) -> Client:
    """A fresh client for one dialogue."""
    return AppraisalClient(card, spec, seed)
