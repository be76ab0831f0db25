"""What a stranger does wrong, and what must come of it: one paragraph and the right exit code."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
from conftest import tiny_recipe, write_text

from llm_lab import load, run
from llm_lab.cli import main
from llm_lab.data.sources import open_source
from llm_lab.errors import MachineError, UserError
from llm_lab.job import read_job
from llm_lab.recipe.files import apply_overrides, format_value

LONG = "x" * 300


@pytest.fixture
def text(in_tmp_path):
    return write_text("text.txt")


def problems(*overrides: str) -> str:
    return "\n".join(map(str, read_job(tiny_recipe(), overrides)[1]))


@pytest.mark.parametrize("value", ["*.txt", "*", "@home.txt", "%a.txt", "!b.txt", "&c.txt"])
def test_an_override_may_begin_with_a_sign_that_means_something_else_in_yaml(value):
    assert apply_overrides({}, [f"data.0.path={value}"])[0] == {"data": [{"path": value}]}


@pytest.mark.parametrize("override", ["..=5", "train..max_steps=5", "train.=5", {"train.max_steps": 5}, ["a=1"]])
def test_an_override_that_names_no_key_is_told_how_one_is_written(override):
    with pytest.raises(UserError, match="an override has the form key=value"):
        apply_overrides({}, [override])


def test_the_hint_for_infinity_is_one_that_works():
    assert "max_grad_norm: .inf" in problems("train.max_grad_norm=inf")
    assert not problems(f"train.max_grad_norm={format_value(float('inf'))}")
    assert "without quotes" not in problems("train.max_grad_norm=nan")


def test_a_name_that_is_too_long_is_called_so():
    assert "300 characters are too long" in problems(f"name={LONG}")


@pytest.mark.parametrize(
    "words",
    [
        ["check", f"{LONG}.yaml"],
        ["check", LONG],
        ["check", "recipe.yaml", f"data.0.path={LONG}.txt"],
        ["check", "recipe.yaml", f"tokenizer={LONG}"],
        ["show", LONG],
        ["copy", "demo", LONG],
    ],
)
def test_a_path_that_is_too_long_is_no_fault_of_ours(words, text, capsys):
    with open("recipe.yaml", "w") as file:
        file.write(format_value(tiny_recipe(text)))
    assert main(words) == 2
    assert "Internal error" not in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 2), (errno.EROFS, 2), (errno.ENOSPC, 3), (errno.EIO, 1)])
def test_a_file_that_the_system_refuses_and_a_full_disk_are_told_apart_from_faults(number, code, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(number, os.strerror(number), "recipe.yaml")

    monkeypatch.setattr("llm_lab.job.read_recipe_file", refuse)
    assert main(["check", "demo"]) == code
    assert ("Internal error" in capsys.readouterr().err) == (code == 1)


def test_a_device_or_a_pipe_is_refused_as_text_and_as_a_recipe(in_tmp_path, capsys):
    os.mkfifo("pipe.txt")
    for path in ("pipe.txt", "/dev/zero"):
        with pytest.raises(UserError, match="device or a pipe"):
            open_source(path)
    os.mkfifo("pipe.yaml")
    assert main(["check", "pipe.yaml"]) == 2
    assert "not a regular file" in capsys.readouterr().err


def test_a_model_on_cuda_where_there_is_none_is_a_matter_of_the_machine(in_tmp_path, monkeypatch):
    facts = _save_design()
    monkeypatch.setattr("llm_lab.estimate.machine.Machine.cuda_problem", "no NVIDIA GPU was found")
    with pytest.raises(MachineError, match="no NVIDIA GPU was found"):
        load(facts, device="cuda")


def _save_design() -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained("model")
    return "model"


def test_show_says_where_weights_are_missing_and_refuses_a_broken_config(in_tmp_path, capsys):
    folder = _save_design()
    assert main(["show", folder]) == 0
    assert "loads in" in capsys.readouterr().out
    os.remove(f"{folder}/model.safetensors")
    assert main(["show", folder]) == 0
    shown = capsys.readouterr().out
    assert "none here" in shown
    assert "loads in" not in shown
    with open(f"{folder}/config.json", "w") as file:
        file.write("{")
    assert main(["show", folder]) == 2
    assert "no config" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["list"], ["check", "demo"], ["run", "demo", "--dry-run", "device=cpu"]])
def test_a_reader_that_leaves_is_no_error(words, in_tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "llm_lab.cli", *words]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_run_goes_on_to_its_end_when_the_reader_of_its_lines_leaves(text):
    with open("recipe.yaml", "w") as file:
        file.write(format_value(tiny_recipe(text)))
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "llm_lab.cli", "run", "recipe.yaml"]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert ended.returncode == 0, ended.stderr
    assert os.path.exists("checkpoints/tiny/model/model.safetensors")


def test_a_run_from_python_is_loaded_by_its_path_and_by_its_checkpoint(text):
    facts = run(tiny_recipe(text), "train.max_steps=4", "train.save_steps=2", "train.eval_steps=2")
    for path in (facts["path"], f"{facts['path']}/steps/checkpoint-2"):
        model, tokenizer = load(path)
        assert model.config.vocab_size == len(tokenizer)
    shutil.rmtree("checkpoints")


def test_a_run_is_not_resumed_on_a_text_that_has_changed_or_from_a_broken_checkpoint(text):
    facts = run(tiny_recipe(text), "train.max_steps=4", "train.save_steps=2", "train.eval_steps=2")
    recipe = f"{facts['path']}/recipe.yaml"
    shutil.copy(text, "before.txt")
    with open(text, "a") as file:
        file.write("one more line\n")
    with pytest.raises(UserError, match="has changed since the run began"):
        run(recipe, resume=True)
    shutil.move("before.txt", text)
    os.truncate(f"{facts['path']}/steps/checkpoint-4/optimizer.pt", 10)
    with pytest.raises(UserError, match="this checkpoint file is broken"):
        run(recipe, resume=True)
    shutil.rmtree(f"{facts['path']}/steps/checkpoint-4")
    assert run(recipe, resume=True)["results"]["step"] == 4


def test_a_command_without_its_recipe_asks_for_the_recipe_alone(capsys):
    with pytest.raises(SystemExit):
        main(["run"])
    assert capsys.readouterr().err.rstrip().endswith("required: recipe")
