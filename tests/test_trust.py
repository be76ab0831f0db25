"""Code named in a recipe from a run's folder runs only if the user has allowed it."""

import contextvars
import os
import shutil
from pathlib import Path

import pytest
from support.post_runs import post_recipe, write_base, write_questions

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.recipe.eval import EvalTasks
from llm_lab.recipe.trust import UntrustedCode
from llm_lab.runner import run

REWARD = """from pathlib import Path

Path("ran").touch()


def near(completions, **columns):
    return [float(len(text)) for text in completions]
"""


def in_new_context(function, *arguments):
    """Call a function as a new process would: nothing is allowed yet."""
    return contextvars.Context().run(function, *arguments)


def llm_lab(*words: str) -> int:
    return in_new_context(main, list(words))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder with a finished run whose recipe names a reward function, and the files that it needs."""
    folder = tmp_path_factory.mktemp("theirs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_base()
        write_questions()
        Path("mine.py").write_text(REWARD)
        rewards = [{"python": "mine.py:near"}]
        score = {"prompts": 2, "max_completion_length": 4, "rewards": rewards}
        grpo = {"num_generations": 2, "max_completion_length": 4}
        recipe = post_recipe("grpo", name="handed", rewards=rewards, score=score, grpo=grpo)
        in_new_context(run, recipe)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def in_copy(theirs, tmp_path, monkeypatch):
    """The working folder is a copy, and the user of the machine has never run any of its code."""
    shutil.copytree(theirs, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    Path("ran").unlink()


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "handed", "eval.speed_tokens=0"),
        ("run", "checkpoints/handed", "--resume"),
        ("run", "checkpoints/handed/recipe.yaml"),
        ("run", "checkpoints/handed", "--nproc", "2"),
        ("replay", "handed"),
    ],
    ids=" ".join,
)
def test_code_named_by_someone_elses_run_does_not_run_without_a_yes(words, in_copy, capsys):
    before = sorted(Path().rglob("*"))
    assert llm_lab(*words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert str(Path("mine.py").resolve()) in said
    assert "SHA-256" in said
    assert "`from pathlib import Path" in said
    assert "--trust-recipe" in said
    assert sorted(Path().rglob("*")) == before


def test_a_yes_is_remembered_for_exactly_this_code(in_copy, capsys):
    quick = ("eval", "handed", "--device", "cpu", "eval.speed_tokens=0")
    assert llm_lab(*quick, "--trust-recipe") == 0
    assert Path("ran").exists()
    assert llm_lab(*quick) == 0
    Path("mine.py").write_text(REWARD + "\n")
    assert llm_lab(*quick) == 2
    Path("mine.py").write_text(REWARD)
    Path("other.py").write_text(REWARD.replace("near", "far"))
    recipe = Path("checkpoints/handed/recipe.yaml")
    recipe.write_text(recipe.read_text().replace("mine.py:near", "other.py:far"))
    assert llm_lab(*quick) == 2
    assert "other.py" in capsys.readouterr().err


def test_a_user_resumes_their_own_run_without_a_question(in_copy):
    shutil.copy("checkpoints/handed/recipe.yaml", "own.yaml")
    assert llm_lab("run", "own.yaml", "name=own", "train.max_steps=1") == 0
    assert llm_lab("run", "checkpoints/own", "--resume") == 0


def test_in_a_terminal_the_user_sees_the_code_and_decides(in_copy, monkeypatch, capsys):
    monkeypatch.setattr("llm_lab.terminal.consent.is_terminal", lambda: True)
    answers = iter(["n", "y"])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    quick = ("eval", "handed", "--device", "cpu", "eval.speed_tokens=0")
    assert llm_lab(*quick) == 2
    shown = capsys.readouterr().err
    assert "def near(completions, **columns):" in shown
    assert not Path("ran").exists()
    assert llm_lab(*quick) == 0


def test_task_files_from_someone_elses_run_do_not_run_without_a_yes(in_tmp_path, capsys):
    write_base()
    run_folder = Path("checkpoints/handed")
    (run_folder / "model").mkdir(parents=True)
    Path("evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n\n\ndef f(doc):\n    return doc\n")
    Path("evil.yaml").write_text("task: evil\ndataset_path: json\nprocess_docs: !function evil.f\n")
    recipe = "stage: eval\ndevice: cpu\nmodel: {checkpoint: base}\ntasks: {names: [evil.yaml]}\n"
    (run_folder / "recipe.yaml").write_text(recipe)
    assert llm_lab("run", "checkpoints/handed/recipe.yaml") == 2
    assert str(Path("evil.yaml").resolve()) in "".join(capsys.readouterr().err.split())
    assert not Path("ran").exists()
    from llm_lab.evaluation.harness import load_tasks

    with pytest.raises(UntrustedCode):
        in_new_context(load_tasks, EvalTasks(names=("evil.yaml",)))
    shutil.copy(run_folder / "recipe.yaml", "own.yaml")
    with pytest.raises(UserError):  # the user's own recipe may run it; then the data is missing
        in_new_context(run, "own.yaml")
    assert Path("ran").exists()
