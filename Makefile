# `make demo` and `make test` need nothing but Python 3.11 or newer: each first makes .venv, or re-uses it.
PYTHON ?= python3
SEED ?= 0
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-ranks lint benchmark clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: ## make the virtual environment (done once; later runs return at once)
	@$(PYTHON) scripts/setup_env.py

demo: setup ## the whole loop, card to released adapter, in runs/demo (SEED=n: runs/demo-n)
	@.venv/bin/attune demo --seed $(SEED)

test: setup ## all tests but those of several ranks
	@.venv/bin/python -m pytest

test-ranks: setup ## one process, DDP, ZeRO-2 and ZeRO-3 train alike, with a real vLLM
	@.venv/bin/python -m pytest -m ranks

lint: setup ## ruff and pyright
	@.venv/bin/ruff check .
	@.venv/bin/pyright

benchmark: setup ## rollouts side by side with TRL, lock-step and verifiers (half an hour; QUICK=1: five minutes)
	@.venv/bin/python scripts/benchmark.py $(if $(QUICK),--quick) --out runs/benchmark.json

clean: ## remove the environment and every cache (runs/ stays)
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
