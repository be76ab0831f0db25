"""Look inside a model: choose a model, type a text for it to read, and choose what else to measure."""

from __future__ import annotations

from llm_lab.estimate.adapter_base import find_base
from llm_lab.runs.folder import list_runs

from .home import LOOK
from .model_questions import generating_runs, pick_run
from .questions import BackTo, Choice, Flow, LookInside, Question, Screen

MODEL_WHY = "Any of your runs, any Hugging Face folder with a causal language model, or a name on the Hub."
TEXT_WHY = (
    "The model reads this text once. The report shows for each of its tokens where every head attends, and what every "
    "layer would predict. A sentence in which something is repeated shows induction heads. Left empty: such a sentence "
    "in English."
)
MORE_WHY = (
    "An adapter and its base, on the same scale, show what fine-tuning changed. The checkpoints of a run show when "
    "the heads appeared; each takes a few seconds."
)


def look_inside() -> Flow[None]:
    """Choose a model and a text, and write the report."""
    question = Question("look", "Look inside which model?", why=MODEL_WHY, screen=Screen(LOOK))
    path = yield from pick_run(question, generating_runs(), "none yet; train one with Pretrain")
    screen = Screen(LOOK, path)
    text = yield Question("look.text", "Which text should it read?", "text", default="", why=TEXT_WHY,
                          allowed="Empty: a built-in text.", screen=screen)  # fmt: skip
    more = "model"
    choices = [Choice("model", "The model alone"), *_more(path)]
    if len(choices) > 1:
        more = yield Question("look.more", "What to look at?", choices=tuple(choices), why=MORE_WHY, screen=screen)
    against = find_base(path) if more == "base" else None
    if not (yield LookInside(path, text.strip() or None, against, more == "steps")):
        yield BackTo("look.text")


def _more(path: str) -> list[Choice]:
    """Return the question for what else to measure in a model."""
    run = next((run for run in list_runs() if str(run.path) == path), None)
    choices = [Choice("base", "Against its base: what the adapter changes")] if find_base(path) else []
    if run is not None and (run.checkpoints() or run.stages()):
        choices.append(Choice("steps", "Over training: all checkpoints of the run"))
    return choices
