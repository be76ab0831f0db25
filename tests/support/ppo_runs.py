"""Tiny PPO runs for the tests: a byte model, short prompts, rewards that can be checked."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from llm_lab.hf.load import load_model
from llm_lab.hf.save import save_model, set_special_tokens
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer
from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.recipe.ppo import PpoRecipe
from llm_lab.stages.critic import Critic, make_critic
from llm_lab.stages.ppo_trainer import PPOConfig, PPOTrainer
from llm_lab.training.tuned_run import prepare_training

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
LORA = {"preset": "all", "r": 4, "dropout": 0.1}
PROMPTS = ["a", "bc", "def", "g", "hi", "jkl", "m", "no"]


def make_start(folder: Path, kind: str = "rope", dropout: float = 0.0) -> Path:
    """Write an initial model: kind is a position embedding of LabForCausalLM, or 'llama' or 'gpt2'."""
    torch.manual_seed(0)
    tokenizer = make_byte_tokenizer()
    if kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                intermediate_size=64,
                max_position_embeddings=64,
                attention_dropout=dropout,
                **SIZES,
            )
        )
    elif kind == "gpt2":
        drop = {"attn_pdrop": dropout, "resid_pdrop": dropout, "embd_pdrop": dropout}
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2, **drop)
        )
    else:
        model = LabForCausalLM(
            LabConfig(
                vocab_size=len(tokenizer),
                position_embedding=kind,
                activation="gelu",
                max_position_embeddings=64,
                attention_dropout=dropout,
                hidden_dropout=dropout,
                **SIZES,
            )
        )
    set_special_tokens(model, tokenizer)
    save_model(model, folder, tokenizer)
    return folder


def share_of_low_bytes(completions: list[str], **_: Any) -> list[float]:
    """The reward: the share of characters before "@"; about a quarter for an untrained model."""
    return [sum(character < "@" for character in text) / max(len(text), 1) for text in completions]


def make_recipe(
    start: Path, *, lora: Any = None, critic: Path | None = None, gradient_checkpointing=False
) -> PpoRecipe:
    """A PPO recipe with the keys that decide how the model and the critic are made."""
    train = {"attn_implementation": "sdpa", "gradient_checkpointing": gradient_checkpointing}
    return PpoRecipe.model_validate(
        {
            "stage": "ppo",
            "device": "cpu",
            "seed": 1,
            "model": {"checkpoint": str(start)},
            "data": [{"path": "unused.jsonl"}],
            "rewards": [{"name": "length", "length": 8}],
            "optimizer": {"name": "adamw"},
            "lora": lora,
            "ppo": {"critic": str(critic) if critic else None},
            "train": train,
        }
    )


def critic_of(start: Path, **changes: Any) -> Critic:
    """Make the critic in the same way as a run; changes are those of make_recipe()."""
    return make_critic(make_recipe(start, **changes), load_tokenizer(start))


def make_trainer(
    start: Path,
    out: Path,
    *,
    reward: Any = share_of_low_bytes,
    model: Any = None,
    critic: Critic | None = None,
    lora: dict[str, Any] | None = None,
    gradient_checkpointing: bool = False,
    prompts: list[str] = PROMPTS,
    cls: Any = PPOTrainer,
    **changes: Any,
):
    """Make a trainer with two minibatches of four completions per rollout, and two epochs.

    lora: adapts the model and the critic, as in a recipe.
    """
    from datasets import Dataset

    settings = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "per_device_train_batch_size": 4,
        "steps_per_generation": 2,
        "num_iterations": 2,
        "max_completion_length": 6,
        "max_steps": 4,
        "learning_rate": 3e-3,
        "critic_learning_rate": 3e-3,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "seed": 1,
    }
    recipe = make_recipe(start, lora=lora, gradient_checkpointing=gradient_checkpointing)
    tokenizer = load_tokenizer(start)
    return cls(
        model=prepare_training(model or load_model(start), recipe).train(),
        critic=critic or make_critic(recipe, tokenizer),
        args=PPOConfig(**(settings | changes)),
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )


def log_rows(trainer: Any, key: str) -> list[Any]:
    """Return the values of one metric."""
    return [row[key] for row in trainer.state.log_history if key in row]


def train_resume_and_print(start: Path, out: Path) -> None:
    """Train six steps, then the last three again from a checkpoint; print a digest of all weights after both."""
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 2}
    for checkpoint in (None, str(out / "checkpoint-3")):
        trainer = make_trainer(start, out, ddp_backend="gloo", ddp_find_unused_parameters=False, **settings)
        trainer.train(resume_from_checkpoint=checkpoint)
        weights = [p.detach().flatten() for net in (trainer.model, trainer.critic) for p in net.parameters()]
        digest = hashlib.sha256(torch.cat(weights).numpy().tobytes()).hexdigest()
        sys.stdout.write(f"\nWEIGHTS {digest}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    train_resume_and_print(Path(sys.argv[1]), Path(sys.argv[2]))
