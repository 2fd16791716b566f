"""vLLM's API server for few cores: the engine sleeps while its worker computes.

vLLM's engine asks for its worker's answer without pause for up to a second. With two cores it takes one of them from
the HTTP server and from the run, and requests come in so slowly that few of them are sampled together. Here it waits to
be woken, as vLLM itself does after that second. ``-m trainers.vllm_entry`` takes the arguments of vLLM's own server;
the engine's and the worker's processes import this module too, as their parent's main one. It touches a private part of
vLLM, held by tests/contract/test_vllm_surface.py.
"""

from __future__ import annotations

import runpy
from importlib import import_module

WAITING = import_module("vllm.distributed.device_communicators.shm_broadcast").SpinCondition
WAITING.__init__.__defaults__ = (0.0,)  # busy_loop_s

if __name__ == "__main__":
    # In a namespace of its own: this module stays the main one, which the processes to come import.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=False)
