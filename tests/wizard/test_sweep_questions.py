"""Sweep and duel in the wizard: a recipe, what to compare, how many seeds."""

import json
from functools import partial
from pathlib import Path

import pytest
from conftest import tiny_recipe, write_text
from support.wizard_answers import BACK, ENTER, Refused, answers, follow

from llm_lab.commands.arguments import parse
from llm_lab.estimate.formatting import about
from llm_lab.runs.folder import RunFolder
from llm_lab.studies import DUEL_ABOUT, STUDY_ABOUT, SWEEP_ABOUT
from llm_lab.studies.cells import START_SECONDS
from llm_lab.studies.sweep import open_sweep, plan_sweep
from llm_lab.studies.sweep_report import cost_of_a_seed
from llm_lab.wizard.home import GROUPS
from llm_lab.wizard.menu import entries_of
from llm_lab.wizard.questions import Next, Pause, ResumeSweep, StartDuel, StartSweep
from llm_lab.wizard.sweep_questions import duel, resume_sweep, sweep, words_in


@pytest.fixture(autouse=True)
def _recipe(in_tmp_path):
    write_text("text.txt")
    Path("configs").mkdir()
    Path("configs/mine.yaml").write_text(json.dumps(tiny_recipe()))


def test_typed_values_are_checked_before_the_sweep_starts():
    bad = Refused("optimizer.learning_rate=0.01", "this key has one")
    visit = answers(sweep, ["mine", "other keys", bad, "optimizer.learning_rate=0.01,0.02", "3", "Yes"])
    assert any("6 to run, one after the other" in line.text for line in visit.questions[-1].screen.lines)
    assert visit.effects == [
        StartSweep("configs/mine.yaml", ("optimizer.learning_rate=0.01,0.02",), 3),
    ]


def test_a_preset_is_offered_if_the_recipe_has_its_key():
    visit = answers(sweep, ["mine", "learning-rate", ENTER, ENTER, ENTER, 5, "Yes"])
    assert visit.effects[0] == StartSweep("configs/mine.yaml", (), 5, "learning-rate")
    presets = {choice.value: choice.why_not for choice in visit.questions[1].choices}
    assert presets["lora-rank"] == "a recipe of the stage pretrain has no LoRA"
    assert presets["optimizer"] is None


def test_some_values_of_a_preset_are_compared_for_the_chosen_number_of_steps():
    values, steps = ["adamw", "muon"], Refused("many", "not a whole number")
    visit = answers(sweep, ["mine", "optimizer", Refused(["muon"], "two"), values, steps, "4", ENTER, "1", "Yes"])
    assert visit.effects[0] == StartSweep("configs/mine.yaml", ("optimizer.name=adamw,muon", "train.max_steps=4"), 1)
    assert next(one.why for one in visit.questions if one.key == "sweep.words").startswith("These changes are the same")
    assert any("2 to run, one after the other" in line.text for line in visit.questions[-1].screen.lines)


def test_fewer_steps_than_the_warm_up_of_the_recipe_get_a_shorter_warm_up():
    raw = tiny_recipe() | {"scheduler": {"name": "linear", "warmup_steps": 10}}
    raw["train"] = {**raw["train"], "max_steps": 40}
    Path("configs/mine.yaml").write_text(json.dumps(raw))
    visit = answers(sweep, ["mine", "seeds", "8", ENTER, ENTER, "Yes"])
    words = ("train.max_steps=8", "scheduler.warmup_steps=2")
    assert visit.effects[0] == StartSweep("configs/mine.yaml", words, 3, "seeds")


def test_a_duel_is_between_two_values_of_a_key():
    one = Refused("optimizer.learning_rate=0.01", "two")
    visit = answers(duel, ["mine", "one key changed", one, "optimizer.learning_rate=0.01,0.02", ENTER, "Yes"])
    plan = "\n".join(line.text for line in visit.questions[-1].screen.lines)
    assert "12 to run, one after the other" in plan
    assert "to compare at equal time, up to 6 runs of the slower recipe with fewer steps" in plan
    assert visit.effects == [StartDuel("configs/mine.yaml", ("optimizer.learning_rate=0.01,0.02",), 6)]


def test_spaces_around_commas_and_equals_signs_do_not_separate_values():
    visit = answers(duel, ["mine", "one key changed", "optimizer.name=adamw, muon  train.max_steps=4", ENTER, "Yes"])
    assert visit.effects[0] == StartDuel("configs/mine.yaml", ("optimizer.name=adamw,muon", "train.max_steps=4"), 6)
    assert words_in("name='a, b' betas=[0.9, 0.95],[0.9, 0.99]") == ("name=a, b", "betas=[0.9,0.95],[0.9,0.99]")
    assert words_in("optimizer.name = adamw , muon  a= 'x = y'") == ("optimizer.name=adamw,muon", "a=x = y")
    assert words_in("a=1,2, b=3") == ("a=1,2,", "b=3"), "another key is not taken for a value"


def test_a_duel_is_between_two_recipes():
    raw = tiny_recipe()
    Path("configs/yours.yaml").write_text(json.dumps(raw | {"name": "yours", "optimizer": {"name": "lion"}}))
    visit = answers(duel, ["mine", "another recipe", "yours", ENTER, "8", "Yes"])
    assert visit.effects[0] == StartDuel("configs/mine.yaml", (), 8, "configs/yours.yaml")
    assert visit.questions[-1].screen.where == "mine against yours"


def test_a_stopped_sweep_is_resumed_from_its_folder_with_the_runs_that_failed():
    planned = plan_sweep("mine", ["optimizer.learning_rate=0.01,0.02"], seeds=2)
    planned.write()
    for cell, status in zip(planned.cells(), ("done", "failed"), strict=False):
        cell.folder.mkdir()
        RunFolder(cell.folder).update(status=status)
    Path("configs/mine.yaml").unlink()  # the folder has everything that is needed
    visit = answers(partial(resume_sweep, str(planned.folder)), ["Yes"])
    assert any("3 of 4 to run (1 done, 1 failed before)" in line.text for line in visit.questions[0].screen.lines)
    assert visit.effects == [ResumeSweep(str(planned.folder))]  # and nothing has run
    again = visit.result
    assert again == Next("resume sweep", {"path": str(planned.folder), "is_stopped": True})
    question = follow(again, []).question
    assert (question.text, question.below_output) == ("Resume the sweep?", True)
    for cell in planned.cells():
        cell.folder.mkdir(exist_ok=True)
        RunFolder(cell.folder).update(status="done")
    assert follow(again, ["Yes"]).effects[-1] == Pause()


def test_a_sweep_that_takes_months_says_so_and_is_started_only_after_a_yes():
    steps = [Refused("9" * 20, "at most 9,007,199,254,740,992"), "9000000000"]
    visit = answers(sweep, ["mine", "learning-rate", ENTER, *steps, ENTER, "1"])
    assert any("more than a month" in line.text for line in visit.question.screen.lines)
    assert visit.question.suggested is False


def test_a_sweep_whose_name_is_taken_by_another_gets_a_number():
    plan_sweep("mine", ["optimizer.learning_rate=0.01,0.02"]).write()
    answer = "optimizer.learning_rate=0.01,0.02 train.max_steps=7"
    visit = answers(sweep, ["mine", "other keys", answer, ENTER])
    assert any("-learning_rate-2/" in line.text for line in visit.question.screen.lines)


def test_one_sentence_says_what_a_sweep_a_duel_and_a_study_are_for_wherever_they_are_offered(capsys):
    about = {entry.title: entry.about for entry in entries_of("try")}
    assert [about["Sweep"], about["Duel"], about["Study"]] == [SWEEP_ABOUT, DUEL_ABOUT, STUDY_ABOUT]
    with pytest.raises(SystemExit):
        parse(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for text in (SWEEP_ABOUT, DUEL_ABOUT, STUDY_ABOUT):
        assert text in printed
        assert text in next(group.why for group in GROUPS if group.name == "try")


def test_an_empty_answer_says_what_to_name_in_the_words_of_the_question():
    answers(duel, ["mine", "one key changed", Refused("", "Name one key and two values: optimizer.name=adamw,muon.")])
    answers(sweep, ["mine", "other keys", Refused(" ", "Name a key and its values: optimizer.learning_rate=")])


def test_the_question_for_a_key_and_two_values_shows_an_example_that_it_accepts():
    question = answers(duel, ["mine", "one key changed"]).question
    example = question.allowed.rstrip(".").rpartition("For example ")[2]
    assert example == "optimizer.name=adamw,muon train.max_steps=100"
    assert question.problem(example) is None


def test_for_a_pipeline_the_examples_name_a_stage_and_are_accepted():
    demo = Path(__file__).parents[2] / "configs/demo.yaml"
    Path("configs/demo.yaml").write_text(demo.read_text())
    visit = answers(duel, ["demo", "one key changed"])
    example = "stages.0.optimizer.name=adamw,muon"
    assert visit.questions[1].choices[0].effect == f"For example {example}."
    both = f"{example} stages.0.train.max_steps=100"
    assert visit.question.allowed.endswith(f"For example {both}.")
    assert visit.question.problem(both) is None
    question = answers(sweep, ["demo", "other keys"]).question
    rates = question.allowed.rstrip(".").rpartition(" ")[2]
    assert rates == "stages.0.optimizer.learning_rate=0.001,0.003"
    assert question.problem(rates) is None


def test_the_help_of_each_question_of_a_sweep_is_about_that_question():
    visit = answers(sweep, ["mine", "optimizer", ENTER, ENTER, ENTER, ENTER])
    helps = {question.key: question.why for question in visit.questions}
    assert "optimizer.name: the optimizer" in helps["sweep.optimizer.name"]
    assert "one run for each value and seed" in helps["sweep.seeds"]
    assert "Ctrl-C stops it" in helps["sweep.start"]
    assert len({*helps.values()}) == len(helps)


def test_the_time_of_a_sweep_includes_the_start_of_each_run():
    visit = answers(sweep, ["mine", "other keys", "optimizer.learning_rate=0.01,0.02", 5])
    line = next(line.text for line in visit.question.screen.lines if line.text.startswith("time"))
    seconds = cost_of_a_seed(plan_sweep("mine", ["optimizer.learning_rate=0.01,0.02"], seeds=5))[0]
    assert seconds > 2 * START_SECONDS
    assert line == f"{'time':<10}{about(5 * seconds)}, with {START_SECONDS} s for the start of each run"


def test_the_plan_of_a_sweep_and_of_a_duel_lists_the_changes_that_apply_to_all_its_runs():
    words = "optimizer.learning_rate=0.01,0.02 train.max_steps=4 validation.max_tokens=64"
    for flow, entry in ((sweep, "other keys"), (duel, "one key changed")):
        visit = answers(flow, ["mine", entry, words, ENTER])
        shown = [line.text for line in visit.question.screen.lines if line.text.startswith("changes")]
        assert shown == [f"{'changes':<10}train.max_steps=4, validation.max_tokens=64"]
        if flow is sweep:
            planned = plan_sweep("mine", words.split(), seeds=1)
            planned.write()
            assert open_sweep(planned.folder).changes == planned.changes != ()


def test_each_number_of_seeds_says_what_it_costs():
    asked = answers(duel, ["mine", "one key changed", "optimizer.learning_rate=0.01,0.02"]).question
    texts = {choice.value: choice.text for choice in asked.choices}
    assert texts[8].startswith("8    16 runs  ")
    assert "Then, to compare at equal time, up to 8 runs of the slower recipe with fewer steps." in next(
        choice.effect for choice in asked.choices if choice.value == 8
    )
    asked = answers(sweep, ["mine", "other keys", "optimizer.learning_rate=0.01,0.02,0.03", BACK, ENTER]).question
    assert [choice.text[:12] for choice in asked.choices][:2] == ["1     3 runs", "3     9 runs"]


def test_the_number_of_seeds_stays_when_the_plan_is_changed():
    visit = answers(sweep, ["mine", "learning-rate", ENTER, ENTER, ENTER, "1", "No, change it", ENTER])
    assert (visit.question.key, visit.question.suggested) == ("sweep.seeds", 1)
