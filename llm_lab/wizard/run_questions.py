"""What to do with a run, also right after it has ended: resume it, chat with it, train the next stage, look at it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from llm_lab.errors import LabError
from llm_lab.estimate.formatting import size
from llm_lab.recipe.eval import EVAL
from llm_lab.recipe.export import EXPORT
from llm_lab.recipe.merge import MERGE
from llm_lab.recipe.registry import STAGES, stage_of
from llm_lab.runs.entries import describe_folder
from llm_lab.runs.folder import ROOT, RunFolder, is_reward_model, list_runs, runs_named
from llm_lab.runs.housekeeping import check_rename, plan_removal

from .home import (
    AFTER,
    RESUME_SWEEP_WHY,
    RESUME_WHY,
    RUNS,
    START_OVER_WHY,
    can_resume,
    can_resume_sweep,
    parts_done,
    progress_of,
)
from .model_questions import is_adapter, model_answers, pick_run, runs_with_a_model, sweep_choices, trained_reward_model
from .questions import (
    BackTo,
    CheckpointDetails,
    Choice,
    Compare,
    DeleteRun,
    Flow,
    Leave,
    Line,
    Next,
    OpenChat,
    Pause,
    Question,
    RecipePlan,
    RenameRun,
    ReplayLineage,
    Screen,
    StartRun,
    StartStudy,
    Wait,
    yes_no,
)
from .review import NO, PLAN_WHY, START, YES, notes, start_question

MENU = "menu"
RENAME_WHY = "Adapters, recipes and later runs then refer to it by the new name."
DELETE_WHY = "The folder is deleted, with everything in it. This can't be undone."
KEEPING = (Choice("rename", "Rename it", why=RENAME_WHY), Choice("delete", "Delete it", why=DELETE_WHY))
HERE_WHY = "Above is what is known about it. Choose what to do with it, or go back to the list."
SWEEP_WHY = "All its runs, its tables and its report are in its folder."
NO_RUNS = "none yet; start with Train on my text"
CHAT_WHY = (
    "Any of your runs whose model generates text, a folder or GGUF file with a causal language model, or a name on the "
    "Hub."
)
RUNS_WHY = (
    "Any of your runs, a folder or GGUF file with a causal language model, or a model of the Hub that is already "
    "downloaded."
)
LINEAGE_WHY = "A run's lineage is every run that its model was built from. Replaying it trains all of them again."
NEXT_WHY = (
    "Usually: pretrain, SFT, then DPO (from preference pairs) or GRPO or PPO (from scored outputs). A reward model "
    "scores outputs where no rule can check them. An adapter can be used as it is; merging makes it one full model."
)


def ask_checkpoint(title: str, text: str, runs: list[RunFolder]) -> Flow[str]:
    """Ask for one of the user's runs, or for another model."""
    question = Question("checkpoint", text, why=CHAT_WHY, screen=Screen(title))
    return (yield from pick_run(question, runs, NO_RUNS))


def checkpoints(last: str | None = None) -> Flow[Next | None]:
    """Look at runs and models, and choose what to do with one. last: the run at which the pointer starts."""
    question = Question("checkpoint", "Which run or model?", default=last, why=RUNS_WHY, screen=Screen(RUNS))
    path = yield from pick_run(question, list_runs(), NO_RUNS, more=sweep_choices())
    is_sweep = (Path(path) / "sweep.json").is_file()
    run = next((run for run in list_runs() if str(run.path) == path), RunFolder(Path(path)) if is_sweep else None)
    here = f"next for {path}"  # the key contains the name, so that an answer about one run is not used for another
    picked = yield Question(
        here,
        "What next?",
        choices=tuple(_checkpoint_choices(run)),
        why=f"{SWEEP_WHY} {HERE_WHY}" if is_sweep else HERE_WHY,
        screen=Screen(RUNS, path, CheckpointDetails(path)),
    )
    if picked in (EVAL.name, EXPORT.name):
        return Next(picked, answers=model_answers("model.checkpoint", path), can_return=True)
    if picked == "look":
        return Next("look", answers=model_answers("look", path), can_return=True)
    if picked == "resume sweep":
        return Next("resume sweep", {"path": path}, can_return=True)
    if picked == "next" and run is not None:
        return Next("next steps", {"path": path}, can_return=True)
    if picked == "chat":
        yield OpenChat(path)
    elif picked == "time":
        yield Compare((path,), steps=True)
    elif picked == "lineage":
        if (yield ReplayLineage(path, only_plan=True)) and (yield _replay_question(path)):
            yield ReplayLineage(path)
            yield Pause()
    elif picked == "study" and run is not None:
        about = run.facts()["study"]
        yield StartStudy(about["experiment"], about["options"])
        yield Pause()
    elif picked == "rename" and run is not None:
        name = yield Question(f"rename {path}", "New name?", "text", default=run.path.name, why=RENAME_WHY,
                              allowed=f"A folder name in {ROOT}/.", screen=Screen(RUNS, path),
                              check=partial(_why_no_rename, path))  # fmt: skip
        if (yield RenameRun(path, name)):
            return Next("checkpoints", {"last": str(run.path.with_name(name.strip()))})
        yield BackTo(f"rename {path}")
    elif picked == "delete" and run is not None:
        if (yield _delete_question(path)):
            yield DeleteRun(path)
            yield BackTo("checkpoint")
    elif picked in ("resume", "replay") and run is not None:
        following = yield from start(str(run.recipe_path), resume=picked == "resume")
        if following:
            return following
    yield BackTo("checkpoint" if picked == "list" else here)
    return None


def _checkpoint_choices(run: RunFolder | None) -> list[Choice]:
    """Return what can be done with a run, or (None) with a model that is not one of the user's runs."""
    generates = run is None or (not trained_reward_model(run) and run in runs_with_a_model())
    choices = [Choice("list", "Back to the list")]
    if run is not None and (run.path / "sweep.json").is_file():
        sweep = describe_folder(run.path)
        resume = Choice("resume sweep", f"Resume this {sweep['kind']} ({parts_done(sweep)})", why=RESUME_SWEEP_WHY)
        return [*choices, *([resume] if can_resume_sweep(sweep) else []), *KEEPING]
    if run is not None and run.facts().get("study"):
        again = "Run it again with the same options" if run.status() == "done" else "Resume this study"
        return [*choices, Choice("study", again), *KEEPING]
    if run is not None and can_resume(run):
        choices.append(_resume_choice(run, "this run"))
    choices += [Choice("chat", "Chat with it")] if generates else []
    if run is not None and next_stages(run) and run.status() == "done":
        choices.append(Choice("next", "Continue with its model: the next stage", why=NEXT_WHY))
    choices += [Choice("look", "Look inside it")] if generates else []
    choices += [Choice(EVAL.name, "Evaluate it"), Choice(EXPORT.name, "Export it")] if generates else []
    if generates and run is not None and run.checkpoints():
        choices.append(Choice("time", "Compare its checkpoints on one prompt"))
    if run is not None and run.recipe_path.exists():
        choices.append(Choice("replay", "Run its recipe again as a new run"))
        choices.append(Choice("lineage", "Replay its whole lineage: this run and all before it", why=LINEAGE_WHY))
    return [*choices, *KEEPING] if run is not None else choices


def _replay_question(path: str) -> Question:
    """Return the question of whether to retrain a run's lineage, below its plan."""
    return yes_no(f"replay {path}", START, default=True, yes=YES, no=NO, why=f"{LINEAGE_WHY} {PLAN_WHY}",
                  screen=Screen("Replay", path), below_output=True)  # fmt: skip


def _delete_question(path: str) -> Question:
    """Return the question of whether to delete a run, below what that means. UserError if it is running."""
    removal = plan_removal(path)
    notes = [f"{note[0].upper()}{note[1:]}." for note in removal.notes]
    lines = [f"{removal.path}/: {size(removal.bytes)}", *notes]
    return yes_no(f"delete {path}", "Delete it?", default=False, why=DELETE_WHY,
                  screen=Screen(RUNS, path, lines=tuple(map(Line, lines))))  # fmt: skip


def _why_no_rename(path: str, name: str) -> str | None:
    """Return why a run can't have a name, or None."""
    if not name.strip():
        return "A name is required."
    try:
        check_rename(path, name.strip())
    except LabError as error:
        return str(error)
    return None


def _how_far(run: RunFolder) -> str:
    share = progress_of(run)
    return "" if share is None else f" ({100 * share:.0f} %)"


def _resume_choice(run: RunFolder, what: str) -> Choice:
    if run.starts_over():
        return Choice("resume", f"Start {what} again", why=START_OVER_WHY)
    return Choice("resume", f"Resume {what}{_how_far(run)}", why=RESUME_WHY)


def resume(path: str) -> Flow[Next | None]:
    """Show what remains of a run, and resume it after a yes."""
    return (yield from start(str(RunFolder(Path(path)).recipe_path), resume=True))


def _about_the_end(run: RunFolder) -> tuple[str, ...]:
    """Return why a run ended, if it failed, and where a resumed one starts."""
    facts = run.facts()
    why = [f"it failed: {facts['error']}"] if facts.get("error") else []
    return (*why, *([START_OVER_WHY.rstrip(".")] if run.starts_over() else []))


def chat_with(path: str) -> Flow[None]:
    """Chat with a model."""
    yield OpenChat(path)


def start(recipe: str, overrides: tuple[str, ...] = (), *, resume: bool = False) -> Flow[Next | None]:
    """Show the plan of a recipe file and start it after a yes; return the next flow, or None if it was not started."""
    from llm_lab.job import check, read_job

    if resume:
        remarks = _about_the_end(RunFolder(Path(recipe).parent))
    else:
        yield Wait("Reading the data ...")
        remarks = check(recipe, overrides).remarks
    wanted = yield start_question(RecipePlan(recipe, overrides, resume), notice=notes(remarks))
    if not wanted or not (yield StartRun(recipe, overrides, resume)):
        return None
    if resume:
        return Next(AFTER, {"path": str(Path(recipe).parent)})
    job = read_job(recipe, overrides)[0]
    return Next(AFTER, {"name": job.name if job else ""})


def after_a_run(name: str = "", path: str = "") -> Flow[Next | None]:
    """Offer the usual steps after a run that has just ended: the one in a folder, or with a name.

    Of several runs with the name, it is the newest one of this process: another terminal may have started one, too.
    """
    if not path and (named := runs_named(name)):
        own = [run for run in named if (run.facts().get("process") or {}).get("pid") == os.getpid()]
        return Next(AFTER, {"path": str((own or named)[-1].path)})
    if not path or not _next_choices(RunFolder(Path(path))):
        yield Pause()
        return None
    return (yield from next_steps(path))


def next_steps(path: str) -> Flow[Next | None]:
    """Ask what to do with a run's result."""
    run = RunFolder(Path(path))
    picked = yield Question(
        "next",
        f"What next with {run.path.name}?",
        choices=(*_next_choices(run), Choice(MENU, "Back to the menu")),
        why=NEXT_WHY,
        screen=Screen("next steps", path),
        below_output=True,
    )
    if picked == MENU:
        yield Leave()
    if picked == "chat":
        yield OpenChat(path)
        yield BackTo("next")
    if picked == "resume":
        return Next("resume", {"path": path}, can_return=True)
    model, reward = start_of(run)
    known = model_answers("model.checkpoint", model) if model else ()
    return Next(picked, {"reward": reward} if reward else {}, known, can_return=True)


def _next_choices(run: RunFolder) -> list[Choice]:
    """Return the usual next steps with a run, the most usual first."""
    if can_resume(run):
        choices = [_resume_choice(run, "it")]
        stage = stage_of(run.facts())
        chats = run.saved_models() and (stage is None or stage.writes_text)
        return [*choices, Choice("chat", "Chat with its last checkpoint")] if chats else choices
    if run.status() != "done":
        return []
    return [Choice(stage, _next_line(run, stage)) for stage in next_stages(run)]


def _next_line(run: RunFolder, stage: str) -> str:
    if stage == "chat":
        return "Chat with it"
    return (
        f"{STAGES[stage].label} with it as the reward model" if trained_reward_model(run) else STAGES[stage].next_step
    )


def next_stages(run: RunFolder) -> Sequence[str]:
    """Return the stages that usually follow a run, the most usual first."""
    stage = stage_of(run.facts())
    if stage is None:
        return ["chat"]
    if not stage.trains and is_reward_model(run.model_path):
        return []
    found = ["chat", *stage.next] if stage.writes_text and stage.next else list(stage.next)
    if stage.trains and stage.writes_text and is_adapter(run.path):
        found.insert(1, MERGE.name)
    return found


def start_of(run: RunFolder) -> tuple[str | None, str | None]:
    """Return (model, reward model) that the next stage starts from; after a reward model, the model is its parent."""
    if not trained_reward_model(run):
        return str(run.path), None
    parent = (run.facts().get("parent") or {}).get("path")
    folder = Path(parent) if parent else None
    if folder is not None and folder.name == "model" and RunFolder(folder.parent).facts():
        parent = str(folder.parent)
    return parent, str(run.path)
