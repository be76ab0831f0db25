"""The commands for models: show, chat, eval, compare, merge, export."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from llm_lab.errors import DONE, Problem, UserError
from llm_lab.events import Notice
from llm_lab.recipe.trust import allow, trusting_recipes
from llm_lab.terminal.consent import with_consent
from llm_lab.terminal.console import print_text
from llm_lab.terminal.progress import show_progress

from .documents import Document, show_document
from .recipe_commands import start_job, start_run


def show_checkpoint(arguments: argparse.Namespace) -> int | Document:
    """Show what a checkpoint is and where it comes from."""
    if arguments.json:
        return show_document(arguments.path, _folder_named(arguments.path))
    return print_show(arguments.path)


def _folder_named(path: str) -> Path | None:
    """Return the folder that a user names, in checkpoints/ or elsewhere, if it is there."""
    from llm_lab.runs.folder import find_run

    given = Path(path).expanduser()
    return given if given.exists() else find_run(path)


def print_show(path: str, *, heading: bool = True) -> int:
    """Show what a checkpoint is, and its lineage; for a study or a sweep, its results.

    heading: whether to print its name above and how to continue below; the wizard's page has both.
    """
    from llm_lab.estimate.cached_models import cached_folder
    from llm_lab.runs.folder import ROOT, RunFolder

    folder_named = _folder_named(path)
    if folder_named is not None:
        run = RunFolder(folder_named)
        if run.facts().get("study"):
            from llm_lab.terminal.study_view import print_study

            print_study(run, heading=heading)
            return DONE
        if (run.path / "sweep.json").is_file():
            from llm_lab.terminal.sweep_screen import print_sweep

            print_sweep(run.path, hints=heading)
            return DONE
    from llm_lab.hf.adapter import weights_digest
    from llm_lab.runs.lineage import find_traced
    from llm_lab.terminal.listing import print_checkpoint

    found = find_traced(path)
    folder = found if Path(found).exists() else str(cached_folder(found) or found)
    is_short = folder_named is not None and not Path(path).expanduser().exists() and folder_named.is_relative_to(ROOT)
    name = folder_named.relative_to(ROOT).as_posix() if is_short and folder_named is not None else path
    print_checkpoint(name, folder, digest_of=weights_digest, heading=heading)
    return DONE


def chat(arguments: argparse.Namespace) -> int:
    """Chat with a model, or print one answer."""
    return start_chat(
        arguments.checkpoint,
        prompt=arguments.prompt,
        system=arguments.system,
        settings=_sampling_settings(arguments),
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
    )


def _sampling_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    from llm_lab.chat.decoding import SETTINGS

    return {name: value for name in SETTINGS if (value := getattr(arguments, name, None)) is not None}


def start_chat(
    checkpoint: str,
    *,
    prompt: str | None = None,
    system: str | None = None,
    settings: dict[str, Any] | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Chat with a model; with a prompt, answer once. system: the system prompt.

    A model on this machine loads while the user types.
    """
    from llm_lab.chat.decoding import ChatSettings
    from llm_lab.runs.folder import find_checkpoint
    from llm_lab.terminal.chat_prompt import Loading
    from llm_lab.terminal.chat_screen import answer_once, run_chat
    from llm_lab.terminal.console import is_plain, is_terminal, print_waiting

    chosen = ChatSettings(**(settings or {}))
    is_here = Path(find_checkpoint(checkpoint)).exists()

    def open_session(name: str) -> Any:
        from llm_lab.chat.session import ChatSession
        from llm_lab.runner import load

        # The user's yes applies to the model that they named, not to those that the chat opens later.
        trusted = trust_remote_code and name == checkpoint
        model, tokenizer = load(name, device=device, trust_remote_code=trusted)
        session = ChatSession(model, tokenizer, name=name, settings=chosen)
        if prompt is None and "max_new_tokens" not in (settings or {}):
            session.leave_room()
        return session

    def open_first() -> Any:
        session = open_session(checkpoint)
        if system:
            session.set_system(system)
        return session

    @cache
    def side_by_side() -> Any:
        from llm_lab.evaluation.side_by_side import SideBySide

        return SideBySide(open_session)

    if is_here and prompt is None and is_terminal() and not is_plain():
        first = Loading(checkpoint, open_first)
    else:  # a download, and its errors, come before the prompt
        print_waiting(f"Loading {checkpoint} ...")
        first = open_first()
    if prompt is not None:
        answer_once(first, prompt)
    else:
        run_chat(first, load=open_session, side_by_side=side_by_side)
    return DONE


def evaluate(arguments: argparse.Namespace) -> int | Document:
    """Evaluate a checkpoint and store the results with it."""
    from llm_lab.job import check
    from llm_lab.recipe.resolve import require_device
    from llm_lab.terminal.console import print_waiting
    from llm_lab.terminal.results_view import print_evaluation

    job = check(_evaluation_recipe(arguments), arguments.overrides)
    recipe: Any = job.stages[0].recipe
    require_device(job.stages[0])
    print_waiting(f"Loading {arguments.checkpoint} ...")
    from llm_lab.stages.eval import evaluate

    def measure() -> dict[str, Any]:
        with show_progress() as listener:
            for remark in job.remarks:
                listener(Notice(remark))
            return evaluate(recipe, listener, trust_remote_code=arguments.trust_remote_code)

    allow(job.code())  # the user named it on the command line
    with trusting_recipes(arguments.trust_recipe):
        measured = with_consent(measure)
    if arguments.json:
        return Document(measured)
    print_evaluation(measured)
    return DONE


def _evaluation_recipe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe that the arguments of `eval` describe."""
    from llm_lab.recipe.eval import EVAL
    from llm_lab.runs.folder import find_checkpoint

    others = [word for word in arguments.overrides if "=" not in word]
    if others:
        fix = f"To compare models: llm-lab compare {shlex.join([arguments.checkpoint, *others])}"
        raise UserError(Problem("eval", "it evaluates one model at a time", value=others[0], fix=fix))
    if arguments.limit is not None and arguments.tasks is None:
        raise UserError(Problem("--limit", "requires --tasks", fix="Name the tasks: --tasks NAMES."))
    checkpoint = find_checkpoint(arguments.checkpoint)
    model = {"checkpoint": checkpoint}
    recipe: dict[str, Any] = {"stage": EVAL.name, "device": arguments.device or "auto", "model": model}
    if arguments.data:
        recipe["data"] = [{"path": path} for path in arguments.data]
    if arguments.prompts:
        recipe["score"] = {"path": arguments.prompts}
    if arguments.tasks is not None:
        names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
        recipe["tasks"] = {"names": names, "limit": arguments.limit}
    return recipe


def compare_models(arguments: argparse.Namespace) -> int | Document:
    """Compare models side by side."""
    compared = _compare(
        arguments.checkpoints,
        prompts=arguments.prompt or (),
        prompt_set=arguments.prompts,
        data=arguments.data or (),
        steps=arguments.steps,
        adapter_off=arguments.adapter_off,
        settings=_sampling_settings(arguments),
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        trust_code_of=arguments.trust_code_of,
        out=arguments.out,
    )
    if arguments.json:
        from llm_lab.runs.comparison import as_json

        return Document(json.loads(as_json(compared)))
    from llm_lab.terminal.compare_screen import print_comparison

    print_comparison(compared)
    return DONE


def start_compare(names: Sequence[str], *, show: Callable[[str, Callable[[], None]], None], **options: Any) -> int:
    """Compare checkpoints and show the result. show: receives the names and the printer. options: as for _compare."""
    compared = _compare(names, **options)
    from llm_lab.terminal.compare_screen import name_models, print_comparison

    show(name_models(compared), partial(print_comparison, compared))
    return DONE


def _compare(
    names: Sequence[str],
    *,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    out: Path | None = None,
    **options: Any,
) -> Any:
    """Compare checkpoints, and write the result to `out`. options: as for evaluation.compare.compare."""
    from llm_lab.runs.comparison import require_writable, write_comparison
    from llm_lab.terminal.console import print_waiting

    if out is not None:
        require_writable(out)
    print_waiting("Preparing ...")
    from llm_lab.evaluation.compare import SETTINGS, compare
    from llm_lab.runner import load

    with show_progress() as listener:
        found = compare(
            names,
            load=partial(load, device=device),
            settings=dataclasses.replace(SETTINGS, **(settings or {})),
            listener=listener,
            **options,
        )
    if out is not None:
        write_comparison(out, found)
        listener(Notice(f"Saved: {out}"))
    return found


def merge(arguments: argparse.Namespace) -> int:
    """Merge an adapter into its base, as a run or into a folder."""
    if arguments.out is None:
        from llm_lab.recipe.merge import MERGE
        from llm_lab.runs.folder import find_model

        folder = find_model(arguments.adapter)
        recipe = {
            "stage": MERGE.name,
            "name": f"{_name_from(folder)}-merged",
            "device": "auto",
            "model": {"checkpoint": str(folder)},
            MERGE.name: {"tolerance": arguments.tolerance},
        }
        return start_run(recipe)
    from llm_lab.terminal.console import print_waiting

    print_waiting(f"Loading {arguments.adapter} ...")
    from llm_lab.stages.merge import merge_into

    with show_progress() as listener:
        merge_into(arguments.adapter, arguments.out, listener, tolerance=arguments.tolerance)
    print_text(f"The merged model: {arguments.out}/\nChat with it: llm-lab chat {shlex.quote(str(arguments.out))}")
    return DONE


def _name_from(folder: Path) -> str:
    """Return a name for the result made from a model: the names of the runs that it is in, or of its folder."""
    from llm_lab.runs.folder import RunFolder, slug

    parents = [folder, *folder.resolve().parents]
    runs = [parent.name for parent in parents[:4] if RunFolder(parent).facts()]
    name = "-".join(reversed(runs)) or folder.resolve().name
    return slug(name)


def export(arguments: argparse.Namespace) -> int:
    """Export a checkpoint, verify it, and push it to the Hub if requested."""
    from llm_lab.job import check
    from llm_lab.runner import Start

    if arguments.out is None and arguments.trust_remote_code and not arguments.dry_run:
        why = "without --out, the export is a run with a recipe, and a recipe can't allow code that comes with a model"
        raise UserError(Problem("--trust-remote-code", why, fix="Name a folder to write with --out."))
    job = check(_export_recipe(arguments), arguments.overrides)
    recipe: Any = job.stages[0].recipe
    if arguments.dry_run:
        return _preview_export(recipe, arguments)
    _keep_card_answers(recipe.model.checkpoint, arguments)
    if arguments.out is None:
        return start_job(job, Start(resume=_push_is_pending(job)))
    if recipe.export.push:
        why = "--push writes a run in checkpoints/, so that it can be resumed"
        raise UserError(Problem("--out", why, value=arguments.out, fix="Leave out --out or --push."))
    from llm_lab.terminal.console import print_waiting

    print_waiting(f"Loading {arguments.checkpoint} ...")
    from llm_lab.runs.describe import VERDICTS
    from llm_lab.stages.export import export_into, require_verified

    with show_progress() as listener:
        exported = export_into(
            recipe.model.checkpoint,
            arguments.out,
            listener,
            to=recipe.export.to,
            weights=recipe.export.weights,
            tolerance=recipe.export.tolerance,
            seed=recipe.seed,
            trust_remote_code=arguments.trust_remote_code,
        )
    require_verified(exported)
    print_text(f"Exported, {VERDICTS[exported.verification.verdict]}: {exported.record()['path']}")
    return DONE


def _keep_card_answers(checkpoint: str, arguments: argparse.Namespace) -> None:
    """Store the arguments for the author, the license and the model, for this card and later ones."""
    from llm_lab.runs.card_answers import KEYS, keep_answers
    from llm_lab.runs.folder import run_of

    keep_answers(
        {key: getattr(arguments, key) for key in KEYS}, run_of(checkpoint) if Path(checkpoint).is_dir() else None
    )


def _export_recipe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe that the arguments of `export` describe."""
    from llm_lab.recipe.export import EXPORT
    from llm_lab.runs.folder import find_checkpoint

    folder = find_checkpoint(arguments.checkpoint)
    given = {"to": arguments.to, "weights": arguments.weights, "push": arguments.push}
    options = {key: value for key, value in given.items() if value is not None}
    options |= {"private": False} if arguments.public else {}
    name = f"{_name_from(Path(folder))}-{arguments.to or 'hf'}"
    model = {"checkpoint": folder}
    return {"stage": EXPORT.name, "name": name, "device": "auto", "model": model, EXPORT.name: options}


def _push_is_pending(job: Any) -> bool:
    """Return whether the same export was made before and its push failed, so that only the push remains."""
    from llm_lab.runner import what_is_left
    from llm_lab.runs.folder import runs_named

    runs = runs_named(job.name)
    if not runs or not job.stages[0].recipe.export.push:
        return False
    from llm_lab.export.push import is_unsent

    if not is_unsent(runs[-1]):
        return False
    try:
        return what_is_left(job) is not None
    except UserError:  # another export has this name
        return False


def _preview_export(recipe: Any, arguments: argparse.Namespace) -> int:
    """Show which programs will load an export and which files it has, without writing it."""
    from llm_lab.export.plan import plan_export
    from llm_lab.export.push import describe_push

    form = recipe.export
    plan = plan_export(
        recipe.model.checkpoint, to=form.to, weights=form.weights, trust_remote_code=arguments.trust_remote_code
    )
    lines = [f"{plan.folder} as {plan.to}, {plan.weights}: {plan.describe()}", *plan.remarks]
    if form.push:
        lines += describe_push(form.push, plan.files, private=form.private)
    else:
        lines += [f"  {name}" + (f"  {size:,} bytes" if size else "") for name, size in plan.files]
        lines += ["Nothing was written."]
    print_text("\n".join(lines))
    return DONE
