"""Caches, padding, windows and packing do not change the logits of a model."""

import pytest
import torch
from support.sampling import every_pair
from support.tiny_models import EXTRAS, decode_in_chunks, left_padded, tiny_config, tiny_model, tokens
from transformers import DynamicCache, StaticCache

POSITIONS = ["sinusoidal", "rope", "alibi", "yarn", "learned"]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(params=POSITIONS)
def position(request):
    return request.param


KERNELS = ["sdpa", "eager"]
WINDOWS = [None, 2, 5, 64, "SL"]
EVERY_MODEL = pytest.mark.parametrize(("position", "kernel", "window"), every_pair(POSITIONS, KERNELS, WINDOWS))


@pytest.fixture
def model(position, kernel, window):
    extras = EXTRAS if window == "SL" else {}
    return tiny_model(position, attn_implementation=kernel, sliding_window=window, num_key_value_heads=2, **extras)


def caches(config):
    """Return every kind of cache that a caller may pass, the last one without the sliding window."""
    return [DynamicCache(config=config), StaticCache(config=config, max_cache_len=24), DynamicCache()]


@torch.no_grad()
@EVERY_MODEL
@pytest.mark.parametrize("ends", [list(range(1, 17)), [9, 10, 11, 12, 13, 16], [3, 9, 16], [1, 15, 16]], ids=str)
def test_cached_decoding_equals_the_full_forward(model, ends):
    ids, mask = tokens(2, 16), torch.ones(2, 16, dtype=torch.long)
    full = model(ids).logits
    for cache in caches(model.config):
        torch.testing.assert_close(decode_in_chunks(model, ids, mask, ends, cache), full, **CLOSE)


@torch.no_grad()
@EVERY_MODEL
def test_cached_decoding_equals_the_full_forward_when_left_padded(model):
    ids, mask = left_padded((16, 11, 3), 16)
    full = model(ids, attention_mask=mask).logits
    real = mask.bool()
    for cache in caches(model.config):
        chunked = decode_in_chunks(model, ids, mask, [8, 9, 13, 14, 15, 16], cache)
        torch.testing.assert_close(chunked[real], full[real], **CLOSE)


@torch.no_grad()
@EVERY_MODEL
def test_left_padding_does_not_change_the_logits(model):
    ids, mask = left_padded((16, 11, 3), 16)
    padded = model(ids, attention_mask=mask).logits
    assert torch.isfinite(padded).all()
    for row, length in enumerate((16, 11, 3)):
        alone = model(ids[row : row + 1, -length:]).logits
        torch.testing.assert_close(padded[row : row + 1, -length:], alone, **CLOSE)


@torch.no_grad()
@EVERY_MODEL
def test_later_tokens_do_not_change_earlier_logits(model):
    ids = tokens(1, 16)
    changed = ids.clone()
    changed[:, 9:] = tokens(1, 7, seed=5)
    torch.testing.assert_close(model(changed).logits[:, :9], model(ids).logits[:, :9], **CLOSE)
    assert not torch.allclose(model(changed).logits[:, 9:], model(ids).logits[:, 9:], **CLOSE)


@torch.no_grad()
@EVERY_MODEL
def test_packed_documents_do_not_attend_to_each_other(model):
    documents = [tokens(2, 7, seed=3), tokens(2, 9, seed=4)]
    positions = torch.cat((torch.arange(7), torch.arange(9))).repeat(2, 1)
    packed = model(torch.cat(documents, dim=1), position_ids=positions).logits
    apart = torch.cat([model(document).logits for document in documents], dim=1)
    torch.testing.assert_close(packed, apart, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_sliding_window_has_exactly_its_width(position, kernel):
    model = tiny_model(position, attn_implementation=kernel, sliding_window=5, num_hidden_layers=1)
    ids = tokens(1, 16)
    plain = model(ids).logits[0, -1]
    outside, inside = ids.clone(), ids.clone()
    outside[0, 10] = (ids[0, 10] + 1) % 50 + 2
    inside[0, 11] = (ids[0, 11] + 1) % 50 + 2
    torch.testing.assert_close(model(outside).logits[0, -1], plain, **CLOSE)
    assert not torch.allclose(model(inside).logits[0, -1], plain, **CLOSE)


@pytest.mark.parametrize("width", [None, "SL"])
@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}, {"num_beams": 1}])
def test_generation_is_the_same_with_every_cache(position, width, options):
    model = tiny_model(position, sliding_window=width, num_key_value_heads=2)
    ids, mask = left_padded((9, 4), 9)
    settings = {
        "max_new_tokens": 12,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    expected = model.generate(ids, attention_mask=mask, **settings)
    got = model.generate(ids, attention_mask=mask, **settings, **options)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), **CLOSE)


def test_generation_of_a_padded_row_equals_generation_alone(position):
    model = tiny_model(position)
    ids, mask = left_padded((9, 4), 9)
    together = model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, eos_token_id=None)
    alone = model.generate(ids[1:, 5:], max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert torch.equal(together[1:, 5:], alone)


def test_beam_search_is_the_same_with_and_without_a_cache(position):
    model = tiny_model(position, sliding_window=6)
    settings = {"max_new_tokens": 10, "num_beams": 3, "do_sample": False}
    with_cache = model.generate(tokens(2, 7), **settings)
    assert torch.equal(with_cache, model.generate(tokens(2, 7), use_cache=False, **settings))


def test_chunked_prefill_does_not_change_generation(position):
    model = tiny_model(position, **EXTRAS)
    ids = tokens(1, 13)
    whole = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(whole, model.generate(ids, max_new_tokens=8, do_sample=False, prefill_chunk_size=4))


@torch.no_grad()
@pytest.mark.parametrize("position_name", ["alibi", "rope", "sinusoidal"])
def test_a_model_runs_beyond_its_context_length(position_name):
    model = tiny_model(position_name, max_position_embeddings=16)
    logits = model(tokens(1, 50)).logits
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[:, :16], model(tokens(1, 50)[:, :16]).logits, **CLOSE)


@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
@pytest.mark.parametrize("width", [None, 6])
def test_kv_cache_bytes_match_the_formula(key_value_heads, width):
    model = tiny_model(num_key_value_heads=key_value_heads, sliding_window=width)
    cache = model(tokens(3, 16), use_cache=True).past_key_values
    held = 16 if width is None else width - 1
    expected = 2 * model.config.num_hidden_layers * 3 * key_value_heads * held * model.config.head_dim * 4
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == expected


def test_no_cache_is_created_in_training():
    model = tiny_model().train()
    assert model(tokens(1, 4)).past_key_values is None
    assert model.eval()(tokens(1, 4)).past_key_values is not None


@pytest.mark.parametrize("kernel_name", ["flash_attention_2", "flash_attention_3"])
def test_alibi_refuses_kernels_without_bias_support(kernel_name):
    with pytest.raises(ValueError, match="ALiBi would be lost"):
        tiny_model("alibi", attn_implementation=kernel_name)
    model = tiny_model("alibi")
    model.config._attn_implementation_internal = kernel_name
    with pytest.raises(ValueError, match="choose from eager, sdpa, flex_attention"):
        model(tokens(1, 4))


def test_input_ids_and_embeddings_exclude_each_other():
    model = tiny_model()
    with pytest.raises(ValueError, match="exactly one"):
        model.model()
    ids = tokens(1, 5)
    torch.testing.assert_close(model(inputs_embeds=model.model.embed_tokens(ids)).logits, model(ids).logits)
    assert tiny_config().use_cache
