"""Group-relative policy optimisation: try, score, and do more of what scored well in its group."""

from __future__ import annotations

from functools import partial

from llm_lab.events import Listener, Notice
from llm_lab.recipe.grpo import GrpoRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.training.loop import Result


def run(recipe: GrpoRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Tune a model on the rewards of its own answers as the resolved recipe says, into the run folder."""
    from .prompts import learn_from_rewards
    from .rollout_trainers import make_grpo_trainer

    options, times = recipe.grpo, recipe.train.gradient_accumulation_steps
    listener(Notice("the loss begins at 0, as advantages of a group sum to 0: watch the reward"))
    return learn_from_rewards(
        recipe,
        folder,
        listener,
        make_trainer=partial(make_grpo_trainer, options=options, steps_per_rollout=times),
        answer_length=options.max_completion_length,
        answers_per_prompt=options.num_generations,
        steps_per_rollout=times,
        updates_per_rollout=options.num_iterations,
        resume=resume,
    )
