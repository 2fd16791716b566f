"""Prompts in Jinja files: ``<stem>.<language>.jinja`` with a ``system`` and a ``user`` block, one chat message each."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateNotFound

from envs.cards import Language
from envs.errors import InputError
from envs.models.model_client import ChatMessage


@cache
def environment(folder: Path) -> Environment:
    """The templates in ``folder``. What is put in is never read as a template again, and nothing is HTML."""
    return Environment(loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def two_messages(folder: Path, stem: str, language: Language, **values: Any) -> tuple[ChatMessage, ChatMessage]:
    """The system and the user message of a prompt. Raises InputError when there is no such file."""
    name = f"{stem}.{language}.jinja"
    try:
        template = environment(folder).get_template(name)
    except TemplateNotFound:
        raise InputError(f"{folder / name}: there is no such file; write it, or name another in llm.prompts") from None
    system, user = ("".join(template.blocks[part](template.new_context(values))).strip() for part in ("system", "user"))
    return ChatMessage(role="system", content=system), ChatMessage(role="user", content=user)
