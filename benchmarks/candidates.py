"""The implementations that the training step is compared with, each in its own process, with the same AdamW.

python -m benchmarks.candidates NAME STEPS  trains one and prints one line of JSON: seconds per step and peak bytes.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS, LENGTH, VOCABULARY = 12, 64, 257
WINDOW = 10  # steps
LAYERS, WIDTH, HEADS, KEY_VALUE_HEADS, INNER = 4, 128, 4, 2, 352
LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0
NAMES = {
    "ours": "LLM Lab, Llama-shaped",
    "stock": "LlamaForCausalLM under Trainer",
    "llama-loop": "LlamaForCausalLM in a bare loop",
    "gpt-loop": "GPT-2-shaped, in a bare loop",
}


@dataclass(frozen=True)
class Trained:
    """The measurements of a process: seconds per step for each window of steps, and memory."""

    seconds: tuple[float, ...]
    peak_bytes: int  # of the process, including Python and its libraries
    training_bytes: int  # of these, allocated after the imports
    parameters: int


def train_in_process(name: str, steps: int) -> Trained:
    """Train one implementation in a new process."""
    command = [sys.executable, "-m", "benchmarks.candidates", name, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return Trained(**json.loads(done.stdout.splitlines()[-1]))


def llama_config() -> Any:
    """Return the shape of all models except the GPT, as Hugging Face's LlamaConfig."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )


def training_blocks(count: int) -> Any:
    """Return random blocks of bytes from this file, as training data: (count, LENGTH + 1)."""
    import numpy as np

    text = np.frombuffer(Path(__file__).with_name("candidates.py").read_bytes(), dtype=np.uint8).astype(np.int64)
    starts = np.random.default_rng(0).integers(0, len(text) - LENGTH - 1, size=count)
    return np.stack([text[start : start + LENGTH + 1] for start in starts])


class Clock:
    """Measures seconds per step over windows of WINDOW steps, except for the first one, which touches new memory."""

    def __init__(self) -> None:
        self.steps, self.mark = 0, 0.0
        self.windows: list[float] = []

    def tick(self) -> None:
        """Record the end of a step."""
        self.steps += 1
        if self.steps % WINDOW == 0:
            now = time.perf_counter()
            if self.mark:
                self.windows.append((now - self.mark) / WINDOW)
            self.mark = now

    def seconds(self) -> list[float]:
        return self.windows[1:]


def _callback(clock: Clock) -> Any:
    from transformers import TrainerCallback

    return type("StepTimer", (TrainerCallback,), {"on_step_end": lambda self, *args, **kwargs: clock.tick()})()


def train_ours(steps: int, clock: Clock) -> int:
    """Train from a recipe, as `llm-lab run` does. The logged tokens/s exclude saving and evaluation."""
    from llm_lab.runner import run
    from llm_lab.runs.folder import RunFolder

    recipe = {
        "stage": "pretrain",
        "device": "cpu",
        "model": {
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_VALUE_HEADS,
            "intermediate_size": INNER,
            "max_position_embeddings": 256,
        },
        "tokenizer": "bytes",
        "data": [{"path": str(Path(__file__).resolve())}],
        "optimizer": {
            "name": "adamw",
            "learning_rate": LEARNING_RATE,
            "betas": BETAS,
            "weight_decay": WEIGHT_DECAY,
        },
        "scheduler": {"name": "none", "warmup_steps": 0},
        "train": {
            "max_steps": steps,
            "per_device_train_batch_size": ROWS,
            "max_length": LENGTH,
            "gradient_accumulation_steps": 1,
            "max_grad_norm": CLIP,
            "eval_steps": steps,
            "save_steps": steps,
            "logging_steps": WINDOW,
            "dtype": "float32",
            "compile": False,
        },
        "samples": {"max_new_tokens": 1},
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["LLM_LAB_CACHE"] = folder
        facts = run(recipe)
        rows = RunFolder(Path(facts["path"])).metrics()
        os.chdir("/")
    clock.windows = [ROWS * LENGTH / row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    return facts["parameters"]


def train_stock(steps: int, clock: Clock) -> int:
    """Train LlamaForCausalLM with Trainer, as in the documentation of transformers."""
    import torch
    from transformers import LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=ROWS,
            learning_rate=LEARNING_RATE,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=CLIP,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        # The model shifts the labels itself.
        blocks = torch.from_numpy(training_blocks(steps * ROWS))[:, :-1]
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=[{"input_ids": block, "labels": block} for block in blocks],
            data_collator=default_data_collator,
            callbacks=[_callback(clock)],
        )
        trainer.train()
    return sum(p.numel() for p in model.parameters())


def train_in_a_loop(model: Any, loss_of: Callable[[Any, Any], Any], steps: int, clock: Clock) -> int:
    """Train with PyTorch alone: forward, backward, gradient clipping, fused AdamW."""
    import torch

    blocks = torch.from_numpy(training_blocks(steps * ROWS)).view(steps, ROWS, LENGTH + 1)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)
    model.train()
    for batch in blocks:
        loss_of(batch[:, :-1], batch[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.tick()
    return sum(p.numel() for p in model.parameters())


def train_llama_loop(steps: int, clock: Clock) -> int:
    """Train LlamaForCausalLM in a bare loop."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config())

    def loss_of(ids: Any, labels: Any) -> Any:
        logits = model(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    return train_in_a_loop(model, loss_of, steps, clock)


def train_gpt_loop(steps: int, clock: Clock) -> int:
    """Train a GPT-2-shaped model in a bare loop."""
    import torch

    from .gpt import Gpt

    torch.manual_seed(0)
    model = Gpt(VOCABULARY, LENGTH, LAYERS, WIDTH, HEADS)
    return train_in_a_loop(model, model.loss, steps, clock)


def main() -> None:
    """Train the named implementation and print the measurements."""
    import psutil
    import transformers

    # transformers imports these on first use; their memory must not count as that of the training.
    _ = (transformers.Trainer, transformers.LlamaForCausalLM)
    before = psutil.Process().memory_info().rss
    clock = Clock()
    run = {"ours": train_ours, "stock": train_stock, "llama-loop": train_llama_loop, "gpt-loop": train_gpt_loop}
    parameters = run[sys.argv[1]](int(sys.argv[2]), clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = Trained(tuple(clock.seconds()), peak, peak - before, parameters)
    print(json.dumps(found.__dict__))


if __name__ == "__main__":
    main()
