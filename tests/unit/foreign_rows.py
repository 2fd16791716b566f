"""Made-up rows of other collections, and the cards that importing makes of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from envs.importers.convert import Imported, Origin, import_cards

SAGE_ROW = {
    "id": "AB_12-x",
    "player": "* 姓名：林小禾\n* 年龄：31岁\n* 职业：养蜂人",
    "scene": "今年的蜂箱空了一半，邻居说是她的错。  \n她没有再去镇上。",
    "main_cha": "回避型",
    "cha_group": ["谨慎", "内向", "宽容"],
    "task": "你认为自己在事件中没有任何责任和错误，你想要对方也认同你没有错",
    "first_talk": "蜂箱空了，也没什么好说的。",
}
PATIENT = {
    "name": "Oda",
    "id": "4-2",
    "type": ["plain", "reserved"],
    "history": "Ran the ferry kiosk with her sister until the quay was closed.",
    "helpless_belief": ["I can't manage alone.", "I am trapped."],
    "unlovable_belief": [],
    "worthless_belief": [],
    "intermediate_belief": "If I ask, I owe.",
    "coping_strategies": "Counts the till twice.",
    "situation": "The sister's birthday card is still on the shelf.",
    "auto_thought": "She would not come anyway.",
    "emotion": ["sad, lonely"],
    "behavior": "Turns the card to the wall.",
}
KARDIA = {
    "person": "MBTI: INFJ\nAbout: mends accordions, walks the dyke at night.",
    "mbti": "INFJ",
    "emotion": "lonely",
    "situation": "The choir sang without me for the first time.",
    "anon_username": "reed_17",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "They sang on Friday. I heard it from the street."},
        {"role": "assistant", "content": "That must have hurt."},
    ],
}
CHARACTER = {
    "index": 3,
    "mbti": "ISTP",
    "profile": {
        "name": "Bram Osei",
        "gender": "male",
        "age": "44",
        "region": "Tema, Ghana",
        "tone": "Slow, with long pauses.",
        "job": "crane driver",
        "personality": "Patient and dry.",
        "advantages_and_disadvantages": "Steady hands; holds grudges.",
        "hobby": "Model ships.",
        "growth_experience": "Grew up in a harbour office.",
        "family_relationship": "Two sisters abroad.",
        "working_conditions": "Night shifts.",
        "social_relationship": "One old friend.",
        "emotional_state": "Tired.",
        "living_conditions": "A room above a bakery.",
        "recent_worry_or_anxiety": "The new crane needs no driver.",
        "additional_information": "Keeps a logbook.",
    },
    "profile_trans": {"tone": "You speak slowly."},
    "seeker_statement": "You are Bram.",
}


def save(path: Path, rows: Any) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def imported(path: Path, kind: str, rows: Any, overrides: tuple[str, ...] = (), **origin: Any) -> Imported:
    told = Origin(kind=kind, source="a made-up collection", licence="CC0-1.0", **origin)
    return import_cards(save(path / "rows.json", rows), told, overrides)
