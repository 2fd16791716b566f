"""What every command shares: the console on stderr, the one JSON object on stdout, logs, and how errors are told."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import traceback
from contextlib import nullcontext, redirect_stdout
from contextvars import ContextVar
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from envs.errors import InputError, RunError

OK, RUN_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
VERBOSE = "--verbose"

# For people: tables, progress, errors. Results that a program reads go to stdout.
stderr = Console(stderr=True, highlight=False)
_results: ContextVar[TextIO | None] = ContextVar("results", default=None)  # where the JSON object goes, if not stdout

JsonFlag = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout; the rest on stderr.")]


def command_app(example: str, **options: Any) -> typer.Typer:
    """The Typer app of a command; ``example`` closes its help."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, epilog=f"Example: {example}", **options)


def stdout() -> Console:
    """The console of results. Made anew each time, since tests and pipes exchange the stream."""
    return Console(file=sys.stdout, highlight=False)


def print_json(data: dict[str, Any]) -> None:
    """Print the command's one JSON object on stdout, on one line."""
    stream = _results.get() or sys.stdout
    stream.write(json.dumps(data, ensure_ascii=False, allow_nan=False, default=str) + "\n")
    stream.flush()


def configure_logging(verbose: bool) -> None:
    """Send logs to stderr: warnings, or everything of ours with ``verbose``. Libraries' bars are shown then, too."""
    handler = RichHandler(console=stderr, show_path=verbose, rich_tracebacks=False, markup=False)
    if not verbose:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        # What vLLM says on being imported is about the server, and stands in the server's log.
        handler.addFilter(lambda record: not record.name.startswith("vllm"))
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(message)s", handlers=[handler], force=True
    )


def run_app(app: typer.Typer, arguments: list[str] | None, name: str) -> int:
    """Run a command line (None: this process's) and return its exit status; errors are told.

    With ``--json``, what libraries print goes to stderr: DeepSpeed logs to stdout, which is the JSON object's alone.
    """
    given = sys.argv[1:] if arguments is None else arguments
    results = _results.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr) if "--json" in given else nullcontext():
            return _run(app, given, name)
    finally:
        _results.reset(results)


def _run(app: typer.Typer, given: list[str], name: str) -> int:
    verbose, as_json = VERBOSE in given, "--json" in given
    configure_logging(verbose)
    try:
        app([argument for argument in given if argument != VERBOSE], prog_name=name)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else OK if done.code is None else RUN_FAILED
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, verbose=verbose, as_json=as_json)
    return OK


def explain(error: BaseException, *, verbose: bool, as_json: bool) -> int:
    """Tell an error plainly and return the exit status. A traceback is shown on demand, and for what nobody foresaw."""
    status, message = _judge(error)
    if verbose or message is None:
        stderr.print(Text("".join(traceback.format_exception(error)).rstrip()), soft_wrap=True)
    message = message or f"this should not have happened: {type(error).__name__}: {error}"
    stderr.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    if as_json:
        print_json({"error": message, "status": status})
    return status


def _judge(error: BaseException) -> tuple[int, str | None]:
    """The exit status, and the message where the error is one that a person can mend."""
    if isinstance(error, InputError):
        return BAD_INPUT, str(error)
    if isinstance(error, RunError):
        return RUN_FAILED, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; what was complete until then is kept"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RUN_FAILED, f"the disk is full ({error.filename or 'while writing'}): free some space and run it again"
    return RUN_FAILED, None
