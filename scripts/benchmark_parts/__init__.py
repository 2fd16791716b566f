"""The parts of ``scripts/benchmark.py``: the work to do, the engine, each way of doing it, and what is counted."""
