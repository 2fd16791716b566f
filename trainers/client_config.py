"""The client's part of a run's configuration: which rules it plays by, and the language models that play it.

Here too: what every section is made of. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from envs.models.endpoint_spec import EndpointSpec

BOOTSTRAP = "bootstrap"

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Gpus = list[Annotated[int, Field(ge=0)]]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ServedModel(Section):
    """A model that the run serves itself, on a vLLM server of its own beside the policy's."""

    model: str = Field(
        default=BOOTSTRAP, description="`bootstrap` (the small policy's own base), a model folder, or a hub id."
    )
    revision: str | None = Field(
        default=None, description="Commit of the hub model; none: the newest when it is fetched."
    )
    chat_template: Path | None = Field(default=None, description="Jinja file; none: the model's own template.")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Type of the weights.")
    context_tokens: Count = Field(default=4096, description="Longest prompt and answer together, in tokens.")
    gpus: Gpus = Field(default=[], description="GPUs of the server; empty: the CPU.")
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.9, description="Share of each of its GPUs that the server takes."
    )
    kv_cache_gib: Count = Field(default=1, description="CPU only: memory for keys and values.")
    threads: Count | None = Field(default=None, description="CPU only: threads of the server; none: every core.")
    concurrency: Count = Field(default=32, description="Requests in flight at once.")


class ModelSource(Section):
    """Where a language model comes from: one of the two."""

    serve: ServedModel | None = Field(default=None, description="A model that the run serves itself.")
    endpoint: EndpointSpec | None = Field(default=None, description="A model behind an OpenAI-compatible server.")

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelSource:
        if (self.serve is None) == (self.endpoint is None):
            raise ValueError("name either serve (the run starts a server) or endpoint (one runs already)")
        return self


class PlayedBy(Section):
    """The language models that play one client."""

    model: ModelSource | None = Field(
        default=None, description="The language model that plays the client; none: the spec needs none."
    )
    reply_model: ModelSource | None = Field(
        default=None, description="Another language model for what the client says; none: the same."
    )


class Client(PlayedBy):
    """How the client is simulated."""

    spec: str = Field(default="appraisal-v1", description="Client spec: a name in configs/clients, or a path.")
    perceiver: str | None = Field(default=None, description="What notices the acts in a reply; none: the spec's.")
    members: dict[str, PlayedBy] = Field(
        default={}, description="Models of an ensemble's members, by the name of their spec; none: client.model's."
    )
    cache: Path | None = Field(
        default=None, description="File that keeps the models' answers, so that a rerun costs nothing; none: none kept."
    )
    offline: bool = Field(
        default=False, description="Answer from the cache alone: no server is started or asked; a missing answer fails."
    )
