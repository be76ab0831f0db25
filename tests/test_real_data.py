"""Public datasets as they are published, through the commands; skipped if they have not been downloaded."""

import json
from itertools import islice
from pathlib import Path

import pytest
import yaml
from support.post_runs import write_base

from llm_lab.cli import main
from llm_lab.runs.folder import RunFolder

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
GSM8K, SEEDS = SHARED / "gsm8k_train.jsonl", SHARED / "seed_tasks.jsonl"
pytestmark = pytest.mark.skipif(not (GSM8K.exists() and SEEDS.exists()), reason="the public sets are not here")


@pytest.fixture(autouse=True)
def base(in_tmp_path):
    write_base(hidden_size=16, num_hidden_layers=1, max_position_embeddings=768)
    with open(GSM8K, encoding="utf-8") as file:
        Path("gsm8k.jsonl").write_text("".join(islice(file, 200)), encoding="utf-8")


def write_recipe(stage: str, data: Path | str, **more) -> str:
    train = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_steps": 2, "logging_steps": 1}
    scored = {"prompts": 2, "max_completion_length": 4, "rewards": [{"name": "exact_number"}]}
    raw = {
        "stage": stage,
        "device": "cpu",
        "model": {"checkpoint": "base"},
        "data": [{"path": str(data)}],
        "train": train,
        "samples": {"max_new_tokens": 4},
        "score": scored,
    }
    if stage == "sft":
        raw["validation"] = {"fraction": 0.1, "max_examples": 4}
    Path(f"{stage}.yaml").write_text(yaml.safe_dump(raw | more))
    return f"{stage}.yaml"


GRPO = {
    "rewards": [{"name": "exact_number"}, {"name": "length", "length": 40, "weight": 0.1}],
    "grpo": {"num_generations": 2, "max_completion_length": 8},
}


def rows_of(stage: str) -> list[dict]:
    return RunFolder(Path("checkpoints", stage)).metrics()


def test_gsm8k_through_sft(capsys):
    assert main(["run", write_recipe("sft", "gsm8k.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "200 of 200 rows" in said
    rows = rows_of("sft")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert all({"exact_match", "eval_loss"} <= row.keys() for row in rows if "loss" not in row)


def test_gsm8k_through_grpo_with_answers_that_are_checked(capsys):
    assert main(["run", write_recipe("grpo", "gsm8k.jsonl", **GRPO)]) == 0
    assert "reward: exact_number" in capsys.readouterr().out
    updates = [row for row in rows_of("grpo") if "loss" in row]
    assert [row["step"] for row in updates] == [1, 2]
    assert all(row["reward/exact_number"] == 0 for row in updates)  # by an untrained model
    assert all(0 < row["reward"] <= 0.1 for row in updates)


def test_the_seeds_of_self_instruct_through_sft(capsys):
    assert main(["run", write_recipe("sft", SEEDS, score=None), "train.max_length=256"]) == 0
    said = capsys.readouterr().out
    assert "175 of 175 rows" in said
    assert "longer than 256 tokens: the end was cut off" in said
    assert [row["step"] for row in rows_of("sft") if "loss" in row] == [1, 2]


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "grpo"])
def test_all_of_gsm8k_is_checked_and_read(stage, capsys):
    recipe = write_recipe(stage, GSM8K, **(GRPO if stage == "grpo" else {}))
    assert main(["check", recipe]) == 0
    assert main(["xray", recipe]) == 0
    said = capsys.readouterr().out
    with open(GSM8K, encoding="utf-8") as file:
        first = json.loads(next(file))["question"].split()[0]
    assert "7,473" in said
    assert first
