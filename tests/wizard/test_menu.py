"""The menu and its entries that do not set up a run; Evaluate and Export, whose runs do not train."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
from support.wizard_answers import BACK, ENTER, STAY, Fill, Refused, answers, follow
from support.wizard_lab import base, lab, results, run_it  # noqa: F401 - fixtures

from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.registry import STAGES
from llm_lab.runs.card_answers import keep_answers
from llm_lab.runs.entries import list_entries
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.lock import hold
from llm_lab.wizard import menu
from llm_lab.wizard.home import GROUPS, LEAVE, menu_question
from llm_lab.wizard.look_inside import look_inside
from llm_lab.wizard.menu import FLOWS, chat, entries_of, evaluate, flow_named, group, replay
from llm_lab.wizard.questions import (
    Compare,
    DeleteRun,
    KeepCard,
    LookInside,
    Next,
    OpenChat,
    Pause,
    ReplayLineage,
    StartRun,
)
from llm_lab.wizard.quick_start import PLAN_WHY
from llm_lab.wizard.run_questions import after_a_run, checkpoints
from llm_lab.wizard.training_runs import run_of_stage

pytestmark = pytest.mark.usefixtures("lab")

MODEL = "checkpoints/base:"
START = "Yes, start"
UNLISTED = {"group", "resume", "resume sweep", "talk", "after a run", "next steps"}  # reached from a run
EXPORT, MEASURE = partial(run_of_stage, "export"), partial(run_of_stage, "eval")


def entries():
    return [entry for group in GROUPS for entry in entries_of(group.name)]


def test_no_text_of_the_wizard_names_the_key_that_goes_back():
    files = sorted(Path(menu.__file__).parent.glob("*.py"))
    assert files
    assert [
        file.name for file in files if re.search(r"\bEsc\b", file.read_text("utf-8"))
    ] == []  # in plain mode it is b


def test_home_begins_with_the_quick_start_and_leads_to_every_flow():
    values = [choice.value for choice in menu_question().choices]
    assert values[0] == "quick"
    assert values[-3:] == ["checkpoints", "doctor", LEAVE]
    alone = {value for value in values[:-1] if isinstance(value, str)}
    assert {entry.flow for entry in entries()} | alone >= STAGES.keys() - {"eval"} | set(FLOWS) - UNLISTED
    for entry in entries():
        assert answers(partial(flow_named("group"), group_of(entry.flow)), [entry.flow]).result.flow == entry.flow
        assert flow_named(entry.flow)


def group_of(flow):
    return next(group.name for group in GROUPS if flow in [entry.flow for entry in entries_of(group.name)])


def test_home_shows_the_machine_the_disk_use_and_the_recent_runs():
    screen = menu_question().screen
    machine, runs = (line.text for line in screen.lines[:2])
    assert "CPU cores" in machine
    assert re.fullmatch(r"checkpoints/: 1 run, [\d.]+ [KM]iB", runs)
    assert re.fullmatch(r"base +pretrain +\S+ \S+ +\d\.\d\d +\d+ (s|min)", screen.side[1].text)
    shutil.rmtree("checkpoints")
    assert [line.text for line in menu_question().screen.lines][1] == "checkpoints/: no runs yet"


def test_home_offers_to_chat_with_the_newest_model_and_to_resume_a_stopped_run():
    talk = next(choice for choice in menu_question().choices if choice.text.startswith("Chat with base "))
    assert answers(partial(flow_named("talk"), path=talk.value[1]), []).effects == [OpenChat("checkpoints/base")]
    run = RunFolder(Path("checkpoints/base"))
    run.update(status="stopped", results={**run.facts()["results"], "step": 1})
    lines = [choice for choice in menu_question().choices if "base" in choice.text]
    assert [choice.value for choice in lines] == [["resume", "checkpoints/base"]]
    assert lines[0].text.startswith("Resume base")
    assert "50 % · stopped" in lines[0].text
    resumed = answers(partial(flow_named("resume"), path="checkpoints/base"), ["Yes, start"])
    assert resumed.effects == [StartRun("checkpoints/base/recipe.yaml", (), resume=True)]
    assert resumed.result == Next("after a run", {"path": "checkpoints/base"})


def test_home_offers_to_resume_a_stopped_pipeline():
    outer = RunFolder(Path("checkpoints/both"))
    shutil.copytree("checkpoints/base", outer.path / "first")
    outer.write_recipe(RunFolder(Path("checkpoints/base")).recipe_path.read_text())
    outer.update(name="both", stages=["first", "second"], status="stopped")
    assert ["resume", "checkpoints/both"] in [choice.value for choice in menu_question().choices]


def test_every_line_of_home_and_its_groups_explains_itself():
    lines = [
        *menu_question().choices[:-1],
        *(c for g in GROUPS for c in answers(partial(group, g.name), []).question.choices),
    ]
    assert len({choice.why for choice in lines}) >= len(lines) - 1
    assert all(len(choice.why) > len("a sentence at least, not the line again") for choice in lines)
    explained = " ".join(choice.why for choice in lines)
    for name in (
        "direct preference optimization",
        "group relative policy optimization",
        "proximal policy optimization",
    ):
        assert name in explained


def test_a_group_shows_stages_of_other_packages(monkeypatch):
    own = dataclasses.replace(STAGES["sft"], name="distill", title="Distill")
    monkeypatch.setitem(STAGES, "distill", own)
    assert [entry.title for entry in entries_of("train")][-3:-1] == ["Merge LoRA", "Distill"]
    assert flow_named("distill").args == ("distill",)


def test_a_run_whose_record_is_damaged_is_called_a_run_at_home_and_in_the_list():
    Path("checkpoints/base/run.json").write_text("{damaged")
    (shown,) = [choice.cells[:2] for choice in answers(checkpoints, []).question.choices if choice.cells]
    assert shown == ("base", "run")
    assert [(entry["name"], entry["stage"]) for entry in list_entries()] == [shown]


def test_a_reward_model_is_not_offered_for_a_chat():
    shutil.copytree("checkpoints/base", "checkpoints/scorer")
    facts = json.loads(Path("checkpoints/scorer/run.json").read_text())
    Path("checkpoints/scorer/run.json").write_text(json.dumps(facts | {"name": "scorer", "stage": "reward"}))
    offered = [choice.value for choice in answers(chat, [MODEL]).questions[0].choices]
    assert "checkpoints/base" in offered
    assert "checkpoints/scorer" not in offered


def test_chat_opens_with_the_model_that_was_chosen():
    assert answers(chat, [MODEL]).effects == [OpenChat("checkpoints/base")]
    typed = answers(chat, ["another folder", Refused("./no/such", "does not exist"), "owner/name"])
    assert typed.effects == [OpenChat("owner/name")]


def test_a_run_is_measured_on_what_it_held_out():
    answers(MEASURE, [MODEL, Fill({"name": "again"}), START], execute=run_it)
    assert results("again")["eval_loss"] == pytest.approx(results("base")["eval_loss"], rel=1e-5)


def test_texts_and_prompts_are_named_changed_and_removed():
    Path("own.txt").write_text("Some words to predict, and then some more of them.\n" * 20)
    visit = answers(MEASURE, [
        MODEL, "data", Refused("nowhere.txt", "nowhere.txt"), "own.txt", "No, continue",
        "score", ENTER, "Done", "score", "Remove it", Fill({"name": "own"}), START,
    ], execute=run_it)  # fmt: skip
    assert "exact_number × 1" in visit.texts()
    recipe = read_recipe_file(Path("checkpoints/own/recipe.yaml"))
    assert [source["path"] for source in recipe["data"]] == ["own.txt"]
    assert recipe["score"] is None
    assert results("own")["bits_per_byte"] > 0


def test_looking_inside_asks_for_a_model_a_text_and_what_else_to_measure():
    visit = answers(look_inside, [MODEL, "the old tree ", "Over training"])
    assert visit.questions[1].text == "Which text should it read?"
    assert visit.questions[1].allowed == "Empty: a built-in text."
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
        "another folder", "checkpoints/base/model", "Yes", BACK, "compare these", "What is 2 + 2?",
    ])  # fmt: skip
    assert visit.effects == [Compare(("checkpoints/base", "checkpoints/base/model"), ("What is 2 + 2?",))]


def test_comparing_checkpoints_asks_for_a_run_and_a_prompt():
    visit = answers(evaluate, ["Compare the checkpoints", MODEL.rstrip(":"), ENTER])
    assert visit.effects == [Compare(("checkpoints/base",), (), steps=True)]
    shutil.rmtree("checkpoints/base/steps")
    answers(evaluate, [Refused("time", "no run has checkpoints")])


@pytest.mark.usefixtures("quick_verification")
def test_an_export_says_beforehand_what_can_load_it_and_verifies_it():
    changes = {"export.to": "gguf", "export.weights": "f32", "name": "file"}
    visit = answers(EXPORT, [MODEL, Fill(changes), "Jo", "mit", START], execute=keep_or_run)
    form = visit.questions[1].form.row("export.to").question()
    assert any("a Llama file for llama.cpp, Ollama and LM Studio" in choice.effect for choice in form.choices)
    assert [file.suffix for file in Path("checkpoints/file/gguf").iterdir() if file.suffix != ".md"] == [".gguf"]
    card = Path("checkpoints/file/gguf/README.md").read_text()
    assert "license: mit" in card
    assert "Jo" in card
    again = answers(EXPORT, [MODEL, ENTER, "No, go back", "card"])  # known, so they are asked for only on request
    assert (again.question.key, again.question.default) == ("card.author", "Jo")
    assert "card.author" not in again.keys[:-1]


def test_an_export_without_a_type_of_weights_says_which_one_they_get():
    visit = answers(EXPORT, [MODEL, Fill({"export.to": "gguf"}, STAY)])
    shown = [question.form.row("export.weights").value for question in visit.questions[1:3]]
    assert shown == ["as trained", "f32 4 bytes per weight: exact"]


def test_an_export_asks_for_the_card_before_its_plan_and_nothing_after_the_yes():
    visit = answers(EXPORT, [MODEL, ENTER, "Jo", "mit", START])
    assert visit.keys[-3:] == ["card.author", "card.license", "start"]
    assert [type(effect) for effect in visit.effects] == [KeepCard, StartRun]
    back = answers(EXPORT, [MODEL, ENTER, "Jo", "mit", BACK])
    assert (back.question.key, back.question.default, back.effects) == ("card.license", "mit", [])


def test_a_run_that_was_renamed_is_marked_in_the_list():
    shutil.copytree("checkpoints/base", "checkpoints/other")
    for name in ("base", "other"):
        visit = answers(checkpoints, [f"checkpoints/{name}", "Rename it", "renamed"])
        assert visit.result == Next("checkpoints", {"last": "checkpoints/renamed"})
        Path(f"checkpoints/{name}").rename("checkpoints/renamed")
        again = answers(partial(checkpoints, **visit.result.arguments), [])
        assert again.question.suggested == "checkpoints/renamed"
        Path("checkpoints/renamed").rename(f"checkpoints/{name}")


def test_the_line_that_a_help_names_is_under_the_group_that_it_names():
    design = next(entry.title for entry in entries_of("train") if entry.flow == "design")
    group = next(group for group in GROUPS if group.name == "train")
    assert f"{design}, under {group.title}," in PLAN_WHY
    assert design in group.why


def keep_or_run(effect):
    if isinstance(effect, KeepCard):
        keep_answers(effect.answers, RunFolder(Path(effect.checkpoint)))
        return True
    return run_it(effect)


def test_a_repository_on_the_hub_is_named_as_owner_and_name(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    wrong = Fill({"export.push": Refused("two words", '"two words" is not allowed.')}, STAY)
    visit = answers(EXPORT, [MODEL, wrong, Fill({"export.push": "me/mine", "name": "sent"}), "", "", START])
    assert visit.effects[1].recipe["export"] == {"push": "me/mine"}


def test_a_checkpoint_leads_to_everything_that_can_be_done_with_it():
    for line, flow in (
        ("Look inside it", "look"),
        ("Evaluate it", "eval"),
        ("Export it", "export"),
        ("Continue with its model", "next steps"),
    ):
        assert answers(checkpoints, [MODEL, line]).result.flow == flow
    exported = follow(answers(checkpoints, [MODEL, "Export it"]).result, [])
    assert exported.question.form.row("export.to")
    assert exported.question.screen.where == "base-export"
    visit = answers(checkpoints, [MODEL, "Chat", "Compare its checkpoints", "Back to the list"])
    path = "checkpoints/base"
    assert visit.effects == [OpenChat(path), Compare((path,), steps=True)]
    assert visit.question.key == "checkpoint"


def test_a_lineage_is_trained_again_after_a_yes_below_its_plan():
    path = "checkpoints/base"
    refused = answers(checkpoints, [MODEL, "Replay its whole", "No, go back"])
    assert refused.effects == [ReplayLineage(path, only_plan=True)]
    assert refused.question.screen.where == path
    started = answers(checkpoints, [MODEL, "Replay its whole", "Yes, start"])
    assert started.effects == [ReplayLineage(path, only_plan=True), ReplayLineage(path), Pause()]


def test_the_page_of_a_run_stays_its_page_when_another_run_begins_meanwhile():
    walk = answers(checkpoints, [ENTER, "delete"]).walk
    shutil.copytree("checkpoints/base", "checkpoints/newer")
    RunFolder(Path("checkpoints/newer")).update(ended_at=RunFolder(Path("checkpoints/base")).facts()["ended_at"] + 9)
    walk.answer(False)
    assert (walk.question.screen.where, walk.question.suggested) == ("checkpoints/base", "delete")
    walk.back()
    assert [choice.value for choice in walk.question.choices][:2] == ["checkpoints/newer", "checkpoints/base"]
    assert walk.question.suggested == "checkpoints/base"
    walk.answer("checkpoints/newer")
    assert walk.question.suggested == "list"  # not the choice for the other run


def test_a_stopped_run_is_resumed_and_any_run_is_replayed_after_a_yes():
    RunFolder(Path("checkpoints/base")).update(status="stopped")
    visit = answers(checkpoints, [MODEL, "Resume this run", "No, go back", "Resume this run", "Yes, start"])
    recipe = "checkpoints/base/recipe.yaml"
    assert visit.effects == [StartRun(recipe, (), resume=True)]
    assert visit.result == Next("after a run", {"path": "checkpoints/base"})
    again = answers(checkpoints, [MODEL, "Run its recipe", "Yes, start"])
    assert again.effects[0] == StartRun(recipe)
    assert again.result == Next("after a run", {"name": "base"})


def test_a_run_that_failed_before_its_first_checkpoint_says_why_and_that_it_starts_again():
    run = RunFolder(Path("checkpoints/base"))
    run.update(status="failed", error="Diverged: the loss became nan at step 3")
    shutil.rmtree(run.steps_path)
    shutil.rmtree(run.model_path)
    (offered,) = [choice for choice in menu_question().choices if choice.value == ["resume", "checkpoints/base"]]
    assert "Start base again" in offered.text
    visit = answers(checkpoints, [MODEL, "Start this run again"])
    assert "it failed: Diverged: the loss became nan at step 3" in visit.question.notice
    assert "starts from its first step" in visit.question.notice
    assert "Start it again" in [
        choice.text for choice in answers(partial(after_a_run, path="checkpoints/base"), []).question.choices
    ]


def test_after_a_run_the_first_choice_is_a_chat_that_returns_to_the_choices():
    visit = answers(partial(after_a_run, path="checkpoints/base"), [ENTER])
    assert visit.effects == [OpenChat("checkpoints/base")]
    assert visit.question.key == "next"
    assert not any("llm-lab" in choice.text for choice in visit.question.choices)


def test_after_a_run_the_choices_are_for_the_run_of_this_terminal_not_for_a_newer_one_with_its_name():
    for folder, pid in (("base-2", os.getpid()), ("base-3", 1)):
        shutil.copytree("checkpoints/base", f"checkpoints/{folder}")
        RunFolder(Path("checkpoints", folder)).update(created_at=time.time() + pid, process={"pid": pid})
    assert answers(partial(after_a_run, name="base"), []).result == Next("after a run", {"path": "checkpoints/base-2"})


def test_after_a_stopped_run_the_choices_are_resuming_it_and_chatting_with_its_checkpoint():
    run = RunFolder(Path("checkpoints/base"))
    run.update(status="stopped", results={**run.facts()["results"], "step": 1})
    visit = answers(
        partial(after_a_run, path="checkpoints/base"), ["Chat with its last checkpoint", "Resume it (50 %)"]
    )
    assert visit.effects == [OpenChat("checkpoints/base")]
    assert visit.result == Next("resume", {"path": "checkpoints/base"}, can_return=True)


def test_a_recipe_file_is_run_with_changes_that_are_checked():
    changes = "train.max_steps=3 name=again"
    file = "checkpoints/base/recipe.yaml"
    visit = answers(replay, [
        "another file", Refused("no.yaml", "does not exist"), file, Refused("train.max_steps=x", "max_steps"),
        Refused('name="', "No closing quotation"), changes, "No, go back", changes, "Yes, start",
    ])  # fmt: skip
    assert visit.effects == [StartRun(file, tuple(shlex.split(changes)))]
    assert visit.result == Next("after a run", {"name": "again"})


def test_the_result_and_the_age_of_a_run_have_the_same_format_in_all_lists():
    RunFolder(Path("checkpoints/base")).update(results={"exact_match": 0.031}, ended_at=time.time() - 300)
    choice = next(one for one in answers(checkpoints, []).question.choices if one.value == "checkpoints/base")
    assert "exact match 3.1 %" in choice.text
    assert choice.cells[-1] == "exact match 3.1 %"
    assert choice.cells[3] == "5 min"
    assert any("5 min ago" in one.text for one in menu_question().choices)


def test_the_lines_above_a_question_are_wrapped_by_the_terminal():
    for number in range(9):
        run = RunFolder(Path(f"checkpoints/made-from-it-{number}"))
        run.path.mkdir()
        run.update(name=run.path.name, parent={"path": "checkpoints/base/model"})
    lines = answers(checkpoints, ["checkpoints/base", "Delete it"]).question.screen.lines
    assert [line.text for line in lines if "9 other runs" in line.text and line.text.endswith(".")]


def test_a_sweep_is_listed_with_its_progress_and_can_be_deleted():
    folder = Path("checkpoints/rates")
    folder.mkdir()
    about = {"kind": "sweep", "created_at": 1e9, "configurations": [{}, {}], "seeds": [1, 2, 3]}
    (folder / "sweep.json").write_text(json.dumps(about))
    shutil.copytree("checkpoints/base", folder / "cell")
    visit = answers(checkpoints, ["checkpoints/rates", "Delete it", "Yes"])
    cells = next(choice.cells for choice in visit.questions[0].choices if choice.value == "checkpoints/rates")
    assert (cells[:2], cells[4:]) == (("rates", "sweep"), ("stopped", "1 of 6 runs done"))
    assert [choice.value for choice in visit.questions[0].choices][:2] == ["checkpoints/base", "checkpoints/rates"]
    about["created_at"] = time.time() + 9
    (folder / "sweep.json").write_text(json.dumps(about))
    newest = answers(checkpoints, []).question.choices[0]
    assert newest.value == "checkpoints/rates", "newest first, whatever it is"
    assert [choice.value for choice in visit.questions[1].choices] == ["list", "resume sweep", "rename", "delete"]
    assert visit.effects == [DeleteRun("checkpoints/rates")]


def test_the_help_of_a_page_of_a_run_or_sweep_is_about_what_is_on_the_page():
    folder = Path("checkpoints/rates")
    folder.mkdir()
    about = {"kind": "sweep", "created_at": 1e9, "configurations": [{}], "seeds": [1, 2]}
    (folder / "sweep.json").write_text(json.dumps(about))
    for path, has_lineage in (("checkpoints/rates", False), ("checkpoints/base", True)):
        page = answers(checkpoints, [path]).question
        about_lineage = [choice.value for choice in page.choices if "lineage" in choice.why]
        assert about_lineage == (["lineage"] if has_lineage else [])
        assert "Choose what to do with it" in page.why
        assert "lineage" not in page.why


def test_home_counts_sweeps_offers_to_resume_them_and_says_what_is_running():
    folder = Path("checkpoints/rates")
    shutil.copytree("checkpoints/base", folder / "cell")
    about = {"kind": "sweep", "created_at": 1e9, "configurations": [{}], "seeds": [1, 2]}
    (folder / "sweep.json").write_text(json.dumps(about))
    home = menu_question()
    assert home.screen.lines[1].text.startswith("checkpoints/: 1 run, 1 sweep, ")
    assert [choice.text.split("  ")[0] for choice in home.choices][1:3] == ["Resume rates", "Chat with base"]
    assert home.choices[1].value == ["resume sweep", "checkpoints/rates"]
    assert "rates         sweep" in home.screen.side[2].text
    (folder / ".claims/cell").mkdir(parents=True)
    with hold(folder / ".claims/cell"):  # as the command that works on it does
        home = menu_question()
        assert home.screen.lines[2].text == "running now: rates"
        assert not any(choice.text.startswith("Resume") for choice in home.choices)


def test_home_names_a_running_run_in_full(monkeypatch):
    folder = Path("checkpoints/shakespeare-sft-grpo-2-dpo-f32-with-a-long-name")
    shutil.copytree("checkpoints/base", folder)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    with hold(folder):
        assert menu_question().screen.lines[2].text == f"running now: {folder.name}"


def test_an_evaluation_without_named_data_says_what_it_measures_on():
    page = answers(MEASURE, [MODEL]).question.form
    assert page.row("data").value == "the validation data of its run"
