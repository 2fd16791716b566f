"""What is touched of vLLM to run its server on few cores, and is not promised to stay."""

from __future__ import annotations

import importlib.util
import inspect

import pytest

pytest.importorskip("vllm")


def test_the_engine_waits_for_its_worker_in_a_loop_whose_length_is_a_default():
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, SpinCondition

    given = inspect.signature(SpinCondition.__init__).parameters
    assert [name for name, one in given.items() if one.default is not inspect.Parameter.empty] == ["busy_loop_s"]
    assert "self.last_read + self.busy_loop_s" in inspect.getsource(SpinCondition.wait)
    assert "self.poller.poll(" in inspect.getsource(SpinCondition.wait)
    assert "busy_loop_s" not in inspect.getsource(MessageQueue)  # so that nobody gives it another length


def test_the_server_is_a_module_that_runs():
    assert importlib.util.find_spec("vllm.entrypoints.openai.api_server") is not None
