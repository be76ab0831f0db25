"""Every combination of parts builds, trains a step, decodes from a cache, saves and loads."""

import itertools

import pytest
import torch

from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.feed_forward import ACTIVATIONS
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.model.norms import NORMS
from llm_lab.model.positions import POSITION_EMBEDDINGS

VOCABULARY = 61
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
KEY_VALUE_HEADS = {"mha": 4, "gqa": 2, "mqa": 1}
COMBINATIONS = list(itertools.product(POSITION_EMBEDDINGS, NORMS, KEY_VALUE_HEADS, ACTIVATIONS))


def tiny_config(position: str = "rope", **changes) -> LabConfig:
    """A two-layer configuration that differs from the defaults by what is given."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "position_embedding": position,
        "rope_parameters": YARN if position == "yarn" else None,
    }
    return LabConfig(**(sizes | changes))


def tiny_model(position: str = "rope", **changes) -> LabForCausalLM:
    """A model whose weights are large enough for a mistake in any part to show in the logits."""
    torch.manual_seed(0)
    model = LabForCausalLM(tiny_config(position, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    """Random ids without the padding and end tokens."""
    return torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def left_padded(lengths: tuple[int, ...], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, (rows, width) each, with the real tokens at the right."""
    mask = torch.stack([torch.arange(width) >= width - length for length in lengths]).long()
    return tokens(len(lengths), width) * mask, mask


def decode_in_chunks(model: LabForCausalLM, ids: torch.Tensor, mask: torch.Tensor, ends: list[int], cache=None):
    """Logits of a forward pass that is cut at `ends` and carried on from the cache."""
    logits = []
    for start, end in itertools.pairwise([0, *ends]):
        output = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize(("position", "norm", "attention", "activation"), COMBINATIONS)
def test_every_combination_trains_decodes_saves_and_loads(position, norm, attention, activation, tmp_path):
    model = tiny_model(position, norm=norm, num_key_value_heads=KEY_VALUE_HEADS[attention], activation=activation)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    ids = tokens(2, 12)
    loss = model.train()(ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        assert not torch.equal(parameter, before[name]), name

    model.eval()
    ids, mask = left_padded((12, 7), 12)
    with torch.no_grad():
        full = model(ids, attention_mask=mask).logits
        chunked = decode_in_chunks(model, ids, mask, ends=[6, 7, 8, 12])
    real = mask.bool()
    torch.testing.assert_close(chunked[real], full[real], atol=2e-5, rtol=1e-4)

    model.save_pretrained(tmp_path)
    loaded = LabForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids, attention_mask=mask).logits, full)


def test_there_are_120_combinations():
    assert len(COMBINATIONS) == 120


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "layernorm"},
        {"num_key_value_heads": 1},
        {"activation": "relu"},
        {"qk_norm": True},
        {"sliding_window": 5},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"tie_word_embeddings": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_parts_are_orthogonal(change):
    plain, changed = tiny_config().to_dict(), tiny_config(**change).to_dict()
    assert {name for name in changed if changed[name] != plain.get(name)} == set(change)
