"""Canonical JSON and SHA-256: one way to hash, so that anyone can recompute a receipt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical(data: Any) -> str:
    """JSON with sorted keys, no spaces, no NaN, characters as they are: the text that is hashed."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(data: Any) -> str:
    """SHA-256 (hex) over the canonical JSON of ``data``."""
    return hashlib.sha256(canonical(data).encode("utf-8", "surrogatepass")).hexdigest()


def derived_seed(*parts: object) -> int:
    """A seed in [0, 2**31) that depends on every part, so that no two dialogues share one by accident."""
    return int(content_hash([str(part) for part in parts])[:8], 16) >> 1


def text_hash(text: str) -> str:
    """SHA-256 (hex) of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def without(data: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """``data`` less ``keys``: what a hash that lies inside its own record is taken over."""
    return {key: value for key, value in data.items() if key not in keys}
