"""Proximal policy optimization: reinforce answers that score better than a value model (critic) expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from llm_lab.events import Listener
from llm_lab.hf.load import quiet_libraries
from llm_lab.recipe.ppo import PpoRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.training.loop import Result
from llm_lab.training.tuned_run import fit

from .critic import make_critic
from .ppo_trainer import PPOConfig, PPOTrainer
from .rollouts import LOGGED, LabRolloutTrainer, set_up_rollouts


class LabPPOTrainer(LabRolloutTrainer, PPOTrainer):
    """PPO for one run folder."""

    def loss_of_longest_batch(self) -> torch.Tensor:
        loss = super().loss_of_longest_batch()  # while the model's activations are in memory, as in a step
        shape = (self.args.per_device_train_batch_size, self.longest_tokens // self.args.per_device_train_batch_size)
        ids = torch.zeros(shape, dtype=torch.long, device=self.args.device)
        with self.accelerator.autocast():
            return loss + self.critic(ids, torch.ones_like(ids), self.max_completion_length).mean()

    logged: ClassVar[dict[str, str]] = LOGGED | {
        "clip_fraction": "clip_fraction",
        "policy_loss": "policy_loss",
        "value_loss": "value_loss",
        "explained_variance": "explained_variance",
        "critic_grad_norm": "critic_grad_norm",
    }


def run(recipe: PpoRecipe, folder: RunFolder, listener: Listener, *, resume: bool = False) -> Result:
    """Train a model on the rewards of its own answers, with a critic, into the run folder. recipe: resolved."""
    quiet_libraries()
    options = recipe.ppo
    assert options.max_completion_length is not None, "derived where it is left out"
    setup = set_up_rollouts(
        recipe,
        folder,
        listener,
        answer_length=options.max_completion_length,
        answers_per_prompt=1,
        steps_per_rollout=recipe.train.gradient_accumulation_steps * options.num_mini_batches,
        updates_per_rollout=options.num_ppo_epochs * options.num_mini_batches,
    )

    def make_trainer(arguments: Callable[..., Any], **common: Any) -> LabPPOTrainer:
        critic = make_critic(recipe, setup.tokenizer)
        own = setup.trainer_options(
            arguments,
            PPOConfig,
            options,
            beta=options.kl_coef,
            epsilon=options.cliprange,
            cliprange_value=options.cliprange_value,
            gamma=options.gamma,
            lam=options.lam,
            num_iterations=options.num_ppo_epochs,
            critic_learning_rate=options.critic_learning_rate,
            missing_eos_penalty=options.missing_eos_penalty,
        )
        return LabPPOTrainer(critic=critic, **own, **common)

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
