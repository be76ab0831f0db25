"""The commands. Each reads its words, calls the layer that does the work, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lab import __version__
from llm_lab.recipe.errors import LabError, MachineError, Problem, UserError

DONE, OUR_FAULT, WRONG_INPUT, STOPPED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `llm-lab`; returns the exit code."""
    arguments = parse(argv)
    try:
        return arguments.command(arguments) or DONE
    except LabError as error:
        if arguments.debug:
            raise
        from llm_lab.ui.console import print_error

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
            from llm_lab.ui.console import print_error

            print_error(trouble)
            return trouble.exit_code
        message = f"A fault of LLM Lab's: {type(error).__name__}: {error}\nAdd --debug for the traceback."
        print(message, file=sys.stderr)  # noqa: T201
        return OUR_FAULT


def _file_trouble(error: Exception) -> LabError | None:
    """Put into words what the system says of a file: what the user named, or a disk that is full."""
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = str(error.filename or "the disk")
        return MachineError(Problem(where, "it is full", mend="Make room; a run goes on with --resume."))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP) and error.filename:
        why = f"the system refuses it: {os.strerror(error.errno)}"
        return UserError(Problem(str(error.filename), why, mend="Name another, or change its permissions."))
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
    parser.set_defaults(command=_wizard)
    commands = parser.add_subparsers(title="commands", metavar="")

    run = commands.add_parser("run", parents=[common], help="replay a recipe")
    _recipe_arguments(run)
    run.add_argument("--dry-run", action="store_true", help="stop after the plan")
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    run.add_argument("--overwrite", action="store_true", help="replace the run of the same name")
    run.add_argument("--nproc", type=int, metavar="N", help="train with N processes, one a GPU")
    run.set_defaults(command=_run)

    check = commands.add_parser("check", parents=[common], help="say all that is wrong with a recipe")
    _recipe_arguments(check)
    check.set_defaults(command=_check)

    xray = commands.add_parser("xray", parents=[common], help="show a recipe's data as tokens, and which are learnt")
    _recipe_arguments(xray)
    xray.add_argument("--examples", type=int, default=2, metavar="N", help="how many of each set are shown (2)")
    xray.set_defaults(command=_xray)

    what = commands.add_parser("list", parents=[common], help="list recipes, data, parts or runs")
    what.add_argument("what", nargs="?", choices=("recipes", "data", "parts", "runs"), help="all, if left out")
    what.set_defaults(command=_list)

    copy = commands.add_parser("copy", parents=[common], help="take a recipe to edit")
    copy.add_argument("recipe", help="a recipe's name or file")
    copy.add_argument("file", type=Path, help="where to")
    copy.set_defaults(command=_copy)

    show = commands.add_parser("show", parents=[common], help="what a checkpoint is")
    show.add_argument("path", help="a run, a checkpoint or a Hugging Face folder")
    show.set_defaults(command=_show)

    chat = commands.add_parser("chat", parents=[common], help="talk to a model")
    chat.add_argument("checkpoint", help="a run, a Hugging Face folder, or a name on the Hub")
    chat.add_argument("--prompt", help="one answer, and out")
    chat.add_argument("--max-new-tokens", type=int, help="length of an answer, in tokens")
    chat.add_argument("--temperature", type=float, help="0: always the likeliest token")
    chat.add_argument("--seed", type=int, help="same seed, same answer")
    chat.add_argument("--device", choices=("cpu", "cuda"), help="where it runs")
    chat.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    chat.set_defaults(command=_chat)

    merge = commands.add_parser("merge", parents=[common], help="put a LoRA adapter into its base")
    merge.add_argument("adapter", help="a run that trained an adapter, or an adapter's folder")
    merge.add_argument("--out", type=Path, metavar="DIR", help="a plain folder to write; left out, a run of its own")
    merge.add_argument("--tolerance", type=float, help="largest difference of logits, relative to their size")
    merge.set_defaults(command=_merge)

    _eval_parser(commands, common)
    _compare_parser(commands, common)
    _export_parser(commands, common)
    _replay_parser(commands, common)

    schema = commands.add_parser("schema", parents=[common], help="the JSON Schema of recipes, for editors")
    schema.set_defaults(command=_schema)

    doctor = commands.add_parser("doctor", parents=[common], help="what this machine can do")
    doctor.set_defaults(command=_doctor)
    return parser


def _eval_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("eval", parents=[common], help="measure a model: loss, answers, speed, tasks")
    parser.add_argument("checkpoint", help="a run, a Hugging Face folder, or a name on the Hub")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example eval.max_tokens=500")
    parser.add_argument("--data", action="append", metavar="PATH", help="a text whose loss is measured; repeatable")
    parser.add_argument("--prompts", metavar="PATH", help="prompts that are answered and scored")
    parser.add_argument("--tasks", metavar="NAMES", help="tasks of lm-evaluation-harness, or YAML files, with commas")
    parser.add_argument("--limit", type=int, metavar="N", help="documents of each task, at most")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where it runs")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.set_defaults(command=_eval)


def _compare_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("compare", parents=[common], help="models side by side, on the same prompts and sets")
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
    parser.set_defaults(command=_compare)


def _export_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("export", parents=[common], help="a form for others to load, proven by loading it")
    parser.add_argument("checkpoint", help="a run, a Hugging Face folder, or a name on the Hub")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example export.weights=q8_0")
    parser.add_argument("--to", choices=("hf", "gguf"), help="the form; left out: hf")
    parser.add_argument("--weights", choices=("f32", "f16", "bf16", "q8_0"), help="how the weights are kept")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a folder to write; left out, a run of its own")
    parser.add_argument("--push", metavar="OWNER/NAME", help="send it to a repository on the Hub")
    parser.add_argument("--public", action="store_true", help="a repository that is made can be seen by all")
    parser.add_argument("--dry-run", action="store_true", help="show the verdict and the files, and write nothing")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.set_defaults(command=_export)


def _replay_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("replay", parents=[common], help="make a checkpoint again, from its line's beginning")
    parser.add_argument("checkpoint", help="a run, its name, or its model's folder")
    parser.add_argument("--name", help="the new pipeline's folder; left out, <name>-replay")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the recipe of the whole line and its plan, and stop"
    )
    parser.add_argument("--resume", action="store_true", help="go on with a replay that was stopped")
    parser.set_defaults(command=_replay)


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe's name or file, or a run's folder")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example train.max_steps=500")


def _wizard(arguments: argparse.Namespace) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            Problem(
                "llm-lab",
                "the wizard needs a terminal",
                mend="Without one: llm-lab run RECIPE [key=value ...].",
            )
        )
    from llm_lab.ui.wizard import run_wizard

    return run_wizard(wizard_actions(), debug=arguments.debug)


def wizard_actions() -> Any:
    """Return what the wizard has done for it."""
    from llm_lab.runner import list_recipes
    from llm_lab.ui.actions import Actions
    from llm_lab.ui.listing import recipe_summary

    return Actions(
        start=_start_run,
        chat=_start_chat,
        doctor=_print_doctor,
        show=_print_show,
        describe_data=_describe_data,
        write_config=_write_config,
        recipes=list_recipes,
        summary=recipe_summary,
        problems=_problems,
        describe_examples=_describe_examples,
        columns=_columns,
        check_function=_check_function,
        compare=_compare_models,
        replay=lambda checkpoint: _replay(parse(["replay", checkpoint])),
        xray=_read_tokens,
    )


def _problems(recipe: str, overrides: Sequence[str]) -> list[str]:
    """Return all that is wrong with a recipe."""
    from llm_lab.runner import read_job

    return [str(problem) for problem in read_job(recipe, overrides)[1]]


def _describe_data(source: Mapping[str, Any]) -> str:
    """Look at a data source of the wizard and say what was found."""
    from llm_lab.data.sources import look_at_source, open_source
    from llm_lab.data.streams import open_stream

    keys = {key: source[key] for key in ("subset", "split", "text_column") if source.get(key)}
    streaming = bool(source.get("streaming"))
    remark = look_at_source(source["path"], streaming=streaming, **keys)
    return remark or (open_stream if streaming else open_source)(source["path"], **keys).describe()


def _describe_examples(source: Mapping[str, Any], kind: str) -> Any:
    """Read a set of examples of the wizard and say what was recognised; of one on the Hub, look at its page."""
    from llm_lab.data.examples import look_at_examples, open_examples
    from llm_lab.ui.actions import FoundExamples

    path, keys = source["path"], {key: source[key] for key in ("subset", "split", "columns") if source.get(key)}
    remark = look_at_examples(path, kind=kind, **keys)
    if remark:
        return FoundExamples(remark)
    found = open_examples(path, kind=kind, **keys)
    return FoundExamples(found.description, found.examples[0].describe(), len(found.examples))


def _columns(source: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """Return the columns of a set of examples."""
    from llm_lab.data.examples import columns_of_set

    keys = {key: source[key] for key in ("subset", "split") if source.get(key)}
    return columns_of_set(source["path"], kind=kind, **keys)


def _check_function(spec: str) -> Any:
    """Look at a reward function of the user's, as file.py:function, without running it."""
    from llm_lab.rewards.python_file import find_function

    return find_function(spec)


def _compare_models(wanted: Any) -> int:
    """Compare as the wizard's Comparison says, in the words of the command."""
    words = ["compare", *wanted.checkpoints]
    words += [f"--prompt={prompt}" for prompt in wanted.prompts]  # a prompt may begin with a dash
    words += ["--steps"] if wanted.steps else []
    words += ["--adapter-off"] if wanted.adapter_off else []
    return _compare(parse(words))


def _read_tokens(recipe: Mapping[str, Any]) -> Any:
    """Return what a draft of the wizard reads, as tokens."""
    from llm_lab.hf.load import quiet_libraries
    from llm_lab.plan.resolve import resolve
    from llm_lab.stages.xray import xray_stages

    quiet_libraries()
    return xray_stages([resolve(recipe).recipe], specimens=1)


def _write_config(name: str, values: Mapping[str, Any]) -> Path:
    """Write a design of the wizard as configs/models/<name>/config.json."""
    from llm_lab.hf.design import write_design

    return write_design(Path("configs/models") / name, values)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.nproc is not None and "WORLD_SIZE" not in os.environ:
        return _run_in_processes(arguments)
    if arguments.dry_run:
        return _dry_run(arguments)
    return _start_run(arguments.recipe, arguments.overrides, resume=arguments.resume, overwrite=arguments.overwrite)


def _run_in_processes(arguments: argparse.Namespace) -> int:
    from llm_lab.runner import check
    from llm_lab.runs.processes import start_processes

    if arguments.nproc < 1:
        raise UserError(Problem("--nproc", "the number of processes", value=arguments.nproc, allowed="1 or more"))
    check(arguments.recipe, arguments.overrides)  # say what is wrong once, not once a process
    words = [sys.executable, "-m", "llm_lab.cli", "run", arguments.recipe, *arguments.overrides]
    words += [flag for flag in ("--resume", "--overwrite") if getattr(arguments, flag[2:])]
    return start_processes(words, arguments.nproc)


def _dry_run(arguments: argparse.Namespace) -> int:
    from llm_lab.plan.resolve import demand_device
    from llm_lab.runner import check, what_is_left
    from llm_lab.ui.messages import print_plan

    job, _ = check(arguments.recipe, arguments.overrides)
    if arguments.resume:
        job = what_is_left(job)
    for resolved in job.stages:
        print_plan(resolved)
    for resolved in job.stages:
        demand_device(resolved)
    return DONE


def _start_run(
    recipe: Any,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    ask: bool = False,
    show_plan: bool = True,
) -> int:
    """Show the plan, run, and say what came of it.

    ask: want a yes between plan and run, and raise Back without one. show_plan: False where it was seen already.
    """
    from llm_lab.runner import read_job, run, what_is_left
    from llm_lab.runs.display import Display
    from llm_lab.runs.processes import is_first_process
    from llm_lab.ui.console import say_wait
    from llm_lab.ui.messages import print_closing, print_plan
    from llm_lab.ui.progress import make_display
    from llm_lab.ui.prompts import Back, confirm

    first = is_first_process()
    if first:
        job, problems = read_job(recipe, overrides) if show_plan else (None, [])
        if job is not None and not problems:
            if resume:
                job = what_is_left(job)
            for resolved in job.stages:
                print_plan(resolved, derived=not ask)
            if ask and not confirm("Start now?", yes="Yes, start", no="No", above=20):
                raise Back
        say_wait("Getting ready ...")
    facts = run(recipe, overrides, resume=resume, overwrite=overwrite, display=make_display() if first else Display())
    if first:
        print_closing(facts)
    return {"stopped": STOPPED, "failed": OUR_FAULT}.get(facts["status"], DONE)


def _check(arguments: argparse.Namespace) -> int:
    from llm_lab.runner import check
    from llm_lab.ui.messages import print_checked

    job, remarks = check(arguments.recipe, arguments.overrides)
    print_checked(job.stages, remarks)
    return DONE


def _xray(arguments: argparse.Namespace) -> int:
    from llm_lab.runner import check
    from llm_lab.ui.console import say_wait
    from llm_lab.ui.xray import print_xray

    job, _ = check(arguments.recipe, arguments.overrides)
    say_wait("Reading the data ...")
    from llm_lab.hf.load import quiet_libraries
    from llm_lab.stages.xray import xray_stages

    quiet_libraries()
    print_xray(xray_stages([resolved.recipe for resolved in job.stages], specimens=arguments.examples))
    return DONE


def _list(arguments: argparse.Namespace) -> int:
    from llm_lab.runner import list_recipes
    from llm_lab.ui.listing import print_listing

    print_listing(arguments.what, list_recipes())
    return DONE


def _copy(arguments: argparse.Namespace) -> int:
    from llm_lab.runner import find_recipe

    source, target = find_recipe(arguments.recipe), arguments.file
    if source.is_dir():
        source /= "recipe.yaml"
    if not source.is_file():
        raise UserError(Problem(str(source), "there is no such recipe", mend="`llm-lab list recipes`"))
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise UserError(Problem(str(target), "this file exists, and is not overwritten", mend="Name another."))
    if not target.parent.is_dir():
        raise UserError(Problem(str(target.parent), "there is no such folder"))
    shutil.copyfile(source, target)
    print(f"{source} -> {target}\nEdit it, then: llm-lab run {target}")  # noqa: T201
    return DONE


def _print_show(path: str) -> int:
    from llm_lab.hf.adapter import weights_digest
    from llm_lab.runs.lineage import find_traced
    from llm_lab.ui.checkpoint import print_checkpoint

    print_checkpoint(path, find_traced(path), digest_of=weights_digest)
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    return _print_show(arguments.path)


def _chat(arguments: argparse.Namespace) -> int:
    settings = {
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
    }
    return _start_chat(
        arguments.checkpoint,
        prompt=arguments.prompt,
        settings={key: value for key, value in settings.items() if value is not None},
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
    )


def _start_chat(
    checkpoint: str,
    *,
    prompt: str | None = None,
    settings: dict[str, Any] | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> int:
    from llm_lab.ui.console import say_wait

    say_wait(f"Loading {checkpoint} ...")
    from llm_lab.runner import load
    from llm_lab.stages.chat import ChatSession, ChatSettings
    from llm_lab.stages.chat_beside import Beside
    from llm_lab.ui.chat_screen import answer_once, run_chat

    chosen = ChatSettings(**(settings or {}))

    def open_session(name: str) -> ChatSession:
        model, tokenizer = load(name, device=device, trust_remote_code=trust_remote_code)
        return ChatSession(model, tokenizer, name=name, settings=chosen)

    session = open_session(checkpoint)
    if prompt is not None:
        answer_once(session, prompt)
    else:
        run_chat(session, load=open_session, beside=Beside(open_session, trust_remote_code=trust_remote_code))
    return DONE


def _merge(arguments: argparse.Namespace) -> int:
    if arguments.out is None:
        from llm_lab.runs.folder import find_model

        folder = find_model(arguments.adapter)
        recipe = {"stage": "merge", "name": _merged_name(folder), "device": "auto"}
        recipe |= {"model": {"checkpoint": str(folder)}, "merge": {"tolerance": arguments.tolerance}}
        return _start_run(recipe)
    from llm_lab.ui.console import say_wait
    from llm_lab.ui.progress import make_display

    say_wait(f"Loading {arguments.adapter} ...")
    from llm_lab.stages.merge import merge_into

    merge_into(
        arguments.adapter,
        arguments.out,
        make_display(),
        tolerance=arguments.tolerance,
    )
    print(f"The whole model: {arguments.out}/\nTalk to it: llm-lab chat {arguments.out}")  # noqa: T201
    return DONE


def _merged_name(folder: Path) -> str:
    """Return the name of the run that merges an adapter: that of the run that trained it, and what was done."""
    return f"{_line_name(folder)}-merged"


def _line_name(folder: Path) -> str:
    """Return a name for what is made of a model: that of the runs that it stands in, or its folder's."""
    import re

    from llm_lab.runs.folder import RunFolder

    parents = [folder, *folder.resolve().parents]
    runs = [parent.name for parent in parents[:4] if RunFolder(parent).facts()]
    name = "-".join(reversed(runs)) or folder.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:80]


def _eval(arguments: argparse.Namespace) -> int:
    from llm_lab.plan.resolve import demand_device
    from llm_lab.runner import check
    from llm_lab.runs.folder import find_checkpoint
    from llm_lab.ui.console import say_wait
    from llm_lab.ui.evaluation import print_evaluation
    from llm_lab.ui.progress import make_display

    checkpoint = find_checkpoint(arguments.checkpoint)
    recipe: dict[str, Any] = {
        "stage": "eval",
        "device": arguments.device or "auto",
        "model": {"checkpoint": checkpoint},
    }
    if arguments.data:
        recipe["data"] = [{"path": path} for path in arguments.data]
    if arguments.prompts:
        recipe["score"] = {"path": arguments.prompts}
    if arguments.tasks or arguments.limit:
        names = [name.strip() for name in (arguments.tasks or "").split(",") if name.strip()]
        recipe["tasks"] = {"names": names, "limit": arguments.limit}
    job, remarks = check(recipe, arguments.overrides)
    resolved = job.stages[0]
    demand_device(resolved)
    display = make_display()
    for remark in remarks:
        display.notice(remark)
    say_wait(f"Loading {arguments.checkpoint} ...")
    from llm_lab.stages.eval import evaluate

    try:
        measured = evaluate(resolved.recipe, display, trust_remote_code=arguments.trust_remote_code)
    finally:
        display.end()
    print_evaluation(measured)
    return DONE


def _compare(arguments: argparse.Namespace) -> int:
    drawing = {key: getattr(arguments, key) for key in ("max_new_tokens", "temperature", "seed")}
    return _start_compare(
        arguments.checkpoints,
        prompts=arguments.prompt or (),
        prompt_set=arguments.prompts,
        data=arguments.data or (),
        steps=arguments.steps,
        adapter_off=arguments.adapter_off,
        settings={key: value for key, value in drawing.items() if value is not None},
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        out=arguments.out,
    )


def _start_compare(
    names: Sequence[str],
    *,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    out: Path | None = None,
    **what: Any,
) -> int:
    """Compare checkpoints, show it, and write it where `out` says. what: as stages.compare.compare takes it."""
    from functools import partial

    from llm_lab.runs.comparison import demand_place, write_comparison
    from llm_lab.ui.console import say_wait

    if out is not None:
        demand_place(out)
    say_wait("Getting ready ...")
    from llm_lab.runner import load
    from llm_lab.stages.compare import SETTINGS, compare
    from llm_lab.ui.compare_screen import print_comparison
    from llm_lab.ui.progress import make_display

    display = make_display()
    try:
        found = compare(
            names,
            load=partial(load, device=device, trust_remote_code=trust_remote_code),
            settings=dataclasses.replace(SETTINGS, **(settings or {})),
            trust_remote_code=trust_remote_code,
            display=display,
            **what,
        )
    finally:
        display.end()
    print_comparison(found)
    if out is not None:
        write_comparison(out, found)
        print(f"Written: {out}")  # noqa: T201
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    recipe = _export_recipe(arguments)
    if arguments.dry_run:
        return _foresee_export(recipe, arguments)
    if arguments.out is None and arguments.trust_remote_code:
        why = "a run's recipe never says to run code that comes with a model"
        raise UserError(Problem("--trust-remote-code", why, mend="Name a folder to write with --out."))
    if arguments.out is None:
        return _start_run(recipe, arguments.overrides, resume=_waits_to_be_sent(recipe, arguments.overrides))
    form = _resolve_export(recipe, arguments)
    if form.export.push:
        why = "what is sent is kept as a run, so that a push that breaks can be taken up again"
        raise UserError(Problem("--out", why, value=arguments.out, mend="Leave --out out, or send it later."))
    from llm_lab.ui.console import say_wait
    from llm_lab.ui.progress import make_display

    say_wait(f"Loading {arguments.checkpoint} ...")
    from llm_lab.stages.export import demand_proof, export_into

    exported = export_into(
        form.model.checkpoint,
        arguments.out,
        make_display(),
        to=form.export.to,
        weights=form.export.weights,
        tolerance=form.export.tolerance,
        seed=form.seed,
        trust_remote_code=arguments.trust_remote_code,
    )
    demand_proof(exported)
    print(f"Exported, {exported.proof.verdict}: {exported.record()['path']}")  # noqa: T201
    return DONE


def _waits_to_be_sent(recipe: Mapping[str, Any], overrides: Sequence[str]) -> bool:
    """Tell whether the same export was made before and its push broke: it is taken up then."""
    from llm_lab.runner import read_job, what_is_left
    from llm_lab.runs.folder import runs_named

    runs = runs_named(recipe["name"])
    if not runs or not recipe["export"].get("push"):
        return False
    from llm_lab.stages.push import is_unsent

    if not is_unsent(runs[-1]):
        return False
    job, _ = read_job(recipe, overrides)
    try:
        return job is not None and what_is_left(job) is not None
    except UserError:  # another export by the same name
        return False


def _export_recipe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe that the words of `export` stand for."""
    from llm_lab.runs.folder import find_checkpoint

    folder = find_checkpoint(arguments.checkpoint)
    said = {"to": arguments.to, "weights": arguments.weights, "push": arguments.push}
    form = {key: value for key, value in said.items() if value is not None}
    form |= {"private": False} if arguments.public else {}
    name = f"{_line_name(Path(folder))}-{arguments.to or 'hf'}"
    return {"stage": "export", "name": name, "device": "auto", "model": {"checkpoint": folder}, "export": form}


def _resolve_export(recipe: Mapping[str, Any], arguments: argparse.Namespace) -> Any:
    from llm_lab.runner import check

    return check(recipe, arguments.overrides)[0].stages[0].recipe


def _foresee_export(recipe: Mapping[str, Any], arguments: argparse.Namespace) -> int:
    """Say what an export will load in and which files it has; write nothing."""
    form = _resolve_export(recipe, arguments).export
    from llm_lab.stages.export_plan import plan_export
    from llm_lab.stages.push import describe_push

    plan = plan_export(
        recipe["model"]["checkpoint"], to=form.to, weights=form.weights, trust_remote_code=arguments.trust_remote_code
    )
    lines = [f"{plan.folder} as {plan.to}, {plan.weights}: {plan.describe()}", *plan.remarks]
    if form.push:
        lines += describe_push(form.push, plan.files, private=form.private)
    else:
        lines += [f"  {name}" + (f"  {size:,} bytes" if size else "") for name, size in plan.files]
        lines += ["Nothing was written."]
    print("\n".join(lines))  # noqa: T201
    return DONE


def _replay(arguments: argparse.Namespace) -> int:
    from llm_lab.hf.adapter import weights_digest
    from llm_lab.runner import check
    from llm_lab.runs.folder import runs_named
    from llm_lab.runs.replay import compare, compose, write_outcome, write_recipe
    from llm_lab.runs.scores import write_pipeline_report
    from llm_lab.ui.console import say_wait
    from llm_lab.ui.replay import print_outcome, print_replay

    say_wait(f"Reading the line of {arguments.checkpoint} ...")
    replay = compose(arguments.checkpoint, name=arguments.name, digest_of=weights_digest)
    job, _ = check(replay.recipe)
    from llm_lab.stages.fingerprints import changed_data

    changed = [
        f"{run.path}: {told}"
        for resolved, run in zip(job.stages, replay.runs.values(), strict=True)
        for told in changed_data(resolved.recipe, run.facts())
    ]
    recipe = write_recipe(replay)
    print_replay(replay, recipe, changed)
    if arguments.dry_run:
        return _dry_run(argparse.Namespace(recipe=str(recipe), overrides=[], resume=arguments.resume))
    code = _start_run(str(recipe), resume=arguments.resume)
    if code == DONE:
        outer = runs_named(replay.recipe["name"])[-1]
        outcomes = compare(replay, outer, digest_of=weights_digest)
        write_outcome(replay, outer, outcomes)
        write_pipeline_report(outer)
        print_outcome(replay, outer.path, outcomes)
    return code


def _schema(arguments: argparse.Namespace) -> int:
    import json

    from llm_lab.recipe.tables import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))  # noqa: T201
    return DONE


def _print_doctor() -> int:
    from llm_lab.stages.doctor import examine
    from llm_lab.ui.listing import print_doctor

    print_doctor(examine())
    return DONE


def _doctor(arguments: argparse.Namespace) -> int:
    return _print_doctor()


if __name__ == "__main__":
    sys.exit(main())
