"""Chat templates are chosen, saved with the tokenizer, and get embeddings for their tokens."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llm_lab.errors import UserError
from llm_lab.hf.chat_templates import CHAT_TEMPLATES, PAD, apply_chat_template_choice, resize_for
from llm_lab.hf.configs import config_of_parts
from llm_lab.hf.conversations import encode_conversation, encode_prompt
from llm_lab.hf.load import build_from_config, load_model
from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer
from llm_lab.recipe.post_training import CHAT_TEMPLATES as CHOICES

TALK = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]


def llama(rows=257, *, tied=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def test_a_recipe_allows_exactly_the_existing_templates():
    assert set(CHOICES) == {"own", *CHAT_TEMPLATES}


def test_chatml_is_the_default_without_a_template():
    tokenizer = make_byte_tokenizer()
    chosen = apply_chat_template_choice(tokenizer)
    assert chosen.name == "chatml"
    assert tokenizer.eos_token == "<|im_end|>"
    assert chosen.former_eos_id == 256
    assert set(tokenizer.convert_ids_to_tokens(list(chosen.new_ids))) == {"<|im_start|>", "<|im_end|>", PAD}
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_an_existing_template_is_kept_by_default():
    tokenizer = make_byte_tokenizer()
    apply_chat_template_choice(tokenizer, "llama3")
    before = tokenizer.chat_template
    chosen = apply_chat_template_choice(tokenizer)
    assert chosen.name == "own"
    assert tokenizer.chat_template == before
    assert chosen.new_ids == ()
    assert chosen.former_eos_id is None


def test_zephyr_uses_the_existing_end_of_text_token():
    tokenizer = make_byte_tokenizer()
    chosen = apply_chat_template_choice(tokenizer, "zephyr")
    assert tokenizer.eos_token_id == 256
    assert tokenizer.convert_ids_to_tokens(list(chosen.new_ids)) == [PAD]


@pytest.mark.parametrize(("choice", "why"), [("own", "does not have its own"), ("chatlm", "Did you mean chatml")])
def test_an_unavailable_template_is_an_error(choice, why):
    with pytest.raises(UserError, match=why):
        apply_chat_template_choice(make_byte_tokenizer(), choice)


def test_an_existing_padding_token_is_preferred_to_a_new_one():
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|finetune_right_pad_id|>"]})
    size = len(tokenizer)
    apply_chat_template_choice(tokenizer, "zephyr")
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    assert len(tokenizer) == size
    kept = make_byte_tokenizer()
    kept.add_special_tokens({"pad_token": "<filler>"})
    apply_chat_template_choice(kept, "chatml")
    assert kept.pad_token == "<filler>"


def with_special(*tokens, eos="<|im_end|>", template="chatml"):
    """A tokenizer from elsewhere, with control tokens and a chat template of its own, but no padding token."""
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)})
    tokenizer.eos_token = eos
    tokenizer.chat_template = CHAT_TEMPLATES[template][0]
    return tokenizer


def test_a_control_token_that_the_template_does_not_use_is_the_padding_instead_of_a_new_one():
    tokenizer = with_special("<|im_start|>", "<|im_end|>", "<file_sep>")
    size = len(tokenizer)
    chosen = apply_chat_template_choice(tokenizer)
    assert tokenizer.pad_token == "<|endoftext|>"  # as in SmolLM2
    assert len(tokenizer) == size
    assert chosen.new_ids == ()
    encoded = encode_conversation(tokenizer, TALK)
    assert tokenizer.pad_token_id not in encoded.labels
    # A base without a template does not grow either if its tokenizer has the tokens of the chosen template.
    base = with_special("<|im_start|>", "<|im_end|>")
    base.chat_template = None
    assert apply_chat_template_choice(base, "chatml").new_ids == ()
    assert base.pad_token == "<|endoftext|>"


def test_the_padding_is_never_a_token_of_the_template_nor_bos_that_it_writes():
    tokenizer = with_special("<|im_start|>", "<|im_end|>", "<|reserved_7|>")
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    apply_chat_template_choice(tokenizer)
    assert tokenizer.pad_token == "<|reserved_7|>"
    tokenizer = with_special("<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    chosen = apply_chat_template_choice(tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(chosen.new_ids)) == [PAD]


def test_control_tokens_that_the_model_was_never_trained_on_start_like_new_ones():
    tokenizer, model = with_special("<|im_start|>", "<|im_end|>", "<|spare|>"), llama(rows=260, tied=False)
    tokenizer.chat_template = None
    start, end, spare = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|spare|>"])
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        embeddings[start] = 1e-6  # nearly zero
        head[end] = head[spare]  # never moved away from another token
    before = [embeddings.clone(), head.clone()]
    chosen = apply_chat_template_choice(tokenizer, "chatml")
    assert chosen.new_ids == ()
    assert chosen.control_ids == (start, end)
    assert "an adapter trains their embeddings too" in chosen.notice
    assert resize_for(model, tokenizer, chosen) == [start, end]
    for weight, old, filled in ((embeddings, before[0], start), (head, before[1], end)):
        changed = (weight != old).any(dim=1).nonzero().flatten().tolist()
        assert changed == [filled]
        assert (weight[filled] - old.mean(0)).abs().max() < 0.2 * old.std()
    # The tokenizer's own template has control tokens that its model knows.
    again = with_special("<|im_start|>", "<|im_end|>")
    assert apply_chat_template_choice(again).control_ids == ()


def test_a_padding_token_equal_to_eos_is_replaced():
    tokenizer = make_byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    apply_chat_template_choice(tokenizer, "zephyr")
    assert tokenizer.pad_token == PAD


@pytest.mark.parametrize("template", list(CHAT_TEMPLATES))
def test_the_template_is_saved_with_the_tokenizer(tmp_path, template):
    tokenizer = make_byte_tokenizer()
    apply_chat_template_choice(tokenizer, template)
    tokenizer.save_pretrained(tmp_path)
    for again in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert again.chat_template == tokenizer.chat_template
        assert again.eos_token_id == tokenizer.eos_token_id
        assert again.pad_token_id == tokenizer.pad_token_id
        assert encode_conversation(again, TALK) == encode_conversation(tokenizer, TALK)
        assert apply_chat_template_choice(again).new_ids == ()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_new_rows_are_close_to_the_mean_and_old_rows_are_unchanged(tied):
    tokenizer, model = make_byte_tokenizer(), llama(tied=tied)
    matrices = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    chosen = apply_chat_template_choice(tokenizer)
    new_ids = resize_for(model, tokenizer, chosen)
    assert new_ids == list(chosen.new_ids) == [257, 258, 259]
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (after[0] is after[1]) == tied
    for old, new in zip(matrices, after, strict=True):
        assert new.shape[0] == len(tokenizer)
        assert torch.equal(new[:257], old)
        distance = (new[257:] - old.mean(0)).abs().max()
        assert 0 < distance < 0.1 * old.std()
        assert not torch.equal(new[257], new[258])  # otherwise a model could not distinguish them at first


def test_new_rows_depend_only_on_the_seed():
    def rows(seed):
        tokenizer, model = make_byte_tokenizer(), llama(tied=False)
        torch.manual_seed(seed + 7)
        resize_for(model, tokenizer, apply_chat_template_choice(tokenizer), seed=seed)
        return model.get_input_embeddings().weight[257:], model.get_output_embeddings().weight[257:]

    assert all(map(torch.equal, rows(1), rows(1)))
    assert not any(map(torch.equal, rows(1), rows(2)))


def test_unused_rows_are_kept_and_used():
    tokenizer, model = make_byte_tokenizer(), llama(rows=320)
    chosen = apply_chat_template_choice(tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[257:] = 9.0
    assert resize_for(model, tokenizer, chosen) == [257, 258, 259]
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == 320
    assert (weight[260:] == 9.0).all()
    assert not (weight[257:260] == 9.0).any()


def test_generation_stops_at_end_of_turn_and_end_of_text():
    tokenizer, model = make_byte_tokenizer(), llama()
    resize_for(model, tokenizer, apply_chat_template_choice(tokenizer))
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    prompt = torch.tensor([encode_prompt(tokenizer, TALK[:1])])
    for end in (tokenizer.eos_token_id, 256):
        with torch.no_grad():
            model.get_output_embeddings().weight.zero_()
            model.model.norm.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
        model.lm_head.bias.data[end] = 1.0
        written = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=5)
        assert written[0, prompt.shape[1] :].tolist() == [end]


def test_earlier_end_tokens_still_end_generation():
    tokenizer, model = make_byte_tokenizer(), llama()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|eom|>"]})
    apply_chat_template_choice(tokenizer, "zephyr")
    model.generation_config.eos_token_id = [256, 257]
    resize_for(model, tokenizer, apply_chat_template_choice(tokenizer))
    assert model.generation_config.eos_token_id == [256, 257]
    assert model.config.eos_token_id == 256


def test_new_tokens_of_a_lab_model_survive_saving_and_loading(tmp_path):
    from llm_lab.recipe.resolve import resolve

    recipe = {"stage": "pretrain", "device": "cpu", "data": [{"path": "builtin:stories"}], "tokenizer": "bytes"}
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    parts = resolve({**recipe, "model": {**small, "position_embedding": "alibi"}}).values["model"]
    model = build_from_config(config_of_parts(parts, 257)).eval()
    tokenizer = make_byte_tokenizer()
    resize_for(model, tokenizer, apply_chat_template_choice(tokenizer))
    save_model(model, tmp_path, tokenizer)
    again, words = load_model(tmp_path), load_tokenizer(tmp_path)
    ids = torch.tensor([encode_conversation(words, TALK).input_ids])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert again.generation_config.eos_token_id == [words.eos_token_id, 256]
