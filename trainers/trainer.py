"""The one trainer: TRL's GRPO trainer with dialogues for rollouts, adapters for weight sync, and our credit.

TRL computes likelihoods, the clipped loss, the KL term and the correction for the sampler's likelihoods (arXiv
2402.03300). The pieces of its private surface that are used here are held by tests/contract/test_trl_surface.py.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

# TRL reports its use over the network unless it is told not to, before it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import use_adapter

from envs.errors import RunError
from envs.hashing import derived_seed
from envs.receipts import TrajectoryLog
from envs.trajectory import Trajectory
from rewards.dead_signal import SwitchRule, switched
from trainers.adapter_sync import AdapterSync, reference_adapter
from trainers.background import BackgroundLoop
from trainers.credit import CreditAssigner, TokenBatch
from trainers.curriculum import Schedule
from trainers.gae import explained_variance, value_loss
from trainers.micro_batches import BY_PASS, Passes, arranged
from trainers.packing import Likelihoods, Positions, padded_segments
from trainers.policy_server import Sampled, engine_line
from trainers.quantization import widen_adapter
from trainers.rollout_queue import RolloutQueue, Version
from trainers.rollouts import Rollout, RolloutWorker, check_budget, rates, summary
from trainers.run_files import append_lines
from trainers.run_numbers import DEFAULT_RULE, Counts, counts_of, reward_numbers
from trainers.sampler_check import difference_on, importance_ratios, largest_difference
from trainers.usage import USAGE, DialogueUsage, usage_line
from trainers.value_head import ValueHead
from trainers.watching import Watcher

PROBE_TOKENS = 16
TRAJECTORIES = "trajectories.jsonl"
SCORES = "scores.jsonl"


@dataclass(frozen=True)
class Limits:
    """When a run halts: ``logprob_tolerance`` in nats; ``error_budget``, the share of a step that may be lost.

    ``pass_tokens``: most tokens of one forward and backward pass; None: only dialogues are counted.
    """

    logprob_tolerance: float = 1e-4
    error_budget: float = 0.25
    pass_tokens: int | None = None


class DialogueTrainer(GRPOTrainer):
    """Trains an adapter on dialogues. A dataset row stands for one step; ``schedule`` says whom it talks with.

    Credit comes from a CreditAssigner; TRL's own advantages and rewards are replaced. ``step_metrics`` describes the
    last rollout.
    """

    def __init__(
        self,
        *args: Any,
        worker: RolloutWorker,
        schedule: Schedule,
        credit: CreditAssigner,
        loop: BackgroundLoop,
        run_dir: Path,
        limits: Limits,
        max_staleness: int = 0,
        watcher: Watcher | None = None,
        rule: SwitchRule = DEFAULT_RULE,
        history: Sequence[Counts] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, reward_funcs=[_recorded_total], rollout_func=_roll_out, **kwargs)
        # The parent was built without vLLM, so that it starts no engine of its own. From here on it syncs weights
        # through our adapter sync and corrects for the sampler's likelihoods as it would with its own engine.
        assert self.model is not None
        self._positions, self._passes = Positions(), Passes(self.accelerator, limits.pass_tokens)
        self.model.register_forward_pre_hook(self._positions, with_kwargs=True)
        widen_adapter(self.model)
        if self.args.bf16 and not self.is_deepspeed_enabled:
            compute_without_copies(self.model)
        self.use_vllm = True
        self.vllm_mode = "server"
        self._last_loaded_step = -1
        self.vllm_generation = AdapterSync(self, worker.server, run_dir / "adapters", max_staleness)
        self.step_metrics: dict[str, Any] = {}
        self.rollout_ended = 0.0  # monotonic seconds
        self._worker, self._credit, self._loop, self._run_dir, self._limits = worker, credit, loop, run_dir, limits
        steps = self.args.max_steps // updates_per_rollout(self.args)
        self.queue = RolloutQueue(worker, schedule, loop, max_staleness, steps)
        self._sampled_by = Version(0, "")
        self.value_head = ValueHead(cast(PeftModel, self.model)) if credit.value else None
        self._heard: list[torch.Tensor] = []  # the values of each pass over likelihoods, (rows, T) each
        self._group_size, self._watcher, self._schedule = worker.group_size, watcher, schedule
        self._rule, self._history = rule, list(history)  # the counts of the steps before, on which a switch depends
        self._watched: dict[str, Any] = {}
        self._watch_seconds = 0.0
        self._log = TrajectoryLog(run_dir / TRAJECTORIES)
        self._rollout: Rollout | None = None

    @property
    def rollout_step(self) -> int:
        """How many rollouts lie before the current weights."""
        return self.state.global_step // updates_per_rollout(self.args)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Run the step's dialogues and attach their credit. Raises RunError past a budget or the tolerance."""
        step = self.rollout_step
        started = time.monotonic()
        self._heard.clear()
        with self._positions.of(None):  # collect names the rollout's segments, for the likelihoods within
            batch = super()._generate_and_score_completions([dict(row) for row in inputs])
            if self._positions.rows is not None:
                batch["segments"] = self._positions.rows
        assert self._rollout is not None
        rollout, self._rollout = self._rollout, None
        local_rows = [summary(*pair) for pair in zip(rollout.trajectories, rollout.scores, strict=True)]
        rows: list[dict[str, Any]] = gather_object(local_rows)
        scores = [row["score"] for row in rows]
        credit = self._credit.of(scores, [row["turns"] for row in rows])
        first = self.accelerator.process_index * len(local_rows)
        local = credit.turns[first : first + len(local_rows)]
        tokens = self._token_batch(batch, rollout)
        batch |= self._credit.spread(local, tokens)
        self._log_values(batch, tokens)
        self._record_scores(rollout, local)
        usage = self._record_usage(rollout)
        staleness, newest = step - self._sampled_by.step, self.vllm_generation.name
        if staleness:  # between two versions a difference says nothing
            difference = difference_on(self, self._newest_words(step, rollout))
        else:
            difference = largest_difference(self, batch)
        self.step_metrics = {
            "step": step,
            "policy_version": self._sampled_by.name,
            "staleness": staleness,
            **rates(rows),
            "groups": credit.groups,
            "groups_without_variance": credit.groups_without_variance,
            "rewards": reward_numbers(scores, self._group_size, self._history, self._rule),
            **self._watched,
            **self._schedule.learn(step, [row["outcome"] for row in rows]),
            "max_logprob_difference": difference,
            "importance_ratio": importance_ratios(self, batch),
            **engine_line(gather_object([self._worker.server.report()])),
            **({"client_models": usage.model_dump(mode="json")} if usage else {}),
            "seconds": self._seconds(rollout, time.monotonic() - started),
        }
        self._history.append(counts_of(self.step_metrics))
        self.rollout_ended = time.monotonic()
        if not difference < self._limits.logprob_tolerance:
            raise RunError(
                f"step {step}: sampler and trainer differ by {difference:.3g} nats on the same token, more than "
                f"trainer.logprob_tolerance={self._limits.logprob_tolerance:g}: they don't hold the same policy. Check "
                f"dtype, adapter ({newest}) and temperature on both sides; in bfloat16 raise the tolerance"
            )
        return batch

    def _token_batch(self, batch: dict[str, Any], rollout: Rollout) -> TokenBatch:
        """This rank's rows for the credit of tokens; values come from the pass in which TRL made the likelihoods."""
        logps_BT = batch["old_per_token_logps"]
        turns = [sample.turns[sample.prompt_length :] for sample in rollout.samples]
        width = logps_BT.size(1)
        turns_BT = torch.tensor([[*row, *[-1] * (width - len(row))] for row in turns], device=logps_BT.device)
        return TokenBatch(
            turns_BT=turns_BT,
            logps_BT=logps_BT,
            ref_logps_BT=self._reference(batch) if self._credit.reference_kl else None,
            values_BT=self._heard[0].detach() if self.value_head else None,
            gathered=lambda sums: self.accelerator.reduce(sums, reduction="sum"),  # type: ignore[arg-type, return-value]
        )

    def _log_values(self, batch: dict[str, Any], tokens: TokenBatch) -> None:
        """What a value head makes of the rollout, and the divergence that stands in the rewards."""
        mask_BT = tokens.turns_BT >= 0
        if tokens.ref_logps_BT is not None:
            ratio_BT = (tokens.ref_logps_BT - tokens.logps_BT) * mask_BT
            kl = tokens.gathered(torch.stack([(ratio_BT.exp() - ratio_BT - 1).sum(), mask_BT.sum().float()]))
            self._metrics["train"]["kl"].append(float(kl[0] / kl[1].clamp(min=1)))
        if "returns" in batch:
            explained = explained_variance(batch["old_values"], batch["returns"], batch["value_mask"], tokens.gathered)
            self._metrics["train"]["explained_variance"].append(explained)

    @torch.no_grad()
    def _reference(self, batch: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities (B, T) under the base, or the warm-started policy where RL goes on from one, in nats."""
        model = cast(PeftModel, self.accelerator.unwrap_model(self.model))
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        with use_adapter(model, adapter_name=reference_adapter(model)), self._positions.of(batch.get("segments")):
            return self._get_per_token_logps_and_entropies(
                self.model, ids, mask, batch["completion_ids"].size(1), self.args.per_device_train_batch_size
            )[0]

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        """TRL's micro-batch; those of a new rollout hold rows of like length."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before:
            return inputs
        by_length = self.loss_type != BY_PASS
        self._buffered_inputs = arranged(self._buffered_inputs, self.args.gradient_accumulation_steps, by_length)
        return self._buffered_inputs[self._step % len(self._buffered_inputs)]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> Likelihoods:
        """TRL's pass over likelihoods, or its passes; where there is a value head, its values are kept too."""
        once = functools.partial(super()._get_per_token_logps_and_entropies, model, **options)
        with self.value_head.listening() if self.value_head else nullcontext([]) as heard:
            found, values = self._passes.likelihoods(
                once, self._positions, input_ids, attention_mask, logits_to_keep, batch_size, heard
            )
        if values is not None:
            self._heard.append(values)
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """The loss of a micro-batch, in one pass or several."""
        return self._passes.loss(model, inputs, self._loss_of_pass, self.loss_type)

    def _loss_of_pass(self, model: Any, inputs: dict[str, Any], weight: float) -> torch.Tensor:
        """TRL's loss, times ``weight``; with a value head, the value head's beside it, averaged over the tokens of the
        optimizer step."""
        self._heard.clear()
        by_dialogue = self.importance_sampling_level == "sequence"
        with self._positions.of(inputs.get("segments")), self._passes.measured(self._metrics, inputs, by_dialogue):
            loss = weight * super()._compute_loss(model, inputs)
            if self._credit.value is None:
                return loss
            (values_BT,) = self._heard
            value, mask_BT = self._credit.value, inputs["value_mask"]
            losses_BT = value_loss(values_BT, inputs["old_values"], inputs["returns"], mask_BT, value.clip)
            # TRL's own share of an optimizer step, as for its loss types that average over all its tokens.
            share = self.current_gradient_accumulation_steps / (cast(GRPOConfig, self.args).steps_per_generation or 1)
            averaged = losses_BT.sum() / (
                inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes * share
            )
            self._measure("value_loss", averaged.detach())
            return loss + value.coef * averaged

    def _measure(self, name: str, value: torch.Tensor) -> None:
        """A number of this rank for TRL's means over ranks and passes."""
        self._metrics["train"][name].append(float(self.accelerator.gather(value).mean()))  # type: ignore[union-attr]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The parent's, with the value head's weights at their own learning rate and without decay."""
        given = self.optimizer
        optimizer = super().create_optimizer(model)
        if given is None and self.value_head and self._credit.value:
            head = {id(weight) for weight in self.value_head.weights}
            for group in optimizer.param_groups:
                group["params"] = [weight for weight in group["params"] if id(weight) not in head]
            own = {"params": self.value_head.weights, "lr": self._credit.value.learning_rate, "weight_decay": 0.0}
            optimizer.add_param_group(own)
        return optimizer

    def _seconds(self, rollout: Rollout, whole: float) -> dict[str, float]:
        """Wall clock of each part of a step before the updates; what is left of ``whole`` went into likelihoods."""
        parts = {
            "publish": self.vllm_generation.seconds,
            "rollout": rollout.rollout_seconds,
            "score": rollout.score_seconds,
        }
        if self._watcher:
            parts["watch"] = self._watch_seconds
        return parts | {"likelihoods": whole - sum(parts.values())}

    def collect(self, rows: int) -> Rollout:
        """Run this rank's ``rows`` dialogues of the current step. Raises RunError, on every rank, past a budget."""
        step, first_row = self.rollout_step, self.accelerator.process_index * rows
        newest = Version(step, str(self.vllm_generation.name))
        if self._watcher:
            started = time.monotonic()
            self._watched = self._loop.run(self._watcher.measure(step, newest.name))
            self._watch_seconds = time.monotonic() - started
        self.queue.begin(step, range(first_row, first_row + rows), newest)
        played, self._sampled_by, waited = self.queue.take(step)
        self._record_trajectories(played.trajectories)
        pairwise = switched(self._history, self._rule)
        self._rollout = self._loop.run(self._worker.score(played, waited, pairwise))
        local_rows = [summary(*pair) for pair in zip(self._rollout.trajectories, self._rollout.scores, strict=True)]
        check_budget(gather_object(local_rows), step, self._limits.error_budget)
        segments = padded_segments(self._rollout.samples)
        self._positions.rows = None if segments is None else segments.to(self.accelerator.device)
        return self._rollout

    def _record_trajectories(self, trajectories: Sequence[Trajectory]) -> None:
        everyones = gather_object(list(trajectories))
        if self.accelerator.is_main_process:
            self._log.append(*everyones)

    def _record_scores(self, rollout: Rollout, credit: Sequence[Sequence[float]]) -> None:
        lines = [
            json.dumps(
                {"dialogue_id": trajectory.dialogue_id, **self._credit.line(row), **score.model_dump(mode="json")},
                ensure_ascii=False,
            )
            for trajectory, score, row in zip(rollout.trajectories, rollout.scores, credit, strict=True)
        ]
        everyones = gather_object(lines)
        if self.accelerator.is_main_process:
            append_lines(self._run_dir / SCORES, everyones)

    def _record_usage(self, rollout: Rollout) -> DialogueUsage | None:
        """What the clients' models were asked in this step, over all ranks; None where none plays."""
        pairs = zip(rollout.trajectories, rollout.usages, strict=True)
        everyones = gather_object([(trajectory.dialogue_id, usage) for trajectory, usage in pairs if usage])
        if not everyones:
            return None
        if self.accelerator.is_main_process:
            append_lines(self._run_dir / USAGE, [usage_line(*pair) for pair in everyones])
        return functools.reduce(DialogueUsage.plus, (usage for _, usage in everyones))

    def _newest_words(self, step: int, rollout: Rollout) -> Sampled:
        """A few words that the newest version says after the first opening."""
        sample, worker = rollout.samples[0], self._worker
        return self._loop.run(
            worker.server.generate(
                sample.ids[: sample.prompt_length],
                adapter=self.vllm_generation.name,
                seed=derived_seed(worker.seed, "probe", step),
                max_tokens=min(PROBE_TOKENS, worker.sampling.max_tokens),
                temperature=worker.sampling.temperature,
            )
        )


def compute_without_copies(model: torch.nn.Module) -> None:
    """Let adapter layers take bf16 inputs as they are; autocast brings the fp32 adapter to bf16 anyway.

    PEFT would widen each layer's input to fp32, and autocast would round the copy back to the same numbers: the outputs
    are equal to the last bit, and each copy costs time and is kept for the backward pass.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.cast_input_dtype_enabled = False


def updates_per_rollout(args: Any) -> int:
    """Optimizer steps on one rollout: its parts, times the passes over them."""
    return args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps


def _roll_out(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
    """TRL's rollout function: one prompt a row; what comes back is prompt and completion parts, (rows,) each."""
    assert isinstance(trainer, DialogueTrainer)
    rollout = trainer.collect(len(prompts))
    parts = [(sample, sample.prompt_length) for sample in rollout.samples]
    return {
        "prompt_ids": [list(sample.ids[:cut]) for sample, cut in parts],
        "completion_ids": [list(sample.ids[cut:]) for sample, cut in parts],
        "logprobs": [list(sample.logprobs[cut:]) for sample, cut in parts],
        "env_mask": [list(sample.policy_mask[cut:]) for sample, cut in parts],
        "total": rollout.totals,
    }


def _recorded_total(prompts: list[str], total: list[float | None], **_: Any) -> list[float | None]:
    """TRL wants a reward; ours is recorded already and becomes credit later, so this feeds TRL's own logs only."""
    return [0.0 if value is None else value for value in total]


OnStep = Callable[[dict[str, Any]], None]
