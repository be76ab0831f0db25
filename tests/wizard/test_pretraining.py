"""Pretrain in the wizard: its questions, the review, the saved recipe, and the run."""

from functools import partial
from pathlib import Path

import pytest
from conftest import write_text
from support.recipe_keys import every_key
from support.wizard_answers import BACK, ENTER, Refused, answers
from support.wizard_lab import results, run_it

from llm_lab.estimate.machine import find_machine
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.optimizers import OPTIMIZERS
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.resolve import resolve
from llm_lab.recipe.train_loop import SCHEDULERS
from llm_lab.wizard.questions import ShowTokens, StartRun, WriteRecipe
from llm_lab.wizard.review import value_choices
from llm_lab.wizard.training_runs import new_draft, run_of_stage

PRETRAIN = partial(run_of_stage, "pretrain")
TO_TEXTS = ["a preset size", "nano"]
TEXT = ["text.txt", "no, continue"]
KEYS = ["adamw", ENTER, "cosine", "32", "2", "4", "first"]
TO_REVIEW = [*TO_TEXTS, *TEXT, "bytes", *KEYS]
START = ["Continue to the plan", "Yes, start"]


@pytest.fixture(autouse=True)
def text(in_tmp_path):
    write_text("text.txt")


def started(visit):
    return [effect.recipe for effect in visit.effects if isinstance(effect, StartRun)]


def test_pretraining_runs_and_leads_to_its_next_steps():
    visit = answers(PRETRAIN, [*TO_REVIEW, *START], execute=run_it)
    assert results("first")["train_tokens"] == 4 * 2 * 32
    assert (visit.result.flow, visit.result.arguments) == ("after a run", {"name": "first"})


def test_the_questions_come_in_order_and_lead_back_to_the_first():
    visit = answers(PRETRAIN, [*TO_REVIEW, *[BACK] * len(TO_REVIEW)])
    there = visit.keys[: len(TO_REVIEW)]
    assert there == [
        "model", "model.size", "data.0.path", "data.1", "tokenizer", "optimizer.name", "optimizer.learning_rate",
        "scheduler.name", "train.max_length", "train.per_device_train_batch_size", "train.max_steps", "name",
    ]  # fmt: skip
    assert visit.keys[len(TO_REVIEW) + 1 :] == there[::-1]


def test_answers_are_kept_on_the_way_back_and_forward():
    visit = answers(PRETRAIN, [*TO_REVIEW, *[BACK] * 6, *[ENTER] * 6, *START])
    assert started(visit) == [started(answers(PRETRAIN, [*TO_REVIEW, *START]))[0]]


def test_the_review_shows_where_every_value_comes_from_and_changes_any():
    visit = answers(PRETRAIN, [
        *TO_REVIEW,
        "train.max_steps", "40",  # a number
        "model.attention ", "mha",  # a choice
        "train.gradient_checkpointing", "yes",  # yes or no
        "model.hidden_size", "64 ",  # a number from a list
        "optimizer.betas", "[0.8, 0.99]",  # a list
        "samples.prompts", '["Once"]',
        "model.sliding_window", "8",  # a value that may be missing
        "model.sliding_window", "",
        "tokenizer", "a BPE", "300",
        "data.0.path", "builtin:stories", "no, continue",
        "Continue to the plan", "No, go back", *START,
    ])  # fmt: skip
    (recipe,) = started(visit)
    resolved = resolve(recipe, machine=find_machine())
    values, origins = resolved.values, resolved.origins
    assert values["train"]["max_steps"] == 40
    assert values["train"]["gradient_checkpointing"] is True
    assert values["model"]["hidden_size"] == 64
    assert values["model"]["num_key_value_heads"] == values["model"]["num_attention_heads"]
    assert origins["model.num_key_value_heads"].kind == "derived"
    assert list(values["optimizer"]["betas"]) == [0.8, 0.99]
    assert list(values["samples"]["prompts"]) == ["Once"]
    assert values["model"]["sliding_window"] is None
    assert values["tokenizer"] == {"bpe": 300}
    assert values["data"][0]["path"] == "builtin:stories"
    lines = [choice.text for choice in visit.questions[len(TO_REVIEW)].choices]
    for origin in ("answer", "default", "derived: "):
        assert any(origin in line for line in lines)


def test_going_back_in_the_review_undoes_the_last_change():
    visit = answers(PRETRAIN, [*TO_REVIEW, "train.max_steps", "40", BACK, BACK])
    line = next(choice.text for choice in visit.question.choices if choice.value == "train.max_steps")
    assert " 4 " in line
    assert visit.question.suggested == "train.max_steps"


def test_a_mistake_is_shown_in_the_review_until_it_is_fixed():
    visit = answers(PRETRAIN, [*TO_REVIEW, "model.hidden_size", "another number", Refused("33", "33: ")])
    assert visit.question.key == "model.hidden_size"


def test_the_optimizer_is_changed_in_the_review_with_all_its_keys():
    visit = answers(PRETRAIN, [*TO_REVIEW, "optimizer.betas", "[0.8, 0.9]", "optimizer.name", "muon", *START])
    assert started(visit)[0]["optimizer"] == {"name": "muon"}
    assert "muon has its own scale" in visit.texts()


def test_a_run_that_this_machine_can_not_do_is_not_started_but_saved():
    if find_machine().cuda_problem is None:
        pytest.skip("this machine has a GPU")
    visit = answers(PRETRAIN, [*TO_REVIEW, "device", "cuda", Refused("start", "this machine"), "Save the", "a"])
    assert [type(effect) for effect in visit.effects] == [WriteRecipe]


def test_a_saved_recipe_replays_to_the_same_values():
    visit = answers(PRETRAIN, [*TO_REVIEW, "Save the recipe", "mine", *START])
    saved = visit.effects[0]
    saved.path.write_text(saved.text)
    assert saved.path == Path("mine.yaml")
    machine = find_machine()
    assert resolve(read_recipe_file(saved.path), machine=machine).values == (
        resolve(started(visit)[0], machine=machine).values
    )


def test_a_recipe_is_not_saved_over_another():
    Path("old.yaml").write_text("stage: pretrain\n")
    save = [*TO_REVIEW, "Save the recipe", Refused("old.yaml", "already exists"), Refused("old", "already exists")]
    answers(PRETRAIN, [*save, Refused("no/such/old.yaml", "There is no folder"), Refused(" ", "required")])


def test_the_data_are_shown_as_tokens_and_the_review_comes_back():
    visit = answers(PRETRAIN, [*TO_REVIEW, "Look at the data as tokens"])
    assert [type(effect) for effect in visit.effects] == [ShowTokens]
    assert visit.question.key == "review"


def test_a_text_that_does_not_exist_is_refused():
    answers(PRETRAIN, [*TO_TEXTS, Refused("nosuch.txt", "nosuch.txt"), Refused("", "required"), *TEXT])


def test_several_texts_are_weighed_and_none_is_taken_twice():
    write_text("more.txt", seed=1)
    visit = answers(PRETRAIN, [
        *TO_TEXTS, "text.txt", "yes", Refused("text.txt", "data.1.path"), "more.txt", "no, continue",
        Refused("0", "not a number above 0"), "2", ENTER, "bytes", *KEYS, *START,
    ])  # fmt: skip
    sources = [(source["path"], source["weight"]) for source in started(visit)[0]["data"]]
    assert sources == [("text.txt", 2.0), ("more.txt", 1.0)]


def test_a_set_on_the_hub_can_be_streamed():
    visit = answers(PRETRAIN, [
        *TO_TEXTS, "owner/name", "sample", "text", "yes", "no, continue", "bytes", *KEYS, *START,
    ])  # fmt: skip
    assert started(visit)[0]["data"] == [
        {"path": "owner/name", "subset": "sample", "text_column": "text", "streaming": True}
    ]


def test_a_column_that_is_not_recognized_is_asked_for():
    Path("rows.jsonl").write_text('{"one": "some words here", "two": "other words there"}\n' * 50)
    visit = answers(PRETRAIN, [*TO_TEXTS, "rows.jsonl", Refused("three", "three"), "two"])
    assert "two" in visit.question.help


def test_a_config_or_a_checkpoint_is_named_and_what_does_not_exist_is_refused():
    named = answers(PRETRAIN, ["another config.json", Refused("./no/such", "does not exist"), "owner/name"])
    assert named.question.key == "data.0.path"
    continued = answers(PRETRAIN, ["continue from another model", "owner/name", *TEXT])
    assert continued.question.key == "optimizer.name"  # the tokenizer is the checkpoint's own


def test_every_key_with_a_question_is_reachable_in_the_review():
    draft = new_draft("pretrain")
    drafts = [draft, draft.with_answer("model.position_embedding", "yarn")]
    drafts += [draft.with_answer("optimizer.name", name) for name in OPTIMIZERS]
    drafts += [draft.with_answer("scheduler.name", name) for name in SCHEDULERS]
    drafts.append(draft.with_answer("score", {"path": "builtin:sums"}))
    lines = [choice.value for each in drafts for choice in value_choices(each)]
    reachable = {".".join(step for step in line.split(".") if not step.isdigit()) for line in lines}
    assert {key.path for key in every_key(STAGES["pretrain"].recipe) if key.question} <= reachable
