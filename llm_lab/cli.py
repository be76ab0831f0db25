"""Command-line parsing and error handling: exit codes, and one short paragraph per error."""

from __future__ import annotations

import argparse
import errno
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_lab import __version__, commands, study_commands
from llm_lab.errors import DONE, INTERNAL_ERROR, LONGEST, STOPPED, LabError, Problem, UserError, file_error
from llm_lab.safe_text import shorten, valid_text
from llm_lab.terminal.console import SafeStream, print_error, safe_errors, set_plain

# New objects before garbage is collected: with Python's own 700, that takes a tenth of the time that torch and
# transformers need to be imported.
GARBAGE = 10_000
PRESETS = "learning-rate, lora-rank, optimizer, position-embedding, seeds"  # a test compares them
MODEL = "a run, a Hugging Face folder, a GGUF file, or a name on the Hub"


def main(argv: Sequence[str] | None = None) -> int:
    """Run `llm-lab`; returns the exit code."""
    gc.set_threshold(GARBAGE)
    with safe_errors():
        try:
            arguments = parse(argv)
            if arguments.plain:
                set_plain()
            if argv is not None and (problem := _not_text(argv)):
                print_error(UserError(problem))
                return UserError.exit_code
            return _run(arguments)
        except KeyboardInterrupt:
            print("\nStopped.", file=sys.stderr)  # noqa: T201
            return STOPPED


def _not_text(argv: Sequence[str]) -> Problem | None:
    """Return the problem with an argument that no file could have as its name, None without one."""
    for word in argv:
        try:
            os.fsencode(word)
        except UnicodeEncodeError:
            why = "contains half of a character (an unpaired surrogate), which is not valid text"
            return Problem(valid_text(word), why, fix="Write it without that.")
    return None


def _run(arguments: argparse.Namespace) -> int:
    try:
        return arguments.command(arguments) or DONE
    except Exception as error:
        if _is_closed(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        if arguments.debug:
            sys.excepthook = _print_traceback
            raise
        for_user = error if isinstance(error, LabError) else file_error(error)
        if for_user is None:
            said = shorten(str(error), LONGEST)
            message = f"Internal error: {type(error).__name__}: {said}\nAdd --debug for the traceback."
            print(message, file=sys.stderr)  # noqa: T201
            return INTERNAL_ERROR
        print_error(for_user)
        return for_user.exit_code


def _is_closed(error: Exception) -> bool:
    """Return whether an error means that nobody reads the output any more: a closed pipe or terminal."""
    lost_terminal = isinstance(error, OSError) and error.errno == errno.EIO and error.filename is None
    return isinstance(error, BrokenPipeError) or lost_terminal


def _print_traceback(kind: Any, error: BaseException, trace: Any) -> None:
    """Print the traceback of an error, without secrets and control characters."""
    import traceback

    SafeStream(sys.stderr).write("".join(traceback.format_exception(kind, error, trace)))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of a command. Exits with 2 and the usage where they are invalid."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes all key=value arguments or none: those after an option (run R --resume a=1) are left over.
    if rest and hasattr(arguments, "overrides") and not any(word.startswith("-") for word in rest):
        arguments.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    plain = "lines only, without frames, colors and redrawing, for screen readers (or LLM_LAB_PLAIN=1)"
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    common.add_argument("--plain", action="store_true", default=argparse.SUPPRESS, help=plain)
    parser = argparse.ArgumentParser(
        prog="llm-lab",
        description="Build a language model from parts, train it, evaluate it, chat with it, export it. "
        "Without a command, the wizard opens.",
    )
    parser.add_argument("--version", action="version", version=f"llm-lab {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--plain", action="store_true", help=plain)
    parser.set_defaults(command=commands.open_wizard)
    subparsers = parser.add_subparsers(title="commands", metavar="command")

    run = subparsers.add_parser("run", parents=[common], help="run a recipe")
    _recipe_arguments(run)
    run.add_argument("--dry-run", action="store_true", help="show the plan without running it")
    run.add_argument("--resume", action="store_true", help="resume from the last checkpoint")
    run.add_argument(
        "--resume-from", type=int, metavar="STEP", help="resume from the checkpoint of an earlier step; 0 is the start"
    )
    run.add_argument("--overwrite", action="store_true", help="replace the run of the same name")
    _trust_recipe_argument(run)
    run.add_argument("--nproc", type=int, metavar="N", help="train with N processes, one per GPU")
    run.set_defaults(command=commands.run_recipe)

    check = subparsers.add_parser("check", parents=[common], help="validate a recipe, listing every problem")
    _recipe_arguments(check)
    check.set_defaults(command=commands.check_recipe)

    xray = subparsers.add_parser(
        "xray", parents=[common], help="show a recipe's data token by token: trained or masked"
    )
    _recipe_arguments(xray)
    xray.add_argument("--examples", type=int, default=2, metavar="N", help="examples to show per dataset (default 2)")
    xray.set_defaults(command=commands.xray_recipe)

    what = subparsers.add_parser("list", parents=[common], help="list recipes, data, models, parts or runs")
    what.add_argument(
        "what", nargs="?", choices=("recipes", "data", "models", "parts", "runs"), help="what to list; default: all"
    )
    what.set_defaults(command=commands.list_things)

    copy = subparsers.add_parser("copy", parents=[common], help="copy a recipe to a new file, to edit it")
    copy.add_argument("recipe", help="a recipe's name or file")
    copy.add_argument("file", type=Path, help="the new file")
    copy.set_defaults(command=commands.copy_recipe)

    show = subparsers.add_parser("show", parents=[common], help="show what a run or model is and how it was made")
    show.add_argument("path", metavar="model", help="a run, one of its checkpoints, or a Hugging Face folder")
    show.set_defaults(command=commands.show_checkpoint)

    chat = subparsers.add_parser("chat", parents=[common], help="chat with a model")
    chat.add_argument("checkpoint", metavar="model", help=MODEL)
    chat.add_argument("--prompt", metavar="TEXT", help="reply to this prompt and exit")
    _sampling_arguments(chat)
    _model_arguments(chat)
    chat.set_defaults(command=commands.chat)

    merge = subparsers.add_parser("merge", parents=[common], help="merge a LoRA adapter into its base")
    merge.add_argument("adapter", help="a run that trained an adapter, or a folder with an adapter")
    merge.add_argument("--out", type=Path, metavar="DIR", help="folder to write; default: a new run in checkpoints/")
    merge.add_argument(
        "--tolerance", type=float, metavar="X", help="maximum difference of logits, relative to their size"
    )
    merge.set_defaults(command=commands.merge)

    _eval_parser(subparsers, common)
    _compare_parser(subparsers, common)
    _export_parser(subparsers, common)
    _replay_parser(subparsers, common)

    _look_parser(subparsers, common)
    _sweep_parser(subparsers, common)
    _duel_parser(subparsers, common)
    _study_parser(subparsers, common)

    web = subparsers.add_parser("web", parents=[common], help="open the lab in the browser of this machine")
    web.add_argument("--port", type=int, metavar="N", help="port of the page; default: the first free one from 7750 on")
    web.set_defaults(command=commands.serve_web)

    schema = subparsers.add_parser("schema", parents=[common], help="print the JSON Schema of recipes, for editors")
    schema.set_defaults(command=commands.print_schema)

    doctor = subparsers.add_parser("doctor", parents=[common], help="show what this machine can do")
    doctor.set_defaults(command=commands.examine_machine)
    return parser


def _eval_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "eval", parents=[common], help="evaluate a model: loss on texts, scored outputs, speed, tasks"
    )
    parser.add_argument("checkpoint", metavar="model", help=MODEL)
    _override_argument(parser, "eval.max_tokens=500")
    parser.add_argument(
        "--data", action="append", metavar="PATH", help="dataset of texts to measure the loss on; can be repeated"
    )
    parser.add_argument("--prompts", metavar="PATH", help="dataset of prompts; the outputs are scored")
    parser.add_argument("--tasks", metavar="NAMES", help="lm-evaluation-harness tasks or YAML files, comma-separated")
    parser.add_argument("--limit", type=int, metavar="N", help="maximum number of documents per task")
    _model_arguments(parser)
    _trust_recipe_argument(parser)
    parser.set_defaults(command=commands.evaluate)


def _compare_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser("compare", parents=[common], help="compare models on the same prompts and data")
    parser.add_argument("checkpoints", nargs="+", metavar="model", help=MODEL)
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="prompt for every model; can be repeated")
    parser.add_argument("--prompts", metavar="PATH", help="dataset of prompts; the outputs are scored")
    parser.add_argument(
        "--data", action="append", metavar="PATH", help="dataset of texts to measure the loss on; can be repeated"
    )
    parser.add_argument("--steps", action="store_true", help="compare all saved checkpoints of one run")
    parser.add_argument(
        "--adapter-off", action="store_true", help="also compare with the base model, without the adapter"
    )
    _sampling_arguments(parser)
    _model_arguments(parser)
    parser.add_argument(
        "--trust-code-of",
        action="append",
        default=[],
        metavar="MODEL",
        help="run the code that comes with this model; can be repeated",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the comparison to a .md or .json file")
    parser.set_defaults(command=commands.compare_models)


def _export_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "export", parents=[common], help="export a model to Hugging Face, GGUF or a Space and verify it"
    )
    parser.add_argument("checkpoint", metavar="model", help=MODEL)
    _override_argument(parser, "export.weights=q8_0")
    parser.add_argument("--to", choices=("hf", "gguf", "space"), help="the format (default hf)")
    parser.add_argument("--weights", choices=("f32", "f16", "bf16", "q8_0"), help="type of the stored weights")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write; default: a new run in checkpoints/")
    parser.add_argument("--push", metavar="OWNER/NAME", help="push to this Hub repository")
    parser.add_argument("--public", action="store_true", help="create the repository as public")
    parser.add_argument(
        "--dry-run", action="store_true", help="show compatibility and the files, without writing anything"
    )
    _trust_argument(parser)
    parser.set_defaults(command=commands.export)


def _replay_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "replay", parents=[common], help="train a model again: its run and all runs it was built from"
    )
    parser.add_argument("checkpoint", metavar="model", help="a run, its name, or its model's folder")
    parser.add_argument("--name", help="name of the new run (default <name>-replay)")
    parser.add_argument("--dry-run", action="store_true", help="write the recipe and show its plan, without running it")
    parser.add_argument("--resume", action="store_true", help="resume an interrupted replay")
    _trust_recipe_argument(parser)
    parser.set_defaults(command=commands.replay)


def _look_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "look", parents=[common], help="look inside a model: attention, heads, residual stream, logit lens"
    )
    parser.add_argument("checkpoint", metavar="model", help=MODEL)
    parser.add_argument("--against", metavar="MODEL", help="compare with this model, such as the base of a tuned one")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", metavar="TEXT", help="the text that the model reads")
    text.add_argument("--prompt-file", type=Path, metavar="FILE", help="a file with the text")
    parser.add_argument("--steps", action="store_true", help="also follow the heads over all checkpoints of the run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write; default: look/ in the run's folder")
    _model_arguments(parser)
    parser.set_defaults(command=study_commands.look)


def _sweep_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "sweep", parents=[common], help="run a recipe for several values of its keys, with the same seeds, and compare"
    )
    parser.add_argument("recipe", help="a recipe's name or file, or a run's folder")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=v1,v2",
        help="keys to compare, each with its values, for example optimizer.learning_rate=0.001,0.003; key=value "
        "changes the recipe for all; a comma inside [], {} or quotes belongs to its value",
    )
    parser.add_argument("--preset", metavar="NAME", help=f"a grid derived from the recipe: {PRESETS}")
    _study_arguments(parser)
    parser.set_defaults(command=study_commands.sweep)


def _duel_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "duel", parents=[common], help="compare two recipes with the same seeds, and say whether one is better"
    )
    parser.add_argument("recipe", help="a recipe's name or file, or a run's folder")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="recipe | key=a,b",
        help="the second recipe, or a key with two values; key=value changes the recipe for both",
    )
    parser.add_argument(
        "--by", choices=("tokens", "time", "both"), default="both", help="what is held equal (default both)"
    )
    _study_arguments(parser)
    parser.set_defaults(command=study_commands.duel)


def _study_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each configuration: seed, seed + 1, ...")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time; they share the cores")
    parser.add_argument("--measure", metavar="NAME", help="the result to compare by; default: the held-out one")
    parser.add_argument("--name", help="name of its folder in checkpoints/; the same name continues it")
    parser.add_argument("--dry-run", action="store_true", help="check all recipes and show the plan only")
    parser.add_argument("--retry-failed", action="store_true", help="also run again what failed before")
    _trust_recipe_argument(parser)


def _study_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "study", parents=[common], help="run an experiment that explains itself; without a name, list them"
    )
    parser.add_argument("name", nargs="?", help="an experiment's name; default: list all")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="options of the experiment to change"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what it does and its options, without running it")
    parser.add_argument("--overwrite", action="store_true", help="replace the study of the same name")
    parser.add_argument("--in-folder", type=Path, help=argparse.SUPPRESS)  # the process that a study runs in
    parser.set_defaults(command=study_commands.study)


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe's name or file, or a run's folder")
    _override_argument(parser, "train.max_steps=500")


def _override_argument(parser: argparse.ArgumentParser, example: str) -> None:
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help=f"recipe keys to change, for example {example}"
    )


def _sampling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="maximum length of an output, in tokens")
    parser.add_argument("--temperature", type=float, metavar="X", help="sampling temperature; 0: greedy")
    parser.add_argument("--seed", type=int, metavar="N", help="random seed; the same seed gives the same output")


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where the model runs")
    _trust_argument(parser)


def _trust_recipe_argument(parser: argparse.ArgumentParser) -> None:
    text = "allow the reward functions and task files named in the recipe of a run folder"
    parser.add_argument("--trust-recipe", action="store_true", help=text)


def _trust_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


if __name__ == "__main__":
    sys.exit(main())
