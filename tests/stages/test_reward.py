"""The reward stage: it learns which answers are better, and the saved model gives the trained one's scores."""

import json

import pytest
import torch
from support.reward_runs import make_recipe, run_stage, write_base, write_preferences
from torch.nn import functional as F

from llm_lab.errors import UserError
from llm_lab.events import ignore
from llm_lab.hf.conversations import encode_conversation
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.rewards.models import load_reward_model
from llm_lab.runs.folder import RunFolder


@pytest.mark.parametrize("parts", [{}, {"position_embedding": "alibi", "norm": "layernorm", "activation": "gelu"}])
def test_a_toy_preference_is_learned_and_the_saved_model_scores_the_same(tmp_path, parts):
    base = write_base(tmp_path / "base", **parts)
    data = write_preferences(tmp_path / "pairs.jsonl")
    folder, result, _ = run_stage(make_recipe(base, data), tmp_path / "run")
    assert result.status == "done"
    assert result.results["eval_accuracy"] > 0.95
    assert result.results["eval_margin"] > 1.0
    config = json.loads((folder.model_path / "config.json").read_text())
    ours = bool(parts)
    assert config["architectures"] == ["LabForSequenceClassification" if ours else "LlamaForSequenceClassification"]
    reward_model = load_reward_model(folder.model_path)
    polite, rude = reward_model([[{"role": "user", "content": "new question?"}]] * 2, ["please sit down", "sit down"])
    assert polite > rude


def test_the_first_loss_is_minus_log_sigmoid_of_the_margin_at_the_last_real_tokens(tmp_path):
    """Compared with a computation by hand, pair by pair without padding, from the hidden states."""
    from llm_lab.data.examples import open_examples
    from llm_lab.data.mixing import build_example_mix
    from llm_lab.data.split import split_examples
    from llm_lab.events import ignore
    from llm_lab.rewards.models import RewardModel
    from llm_lab.stages.reward import build

    base, data = write_base(tmp_path / "base"), write_preferences(tmp_path / "pairs.jsonl", count=40)
    changes = {"train.max_steps": 1, "train.eval_steps": 1, "train.logging_steps": 1}
    recipe = make_recipe(base, data, **changes, reward={"center_rewards_coefficient": 0.1})
    folder, _, _ = run_stage(recipe, tmp_path / "run")
    logged = next(row for row in folder.metrics() if "loss" in row)

    model, tokenizer = build(recipe, folder, ignore)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    split = split_examples([open_examples(data, kind="preference")], fraction=0.2, take="random")[0]
    first = [build_example_mix([split.train], [1.0], num_samples=8, seed=recipe.seed)[i] for i in range(8)]
    margins, sums, tokens = [], [], 0
    for example in first:
        scores = []
        for text in (example.chosen, example.rejected):
            messages = [*example.prompt, {"role": "assistant", "content": text}]
            ids = encode_conversation(tokenizer, messages, assistant_only=False).input_ids
            assert RewardModel(model, tokenizer).encode(example.prompt, text)["input_ids"] == ids
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
            scores.append(model.score.weight[0] @ hidden)
            tokens += len(ids)
        margins.append(scores[0] - scores[1])
        sums.append(scores[0] + scores[1])
    expected = -F.logsigmoid(torch.stack(margins)).mean() + 0.1 * (torch.stack(sums) ** 2).mean()
    assert logged["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert logged["margin"] == pytest.approx(torch.stack(margins).mean().item(), abs=1e-5)
    assert logged["accuracy"] == pytest.approx((torch.stack(margins) > 0).float().mean().item())
    assert logged["train_tokens"] == tokens


def assert_loaded_model_says_the_same(folder, data, result):
    """Return the metrics of an evaluation, computed with the saved model, one text at a time."""
    from llm_lab.data.examples import open_examples
    from llm_lab.data.split import split_examples

    held_out = split_examples([open_examples(data, kind="preference")], fraction=0.2, take="random")[0].validation
    reward_model = load_reward_model(folder.model_path, batch_size=1)
    prompts = [example.prompt for example in held_out]
    better = torch.tensor(reward_model(prompts, [example.chosen for example in held_out]), dtype=torch.float64)
    worse = torch.tensor(reward_model(prompts, [example.rejected for example in held_out]), dtype=torch.float64)
    assert result.results["eval_accuracy"] == pytest.approx((better > worse).double().mean().item())
    assert result.results["eval_margin"] == pytest.approx((better - worse).mean().item(), abs=1e-3)
    assert result.results["eval_loss"] == pytest.approx(-F.logsigmoid(better - worse).mean().item(), abs=1e-3)


def test_the_evaluation_equals_the_saved_models_scores_of_held_out_pairs(tmp_path):
    base, data = write_base(tmp_path / "base"), write_preferences(tmp_path / "pairs.jsonl", wrong=0.2)
    recipe = make_recipe(base, data, **{"train.max_steps": 20, "train.eval_steps": 20})
    folder, result, _ = run_stage(recipe, tmp_path / "run")
    assert 0.5 < result.results["eval_accuracy"] < 1.0  # a fifth of the pairs are wrong
    assert_loaded_model_says_the_same(folder, data, result)


def test_the_saved_model_scores_the_same_without_llm_lab(tmp_path, run_without_llm_lab):
    base = write_base(tmp_path / "base", position_embedding="alibi", activation="gelu")
    data = write_preferences(tmp_path / "pairs.jsonl", count=40)
    folder, _, _ = run_stage(make_recipe(base, data, **{"train.max_steps": 2}), tmp_path / "run")
    program = f"""
import sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
path = {str(folder.model_path)!r}
model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(path)
tokenizer.padding_side = "right"
ask = {{"role": "user", "content": "7?"}}
chats = [[ask, {{"role": "assistant", "content": text}}] for text in ("please", "a tree")]
inputs = tokenizer.apply_chat_template(chats, return_dict=True, return_tensors="pt", padding=True)
assert "llm_lab" not in sys.modules
print("scores", *model(**inputs).logits[:, 0].tolist())
"""
    printed = run_without_llm_lab(program)
    ours = load_reward_model(folder.model_path)(["7?"] * 2, ["please", "a tree"])
    assert [float(word) for word in printed.rpartition("scores")[2].split()] == pytest.approx(ours, abs=1e-5)


def test_identical_pairs_are_dropped_and_counted(tmp_path):
    data = tmp_path / "pairs.jsonl"
    write_preferences(data, count=40)
    rows = [
        {"prompt": "same?", "chosen": "yes", "rejected": "yes"},
        {"prompt": "cut?", "chosen": "a" + "b" * 200, "rejected": "c" + "b" * 200},
        {"prompt": "long?", "chosen": "b" * 200, "rejected": "c" * 200},
    ]
    with open(data, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    recipe = make_recipe(
        write_base(tmp_path / "base"),
        str(data),
        validation={"fraction": 0.05, "from": "random"},
        **{"train.max_steps": 1},
    )
    _, _, notes = run_stage(recipe, tmp_path / "run")
    notices = "\n".join(notes.notices)
    assert "42 of 43 rows; 1: chosen and rejected are the same" in notices
    assert "data.0: 1 of 40 preferences: both answers become the same tokens: left out" in notices
    assert "data.0: 1 of 40 preferences: longer than 96 tokens: the beginning was cut off" in notices


def test_steps_are_derived_from_the_number_of_epochs(tmp_path):
    base, data = write_base(tmp_path / "base"), write_preferences(tmp_path / "pairs.jsonl", count=50)
    recipe = make_recipe(base, data, validation={"fraction": 0.0})
    left_out = {
        "max_steps": None,
        "num_train_epochs": 2.0,
        "eval_steps": None,
        "save_steps": None,
        "logging_steps": None,
    }
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=left_out)})
    folder, result, notes = run_stage(recipe, tmp_path / "run")
    assert result.results["step"] == 12  # 100 rows, 8 a step
    assert [step for step, _ in folder.checkpoints()] == [10, 12]
    assert "eval_accuracy" not in result.results  # nothing was held out
    assert "data.0: 1.92 epochs over the run" in notes.notices


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "adamw", "learning_rate": 3e-3},
        {"name": "muon", "learning_rate": 3e-3, "adamw_learning_rate": 3e-3},
    ],
    ids=["adamw", "muon"],
)
def test_a_resumed_run_is_bit_exact(tmp_path, optimizer):
    from llm_lab.stages import reward

    base, data = write_base(tmp_path / "base"), write_preferences(tmp_path / "pairs.jsonl", count=60)
    changes = {"train.max_steps": 20, "train.eval_steps": 10, "train.save_steps": 10, "train.logging_steps": 5}
    recipe = make_recipe(base, data, **changes, optimizer=optimizer)
    whole, expected, _ = run_stage(recipe, tmp_path / "whole")

    part = tmp_path / "part"
    before = reward.LabRewardTrainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 13:
            raise KeyboardInterrupt
        return before(self, *args, **kwargs)

    reward.LabRewardTrainer.training_step = killed
    try:
        with pytest.raises(KeyboardInterrupt):
            run_stage(recipe, part)
    finally:
        reward.LabRewardTrainer.training_step = before
    resumed, result, _ = run_stage(recipe, part, resume=True)
    assert result.results["eval_loss"] == expected.results["eval_loss"]
    same = ("step", "loss", "accuracy", "margin", "train_tokens", "eval_loss")
    assert [[row.get(key) for key in same] for row in resumed.metrics()] == [
        [row.get(key) for key in same] for row in whole.metrics()
    ]
    again, result, _ = run_stage(recipe, part, resume=True)
    assert result.results["step"] == 20
    assert (again.model_path / "model.safetensors").read_bytes() == (
        whole.model_path / "model.safetensors"
    ).read_bytes()


def test_a_run_is_not_resumed_with_changed_data(tmp_path):
    base, data = write_base(tmp_path / "base"), write_preferences(tmp_path / "pairs.jsonl", count=40)
    recipe = make_recipe(base, data, **{"train.max_steps": 2})
    run_stage(recipe, tmp_path / "run")
    write_preferences(tmp_path / "pairs.jsonl", count=40, seed=5)
    with pytest.raises(UserError, match=r"data\.0\.path.*has changed since the run began"):
        run_stage(recipe, tmp_path / "run", resume=True)


# Initial models


def test_an_adapter_is_trained_and_loaded_as_a_reward_model(tmp_path):
    base, data = write_base(tmp_path / "base"), write_preferences(tmp_path / "pairs.jsonl")
    recipe = make_recipe(
        base, data, lora={"preset": "all", "r": 8, "dropout": 0.05}, optimizer={"name": "adamw", "learning_rate": 1e-2},
        **{"train.max_steps": 100, "train.eval_steps": 50},
    )  # fmt: skip
    folder, result, notes = run_stage(recipe, tmp_path / "run")
    assert result.results["eval_accuracy"] > 0.95
    assert (folder.model_path / "adapter_model.safetensors").exists()
    assert any("parameters are trained" in notice for notice in notes.notices)
    assert_loaded_model_says_the_same(folder, data, result)
    # Training continues from it as a full model.
    further = make_recipe(str(folder.model_path), data, **{"train.max_steps": 1, "train.eval_steps": 1})
    _, result, _ = run_stage(further, tmp_path / "further")
    assert result.results["eval_accuracy"] > 0.95


def test_an_adapter_of_a_language_model_is_merged_and_gets_a_head(tmp_path):
    from llm_lab.hf.chat_templates import apply_chat_template_choice, resize_for
    from llm_lab.hf.load import load_model
    from llm_lab.hf.lora_layers import attach_lora
    from llm_lab.hf.save import save_model
    from llm_lab.recipe.post_training import Lora
    from llm_lab.rewards.classifier import load_classifier

    base = write_base(tmp_path / "base")
    model, tokenizer = load_model(base), load_tokenizer(base)
    chosen = apply_chat_template_choice(tokenizer, "chatml")
    new_ids = resize_for(model, tokenizer, chosen)
    model = attach_lora(model, Lora(dropout=0.0), seed=0, new_token_ids=new_ids)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_model(model, tmp_path / "sft", tokenizer)
    merged = load_model(tmp_path / "sft", merge=True)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    ids = torch.tensor([[5, 6, 7, 258]])
    with torch.no_grad():
        backbone = load_classifier(tmp_path / "sft", new_head=True).model
        torch.testing.assert_close(backbone(ids).last_hidden_state, merged.model(ids).last_hidden_state)
    data = write_preferences(tmp_path / "pairs.jsonl", count=60)
    changes = {"train.max_steps": 2, "train.eval_steps": 2}
    folder, result, _ = run_stage(
        make_recipe(str(tmp_path / "sft"), data, lora={"dropout": 0.0}, **changes), tmp_path / "r"
    )
    assert_loaded_model_says_the_same(folder, data, result)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_an_encoder_is_trained_on_pairs_of_texts(tmp_path, kind):
    from support.reward_runs import encoder, word_tokenizer
    from transformers import AutoModelForMaskedLM

    tokenizer = word_tokenizer()
    options = {"type_vocab_size": 2} if kind == "bert" else {"type_vocab_size": 0}
    config = encoder(kind, **options).config
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    data = tmp_path / "pairs.jsonl"
    words = "what is two and three it six think or so seems to me".split()
    rows = [
        {"prompt": f"{a} {b} ?", "chosen": f"{b} five", "rejected": f"{b} {a}"} for a in words for b in words if a != b
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = make_recipe(str(tmp_path / "base"), str(data), **{"train.max_length": 32})
    folder, result, _ = run_stage(recipe, tmp_path / "run")
    assert result.results["eval_accuracy"] > 0.95
    assert load_reward_model(folder.model_path).form == "pair"
    assert_loaded_model_says_the_same(folder, str(data), result)
    with pytest.raises(UserError, match=r"chat_template = chatml: a .* reads pairs"):
        run_stage(make_recipe(str(tmp_path / "base"), str(data), chat_template="chatml"), tmp_path / "other")


def test_dropout_is_off_in_the_base_and_on_in_the_adapter(tmp_path):
    from llm_lab.stages.reward import build

    base = write_base(tmp_path / "base", position_embedding="alibi", dropout=0.3)
    recipe = make_recipe(base, "pairs.jsonl", lora={"dropout": 0.25})
    model, _ = build(recipe, RunFolder(tmp_path / "run"), ignore)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert {rate for name, rate in rates.items() if "lora" in name} == {0.25}
    assert {rate for name, rate in rates.items() if "lora" not in name} == {0.0}


def test_the_score_head_is_not_orthogonalized():
    """Muon is for hidden matrices: on the single row of the head it would discard the size of the gradient."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from llm_lab.optim.factory import split_parameters

    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    model = LlamaForSequenceClassification(config)
    matrices, ends, _ = split_parameters(model)
    assert any(parameter is model.score.weight for parameter in ends)
    assert not any(parameter is model.score.weight for parameter in matrices)


@pytest.mark.parametrize("lora", [None, {"preset": "all", "dropout": 0.0}])
def test_gradient_checkpointing_changes_no_result(tmp_path, lora):
    base, data = write_base(tmp_path / "base"), write_preferences(tmp_path / "pairs.jsonl", count=40)
    losses = []
    for again in (False, True):
        changes = {"train.max_steps": 3, "train.eval_steps": 3, "train.gradient_checkpointing": again}
        _, result, _ = run_stage(make_recipe(base, data, lora=lora, **changes), tmp_path / str(again))
        losses.append(result.results["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
