"""Scored answers come from the model's own distribution, regardless of its generation config."""

import torch
from support.post_runs import write_base
from transformers import GenerationConfig

from llm_lab.evaluation.score import generate
from llm_lab.hf.load import load_model
from llm_lab.hf.tokenizers import load_tokenizer


def answers_of(model, tokenizer, temperature):
    torch.manual_seed(0)
    prompts = [tokenizer(text)["input_ids"] for text in ("one two two", "a", "three")]
    return generate(model, tokenizer, prompts, max_new_tokens=24, temperature=temperature)


def test_answers_ignore_the_models_own_penalties_and_filters_but_keep_its_end_tokens(in_tmp_path):
    write_base()
    model, tokenizer = load_model("base"), load_tokenizer("base")
    plain = {temperature: answers_of(model, tokenizer, temperature) for temperature in (0.0, 1.0)}
    first = plain[0.0][0][0]
    own = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": [first], "min_p": 0.5, "top_k": 1}
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id, **own)
    assert {temperature: answers_of(model, tokenizer, temperature) for temperature in plain} == plain
    assert model.generation_config.repetition_penalty == 5.0

    model.generation_config = GenerationConfig(eos_token_id=[first, 256])
    assert answers_of(model, tokenizer, 0.0)[0] == [first]
