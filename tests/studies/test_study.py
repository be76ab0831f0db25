"""A study runs in its own process and folder, writes its report, resumes, and ends with a clear message."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import write_text
from support.forked_command import ForkedCommand
from support.wizard_answers import BACK, ENTER, Refused, answers

import llm_lab
from llm_lab.cli import main
from llm_lab.events import Notice, Progress, ignore
from llm_lab.runs.folder import RunFolder
from llm_lab.studies.experiment_files import check_values, find_experiment
from llm_lab.studies.study import shown_result
from llm_lab.studies.study_process import open_study, run_study
from llm_lab.wizard.questions import Pause, StartStudy
from llm_lab.wizard.run_questions import checkpoints
from llm_lab.wizard.study_questions import study

pytestmark = pytest.mark.usefixtures("in_tmp_path")
ROOT = Path(__file__).resolve().parent.parent.parent

QUICK = '''"""Sums of numbers, and a picture of them.

What to expect: they grow.
"""
import os, signal, sys, time
from typing import Literal
from pydantic import BaseModel, Field, field_validator
from llm_lab.errors import Problem, UserError
from llm_lab.runs.plots import draw_bars

APP_NAME = "Sums"

class Options(BaseModel):
    numbers: list[int] = Field([1, 2], min_length=1, description="numbers to add")
    ending: Literal["well", "raise", "refuse", "exit", "die", "lose", "wait"] = Field("well", description="how it ends")

    @field_validator("numbers")
    @classmethod
    def no_thirteen(cls, numbers):
        if 13 in numbers:
            raise ValueError("13 is not added")
        return numbers

def run(options: Options, study) -> None:
    study.say(f"process {os.getpid()}")
    if options.ending == "refuse":
        raise UserError(Problem("numbers", "they are not wanted"))
    total = sum(options.numbers)
    study.heading("Sums")
    study.text("Text with <b>marks</b>, `code_of *mine*` and\\n   lines.")
    study.table("sums", ("number", "sum so far", "even"), [(1, 1 / 3, True), (2, None, False)], "All sums.")
    study.picture("bars", draw_bars([("total", total)], title="Total", x="sum"), "One bar.")
    study.result("total", total)
    if options.ending == "raise":
        {}["missing"]
    if options.ending == "lose":
        open("nowhere.txt")
    if options.ending == "exit":
        sys.exit(0)
    if options.ending == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if options.ending == "wait":
        print("ready", flush=True)
        time.sleep(60)
'''


@pytest.fixture(autouse=True)
def quick(in_tmp_path):
    Path("experiments").mkdir()
    Path("experiments/sums.py").write_text(QUICK)


def study_facts(name="sums"):
    return RunFolder(Path("checkpoints") / name).facts()


def test_a_study_runs_in_a_process_of_its_own_and_writes_its_report(capfd):
    assert main(["study", "sums", "numbers=3,4"]) == 0
    printed = capfd.readouterr().out
    assert int(re.search(r"process (\d+)", printed)[1]) != os.getpid()
    assert "checkpoints/sums/report.html" in printed
    folder = Path("checkpoints/sums")
    facts = study_facts()
    assert (facts["status"], facts["results"], facts["study"]["options"]["numbers"]) == ("done", {"total": 7}, [3, 4])
    report = (folder / "report.md").read_text()
    assert report.index("# Sums") < report.index("What to expect: they grow.") < report.index("## Sums")
    assert "| 1 | 0.3333 | yes |" in report
    assert "![One bar.](pictures/bars.svg)" in report
    assert "`llm-lab study sums numbers=3,4`" in report
    assert "<b>" not in report
    assert "Text with &lt;b>marks&lt;/b>, `code_of *mine*` and lines." in report
    page = (folder / "report.html").read_text()
    assert "Text with &lt;b&gt;marks&lt;/b&gt;, <code>code_of *mine*</code> and lines." in page
    assert (folder / "pictures/bars.svg").read_text().strip() in page
    assert (folder / "tables/sums.csv").read_text().splitlines()[1:] == [f"1,{1 / 3},True", "2,,False"]
    rows = json.loads((folder / "tables/sums.json").read_text())
    assert rows[0] == {"number": 1, "sum so far": 1 / 3, "even": True}


def test_an_experiment_that_raises_ends_in_a_clear_message_and_resumes(capfd):
    assert main(["study", "sums", "ending=raise"]) == 1
    printed = capfd.readouterr().err
    line = QUICK.splitlines().index('        {}["missing"]') + 1
    assert f"experiments/sums.py, line {line}: the study raised KeyError: 'missing'." in printed
    assert "Traceback" not in printed
    assert "KeyError" in Path("checkpoints/sums/traceback.txt").read_text()
    assert study_facts()["status"] == "failed"
    Path("experiments/sums.py").write_text(QUICK.replace('{}["missing"]', "pass"))
    assert main(["study", "sums", "ending=raise"]) == 0
    assert study_facts()["status"] == "done"
    assert not Path("checkpoints/sums/traceback.txt").exists()
    assert not Path("checkpoints/sums-2").exists()


def test_input_that_an_experiment_refuses_is_a_user_error_and_leaves_no_folder(capfd):
    assert main(["study", "sums", "ending=refuse"]) == 2
    assert "numbers: they are not wanted." in capfd.readouterr().err
    assert not Path("checkpoints/sums").exists()
    assert main(["study", "sums", "numbers=13"]) == 2
    assert "13 is not added" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("ending", "part"),
    [
        ("exit", "the study raised SystemExit"),
        ("lose", "the study raised FileNotFoundError"),
        ("die", "was ended by signal 9"),
    ],
)
def test_a_process_that_ends_without_a_result_has_failed(ending, part, capfd):
    assert main(["study", "sums", f"ending={ending}"]) == 1
    assert part in capfd.readouterr().err
    assert RunFolder(Path("checkpoints/sums")).status() in ("failed", "interrupted")


def test_ctrl_c_stops_a_study_and_the_same_command_resumes_it():
    process = ForkedCommand("study", "sums", "ending=wait", stdout=subprocess.PIPE, text=True)
    assert any(line.strip() == "ready" for line in process.stdout)
    process.send_signal(signal.SIGINT)
    printed = process.stdout.read()
    assert process.wait(timeout=20) == 130
    assert "Start it again with the same options to resume: llm-lab study sums ending=wait" in printed
    assert study_facts()["status"] == "stopped"
    experiment = find_experiment("sums")
    wait = check_values(experiment, {"ending": "wait"})
    assert open_study(experiment, wait) == (RunFolder(Path("checkpoints/sums")), True)
    other = check_values(experiment, {"ending": "wait", "numbers": (5,)})
    assert open_study(experiment, other) == (RunFolder(Path("checkpoints/sums-2")), False)


def test_python_gets_tables_pictures_and_a_list(capfd):
    result = llm_lab.study("sums", numbers=[3, 4])
    assert result.results == {"total": 7}
    assert list(result.table["number"]) == [1, 2]
    assert list(result.pictures) == ["bars"]
    assert "sandbox" in result._repr_html_()
    listed = llm_lab.study().table.set_index("name")
    assert listed.loc["sums", "options"] == {"numbers": (1, 2), "ending": "well"}
    with pytest.raises(ValueError, match="KeyError"):
        llm_lab.study("sums", ending="raise")


def test_the_list_and_a_dry_run_show_titles_options_and_errors(capsys):
    Path("experiments/broken.py").write_text("def (")
    assert main(["study"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"sums +Sums *\n", printed)
    assert re.search(r"broken +can't run: syntax error in line 1", printed)
    assert main(["study", "sums", "numbers=5", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"numbers +5 *\n +numbers to add", printed)
    assert not Path("checkpoints").exists()


def test_the_wizard_asks_for_the_options_that_the_file_declares():
    Path("experiments/broken.py").write_text("def (")
    visit = answers(study, [
        Refused("broken", "syntax error"), "sums", BACK, "sums", "numbers", Refused("x", "numbers.0 = x"), "7,8",
        "ending", "refuse", "numbers", BACK, "Start",
    ])  # fmt: skip
    assert visit.effects == [StartStudy("sums", {"numbers": [7, 8], "ending": "refuse"}), Pause()]
    assert "numbers to add. Allowed: a list." in visit.texts()
    assert answers(study, ["sums", ENTER]).effects[0] == StartStudy("sums", {})


def example() -> str:
    docs = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    return re.search(r"```python\n(.*?)```", docs, flags=re.DOTALL)[1]


class Killed(BaseException):
    """Simulates a signal that ends a process from outside."""


TRAINS = '''"""Two tiny models."""
from pydantic import BaseModel
APP_NAME = "Steps"
class Options(BaseModel):
    steps: list[int] = [2, 4]
def run(options, study):
    for steps in options.steps:
        model = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
        train = {"max_steps": steps, "max_length": 32, "per_device_train_batch_size": 2, "logging_steps": 1}
        recipe = {"stage": "pretrain", "model": model, "tokenizer": "bytes", "train": train, "device": "cpu"}
        recipe |= {"data": [{"path": "text.txt"}], "samples": {"max_new_tokens": 2}}
        run = study.train(recipe, f"steps-{steps}")
        study.result(f"loss_{steps}", run.facts()["results"]["eval_loss"])
'''


@pytest.fixture
def trains():
    write_text("text.txt")
    Path("experiments/trains.py").write_text(TRAINS)
    return find_experiment("trains")


def test_a_killed_study_resumes_and_ends_equal(trains):
    options = check_values(trains, {})

    def kill(event) -> None:
        if isinstance(event, Progress) and event.label == "steps-4" and event.done == 3:
            raise Killed

    folder, _ = open_study(trains, options)
    with pytest.raises(Killed):
        run_study(folder, kill)
    before = (folder.path / "steps-2/run.json").read_bytes()
    process = {**folder.facts()["process"], "started": 0.0}
    folder.update(status="running", process=process)  # as a killed process leaves it
    resumed, resumes = open_study(trains, options)
    assert (resumed, resumes) == (folder, True)
    said = []
    run_study(folder, lambda event: said.append(event.text) if isinstance(event, Notice) else None)
    assert said == ["steps-2: already done", "steps-4: done"]
    assert (folder.path / "steps-2/run.json").read_bytes() == before

    whole, resumes = open_study(trains, options)
    assert (whole.path.name, resumes) == ("trains-2", False)
    run_study(whole, ignore)
    assert whole.facts()["results"] == folder.facts()["results"]


def test_a_child_with_another_recipe_is_trained_again_and_a_study_leaves_other_commands_alone(trains, capsys):
    folder, _ = open_study(trains, check_values(trains, {"steps": (2,)}))
    run_study(folder, ignore)
    Path("experiments/trains.py").write_text(TRAINS.replace('"max_length": 32', '"max_length": 16'))
    run_study(folder, ignore)
    assert RunFolder(folder.path / "steps-2").facts()["recipe"]["train"]["max_length"] == 16

    assert main(["list", "runs"]) == 0
    assert re.search(r"trains +study .* done +1 run", capsys.readouterr().out)
    assert main(["show", "checkpoints/trains/steps-2"]) == 0
    capsys.readouterr()
    assert main(["show", "trains"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"steps-2 +done, validation loss", printed)
    assert "llm-lab study trains steps=2" in printed
    visit = answers(checkpoints, ["checkpoints/trains", "Run it again"])
    assert visit.effects == [StartStudy("trains", {"steps": [2]}), Pause()]
    assert main(["chat", "checkpoints/trains/steps-2", "--prompt", "Once", "--max-new-tokens", "2"]) == 0
    capsys.readouterr()
    assert main(["chat", "checkpoints/trains", "--prompt", "Once"]) == 2
    assert "no model" in capsys.readouterr().err


def test_the_example_of_the_docs_runs():
    text = example()
    assert len(text.splitlines()) <= 40
    Path("experiments/width.py").write_text(text)
    width = find_experiment("width")
    folder, _ = open_study(width, check_values(width, {"widths": (8,), "steps": 2}))
    run_study(folder, ignore)
    [row] = json.loads((folder.path / "tables/losses.json").read_text())
    assert row["width"] == 8
    assert folder.facts()["results"] == {"best_loss": row["validation loss"]}


def test_the_result_of_a_study_is_rounded_and_an_accuracy_is_a_percent():
    assert shown_result("test_accuracy", 0.0005741) == "0.1 %"
    assert shown_result("test_accuracy_without_weight_decay", 0.9912) == "99.1 %"
    assert shown_result("best_loss", 2.123456) == "2.123"
    assert shown_result("learned_at_step", "not reached") == "not reached"
