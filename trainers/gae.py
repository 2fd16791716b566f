"""Advantages from a value head: token rewards, generalised advantage estimation, whitening, the value head's loss.

Generalised advantage estimation (arXiv 1506.02438) under PPO (arXiv 1707.06347), for dialogues: what acts is a sampled
token of the policy, so time runs over sampled tokens alone. The client's words lie between two of them as part of the
world: they neither discount a reward nor hold a value.

Arguments are (B, T): B dialogues, T positions. ``mask_BT`` is 1 on sampled tokens, 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Gathered = Callable[[Tensor], Tensor]  # sums a small tensor over all ranks
STD_FLOOR = 1e-8


def token_rewards(
    turn_rewards: Sequence[Sequence[float]],
    turns_BT: Tensor,
    kl_coef: float,
    logps_BT: Tensor,
    ref_logps_BT: Tensor | None,
) -> Tensor:
    """Rewards (B, T): each turn's on its last sampled token, less the divergence from the reference on every one.

    ``turn_rewards``: (turns,) a row. ``turns_BT``: the turn that each sampled token belongs to, -1 elsewhere. The
    divergence is ``kl_coef`` * (log p - log p_reference), in nats. Raises ValueError when a turn with a reward has no
    sampled token.
    """
    rewards_BT = torch.zeros_like(logps_BT)
    if ref_logps_BT is not None:
        rewards_BT = -kl_coef * (logps_BT - ref_logps_BT) * (turns_BT >= 0)
    for row, rewards in enumerate(turn_rewards):
        for turn, reward in enumerate(rewards):
            places = (turns_BT[row] == turn).nonzero()
            if not len(places):
                raise ValueError(f"row {row}: turn {turn} has a reward and no sampled token")
            rewards_BT[row, places[-1, 0]] += reward
    return rewards_BT


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, discount: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, (B, T) each, 0 off the mask. After a dialogue's last sampled token nothing is to come.

    ``discount`` and ``lam`` in [0, 1] count sampled tokens. With both at 1 a return sums up the remaining rewards.
    """
    mask_BT = mask_BT.bool()
    advantages_BT = torch.zeros_like(values_BT)
    advantage_B = torch.zeros_like(values_BT[:, 0])
    value_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(values_BT.size(1))):
        ours_B = mask_BT[:, t]
        error_B = rewards_BT[:, t] + discount * value_B - values_BT[:, t]
        advantage_B = torch.where(ours_B, error_B + discount * lam * advantage_B, advantage_B)
        value_B = torch.where(ours_B, values_BT[:, t], value_B)
        advantages_BT[:, t] = advantage_B * ours_B
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def whiten(x_BT: Tensor, mask_BT: Tensor, gathered: Gathered = lambda sums: sums) -> Tensor:
    """``x_BT`` less its mean, over its deviation, over the sampled tokens of all ranks; 0 off the mask.

    The deviation divides by the count. Where nothing differs, everything is 0. ``gathered`` is a collective call. Sums
    are made in float64 and in two passes, so that a large mean costs no digits.
    """
    centred_BT, deviation = _centred(x_BT, mask_BT, gathered)
    return (centred_BT / (deviation + STD_FLOOR)).to(x_BT.dtype)


def _centred(x_BT: Tensor, mask_BT: Tensor, gathered: Gathered) -> tuple[Tensor, float]:
    """``x_BT`` less its mean over the mask, in float64, and its deviation; 0 off the mask."""
    mask_BT = mask_BT.bool()
    x64 = x_BT.double() * mask_BT
    total, count = gathered(torch.stack([x64.sum(), mask_BT.sum().double()])).tolist()
    centred_BT = (x64 - total / max(1.0, count)) * mask_BT
    squares = float(gathered((centred_BT**2).sum().unsqueeze(0))[0])
    return centred_BT, (squares / max(1.0, count)) ** 0.5


def value_loss(values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float) -> Tensor:
    """The value head's loss per token, (B, T), 0 off the mask: half the squared error, or that of the value held within
    ``clip`` of the old one where this is larger."""
    near_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
    errors_BT = torch.maximum((values_BT - returns_BT) ** 2, (near_BT - returns_BT) ** 2)
    return 0.5 * errors_BT * mask_BT


def explained_variance(
    values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, gathered: Gathered = lambda sums: sums
) -> float:
    """How much of the returns' variance the values foresaw, over the sampled tokens of all ranks: 1 all of it, 0 none.

    Below 0 they misled. 0 where the returns don't vary.
    """
    _, left = _centred(returns_BT - values_BT, mask_BT, gathered)
    _, whole = _centred(returns_BT, mask_BT, gathered)
    return 1 - (left / whole) ** 2 if whole > STD_FLOOR else 0.0
