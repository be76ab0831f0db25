"""The errors of recipes name the real mistake, and show how to write what is meant."""

import json
from pathlib import Path

import pytest

from llm_lab.cli import main
from llm_lab.errors import Problem
from llm_lab.estimate.formatting import plural


@pytest.fixture(autouse=True)
def _folder(in_tmp_path):
    pass


def errors_of(recipe: str, capsys) -> str:
    Path("recipe.yaml").write_text(recipe)
    return refusal_of("check", "recipe.yaml", capsys=capsys)


def refusal_of(*words: str, capsys) -> str:
    assert main(list(words)) == 2
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


SFT = "stage: sft\ndevice: cpu\nmodel: {checkpoint: gpt2}\n"


@pytest.mark.parametrize("data", ["[chats.jsonl]", "chats.jsonl", "{path: chats.jsonl}"])
def test_data_in_the_wrong_form_is_the_only_error_and_says_how_to_write_it(data, capsys):
    Path("chats.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    said = errors_of(f"{SFT}data: {data}\n", capsys)
    assert "Write data: [{path: chats.jsonl}]; on the command line: data.0.path=chats.jsonl." in said
    assert "stories" not in said
    assert "Allowed" not in said
    (line,) = [line for line in said.split("data") if "Write" in line]
    assert "this must be a" in line


def test_the_other_datasets_of_a_recipe_are_checked_under_their_own_numbers(capsys):
    said = errors_of(f"{SFT}data: [{{path: missing.jsonl}}, chats.jsonl, {{path: gone.jsonl}}]\n", capsys)
    assert "data.1 = chats.jsonl: this must be a group of keys." in said
    assert "data.0.path = missing.jsonl" in said
    assert "data.2.path = gone.jsonl" in said
    assert "data.1.path =" not in said


def test_an_override_in_an_error_has_the_number_of_its_stage(capsys):
    said = refusal_of("check", "demo", "stages.0.data=x.txt", capsys=capsys)
    assert "stages.0.data = x.txt: this must be a list. Write data: [{path: x.txt}]; on the command line: " in said
    assert "on the command line: stages.0.data.0.path=x.txt." in said


@pytest.mark.parametrize("word", ["off", "false", "none"])
def test_a_recipe_without_validation_is_written_as_a_share_of_0_and_keys_have_their_names_in_recipes(word, capsys):
    said = refusal_of("check", "stories", f"validation={word}", capsys=capsys)
    assert "Allowed: fraction, from, max_tokens, stream_documents. For no validation: validation.fraction=0." in said
    assert "from_" not in refusal_of("check", "stories", "validation.qqqqqq=1", capsys=capsys)
    assert "from_" not in refusal_of("check", "stories", "validation=5", capsys=capsys)


def test_required_data_is_shown_with_an_example(capsys):
    said = refusal_of("new", "pretrain", capsys=capsys)
    assert (
        "data: this key is required. The datasets, each with its weight. For example data.0.path=my-text.txt." in said
    )
    assert "For example data.0.path=my-examples.jsonl." in refusal_of("new", "sft", capsys=capsys)
    assert "stories" not in said
    said = errors_of("stages: [{stage: pretrain, device: cpu}]\n", capsys)
    assert "stages.0.data: this key is required." in said
    assert "For example stages.0.data.0.path=my-text.txt." in said


def test_a_stage_that_starts_from_a_trained_model_says_so_if_it_is_given_a_new_one(capsys):
    said = errors_of("stage: dpo\ndevice: cpu\nmodel: {size: nano}\ndata: [{path: builtin:sums}]\n", capsys)
    assert (
        "model.checkpoint: this key is required. dpo starts from a trained model, so model takes checkpoint (" in said
    )
    assert "not size." in said
    assert said.count("required") == 1
    assert "unknown key" not in said
    said = errors_of("stage: dpo\ndevice: cpu\nmodel: {chekpoint: gpt2}\ndata: [{path: builtin:sums}]\n", capsys)
    assert "model.chekpoint: unknown key of model. Did you mean checkpoint?" in said


@pytest.mark.parametrize("word", ["model=gpt2", "model.size=micro", "train.max_steps=4"])
def test_a_key_of_a_stage_that_is_given_to_the_whole_pipeline_gets_the_way_to_write_it(word, capsys):
    key = word.partition("=")[0].partition(".")[0]
    said = refusal_of("check", "demo", word, capsys=capsys)
    assert f"{key}: unknown key of a pipeline." in said
    assert "A key of one stage is stages.NUMBER.KEY, for example stages." in said


def test_a_wrong_checkpoint_is_reported_once(capsys):
    said = errors_of("stage: sft\ndevice: cpu\nmodel: {checkpoint: 5}\ndata: [{path: builtin:sums}]\n", capsys)
    assert "model.checkpoint = 5: invalid value" in said
    assert "required" not in said


def test_a_checkpoint_with_keys_of_a_new_model_says_that_they_are_left_out(capsys):
    said = refusal_of("check", "stories", "model.checkpoint=gpt2", capsys=capsys)
    assert "model.size: unknown key of a model that is given by its checkpoint. Leave it out; on the command " in said
    assert "on the command line: model.size=null." in said
    said = refusal_of("check", "stories", "model.checkpoint=5", capsys=capsys)
    assert "model.checkpoint = 5: invalid value" in said
    assert "on the command line: model.size=null." in said


def test_a_key_of_one_stage_is_shown_in_its_place_in_a_pipeline(capsys):
    said = refusal_of("check", "demo", "train.max_steps=4", capsys=capsys)
    assert (
        "train: unknown key of a pipeline. Allowed: name, seed, device, score, stages. A key of one stage is " in said
    )
    assert "A key of one stage is stages.NUMBER.KEY, for example stages.0.train.max_steps=4." in said
    # The first stage that has the key is the example.
    assert "for example stages.1.lora.r=4." in refusal_of("check", "demo", "lora.r=4", capsys=capsys)
    assert "A key of one stage" not in refusal_of("check", "demo", "qqqqqq=4", capsys=capsys)


def test_values_in_errors_are_written_as_in_recipes_and_a_key_is_left_out_by_null(capsys):
    said = refusal_of("check", "stories", "model=gpt22", capsys=capsys)
    assert "tokenizer = {bpe: 1024}: the checkpoint has its own tokenizer" in said
    assert "Leave it out; on the command line: tokenizer=null." in said
    assert (
        str(Problem("k", "no", value=["", {"a": None, "b": (True, 0.5)}])) == 'k = ["", {a: null, b: [true, 0.5]}]: no.'
    )


def test_a_file_with_too_few_columns_is_not_shown_with_one_that_it_does_not_have(capsys):
    Path("chats.jsonl").write_text('{"question": "a", "reply": "b"}\n' * 3)
    said = errors_of("stage: dpo\ndevice: cpu\nmodel: {checkpoint: gpt2}\ndata: [{path: chats.jsonl}]\n", capsys)
    assert "A prompt with two answers needs 3 columns, and the file has 2. Name the columns, for example " in said
    assert "columns: {prompt: question, chosen: reply, rejected: YOUR_COLUMN}." in said
    Path("chats.jsonl").write_text('{"foo": "a"}\n' * 3)
    assert "for example columns: {text: foo}." in errors_of(f"{SFT}data: [{{path: chats.jsonl}}]\n", capsys)


def test_a_duel_of_two_stages_is_refused_before_their_recipes_are_compared(capsys):
    Path("sft.yaml").write_text(f"{SFT}data: [{{path: builtin:sums}}]\n")
    said = refusal_of("duel", "stories", "sft.yaml", capsys=capsys)
    assert "a duel compares two recipes of the same stage; these are pretrain and sft." in said
    assert "warm-up" not in said


def test_options_in_advice_are_written_as_they_are_typed(capsys):
    said = refusal_of("sweep", "stories", capsys=capsys)
    assert "`--preset seeds` measures only how much the result varies with the seed." in said
    Path("bare").mkdir()
    Path("bare/config.json").write_text("{}")
    said = refusal_of("eval", "bare", capsys=capsys)
    assert "For a loss, give a text: `--data FILE` (in a recipe: data)." in said
    assert "For scored outputs, give prompts: `--prompts FILE` (in a recipe: score.path)." in said


def test_one_of_something_is_written_in_the_singular(capsys):
    Path("one.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    Path("base").mkdir()
    Path("base/config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64, "vocab_size": 500}))
    recipe = "stage: sft\ndevice: cpu\nmodel: {checkpoint: base}\ndata: [{path: one.jsonl}]\n"
    recipe += "validation: {fraction: 0}\n"
    Path("recipe.yaml").write_text(recipe)
    assert main(["check", "recipe.yaml", "train.eval_steps=1"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "3 epochs of 1 example," in said
    assert "every step" in said
    many = [plural(number, "step") for number in (1, 2, 1.0, 2.5, 12_345_678)]
    assert many == ["1 step", "2 steps", "1 step", "2.5 steps", "12,345,678 steps"]


@pytest.mark.parametrize("folder", [None, "checkpoints/stories"])
def test_a_remark_ends_with_one_punctuation_mark(folder, monkeypatch, capsys):
    monkeypatch.setattr("llm_lab.hf.hub.go_offline_without_hub", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in filter(None, [folder]):
        Path(name).mkdir(parents=True)
    Path("recipe.yaml").write_text(
        "stage: sft\ndevice: cpu\nmodel: {checkpoint: storis}\ndata: [{path: builtin:sums}]\n"
    )
    assert main(["check", "recipe.yaml"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the Hub can't be reached." in said
    assert ("Did you mean checkpoints/stories? " in said) == (folder is not None)
    assert ".." not in said
    assert "?." not in said
