"""The commands for comparisons and experiments: sweep, duel, look and study."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.errors import DONE, INTERNAL_ERROR, STOPPED, Problem, UserError
from llm_lab.terminal.consent import with_consent
from llm_lab.terminal.console import print_text
from llm_lab.terminal.progress import show_progress

from .documents import Document, results_document, sweep_plan_document

if TYPE_CHECKING:
    from llm_lab.runs.folder import RunFolder
    from llm_lab.studies.duel_report import DuelResult
    from llm_lab.studies.results import SweepResult


def look(arguments: argparse.Namespace) -> int:
    """Look inside a model and write the report."""
    text = arguments.prompt
    if arguments.prompt_file is not None:
        text = _read_text(arguments.prompt_file)
    return start_look(
        arguments.checkpoint,
        text=text,
        against=arguments.against,
        steps=arguments.steps,
        out=arguments.out,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
    )


def _read_text(file: Path) -> str:
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(Problem("--prompt-file", "it is not UTF-8 text", value=file)) from None
    except OSError as error:
        raise UserError(Problem("--prompt-file", error.strerror or str(error), value=file)) from None


def start_look(
    checkpoint: str,
    *,
    device: str | None = None,
    show: Callable[[Callable[[], None]], None] = lambda draw: draw(),
    **options: Any,
) -> int:
    """Look inside a model, show the summary and print the path of the report.

    show: receives the function that prints. options: as for looking.look.look.
    """
    from llm_lab.terminal.console import print_waiting

    print_waiting("Preparing ...")
    from llm_lab.looking.look import look
    from llm_lab.runner import load
    from llm_lab.terminal.look_view import print_look

    with show_progress() as listener:
        found = look(checkpoint, load=partial(load, device=device), listener=listener, **options)
    show(partial(print_look, found))
    return DONE


def study(arguments: argparse.Namespace) -> int | Document:
    """Run an experiment; without a name, list the experiments."""
    from llm_lab.studies.experiment_files import find_experiment, list_experiments, read_values
    from llm_lab.terminal.study_view import print_experiment, print_experiments

    if arguments.in_folder is not None:
        return _run_study(arguments.in_folder)
    if arguments.name is None:
        if arguments.json:
            known = [(one, one.name, one.title, one.summary, one.error) for one in list_experiments()]
            names = ("name", "title", "summary", "error")
            return Document({"experiments": [dict(zip(names, texts, strict=True)) for _, *texts in known]})
        print_experiments(list_experiments())
        return DONE
    experiment = find_experiment(arguments.name)
    options = read_values(experiment, arguments.overrides)
    if arguments.dry_run and arguments.json:
        shown = {"name": experiment.name, "title": experiment.title, "summary": experiment.summary}
        return Document({**shown, "options": options})
    if arguments.dry_run:
        print_experiment(experiment, options)
        return DONE
    folder, code = _run_experiment(experiment.name, options, overwrite=arguments.overwrite, debug=arguments.debug)
    return results_document(folder.path, code) if arguments.json else _show_study(folder, code)


def start_study(name: str, options: Mapping[str, Any]) -> int:
    """Run an experiment in a process of its own, and print the path of its report. options: all or some, as values."""
    return _show_study(*_run_experiment(name, options))


def _run_experiment(
    name: str, options: Mapping[str, Any], *, overwrite: bool = False, debug: bool = False
) -> tuple[RunFolder, int]:
    from llm_lab.studies import study_process
    from llm_lab.studies.experiment_files import check_values, find_experiment
    from llm_lab.terminal.study_view import print_experiment

    experiment = find_experiment(name)
    options = check_values(experiment, options)
    folder, resumes = study_process.open_study(experiment, options, overwrite=overwrite)
    print_experiment(experiment, options)
    print_text(f"{'Resumes' if resumes else 'Runs in'} {folder.path}")
    return folder, study_process.start_study(folder, debug=debug)


def _show_study(folder: RunFolder, code: int) -> int:
    from llm_lab.terminal.study_view import print_study_end

    if code in (DONE, STOPPED) and folder.facts():
        print_text("")
        print_study_end(folder)
    return code


def _run_study(folder: Path) -> int:
    """Run the study of a folder in this process."""
    from llm_lab.runs.folder import RunFolder
    from llm_lab.studies.child_run import stop_with_parent
    from llm_lab.studies.study_process import run_study

    if not folder.is_dir():
        raise UserError(Problem(str(folder), "there is no such folder"))
    stop_with_parent()
    with show_progress() as listener:
        run_study(RunFolder(folder), listener)
    return DONE


# --- sweeps


def sweep(arguments: argparse.Namespace) -> int | Document:
    """Run a recipe for each value of some keys and each seed, and compare the results."""
    from llm_lab.studies.sweep import plan_sweep

    planned = plan_sweep(
        arguments.recipe,
        arguments.overrides,
        seeds=arguments.seeds,
        name=arguments.name,
        measure=arguments.measure,
        preset=arguments.preset,
        command=_command_again(arguments, "sweep", arguments.recipe),
    )
    return _answer(arguments, planned, start_sweep(planned, **_how_to_run(arguments)))


def _how_to_run(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("jobs", "retry_failed", "dry_run", "trust_recipe")}


def _answer(arguments: argparse.Namespace, planned: Any, code: int) -> int | Document:
    if not arguments.json:
        return code
    return sweep_plan_document(planned) if arguments.dry_run else results_document(planned.folder, code)


def start_sweep(
    sweep: Any,
    *,
    jobs: int = 1,
    dry_run: bool = False,
    trust_recipe: bool = False,
    show_plan: bool = True,
    **options: Any,
) -> int:
    """Show the plan of a sweep, run what remains of it, and show its table. Returns 1 if any of its runs failed.

    options: retry_failed.
    """
    from llm_lab.studies.sweep_report import write_sweep_report
    from llm_lab.terminal.sweep_screen import print_sweep_end

    if show_plan:
        _show_sweep_plan(sweep, jobs, **options)
    _require_runnable(sweep, trust_recipe)
    if dry_run:
        return DONE
    outcome = _run_cells(sweep, jobs, **options)
    write_sweep_report(sweep)
    print_sweep_end(sweep, outcome, hints=show_plan)
    return _exit_code(outcome)


def plan_and_start_sweep(recipe: str, words: Sequence[str], *, seeds: int, preset: str | None = None) -> int:
    """Plan and run a sweep, as the command does, but without showing the plan again."""
    from llm_lab.studies.sweep import plan_sweep

    options = ["--preset", preset] if preset else []
    command = shlex.join(["llm-lab", "sweep", recipe, *words, *options, "--seeds", str(seeds)])
    planned = plan_sweep(recipe, words, seeds=seeds, preset=preset, command=command, numbered=True)
    return start_sweep(planned, show_plan=False)


def resume_sweep(folder: str) -> int:
    """Run what remains of a sweep or a duel, including failed runs, as its command does with --retry-failed."""
    from llm_lab.studies.sweep import open_to_resume

    found = open_to_resume(folder)
    if found.kind == "sweep":
        return start_sweep(found, retry_failed=True, show_plan=False)
    words = shlex.split(found.command)
    by = words[words.index("--by") + 1] if "--by" in words[:-1] else "both"
    return start_duel(found, by=by, retry_failed=True, show_plan=False)


def sweep_from_python(
    recipe: Any, words: Sequence[Any], *, jobs: int = 1, retry_failed: bool = False, **options: Any
) -> SweepResult:
    """Run a sweep as the command does; return its SweepResult. KeyboardInterrupt if it was stopped."""
    from llm_lab.studies.results import SweepResult
    from llm_lab.studies.sweep import plan_sweep

    planned = plan_sweep(recipe, _as_words(words), command="llm_lab.sweep(...)", **options)
    if start_sweep(planned, jobs=jobs, retry_failed=retry_failed) == STOPPED:
        raise KeyboardInterrupt
    return SweepResult(planned.folder)


def _as_words(words: Sequence[Any]) -> list[str]:
    """Return the comparison as words of the command line; {"key": [v1, v2]} is key=v1,v2."""
    from llm_lab.recipe.files import format_value

    found = []
    for word in words:
        if isinstance(word, Mapping):
            found += [f"{key}={','.join(map(format_value, values))}" for key, values in word.items()]
        else:
            found.append(word)
    return found


def _show_sweep_plan(sweep: Any, jobs: int, **more: Any) -> None:
    from llm_lab.studies.cells import state_of
    from llm_lab.terminal.sweep_screen import print_sweep_plan

    if jobs < 1:
        raise UserError(Problem("--jobs", "there must be at least one run at a time", value=jobs))
    print_sweep_plan(sweep, [state_of(cell, sweep.measure) for cell in sweep.cells_to_run()], jobs=jobs, **more)


def _run_cells(sweep: Any, jobs: int, **options: Any) -> Any:
    from llm_lab.studies.cells import run_cells
    from llm_lab.terminal.sweep_screen import SweepScreen

    sweep.write()
    with SweepScreen(sweep) as screen:
        cells = sweep.cells_to_run()
        return run_cells(sweep, cells, jobs=jobs, watch=screen, on_stop=screen.stopping, **options)


def _exit_code(outcome: Any) -> int:
    if outcome.stopped:
        return STOPPED
    return DONE if outcome.count("done", "running") == len(outcome.states) else INTERNAL_ERROR


def _require_runnable(sweep: Any, trust_recipe: bool) -> None:
    """Raise MachineError if this machine can't run a configuration; ask before code from a run's folder runs."""
    from llm_lab.recipe.resolve import require_device
    from llm_lab.recipe.trust import trusting_recipes
    from llm_lab.runner import require_trusted

    for job in sweep.jobs.values():
        for resolved in job.stages:
            require_device(resolved)
        with trusting_recipes(trust_recipe):
            with_consent(partial(require_trusted, job))


# --- duels


def duel(arguments: argparse.Namespace) -> int | Document:
    """Compare two recipes, or two values of a key, with the same seeds."""
    from llm_lab.studies.duel import plan_duel

    words = [word for word in arguments.overrides if "=" in word and not Path(word).exists()]
    others = [word for word in arguments.overrides if word not in words]
    if len(others) > 1:
        why = "a duel compares two recipes"
        raise UserError(Problem("duel", why, value=", ".join([arguments.recipe, *others])))
    planned = plan_duel(
        arguments.recipe,
        words,
        other=others[0] if others else None,
        seeds=arguments.seeds,
        name=arguments.name,
        measure=arguments.measure,
        by=arguments.by,
        command=_command_again(arguments, "duel", arguments.recipe),
    )
    return _answer(arguments, planned, start_duel(planned, by=arguments.by, **_how_to_run(arguments)))


def start_duel(
    duel: Any,
    *,
    by: str = "both",
    jobs: int = 1,
    dry_run: bool = False,
    trust_recipe: bool = False,
    show_plan: bool = True,
    **options: Any,
) -> int:
    """Show the plan of a duel, run what remains of it, and show its verdict. options: retry_failed."""
    from llm_lab.studies.duel import TOKENS, equal_time, with_checked_jobs
    from llm_lab.studies.duel_report import write_duel_report
    from llm_lab.studies.sweep_report import at_equal_time
    from llm_lab.terminal.sweep_screen import print_duel_end

    count = len(duel.cells_to_run()) // 2
    then = at_equal_time(count) if by != TOKENS else ""
    if show_plan:
        _show_sweep_plan(duel, jobs, then=then, **options)
    _require_runnable(duel, trust_recipe)
    if dry_run:
        return DONE
    outcome = _run_cells(duel, jobs, **options)
    timed = equal_time(duel) if by != TOKENS and _exit_code(outcome) == DONE else None
    if timed is not None and len(timed[0].configurations) > 2:
        write_duel_report(duel, TOKENS)
        duel = with_checked_jobs(timed[0])
        outcome = _run_cells(duel, jobs, **options)
    write_duel_report(duel, by)
    print_duel_end(duel, outcome, by, hints=show_plan)
    return _exit_code(outcome)


def plan_and_start_duel(recipe: str, words: Sequence[str], *, seeds: int, other: str | None = None) -> int:
    """Plan and run a duel, as the command does, but without showing the plan again."""
    from llm_lab.studies.duel import plan_duel

    command = shlex.join(["llm-lab", "duel", recipe, *([other] if other else []), *words, "--seeds", str(seeds)])
    planned = plan_duel(recipe, words, other=other, seeds=seeds, command=command, numbered=True)
    return start_duel(planned, show_plan=False)


def duel_from_python(
    recipe: Any,
    words: Sequence[Any],
    *,
    by: str = "both",
    jobs: int = 1,
    retry_failed: bool = False,
    **options: Any,
) -> DuelResult:
    """Run a duel as the command does; return its DuelResult. KeyboardInterrupt if it was stopped."""
    from llm_lab.studies.duel import plan_duel
    from llm_lab.studies.duel_report import DuelResult

    planned = plan_duel(recipe, _as_words(words), by=by, command="llm_lab.duel(...)", **options)
    if start_duel(planned, by=by, jobs=jobs, retry_failed=retry_failed) == STOPPED:
        raise KeyboardInterrupt
    return DuelResult(planned.folder)


def _command_again(arguments: argparse.Namespace, *words: str) -> str:
    """Return the given command without the arguments that apply to one call only."""
    names = ("preset", "seeds", "by", "jobs", "measure", "name")
    options = [(f"--{name}", getattr(arguments, name, None)) for name in names]
    defaults = (("--jobs", 1), ("--by", "both"))
    given = [[name, str(value)] for name, value in options if value is not None and (name, value) not in defaults]
    return shlex.join(["llm-lab", *words, *arguments.overrides, *(word for pair in given for word in pair)])
