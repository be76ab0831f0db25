"""Every combination of parts can be built, trained, decoded with a cache, saved and loaded."""

import pytest
import torch
from support.sampling import every_pair
from support.tiny_models import (
    COMBINATIONS,
    KEY_VALUE_HEADS,
    PARTS,
    decode_in_chunks,
    left_padded,
    tiny_config,
    tiny_model,
    tokens,
)

from llm_lab.model.modeling_lab import LabForCausalLM


@pytest.mark.parametrize(("position", "norm", "attention", "activation"), every_pair(*PARTS))
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
def test_changing_a_part_changes_nothing_else(change):
    plain, changed = tiny_config().to_dict(), tiny_config(**change).to_dict()
    assert {name for name in changed if changed[name] != plain.get(name)} == set(change)
