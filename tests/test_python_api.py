"""LLM Lab from Python: a function for each stage, a Run that reads its folder, displays for notebooks."""

import json
from pathlib import Path

import pytest
from conftest import write_text
from support.post_runs import write_base, write_preferences, write_questions

import llm_lab
from llm_lab.errors import UserError
from llm_lab.python_api import recipe_of
from llm_lab.recipe.registry import STAGES
from llm_lab.run_result import Compared, Picture, Run

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "python.ipynb"
FEW = {"max_steps": 2, "eval_steps": 2, "max_length": 64, "per_device_train_batch_size": 2}
SMALL = FEW | {"samples": {"max_new_tokens": 4}, "max_examples": 4}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder with a base, and a run of sft that started from it; and what was printed."""
    import contextlib
    import io

    folder, printed = tmp_path_factory.mktemp("python"), io.StringIO()
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("LLM_LAB_CACHE", str(folder / "cache"))
        write_base("base")
        llm_lab.sft("base", "builtin:support-chat", learning_rate=1e-3, name="tuned", **SMALL)
    return folder, printed.getvalue()


@pytest.fixture
def run(tuned, monkeypatch):
    monkeypatch.chdir(tuned[0])
    return Run("tuned")


def test_the_plan_is_printed_before_the_training(tuned):
    printed = tuned[1]
    assert printed.index("Plan: tuned · sft") < printed.index("step 1 of 2")
    assert "builtin:support-chat" in printed


def test_a_run_reads_its_folder(run):
    assert (run.status, run.base, run.facts["stage"]) == ("done", "base", "sft")
    assert run.results["step"] == 2
    assert run.recipe["optimizer"]["learning_rate"] == 1e-3
    assert list(run.metrics["step"].unique()) == [0, 1, 2]
    assert run.report.startswith("# tuned")
    assert repr(run).startswith("Run('checkpoints/tuned'): sft, done, validation loss ")
    (Path(run) / "run.json").write_text(json.dumps(run.facts | {"results": {"step": 7}}))
    assert run.results == {"step": 7}
    with pytest.raises(UserError, match="Did you mean checkpoints/tuned"):
        Run("checkpoints/tunned")


def test_the_base_and_the_tuned_model_answer_side_by_side(run):
    found = run.compare("How do I reset my password?", max_new_tokens=4)
    assert isinstance(found, Compared)
    assert [model.name for model in found.comparison.models] == ["base", "checkpoints/tuned"]
    assert len(found.answers) == 1
    assert "A  base" in repr(found)
    assert "B  checkpoints/tuned" in repr(found)
    assert "<th" in found._repr_html_()
    with pytest.raises(UserError, match="max_new_tokens"):
        run.compare("Hi", max_tokens=4)


def test_a_run_has_a_picture_a_model_and_a_chat(run, tmp_path):
    picture = run.plot()
    assert isinstance(picture, Picture)
    assert picture.save(tmp_path / "curves.svg").read_text().startswith("<svg")
    assert "<svg" in run._repr_html_()
    model, tokenizer = llm_lab.load(run)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    chat = run.chat(max_new_tokens=3, seed=1)
    first = chat("Hi")
    assert chat.messages == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": first}]
    assert run.chat("Hi", max_new_tokens=3, seed=1) == first


def test_what_a_model_wrote_is_text_in_a_notebook(run):
    import dataclasses

    found = run.compare("<b>Hi</b>", max_new_tokens=2).comparison
    planted = dataclasses.replace(found.models[1].answers[0], text='<script>alert("x")</script>')
    models = (found.models[0], dataclasses.replace(found.models[1], answers=(planted,)))
    page = Compared(dataclasses.replace(found, models=models))._repr_html_()
    assert "<script" not in page
    assert "&lt;b&gt;Hi" in page


def test_a_run_from_scratch_has_no_base_to_compare_with(finished_run):
    run = Run("tiny")
    assert run.base is None
    with pytest.raises(UserError, match="against="):
        run.compare("the")


def test_short_names_are_recipe_keys():
    raw = recipe_of(
        STAGES["sft"], {}, {"score.prompts": 5, "validation": {"fraction": 0.2}}, {"learning_rate": 1, "from": 1}
    )
    assert raw["score"] == {"prompts": 5}
    assert raw["validation"] == {"fraction": 0.2, "from": 1}
    assert raw["optimizer"] == {"learning_rate": 1}
    assert (raw["device"], raw["name"]) == ("auto", "my-sft")
    assert recipe_of(STAGES["sft"], {}, None, {"optimizer": "muon", "max_steps": 3})["optimizer"] == {"name": "muon"}
    assert recipe_of(STAGES["dpo"], {}, None, {"beta": 0.2, "lora": {"r": 4}, "alpha": 8.0})["lora"] == {
        "r": 4,
        "alpha": 8.0,
    }


def test_every_wrong_name_is_reported_with_the_right_one():
    with pytest.raises(UserError) as error:
        recipe_of(STAGES["sft"], {}, None, {"learning_rat": 1, "prompts": 2, "batch": 3})
    near, several, unknown = error.value.problems
    assert near.fix == "Did you mean learning_rate?"
    assert several.allowed == "score.prompts, samples.prompts"
    assert "sft has no such key" in str(unknown)
    assert error.value._render_traceback_() == [f"UserError: {error.value}"]


def test_wrong_values_are_reported_before_anything_is_written(in_tmp_path):
    write_base("base")
    with pytest.raises(UserError, match=r"train\.max_step"):
        llm_lab.sft("base", write_questions(), {"train.max_step": 2})
    with pytest.raises(UserError, match="a list of these"):
        llm_lab.sft("base", 3)
    with pytest.raises(UserError, match="names no model"):
        llm_lab.sft(None, "builtin:instruct")
    assert not Path("checkpoints").exists()


def test_every_stage_is_a_function(in_tmp_path):
    base = write_base("base")
    adapter = llm_lab.dpo(base, write_preferences(), lora={"preset": "all"}, name="adapter", **FEW)
    merged = llm_lab.merge(adapter)
    assert (merged.status, str(merged)) == ("done", "checkpoints/adapter-merged")
    measured = llm_lab.evaluate(base, write_text("text.txt"), {"eval.max_tokens": 500, "eval.speed_tokens": 0})
    assert measured["texts"][0]["loss"] > 0
    found = llm_lab.compare(base, merged, prompts="Hi", max_new_tokens=2)
    assert len(found.comparison.models) == 2


@pytest.mark.parametrize(("stage", "reward"), [("grpo", "exact_number"), ("ppo", {"name": "length", "length": 9})])
def test_rewards_are_named_or_described(stage, reward, monkeypatch):
    seen = {}
    monkeypatch.setattr("llm_lab.python_api._run", lambda *given: seen.update(given[1]))
    getattr(llm_lab, stage)("base", "builtin:sums", reward)
    assert seen["rewards"] == [reward if isinstance(reward, dict) else {"name": reward}]
    getattr(llm_lab, stage)("base", "builtin:sums", ["mine.py:score", "checkpoints/reward"])
    assert seen["rewards"] == [{"python": "mine.py:score"}, {"model": "checkpoints/reward"}]


def test_the_facts_of_a_recipe_lead_to_its_run(trained_once, monkeypatch):
    from llm_lab.run_result import RunFacts

    monkeypatch.chdir(trained_once)
    facts = RunFacts({**Run("tiny").facts, "path": "checkpoints/tiny"})
    assert isinstance(facts, dict)
    assert str(facts.run) == "checkpoints/tiny"


def test_the_library_is_a_table():
    library = llm_lab.models()
    assert len(library.table) == len(library) > 30
    assert "Qwen/Qwen3-0.6B" in repr(library)
    assert "apache-2.0" in library._repr_html_()


def test_export_is_a_function_and_a_package():
    import llm_lab.export.plan

    assert callable(llm_lab.export)
    assert llm_lab.export.plan.plan_export


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_code_of_the_notebook_works(in_tmp_path):
    write_text("text.txt")
    scope = {}
    for source in code_cells():
        small = source.replace('"max_steps": 60', '"max_steps": 2').replace("max_steps=30", "max_steps=2")
        small = small.replace("builtin:stories", "text.txt")
        exec(small.replace('"nano"', '{"hidden_size": 32, "num_hidden_layers": 1}'), scope)
    assert scope["run"].base.startswith("checkpoints/notebook-base")
    assert len(code_cells()) == 8


@pytest.mark.slow
def test_the_notebook_runs_in_jupyter_with_progress_and_pictures(in_tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    wrong = nbformat.v4.new_code_cell('sft(base, "builtin:support-chat", learning_rat=1)')
    wrong.metadata["tags"] = ["raises-exception"]
    notebook.cells.append(wrong)
    NotebookClient(notebook, timeout=280, kernel_name="python3").execute()
    cells = [cell for cell in notebook.cells if cell["cell_type"] == "code"]

    def html_of(cell):
        return "\n".join(output["data"].get("text/html", "") for output in cell["outputs"] if "data" in output)

    pretrained, shown, tuned, plot, metrics, compared, chat, library, error = cells
    for trained in (pretrained, tuned):
        assert "<progress" in html_of(trained)
        assert "<svg" in html_of(trained)
        assert "Plan:" in str(trained["outputs"])
    assert "validation loss" in html_of(shown)
    assert "image/svg+xml" in plot["outputs"][0]["data"]
    assert "<th" in html_of(metrics)
    assert "notebook-support" in html_of(compared)
    assert chat["outputs"][-1]["data"]["text/plain"].startswith(("'", '"'))
    assert "Qwen/Qwen3-0.6B" in html_of(library)
    assert "Did you mean learning_rate?" in "\n".join(error["outputs"][0]["traceback"])
    assert len(error["outputs"][0]["traceback"]) == 1
