"""Unusual input: the result is one paragraph and the right exit code."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
from conftest import tiny_recipe, write_text
from support.forked_command import run_forked

from llm_lab import load, run
from llm_lab.cli import main
from llm_lab.data.sources import open_source
from llm_lab.errors import MachineError, UserError, file_error
from llm_lab.job import read_job
from llm_lab.recipe.files import apply_overrides, format_value

LONG = "x" * 300


@pytest.fixture
def text(in_tmp_path):
    return write_text("text.txt")


def problems(*overrides: str) -> str:
    return "\n".join(map(str, read_job(tiny_recipe(), overrides)[1]))


@pytest.mark.parametrize("value", ["*.txt", "*", "@home.txt", "%a.txt", "!b.txt", "&c.txt"])
def test_an_override_may_start_with_a_yaml_indicator(value):
    assert apply_overrides({}, [f"data.0.path={value}"])[0] == {"data": [{"path": value}]}


@pytest.mark.parametrize("override", ["..=5", "train..max_steps=5", "train.=5", {"train.max_steps": 5}, ["a=1"]])
def test_an_override_without_a_key_is_explained(override):
    with pytest.raises(UserError, match="an override has the form key=value"):
        apply_overrides({}, [override])


def test_the_suggested_spelling_of_infinity_works():
    assert "max_grad_norm: .inf" in problems("train.max_grad_norm=inf")
    assert not problems(f"train.max_grad_norm={format_value(float('inf'))}")
    assert "without quotes" not in problems("train.max_grad_norm=nan")


def test_a_name_that_is_too_long_is_reported():
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
def test_a_path_that_is_too_long_is_not_an_internal_error(words, text, capsys):
    with open("recipe.yaml", "w") as file:
        file.write(format_value(tiny_recipe(text)))
    assert main(words) == 2
    assert "Internal error" not in capsys.readouterr().err


def test_the_error_of_a_long_path_is_short_and_asks_for_a_shorter_name():
    problem = file_error(OSError(errno.ENAMETOOLONG, "", "checkpoints/" + 300 * "x")).problems[0]
    assert len(problem.key) < 80
    assert problem.fix == "Choose a shorter name."


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 2), (errno.EROFS, 2), (errno.ENOSPC, 3), (errno.EIO, 1)])
def test_refused_files_and_full_disks_are_not_internal_errors(number, code, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(number, os.strerror(number), "recipe.yaml")

    monkeypatch.setattr("llm_lab.job.read_recipe_file", refuse)
    assert main(["check", "demo"]) == code
    assert ("Internal error" in capsys.readouterr().err) == (code == 1)


def test_devices_and_pipes_are_refused_as_text_and_as_recipes(in_tmp_path, capsys):
    os.mkfifo("pipe.txt")
    for path in ("pipe.txt", "/dev/zero"):
        with pytest.raises(UserError, match="device or a pipe"):
            open_source(path)
    os.mkfifo("pipe.yaml")
    assert main(["check", "pipe.yaml"]) == 2
    assert "not a regular file" in capsys.readouterr().err


def test_loading_on_cuda_without_cuda_is_a_machine_error(in_tmp_path, monkeypatch):
    facts = _save_design()
    monkeypatch.setattr("llm_lab.estimate.machine.Machine.cuda_problem", "no NVIDIA GPU was found")
    with pytest.raises(MachineError, match="no NVIDIA GPU was found"):
        load(facts, device="cuda")


def _save_design() -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained("model")
    return "model"


def test_show_reports_missing_weights_and_refuses_a_broken_config(in_tmp_path, capsys):
    folder = _save_design()
    assert main(["show", folder]) == 0
    assert "loads in" in capsys.readouterr().out
    with open(f"{folder}/model.safetensors", "w") as file:
        file.write("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert main(["show", folder]) == 0
    shown = capsys.readouterr().out
    assert "not downloaded: model.safetensors is a Git LFS pointer" in shown
    assert "loads in" not in shown
    os.remove(f"{folder}/model.safetensors")
    assert main(["show", folder]) == 0
    shown = capsys.readouterr().out
    assert "an incomplete copy" in shown
    assert "loads in" not in shown
    with open(f"{folder}/config.json", "w") as file:
        file.write("{")
    assert main(["show", folder]) == 2
    assert "not a model config" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["list"], ["schema"]])
def test_a_pipe_closed_while_printing_is_not_an_error(words, in_tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "llm_lab.cli", *words]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_run_finishes_when_the_pipe_of_its_output_is_closed(text):
    with open("recipe.yaml", "w") as file:
        file.write(format_value(tiny_recipe(text)))
    read, write = os.pipe()
    os.close(read)
    ended = run_forked("run", "recipe.yaml", stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert ended.returncode == 0, ended.stderr
    assert os.path.exists("checkpoints/tiny/model/model.safetensors")


def test_a_run_is_loaded_by_its_path_and_by_its_checkpoints(text):
    facts = run(tiny_recipe(text), "train.max_steps=4", "train.save_steps=2", "train.eval_steps=2")
    for path in (facts["path"], f"{facts['path']}/steps/checkpoint-2"):
        model, tokenizer = load(path)
        assert model.config.vocab_size == len(tokenizer)
    shutil.rmtree("checkpoints")


def test_a_run_is_not_resumed_on_changed_data_or_from_a_broken_checkpoint(text):
    facts = run(tiny_recipe(text), "train.max_steps=4", "train.save_steps=2", "train.eval_steps=2")
    recipe = f"{facts['path']}/recipe.yaml"
    shutil.copy(text, "before.txt")
    with open(text, "a") as file:
        file.write("one more line\n")
    with pytest.raises(UserError, match="has changed since the run began"):
        run(recipe, resume=True)
    shutil.move("before.txt", text)
    os.truncate(f"{facts['path']}/steps/checkpoint-4/optimizer.pt", 10)
    with pytest.raises(UserError, match=r"checkpoint-4/optimizer.pt: has 10 bytes.* --resume-from 2"):
        run(recipe, resume=True)
    shutil.rmtree(f"{facts['path']}/steps/checkpoint-4")
    assert run(recipe, resume=True)["results"]["step"] == 4


def test_a_command_without_a_recipe_asks_only_for_the_recipe(capsys):
    assert main(["run"]) == 2
    assert capsys.readouterr().err.startswith("llm-lab run: the argument recipe is missing.")
