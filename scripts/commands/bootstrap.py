"""``attune bootstrap``: the small policy, trained here from scratch, for machines without a GPU or a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from envs.errors import InputError
from scripts.console import JsonFlag, command_app, print_json, stderr, stdout
from trainers import assembly
from trainers.config import BOOTSTRAP
from trainers.config_file import load_config

app = command_app("attune bootstrap --config configs/demo.yaml")


@app.command(epilog=app.info.epilog)
def bootstrap(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; none: the defaults.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, over the file's.")] = None,
    json: JsonFlag = False,
) -> None:
    """Make the small policy, or find the one made before from the same cards, client and settings; print its folder."""
    resolved = load_config(config, overrides or [])
    if resolved.policy.model != BOOTSTRAP:
        raise InputError(f"policy.model: is {resolved.policy.model!r}; only {BOOTSTRAP!r} is made here")
    folder = assembly.policy_dir(resolved, lambda line: stderr.print(line, markup=False))
    if json:
        print_json({"model_dir": str(folder)})
    else:
        stdout().print(str(folder), markup=False, soft_wrap=True)
