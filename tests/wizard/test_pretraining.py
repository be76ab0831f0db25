"""Pretrain in the wizard: its questions, the page of settings, the saved recipe, and the run."""

import shlex
from functools import partial
from pathlib import Path

import pytest
from conftest import write_text
from support.recipe_keys import every_key
from support.wizard_answers import BACK, ENTER, STAY, Fill, Refused, answers
from support.wizard_lab import results, run_it

from llm_lab.estimate.machine import find_machine
from llm_lab.recipe.files import apply_overrides, read_recipe_file
from llm_lab.recipe.optimizers import OPTIMIZERS
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.resolve import resolve
from llm_lab.recipe.train_loop import SCHEDULERS
from llm_lab.runs.plan_lines import plan_lines
from llm_lab.terminal.page_state import ACTIONS, FormPage
from llm_lab.wizard.draft_page import page_question
from llm_lab.wizard.questions import UNSET, ShowTokens, StartRun, WriteRecipe
from llm_lab.wizard.training_runs import new_draft, run_of_stage, run_page

PRETRAIN = partial(run_of_stage, "pretrain")
TO_TEXTS = ["a preset size", "nano"]
TEXT = ["text.txt", "No, continue"]
SHORT = {"optimizer.name": "adamw", "train.max_length": "32", "train.per_device_train_batch_size": "2"}
SHORT |= {"train.max_steps": "4", "name": "first"}
TO_PAGE = [*TO_TEXTS, *TEXT]
START = [ENTER, "Yes, start"]


@pytest.fixture(autouse=True)
def text(in_tmp_path):
    write_text("text.txt")


def started(visit):
    return [effect.recipe for effect in visit.effects if isinstance(effect, StartRun)]


def row(question, key):
    return question.form.row(key)


def test_pretraining_runs_and_leads_to_its_next_steps():
    visit = answers(PRETRAIN, [*TO_PAGE, Fill(SHORT), "Yes, start"], execute=run_it)
    assert results("first")["train_tokens"] == 4 * 2 * 32
    assert (visit.result.flow, visit.result.arguments) == ("after a run", {"name": "first"})


def test_after_the_model_and_the_data_one_page_leads_to_the_plan():
    visit = answers(PRETRAIN, [*TO_PAGE, ENTER, *[BACK] * 5])
    there = ["model", "model.size", "data.0.path", "data.1", "settings", "start"]
    assert visit.keys == [*there, *there[-2::-1]]


def test_a_model_and_data_that_are_given_are_not_asked_for():
    given = {"model": {"size": "micro"}, "data": [{"path": "text.txt"}]}
    visit = answers(partial(run_of_stage, "pretrain", values=given), [])
    assert visit.keys == ["settings"]
    assert (row(visit.question, "model").value, row(visit.question, "data").value) == ("preset size micro", "text.txt")


def test_a_chosen_size_counts_as_chosen_even_if_it_is_the_default():
    model = row(answers(PRETRAIN, TO_PAGE).question, "model")
    assert (model.value, model.origin) == ("preset size nano", "yours")


def test_the_answers_of_a_page_are_kept_on_the_way_back_and_forward():
    visit = answers(PRETRAIN, [*TO_PAGE, Fill(SHORT, STAY), BACK, BACK, ENTER, ENTER, *START])
    assert started(visit) == started(answers(PRETRAIN, [*TO_PAGE, Fill(SHORT), "Yes, start"]))


def test_changes_of_a_page_are_kept_after_another_answer_before_it():
    visit = answers(PRETRAIN, [*TO_PAGE, Fill(SHORT, STAY), BACK, BACK, BACK, "micro", ENTER, ENTER, *START])
    assert started(visit)[0]["model"] == {"size": "micro"}
    assert started(visit)[0]["train"]["max_steps"] == 4


def test_the_page_shows_where_every_value_comes_from_and_changes_any():
    changes = {
        "train.max_steps": "40",  # a number
        "model.attention": "mha",  # a choice
        "train.gradient_checkpointing": "yes",  # yes or no
        "model.hidden_size": "64",  # a number with suggestions
        "optimizer.name": "adamw",
        "optimizer.betas": "[0.8, 0.99]",  # a list
        "samples.prompts": '["Once"]',
        "model.sliding_window": "8",  # a value that may be missing
        "scheduler.min_ratio": "0.2",
    }
    visit = answers(PRETRAIN, [
        *TO_PAGE, Fill(changes, "tokenizer"), "a BPE", "300", Fill({"model.sliding_window": ""}, "data"),
        "builtin:stories", "No, continue", ENTER, "No, go back", *START,
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
    page = visit.questions[-2]
    origins = [row(page, key).origin for key in ("train.max_steps", "seed", "train.eval_steps")]
    assert origins == ["yours", "default", "derived"]


def test_a_flow_within_a_page_returns_to_it_and_going_back_from_there_leads_to_the_page_before():
    changed = Fill({"train.max_steps": "40"}, "tokenizer")
    visit = answers(PRETRAIN, [*TO_PAGE, changed, BACK, "tokenizer", "a BPE", "300", BACK])
    assert visit.questions[-2].form.changes == {"train": {"max_steps": 40}, "tokenizer": {"bpe": 300}}
    assert visit.question.key == "data.1"


@pytest.mark.parametrize(
    ("given", "at"),
    [(["tokenizer", "a BPE", "300"], "tokenizer"), (["tokenizer", BACK], "tokenizer"), (["xray"], "xray"),
     ([ENTER, "No, go back"], "start")],
    ids=["answered", "went back", "action", "declined"],
)  # fmt: skip
def test_a_page_that_is_shown_again_points_at_the_same_line(given, at):
    visit = answers(PRETRAIN, [*TO_PAGE, Fill({"train.max_steps": "40"}, given[0]), *given[1:]])
    page = FormPage(visit.question, lambda question, columns, most: [])
    pointed = page.form.actions[page.action].value if page.at == ACTIONS else page.at
    assert pointed == at


def test_finishing_takes_all_remaining_defaults_and_leads_to_the_plan():
    visit = answers(PRETRAIN, [*TO_PAGE, Fill({"train.max_steps": "40"}, "tokenizer"), "a BPE"])
    assert visit.question.can_finish
    visit.walk.finish()
    visit.walk.finish_effect(None)
    assert visit.question.key == "start"
    values = visit.question.screen.panel.resolved.values
    assert (values["tokenizer"], values["train"]["max_steps"]) == ({"bpe": 4096}, 40)


def test_a_value_can_be_reset_to_what_it_was_without_an_answer():
    visit = answers(PRETRAIN, [*TO_PAGE, Fill({"train.max_steps": "40", "optimizer.learning_rate": "0.5"}, STAY)])
    back = visit.question.form.change("optimizer.learning_rate", "").form
    back = back.change("train.max_steps", UNSET).form
    assert back.changes == {}
    assert [back.row(key).origin for key in ("train.max_steps", "optimizer.learning_rate")] == ["derived", "default"]
    assert "Empty: 0.02 (default)." in back.row("optimizer.learning_rate").question().allowed


def test_a_replacement_for_a_taken_name_is_the_same_on_the_page_and_in_the_plan():
    Path("checkpoints/first").mkdir(parents=True)
    draft = new_draft("pretrain", values={"name": "first"})
    page = page_question(draft, draft, run_page("pretrain"))
    name = page.form.row("name")
    assert (name.value, name.reason, page.screen.where) == ("first-2", "first is taken", "first-2")
    assert name.question().default == "first-2"
    plan = dict((name, text) for name, text, _ in plan_lines(draft.look()[0]))
    assert "in checkpoints/first-2/" in plan["disk"]
    assert "Empty: my-run (default)." in name.question().allowed
    Path("checkpoints/my-run").mkdir()
    assert "Empty: my-run-2 (default: my-run is taken)." in name.question().allowed
    Path("checkpoints/my-run").rmdir()
    back = page.form.change("name", UNSET).form.row("name")
    assert (back.value, back.origin) == ("my-run", "default")


def test_a_plan_names_the_context_of_the_model_and_the_length_of_training_sequences():
    raw = {"model": {"size": "nano"}, "train": {"max_length": 64, "per_device_train_batch_size": 4, "max_steps": 9}}
    plan = dict((name, text) for name, text, _ in plan_lines(new_draft("pretrain", values=raw).look()[0]))
    assert "context of up to 256 tokens" in plan["model"]
    assert plan["training"].startswith("9 steps × 4 sequences of 64 tokens = 2,304 tokens")


def test_a_wrong_value_is_refused_with_the_reason():
    answers(PRETRAIN, [*TO_PAGE, Fill({"model.hidden_size": Refused("33", "33: ")}, STAY)])


def test_the_optimizer_is_changed_with_all_its_keys():
    visit = answers(
        PRETRAIN, [*TO_PAGE, Fill({"optimizer.adamw_betas": "[0.8, 0.9]", "optimizer.name": "lion"}), "Yes"]
    )
    assert started(visit)[0]["optimizer"] == {"name": "lion"}
    assert "lion has its own scale: its learning rate is now 0.0002; for muon it was 0.02." in visit.texts()


def test_a_run_that_this_machine_cannot_do_is_saved_and_not_started():
    if find_machine().cuda_problem is None:
        pytest.skip("this machine has a GPU")
    visit = answers(PRETRAIN, [*TO_PAGE, Fill({"device": "cuda"}, Refused("start", "this machine")), "save", "a"])
    assert [type(effect) for effect in visit.effects] == [WriteRecipe]


def test_a_saved_recipe_and_the_command_in_the_footer_replay_to_the_same_values():
    visit = answers(PRETRAIN, [*TO_PAGE, Fill(SHORT, "save"), "mine", *START])
    saved = visit.effects[0]
    saved.path.write_text(saved.text)
    assert saved.path == Path("mine.yaml")
    machine = find_machine()
    values = resolve(started(visit)[0], machine=machine).values
    assert resolve(read_recipe_file(saved.path), machine=machine).values == values
    llm_lab, new, stage, *overrides = shlex.split(visit.questions[-2].form.command)
    assert (llm_lab, new) == ("llm-lab", "new")
    assert resolve(apply_overrides({"stage": stage}, overrides)[0], machine=machine).values == values


def test_a_recipe_is_not_saved_over_another():
    Path("old.yaml").write_text("stage: pretrain\n")
    save = [*TO_PAGE, "save", Refused("old.yaml", "already exists"), Refused("old", "already exists")]
    answers(PRETRAIN, [*save, Refused("no/such/old.yaml", "There is no folder"), Refused(" ", "required")])


def test_the_data_is_shown_as_tokens_and_the_page_comes_back():
    visit = answers(PRETRAIN, [*TO_PAGE, Fill({"train.max_steps": "4"}, "xray")])
    assert [type(effect) for effect in visit.effects] == [ShowTokens]
    assert visit.question.form.changes == {"train": {"max_steps": 4}}


def test_a_text_that_does_not_exist_is_refused():
    answers(PRETRAIN, [*TO_TEXTS, Refused("nosuch.txt", "nosuch.txt"), Refused("", "required"), *TEXT])


def test_several_texts_get_weights_and_none_is_offered_twice():
    write_text("more.txt", seed=1)
    visit = answers(PRETRAIN, [
        *TO_TEXTS, "text.txt", "Yes", Refused("text.txt", "data.1.path"), "more.txt", "No, continue",
        Refused("0", "not a number above 0"), "2", ENTER, *START,
    ])  # fmt: skip
    sources = [(source["path"], source["weight"]) for source in started(visit)[0]["data"]]
    assert sources == [("text.txt", 2.0), ("more.txt", 1.0)]


def test_a_set_on_the_hub_can_be_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    (tmp_path / "owner___name" / "sample" / "0.0.0" / "0a1b").mkdir(parents=True)
    visit = answers(PRETRAIN, [
        *TO_TEXTS, Refused("owner/nothing", "no such dataset"), "owner/name", "sample", "text", "Yes",
        "No, continue", *START,
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
    assert row(continued.question, "tokenizer").value == "owner/name"  # the checkpoint's own


def test_every_key_with_a_question_is_on_the_page():
    draft, page = new_draft("pretrain"), run_page("pretrain")
    drafts = [draft, draft.with_answer("model.position_embedding", "yarn")]
    drafts += [draft.with_answer("optimizer.name", name) for name in OPTIMIZERS]
    drafts += [draft.with_answer("scheduler.name", name) for name in SCHEDULERS]
    drafts.append(draft.with_answer("score", {"path": "builtin:sums"}))
    rows = [row.key for each in drafts for row in page_question(each, each, page).form.rows]
    reachable = {".".join(step for step in key.split(".") if not step.isdigit()) for key in rows}
    assert {key.path for key in every_key(STAGES["pretrain"].recipe) if key.question} <= reachable
