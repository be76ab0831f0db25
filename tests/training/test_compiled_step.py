"""The compiled training step keeps attention's own causal kernel, whatever the versions of torch and transformers."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_recipe, write_text
from torch._inductor.utils import run_and_get_code
from transformers import AttentionMaskInterface, LlamaConfig, LlamaForCausalLM, masking_utils
from transformers.masking_utils import sdpa_mask

from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.model.positions import Rope, Yarn
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.training.loss import next_token_loss
from llm_lab.training.pretrain_trainer import compiled_loss, mask_where_needed, unpacked_rows


def lab_model(**parts) -> LabForCausalLM:
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LabForCausalLM(LabConfig(**shape, num_key_value_heads=2, max_position_embeddings=64, **parts))


@pytest.fixture
def versions_that_build_masks(monkeypatch):
    """transformers builds the mask while it is compiled, as with torch before 2.14."""
    monkeypatch.setattr(masking_utils, "is_torchdynamo_exporting", lambda: True)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "sdpa", mask_where_needed)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def attention_calls(model) -> list[dict]:
    """Return the arguments of each attention in the compiled graph of a step."""
    graphs = []

    def keep_graph(graph, inputs):
        graphs.append(graph)
        return graph.forward

    ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    with unpacked_rows():
        torch.compile(next_token_loss, dynamic=False, backend=keep_graph)(model.train(), ids, ids, "cpu", "float32")
    nodes = [node for graph in graphs for node in graph.graph.nodes if "scaled_dot_product" in str(node.target)]
    return [node.kwargs for node in nodes]


def llama_model() -> LlamaForCausalLM:
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2))


@pytest.mark.parametrize("model", [lab_model, llama_model])
def test_a_compiled_step_needs_no_mask_for_causal_attention(versions_that_build_masks, model):
    calls = attention_calls(model())
    assert len(calls) == 2
    assert all(call["is_causal"] is True and call["attn_mask"] is None for call in calls)


def test_a_compiled_step_has_a_mask_if_attention_is_not_only_causal(versions_that_build_masks):
    calls = attention_calls(lab_model(sliding_window=8))
    assert len(calls) == 2
    assert all(call["is_causal"] is False and call["attn_mask"] is not None for call in calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_positions_equal_the_others_exactly(dtype):
    positions = torch.arange(40)[None]
    for rope in (Rope(16, 10_000.0), Yarn(16, 10_000.0, factor=4.0, original_max_position_embeddings=8)):
        compiled = torch.compile(rope, backend="aot_eager", dynamic=False)
        for one, other in zip(compiled(positions, dtype), rope(positions, dtype), strict=True):
            assert one.dtype == dtype
            assert torch.equal(one, other)


@pytest.mark.slow
def test_a_compiled_step_computes_sines_and_cosines_once_for_all_layers():
    """Otherwise they would be computed again for each element of every q and k, forward and backward."""
    ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    model, step = lab_model().train(), compiled_loss()
    _, code = run_and_get_code(lambda: step(model, ids, ids, "cpu", "float32").backward())
    kernels = "".join(code).split("async_compile.")
    assert len(kernels) > 5
    assert sum("cos(" in kernel for kernel in kernels) == 1


PLAIN = {"batch_size": 1, "q_length": 4, "kv_length": 4, "q_offset": 0, "kv_offset": 0, "allow_is_causal_skip": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_mask": torch.tensor([[False, True, True, True]])},
        {"allow_is_causal_skip": False},  # packed documents
        {"local_size": 3},
        {"q_length": 2, "q_offset": 2},  # a cached prefix
        {"q_offset": torch.tensor(0)},  # a static cache
    ],
)
def test_a_mask_that_is_more_than_causal_is_built_as_by_transformers(changes):
    inputs = PLAIN | changes
    assert mask_where_needed(**PLAIN) is None
    expected, mask = sdpa_mask(**inputs), mask_where_needed(**inputs)
    assert (mask is None) == (expected is None)
    if expected is not None:
        assert torch.equal(mask, expected)


def losses_of_sophia(monkeypatch, *, compiled: bool) -> tuple[list[float], int]:
    """Return the losses of a short run, and how often the compiled step ran. Nothing is actually compiled."""
    calls = []

    def watched_compile(function, **options):
        def watched(*args, **more):
            calls.append(function)
            return function(*args, **more)

        return watched

    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", watched_compile)
        train = {"train.max_steps": 4, "train.logging_steps": 1, "train.eval_steps": 4, "train.save_steps": 4}
        raw = tiny_recipe(**train, **{"train.compile": compiled, "optimizer": {"name": "sophia", "k": 2}})
        facts = run(raw)
    return [row["loss"] for row in RunFolder(Path(facts["path"])).metrics() if "loss" in row], len(calls)


def test_sophias_curvature_is_estimated_by_the_compiled_step(in_tmp_path, monkeypatch):
    write_text("text.txt")
    eager, none = losses_of_sophia(monkeypatch, compiled=False)
    compiled, calls = losses_of_sophia(monkeypatch, compiled=True)
    assert none == 0
    assert calls == 4 + 2  # steps, and estimates after the first and the third
    assert compiled == pytest.approx(eager, abs=1e-6)


def test_cudnn_attention_is_used_only_if_no_shape_changes(in_tmp_path, monkeypatch):
    """cuDNN plans each new length, so it is on in compiled steps, and off in generation and in other steps."""
    write_text("text.txt")
    seen = []
    forward, generate = LabForCausalLM.forward, LabForCausalLM.generate

    def watched(kind, function):
        def call(self, *args, **options):
            seen.append((kind, self.training, torch.backends.cuda.cudnn_sdp_enabled()))
            return function(self, *args, **options)

        return call

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(LabForCausalLM, "forward", watched("forward", forward))
    monkeypatch.setattr(LabForCausalLM, "generate", watched("generate", generate))
    for compiled in (True, False):
        seen.clear()
        steps = {"scheduler": {}, "train.max_steps": 2, "train.eval_steps": 2, "train.save_steps": 2}
        run(tiny_recipe(**steps, **{"train.compile": compiled}))
        assert {cudnn for kind, training, cudnn in seen if kind == "forward" and training} == {compiled}
        assert {cudnn for kind, _, cudnn in seen if kind == "generate"} == {False}
