"""Who has which cores: in turn all of them, side by side a share each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainers import train, vllm_process
from trainers.assembly import policy_server_settings, train_settings
from trainers.config_file import load_config

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("cores", "keys", "of_a_server", "of_training"),
    [
        (2, [], 2, None),
        (2, ["trainer.max_staleness=1"], 1, 1),
        (8, ["trainer.max_staleness=1"], 4, 4),
        (8, ["trainer.max_staleness=1", "engine.replicas=2"], 2, 4),
        (8, ["trainer.max_staleness=1", "engine.threads=2"], 2, 6),
        (1, ["trainer.max_staleness=1", "engine.replicas=2"], 1, 1),
        (8, ["trainer.max_staleness=1", "engine.urls=['http://127.0.0.1:8000']"], 8, None),
        (8, ["trainer.max_staleness=1", "engine.urls_env=ADDRESSES_THAT_ARE_NOT_SET_YET"], 8, None),
        (8, ["trainer.max_staleness=1", "engine.kind=transformers"], 8, None),
    ],
)
def test_servers_and_training_share_the_cores_when_they_work_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: int, keys: list[str], of_a_server: int, of_training: int
) -> None:
    monkeypatch.setattr(vllm_process, "usable_cores", lambda: cores)
    config = load_config(DEMO, keys)
    assert policy_server_settings(config, tmp_path, tmp_path / "log").threads == of_a_server
    assert train_settings(config).threads == of_training


def test_torch_has_its_threads_back_after_training() -> None:
    before = torch.get_num_threads()
    with train._at_most(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with train._at_most(None):
        assert torch.get_num_threads() == before
