"""The command line: runs a command, and turns errors into exit codes and one short paragraph each."""

from __future__ import annotations

import argparse
import errno
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

from llm_lab.commands.arguments import parse
from llm_lab.errors import DONE, INTERNAL_ERROR, LONGEST, STOPPED, LabError, Problem, UserError, file_error
from llm_lab.safe_text import shorten, valid_text
from llm_lab.terminal.console import SafeStream, print_error, safe_errors, set_plain

# Number of new objects before garbage is collected. With Python's default of 700, collection takes a tenth of the time
# to import torch and transformers.
GARBAGE = 10_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run `llm-lab`; returns the exit code."""
    gc.set_threshold(GARBAGE)
    with safe_errors():
        try:
            return _run(sys.argv[1:] if argv is None else list(argv))
        except KeyboardInterrupt as stopped:
            print(f"\n{str(stopped) or 'Stopped.'}", file=sys.stderr)  # noqa: T201
            return STOPPED


def _run(words: Sequence[str]) -> int:
    try:
        _require_text(words)
        arguments = parse(words)
        if arguments.plain:
            set_plain()
        return _answer(arguments) if arguments.json else function_of(arguments)(arguments) or DONE
    except Exception as error:
        if _is_closed(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        if "--debug" in words:
            sys.excepthook = _print_traceback
            raise
        for_user = error if isinstance(error, LabError) else file_error(error)
        if "--json" in words:
            from llm_lab.commands.documents import error_document

            print(error_document(for_user or error).as_json())  # noqa: T201
        if for_user is None:
            said = shorten(str(error), LONGEST)
            message = f"Internal error: {type(error).__name__}: {said}\nAdd --debug for the traceback."
            print(message, file=sys.stderr)  # noqa: T201
            return INTERNAL_ERROR
        print_error(for_user)
        return for_user.exit_code


def _answer(arguments: argparse.Namespace) -> int:
    """Run a command and print its answer as JSON; other output goes to standard error."""
    with redirect_stdout(sys.stderr):
        document = function_of(arguments)(arguments)
    print(document.as_json())  # noqa: T201
    return document.code


def function_of(arguments: argparse.Namespace) -> Callable[[argparse.Namespace], Any]:
    """Return the function of a command; only its module is imported."""
    module, _, name = arguments.command.partition(".")
    return getattr(importlib.import_module(f"llm_lab.commands.{module}"), name)


def _require_text(words: Sequence[str]) -> None:
    """Raise UserError for an argument that can't be a file name."""
    for word in words:
        try:
            os.fsencode(word)
        except UnicodeEncodeError:
            why = "contains half of a character (an unpaired surrogate), which is not valid text"
            raise UserError(Problem(valid_text(word), why, fix="Write it without that.")) from None


def _is_closed(error: Exception) -> bool:
    """Return whether an error means that the output is closed: a pipe or a terminal."""
    lost_terminal = isinstance(error, OSError) and error.errno == errno.EIO and error.filename is None
    return isinstance(error, BrokenPipeError) or lost_terminal


def _print_traceback(kind: Any, error: BaseException, trace: Any) -> None:
    """Print the traceback of an error, without secrets and control characters."""
    import traceback

    SafeStream(sys.stderr).write("".join(traceback.format_exception(kind, error, trace)))


if __name__ == "__main__":
    sys.exit(main())
