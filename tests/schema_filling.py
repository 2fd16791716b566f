"""JSON that fits a schema, made from a hash: the same schema and hash give the same JSON."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from envs.hashing import text_hash

WORDS = ("today", "the", "day", "was", "long", "and", "we", "talked", "about", "home", "work", "rain", "tea", "sleep")
UNMET = {"pattern", "allOf", "not", "multipleOf", "patternProperties", "if", "dependentRequired", "format"}
OPEN_ENDED = 100  # span of a number without bounds

Schema = Mapping[str, Any]


def fill(schema: Schema, seed: str) -> Any:
    """A value that fits ``schema``. Raises ValueError at keywords that it can't meet."""
    return _value(schema, schema, seed)


def spoil_range(schema: Schema, value: Any) -> Any | None:
    """``value`` with its first bounded number out of bounds, or None when it has none."""
    spoiled, done = _spoiled(schema, schema, value)
    return spoiled if done else None


def _value(schema: Schema, root: Schema, seed: str) -> Any:
    schema = _resolved(schema, root)
    if unmet := UNMET & schema.keys():
        raise ValueError(f"the scripted server can't fill a schema with {', '.join(sorted(unmet))}")
    draws = random.Random(seed)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draws.choice(schema["enum"])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return _value(draws.choice(schema[choice]), root, seed)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    match kind:
        case "object":
            parts = schema.get("properties", {})
            return {name: _value(part, root, text_hash(f"{seed}.{name}")) for name, part in parts.items()}
        case "array":
            low = schema.get("minItems", 1)
            count = draws.randint(low, max(low, schema.get("maxItems", low + 1)))
            return [_value(schema.get("items", {}), root, text_hash(f"{seed}[{place}]")) for place in range(count)]
        case "integer" | "number":
            low, high = _bounds(schema, kind)
            return draws.randint(int(low), int(high)) if kind == "integer" else round(draws.uniform(low, high), 3)
        case "boolean":
            return draws.random() < 0.5
        case "null":
            return None
        case "string":
            text = " ".join(draws.choices(WORDS, k=draws.randint(4, 9)))
            return text.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]
    raise ValueError(f"the scripted server knows no type {kind!r}")


def _bounds(schema: Schema, kind: str) -> tuple[float, float]:
    step = 1 if kind == "integer" else 1e-3
    low = schema.get("minimum", schema["exclusiveMinimum"] + step if "exclusiveMinimum" in schema else None)
    high = schema.get("maximum", schema["exclusiveMaximum"] - step if "exclusiveMaximum" in schema else None)
    if low is None:
        low = 0 if high is None else high - OPEN_ENDED
    return low, low + OPEN_ENDED if high is None else high


def _resolved(schema: Schema, root: Schema) -> Schema:
    while "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        schema = target
    return schema


def _spoiled(schema: Schema, root: Schema, value: Any) -> tuple[Any, bool]:
    schema = _resolved(schema, root)
    bounded = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"} & schema.keys()
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            changed, done = _spoiled(part, root, value.get(name))
            if done:
                return value | {name: changed}, True
    elif isinstance(value, list):
        for place, each in enumerate(value):
            changed, done = _spoiled(schema.get("items", {}), root, each)
            if done:
                return [*value[:place], changed, *value[place + 1 :]], True
    elif isinstance(value, int | float) and not isinstance(value, bool) and bounded:
        low, high = _bounds(schema, "number")
        below = "maximum" not in schema and "exclusiveMaximum" not in schema
        return (int(low) - 1000 if below else int(high) + 1000), True
    return value, False
