"""The compiled training step keeps attention's own causal kernel, whatever the versions of torch and transformers."""

import pytest
import torch
from transformers import AttentionMaskInterface, masking_utils
from transformers.masking_utils import sdpa_mask

from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.training.loss import next_token_loss
from llm_lab.training.pretrain_trainer import mask_where_needed


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
    torch.compile(next_token_loss, dynamic=False, backend=keep_graph)(model.train(), ids, ids, "cpu", "float32")
    nodes = [node for graph in graphs for node in graph.graph.nodes if "scaled_dot_product" in str(node.target)]
    return [node.kwargs for node in nodes]


def test_a_compiled_step_needs_no_mask_for_causal_attention(versions_that_build_masks):
    calls = attention_calls(lab_model())
    assert len(calls) == 2
    assert all(call["is_causal"] is True and call["attn_mask"] is None for call in calls)


def test_a_compiled_step_has_a_mask_where_attention_is_not_only_causal(versions_that_build_masks):
    calls = attention_calls(lab_model(sliding_window=8))
    assert len(calls) == 2
    assert all(call["is_causal"] is False and call["attn_mask"] is not None for call in calls)


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
def test_a_mask_that_says_more_than_causal_is_built_as_by_transformers(changes):
    inputs = PLAIN | changes
    assert mask_where_needed(**PLAIN) is None
    expected, mask = sdpa_mask(**inputs), mask_where_needed(**inputs)
    assert (mask is None) == (expected is None)
    if expected is not None:
        assert torch.equal(mask, expected)
