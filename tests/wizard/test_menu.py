"""The menu and its entries that set up no run; Evaluate and Export, whose runs train nothing."""

import dataclasses
import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest
from support.wizard_answers import BACK, ENTER, Refused, answers, follow
from support.wizard_lab import base, lab, results, run_it  # noqa: F401 - fixtures

from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.registry import STAGES
from llm_lab.runs.folder import RunFolder
from llm_lab.wizard.home import LEAVE, MENU, menu_question
from llm_lab.wizard.look_inside import look_inside
from llm_lab.wizard.menu import chat, checkpoints, evaluate, flow_named, replay
from llm_lab.wizard.questions import Compare, LookInside, OpenChat, Pause, ReplayLineage, StartRun
from llm_lab.wizard.training_runs import run_of_stage

pytestmark = pytest.mark.usefixtures("lab")

MODEL = "checkpoints/base:"
RUN = ["Continue to the plan", "Yes, start"]
EXPORT, MEASURE = partial(run_of_stage, "export"), partial(run_of_stage, "eval")


def test_the_menu_shows_the_machine_the_runs_and_the_life_of_a_model():
    question = menu_question()
    lines = [line.text for line in question.screen.lines]
    assert lines[0].startswith("machine  ")
    assert "runs     checkpoints/base: done, validation loss" in "\n".join(lines)
    assert [choice.value for choice in question.choices] == [*(entry.flow for entry in MENU), LEAVE]
    assert all(flow_named(entry.flow) for entry in MENU)
    assert {entry.flow for entry in MENU} >= STAGES.keys() - {"eval"}


def test_the_menu_shows_stages_of_other_packages(monkeypatch):
    own = dataclasses.replace(STAGES["sft"], name="distill", title="Distill")
    monkeypatch.setitem(STAGES, "distill", own)
    titles = [choice.text.split("  ")[0] for choice in menu_question().choices]
    assert titles[titles.index("Distill") - 1] == "Merge LoRA"
    assert flow_named("distill").args == ("distill",)


def test_the_menu_names_stages_as_their_records_do():
    shown = {entry.flow: (entry.title, entry.about) for entry in MENU}
    records = {stage.name: (stage.title, stage.about) for stage in STAGES.values()}
    assert {name: text for name, text in shown.items() if name in records} == {
        name: text for name, text in records.items() if name in shown
    }


def test_the_menu_says_where_there_is_nothing_yet():
    shutil.rmtree("checkpoints")
    lines = [line.text for line in menu_question().screen.lines]
    assert {"designs  none yet", "runs     none yet"} <= set(lines)


def test_chat_opens_with_the_model_that_was_chosen():
    assert answers(chat, [MODEL]).effects == [OpenChat("checkpoints/base")]
    typed = answers(chat, ["another folder", Refused("./no/such", "does not exist"), "owner/name"])
    assert typed.effects == [OpenChat("owner/name")]


def test_a_run_is_measured_on_what_it_held_out():
    answers(MEASURE, [MODEL, "the validation data of the run", "no, the defaults", "again", *RUN], execute=run_it)
    assert results("again")["eval_loss"] == pytest.approx(results("base")["eval_loss"], rel=1e-5)


def test_texts_and_prompts_are_named_changed_and_removed():
    Path("own.txt").write_text("Some words to predict, and then some more of them.\n" * 20)
    prompts = ["outputs for prompts, scored", ENTER, "Done", []]
    visit = answers(MEASURE, [
        MODEL, "the loss on texts", Refused("nowhere.txt", "nowhere.txt"), "own.txt", "no, continue",
        *prompts, "outputs for prompts, scored: builtin:word-problems", "remove it", ENTER, "no, the defaults", "own",
        *RUN,
    ], execute=run_it)  # fmt: skip
    assert "exact_number × 1" in visit.texts()
    recipe = read_recipe_file(Path("checkpoints/own/recipe.yaml"))
    assert [source["path"] for source in recipe["data"]] == ["own.txt"]
    assert recipe["score"] is None
    assert results("own")["bits_per_byte"] > 0


def test_looking_inside_asks_for_a_model_a_text_and_what_else_there_is_to_measure():
    visit = answers(look_inside, [MODEL, "the old tree ", "Over training"])
    assert visit.effects == [LookInside("checkpoints/base", "the old tree", steps=True)]
    shutil.rmtree("checkpoints/base/steps")
    visit = answers(look_inside, [MODEL, ENTER])
    assert visit.effects == [LookInside("checkpoints/base")]


def test_measuring_a_model_is_reached_from_evaluate():
    visit = answers(evaluate, ["Measure a model"])
    assert (visit.result.flow, visit.result.can_return) == ("eval", True)


def test_models_are_chosen_and_compared():
    visit = answers(evaluate, [
        "Compare models", MODEL, "another folder", Refused("./no/such", "does not exist"), BACK,
        "another folder", "checkpoints/base/model", "yes", BACK, "compare these", "What is 2 + 2?",
    ])  # fmt: skip
    assert visit.effects == [Compare(("checkpoints/base", "checkpoints/base/model"), ("What is 2 + 2?",))]


def test_the_time_machine_asks_for_a_run_and_a_prompt():
    visit = answers(evaluate, ["Compare the checkpoints", MODEL.rstrip(":"), ENTER])
    assert visit.effects == [Compare(("checkpoints/base",), (), steps=True)]
    shutil.rmtree("checkpoints/base/steps")
    answers(evaluate, [Refused("time", "no run has checkpoints")])


@pytest.mark.usefixtures("quick_verification")
def test_an_export_says_beforehand_what_can_load_it_and_verifies_it():
    keys = [MODEL, "gguf", "f32", "no, only on this machine", "no, the defaults", "file", *RUN]
    visit = answers(EXPORT, keys, execute=run_it)
    assert "a Llama file for llama.cpp, Ollama and LM Studio" in visit.texts()
    assert [file.suffix for file in Path("checkpoints/file/gguf").iterdir() if file.suffix != ".md"] == [".gguf"]


def test_a_repository_on_the_hub_is_named_as_owner_and_name():
    repository = ["yes, to my repository", Refused("two words", '"two words" is not allowed.'), "me/mine", "yes"]
    visit = answers(EXPORT, [MODEL, "hf", ENTER, *repository, "no, the defaults", "sent", *RUN])
    assert visit.effects[0].recipe["export"] == {"push": "me/mine"}


def test_a_checkpoint_leads_to_all_that_can_be_done_with_it():
    for line, flow in (
        ("Look inside it", "look"),
        ("Evaluate it", "eval"),
        ("Export it", "export"),
        ("Continue with its model", "next steps"),
    ):
        assert answers(checkpoints, [MODEL, line]).result.flow == flow
    exported = follow(answers(checkpoints, [MODEL, "Export it"]).result, [])
    assert exported.question.key == "export.to"
    assert exported.question.screen.where == "base-export"
    visit = answers(checkpoints, [MODEL, "Chat", "Compare its checkpoints", "Replay its whole", "Back to the list"])
    path = "checkpoints/base"
    assert visit.effects == [OpenChat(path), Compare((path,), steps=True), ReplayLineage(path)]
    assert visit.question.key == "checkpoint"


def test_a_stopped_run_is_resumed_and_any_run_is_replayed_after_a_yes():
    RunFolder(Path("checkpoints/base")).update(status="stopped")
    visit = answers(checkpoints, [MODEL, "Resume this run", "No, go back", "Resume this run", "Yes, start"])
    recipe = "checkpoints/base/recipe.yaml"
    assert visit.effects == [StartRun(recipe, (), resume=True), Pause()]
    again = answers(checkpoints, [MODEL, "Run its recipe", "Yes, start"])
    assert again.effects[0] == StartRun(recipe)


def test_a_recipe_file_is_run_with_changes_that_are_checked():
    changes = "train.max_steps=3 name=again"
    file = "checkpoints/base/recipe.yaml"
    visit = answers(replay, [
        "another file", Refused("no.yaml", "does not exist"), file, Refused("train.max_steps=x", "max_steps"),
        Refused('name="', "No closing quotation"), changes, "No, go back", changes, "Yes, start",
    ])  # fmt: skip
    assert visit.effects == [StartRun(file, tuple(shlex.split(changes))), Pause()]
