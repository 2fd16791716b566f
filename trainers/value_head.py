"""A value head on the policy: one number a token, how much reward is to come, from the same pass as its likelihoods.

A linear layer on the last hidden state, in fp32, starting at 0. The state is brought to a root mean square of 1 and the
layer's sum is divided by the width, so that one step of AdamW moves a value by about the head's learning rate, however
wide the model is. It lies inside the wrapped model, so that data-parallel and sharded training see its weights, and
outside the adapter, so that no release carries it. Its loss reaches the adapter through the hidden state, as in PPO
with a shared trunk (arXiv 1707.06347).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm
from trl.trainer.utils import FusedCausalLMOutput

from envs.errors import InputError
from trainers.run_files import flush

HEAD = "value_head"
FILE = "value_head.safetensors"


@dataclass
class ValuedOutput(FusedCausalLMOutput):
    """What the model returns with a value head. ``state_values``: (B, T - 1), one for the token that comes next.

    A field of its own, since data-parallel training looks for used weights in the outputs' fields.
    """

    state_values: Tensor | None = None


class _Layer(nn.Linear):
    """Computes in fp32, whatever DeepSpeed keeps its weights in."""

    def forward(self, state: Tensor) -> Tensor:
        return linear(state, self.weight.float(), self.bias.float())


class ValueHead:
    """Puts the head on a model and hears what it says."""

    def __init__(self, model: PeftModel) -> None:
        base: Any = model.get_base_model()
        width = base.config.get_text_config().hidden_size
        self._layer = _Layer(width, 1, dtype=torch.float32).to(next(base.parameters()).device)
        nn.init.zeros_(self._layer.weight)
        nn.init.zeros_(self._layer.bias)
        base.add_module(HEAD, self._layer)
        self._hidden: Tensor | None = None
        self._heard: list[Tensor] | None = None
        base.base_model.register_forward_hook(self._keep_hidden)
        base.register_forward_hook(self._value)

    @contextmanager
    def listening(self) -> Iterator[list[Tensor]]:
        """Collects the values (b, T - 1) of every pass of the model in this block."""
        self._heard = []
        try:
            yield self._heard
        finally:
            self._heard = None

    @property
    def weights(self) -> list[nn.Parameter]:
        """The head's weights."""
        return list(self._layer.parameters())

    def save(self, folder: Path) -> None:
        """Write the head's weights, which must be whole here, into ``folder``, flushed."""
        state = {name: weight.detach().to("cpu", copy=True) for name, weight in self._layer.state_dict().items()}
        save_file(state, folder / FILE)
        flush(folder / FILE)

    def load(self, folder: Path) -> None:
        """Read the head's weights from ``folder``. Raises InputError when they aren't there or don't fit."""
        try:
            self._layer.load_state_dict(load_file(folder / FILE))
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{folder / FILE}: the value head can't be read ({error}); start the run afresh"
            ) from error

    def _keep_hidden(self, module: nn.Module, args: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state

    def _value(self, module: nn.Module, args: Any, output: Any) -> Any:
        hidden, self._hidden = self._hidden, None
        if not isinstance(output, FusedCausalLMOutput) or hidden is None:
            return output
        with torch.autocast(hidden.device.type, enabled=False):
            state = rms_norm(hidden[:, :-1].float(), hidden.shape[-1:])
            values = self._layer(state / hidden.size(-1)).squeeze(-1)
        if self._heard is not None:
            self._heard.append(values)
        return ValuedOutput(**output, state_values=values)
