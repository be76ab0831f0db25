"""Predicted and actual memory and time of short runs, including runs of other model families.

python -m benchmarks.plan [--smollm2 MODEL] [--folder FOLDER] [NAME ...]    (about five minutes on one CPU core)

Each recipe runs in a process of its own, without earlier measurements, so the prediction is that of a first run. Time
is the process's CPU time in training with one thread, which depends little on other processes. MODEL: a
folder of SmolLM2-135M-Instruct; without it, its recipes are left out. FOLDER: keeps the runs, so that a second call
compares new predictions with them without running again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = "builtin:word-problems"
LORA = {"preset": "all", "r": 8}
OWN, GPT2, SMOL = "own", "gpt2", "smollm2"


def recipes() -> dict[str, dict[str, Any]]:
    """Return the recipes by name. model: which of the three models they train."""
    reward = [{"name": "exact_number"}]
    grpo = {"rewards": reward, "grpo": {"num_generations": 4, "max_completion_length": 24}, "score": None}
    ppo = {"rewards": reward, "ppo": {"max_completion_length": 24}, "score": None}
    adapter = {"lora": LORA}
    return {
        "SFT, own 7 M": _recipe("sft", OWN, 16, 20),
        "DPO, own 7 M": _recipe("dpo", OWN, 8, 12),
        "GRPO, own 7 M": _recipe("grpo", OWN, 16, 8, grpo),
        "PPO, own 7 M": _recipe("ppo", OWN, 16, 8, ppo),
        "reward model, own 7 M": _recipe("reward", OWN, 8, 12),
        "SFT, GPT-2 of 19 M": _recipe("sft", GPT2, 8, 10),
        "SFT with LoRA, SmolLM2 135 M": _recipe("sft", SMOL, 4, 4, adapter),
        "SFT, SmolLM2 135 M": _recipe("sft", SMOL, 2, 4),
        "reward model with LoRA, SmolLM2 135 M": _recipe("reward", SMOL, 2, 4, adapter),
        "DPO with LoRA, SmolLM2 135 M": _recipe("dpo", SMOL, 2, 4, adapter),
        "GRPO with LoRA, SmolLM2 135 M": _recipe("grpo", SMOL, 4, 3, grpo | adapter),
        "PPO with LoRA, SmolLM2 135 M": _recipe("ppo", SMOL, 4, 3, ppo | adapter),
    }


def _recipe(stage: str, model: str, rows: int, steps: int, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    train = {"max_steps": steps, "per_device_train_batch_size": rows, "gradient_accumulation_steps": 1}
    train |= {"eval_steps": steps, "save_steps": steps, "logging_steps": 1, "max_length": 256}
    validation = {"fraction": 0.05} | ({} if stage in ("grpo", "ppo") else {"max_examples": 8})
    data = [{"path": WORDS}]
    return {"stage": stage, "device": "cpu", "data": data, "validation": validation, "model": model, "train": train} | (
        dict(more or {}) | ({} if stage == "reward" else {"samples": {"prompts": ["Hi"], "max_new_tokens": 8}})
    )


def make_models(folder: Path, smollm2: Path | None) -> dict[str, str]:
    """Write two models with random weights, and return the folder of each model."""
    from itertools import islice

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    from llm_lab.data.builtin import builtin_documents
    from llm_lab.hf.load import quiet_libraries
    from llm_lab.hf.tokenizers import train_bpe

    quiet_libraries()
    torch.manual_seed(0)
    tokenizer = train_bpe(islice(builtin_documents("word-problems"), 2000), 2000)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    own = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, **ends,
    )  # fmt: skip
    gpt2 = GPT2Config(n_embd=256, n_layer=8, n_head=4, n_positions=512, **ends)
    found = {} if smollm2 is None else {SMOL: str(smollm2)}
    for name, model in ((OWN, LlamaForCausalLM(own)), (GPT2, GPT2LMHeadModel(gpt2))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        found[name] = str(folder / name)
    return found


def run_one(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Run a recipe in this process; return the predicted and the actual values."""
    import time

    from llm_lab.runner import run

    wall, cpu = time.perf_counter(), time.process_time()
    facts = run(dict(recipe), [])
    share = min(1.0, (time.process_time() - cpu) / (time.perf_counter() - wall))
    results = facts["results"]
    return {
        "memory": results["memory_bytes"],
        "seconds": results["wall_seconds"] * share,
        "predicted": facts["predicted"],
        "speed": [row.get("tokens_per_second") for row in _rows(facts["path"])],
    }


def _rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(path) / "metrics.jsonl").read_text().splitlines()]


def predict(recipe: Mapping[str, Any]) -> Any:
    """Return today's estimate of a recipe."""
    from llm_lab.job import check

    return check(dict(recipe)).stages[0].estimate


def rows_of(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a Markdown table row for each run."""
    yield "| run | memory: predicted | actual | | time: predicted | actual | |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, one in found.items():
        memory, seconds = one["predicted"]["memory_bytes"], one["predicted"]["wall_seconds"] or 0.0
        yield (
            f"| {name} | {memory / 2**30:.2f} GiB | {one['memory'] / 2**30:.2f} GiB | "
            f"{memory / one['memory'] - 1:+.0%} | {seconds:.1f} s | {one['seconds']:.1f} s | "
            f"{seconds / one['seconds'] - 1:+.0%} |"
        )


def measure(names: Sequence[str] = (), smollm2: Path | None = None, folder: Path | None = None) -> None:
    """Run the named recipes, or all for which there is a model, and print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        place = (folder or Path(scratch)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        os.chdir(place)
        kept = place / "actual.json"
        found = json.loads(kept.read_text()) if kept.exists() else {}
        models = make_models(place, smollm2 and smollm2.resolve())
        os.environ |= {"LLM_LAB_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
        for name, recipe in recipes().items():
            if recipe["model"] not in models or (names and name not in names):
                continue
            given = {**recipe, "model": {"checkpoint": models[recipe["model"]]}}
            if name not in found:
                command = [sys.executable, "-m", "benchmarks.plan", "--one", json.dumps(given)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                if not lines:
                    print(f"{name}: {done.stderr[-600:]}", file=sys.stderr)
                    continue
                found[name] = json.loads(lines[0].removeprefix("RESULT "))
                kept.write_text(json.dumps(found, indent=1))
            cost = predict(given)
            found[name]["predicted"] = {"memory_bytes": cost.memory_bytes, "wall_seconds": cost.wall_seconds}
        print("\n".join(rows_of(found)))


def bench(full: bool) -> None:
    """Run the recipes of the models with random weights."""
    measure()


def main() -> None:
    """Run the named recipes, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--smollm2", type=Path, help="a folder of SmolLM2-135M-Instruct")
    parser.add_argument("--folder", type=Path, help="where models and runs are kept; a second call only predicts again")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print("RESULT " + json.dumps(run_one(json.loads(arguments.one))))
        return
    measure(arguments.names, arguments.smollm2, arguments.folder)


if __name__ == "__main__":
    main()
