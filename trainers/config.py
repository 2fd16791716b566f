"""The configuration of a run: what it is made of, its defaults, and what can't be combined.

Defaults give way to the file, the file to the command line (``a.b=c``). Paths are taken from the current folder.
Reading and overriding stand in ``trainers/config_file.py``. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from envs.cards import Language, Split
from trainers.client_config import BOOTSTRAP, Client, Count, Gpus, ModelSource, Positive, Section, Share
from trainers.curriculum_config import Curriculum, curriculum_conflicts
from trainers.quantization import Quantization
from trainers.reward_config import DeadSignals, Gates, JudgeTerm, RewardTerm, WatchTerm
from trainers.trainer_config import Trainer, quantised_conflicts, trainer_conflicts
from trainers.warm_start_config import WarmStart, warm_start_conflicts

LAST_PORT = 65535
EnvironmentVariable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Run(Section):
    """Which run this is and where it is kept."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        default="run", description="Name of the run, of its folder and of its adapters."
    )
    dir: Path = Field(default=Path("runs"), description="Folder in which the run's own folder is made.")
    seed: int = Field(
        default=0,
        ge=0,
        description="Seed of the adapter, the order of the cards and the training dialogues, not of held-out ones.",
    )

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.dir / self.name


class Policy(Section):
    """The model that is tuned and how it speaks."""

    model: str = Field(
        default=BOOTSTRAP,
        description="`bootstrap` (the small policy, trained here), a model folder, or a hub id (owner/name).",
    )
    revision: str | None = Field(
        default=None, description="Commit of the hub model; none: the newest when it is fetched."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Type of the frozen weights; the adapter is fp32."
    )
    quantization: Quantization = Field(
        default="none",
        description="Bits of the frozen weights that train, by bitsandbytes; the sampler's stay whole.",
    )
    system_prompt: Path | None = Field(
        default=None,
        description="File with the system message; none: configs/prompts/supporter_<language>.txt of each card.",
    )
    chat_template: Path | None = Field(
        default=None,
        description="Jinja file; none: the model's own template (the small policy's is configs/prompts/chatml.jinja).",
    )
    format: Literal["plain", "think", "kardia"] = Field(
        default="plain",
        description="What a reply is: itself, a thought and a reply (RLVER), or Kardia-R1's four spans.",
    )
    format_required: bool = Field(
        default=False, description="A dialogue in which a reply breaks the format is worth 0, whatever else it earned."
    )
    context_tokens: Count = Field(
        default=1024, description="Longest dialogue, prompt and one reply's thoughts included, in tokens."
    )
    max_new_tokens: Count = Field(default=64, description="Longest reply, in tokens.")
    temperature: Positive = Field(default=1.0, description="Sampling temperature; there is no top-p and no top-k.")


class Lora(Section):
    """The adapter (arXiv 2106.09685)."""

    rank: Count = Field(default=16, description="Rank of the adapter's matrices.")
    alpha: Positive = Field(default=32, description="Scale: the adapter counts alpha / rank.")
    dropout: Share = Field(default=0.0, description="Must be 0: see the check.")
    targets: Literal["all-linear"] | list[str] = Field(
        default="all-linear",
        description="Which layers get an adapter: all linear ones but the head, or names such as q_proj.",
    )


class Cards(Section):
    """Whom the policy talks with."""

    paths: list[Path] = Field(
        default=[Path("configs/cards")], min_length=1, description="Card files, or folders read with all below them."
    )
    languages: list[Language] = Field(default=["en"], min_length=1, description="Languages of the cards that are used.")
    train_split: Split = Field(default="train", description="Split of the cards that training uses.")


class Dialogue(Section):
    """How dialogues are run."""

    concurrency: Count = Field(default=32, description="Dialogues in flight at once.")
    deadline_seconds: Positive = Field(default=300, description="A dialogue that takes longer ends as failed.")
    max_turns: Count | None = Field(default=None, description="Turn limit; none: the client spec's.")


class Engine(Section):
    """What samples the policy's replies."""

    kind: Literal["vllm", "transformers"] = Field(
        default="vllm", description="`transformers` serves where vLLM can't be installed."
    )
    urls: list[str] = Field(default=[], description="Servers that run already; none: the run starts one.")
    urls_env: EnvironmentVariable | None = Field(
        default=None, description="Environment variable with their addresses, commas between; none: urls holds them."
    )
    key_env: EnvironmentVariable | None = Field(
        default=None, description="Environment variable that holds the servers' key; none: they ask for none."
    )
    port: Annotated[int, Field(ge=1, le=LAST_PORT)] | None = Field(
        default=None, description="Port of the server, on loopback; further ones take those after it. None: free ones."
    )
    max_loras: int = Field(
        default=4, ge=2, description="Adapter slots: trainer.max_staleness + 2, and one more on a CPU."
    )
    start_timeout: Positive = Field(default=300, description="Seconds until a server that isn't ready has failed.")
    request_timeout: Positive = Field(default=120, description="Seconds until a request has failed.")
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.9, description="Share of each engine GPU that vLLM takes."
    )
    replicas: Count = Field(default=1, description="Servers that the run starts, each with a copy of the model.")
    tensor_parallel: Count = Field(default=1, description="GPUs that share one copy of the model.")
    enforce_eager: bool = Field(default=True, description="No compiled graphs: starts faster, samples slower on a GPU.")
    kv_cache_gib: Count = Field(default=1, description="CPU only: memory of each server for keys and values.")
    threads: Count | None = Field(
        default=None,
        description="CPU only: threads of each server; none: the cores, or with max_staleness half, shared out.",
    )

    @property
    def elsewhere(self) -> bool:
        """Whether the run is given servers, and starts none."""
        return bool(self.urls or self.urls_env)


class Devices(Section):
    """Which GPUs do what; empty lists mean the CPU."""

    training: Gpus = Field(default=[], description="GPUs that train.")
    engine: Gpus = Field(default=[], description="GPUs that sample: the same as training, or others.")
    memory_gib: Positive | None = Field(
        default=None, description="Memory of each GPU, for the estimate; none: not compared."
    )


class Evaluation(Section):
    """How base and adapter are compared."""

    split: Split = Field(default="test", description="Split of the cards that the comparison uses.")
    seeds_per_card: Count = Field(default=2, description="Dialogues with each card; the same seeds for both policies.")
    bootstrap_resamples: int = Field(default=10_000, ge=100, description="Resamples of the bootstrap intervals.")
    client: Client | None = Field(
        default=None, description="A client that training doesn't meet, with keys as under client; none: training's."
    )


class Release(Section):
    """What is handed on."""

    name: str | None = Field(default=None, description="Name of the released adapter; none: the run's.")
    licence: str = Field(default="Apache-2.0", description="Licence of the adapter; the base model's must allow it.")


class RunConfig(Section):
    """Everything that a run is made of."""

    run: Run = Field(default=Run(), description="Name, folder and seed.")
    policy: Policy = Field(default=Policy(), description="The model that is tuned.")
    lora: Lora = Field(default=Lora(), description="The adapter.")
    cards: Cards = Field(default=Cards(), description="Whom it talks with.")
    client: Client = Field(default=Client(), description="How the client is simulated.")
    dialogue: Dialogue = Field(default=Dialogue(), description="How dialogues are run.")
    rewards: list[RewardTerm] = Field(
        default=[RewardTerm(name="emotion")], min_length=1, description="What is rewarded."
    )
    judges: list[JudgeTerm] = Field(default=[], description="Judges whose rubrics are rewards or are only logged.")
    gates: Gates = Field(default=Gates(), description="What voids a gain.")
    dead_signals: DeadSignals = Field(default=DeadSignals(), description="What is done about rewards without signal.")
    watch: WatchTerm = Field(default=WatchTerm(), description="Who watches the run.")
    curriculum: Curriculum = Field(default=Curriculum(), description="Which cards and clients a step is played with.")
    warm_start: WarmStart = Field(default=WarmStart(), description="What the adapter imitates first.")
    trainer: Trainer = Field(default=Trainer(), description="How the adapter is trained.")
    engine: Engine = Field(default=Engine(), description="What samples the replies.")
    devices: Devices = Field(default=Devices(), description="Which GPUs do what.")
    evaluation: Evaluation = Field(default=Evaluation(), description="How base and adapter are compared.")
    release: Release = Field(default=Release(), description="What is handed on.")

    @property
    def held_out_client(self) -> Client:
        """The client of the evaluation. Its models and cache are training's where it names none."""
        own = self.evaluation.client
        if own is None:
            return self.client
        kept = {"model", "reply_model", "members", "cache", "offline"} - own.model_fields_set
        return own.model_copy(update={name: getattr(self.client, name) for name in kept})

    @property
    def model_sources(self) -> dict[str, ModelSource]:
        """The language models that play clients, judge or read gates, by key; one that is shared stands once."""
        named: dict[str, ModelSource | None] = {}
        for key, client in (("client", self.client), ("evaluation.client", self.evaluation.client)):
            players = {key: client, **{f"{key}.members.{n}": m for n, m in client.members.items()}} if client else {}
            for place, player in players.items():
                named |= {f"{place}.model": player.model, f"{place}.reply_model": player.reply_model}
        for place, judge in enumerate(self.judges):
            named |= {f"judges.{place}.models.{number}": source for number, source in enumerate(judge.models)}
        named |= {f"gates.models.{number}": source for number, source in enumerate(self.gates.models)}
        return {key: source for key, source in named.items() if source}

    @model_validator(mode="after")
    def _combines(self) -> RunConfig:
        problems = [
            *_policy_conflicts(self),
            *trainer_conflicts(self.trainer, self.policy.dtype, max(1, len(self.devices.training))),
            *quantised_conflicts(self.trainer, self.policy.quantization),
            *curriculum_conflicts(self.curriculum),
            *warm_start_conflicts(self.warm_start, self.trainer.micro_batch, max(1, len(self.devices.training))),
            *_reward_conflicts(self),
            *_engine_conflicts(self),
            *_device_conflicts(self),
            *_client_conflicts(self),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _policy_conflicts(config: RunConfig) -> list[str]:
    policy, problems = config.policy, []
    if policy.max_new_tokens >= policy.context_tokens:
        problems.append(
            f"policy.max_new_tokens: {policy.max_new_tokens} leaves no room in policy.context_tokens "
            f"({policy.context_tokens}); lower the first or raise the second"
        )
    if (most := config.trainer.micro_batch_tokens) and most < policy.context_tokens:
        problems.append(
            f"trainer.micro_batch_tokens: one dialogue may have more, policy.context_tokens ({policy.context_tokens}); "
            "raise the first to that, or lower the second"
        )
    problems += _format_conflicts(config)
    if config.lora.dropout > 0:
        problems.append(
            "lora.dropout: must be 0: dropout makes training log-probabilities differ from those that were sampled"
        )
    if config.evaluation.split == config.cards.train_split:
        problems.append(
            f"evaluation.split: {config.evaluation.split!r} is what training uses (cards.train_split); "
            "evaluate on another split"
        )
    return problems


def _format_conflicts(config: RunConfig) -> list[str]:
    form, required = config.policy.format, config.policy.format_required
    paid = [term.name for term in config.rewards if term.weight and term.name.startswith("format-")]
    problems = [
        f"rewards: {name} rewards a format that policy.format ({form}) doesn't ask for; make them the same, or give it "
        "weight 0"
        for name in paid
        if name != f"format-{form}"
    ]
    if form == "plain" and required:
        problems.append("policy.format_required: plain is no format that a reply could break; remove it")
    if form != "plain" and not required and not paid:
        problems.append(
            f"policy.format: nothing holds the policy to {form}; add {{name: format-{form}, weight: 0.2}} to rewards, "
            "or set policy.format_required"
        )
    return problems


def _reward_conflicts(config: RunConfig) -> list[str]:
    problems = []
    if not any(term.weight for term in config.rewards):
        problems.append("rewards: none carries weight, so nothing would be trained; give one a weight above 0")
    if both := sorted({*config.gates.names} & {*config.gates.read_only}):
        problems.append(f"gates.read_only: {both[0]} stands under gates.names too; keep it in one of them")
    names = [term.name for term in config.rewards]
    if twice := {name for name in names if names.count(name) > 1}:
        problems.append(f"rewards: {sorted(twice)[0]!r} is named twice; keep one and add the weights")
    return problems


def _engine_conflicts(config: RunConfig) -> list[str]:
    engine, devices, problems = config.engine, config.devices, []
    if engine.kind == "transformers" and engine.elsewhere:
        problems.append(
            "engine.urls: the transformers engine runs in the training process; remove urls, or set engine.kind to vllm"
        )
    if engine.urls and engine.urls_env:
        problems.append("engine.urls_env: names the servers a second time, beside engine.urls; remove one of the two")
    if engine.urls and engine.port:
        problems.append(
            "engine.port: has no meaning beside engine.urls, whose servers run already; remove one of the two"
        )
    if engine.urls and engine.replicas > 1:
        problems.append(
            "engine.replicas: has no meaning beside engine.urls, whose servers run already; remove one of the two"
        )
    if engine.kind == "transformers" and engine.replicas > 1:
        problems.append(
            "engine.replicas: transformers is one engine in the training process; remove it, or set engine.kind to vllm"
        )
    if engine.port and engine.port + engine.replicas - 1 > LAST_PORT:
        problems.append(
            f"engine.port: {engine.replicas} servers from {engine.port} on would take "
            f"{engine.port + engine.replicas - 1}; name a lower one, at most {LAST_PORT + 1 - engine.replicas}"
        )
    slots = config.trainer.max_staleness + (2 if devices.engine else 3)
    if engine.kind == "vllm" and engine.max_loras < slots:
        problems.append(
            f"engine.max_loras: {engine.max_loras} slots are too few for adapters of trainer.max_staleness="
            f"{config.trainer.max_staleness}; set {slots} or more"
        )
    bad = [url for url in engine.urls if not url.startswith(("http://", "https://"))]
    if bad:
        problems.append(f"engine.urls: {bad[0]!r} must begin with http:// or https://")
    each, copies, gpus = engine.tensor_parallel, engine.replicas, len(devices.engine)
    if not engine.elsewhere and (each > 1 if not gpus else each * copies != gpus):
        problems.append(
            f"engine.tensor_parallel: {each}, for each of engine.replicas ({copies}), must equal the number of "
            f"devices.engine ({gpus}): each server that the run starts holds one copy of the model; change one of them"
        )
    return problems


def _device_conflicts(config: RunConfig) -> list[str]:
    devices, problems = config.devices, []
    for role, listed in (("training", devices.training), ("engine", devices.engine)):
        if len(set(listed)) < len(listed):
            problems.append(f"devices.{role}: {listed} names a GPU twice")
    shared = set(devices.training) & set(devices.engine)
    if shared and set(devices.training) != set(devices.engine):
        problems.append("devices.engine: must be the same GPUs as devices.training, or none of them")
    if devices.engine and not devices.training:
        problems.append("devices.training: is empty while devices.engine is not; name the GPUs that train")
    if devices.training:
        problems += sharing_conflicts(config, len(devices.training))
    return problems


def sharing_conflicts(config: RunConfig, processes: int) -> list[str]:
    """What ``processes`` that train together can't share, a line each, with the key first."""
    engine, problems = config.engine, []
    if processes == 1:
        alone = "trainer.deepspeed: shares a state out over several training processes; remove it, or train on several"
        return [alone] if config.trainer.deepspeed else []
    if not engine.elsewhere and engine.port is None:
        problems.append(
            "engine.port: is needed when several processes train: they look for the server there; name a port"
        )
    if engine.kind == "transformers":
        problems.append("engine.kind: transformers serves a single training process; use vllm with several")
    for key, source in config.model_sources.items():
        if source.serve:
            problems.append(
                f"{key}.serve: several training processes can't share it; start a server, name its endpoint"
            )
    return problems


def _client_conflicts(config: RunConfig) -> list[str]:
    problems = []
    for key, client in (("client", config.client), ("evaluation.client", config.held_out_client)):
        if client.offline and client.cache is None:
            problems.append(f"{key}.cache: is needed with {key}.offline: name the file that holds the answers")
        if client.reply_model and not client.model:
            problems.append(f"{key}.model: is missing beside {key}.reply_model; add it, or name that one as model")
    used = {*config.devices.training, *config.devices.engine}
    for key, source in config.model_sources.items():
        if source.serve and (shared := used & set(source.serve.gpus)):
            problems.append(f"{key}.serve.gpus: GPU {min(shared)} serves or trains the policy; name others")
    return list(dict.fromkeys(problems))
