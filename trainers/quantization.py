"""A base model in 8 or 4 bits under the adapter, by bitsandbytes: LLM.int8 (arXiv 2208.07339), NF4 (arXiv 2305.14314).

Only the frozen linear layers of the blocks are quantised, not embeddings and head. The adapter stays in fp32, where
TRL would round it to bf16. No torch before it is needed.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from envs.errors import InputError

Quantization = Literal["none", "8bit", "4bit"]


def check_quantization(kind: Quantization) -> None:
    """Raises InputError where quantised weights are asked for and what makes them isn't installed."""
    if kind != "none" and find_spec("bitsandbytes") is None:
        raise InputError(
            f"policy.quantization: {kind} needs bitsandbytes, which is not installed; run "
            "`.venv/bin/python -m pip install '.[quantized]'`, or set none"
        )


def quantization_config(kind: Quantization, dtype: str) -> Any:
    """transformers' BitsAndBytesConfig; None: nothing is quantised. ``dtype``: what the layers compute in."""
    if kind == "none":
        return None
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def widen_adapter(model: Any) -> None:
    """On a quantised base, bring what is trained back to fp32, from the bf16 that TRL gives it.

    In bf16 a weight takes no step that is smaller than 1/512 of it.
    """
    if not any(getattr(model, mark, False) for mark in ("is_loaded_in_8bit", "is_loaded_in_4bit")):
        return
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
