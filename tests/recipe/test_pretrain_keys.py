"""No dead keys in pretraining: changing one key changes what a real run does.

The default suite changes every fifth key; `make test-all` changes all.
"""

import copy
import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.recipe_keys import every_fifth, is_checkpointed
from support.tiny_models import tiny_config

from llm_lab.errors import MachineError
from llm_lab.evaluation import score
from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.optim.factory import BUILDERS
from llm_lab.recipe.fields import leaf_keys
from llm_lab.recipe.optimizers import eight_bits_require_cuda
from llm_lab.recipe.pretrain import PRETRAIN, PretrainRecipe
from llm_lab.recipe.registry import STAGES
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.stages import pretrain
from llm_lab.training import pretrain_data

YARN = {"model.position_embedding": "yarn"}
EIGHT_BIT = {"optimizer": {"name": "adamw_8bit"}}
MUON = {"optimizer": {"name": "muon"}}
LION = {"optimizer": {"name": "lion"}}
SOPHIA = {"optimizer": {"name": "sophia"}}
ADAFACTOR = {"optimizer": {"name": "adafactor"}}
TWO = {"data": [{"path": "text.txt"}, {"path": "rows.jsonl", "text_column": "text"}]}
ROWS = {"data": [{"path": "rows.jsonl", "text_column": "text"}]}
SCORED = {"score": {"path": "asked.jsonl", "split": "train", "prompts": 2, "max_completion_length": 4}}
SCORED["score"]["rewards"] = [{"python": "mine.py:near"}]
STREAM = {"data": [{"path": "rows.jsonl", "text_column": "text", "streaming": True}], "validation.stream_documents": 30}

# {key: (its new value, the effect that changes, what else the recipe needs)}
EFFECTS: dict[str, tuple[Any, str] | tuple[Any, str, dict]] = {
    "PretrainRecipe.name": ("other", "path"),
    "PretrainRecipe.seed": (7, "losses"),
    "PretrainRecipe.device": ("cuda", "refused"),
    "PretrainRecipe.tokenizer": ({"bpe": 280}, "tokenizer"),
    "PretrainRecipe.when_exhausted": ("stop", "logged at", {"train.per_device_train_batch_size": 64}),
    "ModelParts.size": ("micro", "config", {"model": {"num_hidden_layers": 1}}),
    "ModelParts.position_embedding": ("alibi", "losses"),
    "ModelParts.rope_theta": (50.0, "losses"),
    "ModelParts.yarn_factor": (2.0, "losses", YARN),
    "ModelParts.original_max_position_embeddings": (16, "losses", YARN | {"model.max_position_embeddings": None}),
    "ModelParts.norm": ("layernorm", "config"),
    "ModelParts.norm_eps": (0.1, "losses"),
    "ModelParts.attention": ("mha", "config", {"model.num_key_value_heads": None}),
    "ModelParts.activation": ("gelu", "losses"),
    "ModelParts.hidden_size": (16, "config"),
    "ModelParts.num_hidden_layers": (1, "config"),
    "ModelParts.num_attention_heads": (4, "config"),
    "ModelParts.num_key_value_heads": (2, "config"),
    "ModelParts.head_dim": (8, "config"),
    "ModelParts.intermediate_size": (64, "config"),
    "ModelParts.max_position_embeddings": (64, "config"),
    "ModelParts.tie_word_embeddings": (False, "config"),
    "ModelParts.attention_bias": (True, "config"),
    "ModelParts.mlp_bias": (True, "config"),
    "ModelParts.qk_norm": (True, "config"),
    "ModelParts.sliding_window": (4, "losses"),
    "ModelParts.sliding_window_pattern": ("S", "losses", {"model.sliding_window": 4, "model.num_hidden_layers": 3}),
    "ModelParts.final_logit_softcapping": (0.5, "losses"),
    "ModelParts.zero_init": (True, "losses"),
    "ModelParts.residual_scalars": (True, "losses"),
    "ModelParts.value_embeddings": (True, "losses"),
    "ModelParts.num_experts": (4, "config"),
    "ModelParts.num_experts_per_tok": (1, "config", {"model.num_experts": 2, "model.intermediate_size": 32}),
    "ModelParts.router_aux_loss_coef": (5.0, "losses", {"model.num_experts": 2}),
    "ModelParts.dropout": (0.5, "losses"),
    "ModelParts.attention_dropout": (0.5, "losses"),
    "ModelParts.initializer_range": (0.1, "losses"),
    "ModelConfig.config": ("shape", "config"),
    "ModelCheckpoint.checkpoint": ("weights", "losses"),
    "DataSource.path": ("other.txt", "losses"),
    "DataSource.subset": ("part", "sources"),
    "DataSource.split": ("test", "sources"),
    "DataSource.text_column": ("reply", "losses", ROWS),
    "DataSource.streaming": (True, "losses", ROWS | {"validation.stream_documents": 30}),
    "DataSource.weight": (5.0, "losses", TWO),
    "Validation.fraction": (0.3, "evaluations"),
    "Validation.from": ("random", "evaluations", ROWS),
    "Validation.stream_documents": (10, "evaluations", STREAM),
    "Validation.max_tokens": (50, "evaluations"),
    "AdamW.name": ("muon", "losses", {"optimizer": {"name": "adamw"}}),
    "AdamW.learning_rate": (0.001, "losses"),
    "AdamW.betas": ([0.5, 0.6], "losses"),
    "AdamW.eps": (0.1, "losses"),
    "AdamW.weight_decay": (5.0, "losses"),
    "AdamW8bit.name": ("adamw", "optimizers", EIGHT_BIT),
    "AdamW8bit.learning_rate": (0.01, "losses", EIGHT_BIT),
    "AdamW8bit.betas": ([0.5, 0.6], "losses", EIGHT_BIT),
    "AdamW8bit.eps": (0.1, "losses", EIGHT_BIT),
    "AdamW8bit.weight_decay": (9.0, "losses", EIGHT_BIT),
    "AdamW.cautious_weight_decay": (True, "losses", {"optimizer": {"name": "adamw", "weight_decay": 5.0}}),
    "AdamW8bit.cautious_weight_decay": (True, "losses", {"optimizer": {"name": "adamw_8bit", "weight_decay": 9.0}}),
    "Muon.cautious_weight_decay": (True, "losses", {"optimizer": {"name": "muon", "weight_decay": 5.0}}),
    "Muon.normalized": (True, "losses", MUON),
    "Muon.neuron_beta": (0.5, "losses", {"optimizer": {"name": "muon", "normalized": True}}),
    "Lion.cautious_weight_decay": (
        True,
        "losses",
        {"optimizer": {"name": "lion", "learning_rate": 0.01, "weight_decay": 9.0}},
    ),
    "Sophia.cautious_weight_decay": (
        True,
        "losses",
        {"optimizer": {"name": "sophia", "learning_rate": 0.01, "weight_decay": 9.0}},
    ),
    "Muon.name": ("adamw", "losses", MUON),
    "Muon.learning_rate": (0.1, "losses", MUON),
    "Muon.momentum": (0.5, "losses", MUON),
    "Muon.nesterov": (False, "losses", MUON),
    "Muon.ns_steps": (2, "losses", MUON),
    "Muon.weight_decay": (5.0, "losses", MUON),
    "Muon.adamw_learning_rate": (0.1, "losses", MUON),
    "Muon.adamw_betas": ([0.5, 0.6], "losses", MUON),
    "Muon.adamw_eps": (0.1, "losses", MUON),
    "Lion.name": ("adamw", "losses", LION),
    "Lion.learning_rate": (0.01, "losses", LION),
    "Lion.betas": ([0.5, 0.6], "losses", LION),
    "Lion.weight_decay": (9.0, "losses", {"optimizer": {"name": "lion", "learning_rate": 0.01}}),
    "Sophia.name": ("adamw", "losses", SOPHIA),
    "Sophia.learning_rate": (0.01, "losses", SOPHIA),
    "Sophia.betas": ([0.5, 0.6], "losses", SOPHIA),
    "Sophia.rho": (5.0, "losses", SOPHIA),
    "Sophia.k": (1, "losses", SOPHIA),
    "Sophia.weight_decay": (9.0, "losses", {"optimizer": {"name": "sophia", "learning_rate": 0.01}}),
    "Adafactor.name": ("adamw", "losses", ADAFACTOR),
    "Adafactor.learning_rate": (0.1, "losses", ADAFACTOR),
    "Adafactor.scale_parameter": (False, "losses", ADAFACTOR),
    "Adafactor.decay_rate": (0.1, "losses", ADAFACTOR),
    "Adafactor.clip_threshold": (0.1, "losses", ADAFACTOR),
    "Adafactor.beta1": (0.5, "losses", ADAFACTOR),
    "Adafactor.eps": ([1e-30, 0.5], "losses", ADAFACTOR),
    "Adafactor.weight_decay": (9.0, "losses", ADAFACTOR),
    "Scheduler.name": ("none", "learning rates"),
    "Scheduler.warmup_steps": (3, "learning rates"),
    "Scheduler.warmup_ratio": (0.75, "learning rates", {"scheduler": {}}),
    "Scheduler.min_ratio": (0.5, "learning rates"),
    "Scheduler.power": (1.0, "learning rates", {"scheduler.name": "polynomial"}),
    "Scheduler.decay_ratio": (0.5, "learning rates", {"scheduler.name": "wsd"}),
    "Scheduler.weight_decay": ("linear", "losses", {"optimizer": {"name": "adamw", "weight_decay": 9.0}}),
    "Train.batch_size_warmup_steps": (2, "losses", {"train.per_device_train_batch_size": 4}),
    "Train.ema_decay": (0.9, "evaluations"),
    "Train.max_steps": (5, "logged at"),
    "Train.max_length": (8, "losses"),
    "Train.per_device_train_batch_size": (2, "losses"),
    "Train.gradient_accumulation_steps": (2, "losses"),
    "Train.max_grad_norm": (0.1, "losses"),
    "Train.eval_steps": (1, "evaluations"),
    "Train.save_steps": (1, "checkpoints"),
    "Train.save_total_limit": (1, "checkpoints"),
    "Train.logging_steps": (3, "logged at", {"train.save_steps": 4}),
    "Train.dtype": ("bfloat16", "losses"),
    "Train.attn_implementation": ("eager", "built"),
    "Train.report_to": ("tensorboard", "trackers"),
    "Train.document_mask": (True, "losses", ROWS),
    "Train.gradient_checkpointing": (True, "built"),
    "Train.compile": (True, "compiled"),
    "Train.threads": (2, "threads", {"train.max_steps": 3}),
    "Train.deterministic": (True, "deterministic"),
    "Samples.prompts": (["a"], "samples"),
    "Samples.max_new_tokens": (9, "samples"),
    "Samples.temperature": (0.0, "samples"),
    "Score.path": ("asked_too.jsonl", "scores", SCORED),
    "Score.subset": ("part", "sources", SCORED),
    "Score.split": ("test", "sources", SCORED),
    "Score.prompts": (4, "scores", SCORED),
    "Score.max_completion_length": (2, "scores", SCORED),
}
# Groups that the stages after pretraining share and that are tested there.
SHOWN_BY_OTHERS = ("Columns.", "RewardTerm.")
# For runs that go wrong (training/test_seat_belts.py) and several processes (stages/test_processes_agree.py).
TESTED_ELSEWHERE = {"Train.on_divergence", "Train.distributed"}
LEAVES = {f"{owner}.{key.name}": key.path for key, owner in leaf_keys(PretrainRecipe) if key.path != "stage"}


def test_every_key_has_a_visible_effect_listed():
    assert set(EFFECTS) == {key for key in LEAVES if not key.startswith(SHOWN_BY_OTHERS)} - TESTED_ELSEWHERE


def test_each_stage_has_a_module_that_runs_it():
    for name, stage in STAGES.items():
        assert Path(importlib.util.find_spec(stage.module_name).origin).stem == name


def observe(raw: dict, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a recipe and return its visible effects.

    Subset and split apply to Hub datasets; here, they only have to reach the source. The 8-bit AdamW requires CUDA, so
    torch's AdamW replaces it and its arguments are checked.
    """
    seen: dict[str, Any] = {"compiled": False, "sources": [], "optimizers": 0}
    build, open_source, open_prompts = pretrain.build, pretrain_data.open_source, score.open_examples

    def watched_build(*args):
        model = build(*args)
        layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
        seen["threads"] = torch.get_num_threads()
        seen["deterministic"] = torch.are_deterministic_algorithms_enabled()
        seen["built"] = (model.config._attn_implementation, type(layers[0]).__name__, is_checkpointed(model))
        return model

    def watched_source(path, **keys):
        seen["sources"].append(dict(keys))
        return open_source(path, key=keys["key"], text_column=keys["text_column"])

    def watched_prompts(path, **keys):
        seen["sources"].append(dict(keys))
        return open_prompts(path, key=keys["key"], kind=keys["kind"])

    def watched_compile(function, **keys):
        seen["compiled"] = True
        return function

    def build_8bit(model, options):
        seen["optimizers"] += 1
        manager = SimpleNamespace(
            register_module_override=lambda module, name, config: None,
            initialize=lambda: None,
            module_weight_config_triple=[],
        )
        optimizer = type("AdamW8bit", (torch.optim.AdamW,), {"check_overrides": lambda self: None})
        stand_in = SimpleNamespace(
            AdamW8bit=optimizer, GlobalOptimManager=SimpleNamespace(get_instance=lambda: manager)
        )
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=stand_in))
            patch.setitem(sys.modules, "bitsandbytes.optim", stand_in)
            return builder(model, options)

    builder = BUILDERS["adamw_8bit"]
    with monkeypatch.context() as patch:
        patch.setitem(BUILDERS, "adamw_8bit", build_8bit)
        kept = tuple(rule for rule in PRETRAIN.rules if rule is not eight_bits_require_cuda)
        patch.setitem(STAGES, PRETRAIN.name, replace(PRETRAIN, rules=kept))
        patch.setattr(pretrain, "build", watched_build)
        patch.setattr(pretrain_data, "open_source", watched_source)
        patch.setattr(score, "open_examples", watched_prompts)
        patch.setattr("llm_lab.data.examples.look_at_examples", lambda *args, **keys: None)
        patch.setattr("llm_lab.data.sources.look_at_source", lambda *args, **keys: None)
        patch.setattr(torch, "compile", watched_compile)
        try:
            facts = run(raw)
        except MachineError as error:
            return {"refused": str(error)}
    folder = RunFolder(Path(facts["path"]))
    rows = folder.metrics()
    return seen | {
        "path": re.sub(r"-\d+$", "", folder.path.name),
        "losses": [row["loss"] for row in rows if "loss" in row],
        "learning rates": [row["learning_rate"] for row in rows if "loss" in row],
        "logged at": [row["step"] for row in rows if "loss" in row],
        "evaluations": [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row],
        "checkpoints": [step for step, _ in folder.checkpoints()],
        "config": json.loads((folder.model_path / "config.json").read_text()),
        "tokenizer": (folder.model_path / "tokenizer.json").read_text(),
        "samples": folder.samples_path.read_text(),
        "trackers": (folder.path / "tracking").exists(),
        "scores": [(row["eval_reward_sampled"], row["eval_completion_length"]) for row in rows if "eval_reward" in row],
    }


def recipe(changes: dict) -> dict:
    raw = tiny_recipe(validation={}, tokenizer="bytes", **{"train.max_steps": 4})
    raw["train"] |= {"eval_steps": 2, "save_steps": 2, "logging_steps": 1}
    raw["scheduler"] = {"warmup_steps": 1}
    for key, value in copy.deepcopy(changes).items():
        group, _, name = key.rpartition(".")
        (raw[group] if group else raw)[name] = value
    return raw


def put(raw: dict, path: str, value: Any) -> dict:
    *groups, name = path.split(".")
    node: Any = raw
    for group in groups:
        node = node[0] if group == "N" else node[group]
    if name in ("config", "checkpoint"):
        raw["model"] = {name: value}
        raw.pop("tokenizer")
    else:
        node[name] = value
    return raw


@pytest.fixture(scope="module")
def observed():
    """The effects of recipes before the change; each is run once."""
    return {}


@pytest.mark.parametrize("key", every_fifth(EFFECTS))
def test_changing_one_key_changes_the_run(key, in_tmp_path, monkeypatch, observed):
    write_text("text.txt", 60)
    write_text("other.txt", 60, seed=1)
    words = write_text("words.txt", 120, seed=2)
    lines = Path(words).read_text().splitlines()
    rows = (json.dumps({"text": text, "reply": text[::-1]}) + "\n" for text in lines)
    Path("rows.jsonl").write_text("".join(rows))
    code = "def near(completions, **columns): return [sum(map(ord, text)) % 97 / 97 for text in completions]"
    Path("mine.py").write_text(code)
    for name, count in (("asked.jsonl", 8), ("asked_too.jsonl", 1)):
        Path(name).write_text("".join(json.dumps({"prompt": f"{i} {name}"}) + "\n" for i in range(count)))
    config = tiny_config(vocab_size=257, eos_token_id=None, pad_token_id=None)
    config.save_pretrained("shape")
    save_model(LabForCausalLM(config), Path("weights"), make_byte_tokenizer())

    value, facet, *needs = EFFECTS[key]
    needs = needs[0] if needs else {}
    known = json.dumps(needs)
    if known not in observed:
        observed[known] = observe(recipe(needs), monkeypatch)
    after = observe(put(recipe(needs), LEAVES[key], value), monkeypatch)
    assert after.get(facet) != observed[known].get(facet)
