"""Group-relative policy optimization: reinforce answers that score better than others for the same prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from trl import GRPOConfig

from llm_lab.events import Listener, Notice
from llm_lab.hf.load import quiet_libraries
from llm_lab.recipe.grpo import GrpoRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.training.loop import Result
from llm_lab.training.tuned_run import fit

from .rollouts import LOGGED, LabRolloutTrainer, set_up_rollouts


class LabGRPOTrainer(LabRolloutTrainer):
    """GRPO for one run folder."""

    logged: ClassVar[dict[str, str]] = LOGGED | {
        "clip_ratio/region_mean": "clip_fraction",
        "frac_reward_zero_std": "zero_spread_share",
    }


def run(recipe: GrpoRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Train a model on the rewards of its own answers into the run folder. recipe: resolved."""
    quiet_libraries()
    listener(
        Notice("the loss starts at 0, because the advantages of the outputs for a prompt sum to 0: watch the reward")
    )
    options = recipe.grpo
    assert options.max_completion_length is not None, "derived where it is left out"
    setup = set_up_rollouts(
        recipe,
        folder,
        listener,
        answer_length=options.max_completion_length,
        answers_per_prompt=options.num_generations,
        steps_per_rollout=recipe.train.gradient_accumulation_steps,
        updates_per_rollout=options.num_iterations,
    )

    def make_trainer(arguments: Callable[..., Any], **common: Any) -> LabGRPOTrainer:
        own = setup.trainer_options(
            arguments,
            GRPOConfig,
            options,
            num_generations=options.num_generations,
            beta=options.beta,
            epsilon=options.epsilon,
            num_iterations=options.num_iterations,
            loss_type=options.loss_type,
            scale_rewards=options.scale_rewards,
            mask_truncated_completions=options.mask_truncated_completions,
        )
        return LabGRPOTrainer(**own, **common)

    return fit(
        setup.recipe,
        folder,
        listener,
        setup.model,
        setup.tokenizer,
        make_trainer=make_trainer,
        evaluation=setup.evaluation,
        resume=resume,
    )
