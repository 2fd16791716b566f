"""What the integration tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_policy import tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny random policy."""
    return tiny_model(tmp_path_factory.mktemp("model"))
