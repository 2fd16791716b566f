"""Where a language model is reached and how patiently: the part of a configuration that describes one endpoint.

It names the environment variable that holds the key and never the key itself, so that a dump of it can be shown.
"""

from __future__ import annotations

import os
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from envs.errors import InputError

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Price = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class BreakerSettings(_Section):
    """When requests to a failing server stop, and how often it is tried again.

    A server that fails a share p of its requests opens the breaker after about (1 - p**n) / ((1 - p) * p**n) requests,
    with n = ``failures``: at n = 8 after 13 at p = 0.9 and after 510 at p = 0.5.
    """

    failures: Count = Field(default=8, description="Failures in a row after which no more requests are sent.")
    open_seconds: Seconds = Field(
        default=1.0, description="Wait before the first probe; doubled after each that fails."
    )
    max_open_seconds: Seconds = Field(default=10.0, description="Longest wait between two probes.")

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.max_open_seconds < self.open_seconds:
            raise ValueError("max_open_seconds is less than open_seconds; raise it")
        return self


class EndpointSpec(_Section):
    """One OpenAI-compatible server and one model on it."""

    base_url: str = Field(description="Address up to and including the version, such as http://127.0.0.1:8000/v1.")
    model: Annotated[str, Field(min_length=1)] = Field(description="Name of the model, as the server knows it.")
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        default=None, description="Environment variable that holds the key; none: the server asks for none."
    )
    concurrency: Annotated[int, Field(ge=1, le=1000)] = Field(default=32, description="Requests in flight at once.")
    request_timeout: Seconds = Field(default=60.0, description="Seconds for one request, to its last byte.")
    max_attempts: Count = Field(default=8, description="How often one question is sent before it counts as unanswered.")
    backoff_seconds: Seconds = Field(
        default=0.5, description="Longest wait before the second attempt; doubled for each further one, then drawn."
    )
    max_backoff_seconds: Seconds = Field(default=20.0, description="Longest wait between two attempts.")
    prompt_price: Price | None = Field(default=None, description="Price of a million prompt tokens; none: not known.")
    completion_price: Price | None = Field(
        default=None, description="Price of a million completion tokens; none: not known."
    )
    breaker: BreakerSettings = BreakerSettings()

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        # A message of pydantic's own would repeat the address, and with it a password that stands in it.
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise ValueError("base_url must hold no user, password or query; name the key's variable in key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must begin with http:// or https:// and name a host")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _values_agree(self) -> Self:
        if self.max_backoff_seconds < self.backoff_seconds:
            raise ValueError("max_backoff_seconds is less than backoff_seconds; raise it")
        if (self.prompt_price is None) != (self.completion_price is None):
            raise ValueError("prompt_price and completion_price must both be given, or neither")
        return self

    def key(self) -> str | None:
        """The key, from the environment; None when the endpoint needs none. Raises InputError when it is missing."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise InputError(
                f"key_env: the environment variable {self.key_env} is not set; set it to the key of {self.base_url}, "
                "or leave key_env out when the server needs none"
            )
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise InputError(
                f"key_env: the environment variable {self.key_env} holds characters that no key has (its value is not "
                "shown); copy the key into it again"
            )
        return key

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Price of so many tokens; None when no price is known."""
        if self.prompt_price is None or self.completion_price is None:
            return None
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6
