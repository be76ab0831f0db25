"""What the commands do that measure a model, compare it, take it away, and make it again."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lab.commands import DONE, dry_run, line_name, start_run
from llm_lab.errors import Problem, UserError
from llm_lab.events import Notice, TrainingEnded
from llm_lab.recipe.eval import EVAL
from llm_lab.recipe.export import EXPORT


def evaluate(arguments: argparse.Namespace) -> int:
    """Measure a checkpoint, and keep what was measured with it."""
    from llm_lab.recipe.resolve import require_device
    from llm_lab.runner import check
    from llm_lab.runs.folder import find_checkpoint
    from llm_lab.terminal.console import say_wait
    from llm_lab.terminal.progress import make_display
    from llm_lab.terminal.results_view import print_evaluation

    others = [word for word in arguments.overrides if "=" not in word]
    if others:
        fix = f"Several side by side: llm-lab compare {' '.join([arguments.checkpoint, *others])}"
        raise UserError(Problem("eval", "it measures one model at a time", value=others[0], fix=fix))
    checkpoint = find_checkpoint(arguments.checkpoint)
    recipe: dict[str, Any] = {
        "stage": EVAL.name,
        "device": arguments.device or "auto",
        "model": {"checkpoint": checkpoint},
    }
    if arguments.data:
        recipe["data"] = [{"path": path} for path in arguments.data]
    if arguments.prompts:
        recipe["score"] = {"path": arguments.prompts}
    if arguments.limit is not None and arguments.tasks is None:
        raise UserError(Problem("--limit", "it is of tasks, and none is named", fix="Name them: --tasks NAMES."))
    if arguments.tasks is not None:
        names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
        recipe["tasks"] = {"names": names, "limit": arguments.limit}
    job, remarks = check(recipe, arguments.overrides)
    resolved = job.stages[0]
    require_device(resolved)
    display = make_display()
    for remark in remarks:
        display(Notice(remark))
    say_wait(f"Loading {arguments.checkpoint} ...")
    from llm_lab.stages.eval import evaluate

    try:
        measured = evaluate(resolved.recipe, display, trust_remote_code=arguments.trust_remote_code)
    finally:
        display(TrainingEnded())
    print_evaluation(measured)
    return DONE


def compare_models(arguments: argparse.Namespace) -> int:
    """Set models side by side."""
    drawing = {key: getattr(arguments, key) for key in ("max_new_tokens", "temperature", "seed")}
    return start_compare(
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


def start_compare(
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

    from llm_lab.runs.comparison import require_place, write_comparison
    from llm_lab.terminal.console import say_wait

    if out is not None:
        require_place(out)
    say_wait("Getting ready ...")
    from llm_lab.evaluation.compare import SETTINGS, compare
    from llm_lab.runner import load
    from llm_lab.terminal.compare_screen import print_comparison
    from llm_lab.terminal.progress import make_display

    display = make_display()
    try:
        found = compare(
            names,
            load=partial(load, device=device, trust_remote_code=trust_remote_code),
            settings=dataclasses.replace(SETTINGS, **(settings or {})),
            trust_remote_code=trust_remote_code,
            listener=display,
            **what,
        )
    finally:
        display(TrainingEnded())
    print_comparison(found)
    if out is not None:
        write_comparison(out, found)
        print(f"Written: {out}")  # noqa: T201
    return DONE


def export(arguments: argparse.Namespace) -> int:
    """Write a checkpoint in a form for others, prove it, and send it where that is wanted."""
    recipe = _export_recipe(arguments)
    if arguments.dry_run:
        return _foresee_export(recipe, arguments)
    if arguments.out is None and arguments.trust_remote_code:
        why = "a run's recipe never says to run code that comes with a model"
        raise UserError(Problem("--trust-remote-code", why, fix="Name a folder to write with --out."))
    if arguments.out is None:
        return start_run(recipe, arguments.overrides, resume=_waits_to_be_sent(recipe, arguments.overrides))
    form = _resolve_export(recipe, arguments)
    if form.export.push:
        why = "what is sent is kept as a run, so that a push that breaks can be taken up again"
        raise UserError(Problem("--out", why, value=arguments.out, fix="Leave --out out, or send it later."))
    from llm_lab.terminal.console import say_wait
    from llm_lab.terminal.progress import make_display

    say_wait(f"Loading {arguments.checkpoint} ...")
    from llm_lab.stages.export import export_into, require_proof

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
    require_proof(exported)
    print(f"Exported, {exported.proof.verdict}: {exported.record()['path']}")  # noqa: T201
    return DONE


def _waits_to_be_sent(recipe: Mapping[str, Any], overrides: Sequence[str]) -> bool:
    """Tell whether the same export was made before and its push broke: it is taken up then."""
    from llm_lab.runner import read_job, what_is_left
    from llm_lab.runs.folder import runs_named

    runs = runs_named(recipe["name"])
    if not runs or not recipe["export"].get("push"):
        return False
    from llm_lab.export.push import is_unsent

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
    name = f"{line_name(Path(folder))}-{arguments.to or 'hf'}"
    return {"stage": EXPORT.name, "name": name, "device": "auto", "model": {"checkpoint": folder}, "export": form}


def _resolve_export(recipe: Mapping[str, Any], arguments: argparse.Namespace) -> Any:
    from llm_lab.runner import check

    return check(recipe, arguments.overrides)[0].stages[0].recipe


def _foresee_export(recipe: Mapping[str, Any], arguments: argparse.Namespace) -> int:
    """Say what an export will load in and which files it has; write nothing."""
    form = _resolve_export(recipe, arguments).export
    from llm_lab.export.plan import plan_export
    from llm_lab.export.push import describe_push

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


def replay(arguments: argparse.Namespace) -> int:
    """Make a checkpoint again, from the beginning of its line."""
    return start_replay(
        arguments.checkpoint, name=arguments.name, stop_after_plan=arguments.dry_run, resume=arguments.resume
    )


def start_replay(
    checkpoint: str, *, name: str | None = None, stop_after_plan: bool = False, resume: bool = False
) -> int:
    """Write the recipe of a checkpoint's whole line, run it, and hold what comes of it against the original."""
    from llm_lab.hf.adapter import weights_digest
    from llm_lab.runner import check
    from llm_lab.runs.folder import runs_named
    from llm_lab.runs.replay import compare, compose, write_outcome, write_recipe
    from llm_lab.runs.report import write_pipeline_report
    from llm_lab.terminal.console import say_wait
    from llm_lab.terminal.replay import print_outcome, print_replay

    say_wait(f"Reading the line of {checkpoint} ...")
    composed = compose(checkpoint, name=name, digest_of=weights_digest)
    job, _ = check(composed.recipe)
    from llm_lab.evaluation.self_eval import changed_data

    changed = [
        f"{run.path}: {told}"
        for resolved, run in zip(job.stages, composed.runs.values(), strict=True)
        for told in changed_data(resolved.recipe, run.facts())
    ]
    recipe = write_recipe(composed)
    print_replay(composed, recipe, changed)
    if stop_after_plan:
        return dry_run(str(recipe), resume=resume)
    code = start_run(str(recipe), resume=resume)
    if code == DONE:
        outer = runs_named(composed.recipe["name"])[-1]
        outcomes = compare(composed, outer, digest_of=weights_digest)
        write_outcome(composed, outer, outcomes)
        write_pipeline_report(outer)
        print_outcome(composed, outer.path, outcomes)
    return code
