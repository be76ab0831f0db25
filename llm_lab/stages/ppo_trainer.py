"""Proximal policy optimization of a language model: rollouts by TRL, the PPO update in this file.

Schulman et al. 2017 (arXiv 1707.06347), as in Stiennon et al. 2020 and Ouyang et al. 2022.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from trl import GRPOConfig

from llm_lab.errors import Problem, UserError
from llm_lab.training.sharding import as_tensor, shard, shard_loaded_state, whole_state, whole_weights
from llm_lab.training.tuned_run import base_of

from .advantages import explained_variance, generalized_advantages, masked_mean, token_rewards, whiten
from .critic import Critic
from .rollouts import RolloutTrainer, disable_dropout, divide

CRITIC_FILE, CRITIC_OPTIMIZER_FILE = "critic.safetensors", "critic_optimizer.pt"


@dataclass
class PPOConfig(GRPOConfig):
    """GRPOConfig with the options of PPO.

    GRPO's options have these meanings: beta weights the KL penalty, epsilon is the clip range of the policy,
    num_iterations is the number of passes over a rollout, and steps_per_generation / gradient_accumulation_steps the
    number of its minibatches. The others (loss_type, scale_rewards ...) have no effect.

    missing_eos_penalty: subtracted from the reward of a completion that was cut off.
    """

    num_generations: int | None = field(default=1)
    num_iterations: int = field(default=4)
    beta: float = field(default=0.05)
    gamma: float = field(default=1.0)
    lam: float = field(default=0.95)
    cliprange_value: float = field(default=0.2)
    vf_coef: float = field(default=0.5)
    critic_learning_rate: float = field(default=1e-5)
    missing_eos_penalty: float = field(default=0.0)

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            # GRPO compares the completions of a prompt; PPO has a critic instead and needs only one. After this check
            # of GRPOConfig, only checks of vLLM follow.
            if self.num_generations != 1 or "at least 2 generations" not in str(error):
                raise
        filters = (self.top_p, self.top_k, self.min_p or 0.0, self.repetition_penalty)
        if filters != (1.0, 0, 0.0, 1.0) or self.use_vllm:
            # Log-probabilities are over all tokens; with a filter, sampling would use another distribution.
            raise ValueError("PPO supports only a temperature: no top_p, top_k, min_p, repetition_penalty or vLLM")


class PPOTrainer(RolloutTrainer):
    """Trains a model on the rewards of its own completions, together with a critic.

    critic: has its own AdamW with args.critic_learning_rate, which follows the schedule of the model.
    """

    def __init__(self, *, critic: Critic, args: PPOConfig, **kwargs: Any):
        disable_dropout(critic.train())
        base = base_of(critic.model)
        shard(critic, base, args, exact=base.score)  # before super(): the reference is a third whole model
        super().__init__(args=args, **kwargs)
        self.critic = critic if args.fsdp else self.accelerator.prepare_model(critic)
        self.critic_optimizer = self._create_critic_optimizer(critic)
        self._sums_of_step: Counter[str] = Counter()

    # The rollout

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        by_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        scores = (by_function * self.reward_weights.to(by_function.device)).nansum(dim=1)
        self._scores = scores.masked_fill(by_function.isnan().all(dim=1), torch.nan)  # for all processes
        return by_function

    @torch.no_grad()
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rollout = super()._generate_and_score_completions(inputs)
        metrics = self._metrics["train"]
        del metrics["frac_reward_zero_std"]  # PPO has no groups
        ids, attention_mask, tokens = _join(rollout)
        chunk = self.args.per_device_train_batch_size

        logps = rollout.get("old_per_token_logps")
        if logps is None:
            logps, _, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, attention_mask, tokens, batch_size=chunk
            )
        with self.accelerator.autocast():
            values = torch.cat(
                [
                    self.critic(some_ids, some_mask, tokens)
                    for some_ids, some_mask in zip(ids.split(chunk), attention_mask.split(chunk), strict=True)
                ]
            )

        rows = len(ids)
        scores = self._scores[self.accelerator.process_index * rows :][:rows]
        mask = rollout["completion_mask"].bool()
        mask &= ~scores.isnan()[:, None]  # mask completions to which no reward applies
        eos = torch.tensor(self.eos_token_ids, device=ids.device)
        cut_off = ~(torch.isin(rollout["completion_ids"], eos) & mask).any(dim=1)
        scores = scores.nan_to_num() - self.args.missing_eos_penalty * cut_off

        kl = logps - rollout["ref_per_token_logps"] if self.beta else torch.zeros_like(logps)
        rewards = token_rewards(scores, self.beta * kl, mask)
        advantages, returns = generalized_advantages(rewards, values, mask, gamma=self.args.gamma, lam=self.args.lam)
        rollout |= {
            "old_per_token_logps": logps,
            "old_values": values,
            "advantages": whiten(advantages, mask, self._total),
            "returns": returns,
            "loss_mask": mask,
            "num_items_in_batch": self._total(mask.sum()),
        }
        if self._minibatches > 1:
            rollout["row"] = self._own_rows(rows)
        if self.beta:
            metrics["kl"].append(masked_mean(kl, mask, self._total).item())
        metrics["return_mean"].append(masked_mean(returns, mask, self._total).item())
        explained = explained_variance(values, returns, mask, self._total)
        if explained is not None:
            metrics["explained_variance"].append(explained)
        return rollout

    def _total(self, x: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(x, reduction="sum")

    @property
    def _minibatches(self) -> int:
        return self.args.steps_per_generation // self.args.gradient_accumulation_steps

    def _own_rows(self, count: int) -> torch.Tensor:
        """Return the numbers of this process's rows among the rows of all processes."""
        return torch.arange(count, device=self.accelerator.device) + self.accelerator.process_index * count

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Return the next batch of the rollout. Every pass divides its rows into new minibatches."""
        starts_a_pass = self._step % self.args.steps_per_generation == 0
        inputs = super()._prepare_inputs(generation_batch)
        if not (starts_a_pass and self._minibatches > 1):
            return inputs
        (rollout,) = divide(self._buffered_inputs, 1)
        numbers = rollout.setdefault("row", self._own_rows(len(rollout["completion_ids"])))  # older checkpoints lack it
        total = len(numbers) * self.accelerator.num_processes
        # Seeded by the step, so that a resumed run draws the same minibatches.
        drawn = draw_minibatches(total, self._minibatches, self.args.seed + self.state.global_step)
        order = numbers.argsort()
        order = order[drawn.to(order.device)[numbers[order]].argsort(stable=True)]
        self._buffered_inputs = divide([_select(rollout, order)], self.args.steps_per_generation)
        return self._buffered_inputs[0]

    def _share_of(self, rollout: list[dict[str, Any]], share: int, shares: int) -> list[dict[str, Any]]:
        """Return a process's batches of a rollout: the rows that it would have sampled itself, in their minibatches."""
        if shares == 1 or "row" not in rollout[0]:
            return super()._share_of(rollout, share, shares)
        (whole,) = divide(rollout, 1)
        own = whole["row"] * shares // len(whole["row"]) == share
        return divide([_select(whole, own.nonzero()[:, 0])], self.args.steps_per_generation)

    # The loss

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, attention_mask, tokens = _join(inputs)
        mask, advantages = inputs["loss_mask"], inputs["advantages"]
        logps, entropies, _ = self._get_per_token_logps_and_entropies(
            model, ids, attention_mask, tokens, compute_entropy=True
        )
        with self.accelerator.autocast():
            values = self.critic(ids, attention_mask, tokens)

        log_ratio = (logps - inputs["old_per_token_logps"]).masked_fill(~mask, 0.0)
        ratio = log_ratio.exp()
        policy_loss, clipped = clipped_policy_loss(ratio, advantages, self.epsilon_low, self.epsilon_high)
        value_loss, value_clipped = clipped_value_loss(
            values, inputs["old_values"], inputs["returns"], self.args.cliprange_value
        )
        measured = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropies,
            "ratio_mean": ratio,
            "clip_fraction": clipped,
            "value_clip_fraction": value_clipped,
            "step_kl": ratio - 1 - log_ratio,
        }
        sums = torch.stack([x.detach().float().masked_fill(~mask, 0.0).sum() for x in [*measured.values(), mask]])
        for name, total in zip([*measured, "tokens"], self._total(sums).tolist(), strict=True):
            self._sums_of_step[name] += total

        per_token = (policy_loss + self.args.vf_coef * value_loss).masked_fill(~mask, 0.0)
        return per_token.sum() / self._tokens_per_step(inputs)

    def _tokens_per_step(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the average number of tokens of an optimizer step, so that all tokens of a rollout count equally."""
        # Gradients are averaged over the processes, not summed.
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        return tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation

    # The critic's optimizer steps, which Trainer does not handle

    def _create_critic_optimizer(self, critic: Critic) -> torch.optim.AdamW:
        args = self.args
        trained = [parameter for parameter in critic.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": args.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=args.critic_learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon
        )
        shard_loaded_state(optimizer)
        return optimizer

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._record_step()
            self._step_critic()
        return loss

    def _record_step(self) -> None:
        """Record the means over the tokens of an optimizer step, regardless of the division into batches."""
        tokens = max(self._sums_of_step.pop("tokens"), 1)
        for name, total in self._sums_of_step.items():
            self._metrics["train"][name].append(total / tokens)
        self._sums_of_step.clear()

    def _step_critic(self) -> None:
        base, now = self.lr_scheduler.base_lrs[0], self.lr_scheduler.get_last_lr()[0]
        for group in self.critic_optimizer.param_groups:
            group["lr"] = self.args.critic_learning_rate * (now / base if base else 1.0)
        largest = self.args.max_grad_norm if self.args.max_grad_norm > 0 else float("inf")
        norm = as_tensor(nn.utils.clip_grad_norm_(self.critic.parameters(), largest))
        self._metrics["train"]["critic_grad_norm"].append(norm.item())
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad(set_to_none=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        moments = whole_state(self.critic_optimizer)
        with whole_weights(self.critic):
            if self.args.should_save:
                state = {name: parameter.detach().contiguous() for name, parameter in self._trained_of_critic().items()}
                save_file(state, Path(output_dir) / CRITIC_FILE)
                torch.save(moments, Path(output_dir) / CRITIC_OPTIMIZER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        stored = load_file(Path(checkpoint) / CRITIC_FILE)
        if stored.keys() != self._trained_of_critic().keys():
            why = "the critic in this checkpoint has different parameters from the recipe's critic"
            raise UserError(Problem("ppo.critic", why, value=checkpoint, fix="Resume with the recipe of the run."))
        with torch.no_grad(), whole_weights(self.critic, write=True):
            for name, parameter in self._trained_of_critic().items():
                parameter.copy_(stored[name])
        state = torch.load(Path(checkpoint) / CRITIC_OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        self.critic_optimizer.load_state_dict(state)

    def _trained_of_critic(self) -> dict[str, nn.Parameter]:
        critic = self.accelerator.unwrap_model(self.critic)
        return {name: parameter for name, parameter in critic.named_parameters() if parameter.requires_grad}


def clipped_policy_loss(
    ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of each token (1707.06347, equation 7, negated), and whether it was clipped."""
    free, clipped = -ratio * advantages, -ratio.clamp(1 - low, 1 + high) * advantages
    return torch.maximum(free, clipped), clipped > free


def clipped_value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return half the squared error of each token, clipped near the old value, and whether it was clipped."""
    near = old_values + (values - old_values).clamp(-cliprange, cliprange)
    free, clipped = (values - returns).square(), (near - returns).square()
    return 0.5 * torch.maximum(free, clipped), clipped > free


def draw_minibatches(rows: int, count: int, seed: int) -> torch.Tensor:
    """Return the minibatch of each row, `rows` numbers below `count`.

    Each group of `count` consecutive rows has one row in each minibatch. So all processes have the same number of rows
    of a minibatch, and a minibatch has the same rows with any number of processes.
    """
    draws = torch.rand(rows // count, count, generator=torch.Generator().manual_seed(seed))
    return draws.argsort(dim=1).flatten()


def _select(rollout: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return some rows of a rollout; values that are not per row are kept."""
    return {name: value[rows] if value.ndim else value for name, value in rollout.items()}


def _join(rollout: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return ids and attention mask of prompts joined with completions, and the width of the completions."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    attention_mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    return ids, attention_mask, rollout["completion_ids"].shape[1]
