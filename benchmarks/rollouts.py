"""A GRPO step (generate, score, update) of LLM Lab against the same step with TRL alone."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from .timing import Timing

PROMPTS, ANSWERS, LENGTH, STEPS, ROUNDS = 8, 4, 40, 8, 3
QUESTIONS = [f"What is {a} plus {b}?" for a in range(8) for b in range(8)]


def _base(folder: Path) -> Path:
    import torch

    from llm_lab.hf.chat_templates import apply_chat_template_choice, resize_for
    from llm_lab.hf.save import save_model
    from llm_lab.hf.tokenizers import make_byte_tokenizer
    from llm_lab.model.configuration_lab import LabConfig
    from llm_lab.model.modeling_lab import LabForCausalLM

    torch.manual_seed(0)
    tokenizer = make_byte_tokenizer()
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LabForCausalLM(LabConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes))
    resize_for(model, tokenizer, apply_chat_template_choice(tokenizer), seed=0)
    save_model(model, folder, tokenizer)
    return folder


def _settings(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": STEPS,
        "per_device_train_batch_size": PROMPTS * ANSWERS,
        "num_generations": ANSWERS,
        "max_completion_length": LENGTH,
        "learning_rate": 1e-5,
        "beta": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
    }


def _clock() -> tuple[Any, list[float]]:
    from transformers import TrainerCallback

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            marks.append(-time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks[-1] += time.perf_counter()

    return Clock(), marks


def _run_trl(base: Path, folder: str) -> list[float]:
    """Return the seconds of each step, written as a user of TRL would; a step includes generation and loss."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from llm_lab.hf.load import load_model

    clock, marks = _clock()
    rows = [[{"role": "user", "content": question}] for question in QUESTIONS]
    trainer = GRPOTrainer(
        model=load_model(base).train(),
        args=GRPOConfig(**_settings(folder)),
        reward_funcs=[lambda completions, **_: [float(len(c[0]["content"]) % 7) for c in completions]],
        train_dataset=Dataset.from_dict({"prompt": rows}),
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return marks


def _run_ours(base: Path, folder: str) -> list[float]:
    """Return the seconds of each step of a recipe with `stage: grpo`, including its records."""
    from llm_lab.runner import run
    from llm_lab.stages import grpo

    clock, marks = _clock()
    make: Any = grpo.LabGRPOTrainer

    def make_with_clock(**kwargs: Any) -> Any:
        trainer = make(**kwargs)
        trainer.add_callback(clock)
        return trainer

    Path(folder).mkdir(parents=True, exist_ok=True)
    data = Path(folder, "questions.jsonl")
    data.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS))
    reward = Path(folder, "reward.py")
    reward.write_text("def size(completions, **_):\n    return [float(len(text) % 7) for text in completions]\n")
    recipe = {
        "stage": "grpo",
        "name": "bench",
        "device": "cpu",
        "model": str(base),
        "data": [{"path": str(data)}],
        "validation": {"fraction": 0.0},
        "rewards": [{"python": f"{reward}:size"}],
        "grpo": {"num_generations": ANSWERS, "max_completion_length": LENGTH},
        "score": None,
        "samples": {"prompts": ["hi"], "max_new_tokens": 1},
        "optimizer": {"name": "adamw", "learning_rate": 1e-5},
        "train": {
            "max_steps": STEPS,
            "max_length": 200,
            "per_device_train_batch_size": PROMPTS * ANSWERS,
            "logging_steps": 1,
        },
    }
    setattr(grpo, "LabGRPOTrainer", make_with_clock)  # noqa: B010 - a function in place of a class
    try:
        run(recipe, root=Path(folder) / "checkpoints")
    finally:
        grpo.LabGRPOTrainer = make
    return marks


def bench(full: bool) -> None:
    """Print the time of a GRPO step of both, measured in turn."""
    seconds: dict[str, list[float]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as folder:
        base = _base(Path(folder, "base"))
        for number in range(ROUNDS * (2 if full else 1)):
            seconds["ours"] += _run_ours(base, f"{folder}/ours{number}")[2:]
            seconds["trl"] += _run_trl(base, f"{folder}/trl{number}")[2:]
    ours, trl = (Timing(tuple(seconds[name])) for name in ("ours", "trl"))
    print(f"GRPO step, {PROMPTS} prompts × {ANSWERS} answers of at most {LENGTH} tokens, 4 × 128, on the CPU:\n")
    print("| implementation | step | relative to ours |\n| --- | --- | --- |")
    print(f"| LLM Lab, a complete run of a recipe | {ours.spread()} | 1.00 × |")
    print(f"| TRL alone | {trl.spread()} | {trl.median / ours.median:.2f} × |")
