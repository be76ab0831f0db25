"""The forgetting meter: general text measured at every evaluation, compared with the starting model, with a warning."""

import json
import shutil
from pathlib import Path

import pytest
from support.post_runs import post_recipe, rows_of, write_base

from llm_lab.data.sources import open_source
from llm_lab.errors import UserError
from llm_lab.evaluation.perplexity import measure_text
from llm_lab.events import ignore
from llm_lab.hf.load import load_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.job import check
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("in_tmp_path")
FORGETS = {"optimizer.learning_rate": 0.05, "forgetting": {"path": "general.txt", "threshold": 0.05}}


@pytest.fixture(autouse=True)
def texts(in_tmp_path):
    write_base()
    Path("general.txt").write_text("It was a dark and stormy night. Nobody slept, and the wind took the roof.\n" * 20)


def measured(checkpoint: str) -> float:
    """Measure the bits per byte of the general text outside any run."""
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    settings = {"max_tokens": 20_000, "max_length": 64, "rows": 4, "device": "cpu", "dtype": "bfloat16"}
    source = open_source("general.txt")
    return measure_text(model, tokenizer, source, listener=ignore, **settings)["bits_per_byte"]


def general(path: str) -> list[tuple[int, float, float]]:
    rows = [row for row in RunFolder(Path(path)).metrics() if "forgetting" in row]
    return [(row["step"], row["general_bits_per_byte"], row["forgetting"]) for row in rows]


def test_a_fine_tune_is_measured_against_its_start_and_warns_once():
    facts = run(post_recipe("sft", **FORGETS))
    (first, start, zero), *later = general(facts["path"])
    assert (first, zero) == (0, 0.0)
    assert start == pytest.approx(measured("base"), rel=5e-3)  # it has new rows for the tokens of ChatML
    assert [step for step, _, _ in later] == [3, 6]
    assert later[-1][1] == pytest.approx(measured(f"{facts['path']}/model"), rel=1e-3)
    assert all(rise == now - start for _, now, rise in later)
    assert facts["results"]["forgetting"] == later[-1][2] > 0.05
    [warning] = [text for text in facts["warnings"] if "forgets" in text]
    step, bits = next((step, bits) for step, bits, rise in later if rise > 0.05)
    assert f"at step {step} the model forgets: general.txt takes {bits:.3f} bits per byte" in warning
    report = Path(facts["path"], "report.md").read_text()
    assert "| forgetting |" in report
    assert "the model forgets" in report
    assert "forgetting" in Path(facts["path"], "curves.svg").read_text()


def test_measuring_forgetting_changes_nothing_in_the_run_and_gives_no_warning_below_the_threshold():
    whole = run(post_recipe("sft"))
    watched = run(post_recipe("sft", forgetting={"path": "general.txt", "threshold": 9.0}))
    assert rows_of(watched["path"], "forgetting", "general_bits_per_byte") == rows_of(whole["path"])
    assert not any("forgets" in text for text in watched.get("warnings", ()))


def test_a_resumed_run_keeps_the_measurement_of_its_start_model():
    raw = post_recipe("sft", **FORGETS)
    whole = run(raw)
    folder, before = RunFolder(Path(whole["path"])), general(whole["path"])
    shutil.rmtree(folder.steps_path / "checkpoint-6")
    shutil.rmtree(folder.model_path)
    resumed = run(raw, resume=True)
    assert general(resumed["path"]) == before
    assert len([text for text in resumed["warnings"] if "forgets" in text]) == 1

    shutil.rmtree(folder.steps_path / "checkpoint-6")
    shutil.rmtree(folder.model_path)
    kept = json.loads(folder.run_json.read_text())["forgetting"]
    folder.update(forgetting=kept | {"start_bits_per_byte": 1.0})
    run(raw, resume=True)
    assert general(whole["path"])[-1][2] == before[-1][1] - 1.0, "the starting model is not measured again"

    shutil.rmtree(folder.steps_path / "checkpoint-6")
    Path("general.txt").write_text("Another text.\n" * 9)
    with pytest.raises(UserError, match="has changed since the run began"):
        run(raw, resume=True)


def test_reinforcement_learning_has_the_same_meter():
    found = general(run(post_recipe("grpo", forgetting="general.txt"))["path"])
    assert [step for step, _, _ in found] == [0, 3, 6]


def test_the_key_is_a_text_or_a_group_and_is_checked_before_the_run():
    job = check(post_recipe("sft"), ["forgetting=general.txt"])
    assert job.stages[0].values["forgetting"]["path"] == "general.txt"
    assert job.stages[0].values["forgetting"]["threshold"] == 0.1
    assert check(post_recipe("dpo", forgetting="builtin:stories")).stages[0].estimate.seconds_by_part["forgetting"] > 0
    for key, part in (
        ("forgetting=nowhere.txt", "forgetting.path = nowhere.txt: There is no such file"),
        ("forgetting.path=builtin:storys", "Did you mean stories?"),
        ("forgetting.treshold=1", "Did you mean threshold?"),
        ("forgetting.threshold=0", "forgetting.threshold = 0"),
    ):
        with pytest.raises(UserError) as error:
            check(post_recipe("sft", forgetting={"path": "general.txt"}), [key])
        assert part in str(error.value)
