"""From a configuration to the pieces of a run: client spec, cards, the policy's folder, its server, its supporters.

Nothing heavy is imported before it is needed, so that a command can check everything else first.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from envs.card_set import load_cards
from envs.cards import Language, PersonaCard, Split
from envs.client_spec import ClientSpec, load_spec
from envs.errors import InputError
from trainers.client_config import BOOTSTRAP, Client, ServedModel
from trainers.config import RunConfig
from trainers.evaluation import DialogueKey, SupporterFactory
from trainers.policy_server import PolicyServer
from trainers.run_folder import model_identity

if TYPE_CHECKING:
    from trainers.chat_template import ChatTemplate
    from trainers.train import TrainSettings
    from trainers.vllm_process import VllmProcess, VllmSettings

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
EMBEDDED = "appraisal-v1"  # the client without weights
CHATML = ROOT / "configs" / "prompts" / "chatml.jinja"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank


def client_spec(config: RunConfig, client: Client | None = None) -> ClientSpec:
    """The spec of ``client`` (None: training's), with the config's own perceiver and turn limit where it sets them."""
    client = client or config.client
    changes = {"perceiver": client.perceiver, "max_turns": config.dialogue.max_turns}
    spec = load_spec(client.spec)
    if client.perceiver and spec.kind != "appraisal":
        raise InputError(f"client.perceiver: {spec.name} perceives through a language model; remove it")
    return ClientSpec.model_validate(spec.model_dump() | {key: value for key, value in changes.items() if value})


def cards_of(config: RunConfig, split: Split) -> list[PersonaCard]:
    """The config's cards of one split, sorted by id. Raises InputError when there is none."""
    languages = config.cards.languages
    found = [c for c in load_cards(config.cards.paths) if c.split == split and c.language in languages]
    if not found:
        raise InputError(
            f"no card of split {split!r} in {', '.join(languages)} lies in {', '.join(map(str, config.cards.paths))}; "
            "name another split, or add cards (cards.paths) or languages (cards.languages)"
        )
    return found


def check_adapter(folder: Path) -> None:
    """Raises InputError when ``folder`` is no whole adapter."""
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise InputError(f"{folder}: has no {name}; name an adapter, such as runs/demo/adapters/final")


def policy_dir(config: RunConfig, progress: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of the base model: made here, on this disk, or fetched. Raises InputError when it can't be had."""
    return model_folder(config, config.policy.model, config.policy.revision, progress)


def model_folder(
    config: RunConfig, model: str, revision: str | None, progress: Callable[[str], None] = lambda line: None
) -> Path:
    """The folder of ``model``: `bootstrap`, a folder, or a hub id. Raises InputError when it can't be had."""
    if model == BOOTSTRAP:
        from trainers.bootstrap import bootstrap
        from trainers.chat_template import read_prompt

        template = (config.policy.chat_template or CHATML).read_text(encoding="utf-8")
        prompt, cards = read_prompt("en", config.policy.system_prompt), cards_of(config, config.cards.train_split)
        # Its corpus is played with the embedded client, whoever plays the client of the run.
        spec = client_spec(config)
        spec = spec if spec.kind == "appraisal" else load_spec(EMBEDDED)
        CACHE.mkdir(exist_ok=True)
        with (CACHE / "bootstrap.lock").open("w") as lock:  # whoever wants it meanwhile waits, and finds it made
            fcntl.flock(lock, fcntl.LOCK_EX)
            return bootstrap(CACHE, cards, spec, prompt, template, progress=progress)
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision))
    except (OSError, ValueError) as error:
        raise InputError(f"the model {model} can't be fetched ({error}); name a model's folder") from error


def served_name(folder: Path, model: str) -> str:
    """The name of a served model in receipts and cache keys: it changes with the weights."""
    identity = model_identity(folder, model)
    return f"{'bootstrap' if model == BOOTSTRAP else identity['name']}@{(identity['sha256'] or 'unhashed')[:12]}"


def serve_model(config: RunConfig, model: ServedModel, folder: Path, name: str, log_file: Path) -> VllmProcess:
    """A server for a client's model, ready to answer chats; the caller closes it. Raises InputError or RunError."""
    from trainers.vllm_process import VllmSettings, start_all

    # Between the fields of an answer a weak model may write spaces without end.
    extra = ("--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}))
    if model.model == BOOTSTRAP:  # shorter dialogues were all it saw; longer prompts are no worse than its words
        extra += ("--hf-overrides", json.dumps({"max_position_embeddings": model.context_tokens}))
    settings = VllmSettings(
        model_dir=folder,
        log_file=log_file,
        served_name=name,
        chat_template=model.chat_template or (CHATML if model.model == BOOTSTRAP else None),
        max_loras=0,
        device="cuda" if model.gpus else "cpu",
        dtype=model.dtype,
        max_model_len=model.context_tokens,
        kv_cache_gib=model.kv_cache_gib,
        threads=model.threads,
        gpus=tuple(model.gpus),
        tensor_parallel=max(1, len(model.gpus)),
        gpu_memory_utilization=model.gpu_memory_utilization,
        start_timeout=config.engine.start_timeout,
        request_timeout=config.engine.request_timeout,
        extra_args=extra,
    )
    [process] = start_all([settings])
    return process


def start_server(config: RunConfig, model_dir: Path, log_file: Path) -> PolicyServer:
    """The engine that the config names, ready to sample; the caller closes it. Raises InputError or RunError."""
    engine, device = config.engine, "cuda" if config.devices.engine else "cpu"
    if engine.kind == "transformers":
        import torch

        from trainers.transformers_engine import TransformersEngine

        return TransformersEngine(model_dir, dtype=getattr(torch, config.policy.dtype), device=device)
    from trainers.vllm_server import VllmServer

    if engine.urls_env:  # a job starts them at the same time as the run
        return join_server(config, model_dir, log_file)
    if engine.urls:
        return VllmServer.connect(engine.urls, engine.request_timeout, engine_key(config), every=False)
    return VllmServer.start(*own_servers(config, model_dir, log_file))


def own_servers(config: RunConfig, model_dir: Path, log_file: Path) -> list[VllmSettings]:
    """How the run starts its servers: GPUs are shared out between them, and each has a log of its own.

    The first one's is ``log_file``; they listen from `engine.port` on.
    """
    engine, each = config.engine, config.engine.tensor_parallel
    one = policy_server_settings(config, model_dir, log_file)
    return [
        replace(
            one,
            log_file=log_file.with_stem(f"{log_file.stem}_{number}") if number else log_file,
            port=engine.port + number if engine.port else None,
            gpus=one.gpus[number * each : (number + 1) * each],
        )
        for number in range(engine.replicas)
    ]


def policy_server_settings(config: RunConfig, model_dir: Path, log_file: Path) -> VllmSettings:
    """How a server for the policy is started: one copy of the model, at `engine.port` on loopback, on all engine GPUs.

    Raises InputError when the key is asked for and missing.
    """
    from trainers.vllm_process import VllmSettings

    engine = config.engine
    return VllmSettings(
        model_dir=model_dir,
        log_file=log_file,
        port=engine.port,
        key=engine_key(config),
        device="cuda" if config.devices.engine else "cpu",
        dtype=config.policy.dtype,
        max_model_len=config.policy.context_tokens,
        max_loras=engine.max_loras,
        max_lora_rank=next((rank for rank in LORA_RANKS if rank >= config.lora.rank), config.lora.rank),
        kv_cache_gib=engine.kv_cache_gib,
        threads=_threads_of_a_server(config),
        gpus=tuple(config.devices.engine),
        tensor_parallel=engine.tensor_parallel,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        enforce_eager=engine.enforce_eager,
        start_timeout=engine.start_timeout,
        request_timeout=engine.request_timeout,
    )


def _side_by_side(config: RunConfig) -> bool:
    """Whether servers of ours sample on this machine's cores while training computes there."""
    engine, devices = config.engine, config.devices
    ours = engine.kind == "vllm" and not engine.elsewhere
    return bool(config.trainer.max_staleness and ours and not devices.engine and not devices.training)


def _threads_of_a_server(config: RunConfig) -> int:
    """Sampling and training take turns on all cores; where they run side by side, servers have half of them."""
    from trainers.vllm_process import usable_cores

    cores = max(1, usable_cores() // 2) if _side_by_side(config) else usable_cores()
    return config.engine.threads or max(1, cores // config.engine.replicas)


def _training_threads(config: RunConfig) -> int | None:
    """The cores that servers beside it leave; None: nothing samples meanwhile."""
    from trainers.vllm_process import usable_cores

    if not _side_by_side(config):
        return None
    return max(1, usable_cores() - _threads_of_a_server(config) * config.engine.replicas)


def engine_key(config: RunConfig) -> str | None:
    """The key of the policy's servers; None: they ask for none. Raises InputError when its variable is not set."""
    return _variable("engine.key_env", config.engine.key_env)


def engine_urls(config: RunConfig) -> list[str]:
    """Where the policy's servers are; empty: the run starts one. Raises InputError when the variable has no addresses.

    They change when a job starts again elsewhere, so they are no part of the configuration that a run records.
    """
    listed = _variable("engine.urls_env", config.engine.urls_env)
    if listed is None:
        return config.engine.urls
    urls = [url.strip() for url in listed.split(",")]
    if bad := [url for url in urls if not url.startswith(("http://", "https://"))]:
        raise InputError(f"engine.urls_env: {config.engine.urls_env} holds {bad[0]!r}, which is no http:// address")
    return urls


def _variable(key: str, name: str | None) -> str | None:
    if name is None:
        return None
    if not os.environ.get(name):
        raise InputError(f"{key}: the environment variable {name} is not set; set it, or remove {key}")
    return os.environ[name]


def join_server(config: RunConfig, model_dir: Path, log_file: Path) -> PolicyServer:
    """The servers that the first rank starts or was given, once they answer; or an engine of this rank's own.

    After `engine.start_timeout` those that answer are enough. Raises InputError when none does, or nobody said where
    they are.
    """
    if config.engine.kind == "transformers":
        return start_server(config, model_dir, log_file)
    from trainers.vllm_process import HOST
    from trainers.vllm_server import VllmServer

    if not config.engine.elsewhere and config.engine.port is None:
        raise InputError("engine.port: is needed by several training processes, which look for the server there")
    urls = engine_urls(config)
    if config.engine.port and not urls:
        urls = [f"http://{HOST}:{config.engine.port + number}" for number in range(config.engine.replicas)]
    last, late = time.monotonic() + config.engine.start_timeout, False
    while True:
        try:
            return VllmServer.connect(urls, config.engine.request_timeout, engine_key(config), every=not late)
        except InputError:
            if late:
                raise
            late = time.monotonic() > last
            time.sleep(1.0)


def chat_templates(config: RunConfig, model_dir: Path, cards: Sequence[PersonaCard]) -> dict[Language, ChatTemplate]:
    """The policy's checked chat template for each language of ``cards``, with the system prompt in it."""
    from trainers.chat_template import check_template, load_tokenizer, read_prompt

    tokenizer = load_tokenizer(model_dir, config.policy.chat_template)
    templates: dict[Language, ChatTemplate] = {}
    for card in cards:
        if card.language not in templates:
            prompt = read_prompt(card.language, config.policy.system_prompt, config.policy.format)
            templates[card.language] = check_template(tokenizer, prompt, config.policy.format)
    return templates


def policy_factory(
    config: RunConfig, server: PolicyServer, templates: dict[Language, ChatTemplate], adapter: str | None
) -> SupporterFactory:
    """Supporters that speak with the policy under ``adapter`` (a published name; None: the base model)."""
    from trainers.policy import PolicySupporter, Sampling

    policy = config.policy
    sampling = Sampling(policy.max_new_tokens, policy.temperature, policy.context_tokens)

    def supporter(key: DialogueKey) -> PolicySupporter:
        return PolicySupporter(server, templates[key.language], adapter, key.dialogue_seed, sampling)

    return supporter


def train_settings(config: RunConfig) -> TrainSettings:
    """What the trainer needs of the config."""
    from trainers.policy import Sampling
    from trainers.train import TrainSettings
    from trainers.trainer import Limits

    trainer, policy, lora = config.trainer, config.policy, config.lora
    return TrainSettings(
        seed=config.run.seed,
        steps=trainer.steps,
        cards_per_step=trainer.cards_per_step,
        group_size=trainer.dialogues_per_card,
        micro_batch=trainer.micro_batch,
        minibatches=trainer.minibatches,
        iterations=trainer.iterations,
        max_staleness=trainer.max_staleness,
        learning_rate=trainer.learning_rate,
        lr_schedule=trainer.lr_schedule,
        warmup_steps=trainer.warmup_steps,
        weight_decay=trainer.weight_decay,
        adam_epsilon=trainer.adam_epsilon,
        max_grad_norm=trainer.max_grad_norm,
        beta=0.0 if trainer.algorithm == "ppo" else trainer.kl,  # PPO's stands in the rewards
        epsilon=trainer.epsilon,
        epsilon_high=trainer.epsilon_high,
        loss_type=trainer.loss_type,
        importance_correction=trainer.importance_correction,
        lora_rank=lora.rank,
        lora_alpha=lora.alpha,
        lora_targets=lora.targets if isinstance(lora.targets, str) else tuple(lora.targets),
        dtype=policy.dtype,
        quantization=policy.quantization,
        device="cuda" if config.devices.training else "cpu",
        threads=_training_threads(config),
        gradient_checkpointing=trainer.gradient_checkpointing,
        sampling=Sampling(policy.max_new_tokens, policy.temperature, policy.context_tokens),
        limits=Limits(trainer.logprob_tolerance, trainer.error_budget, trainer.micro_batch_tokens),
        concurrency=config.dialogue.concurrency,
        report_to=tuple(trainer.report_to),
        deepspeed=trainer.deepspeed,
        rank_timeout=trainer.rank_timeout,
        deadline_seconds=config.dialogue.deadline_seconds,
        checkpoint_every=trainer.checkpoint_every,
        keep_checkpoints=trainer.keep_checkpoints,
    )
