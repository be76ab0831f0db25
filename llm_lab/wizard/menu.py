"""The flows behind the entries of the menu that set up no run: chat, compare, checkpoints, replay, doctor."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from llm_lab.errors import LabError
from llm_lab.recipe.eval import EVAL
from llm_lab.recipe.export import EXPORT
from llm_lab.recipe.merge import MERGE
from llm_lab.recipe.registry import STAGES, stage_of
from llm_lab.runs.folder import RunFolder, is_reward_model, list_runs, runs_named

from . import look_inside
from .home import EVALUATE, REPLAY, RUNS
from .model_design import design
from .model_questions import (
    WHY,
    generating_runs,
    is_adapter,
    model_answers,
    pick_run,
    runs_with_a_model,
    trained_reward_model,
)
from .questions import (
    BackTo,
    CheckpointDetails,
    Choice,
    Compare,
    Flow,
    Next,
    OpenChat,
    Pause,
    Question,
    RecipePlan,
    ReplayLineage,
    RunDoctor,
    Screen,
    StartRun,
    StartStudy,
)
from .recipe_question import ask_recipe
from .review import start_question
from .study_questions import experiments
from .sweep_questions import sweep
from .training_runs import run_of_stage

MOST_COMPARED = 6
CHECKPOINT_WHY = "Any of your runs, a folder or GGUF file with a causal language model, or a name on the Hub."
EVALUATE_WHY = (
    "Measuring gives numbers that are saved with the model. Comparing shows what they mean: every model gets "
    "the same prompts, and differences between the outputs are marked."
)
PROMPT_WHY = (
    "All models get the same text, in their own chat template where they have one, and generate greedily. Left empty, "
    "they get the sample prompts of the first model's run."
)
STEPS_WHY = (
    "A run keeps train.save_total_limit checkpoints, from the first to the last. Each of them gets the same prompt: "
    "this shows when the model learned what."
)
REPLAY_WHY = "A recipe describes a whole run. The recipes of your runs are in checkpoints/<name>/recipe.yaml."
NEXT_WHY = (
    "Usually: pretrain, SFT, then DPO (from preference pairs) or GRPO or PPO (from scored outputs). A reward model "
    "scores outputs where no rule can check them. An adapter can be used as it is; merging makes it one full model."
)


def chat() -> Flow[None]:
    """Choose a model and chat with it."""
    path = yield from _ask_checkpoint("Chat", "Chat with which model?", runs_with_a_model())
    if not (yield OpenChat(path)):
        yield BackTo("checkpoint")


def _ask_checkpoint(title: str, text: str, runs: list[RunFolder]) -> Flow[str]:
    question = Question("checkpoint", text, why=CHECKPOINT_WHY, screen=Screen(title))
    return (yield from pick_run(question, runs, "none yet; train one with Pretrain"))


def evaluate() -> Flow[Next | None]:
    """Measure a model, compare several, or compare all checkpoints of a run."""
    kept = [run for run in generating_runs() if run.checkpoints()]
    choices = (
        Choice(EVAL.name, "Measure a model: loss on texts, scored outputs, speed, tasks"),
        Choice("compare", "Compare models on the same prompts, side by side"),
        Choice("time", "Compare the checkpoints of a run on one prompt", None if kept else "no run has checkpoints"),
    )
    picked = yield Question("evaluate", "Measure or compare models?", choices=choices, why=EVALUATE_WHY,
                            screen=Screen(EVALUATE))  # fmt: skip
    if picked == EVAL.name:
        return Next(EVAL.name, can_return=True)
    if picked == "compare":
        names = yield from _ask_compared()
        prompts = yield from _ask_prompts(f"compare: {', '.join(names)}")
        if not (yield Compare(tuple(names), prompts, adapter_off=len(names) == 1)):
            yield BackTo("prompt")
        return None
    named = tuple(Choice(str(run.path), f"{run.path}: {_steps(run)}") for run in kept)
    name = yield Question("time.run", "Which run?", choices=named, why=STEPS_WHY,
                          screen=Screen(EVALUATE, "compare checkpoints"))  # fmt: skip
    if not (yield Compare((name,), (yield from _ask_prompts(f"compare checkpoints: {name}")), steps=True)):
        yield BackTo("prompt")
    return None


def _ask_compared() -> Flow[list[str]]:
    """Ask for two or more models; an adapter alone is compared with its base."""
    names: list[str] = []
    more = True
    while more:
        left = [run for run in generating_runs() if str(run.path) not in names]
        text = f"Compare {names[0]} with?" if names else "Which model first?"
        screen = Screen(EVALUATE, f"compare: {', '.join(names) or 'choose models'}")
        question = Question(f"compare.{len(names)}", text, why=WHY, screen=screen)
        names.append((yield from pick_run(question, left, "no other yet; train one with Pretrain")))
        if len(names) > 1 or is_adapter(names[0]):
            end = "no, compare with its base" if len(names) == 1 else "no, compare these"
            full = None if len(names) < MOST_COMPARED else f"at most {MOST_COMPARED}"
            more = yield Question(
                f"compare.{len(names)}.more",
                "Add another model?",
                choices=(Choice(False, end), Choice(True, "yes", full)),
                why=WHY,
                screen=Screen(EVALUATE, f"compare: {', '.join(names)}"),
            )
    return names


def _steps(run: RunFolder) -> str:
    steps = [f"{step:,}" for step, _ in run.checkpoints()]
    return f"step{'' if len(steps) == 1 else 's'} {', '.join(steps)} and the end"


def _ask_prompts(where: str) -> Flow[tuple[str, ...]]:
    text = yield Question("prompt", "Prompt (empty: the run's own)?", "text", default="", why=PROMPT_WHY,
                          screen=Screen(EVALUATE, where))  # fmt: skip
    return (text.strip(),) if text.strip() else ()


def checkpoints() -> Flow[Next | None]:
    """Look at runs and models, and choose what to do with one."""
    path = yield from _ask_checkpoint(RUNS, "Which run or model?", list_runs())
    run = next((run for run in list_runs() if str(run.path) == path), None)
    here = "checkpoint.next"
    picked = yield Question(
        here,
        "What next?",
        choices=tuple(_checkpoint_choices(run)),
        why="A run's lineage is every run that its model was built from. Replaying it trains all of them again.",
        screen=Screen(RUNS, path, CheckpointDetails(path)),
    )
    if picked in (EVAL.name, EXPORT.name):
        return Next(picked, answers=model_answers("model.checkpoint", path), can_return=True)
    if picked == "look":
        return Next("look", answers=model_answers("look", path), can_return=True)
    if picked == "next" and run is not None:
        return Next("next steps", {"path": path}, can_return=True)
    if picked == "chat":
        yield OpenChat(path)
    elif picked == "time":
        yield Compare((path,), steps=True)
    elif picked == "lineage":
        yield ReplayLineage(path)
    elif picked == "study" and run is not None:
        about = run.facts()["study"]
        yield StartStudy(about["experiment"], about["options"])
        yield Pause()
    elif picked in ("resume", "replay") and run is not None:
        yield from _start(str(run.recipe_path), resume=picked == "resume")
    yield BackTo("checkpoint" if picked == "list" else here)
    return None


def _checkpoint_choices(run: RunFolder | None) -> list[Choice]:
    """Return what can be done with a run, or with a model that is not one of the user's runs (None)."""
    generates = run is None or (not trained_reward_model(run) and run in runs_with_a_model())
    choices = [Choice("list", "Back to the list")]
    if run is not None and run.facts().get("study"):
        again = "Run it again with the same options" if run.status() == "done" else "Resume this study"
        return [*choices, Choice("study", again)]
    choices += [Choice("chat", "Chat with it")] if generates else []
    if run is not None and next_stages(run) and run.status() == "done":
        choices.append(Choice("next", "Continue with its model: the next stage"))
    choices += [Choice("look", "Look inside it")] if generates else []
    choices += [Choice(EVAL.name, "Evaluate it"), Choice(EXPORT.name, "Export it")] if generates else []
    if generates and run is not None and run.checkpoints():
        choices.append(Choice("time", "Compare its checkpoints on one prompt"))
    if run is not None and run.recipe_path.exists():
        if run.status() in ("stopped", "interrupted", "failed", "broken"):
            choices.append(Choice("resume", "Resume this run"))
        choices.append(Choice("replay", "Run its recipe again as a new run"))
        choices.append(Choice("lineage", "Replay its whole lineage: this run and all before it"))
    return choices


def _start(recipe: str, overrides: tuple[str, ...] = (), *, resume: bool = False) -> Flow[bool]:
    """Show the plan of a recipe file and start it after a yes; return whether it was started."""
    wanted = yield start_question(RecipePlan(recipe, overrides, resume))
    if not wanted or not (yield StartRun(recipe, overrides, resume)):
        return False
    yield Pause()
    return True


def replay() -> Flow[None]:
    """Run a recipe file, with or without changes."""
    path = yield from ask_recipe(REPLAY, REPLAY_WHY)
    text = yield Question(
        "overrides",
        "Anything to change?",
        "text",
        default="",
        why="Changes are written as on the command line: train.max_steps=200 data.0.path=my-text.txt name=again.",
        allowed="key=value, separated by spaces; empty: no changes.",
        check=lambda text: _why_not_these(path, text),
        screen=Screen(REPLAY, path),
    )
    if not (yield from _start(path, tuple(shlex.split(text)))):
        yield BackTo("overrides")


def _why_not_these(recipe: str, text: str) -> str | None:
    """Return every problem of a recipe with these overrides, or None."""
    from llm_lab.job import read_job

    try:
        problems = read_job(recipe, shlex.split(text))[1]
    except (LabError, ValueError) as error:
        return str(error)
    return "\n".join(map(str, problems)) or None


def doctor() -> Flow[None]:
    """Show what this machine can do."""
    yield RunDoctor()


def after_a_run(name: str) -> Flow[Next | None]:
    """Offer what one would do after a run that has just ended under a name."""
    runs = runs_named(name)
    if not runs or runs[-1].status() != "done" or not next_stages(runs[-1]):
        yield Pause()
        return None
    return (yield from next_steps(str(runs[-1].path)))


def next_steps(path: str) -> Flow[Next | None]:
    """Ask what to do with a run's result."""
    run = RunFolder(Path(path))
    choices = [Choice(stage, _next_line(run, stage)) for stage in next_stages(run)]
    picked = yield Question(
        "next",
        f"What next with {run.path.name}?",
        choices=(*choices, Choice("menu", "Back to the menu")),
        why=NEXT_WHY,
        screen=Screen("next steps", path),
        below_output=True,
    )
    if picked == "menu":
        return None
    if picked == "chat":
        yield OpenChat(path)
        return None
    model, reward = start_of(run)
    known = model_answers("model.checkpoint", model) if model else ()
    return Next(picked, {"reward": reward} if reward else {}, known, can_return=True)


def _next_line(run: RunFolder, stage: str) -> str:
    if stage == "chat":
        return "Chat with it"
    return (
        f"{STAGES[stage].label} with it as the reward model" if trained_reward_model(run) else STAGES[stage].next_step
    )


def next_stages(run: RunFolder) -> list[str]:
    """Return what one would do with a run's result, the most usual first."""
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
    """Return (model, reward model) that the next stage begins with; a reward model's parent is the model."""
    if not trained_reward_model(run):
        return str(run.path), None
    parent = (run.facts().get("parent") or {}).get("path")
    folder = Path(parent) if parent else None
    if folder is not None and folder.name == "model" and RunFolder(folder.parent).facts():
        parent = str(folder.parent)
    return parent, str(run.path)


FLOWS: dict[str, Callable[..., Flow[Next | None]]] = {
    "design": design,
    "chat": chat,
    "evaluate": evaluate,
    "look": look_inside.look_inside,
    "checkpoints": checkpoints,
    "replay": replay,
    "experiments": experiments,
    "sweep": sweep,
    "doctor": doctor,
    "after a run": after_a_run,
    "next steps": next_steps,
}


def flow_named(name: str) -> Callable[..., Flow[Next | None]]:
    """Return a flow by its name: an entry of the menu, a stage, or a step after a run."""
    return partial(run_of_stage, name) if name in STAGES else FLOWS[name]


def is_kept(name: str) -> bool:
    """Whether the answers of a flow are kept as a draft when the user leaves it."""
    return name in STAGES or name == "design"
