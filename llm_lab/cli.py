"""The words of the commands, and what becomes of errors: exit codes, and one short paragraph."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_lab import __version__, commands
from llm_lab.commands import DONE, INTERNAL_ERROR, STOPPED
from llm_lab.errors import LabError, MachineError, Problem, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run `llm-lab`; returns the exit code."""
    arguments = parse(argv)
    try:
        return arguments.command(arguments) or DONE
    except LabError as error:
        if arguments.debug:
            raise
        from llm_lab.terminal.console import print_error

        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)  # noqa: T201
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if arguments.debug:
            raise
        if trouble := _file_trouble(error):
            from llm_lab.terminal.console import print_error

            print_error(trouble)
            return trouble.exit_code
        message = f"A fault of LLM Lab's: {type(error).__name__}: {error}\nAdd --debug for the traceback."
        print(message, file=sys.stderr)  # noqa: T201
        return INTERNAL_ERROR


def _file_trouble(error: Exception) -> LabError | None:
    """Put into words what the system says of a file: what the user named, or a disk that is full."""
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = str(error.filename or "the disk")
        return MachineError(Problem(where, "it is full", fix="Make room; a run goes on with --resume."))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP) and error.filename:
        why = f"the system refuses it: {os.strerror(error.errno)}"
        return UserError(Problem(str(error.filename), why, fix="Name another, or change its permissions."))
    return None


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the words of a command; exits with 2 and the usage where they are no command."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes all key=value words or none: those after an option (run R --resume a=1) are left over.
    if rest and hasattr(arguments, "overrides") and not any(word.startswith("-") for word in rest):
        arguments.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    parser = argparse.ArgumentParser(
        prog="llm-lab",
        description="Build a language model from parts, train it, talk to it, keep it. Without a command: the wizard.",
    )
    parser.add_argument("--version", action="version", version=f"llm-lab {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(command=commands.open_wizard)
    subparsers = parser.add_subparsers(title="commands", metavar="")

    run = subparsers.add_parser("run", parents=[common], help="replay a recipe")
    _recipe_arguments(run)
    run.add_argument("--dry-run", action="store_true", help="stop after the plan")
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    run.add_argument("--overwrite", action="store_true", help="replace the run of the same name")
    run.add_argument("--nproc", type=int, metavar="N", help="train with N processes, one a GPU")
    run.set_defaults(command=commands.run_recipe)

    check = subparsers.add_parser("check", parents=[common], help="say all that is wrong with a recipe")
    _recipe_arguments(check)
    check.set_defaults(command=commands.check_recipe)

    xray = subparsers.add_parser("xray", parents=[common], help="show a recipe's data as tokens, and which are learnt")
    _recipe_arguments(xray)
    xray.add_argument("--examples", type=int, default=2, metavar="N", help="how many of each set are shown (2)")
    xray.set_defaults(command=commands.xray_recipe)

    what = subparsers.add_parser("list", parents=[common], help="list recipes, data, parts or runs")
    what.add_argument("what", nargs="?", choices=("recipes", "data", "parts", "runs"), help="all, if left out")
    what.set_defaults(command=commands.list_things)

    copy = subparsers.add_parser("copy", parents=[common], help="take a recipe to edit")
    copy.add_argument("recipe", help="a recipe's name or file")
    copy.add_argument("file", type=Path, help="where to")
    copy.set_defaults(command=commands.copy_recipe)

    show = subparsers.add_parser("show", parents=[common], help="what a checkpoint is")
    show.add_argument("path", help="a run, a checkpoint or a Hugging Face folder")
    show.set_defaults(command=commands.show_checkpoint)

    chat = subparsers.add_parser("chat", parents=[common], help="talk to a model")
    chat.add_argument("checkpoint", help="a run, a Hugging Face folder, or a name on the Hub")
    chat.add_argument("--prompt", help="one answer, and out")
    chat.add_argument("--max-new-tokens", type=int, help="length of an answer, in tokens")
    chat.add_argument("--temperature", type=float, help="0: always the likeliest token")
    chat.add_argument("--seed", type=int, help="same seed, same answer")
    chat.add_argument("--device", choices=("cpu", "cuda"), help="where it runs")
    chat.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    chat.set_defaults(command=commands.chat)

    merge = subparsers.add_parser("merge", parents=[common], help="put a LoRA adapter into its base")
    merge.add_argument("adapter", help="a run that trained an adapter, or an adapter's folder")
    merge.add_argument("--out", type=Path, metavar="DIR", help="a plain folder to write; left out, a run of its own")
    merge.add_argument("--tolerance", type=float, help="largest difference of logits, relative to their size")
    merge.set_defaults(command=commands.merge)

    _eval_parser(subparsers, common)
    _compare_parser(subparsers, common)
    _export_parser(subparsers, common)
    _replay_parser(subparsers, common)

    schema = subparsers.add_parser("schema", parents=[common], help="the JSON Schema of recipes, for editors")
    schema.set_defaults(command=commands.print_schema)

    doctor = subparsers.add_parser("doctor", parents=[common], help="what this machine can do")
    doctor.set_defaults(command=commands.examine_machine)
    return parser


def _eval_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser("eval", parents=[common], help="measure a model: loss, answers, speed, tasks")
    parser.add_argument("checkpoint", help="a run, a Hugging Face folder, or a name on the Hub")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example eval.max_tokens=500")
    parser.add_argument("--data", action="append", metavar="PATH", help="a text whose loss is measured; repeatable")
    parser.add_argument("--prompts", metavar="PATH", help="prompts that are answered and scored")
    parser.add_argument("--tasks", metavar="NAMES", help="tasks of lm-evaluation-harness, or YAML files, with commas")
    parser.add_argument("--limit", type=int, metavar="N", help="documents of each task, at most")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where it runs")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.set_defaults(command=commands.evaluate)


def _compare_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "compare", parents=[common], help="models side by side, on the same prompts and sets"
    )
    parser.add_argument("checkpoints", nargs="+", metavar="checkpoint", help="runs, folders, or names on the Hub")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="what all are asked; can be repeated")
    parser.add_argument("--prompts", metavar="PATH", help="prompts that all answer, scored")
    parser.add_argument("--data", action="append", metavar="PATH", help="a text whose loss is measured; repeatable")
    parser.add_argument("--steps", action="store_true", help="of one run: all its checkpoints, over time")
    parser.add_argument("--adapter-off", action="store_true", help="an adapter's base without it, too")
    parser.add_argument("--max-new-tokens", type=int, help="length of an answer, in tokens")
    parser.add_argument("--temperature", type=float, help="0: always the likeliest token")
    parser.add_argument("--seed", type=int, help="same seed, same answer")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where it runs")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the models")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it: a name.md to share, a name.json to read")
    parser.set_defaults(command=commands.compare_models)


def _export_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser("export", parents=[common], help="a form for others to load, proven by loading it")
    parser.add_argument("checkpoint", help="a run, a Hugging Face folder, or a name on the Hub")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example export.weights=q8_0")
    parser.add_argument("--to", choices=("hf", "gguf"), help="the form; left out: hf")
    parser.add_argument("--weights", choices=("f32", "f16", "bf16", "q8_0"), help="how the weights are kept")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a folder to write; left out, a run of its own")
    parser.add_argument("--push", metavar="OWNER/NAME", help="send it to a repository on the Hub")
    parser.add_argument("--public", action="store_true", help="a repository that is made can be seen by all")
    parser.add_argument("--dry-run", action="store_true", help="show the verdict and the files, and write nothing")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.set_defaults(command=commands.export)


def _replay_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "replay", parents=[common], help="make a checkpoint again, from its line's beginning"
    )
    parser.add_argument("checkpoint", help="a run, its name, or its model's folder")
    parser.add_argument("--name", help="the new pipeline's folder; left out, <name>-replay")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the recipe of the whole line and its plan, and stop"
    )
    parser.add_argument("--resume", action="store_true", help="go on with a replay that was stopped")
    parser.set_defaults(command=commands.replay)


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe's name or file, or a run's folder")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example train.max_steps=500")


if __name__ == "__main__":
    sys.exit(main())
