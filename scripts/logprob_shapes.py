"""How far log-probabilities of the same tokens lie apart when only the shape of the computation differs.

Sampler and trainer see a token in different shapes: one prefills and then decodes from a cache, the other scores padded
batches. Their kernels round differently, and the difference grows through the layers. ``trainer.logprob_tolerance`` has
to leave room for it.
"""

from __future__ import annotations

from typing import Any

import torch
from trl.trainer.utils import add_fused_lm_head

from scripts.training_step import device, random_model
from trainers.memory import Architecture

ENTROPY = 2.0  # nats, of a next token; a random model's own is nearly that of the whole vocabulary
SHORT = 64  # tokens
SHARES = {"median": 0.5, "p99": 0.99, "p999": 0.999}


def logprob_differences(sizes: Architecture, rows: int, tokens: int, decoded: int) -> dict[str, Any]:
    """Absolute differences (nats) from each row alone in one pass, on ``rows`` x ``tokens`` random contexts.

    ``batch``: all rows in one pass; ``short``: the first SHORT tokens alone; ``padded``: with half a row of padding on
    the left; ``padded_fp32_head``: the same when the head computes in fp32; ``cached``: the last ``decoded`` tokens one
    at a time. In bf16 as the random model is; then with its head scaled so that the mean entropy is ENTROPY
    (``sharpened``); then the sharpened weights in fp32, and ``bf16`` there is how far bf16 lies from it. At each
    position the token is drawn from the model's own distribution.
    """
    model = random_model(sizes, "bfloat16", 2 * tokens).eval()
    ids = torch.randint(1, sizes.vocabulary, (rows, tokens), device=device())
    with torch.no_grad():
        flat_labels = _drawn(model, ids)
        flat = _differences(model, ids, flat_labels, decoded)
        _sharpen(model, ids[:1, :256])
        labels = _drawn(model, ids)
        sharp = _differences(model, ids, labels, decoded)
        rounded = _alone(_fused(model), ids, labels)[0]
        exact = _differences(model.float(), ids, labels, decoded)
        exact["bf16"] = _spread(rounded, _alone(_fused(model), ids, labels)[0])
    return {"as_initialised": flat, "sharpened": sharp, "sharpened_fp32": exact}


def _differences(model: Any, ids: torch.Tensor, labels: torch.Tensor, decoded: int) -> dict[str, Any]:
    reference, entropy = _alone(_fused(model), ids, labels)
    return {
        "entropy": entropy.mean().item(),
        "logprob": reference.mean().item(),
        "batch": _spread(model(input_ids=ids, shift_labels=labels, fused_lm_head=True).log_probs, reference),
        "short": _spread(_alone(model, ids[:, :SHORT], labels[:, :SHORT])[0], reference[:, :SHORT]),
        "padded": _spread(_padded(model, ids, labels), reference),
        "cached": _spread(_cached(_plain(model), ids, labels, decoded), reference[:, -decoded:]),
        "padded_fp32_head": _spread(
            _padded(_fused(model, cast_lm_head_to_fp32=True), ids, labels), _alone(model, ids, labels)[0]
        ),
    }


def _plain(model: Any) -> Any:
    """The model's own forward, whatever head was put on it."""
    return type(model).forward.__get__(model)


def _fused(model: Any, **options: Any) -> Any:
    """``model`` with the trainer's head, in the place of one that was put on it before."""
    model.forward = _plain(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"), **options)
    return model


def _drawn(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """A next token for each position, (B, T), from the model's distribution there."""
    torch.manual_seed(1)
    distributions = (_plain(model)(input_ids=row).logits[0].float().softmax(-1) for row in ids.split(1))
    return torch.cat([torch.multinomial(each, 1).T for each in distributions])


def _alone(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (B, T) of each row in a pass of its own."""
    found = [
        model(input_ids=row, shift_labels=words, fused_lm_head=True)
        for row, words in zip(ids.split(1), labels.split(1), strict=True)
    ]
    return torch.cat([one.log_probs for one in found]), torch.cat([one.entropy for one in found])


def _padded(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (B, T) after padding, with positions counted from the first real token as in training."""
    empty = ids.shape[1] // 2
    padding = torch.nn.functional.pad
    mask = padding(torch.ones_like(ids), (empty, 0))
    return model(
        input_ids=padding(ids, (empty, 0)),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        shift_labels=padding(labels, (empty, 0), value=-100),
        fused_lm_head=True,
    ).log_probs[:, empty:]


def _cached(plain: Any, ids: torch.Tensor, labels: torch.Tensor, decoded: int) -> torch.Tensor:
    """Log-probabilities (B, decoded) of the last labels, as a sampler sees them: a prompt, then token by token."""
    cut = ids.shape[1] - decoded
    state, found = plain(input_ids=ids[:, :cut], use_cache=True, logits_to_keep=1), []
    for position in range(cut, ids.shape[1]):
        here = slice(position, position + 1)
        state = plain(input_ids=ids[:, here], past_key_values=state.past_key_values, use_cache=True)
        found.append(state.logits[:, -1].float().log_softmax(-1).gather(-1, labels[:, here]))
    return torch.cat(found, dim=1)


def _sharpen(model: Any, ids: torch.Tensor) -> None:
    """Scale the head so that the mean entropy over ``ids`` (1, T) is ENTROPY, found by halving."""
    logits = _plain(model)(input_ids=ids).logits[0].float()
    low, high = 0.0, 64.0
    for _ in range(24):
        scale = (low + high) / 2
        entropy = torch.distributions.Categorical(logits=scale * logits).entropy().mean().item()
        low, high = (scale, high) if entropy > ENTROPY else (low, scale)
    model.get_output_embeddings().weight.data.mul_((low + high) / 2)


def _spread(found: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    ordered = (found.float() - reference.float()).abs().flatten().sort().values
    last = len(ordered) - 1
    shares = {name: ordered[int(share * last)].item() for name, share in SHARES.items()}
    return {"tokens": len(ordered), "mean": ordered.mean().item(), **shares, "max": ordered[last].item()}
