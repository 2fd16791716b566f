"""One optimizer step on ranks whose rows differ in length, within a token budget or without; writes what came of it.

Used as ``torchrun --nproc_per_node 2 -m tests.uneven_ranks FOLDER BUDGET``; a budget of 0 is none.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from safetensors.torch import save_file

from scripts.benchmark_gpu import dialogue_rows
from tests.unit.test_micro_batches import SIZES, one_step, settings
from trainers.credit import GroupRelative
from trainers.trainer import Limits


def main(folder: Path, budget: int) -> None:
    """The first rank has four rows of up to 240 tokens, the second four of up to 60."""
    rank = int(os.environ["RANK"])
    rows = dialogue_rows(SIZES.vocabulary, 60 if rank else 240, 4, ragged=True)
    given = settings("grpo", cards_per_step=2, group_size=4, limits=Limits(1e9, pass_tokens=budget or None))
    seen, course = one_step(given, folder, GroupRelative(4), rows)
    save_file(seen.gradients, folder / f"gradients-{rank}.safetensors")
    (folder / f"seen-{rank}.json").write_text(json.dumps({"logged": seen.logged, "course": course}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
