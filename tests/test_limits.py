"""Small inputs that would take endless time or memory are refused, and links out of a run's folder are not followed."""

import json
import os
import time
from pathlib import Path

import pytest
from support.tiny_models import tiny_model

from llm_lab.cli import main
from llm_lab.errors import MachineError, UserError
from llm_lab.export.push import files_of
from llm_lab.hf import adapter as adapters
from llm_lab.hf import rendering
from llm_lab.hf.configs import read_config
from llm_lab.hf.load import load_model
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.recipe.files import parse_yaml
from llm_lab.rewards import functions
from llm_lab.runs.evaluations import evaluations_of
from llm_lab.runs.folder import RunFolder, find_model
from llm_lab.runs.report import keep_evaluation

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))


def seconds_of(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAUGHS, "aliases repeat"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "1" * 5000, "digits"),
        ("x" * 10**7, "most"),
    ],
    ids=["aliases", "depth", "digits", "length"],
)
def test_a_recipe_that_is_a_yaml_bomb_is_refused(text, why):
    with pytest.raises(UserError, match=why):
        parse_yaml(text)


@pytest.mark.parametrize("depth", [101, 900, 200_000])
def test_deeply_nested_json_in_a_run_is_damage_and_not_an_internal_error(depth, in_tmp_path, capsys):
    run = RunFolder(Path("checkpoints/a"))
    run.update(stage="sft", status="stopped", results={"eval_loss": 1.0})
    run.write_recipe("stage: sft\n")
    nested = '{"a":' * depth + "1" + "}" * depth
    run.metrics_path.write_text(f'{{"step": 1, "loss": 2.0}}\n{{"step": 2, "x": {nested}}}\n')
    (run.path / "evaluations.jsonl").write_text(f'{{"results": {nested}}}\n')
    assert [row["step"] for row in run.metrics()] == [1]
    assert evaluations_of(run.path) == []
    run.run_json.write_text(f'{{"stage": "sft", "results": {nested}}}')
    assert "nested more than 100 levels deep" in (run.damage() or "")
    for command in (["show", "checkpoints/a"], ["list", "runs"], ["run", "checkpoints/a", "--resume"]):
        assert main(command) in (0, 2), capsys.readouterr()


def test_a_moderate_number_of_aliases_is_read():
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: [*a, *a]") == {"a": {"x": 1}, "b": {"x": 1}, "c": [{"x": 1}, {"x": 1}]}


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 'a' * 10**11 }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)
def test_a_chat_template_that_never_ends_is_refused(template, monkeypatch):
    monkeypatch.setattr(rendering, "RENDER_SECONDS", 0.5)
    monkeypatch.setattr(rendering, "RENDER_BYTES", 2**26)
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = template + "{{ messages[0]['content'] }}"

    def render():
        with pytest.raises(UserError, match="template"):
            rendering.render(tokenizer, [{"role": "user", "content": "hello"}])

    assert seconds_of(render) < 10


def test_a_pattern_of_an_adapter_that_never_ends_is_refused(tmp_path, monkeypatch):
    from peft import LoraConfig

    monkeypatch.setattr(adapters, "PATTERN_SECONDS", 0.5)
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    base.config._name_or_path = base.name_or_path = str(tmp_path / "base")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    adapters.make_peft_model(base, config).save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    for key, value in (("target_modules", "([a-z0-9._]+)+!"), ("rank_pattern", {"([a-z0-9._]+)+!": 2})):
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
        with pytest.raises(UserError, match=r"patterns in its adapter_config.json take more than"):
            load_model(tmp_path / "a")


def test_a_reward_pattern_that_never_ends_is_an_error(monkeypatch):
    monkeypatch.setattr(functions, "PATTERN_SECONDS", 0.5)
    assert functions.regex(["aab"], pattern="(a+)+b") == [1.0]
    with pytest.raises(UserError, match=r"rewards.pattern = \(a\+\)\+b: it takes more than"):
        functions.regex(["a" * 60], pattern="(a+)+b")


@pytest.mark.parametrize(
    "size", [{"hidden_size": 10**9}, {"num_hidden_layers": 10**9}, {"vocab_size": 10**12}, {"num_labels": 10**9}]
)
def test_a_config_of_an_impossible_size_is_refused_before_it_is_built(size, tmp_path):
    config = {"model_type": "qwen3", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 61} | size
    (tmp_path / "config.json").write_text(json.dumps(config))

    def read():
        with pytest.raises(UserError, match="which is too large for any known model"):
            read_config(str(tmp_path))

    assert seconds_of(read) < 5


def test_a_model_larger_than_the_machines_memory_is_refused_before_it_is_created(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    large = {"hidden_size": 2**17, "num_hidden_layers": 2**9, "layer_types": None}
    file.write_text(json.dumps(json.loads(file.read_text()) | large))

    def load():
        with pytest.raises(MachineError, match=r"parameters, [\d,.]+ [GT]iB in float32; this machine has"):
            load_model(tmp_path)

    assert seconds_of(load) < 5


def test_links_that_lead_out_of_a_runs_folder_are_not_followed(in_tmp_path, capsys):
    Path("secret.txt").write_text("secret\n")
    run = RunFolder(Path("checkpoints/theirs"))
    tiny_model().save_pretrained(run.model_path)
    run.update(stage="sft", status="done", results={})
    run.write_recipe("stage: sft\n")
    os.symlink("config.json", run.model_path / "same.json")  # within the run
    assert find_model("theirs") == run.model_path
    for name in ("evaluations.jsonl", "metrics.jsonl", "steps", "model/id.txt"):
        link = run.path / name
        os.symlink(Path("secret.txt").resolve(), link)
        for command in (
            ["show", "theirs"],
            ["eval", "theirs"],
            ["chat", "theirs", "--prompt", "a"],
            ["run", "checkpoints/theirs", "--resume"],
            ["replay", "theirs"],
        ):
            assert main(command) == 2, command
            assert "outside of the run" in " ".join(capsys.readouterr().err.split()), command
        with pytest.raises(UserError, match="is a link"):
            keep_evaluation(run.model_path, {"time": 1.0})
        link.unlink()
    assert Path("secret.txt").read_text() == "secret\n"
    Path("export").mkdir()
    os.symlink(Path("secret.txt").resolve(), "export/README.md")
    with pytest.raises(UserError, match="would be published"):
        files_of(Path("export"))
