"""Do sampler and trainer hold the same policy, and how far is the policy from the one that sampled a step?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from trl.trainer.grpo_config import GRPOConfig

from trainers.policy_server import Sampled

if TYPE_CHECKING:
    from trl.trainer.grpo_trainer import GRPOTrainer


def largest_difference(trainer: GRPOTrainer, batch: dict[str, Any]) -> float:
    """The largest |sampler - trainer| over the sampled tokens of all ranks, in nats, before any update."""
    ours = _sampled_tokens(batch)
    difference = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]).abs()[ours]
    return _over_ranks(trainer, difference.max() if difference.numel() else torch.zeros((), device=ours.device))


@torch.no_grad()
def difference_on(trainer: GRPOTrainer, said: Sampled) -> float:
    """The largest |sampler - trainer| over one reply on each rank, in nats."""
    ids = torch.tensor([[*said.prompt_ids, *said.ids]], device=trainer.accelerator.device)
    ours = trainer._get_per_token_logps_and_entropies(trainer.model, ids, torch.ones_like(ids), len(said.ids))[0]
    return _over_ranks(trainer, (ours[0] - torch.tensor(said.logprobs, device=ours.device)).abs().max())


def importance_ratios(trainer: GRPOTrainer, batch: dict[str, Any]) -> dict[str, float]:
    """Likelihood under the weights of the step / under those that sampled, over the sampled tokens of all ranks.

    ``capped``: the share of tokens whose ratio is larger than what the loss takes it for; not there without correction.
    """
    ours = _sampled_tokens(batch)
    ratios = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]).exp()[ours]
    cap = cast(GRPOConfig, trainer.args).vllm_importance_sampling_clip_max or float("inf")
    sums = torch.stack([ratios.sum(), (ratios > cap).sum().float(), ours.sum().float()])
    total, capped, tokens = cast(torch.Tensor, trainer.accelerator.reduce(sums, reduction="sum")).tolist()
    ends = torch.stack([-ratios.min(), ratios.max()]) if ratios.numel() else sums.new_full((2,), -float("inf"))
    low, high = cast(torch.Tensor, trainer.accelerator.gather(ends[None])).max(dim=0).values.tolist()
    if not tokens:
        return {}
    return {"min": -low, "mean": total / tokens, "max": high} | ({"capped": capped / tokens} if cap > 1 else {})


def _sampled_tokens(batch: dict[str, Any]) -> torch.Tensor:
    return (batch["completion_mask"] * batch["tool_mask"]).bool()


def _over_ranks(trainer: GRPOTrainer, largest: torch.Tensor) -> float:
    return float(cast(torch.Tensor, trainer.accelerator.gather(largest)).max())
