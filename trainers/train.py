"""Assembles a training run: tokenizer, model with LoRA, schedule of cards, trainer, checkpoints, final adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PrinterCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.utils import create_model_from_path

from envs.cards import Language, PersonaCard
from envs.client_spec import ClientSpec
from envs.errors import InputError
from rewards.dead_signal import SwitchRule
from trainers.adapter_sync import REFERENCE, write_adapter
from trainers.background import BackgroundLoop
from trainers.chat_template import ChatTemplate
from trainers.credit import CreditAssigner, GroupRelative
from trainers.curriculum import Rotation, Schedule
from trainers.policy import Sampling
from trainers.policy_server import PolicyServer
from trainers.quantization import Quantization, quantization_config
from trainers.ranks import world_size
from trainers.rollouts import Compare, MakeClient, Player, Reward, RolloutWorker
from trainers.run_numbers import DEFAULT_RULE, read_history
from trainers.run_record import CHECKPOINTS, METRICS, RunRecord, adopt_begun, prepare_run_dir
from trainers.trainer import DialogueTrainer, Limits, OnStep
from trainers.watching import Watcher
from trainers.zero import placement, same_type, whole_models_again

RATIO_CAP = 3.0  # TRL's own: a token, or a sequence, is weighted by at most so much, or left out
FINAL_ADAPTER = Path("adapters") / "final"


@dataclass(frozen=True)
class TrainSettings:
    """What a run trains with. A step is one rollout of ``cards_per_step`` groups of ``group_size`` dialogues.

    Each rollout is split into ``minibatches`` optimizer steps, and gone through ``iterations`` times. ``micro_batch``
    is the number of dialogues in one forward pass of one rank.
    """

    steps: int
    seed: int = 0
    cards_per_step: int = 4
    group_size: int = 8
    micro_batch: int = 8
    minibatches: int = 2
    iterations: int = 1
    max_staleness: int = 0  # steps
    learning_rate: float = 3e-3
    lr_schedule: str = "constant"
    warmup_steps: int = 0  # optimizer steps
    weight_decay: float = 0.0
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    beta: float = 0.04  # KL to the policy that training starts from
    epsilon: float = 0.2  # clipping of the likelihood ratio
    epsilon_high: float | None = None  # the same upwards; None: epsilon
    loss_type: str = "grpo"  # TRL's names, and gspo
    importance_correction: str = "token_truncate"  # TRL's modes, or none
    lora_rank: int = 16
    lora_alpha: float = 32
    lora_targets: str | tuple[str, ...] = "all-linear"  # every linear layer but the head
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Quantization = "none"  # of the base
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int | None = None  # CPU only: at most so many while it trains; None: torch's own number
    gradient_checkpointing: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    concurrency: int = 32
    report_to: tuple[str, ...] = ()
    deepspeed: Path | None = None
    rank_timeout: float = 1800.0  # seconds; see trainers/ranks.py
    deadline_seconds: float | None = None  # of one dialogue
    checkpoint_every: int = 10  # steps
    keep_checkpoints: int = 2

    @property
    def rows(self) -> int:
        """Dialogues in one step, over all ranks."""
        return self.cards_per_step * self.group_size


def train(
    settings: TrainSettings,
    *,
    model_dir: Path,
    run_dir: Path,
    server: PolicyServer,
    templates: Mapping[Language, ChatTemplate],
    cards: Sequence[PersonaCard],
    spec: ClientSpec,
    make_client: MakeClient,
    further: Sequence[Player] = (),
    schedule: Schedule | None = None,
    reward: Reward,
    compare: Compare | None = None,
    rule: SwitchRule = DEFAULT_RULE,
    credit: CreditAssigner | None = None,
    watcher: Watcher | None = None,
    start: Path | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> Path:
    """Train and return the folder of the final adapter. ``on_step`` sees each line of metrics.jsonl as it is written.

    ``compare``: what compares rewards pairwise once ``rule`` finds them dead; None: nothing does.
    ``templates``: the policy's checked chat template, for each language of the cards. ``credit``: from scores to
    advantages; None: group-relative, terminal. ``watcher``: who watches; None: nobody. ``further``: clients that
    ``schedule`` may name beside ``spec``; without a schedule every card is played in turn, with ``spec``. ``start``:
    the adapter to go on from, which is then the reference of the KL divergence too; None: a new one, and the base.

    ``resume`` goes on from the newest complete checkpoint below ``run_dir``; what was recorded after it is dropped and
    done again. Raises InputError before anything heavy when the settings can't work, RunError when the run can't go on.
    """
    if not cards:
        raise InputError("cards: none to train on; check cards.paths, cards.languages and cards.train_split")
    args = training_arguments(settings, run_dir)
    checkpoint = prepare_run_dir(run_dir, resume, args)
    played = {"server": server, "templates": templates, "reward": reward, "compare": compare}
    if watcher:
        watcher.resume(run_dir / METRICS)
    credit = credit or GroupRelative(settings.group_size)
    with whole_models_again(), _at_most(settings.threads), BackgroundLoop() as loop:
        trainer = DialogueTrainer(
            **_policy(settings, args, model_dir, start, credit),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [f"step {step}" for step in range(settings.steps)]}),
            processing_class=next(iter(templates.values())).tokenizer,
            worker=_worker(settings, cards, players=[Player(spec, make_client), *further], **played),
            schedule=schedule or _rotation(settings, cards, spec),
            credit=credit,
            watcher=watcher,
            rule=rule,
            history=read_history(run_dir / METRICS),
            loop=loop,
            run_dir=run_dir,
            limits=settings.limits,
            max_staleness=settings.max_staleness,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(RunRecord(trainer, run_dir, on_step, watcher))
        return _finished(trainer, run_dir / FINAL_ADAPTER, checkpoint)


@contextmanager
def _at_most(threads: int | None) -> Iterator[None]:
    """With more threads than cores, one that waits for another's part of a sum takes the core that it needs."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, threads or before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _finished(trainer: DialogueTrainer, final: Path, checkpoint: Path | None) -> Path:
    """Train to the end, from ``checkpoint`` on where there is one, and write the adapter to ``final``."""
    same_type(trainer)
    if checkpoint:
        adopt_begun(trainer, checkpoint)
    if checkpoint and trainer.value_head:
        trainer.value_head.load(checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    write_adapter(trainer, final)
    trainer.vllm_generation.close()
    return final


def _worker(settings: TrainSettings, cards: Sequence[PersonaCard], **played: Any) -> RolloutWorker:
    return RolloutWorker(
        cards={card.id: card for card in cards},
        sampling=settings.sampling,
        seed=settings.seed,
        group_size=settings.group_size,
        concurrency=settings.concurrency,
        deadline_seconds=settings.deadline_seconds,
        **played,
    )


def _rotation(settings: TrainSettings, cards: Sequence[PersonaCard], spec: ClientSpec) -> Rotation:
    return Rotation([card.id for card in cards], spec.name, settings.seed, settings.cards_per_step)


def _policy(
    settings: TrainSettings, args: GRPOConfig, model_dir: Path, start: Path | None, credit: CreditAssigner
) -> dict[str, Any]:
    """What TRL is given to train: a base and a new adapter, or the model with the adapter at ``start``.

    Of the second it makes a frozen copy, which is the reference of the KL divergence, where that stands in the loss;
    where it stands in the rewards, the copy is made here.
    """
    quantised = quantization_config(settings.quantization, settings.dtype)
    if start is None:
        return {"model": str(model_dir), "peft_config": lora_config(settings), "quantization_config": quantised}
    base = create_model_from_path(str(model_dir), dtype=settings.dtype, device_map=None, quantization_config=quantised)
    args.model_init_kwargs = None  # they are for a model that TRL loads itself
    model = PeftModel.from_pretrained(base, str(start), is_trainable=True)
    if credit.reference_kl:
        model.load_adapter(str(start), adapter_name=REFERENCE, is_trainable=False)
    return {"model": model}


def lora_config(settings: TrainSettings) -> LoraConfig:
    """A new adapter's configuration."""
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # PEFT only ever divides it by the rank
        lora_dropout=0.0,  # dropout would make sampler and trainer two policies
        target_modules=settings.lora_targets if isinstance(settings.lora_targets, str) else list(settings.lora_targets),
        task_type="CAUSAL_LM",
    )


def training_arguments(settings: TrainSettings, run_dir: Path) -> GRPOConfig:
    """TRL's arguments. Raises InputError when rows, micro-batches and minibatches don't divide."""
    world = world_size()
    micro_batches, left_over = divmod(settings.rows, settings.micro_batch * world)
    if left_over or not micro_batches or micro_batches % settings.minibatches:
        raise InputError(
            f"trainer: cards_per_step x dialogues_per_card = {settings.rows} dialogues can't be split into "
            f"{settings.minibatches} minibatches of whole micro-batches ({settings.micro_batch} dialogues on each of "
            f"{world} ranks); change trainer.micro_batch, trainer.minibatches or trainer.cards_per_step"
        )
    updates = settings.minibatches * settings.iterations
    # TRL's own switch would leave out the likelihoods that the check needs; a ratio held at 1 corrects nothing.
    uncorrected = settings.importance_correction == "none"
    return GRPOConfig(
        output_dir=str(run_dir / CHECKPOINTS),
        seed=settings.seed,
        **placement(settings.deepspeed, on_gpu=settings.device == "cuda"),
        ddp_timeout=math.ceil(settings.rank_timeout),
        bf16=settings.dtype == "bfloat16",
        model_init_kwargs={"dtype": settings.dtype},
        gradient_checkpointing=settings.gradient_checkpointing,
        per_device_train_batch_size=settings.micro_batch,
        steps_per_generation=micro_batches,
        gradient_accumulation_steps=micro_batches // settings.minibatches,
        num_iterations=settings.iterations,
        num_generations=settings.rows,  # one row of the dataset a step; groups are ours
        max_steps=settings.steps * updates,
        shuffle_dataset=False,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        beta=settings.beta,
        epsilon=settings.epsilon,
        # CISPO (arXiv 2506.13585) has no lower bound, and TRL takes its upper one as the ratio itself.
        epsilon_high=1 + (settings.epsilon_high or settings.epsilon)
        if settings.loss_type == "cispo"
        else settings.epsilon_high,
        # GSPO (arXiv 2507.18071) is TRL's grpo with one ratio for the whole sequence.
        loss_type="grpo" if settings.loss_type == "gspo" else settings.loss_type,
        importance_sampling_level="sequence" if settings.loss_type == "gspo" else "token",
        scale_rewards="none",
        temperature=settings.sampling.temperature,
        max_completion_length=settings.sampling.max_context,
        optim="adamw_torch",
        dataloader_pin_memory=False,
        use_vllm=False,
        vllm_importance_sampling_mode="token_truncate" if uncorrected else settings.importance_correction,
        vllm_importance_sampling_clip_min=1.0 if uncorrected else None,
        vllm_importance_sampling_clip_max=1.0 if uncorrected else RATIO_CAP,
        logging_steps=updates,
        save_strategy="steps",
        save_steps=settings.checkpoint_every * updates,
        save_total_limit=settings.keep_checkpoints,
        disable_tqdm=True,
        report_to=list(settings.report_to) or "none",
    )
