"""The reward stage: it learns which answers are better, and what it saves scores as what it trained."""

import json

import pytest
import torch
from reward_runs import make_recipe, run_stage, write_base, write_preferences
from torch.nn import functional as F

from llm_lab.hf.conversations import encode_conversation
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.errors import UserError
from llm_lab.rewards.models import load_reward_model


@pytest.mark.parametrize("parts", [{}, {"position_embedding": "alibi", "norm": "layernorm", "activation": "gelu"}])
def test_it_learns_a_toy_preference_and_what_it_saves_scores_alike(tmp_path, parts):
    base = write_base(tmp_path / "base", **parts)
    data = write_preferences(tmp_path / "pairs.jsonl")
    folder, result, _ = run_stage(make_recipe(base, data), tmp_path / "run")
    assert result.status == "done"
    assert result.results["eval_accuracy"] > 0.95
    assert result.results["eval_margin"] > 1.0
    config = json.loads((folder.model_path / "config.json").read_text())
    ours = bool(parts)
    assert config["architectures"] == ["LabForSequenceClassification" if ours else "LlamaForSequenceClassification"]
    judge = load_reward_model(folder.model_path)
    polite, rude = judge([[{"role": "user", "content": "new question?"}]] * 2, ["please sit down", "sit down"])
    assert polite > rude
