"""SFT, reward, DPO, GRPO and PPO through `run`, as a user starts them: what they have in common."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from support.listeners import Handlers
from support.post_runs import post_recipe, rows_of, weights_of, write_base, write_rows
from transformers import MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM

from llm_lab.errors import UserError
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder

STAGES = ("sft", "dpo", "grpo", "ppo")


@pytest.fixture(autouse=True)
def base(in_tmp_path):
    write_base()


class Notes(Handlers):
    def __init__(self):
        self.lines = []

    def notice(self, text):
        self.lines.append(text)


def run_and_listen(recipe):
    notes = Notes()
    facts = run(recipe, listener=notes)
    return facts, "\n".join(notes.lines)


@pytest.mark.parametrize("lora", [None, {"preset": "all", "r": 4}])
@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_bit_exact(stage, lora):
    raw = post_recipe(stage, lora=lora)
    whole = run(raw)
    kept, rows = weights_of(whole["path"]), rows_of(whole["path"])
    folder = RunFolder(Path(whole["path"]))
    shutil.rmtree(folder.steps_path / "checkpoint-6")
    shutil.rmtree(folder.model_path)
    resumed = run(raw, resume=True)
    assert resumed["status"] == "done"
    assert rows_of(resumed["path"]) == rows
    after = weights_of(resumed["path"])
    assert all(torch.equal(tensor, after[name]) for name, tensor in kept.items())


def test_a_run_killed_before_its_last_evaluation_keeps_the_count_of_its_tokens():
    raw = post_recipe("sft")
    whole = run(raw)
    rows, folder = rows_of(whole["path"]), RunFolder(Path(whole["path"]))
    lines = folder.metrics_path.read_text().splitlines(keepends=True)
    assert "eval_loss" in lines[-1]
    folder.metrics_path.write_text("".join(lines[:-1]))
    resumed = run(raw, resume=True)
    assert rows_of(whole["path"]) == rows
    assert resumed["results"]["train_tokens"] == whole["results"]["train_tokens"] > 0


def test_a_run_is_not_resumed_on_a_changed_model_tokenizer_or_reward():
    Path("mine.py").write_text("def near(completions, **columns):\n    return [1.0 for _ in completions]\n")
    raw = post_recipe("grpo", rewards=[{"python": "mine.py:near"}])
    folder = RunFolder(Path(run(raw)["path"]))
    for file, what in (
        ("mine.py", r"rewards.0.python = mine.py: this file has changed"),
        ("base/tokenizer_config.json", r"model.checkpoint = base: its files have changed"),
        ("base/model.safetensors", r"model.checkpoint = base: its weights have changed"),
    ):
        content = Path(file).read_bytes()
        Path(file).write_bytes(content + b"\n")
        with pytest.raises(UserError, match=what):
            run(raw, resume=True)
        Path(file).write_bytes(content)
    assert folder.status() == "done", "a refused resume changes nothing"
    assert run(raw, resume=True)["status"] == "done"


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_is_reproduced_from_its_own_recipe(stage):
    first = run(post_recipe(stage))
    again = run(f"{first['path']}/recipe.yaml")
    assert again["path"] != first["path"]
    assert rows_of(again["path"]) == rows_of(first["path"])


@pytest.mark.parametrize("stage", STAGES)
def test_every_weight_is_trained_or_with_an_adapter_only_the_adapter(stage):
    before = weights_of_base()
    run(post_recipe(stage))
    after = weights_of(f"checkpoints/{stage}")
    still = [name for name, tensor in before.items() if torch.equal(tensor, after[name][: len(tensor)])]
    assert still == []
    facts = run(post_recipe(stage, name="adapter", lora={"preset": "minimal", "r": 2}))
    names = set(weights_of(facts["path"]))
    layers = {name.split(".self_attn.")[1].split(".")[0] for name in names if "lora_" in name}
    assert layers == {"q_proj", "v_proj"}
    assert all("lora_" in name or "token" in name for name in names)
    assert weights_of_base().keys() == before.keys()


def weights_of_base():
    from safetensors.torch import load_file

    return load_file("base/model.safetensors")


@pytest.mark.parametrize("stage", STAGES)
def test_the_initial_model_is_evaluated_before_the_first_step(stage):
    facts = run(post_recipe(stage, **{"samples.prompts": ["1?"], "score": score()}))
    first = RunFolder(Path(facts["path"])).metrics()[0]
    assert first["step"] == 0
    assert {"exact_match", "eval_reward_sampled"} <= first.keys()
    assert (Path(facts["path"]) / "samples.md").read_text().count("Prompt: `1?`") == 3


def score():
    return {"path": "questions.jsonl", "prompts": 4, "max_completion_length": 4} | {
        "rewards": [{"name": "exact_number"}]
    }


@pytest.fixture(autouse=True)
def questions(base):
    from support.post_runs import write_questions

    write_questions()


def test_token_count_and_optimizer_state_are_reset_at_each_stage():
    run(post_recipe("sft"))
    second = run(post_recipe("sft", name="second", model={"checkpoint": "checkpoints/sft"}))
    rows = RunFolder(Path(second["path"])).metrics()
    assert rows[0]["train_tokens"] == 0
    assert next(row["step"] for row in rows if "loss" in row) == 1


def test_steps_are_derived_from_epochs_and_reported():
    facts, said = run_and_listen(post_recipe("sft", **{"train.max_steps": None, "train.num_train_epochs": 2.0}))
    kept = 40 - round(40 * 0.1)
    assert facts["results"]["step"] == pytest.approx(2 * kept / 4, abs=2)
    assert "2 epochs of 36 examples" in said
    assert facts["max_steps"] == facts["results"]["step"]


# Bad data: refused, or dropped and counted

WITH_DATA = ("sft", "reward", "dpo", "grpo", "ppo")
QUICK = {"train.max_steps": 1, "train.eval_steps": 1, "train.save_steps": 1}
BAD = {
    "wrong columns": (lambda row: {"a": "x", "b": "y"}, "columns"),
    "no rows": (lambda row: None, "no rows"),
    "empty prompts": (lambda row: row | {prompt_key(row): ""}, "40: an empty question"),
    "prompts longer than the context": (
        lambda row: row | {prompt_key(row): row[prompt_key(row)] + " really" * 40},
        r"train\.max_length",
    ),
    "another form": (lambda row: row | {prompt_key(row): {"a": 1}}, "row|line"),
}


def prompt_key(row: dict) -> str:
    return "prompt" if "chosen" in row else "question"


def change_rows(recipe: dict, change, count: int = 1000) -> None:
    """Change the first rows of the data of a recipe; None removes a row."""
    path = Path(recipe["data"][0]["path"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_rows(str(path), [row for row in [*map(change, rows[:count]), *rows[count:]] if row is not None])


@pytest.mark.parametrize("stage", WITH_DATA)
@pytest.mark.parametrize("what", BAD)
def test_bad_data_is_refused_and_leaves_no_run_folder(stage, what):
    change, words = BAD[what]
    if (stage, what) == ("reward", "prompts longer than the context"):
        pytest.skip("a reward model keeps the end of long texts, with a warning")
    recipe = post_recipe(stage, **QUICK)
    change_rows(recipe, change)
    with pytest.raises(UserError, match=words) as caught:
        run(recipe)
    assert all(problem.key.startswith("data.0") for problem in caught.value.problems)
    assert not Path("checkpoints", stage).exists()


@pytest.mark.parametrize("stage", WITH_DATA)
def test_the_line_of_a_truncated_file_is_reported(stage):
    recipe = post_recipe(stage, **QUICK)
    with open(recipe["data"][0]["path"], "a") as file:
        file.write('{"question": "cut o')
    with pytest.raises(UserError, match=r"line 41 of .* is not JSON"):
        run(recipe)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_empty_answers_are_dropped_and_counted(stage):
    recipe = post_recipe(stage, **QUICK)
    change_rows(recipe, lambda row: row | {"answer" if stage == "sft" else "chosen": ""}, 5)
    facts, said = run_and_listen(recipe)
    assert "35 of 40 rows; 5: an empty answer" in said
    assert facts["data"][0]["kept"] == 35
    assert facts["data"][0]["dropped"] == {"an empty answer": 5}
    change_rows(recipe, lambda row: row | {"answer" if stage == "sft" else "chosen": ""})
    with pytest.raises(UserError, match="40: an empty answer"):
        run(recipe)


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
@pytest.mark.parametrize(
    ("name", "words"), [("exact_match", "row 1 is empty: ''"), ("exact_number", "row 1 has no number: ''")]
)
def test_an_empty_answer_is_never_correct(stage, name, words):
    recipe = post_recipe(stage, rewards=[{"name": name}])
    change_rows(recipe, lambda row: row | {"answer": ""}, 20)
    with pytest.raises(UserError, match=words):
        run(recipe)
    assert not Path("checkpoints", stage).exists()


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_identical_preferences_are_refused(stage):
    recipe = post_recipe(stage, **QUICK)
    change_rows(recipe, lambda row: row | {"rejected": row["chosen"]}, 7)
    facts, said = run_and_listen(recipe)
    assert "33 of 40 rows; 7: chosen and rejected are the same" in said
    assert facts["data"][0]["kept"] == 33
    change_rows(recipe, lambda row: row | {"rejected": row["chosen"]})
    with pytest.raises(UserError, match="40: chosen and rejected are the same"):
        run(recipe)


@pytest.mark.parametrize("stage", WITH_DATA)
def test_examples_longer_than_the_context_are_counted(stage):
    recipe = post_recipe(stage, **QUICK)
    change_rows(recipe, lambda row: row | {prompt_key(row): row[prompt_key(row)] + " really" * 30}, 6)
    _, said = run_and_listen(recipe)
    assert {
        "sft": "examples: no tokens in the loss within train.max_length: left out",
        "reward": "preferences: longer than 64 tokens: the beginning was cut off",
        "dpo": "preferences: the prompt alone is longer than 64 tokens: left out",
    }.get(stage, "prompts are longer than 58 tokens, which leaves no room for an output: skipped") in said


@pytest.mark.parametrize("stage", WITH_DATA)
def test_incomplete_rows_are_dropped_and_counted(stage):
    recipe = post_recipe(stage, **QUICK)
    change_rows(recipe, lambda row: {"other": 1}, 3)
    facts, said = run_and_listen(recipe)
    assert facts["data"][0]["kept"] == 37
    assert "37 of 40 rows; 3: no " in said


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_missing_answers_are_reported_before_training(stage):
    recipe = post_recipe(stage, rewards=[{"name": "exact_number"}])
    write_rows("questions.jsonl", [{"prompt": f"{i}?"} for i in range(20)])
    with pytest.raises(UserError, match="answer"):
        run(recipe)


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_a_reward_model_without_a_chat_template_is_refused(stage):
    reward_model = Path(run(post_recipe("reward", **QUICK))["path"]) / "model"
    (reward_model / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="this reward model has no chat template"):
        run(post_recipe(stage, rewards=[{"model": str(reward_model)}]))
    assert not Path("checkpoints", stage).exists()


@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo", "ppo"])
def test_a_reward_model_cannot_be_fine_tuned_as_a_language_model(stage):
    reward_model = run(post_recipe("reward", **QUICK))["path"]
    with pytest.raises(UserError, match="this is a reward model; it scores answers and can't generate text"):
        run(post_recipe(stage, model={"checkpoint": reward_model}))


def test_a_language_model_is_refused_as_a_reward_model():
    recipe = post_recipe("grpo", rewards=[{"model": "base"}])
    with pytest.raises(UserError, match="not a reward model"):
        run(recipe)


# Before the first update


def first_step(stage, **changes):
    facts = run(post_recipe(stage, **changes))
    return next(row for row in RunFolder(Path(facts["path"])).metrics() if "loss" in row)


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_dpo_loss_is_log2_at_the_reference(lora):
    row = first_step("dpo", lora=lora)
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert row["margin"] == pytest.approx(0.0, abs=1e-6)
    start = RunFolder(Path("checkpoints/dpo")).metrics()[0]
    assert start["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("lora", [None, {"r": 2}])
@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_kl_is_zero_and_nothing_is_clipped_at_the_start(stage, lora):
    knob = {"grpo.beta": 0.1} if stage == "grpo" else {"ppo.kl_coef": 0.1}
    row = first_step(stage, lora=lora, **knob)
    assert abs(row["kl"]) < 1e-6
    assert row["clip_fraction"] == 0


def test_the_sft_loss_of_dpo_weights_every_token_equally_in_batches_of_any_size():
    rows = [{"prompt": f"{i}?", "chosen": "yes " * (1 + 5 * (i % 4)), "rejected": f"no {i}"} for i in range(40)]
    data = [{"path": write_rows("uneven.jsonl", rows)}]
    one = {"data": data, "dpo.sft_weight": 2.0, "train.per_device_train_batch_size": 4}
    four = one | {"train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 4}
    first, second = (
        run(post_recipe("dpo", name=name, **changes))["path"] for name, changes in (("one", one), ("four", four))
    )
    for ours, theirs in zip(rows_of(first), rows_of(second), strict=True):
        for key in {"loss", "grad_norm", "eval_loss"} & ours.keys():
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3), key


def test_dpo_uses_the_tokens_of_sft_and_chat():
    from transformers import AutoTokenizer

    from llm_lab.data.examples import Example
    from llm_lab.hf.chat_templates import apply_chat_template_choice
    from llm_lab.hf.conversations import encode_conversation, encode_prompt
    from llm_lab.stages.dpo import encode

    tokenizer = AutoTokenizer.from_pretrained("base")
    apply_chat_template_choice(tokenizer)
    asked = ({"role": "user", "content": "why?"},)
    pair = encode([Example(asked, chosen="so", rejected="no")], tokenizer=tokenizer, max_length=64)[0][0]
    assert pair["prompt_ids"] == encode_prompt(tokenizer, asked)
    whole = encode_conversation(tokenizer, [*asked, {"role": "assistant", "content": "so"}]).input_ids
    joined = pair["prompt_ids"] + pair["chosen_ids"]
    assert whole[: len(joined)] == joined
    assert joined[-1] == tokenizer.eos_token_id
    assert tokenizer.apply_chat_template(list(asked), add_generation_prompt=True)["input_ids"] == pair["prompt_ids"]


def test_dpo_log_probabilities_are_sums_over_the_answer(monkeypatch):
    """Computed by hand from the logits of the model; sums, not means."""
    from torch.nn import functional as F

    from llm_lab.hf.load import load_model
    from llm_lab.stages import dpo

    seen = {}
    encode = dpo.encode

    def watched(examples, **keys):
        pairs, counts = encode(examples, **keys)
        seen.setdefault("pairs", pairs)
        return pairs, counts

    monkeypatch.setattr(dpo, "encode", watched)
    recipe = post_recipe("dpo", **{"train.max_steps": 1, "train.eval_steps": 1, "train.save_steps": 1})
    run(recipe)
    from llm_lab.data.mixing import build_example_mix

    row = next(row for row in RunFolder(Path("checkpoints/dpo")).metrics() if "loss" in row)
    order = build_example_mix([seen["pairs"]], [1.0], num_samples=4, seed=1337)
    model = start_of_dpo(load_model("base"))
    sums = []
    for pair in order:
        ids = torch.tensor([pair["prompt_ids"] + pair["chosen_ids"]])
        logps = F.log_softmax(model(input_ids=ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        sums.append(logps[len(pair["prompt_ids"]) - 1 :].sum().item())
    assert row["logps_chosen"] == pytest.approx(sum(sums) / len(sums), abs=1e-3)


def start_of_dpo(model):
    from llm_lab.hf.chat_templates import apply_chat_template_choice, resize_for
    from llm_lab.hf.tokenizers import load_tokenizer

    tokenizer = load_tokenizer("base")
    resize_for(model, tokenizer, apply_chat_template_choice(tokenizer), seed=1337)
    return model


# SFT


def test_gradient_accumulation_of_4_times_1_equals_1_times_4():
    one = post_recipe("sft", name="one", **{"train.per_device_train_batch_size": 4})
    four = {"train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 4}
    first, second = (run(recipe)["path"] for recipe in (one, post_recipe("sft", name="four", **four)))
    for ours, theirs in zip(rows_of(first), rows_of(second), strict=True):
        if "loss" in ours:
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
            assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)


def test_the_first_loss_is_the_cross_entropy_of_the_assistants_tokens():
    from torch.nn import functional as F

    from llm_lab.data.examples import open_examples
    from llm_lab.data.mixing import build_example_mix
    from llm_lab.data.split import split_examples
    from llm_lab.hf.chat_templates import apply_chat_template_choice
    from llm_lab.hf.conversations import encode_conversation
    from llm_lab.hf.load import load_model
    from llm_lab.hf.tokenizers import load_tokenizer

    row = first_step("sft", **{"train.dtype": "float32"})
    model, tokenizer = start_of_dpo(load_model("base")), load_tokenizer("base")
    apply_chat_template_choice(tokenizer)
    split = split_examples([open_examples("questions.jsonl", kind="conversation")], fraction=0.1, take="random")[0]
    rows = [encode_conversation(tokenizer, example.messages, max_length=64) for example in split.train]
    nats, count = 0.0, 0
    for encoded in build_example_mix([rows], [1.0], num_samples=4, seed=1337):
        ids, labels = torch.tensor([encoded.input_ids]), torch.tensor(encoded.labels)
        logits = model(input_ids=ids).logits[0, :-1]
        nats += F.cross_entropy(logits, labels[1:], reduction="sum").item()
        count += int((labels[1:] != -100).sum())
    assert row["loss"] == pytest.approx(nats / count, rel=1e-5)


@pytest.mark.parametrize("parts", [{}, {"position_embedding": "alibi"}, {"position_embedding": "sinusoidal"}])
def test_packed_examples_do_not_see_each_other(parts):
    from llm_lab.hf.conversations import Encoded
    from llm_lab.hf.load import load_model
    from llm_lab.stages.sft import collate_rows, flatten, pack, unflatten

    write_base("other", **parts)
    model = load_model("other")
    torch.manual_seed(1)
    examples = [Encoded(torch.randint(0, 250, (n,)).tolist(), [1] * n, n) for n in (9, 5, 7, 12, 3)]
    rows = pack(examples, 16)
    assert sorted(len(example.input_ids) for row in rows for example in row) == [3, 5, 7, 9, 12]
    assert all(sum(len(example.input_ids) for example in row) <= 16 for row in rows)
    batch = collate_rows([unflatten(flatten(row)) for row in rows], pad_token_id=0)
    assert "attention_mask" not in batch
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    for number, row in enumerate(rows):
        start = 0
        for example in row:
            alone = model(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0]
            end = start + len(example.input_ids)
            assert torch.allclose(logits[number, start:end], alone, atol=1e-5)
            assert batch["labels"][number, start] == -100
            start = end


def test_a_mixture_of_experts_is_fine_tuned_and_generates():
    """TRL requests router logits in the config, with which transformers can't generate."""
    from llm_lab.hf.tokenizers import make_byte_tokenizer

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(
        vocab_size=257, **sizes, num_key_value_heads=1, num_local_experts=2, output_router_logits=True
    )
    MixtralForCausalLM(config).save_pretrained("mixture")
    make_byte_tokenizer().save_pretrained("mixture")
    facts = run(post_recipe("sft", model={"checkpoint": "mixture"}, **{"train.max_steps": 1}))
    assert facts["status"] == "done"
    assert Path(facts["path"], "samples.md").read_text()
    assert not json.loads(Path(facts["path"], "model", "config.json").read_text()).get("output_router_logits")


def test_packing_is_refused_if_examples_would_see_each_other():
    """OPT computes positions from the attention mask and ignores those it is given."""
    from llm_lab.hf.tokenizers import make_byte_tokenizer

    tokenizer = make_byte_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16}
    config = OPTConfig(vocab_size=257, **sizes, word_embed_proj_dim=16, max_position_embeddings=64)
    OPTForCausalLM(config).save_pretrained("opt")
    tokenizer.save_pretrained("opt")
    with pytest.raises(UserError, match=r"sft\.packing = true: OPTForCausalLM can't keep packed examples apart"):
        run(post_recipe("sft", model={"checkpoint": "opt"}, sft={"packing": True}))


def test_packing_trains_on_the_same_tokens_in_fewer_rows():
    loose = first_step("sft", name="loose", **{"train.per_device_train_batch_size": 36})
    facts, said = run_and_listen(
        post_recipe("sft", name="packed", **{"sft": {"packing": True}, "train.per_device_train_batch_size": 64})
    )
    assert "packed into" in said
    packed = next(row for row in RunFolder(Path(facts["path"])).metrics() if "loss" in row)
    assert packed["loss"] == pytest.approx(loose["loss"], rel=0.02)


def test_plain_text_is_trained_on_in_full_and_conversations_in_part():
    Path("texts.jsonl").write_text("".join(json.dumps({"text": f"some words {i}"}) + "\n" for i in range(20)))
    facts = run(post_recipe("sft", data=[{"path": "texts.jsonl"}], **{"samples.prompts": ["a"]}))
    assert facts["status"] == "done"
    both = first_step("sft", name="both", sft={"assistant_only_loss": False})
    only = first_step("sft", name="only")
    assert both["loss"] != only["loss"]
