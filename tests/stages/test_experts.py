"""A mixture of experts is counted exactly, saved natively, resumed bit for bit, and its experts' use is measured."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe, write_text
from safetensors import safe_open
from support.pretrain_runs import losses, weights
from torch import nn
from transformers import AutoModelForCausalLM

from llm_lab.estimate.parameters import read_config_json, shape_of_config
from llm_lab.hf.configs import config_of_parts
from llm_lab.hf.load import build_from_config
from llm_lab.optim.factory import build_optimizer, split_parameters
from llm_lab.recipe.optimizers import Muon
from llm_lab.recipe.resolve import resolve
from llm_lab.runner import run
from llm_lab.training.expert_use import counting_experts, expert_metrics

EXPERTS = {"model.num_experts": 4, "model.intermediate_size": 32}
KINDS = {"MixtralForCausalLM": {}, "Qwen3MoeForCausalLM": {"model.qk_norm": True, "model.attention_bias": True}}


def built(**parts):
    resolved = resolve(tiny_recipe(**EXPERTS | parts))
    return resolved, build_from_config(config_of_parts(resolved.recipe.model.model_dump(), 257))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_flops_of_experts_are_counted_before_the_build(kind, tmp_path):
    resolved, model = built(**KINDS[kind])
    assert type(model).__name__ == kind
    shape = resolved.shape
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    hidden, biases = split_parameters(model)[0], 2 * 96 if shape.attention_bias else 0
    assert shape.matrix_parameters == sum(p.numel() for p in hidden) + biases
    idle = 2 * 2 * 3 * 32 * 32  # two of four experts, in two layers, of three matrices
    assert shape.active_matrix_parameters == shape.matrix_parameters - idle
    model.save_pretrained(tmp_path)
    assert shape_of_config(read_config_json(tmp_path)).parameters == shape.parameters


def test_without_a_given_width_a_token_costs_about_as_much_as_without_experts():
    dense = resolve(tiny_recipe(**{"model.hidden_size": 96})).shape
    experts = resolve(tiny_recipe(**{"model.hidden_size": 96, "model.num_experts": 8})).shape
    assert experts.intermediate_size * 2 == dense.intermediate_size
    assert experts.active_matrix_parameters - dense.matrix_parameters == 2 * 8 * 96, "only the routers are added"
    assert experts.parameters > 2 * dense.parameters


@pytest.fixture
def trained(in_tmp_path):
    write_text("text.txt")
    raw = tiny_recipe(**EXPERTS, optimizer={"name": "muon"})
    return raw, run(raw)


def test_a_run_is_native_measures_its_experts_and_resumes_bit_for_bit(trained):
    raw, whole = trained
    folder, rows, kept = Path(whole["path"]), losses(whole), weights(whole)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert type(model).__name__ == "MixtralForCausalLM"
    with safe_open(folder / "model" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert any("experts.0.w1" in name for name in names), "other programs know only Mixtral's first names"
    evaluated = [dict(row) for row in rows if "eval_loss" in dict(row)]
    assert all(row["busiest_expert"] >= 1 and 0 <= row["idle_experts"] < 1 for row in evaluated)
    shutil.rmtree(folder / "steps" / "checkpoint-20")
    shutil.rmtree(folder / "model")
    resumed = run(raw, resume=True)
    assert losses(resumed) == rows
    assert all(torch.equal(weight, kept[name]) for name, weight in weights(resumed).items())


def test_the_load_of_experts_is_counted_by_the_routers_choices():
    _, model = built()
    ids = torch.randint(0, 257, (2, 16))
    for layer in model.model.layers:
        layer.mlp.gate.weight.data = torch.tensor([3.0, 2.0, -2.0, -3.0])[:, None] * torch.ones(4, 32)
    model.model.embed_tokens.weight.data.abs_()
    with counting_experts(model) as counts:
        model(ids)
    assert [count.sum().item() for count in counts] == [2 * 16 * 2] * 2
    assert counts[0].tolist() == [32, 32, 0, 0], "positive states choose the first two experts"
    assert expert_metrics(counts[:1]) == {"busiest_expert": 2.0, "idle_experts": 0.5}
    assert expert_metrics([]) == {}


def test_muon_orthogonalizes_each_expert_by_itself():
    _, model = built()
    fused = model.model.layers[0].mlp.experts.down_proj
    start = fused.detach().clone()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    build_optimizer(model, Muon(learning_rate=1.0, weight_decay=0.0, ns_steps=8)).step()
    for expert in start - fused.detach():
        singular = torch.linalg.svdvals(nn.Parameter(expert))
        assert singular.min() > 0.5
        assert singular.max() < 1.5
