"""The language models of a run that play clients or judge: reached by address or served by the run, behind a cache.

``ModelPool`` starts or reaches each model once. Each client gets views of the models of its own, so that a deadline and
a count of tokens belong to one dialogue.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from envs.cards import PersonaCard
from envs.client_spec import ClientSpec, load_spec
from envs.clients import make_client
from envs.clients.calls import ClientModels
from envs.clients.client import Client
from envs.errors import InputError
from envs.models.cache import CachedModel, ResponseCache
from envs.models.endpoint import Endpoint
from envs.models.endpoint_spec import EndpointSpec
from envs.models.model_client import ModelClient, ScriptedModel
from envs.perception import get_perceiver
from trainers import assembly
from trainers.client_config import Client as ClientConfig
from trainers.client_config import ModelSource, PlayedBy, ServedModel
from trainers.config import RunConfig
from trainers.reward_config import JudgeTerm
from trainers.usage import MeteredClient, MeteredModel

MODELS = "models.json"  # in the run's folder: what each model was asked, how often it failed, when it was given up


MakeView = Callable[[], MeteredModel]


@dataclass
class _Reached:
    """One model of the pool. ``endpoint`` is None offline, where its name is all that is needed."""

    name: str
    endpoint: Endpoint | None


@dataclass
class ModelPool:
    """The models that a run's config names. A context manager: what it started is stopped at the end.

    ``log_dir``: where servers that are started write their logs. Raises InputError for a key that isn't set or a model
    that can't be had, RunError for a server that doesn't start.
    """

    config: RunConfig
    log_dir: Path
    progress: Callable[[str], None] = lambda line: None
    _reached: dict[str, _Reached] = field(default_factory=dict)
    _caches: dict[Path, ResponseCache] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def maker(self, client: ClientConfig, spec: ClientSpec) -> ClientMaker:
        """What makes the clients of ``spec``, with the models that ``client`` names."""
        views: dict[str, tuple[MakeView, MakeView | None]] = {}
        for player in played_specs(spec):
            models = played_by(client, player)
            kept = client.cache, client.offline
            reply = self._view(models.reply_model, *kept) if models.reply_model else None
            assert models.model  # played_by sees to it
            views[player.name] = self._view(models.model, *kept), reply
        return ClientMaker(spec, views)

    def report(self) -> list[dict[str, Any]]:
        """For each model: its name, what it was asked, failed attempts by cause, and the breaker's openings."""
        return [
            {
                "model": one.name,
                **vars(one.endpoint.usage),
                "failures": dict(one.endpoint.failures),
                "breaker_openings": len(one.endpoint.breaker.openings),
            }
            for one in self._reached.values()
            if one.endpoint
        ]

    def judges(self, term: JudgeTerm, *, fresh: bool = False) -> tuple[list[str], Callable[[], list[ModelClient]]]:
        """The names of a judge's models, and what makes views of them; ``fresh``: never from the cache."""
        return self.views(term.models, *((None, False) if fresh else (term.cache, term.offline)))

    def views(
        self, sources: Sequence[ModelSource], cache: Path | None = None, offline: bool = False
    ) -> tuple[list[str], Callable[[], list[ModelClient]]]:
        """The names of the models, and what makes views of them for one dialogue."""
        views = [self._view(source, cache, offline) for source in sources]
        names = [self._reach(source, offline).name for source in sources]
        return names, lambda: [view() for view in views]

    def _view(self, source: ModelSource, cache_file: Path | None, offline: bool) -> MakeView:
        """A function that makes one dialogue's view of a model."""
        reached = self._reach(source, offline)
        # A little less than the dialogue's own, so that what the model failed with is told.
        deadline = 0.95 * self.config.dialogue.deadline_seconds
        cache = self._cache(cache_file) if cache_file else None

        def view() -> MeteredModel:
            own = reached.endpoint.dialogue(deadline) if reached.endpoint else None
            if cache is not None:  # an empty one is falsy
                return MeteredModel(CachedModel(own, cache, reached.name), own)
            assert own  # offline without a cache is refused with the config
            return MeteredModel(own, own)

        return view

    def _reach(self, source: ModelSource, offline: bool) -> _Reached:
        key = source.model_dump_json() + str(offline)
        if key not in self._reached:
            spec = source.endpoint
            if source.serve:
                folder = assembly.model_folder(self.config, source.serve.model, source.serve.revision, self.progress)
                name = assembly.served_name(folder, source.serve.model)
                spec = None if offline else self._serve(source.serve, folder, name)
            else:
                name = source.endpoint.model if source.endpoint else ""
            self._reached[key] = _Reached(name, Endpoint(spec) if spec and not offline else None)
        return self._reached[key]

    def _serve(self, model: ServedModel, folder: Path, name: str) -> EndpointSpec:
        self.progress(f"starting a server for {name}")
        number = len(self._reached) + 1
        server = assembly.serve_model(self.config, model, folder, name, self.log_dir / f"model_server_{number}.log")
        self._stack.callback(server.close)
        timeout = self.config.engine.request_timeout
        return EndpointSpec(
            base_url=f"{server.url}/v1", model=name, concurrency=model.concurrency, request_timeout=timeout
        )

    def _cache(self, path: Path) -> ResponseCache:
        if path not in self._caches:
            self._caches[path] = ResponseCache(path)
            self._stack.callback(self._caches[path].close)
        return self._caches[path]


@dataclass(frozen=True)
class ClientMaker:
    """Makes clients of one spec, each with views of its models of its own.

    ``views``: for each spec that a model plays, what makes a view for its appraisals and one for its words.
    """

    spec: ClientSpec
    views: Mapping[str, tuple[MakeView, MakeView | None]]

    def __call__(self, card: PersonaCard, seed: int) -> Client:
        """A fresh client for one dialogue. Raises InputError when the card lacks what the client needs."""
        models, views = {}, []
        for name, (appraise, reply) in self.views.items():
            first = appraise()
            second = reply() if reply else first
            models[name] = ClientModels(appraise=first, reply=second)
            views += [first] if reply is None else [first, second]
        client = make_client(card, self.spec, seed, models)
        return MeteredClient(client, views) if views else client


def played_specs(spec: ClientSpec) -> list[ClientSpec]:
    """The specs that a language model plays: the spec itself, or members of an ensemble."""
    members = spec.ensemble.members if spec.ensemble else [spec]
    return [member for member in members if member.kind == "llm"]


def played_by(client: ClientConfig, spec: ClientSpec) -> PlayedBy:
    """The models that play ``spec``. Raises InputError where the config names none."""
    own = client.members.get(spec.name, client)
    if own.model is None:
        raise InputError(
            f"client.model: the client spec {spec.name} is played by a language model; name one: "
            "client.model.serve.model=bootstrap (a small one, served here), or client.model.endpoint.base_url and "
            "client.model.endpoint.model"
        )
    return own


def training_clients(config: RunConfig) -> list[tuple[ClientConfig, ClientSpec]]:
    """The clients of training, each with its rules: client.spec's, then those of curriculum.clients, which share models
    and cache with it. Raises InputError naming the key of one that can't be had."""
    first = assembly.client_spec(config)
    clients = [(config.client, first)]
    for place, given in enumerate(config.curriculum.clients):
        key = f"curriculum.clients.{place}"
        try:
            rules = load_spec(given)
            perceiver = config.client.perceiver if rules.kind == "appraisal" else None
            named = {player.name for player in played_specs(rules)} & config.client.members.keys()
            members = {name: config.client.members[name] for name in named}
            client = config.client.model_copy(update={"spec": given, "perceiver": perceiver, "members": members})
            spec = assembly.client_spec(config, client)
        except InputError as error:
            raise InputError(f"{key}: {error}") from error
        if spec.name in [one.name for _, one in clients]:
            also = "client.spec" if spec.name == first.name else "named twice"
            raise InputError(f"{key}: {spec.name} is {also} already; name another, or remove it")
        clients.append((client, spec))
    return clients


def training_specs(config: RunConfig, cards: Sequence[PersonaCard]) -> list[ClientSpec]:
    """The rules of ``training_clients``, after each was checked with ``cards``. Raises InputError naming the key."""
    first, *further = training_clients(config)
    check_client(*first, cards)
    for place, one in enumerate(further):
        try:
            check_client(*one, cards)
        except InputError as error:
            raise InputError(f"curriculum.clients.{place}: {error}") from error
    return [spec for _, spec in (first, *further)]


def check_client(client: ClientConfig, spec: ClientSpec, cards: Sequence[PersonaCard]) -> None:
    """Raises InputError where ``spec`` or one of ``cards`` lacks what it is played with, or a model its key."""
    if spec.perceiver:
        get_perceiver(spec.perceiver)
    named = {member.name for member in played_specs(spec)}
    if unknown := sorted(client.members.keys() - named):
        raise InputError(
            f"client.members: {unknown[0]} is no member of {spec.name} that a language model plays; "
            + (f"these are: {', '.join(sorted(named))}" if named else "remove it")
        )
    for player in played_specs(spec):
        models = played_by(client, player)
        for source in (models.model, models.reply_model):
            if source and source.endpoint and not client.offline:
                source.endpoint.key()
    nobody = ScriptedModel([])
    for card in cards:
        make_client(card, spec, 0, ClientModels(appraise=nobody, reply=nobody))
