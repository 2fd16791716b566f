"""Made-up recordings in SAGE's format, and where the real data lies."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("ATTUNE_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
NEED = "你希望对方用心倾听你的情绪宣泄"
SAGE = DATA / "sage" / "cards.jsonl"
RLVER = DATA / "rlver" / "train_cards.jsonl.gz"
RECORDED = DATA / "sage" / "recorded"

needs_sage = pytest.mark.skipif(
    not (SAGE.exists() and RLVER.exists() and RECORDED.exists()),
    reason="the SAGE and RLVER data don't lie in shared/data beside the checkout (ATTUNE_SHARED names another place)",
)


def line(changes: Sequence[int], card: str = "ab-1", ends_unheard: bool = False, **over: Any) -> dict[str, Any]:
    """A recorded dialogue that begins at 40 and follows the rule through ``changes``."""
    emotion, history = 40, [{"role": "user", "content": "你好。", "emotion-point": 40}]
    for number, change in enumerate(changes, start=1):
        emotion = min(100, emotion + change)
        history.append({"role": "assistant", "content": f"回复{number}"})
        planning = {"activity": f"想法{number}", "change": change}
        history.append({"role": "user", "content": f"话{number}", "emotion-point": emotion, "planning": planning})
    if ends_unheard:
        history.append({"role": "assistant", "content": "没有人听到的回复"})
    row = {
        "id": card,
        "player": "* 姓名：林小禾\n* 年龄：31岁",
        "scene": "搬家以后邻居不再打招呼。",
        "character": "被动型",
    }
    return row | {"topic": "邻里", "task": NEED, "emo_point": emotion, "history": history} | over


def save_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
