"""Rules across keys: what breaks each, under which key it is reported, and what passes."""

from typing import Any

import pytest
from conftest import tiny_recipe

from llm_lab.estimate.machine import Machine
from llm_lab.recipe.registry import BUILT_IN, STAGES
from llm_lab.recipe.resolve import derive, diagnose
from llm_lab.recipe.validate import validate

CPU = Machine((), "a CPU", 2, 8 * 2**30, True, False)
EXACT = [{"name": "exact_number"}]
TEXT, SCORE, TASKS = {"data": [{"path": "a.txt"}]}, {"score": {"path": "asked.jsonl"}}, {"tasks": {"names": ["a", "b"]}}


def recipe(stage: str, **changes: Any) -> dict:
    """Return a short recipe after pretraining; changes are {"group.key": value} or {"key": value}."""
    raw: dict[str, Any] = {"stage": stage, "name": "tiny", "device": "cpu", "model": {"checkpoint": "org/model"}}
    if STAGES[stage].trains:
        raw |= {"data": [{"path": "examples.jsonl"}], "train.max_length": 128}
    if STAGES[stage].has("rewards"):
        raw |= {"rewards": EXACT, f"{stage}.max_completion_length": 16}
    flat, raw = {**raw, **changes}, {}
    for key, value in flat.items():
        group, _, name = key.rpartition(".")
        (raw.setdefault(group, {}) if group else raw)[name] = value
    return raw


def sft(**changes: Any) -> dict:
    return recipe("sft", **changes)


def rewarded(*terms: dict) -> dict:
    return recipe("grpo", rewards=list(terms))


def evaluation(**changes: Any) -> dict:
    return recipe("eval", **changes)


def export(**options: Any) -> dict:
    return recipe("export", export=options)


# {rule: [(changes of a pretraining recipe that break it, the key that is reported, changes that pass)]}
SHARDED = {"train.distributed": "fsdp"}
IN_4_BITS = {"lora.load_in_4bit": True, "device": "cuda"}
PRETRAINING: dict[str, list[tuple[dict, str, dict]]] = {
    "_sharding_supports_the_run": [
        ({**SHARDED, "optimizer": {"name": "sophia"}}, "optimizer.name", {**SHARDED, "optimizer": {"name": "lion"}}),
        ({**SHARDED, "train.compile": True}, "train.compile", SHARDED),
        ({**SHARDED, "train.ema_decay": 0.9}, "train.ema_decay", {"train.ema_decay": 0.9}),
    ],
    "_batches_can_grow": [
        (
            {"train.batch_size_warmup_steps": 2, "train.per_device_train_batch_size": 6},
            "train.batch_size_warmup_steps",
            {"train.batch_size_warmup_steps": 2, "train.per_device_train_batch_size": 8},
        ),
        (
            {"train.batch_size_warmup_steps": 10**6, "train.per_device_train_batch_size": 8},
            "train.batch_size_warmup_steps",
            {"train.batch_size_warmup_steps": 0, "train.per_device_train_batch_size": 6},
        ),
    ],
    "_heads_divide_width": [
        ({"model.num_attention_heads": 3}, "model.num_attention_heads", {"model.num_attention_heads": 4}),
        ({"model.num_attention_heads": 32}, "model.num_attention_heads", {"model.num_attention_heads": 16}),
        ({"model.head_dim": 9}, "model.head_dim", {"model.head_dim": 10}),
    ],
    "_kv_heads_divide_heads": [
        (
            {"model.num_attention_heads": 4, "model.num_key_value_heads": 3},
            "model.num_key_value_heads",
            {"model.num_attention_heads": 4, "model.num_key_value_heads": 2},
        ),
        (
            {"model.attention": "mha"},
            "model.num_key_value_heads",
            {"model.attention": "mha", "model.num_key_value_heads": 2},
        ),
        (
            {"model.attention": "mqa", "model.num_key_value_heads": 2},
            "model.num_key_value_heads",
            {"model.attention": "mqa"},
        ),
    ],
    "_experts_are_those_of_mixtral": [
        (
            {"model.num_experts": 2, "model.num_experts_per_tok": 3},
            "model.num_experts_per_tok",
            {"model.num_experts": 3},
        ),
        (
            {"model.num_experts": 4, "model.activation": "gelu"},
            "model.activation",
            {"model.num_experts": 4, "model.activation": "geglu"},
        ),
        (
            {"model.num_experts": 4, "model.attention_bias": True},
            "model.attention_bias",
            {"model.num_experts": 4, "model.attention_bias": True, "model.qk_norm": True},
        ),
    ],
    "_pattern_requires_a_window": [
        (
            {"model.sliding_window_pattern": "SSSL"},
            "model.sliding_window_pattern",
            {"model.sliding_window_pattern": "SSSL", "model.sliding_window": 8},
        ),
    ],
    "_sinusoids_come_in_pairs": [
        (
            {"model.position_embedding": "sinusoidal", "model.hidden_size": 33, "model.num_attention_heads": 1},
            "model.hidden_size",
            {"model.position_embedding": "sinusoidal"},
        ),
    ],
    "_yarn_context_is_the_product": [
        (
            {"model.position_embedding": "yarn", "model.original_max_position_embeddings": 10},
            "model.original_max_position_embeddings",
            {"model.position_embedding": "yarn", "model.original_max_position_embeddings": 8},
        ),
    ],
    "_warmup_is_set_once": [
        ({"scheduler.warmup_ratio": 0.5}, "scheduler.warmup_ratio", {"scheduler.warmup_ratio": 0.1})
    ],
    "_warmup_ends_within_the_run": [
        ({"scheduler.warmup_steps": 20}, "scheduler.warmup_steps", {"scheduler.warmup_steps": 19})
    ],
    "_warmup_leaves_room_for_the_decay": [
        (
            {"scheduler": {"name": "wsd", "warmup_steps": 11, "decay_ratio": 0.5}},
            "scheduler.decay_ratio",
            {"scheduler": {"name": "wsd", "warmup_steps": 10, "decay_ratio": 0.5}},
        ),
    ],
    "_kernel_supports_the_model": [
        (
            {"device": "cuda", "train.dtype": "bfloat16", "train.attn_implementation": kernel} | parts,
            "train.attn_implementation",
            {"device": "cuda", "train.dtype": "bfloat16", "train.attn_implementation": "sdpa"} | parts,
        )
        for kernel, parts in (
            ("flex_attention", {"model.attention_dropout": 0.1}),
            ("flex_attention", {"model.head_dim": 8}),
            ("flash_attention_2", {"model.head_dim": 258}),
            ("flash_attention_2", {"train.dtype": "float32"}),
        )
    ],
    "_flash_attention_has_no_alibi": [
        (
            {"model.position_embedding": "alibi", "train.attn_implementation": "flash_attention_2", "device": "cuda"},
            "train.attn_implementation",
            {"model.position_embedding": "alibi", "train.attn_implementation": "eager"},
        ),
    ],
    "_kernel_runs_on_the_device": [
        (
            {"train.attn_implementation": kernel},
            "train.attn_implementation",
            {"train.attn_implementation": kernel, "device": "cuda", "train.dtype": "bfloat16"},
        )
        for kernel in ("flash_attention_2", "flex_attention")
    ],
    "eight_bits_require_cuda": [
        (
            {"optimizer": {"name": "adamw_8bit"}},
            "optimizer.name",
            {"optimizer": {"name": "adamw_8bit"}, "device": "cuda", "train.dtype": "bfloat16"},
        ),
    ],
    "_checkpoint_has_its_own_tokenizer": [
        (
            {"model": {"checkpoint": "org/model"}, "tokenizer": "bytes"},
            "tokenizer",
            {"model": {"checkpoint": "org/model"}, "tokenizer": "org/model"},
        ),
    ],
    "_a_bpe_has_a_size": [({"tokenizer": "bpe"}, "tokenizer", {"tokenizer": {"bpe": 300}})],
    "repeated_sets": [
        (
            {"data": [{"path": "a.txt"}, {"path": "a.txt", "weight": 2.0}]},
            "data.1.path",
            {"data": [{"path": "a.txt", "subset": "x"}, {"path": "a.txt"}]},
        ),
    ],
    "_builtin_text_is_not_streamed": [
        (
            {"data": [{"path": "builtin:stories", "streaming": True}]},
            "data.0.streaming",
            {"data": [{"path": "rows.jsonl", "streaming": True}]},
        ),
    ],
    "_kernel_supports_document_masks": [
        (
            {
                "train.dtype": "bfloat16",
                "train.document_mask": True,
                "train.attn_implementation": "flash_attention_2",
                "device": "cuda",
            },
            "train.document_mask",
            {"train.document_mask": True, "train.attn_implementation": "sdpa"},
        ),
    ],
    "_there_is_a_sample_prompt": [({"samples": {"prompts": []}}, "samples.prompts", {"samples": {"prompts": [""]}})],
}
# {rule: [(a recipe that breaks it, the key that is reported, a recipe that passes)]}
LATER: dict[str, list[tuple[dict, str, dict]]] = {
    "_sharding_supports_the_run": [
        (sft(**SHARDED, **IN_4_BITS), "lora.load_in_4bit", sft(**SHARDED, **{"lora.r": 4, "device": "cuda"})),
    ],
    "_reward_terms_are_complete": [
        (rewarded({"weight": 2.0}), "rewards.0", rewarded({"name": "exact_match", "weight": 2.0})),
        (
            rewarded({"name": "exact_match", "model": "scorer"}),
            "rewards.0",
            rewarded({"name": "exact_match"}, {"model": "scorer"}),
        ),
        (
            rewarded(*EXACT, {"name": "format"}),
            "rewards.1.pattern",
            rewarded(*EXACT, {"name": "format", "pattern": "a"}),
        ),
        (rewarded({"name": "length"}), "rewards.0.length", rewarded({"name": "length", "length": 9})),
        (
            rewarded({"name": "exact_match", "ngram": 2}),
            "rewards.0.ngram",
            rewarded({"name": "repetition", "ngram": 2}),
        ),
        (
            sft(score={"rewards": [{"name": "regex"}]}),
            "score.rewards.0.pattern",
            sft(score={"rewards": [{"name": "regex", "pattern": "a"}]}),
        ),
    ],
    "_groups_fill_a_step": [
        (
            recipe("grpo", **{"train.per_device_train_batch_size": 6}),
            "train.per_device_train_batch_size",
            recipe("grpo", **{"train.per_device_train_batch_size": 8}),
        ),
        (
            recipe("grpo", train={"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}),
            "train.per_device_train_batch_size",
            recipe("grpo", train={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
        ),
    ],
    "prompt_and_answer_fit": [
        (
            recipe(stage, **{f"{stage}.max_completion_length": 128}),
            f"{stage}.max_completion_length",
            recipe(stage, **{f"{stage}.max_completion_length": 127}),
        )
        for stage in ("grpo", "ppo")
    ],
    "_custom_layers_are_named": [
        (
            sft(lora={"preset": "custom"}),
            "lora.target_modules",
            sft(lora={"preset": "custom", "target_modules": ["q_proj"]}),
        ),
    ],
    "_four_bits_require_cuda": [
        (sft(lora={"load_in_4bit": True}), "lora.load_in_4bit", sft(lora={"load_in_4bit": False})),
        (sft(lora={"load_in_4bit": True}), "lora.load_in_4bit", sft(lora={"load_in_4bit": True}, device="cuda")),
    ],
    "_kernel_keeps_packed_examples_apart": [
        (
            sft(device="cuda", sft={"packing": True}, **{"train.attn_implementation": "flash_attention_2"}),
            "sft.packing",
            sft(device="cuda", sft={"packing": True}, **{"train.attn_implementation": "flex_attention"}),
        ),
    ],
    "adapter_has_no_dropout": [
        (recipe(stage, lora={"dropout": 0.05}), "lora.dropout", recipe(stage, lora={"dropout": 0.0}))
        for stage in ("dpo", "grpo", "ppo")
    ],
    "prompts_are_named": [
        (recipe("dpo", score={"prompts": 9}), "score.path", recipe("dpo", score={"path": "asked.jsonl"})),
    ],
    "prompts_are_held_out": [
        (recipe("grpo", **{"validation.fraction": 0.0}), "score.path", recipe("grpo", score=None)),
        (
            recipe("sft", validation={"fraction": 0.0}, score={}),
            "score.path",
            recipe("sft", validation={"fraction": 0.1}, score={}),
        ),
    ],
    "_length_is_set_once": [
        (
            recipe(stage, train={"num_train_epochs": 2.0, "max_steps": 9}),
            "train.num_train_epochs",
            recipe(stage, train=one),
        )
        for stage in ("sft", "grpo")
        for one in ({"num_train_epochs": 2.0}, {"max_steps": 9}, {"num_train_epochs": 2.0, "max_steps": None})
    ],
    "_robust_loss_has_a_share": [
        (
            recipe("dpo", dpo={"loss_type": "robust"}),
            "dpo.label_smoothing",
            recipe("dpo", dpo={"loss_type": "robust", "label_smoothing": 0.1}),
        ),
    ],
    "_settings_have_an_effect": [
        (evaluation(**TEXT, eval={"text_scores": ["bleu"]}), "eval.text_scores", evaluation(**TEXT)),
        (
            evaluation(**SCORE, eval={"max_tokens": 9}),
            "eval.max_tokens",
            evaluation(**SCORE, **TEXT, eval={"max_tokens": 9}),
        ),
        (evaluation(**TASKS, eval={"max_tokens": 9}), "eval.max_tokens", evaluation(**TASKS, eval={"max_length": 9})),
        (
            evaluation(**SCORE, eval={"max_length": 9}),
            "eval.max_length",
            evaluation(**SCORE, **TEXT, eval={"max_length": 9}),
        ),
        (
            evaluation(**SCORE, eval={"per_device_eval_batch_size": 2}),
            "eval.per_device_eval_batch_size",
            evaluation(**TASKS, eval={"per_device_eval_batch_size": 2}),
        ),
    ],
    "_tasks_are_named_once": [(evaluation(tasks={"names": ["a", "b", "a"]}), "tasks.names", evaluation(**TASKS))],
    "_format_has_the_weights": [
        (export(weights="q8_0"), "export.weights", export(weights="q8_0", to="gguf")),
    ],
    "_only_a_push_is_private": [
        (export(private=False), "export.private", export(private=False, push="ann/model")),
    ],
    "_a_space_is_uploaded_by_hand": [
        (export(to="space", push="ann/chat"), "export.push", export(to="space")),
    ],
}
CASES = [
    *(
        (rule, tiny_recipe(**broken), key, tiny_recipe(**passing))
        for rule, cases in PRETRAINING.items()
        for broken, key, passing in cases
    ),
    *((rule, *case) for rule, cases in LATER.items() for case in cases),
]


def problems_of(raw: dict) -> list[str]:
    return [problem.key for problem in diagnose(raw, machine=CPU)[1]]


def test_every_rule_has_its_cases():
    assert {rule for rule, *_ in CASES} == {rule.__name__ for stage in BUILT_IN for rule in stage.rules}


@pytest.mark.parametrize(("rule", "broken", "key", "passing"), CASES, ids=[f"{case[0]}: {case[2]}" for case in CASES])
def test_a_broken_rule_is_reported_and_its_fix_passes(rule, broken, key, passing):
    assert problems_of(broken) == [key]
    assert problems_of(passing) == []


@pytest.mark.parametrize(("rule", "broken", "key"), [case[:3] for case in CASES])
def test_each_case_breaks_the_rule_that_it_is_listed_under(rule, broken, key):
    stage = STAGES[broken["stage"]]
    function = next(function for function in stage.rules if function.__name__ == rule)
    values, _, _ = derive(stage, validate(broken)[0], CPU)
    assert [problem.key for problem in function(values)] == [key]


def test_sequences_fit_the_context_of_a_model_made_of_parts():
    _, problems = diagnose(tiny_recipe(**{"train.max_length": 33}), machine=CPU)
    assert [(problem.key, problem.value) for problem in problems] == [("train.max_length", 33)]
    assert problems[0].fix == "Set it to at most 32, or the model's context, model.max_position_embeddings, to 33."
    assert problems_of(tiny_recipe(**{"train.max_length": 32})) == []


def test_rules_of_data_and_scores_hold_in_every_stage_that_has_them():
    twice = [{"path": "a"}, {"path": "a"}]
    for stage in BUILT_IN:
        if stage.has("data") and not stage.from_scratch:
            assert problems_of(recipe(stage.name, data=twice)) == ["data.1.path"], stage.name
        if stage.has("score") and not stage.has_prompts and not stage.from_scratch:
            assert problems_of(recipe(stage.name, score={"prompts": 3})) == ["score.path"], stage.name
    assert problems_of(tiny_recipe(score={"prompts": 3})) == ["score.path"]


def test_the_fix_for_a_part_that_a_mixture_of_experts_lacks_is_written_as_yaml():
    broken = tiny_recipe(model={"num_experts": 4, "residual_scalars": True})
    values, _, _ = derive(STAGES["pretrain"], validate(broken)[0], CPU)
    rule = next(rule for rule in STAGES["pretrain"].rules if rule.__name__ == "_experts_are_those_of_mixtral")
    assert [problem.fix for problem in rule(values)] == ["Set it to false, or leave out num_experts."]
