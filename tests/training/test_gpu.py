"""Tests that need a CUDA GPU with bf16. Skipped elsewhere; `make test-all` runs them if there is one."""

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.tiny_models import tiny_config

from llm_lab.estimate.machine import find_machine
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.optim.factory import build_optimizer
from llm_lab.recipe.optimizers import OPTIMIZERS, AdamW, AdamW8bit
from llm_lab.recipe.parts import ACTIVATIONS, NORMS, POSITIONS
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.training import loss as token_loss
from llm_lab.training.loss import next_token_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_machine().cuda_problem is not None, reason="no CUDA GPU with bf16 support"),
]


@pytest.fixture(autouse=True)
def _text(in_tmp_path):
    write_text("text.txt")


def recipe(**changes) -> dict:
    raw = tiny_recipe(device="cuda", **{"train.dtype": "bfloat16", "train.max_steps": 40} | changes)
    raw["model"] |= {"hidden_size": 64}
    return raw


def losses(facts: dict) -> list[float]:
    return [row["loss"] for row in RunFolder(Path(facts["path"])).metrics() if "loss" in row]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_reduces_the_loss_in_bf16(name):
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    seen = losses(run(recipe(optimizer={"name": name})))
    assert seen[-1] < seen[0] - 0.3


@pytest.mark.parametrize(
    ("position", "norm", "activation"),
    [*itertools.product(POSITIONS, NORMS, ["swiglu"]), *[("rope", "rmsnorm", a) for a in ACTIVATIONS]],
)
def test_every_part_trains_compiled_in_bf16(position, norm, activation):
    raw = recipe(**{"train.compile": True, "train.max_steps": 10, "train.eval_steps": 10, "train.save_steps": 10})
    raw["model"] |= {"position_embedding": position, "norm": norm, "activation": activation}
    seen = losses(run(raw))
    assert seen[-1] < seen[0]


def test_adamw_8bit_matches_adamw_with_a_quarter_of_its_memory():
    pytest.importorskip("bitsandbytes")
    config = tiny_config(hidden_size=256, intermediate_size=512, vocab_size=61)
    ids = torch.randint(0, 61, (4, 32), device="cuda")
    seen, sizes = {}, {}
    for options in (AdamW(), AdamW8bit()):
        torch.manual_seed(0)
        model = LabForCausalLM(config).cuda().train()
        optimizer = build_optimizer(model, options)
        for _ in range(20):
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seen[options.name] = loss.item()
        states = optimizer.state_dict()["state"].values()
        tensors = [value for state in states for value in state.values() if torch.is_tensor(value)]
        sizes[options.name] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        embedding = optimizer.state[model.get_input_embeddings().weight]
        assert all(value.dtype == torch.float32 for value in embedding.values() if torch.is_tensor(value))
    assert seen["adamw_8bit"] == pytest.approx(seen["adamw"], rel=0.1)
    assert sizes["adamw_8bit"] < 0.35 * sizes["adamw"]


def test_the_chunked_loss_trains_and_needs_less_memory_on_a_gpu(monkeypatch):
    torch.manual_seed(0)
    model = LabForCausalLM(tiny_config(hidden_size=64, vocab_size=32_768)).cuda().train()
    ids = torch.randint(0, 32_768, (8, 513), device="cuda")
    seen = {}
    for bound in (2**40, 2**25):
        monkeypatch.setattr(token_loss, "PIECE_OF_LOGITS_BYTES", bound)
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        with token_loss.detach_large_head(model, 8 * 512) as head:
            assert (head is None) == (bound == 2**40)
            loss = next_token_loss(model, ids[:, :-1], ids[:, 1:], "cuda", "bfloat16", head)
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        seen[bound] = loss.item(), gradients, torch.cuda.max_memory_allocated()
    (loss, gradients, memory), (got, found, less) = seen.values()
    assert got == pytest.approx(loss, rel=1e-3)
    assert less < memory / 2
    for expected, gradient in zip(gradients, found, strict=True):
        assert (gradient - expected).norm() < 0.02 * expected.norm()


def test_the_same_recipe_gives_the_same_losses_on_a_gpu():
    assert losses(run(recipe())) == losses(run(recipe()))


@pytest.mark.parametrize("kernel", ["flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_attention_kernels_agree(kernel, position):
    if kernel == "flash_attention_2" and (position == "alibi" or not importlib.util.find_spec("flash_attn")):
        pytest.skip("flash attention does not support ALiBi, or is not installed")
    config = tiny_config(hidden_size=128, num_attention_heads=2, head_dim=64, position_embedding=position)
    reference = LabForCausalLM._from_config(config, attn_implementation="sdpa").to("cuda", torch.bfloat16).eval()
    other = LabForCausalLM._from_config(config, attn_implementation=kernel).to("cuda", torch.bfloat16).eval()
    other.load_state_dict(reference.state_dict())
    ids = torch.randint(0, config.vocab_size, (2, 128), device="cuda")
    with torch.no_grad():
        torch.testing.assert_close(other(ids).logits, reference(ids).logits, rtol=5e-2, atol=5e-2)
