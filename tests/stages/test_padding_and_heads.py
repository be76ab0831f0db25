"""The cost of batches with different lengths: no mask for padding on the right, no logits of a whole batch at once."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from support.tiny_models import tiny_model
from torch.nn import functional as F
from trl.trainer.utils import add_fused_lm_head

from llm_lab.hf.conversations import IGNORED, Encoded
from llm_lab.recipe.ppo import PpoRecipe
from llm_lab.stages import critic
from llm_lab.stages.sft import collate_rows, sum_nats
from llm_lab.training import loss as token_loss
from llm_lab.training.tuned_run import drop_right_padding, frozen_dtype


@pytest.fixture
def masks(monkeypatch):
    """The masks that attention gets."""
    seen, attention = [], F.scaled_dot_product_attention

    def watched(*args, attn_mask=None, **options):
        seen.append(attn_mask)
        return attention(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    return seen


def test_padding_on_the_right_needs_no_mask_and_changes_no_token(masks):
    model = tiny_model()
    add_fused_lm_head(model)
    ids = torch.randint(2, 61, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}
    before = model(**inputs, fused_lm_head=True).log_probs
    assert any(given is not None for given in masks)
    masks.clear()
    drop_right_padding(model)
    after = model(**inputs, fused_lm_head=True).log_probs
    assert masks
    assert all(given is None for given in masks)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-5)
    masks.clear()
    model(input_ids=ids, attention_mask=mask.flip(1))  # such as prompts in generation, padded on the left
    assert all(given is not None for given in masks)


def test_the_loss_on_held_out_examples_is_the_same_in_pieces(monkeypatch):
    model = tiny_model()
    rows = [list(range(2, 2 + length)) for length in (5, 9, 12, 4)]
    examples = [Encoded(ids, [0, 0] + [1] * (len(ids) - 2), len(ids)) for ids in rows]
    measure = partial(
        sum_nats, model, examples, partial(collate_rows, pad_token_id=0), rows=2, device="cpu", dtype="float32"
    )
    whole = measure()
    monkeypatch.setattr(token_loss, "PIECE_OF_LOGITS_BYTES", 4 * 61 * 4)
    heads = []
    summed = token_loss.summed_cross_entropy
    monkeypatch.setattr(
        "llm_lab.stages.sft.summed_cross_entropy", lambda *given: heads.append(given[1]) or summed(*given)
    )
    assert measure() == pytest.approx(whole, rel=1e-6)
    assert len(heads) == 2


def ppo_recipe(**changes) -> PpoRecipe:
    raw = {
        "stage": "ppo", "name": "x", "device": "cuda", "model": {"checkpoint": "base"},
        "data": [{"path": "rows.jsonl"}],
        "rewards": [{"name": "exact_number"}], "lora": {"preset": "all"},
        "train": {"dtype": "bfloat16", "attn_implementation": "sdpa"},
    }  # fmt: skip
    return PpoRecipe.model_validate(raw | changes)


@pytest.mark.parametrize("own", [None, "scorer"])
def test_the_frozen_weights_of_a_critic_take_as_little_memory_as_those_of_the_model(own, monkeypatch):
    seen = []

    def watch(*args, **options):
        seen.append(options["dtype"])
        raise InterruptedError

    monkeypatch.setattr(critic, "load_model", watch)
    monkeypatch.setattr(critic, "load_classifier", watch)
    recipe = ppo_recipe(ppo={"critic": own})
    with pytest.raises(InterruptedError):
        critic.make_critic(recipe, SimpleNamespace())
    assert seen == ["bfloat16"] == [frozen_dtype(recipe)]
    assert frozen_dtype(ppo_recipe(lora=None)) == "float32"  # all weights are trained
    assert frozen_dtype(ppo_recipe(device="cpu")) == "float32"
