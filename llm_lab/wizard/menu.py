"""The groups of the home screen, and the flows that do not set up a run: chat, compare, replay, doctor."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial

from llm_lab.errors import LabError
from llm_lab.recipe.dpo import DPO
from llm_lab.recipe.eval import EVAL
from llm_lab.recipe.export import EXPORT
from llm_lab.recipe.grpo import GRPO
from llm_lab.recipe.merge import MERGE
from llm_lab.recipe.ppo import PPO
from llm_lab.recipe.pretrain import PRETRAIN
from llm_lab.recipe.registry import BUILT_IN, STAGES, load_installed_stages
from llm_lab.recipe.reward import REWARD
from llm_lab.recipe.sft import SFT
from llm_lab.recipe.stage import Stage
from llm_lab.runs.folder import RunFolder
from llm_lab.studies import DUEL_ABOUT, STUDY_ABOUT, SWEEP_ABOUT

from . import look_inside, run_questions
from .home import EVALUATE, GROUPS, LOOK, MENU_WHY, QUICK_START, REPLAY, STUDY, Entry, line_of
from .model_design import design
from .model_questions import (
    WHY,
    generating_runs,
    is_adapter,
    name_in_lists,
    pick_run,
    runs_with_a_model,
    trained_reward_model,
)
from .questions import (
    BackTo,
    Choice,
    Compare,
    Flow,
    Next,
    OpenChat,
    Question,
    RunDoctor,
    RunSummary,
    Screen,
)
from .quick_start import quick_start
from .recipe_question import ask_recipe, recipe_name
from .run_questions import ask_checkpoint
from .study_questions import WHY as STUDY_WHY
from .study_questions import study
from .sweep_questions import DUEL_WHY, SWEEP_WHY, duel, resume_sweep, sweep
from .training_runs import run_of_stage

MOST_COMPARED = 6
MOST_STEPS = 4  # checkpoints listed one by one
EVALUATE_WHY = (
    "Measuring gives numbers that are saved with the model. Comparing shows what they mean: every model gets "
    "the same prompts, and differences between the outputs are marked."
)
PROMPT_WHY = (
    "All models get the same text, in their own chat template where they have one, and generate greedily. Left empty, "
    "they get the sample prompts of the first model's run."
)
STEPS_PROMPT_WHY = (
    "All checkpoints get the same text and generate greedily. Left empty, they get the first sample prompt of the run."
)
STEPS_WHY = (
    "A run keeps train.save_total_limit checkpoints, from the first to the last. Each of them gets the same prompt: "
    "this shows when the model learned what."
)
REPLAY_WHY = "A recipe describes a whole run. The recipes of your runs are in checkpoints/<name>/recipe.yaml."


def _of_stage(stage: Stage) -> Entry:
    return Entry(stage.name, stage.title, stage.about, stage.why)


DESIGN = Entry(
    "design",
    "Design a model",
    "choose its parts and see what they cost",
    "Positions, norm, attention, activation, width and depth, each with its effect on parameters, memory and speed. "
    "The design is a config.json, which Pretrain then trains.",
)
USE = (
    Entry("chat", "Chat", "talk to a model", "With any run, a folder, a GGUF file, or a model of the Hub."),
    Entry(
        "evaluate",
        EVALUATE,
        "measure a model, or compare several",
        "Loss on text, scored outputs, speed and benchmark tasks; or several models on the same prompts.",
    ),
    Entry(
        "look",
        LOOK,
        "attention, heads, what each layer predicts",
        "A report with pictures of one model, of a fine-tune against its base, or of all checkpoints of a run.",
    ),
    _of_stage(EXPORT),
)
TRY = (
    Entry(
        "sweep",
        "Sweep",
        SWEEP_ABOUT,
        SWEEP_WHY,
    ),
    Entry(
        "duel",
        "Duel",
        DUEL_ABOUT,
        DUEL_WHY,
    ),
    Entry(
        "study",
        STUDY,
        STUDY_ABOUT,
        STUDY_WHY,
    ),
    Entry(
        "replay",
        REPLAY,
        "run a recipe file, with or without changes",
        "The recipes shipped with LLM Lab, your own in configs/, and those of your runs.",
    ),
)


def entries_of(name: str) -> tuple[Entry, ...]:
    """Return the lines of a group; stages of other packages come after the built-in ones that train."""
    load_installed_stages()
    own = [stage for stage in STAGES.values() if stage not in BUILT_IN]
    training = (*map(_of_stage, (PRETRAIN, SFT, REWARD, DPO, GRPO, PPO, MERGE, *own)), DESIGN)
    return {"train": training, "use": USE, "try": TRY}[name]


def group(name: str) -> Flow[Next]:
    """Choose one of the flows of a group."""
    title, entries = next(group.title for group in GROUPS if group.name == name), entries_of(name)
    width = max(len(entry.title) for entry in entries) + 2
    lines = [line_of(entry.flow, entry.title, entry.about, width, entry.why) for entry in entries]
    picked = yield Question(f"group.{name}", "Which one?", choices=tuple(lines), why=MENU_WHY,
                            screen=Screen(title))  # fmt: skip
    return Next(picked, can_return=True)


def chat() -> Flow[None]:
    """Choose a model and chat with it."""
    runs = [run for run in runs_with_a_model() if not trained_reward_model(run)]
    path = yield from ask_checkpoint("Chat", "Chat with which model?", runs)
    if not (yield OpenChat(path)):
        yield BackTo("checkpoint")


def evaluate() -> Flow[Next | None]:
    """Measure a model, compare several, or compare all checkpoints of a run."""
    kept = [run for run in generating_runs() if run.checkpoints()]
    choices = (
        Choice(EVAL.name, "Measure a model: loss on text, scored outputs, speed, tasks"),
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
    named = tuple(
        Choice(str(run.path), f"{run.path}: {_steps(run)}", cells=(name_in_lists(run), _steps(run)),
               next_to=RunSummary(str(run.path)))
        for run in kept
    )  # fmt: skip
    name = yield Question("time.run", "Which run?", choices=named, heads=("run", "checkpoints"), why=STEPS_WHY,
                          screen=Screen(EVALUATE, "compare checkpoints"))  # fmt: skip
    if not (
        yield Compare((name,), (yield from _ask_prompts(f"compare checkpoints: {name}", STEPS_PROMPT_WHY)), steps=True)
    ):
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
            end = "No, compare with its base" if len(names) == 1 else "No, compare these"
            full = None if len(names) < MOST_COMPARED else f"at most {MOST_COMPARED}"
            more = yield Question(
                f"compare.{len(names)}.more",
                "Add another model?",
                choices=(Choice(True, "Yes", full), Choice(False, end)),
                default=False,
                why=WHY,
                screen=Screen(EVALUATE, f"compare: {', '.join(names)}"),
            )
    return names


def _steps(run: RunFolder) -> str:
    steps = [f"{step:,}" for step, _ in run.checkpoints()]
    if len(steps) > MOST_STEPS:
        return f"{len(steps)} checkpoints, from step {steps[0]} to {steps[-1]}"
    return f"step{'' if len(steps) == 1 else 's'} {', '.join(steps)} and the end"


def _ask_prompts(where: str, why: str = PROMPT_WHY) -> Flow[tuple[str, ...]]:
    text = yield Question("prompt", "Prompt (empty: the run's own)?", "text", default="", why=why,
                          screen=Screen(EVALUATE, where))  # fmt: skip
    return (text.strip(),) if text.strip() else ()


def replay() -> Flow[Next | None]:
    """Run a recipe file, with or without changes."""
    path = yield from ask_recipe(REPLAY, REPLAY_WHY)
    text = yield Question(
        "overrides",
        "Anything to change?",
        "text",
        default="",
        why="Changes are written as on the command line: train.max_steps=200 data.0.path=my.txt name=again.",
        allowed="key=value, separated by spaces; empty: no changes.",
        check=lambda text: _why_not_these(path, text),
        screen=Screen(REPLAY, recipe_name(path)),
    )
    following = yield from run_questions.start(path, tuple(shlex.split(text)))
    if following is None:
        yield BackTo("overrides")
    return following


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


FLOWS: dict[str, Callable[..., Flow[Next | None]]] = {
    "quick": quick_start,
    "design": design,
    "chat": chat,
    "evaluate": evaluate,
    "look": look_inside.look_inside,
    "checkpoints": run_questions.checkpoints,
    "resume": run_questions.resume,
    "talk": run_questions.chat_with,
    "group": group,
    "replay": replay,
    "study": study,
    "sweep": sweep,
    "duel": duel,
    "resume sweep": resume_sweep,
    "doctor": doctor,
    run_questions.AFTER: run_questions.after_a_run,
    "next steps": run_questions.next_steps,
}


def flow_named(name: str) -> Callable[..., Flow[Next | None]]:
    """Return a flow by its name: an entry of the menu, a stage, or a step after a run."""
    return partial(run_of_stage, name) if name in STAGES else FLOWS[name]


def title_of(name: str) -> str:
    """Return what the menu calls a flow whose answers are kept."""
    entries = (QUICK_START, DESIGN, *TRY)
    return STAGES[name].title if name in STAGES else next(one.title for one in entries if one.flow == name)


def is_kept(name: str) -> bool:
    """Whether the answers of a flow are kept as a draft when the user leaves it."""
    return name in STAGES or name in ("design", "quick", "sweep", "duel")
