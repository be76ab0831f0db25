"""GRPO and PPO as trainers of ours: prompts in the order of the mix, encoded as chat encodes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from datasets import Dataset
from trl import GRPOConfig

from llm_lab.data.examples import Example
from llm_lab.evaluation.score import columns_of
from llm_lab.hf.conversations import encode_prompt
from llm_lab.recipe.grpo import GrpoOptions
from llm_lab.recipe.ppo import PpoOptions
from llm_lab.rewards.combine import Rewards
from llm_lab.training.trainer import LabRun

from .ppo_trainer import PPOConfig, PPOTrainer
from .rollouts import RolloutTrainer

TOLD = {
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "cut_off_share",
}
TOLD_OF_GRPO = TOLD | {"clip_ratio/region_mean": "clip_fraction", "frac_reward_zero_std": "zero_spread_share"}
TOLD_OF_PPO = TOLD | {
    "clip_fraction": "clip_fraction",
    "policy_loss": "policy_loss",
    "value_loss": "value_loss",
    "explained_variance": "explained_variance",
    "critic_grad_norm": "critic_grad_norm",
}


class LabRollouts(LabRun):
    """What both share; stands before TRL's trainer among the bases."""

    # LabRun reads rows one after the other; here each prompt is read once for every answer.
    _get_train_sampler = RolloutTrainer._get_train_sampler

    def _tokenize_prompts(self, prompts: Sequence[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [encode_prompt(self.processing_class, prompt) for prompt in prompts], None, {}

    def extra_metrics(self) -> dict[str, float]:
        gathered = self._metrics["train"]
        terms = {
            f"reward/{key.split('/')[1]}": sum(values) / len(values)
            for key, values in gathered.items()
            if key.startswith("rewards/") and key.endswith("/mean") and values
        }
        found = super().extra_metrics()
        return found | (terms if len(terms) > 1 else {})


class LabGRPOTrainer(LabRollouts, RolloutTrainer):
    """GRPO for one run folder."""

    tells: ClassVar[dict[str, str]] = TOLD_OF_GRPO


class LabPPOTrainer(LabRollouts, PPOTrainer):
    """PPO for one run folder."""

    tells: ClassVar[dict[str, str]] = TOLD_OF_PPO


def make_grpo_trainer(
    *, options: GrpoOptions, steps_per_rollout: int, arguments: Callable[..., Any], **common: Any
) -> LabGRPOTrainer:
    """Return GRPO's trainer for prompts in their order."""
    settings = {
        "num_generations": options.num_generations,
        "beta": options.beta,
        "epsilon": options.epsilon,
        "num_iterations": options.num_iterations,
        "loss_type": options.loss_type,
        "scale_rewards": options.scale_rewards,
        "mask_truncated_completions": options.mask_truncated_completions,
    }
    return _make(LabGRPOTrainer, GRPOConfig, options, steps_per_rollout, arguments, settings, **common)


def make_ppo_trainer(
    *,
    options: PpoOptions,
    steps_per_rollout: int,
    arguments: Callable[..., Any],
    make_critic: Callable[[Any], Any],
    tokenizer: Any,
    **common: Any,
) -> LabPPOTrainer:
    """Return PPO's trainer for prompts in their order."""
    settings = {
        "beta": options.kl_coef,
        "epsilon": options.cliprange,
        "cliprange_value": options.cliprange_value,
        "gamma": options.gamma,
        "lam": options.lam,
        "num_iterations": options.num_ppo_epochs,
        "critic_learning_rate": options.critic_learning_rate,
        "missing_eos_penalty": options.missing_eos_penalty,
    }
    common |= {"tokenizer": tokenizer, "critic": make_critic(tokenizer)}
    return _make(LabPPOTrainer, PPOConfig, options, steps_per_rollout, arguments, settings, **common)


def _make(
    kind: type,
    config: type,
    options: GrpoOptions | PpoOptions,
    steps_per_rollout: int,
    arguments: Callable[..., Any],
    settings: dict[str, Any],
    *,
    prompts: Sequence[Example],
    rewards: Rewards,
    tokenizer: Any,
    **common: Any,
) -> Any:
    columns = columns_of(prompts)
    rows = {"prompt": [list(map(dict, example.prompt)) for example in prompts], **columns}
    return kind(
        args=arguments(
            kind=config,
            steps_per_generation=steps_per_rollout,
            max_completion_length=options.max_completion_length,
            temperature=options.temperature,
            reward_weights=rewards.weights,
            shuffle_dataset=False,  # the mix is shuffled, and its order is what a resume goes on with
            disable_dropout=True,
            include_num_input_tokens_seen=False,  # TRL counts what was generated too
            **settings,
        ),
        reward_funcs=rewards.trl_functions(),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
        **common,
    )
