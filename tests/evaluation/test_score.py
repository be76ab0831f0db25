"""Scored answers come from the model's own distribution, regardless of its generation config."""

import pytest
import torch
from support.post_runs import write_base
from transformers import GenerationConfig

from llm_lab.data.examples import Example
from llm_lab.errors import UserError
from llm_lab.evaluation.score import Scorer, generate
from llm_lab.events import ignore
from llm_lab.hf.load import load_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.scoring import RewardTerm, Score


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


def test_prompts_that_leave_no_room_for_an_output_are_refused_with_what_to_change(in_tmp_path):
    write_base()
    score = Score(max_completion_length=12, rewards=(RewardTerm(name="length", length=10),))
    long = Example(prompt=({"role": "user", "content": "one two " * 20},))
    options = {"context": 16, "device": "cpu", "dtype": "float32", "seed": 1, "listener": ignore}
    with pytest.raises(UserError, match=r"Set a score\.max_completion_length below 12, or score\.path to shorter"):
        Scorer(score, [long], load_tokenizer("base"), **options)
