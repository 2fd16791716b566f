"""The ``attune`` command: finds its sub-commands in ``scripts/commands`` and turns their errors into exit statuses.

0: done. 1: the run failed. 2: bad input. 130: interrupted. Logs and errors go to stderr, results to stdout.
"""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup

from envs.errors import InputError
from scripts import commands, console


class _Commands(TyperGroup):
    """Sub-commands that are imported when they are asked for, so that none waits for another's imports."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            close = get_close_matches(cmd_name, self.list_commands(ctx), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "`attune --help` lists them"
            raise InputError(f"{cmd_name}: there is no such command; {hint}")
        module = importlib.import_module(f"{commands.__name__}.{cmd_name.replace('-', '_')}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command


app = console.command_app("attune train --config configs/demo.yaml --dry-run", cls=_Commands, no_args_is_help=True)


@app.callback()
def _root(
    verbose: bool = typer.Option(False, console.VERBOSE, help="Show logs and tracebacks; may stand anywhere."),
) -> None:
    """Tune an open language model into an empathetic agent, against simulated clients whose feelings can be checked."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    return console.run_app(app, arguments, "attune")


if __name__ == "__main__":
    raise SystemExit(main())
