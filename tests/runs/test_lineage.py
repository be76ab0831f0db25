"""The lineage of a checkpoint, read only from run.json and recipe.yaml, and what `show` prints of it."""

import json
import re
from pathlib import Path

import pytest
import yaml

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.runs.describe import describe_evaluation, headline_results
from llm_lab.runs.folder import RunFolder, create_run
from llm_lab.runs.lineage import describe_line, find_traced, line_of, main_line, trace
from llm_lab.runs.report import keep_evaluation, write_report
from llm_lab.terminal.console import make_console
from llm_lab.terminal.listing import print_checkpoint, print_line
from llm_lab.terminal.results_view import print_closing
from llm_lab.wizard.run_questions import next_stages

CONFIG = {"model_type": "llama", "vocab_size": 257, "hidden_size": 16, "max_position_embeddings": 64}


def digest_of(folder) -> str | None:
    """A stand-in for the digest: the text of the weights."""
    file = Path(folder) / "model.safetensors"
    return file.read_text() if file.is_file() else None


def make_run(
    name: str, parent: str | None = None, *, stage: str = "sft", weights: str | None = None, **more
) -> RunFolder:
    """A finished run that started from another model."""
    run = create_run(name)
    facts = {"name": name, "stage": stage, "status": "done", "data": [{"path": "a.jsonl", "fingerprint": name * 12}]}
    recipe = {"stage": stage, "name": name} | more.pop("recipe", {})
    if parent is not None:
        facts["parent"] = {"path": parent, "digest": digest_of(parent)}
        recipe["model"] = {"checkpoint": parent}
    run.write_recipe(yaml.safe_dump(recipe))
    run.update(**facts, **more)
    make_folder(run.model_path, weights or name)
    return run


def make_folder(path: Path, weights: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "model.safetensors").write_text(weights)
    return path


@pytest.fixture
def line(in_tmp_path):
    make_run("base", stage="pretrain", results={"eval_loss": 1.25, "bits_per_byte": 1.5})
    make_run("chat", "checkpoints/base/model")
    make_run("scorer", "checkpoints/chat/model", stage="reward")
    reference = {"rewards.0.model": {"path": "checkpoints/scorer/model", "digest": "scorer"}}
    with_reward_model = {"recipe": {"rewards": [{"model": "checkpoints/scorer"}]}, "references": reference}
    make_run("best", "checkpoints/chat/model", stage="ppo", **with_reward_model)
    return trace("checkpoints/best/model", digest_of=digest_of)


def test_each_model_of_the_lineage_appears_once_after_its_sources(line):
    assert [node.name.removeprefix("checkpoints/") for node in line_of(line)] == ["base", "chat", "scorer", "best"]
    assert [node.stage for node in main_line(line)] == ["pretrain", "sft", "ppo"]
    assert {link.state for node in line_of(line) for link in node.links} == {"same"}
    text = "scratch -> pretrain (checkpoints/base) -> sft (checkpoints/chat) -> ppo (checkpoints/best)"
    assert describe_line(RunFolder(Path("checkpoints/best"))) == text


def test_changed_weights_are_reported_wherever_they_were_used(line):
    Path("checkpoints/scorer/model/model.safetensors").write_text("trained on")
    Path("checkpoints/base/model/model.safetensors").write_text("trained on")
    again = trace("checkpoints/best/model", digest_of=digest_of)
    assert [(link.key, link.state) for link in again.links] == [
        ("model.checkpoint", "same"),
        ("rewards.0.model", "changed"),
    ]
    assert again.parent.node.parent.state == "changed"


def test_without_a_digest_a_link_is_unrecorded(line):
    assert trace("checkpoints/best/model", digest_of=lambda folder: None).parent.state == "unrecorded"


def test_a_checkpoint_within_a_run_belongs_to_that_run_and_step(line):
    step = make_folder(Path("checkpoints/chat/steps/checkpoint-20"), "half")
    (step / "trainer_state.json").write_text("{}")
    node = trace(step, digest_of=digest_of)
    assert (node.name, node.step, node.parent.node.name) == ("checkpoints/chat", 20, "checkpoints/base")


def test_a_hub_name_ends_the_lineage(in_tmp_path):
    make_run("tuned", "owner/model")
    node = trace("checkpoints/tuned/model", digest_of=digest_of)
    assert (node.parent.state, node.parent.node.place, node.parent.node.run) == ("unrecorded", "owner/model", None)
    assert (
        describe_line(RunFolder(Path("checkpoints/tuned")))
        == "owner/model (not made by LLM Lab) -> sft (checkpoints/tuned)"
    )


def test_a_merge_whose_adapter_is_gone_is_traced_through_its_base(line):
    base = {"path": "checkpoints/base/model", "digest": "base"}
    run = make_run("merged", "checkpoints/base/model", stage="merge", base=base)
    run.update(parent={"path": "checkpoints/adapter/model", "digest": "1"})
    node = trace("checkpoints/merged/model", digest_of=digest_of)
    assert (node.parent.state, node.parent.node) == ("gone", None)
    assert [(link.key, link.state, link.node.name) for link in node.others] == [("base", "same", "checkpoints/base")]


def test_a_run_overwritten_by_its_own_descendant_causes_no_endless_loop(in_tmp_path):
    make_run("a", stage="pretrain")
    make_run("b", "checkpoints/a/model")
    run = RunFolder(Path("checkpoints/a"))
    run.update(stage="sft", parent={"path": "checkpoints/b/model", "digest": "b"})
    node = trace("checkpoints/a/model", digest_of=digest_of)
    assert [one.name for one in line_of(node)] == ["checkpoints/b", "checkpoints/a"]
    assert node.parent.node.parent.state == "changed"


def test_a_run_without_a_model_has_a_lineage_too(line):
    run = make_run("file", "checkpoints/best/model", stage="export")
    for file in run.model_path.iterdir():
        file.unlink()
    assert find_traced("file") == "checkpoints/file"
    node = trace(find_traced("file"), digest_of=digest_of)
    assert (node.stage, node.parent.node.name) == ("export", "checkpoints/best")
    assert find_traced("best") == "checkpoints/best/model"
    with pytest.raises(UserError, match="there is no such run or model"):
        find_traced("bset")


def test_show_prints_verification_and_evaluations_of_an_export_within_80_columns(line, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    numbers = {"logit_difference": 0.0123, "greedy_agreement": 0.995}
    checks = [{"program": "llama.cpp", "verdict": "proven", "reason": "", **numbers}]
    checks += [{"program": "Transformers", "verdict": "not tried", "reason": "does not support GGUF"}]
    make_run("file", "checkpoints/best/model", stage="export", proof={"verdict": "proven", "checks": checks})
    results = {"eval_loss": 2.5, "perplexity": 12.18}
    row = {"time": 0, "data": [{"path": "b.txt", "fingerprint": "f" * 64}], "results": results}
    keep_evaluation("checkpoints/file/model", row)
    assert main(["show", "file"]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    shown = " ".join(text.split())
    assert "llama.cpp: verified (logit difference at most 0.012, top-1 agreement 99.5 %)" in shown
    assert "Transformers: not verified: does not support GGUF" in shown
    assert "on b.txt (ffffffffffff): loss on text 2.5000, perplexity 12.18" in shown
    assert "├─● reward checkpoints/scorer" in shown
    assert "● export checkpoints/file <- this model" in shown
    assert "data a.jsonl (basebasebase)" in shown
    assert "validation loss 1.2500, bits per byte 1.5000" in shown
    monkeypatch.setenv("COLUMNS", "60")
    print_line(make_console(), trace(find_traced("file"), digest_of=digest_of))
    rows = capsys.readouterr().out.splitlines()
    last = max(at for at, row in enumerate(rows) if row.startswith("●"))
    assert {row[:1] for row in rows[1:last]} == {"●", "├", "│"}, "the rail is next to every line of a wrapped text"
    for columns in range(40, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        print_line(make_console(), trace(find_traced("file"), digest_of=digest_of))
        print_checkpoint("file", "checkpoints/file/model", digest_of=digest_of)
    assert not re.search(r"\d\s*\n[\s│]*%", capsys.readouterr().out), "a number keeps its unit"
    assert main(["show", "fil"]) == 0
    assert capsys.readouterr().out.split("\n")[0].strip() == "file", "not what was typed for it"


def test_the_result_of_a_run_is_above_the_description_of_its_model(line, capsys):
    assert main(["show", "best"]) == 0
    keys = [row.split(" ")[0] for row in capsys.readouterr().out.splitlines()]
    assert keys.index("run") < keys.index("folder")


def test_the_error_of_a_run_comes_first(line, capsys):
    RunFolder(Path("checkpoints/best")).update(status="failed", error="out of memory")
    assert main(["show", "best"]) == 0
    shown = [row.strip() for row in capsys.readouterr().out.splitlines() if row.strip()]
    assert "failed" in shown[1]
    assert shown[2].startswith("warning")
    assert "out of memory" in shown[2]


def test_show_of_a_reward_model_lists_no_formats(line, capsys):
    config = CONFIG | {"architectures": ["LlamaForSequenceClassification"]}
    Path("checkpoints/scorer/model/config.json").write_text(json.dumps(config))
    assert main(["show", "scorer"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "reward model scores text; it can't generate text" in shown
    assert "GGUF" not in shown
    assert "any tool" not in shown


def test_no_chat_is_offered_for_a_merged_reward_model(line, capsys):
    run = make_run("whole", "checkpoints/scorer/model", stage="merge")
    assert "chat" in next_stages(run)
    print_closing(run.facts() | {"path": str(run.path)})
    assert "llm-lab chat" in capsys.readouterr().out
    config = CONFIG | {"architectures": ["LlamaForSequenceClassification"]}
    (run.model_path / "config.json").write_text(json.dumps(config))
    assert not next_stages(run)
    print_closing(run.facts() | {"path": str(run.path)})
    assert "llm-lab chat" not in capsys.readouterr().out


def test_show_finds_the_context_length_of_gpt2(in_tmp_path, capsys):
    make_folder(Path("gpt2"), "")
    config = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 32}
    Path("gpt2/config.json").write_text(json.dumps(config))
    assert main(["show", "gpt2"]) == 0
    assert "context 32 tokens" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["show", "eval", "replay"])
def test_a_file_instead_of_a_model_is_refused(in_tmp_path, capsys, command):
    files = {
        "text.txt": "this is a text file, not a model. To train on it: `llm-lab new pretrain data.0.path=text.txt`.",
        "recipe.yaml": "this is a recipe, not a model. To run it: `llm-lab run recipe.yaml`.",
        "model.safetensors": "this file is not a model. Name a run, a folder with config.json, or a GGUF file.",
    }
    for name, why in files.items():
        Path(name).write_text("a text")
        assert main([command, name]) == 2
        assert why in " ".join(capsys.readouterr().err.split())


def test_an_evaluation_is_described_with_its_context_length(in_tmp_path):
    row = {"data": [{"path": "a.txt", "fingerprint": "f" * 64}], "results": {"eval_loss": 2.5}}
    row["measured"] = {"texts": [{"path": "a.txt", "max_length": 1024}]}
    assert describe_evaluation(row) == "on a.txt (ffffffffffff, context 1,024): loss on text 2.5000"


def test_a_loss_is_called_validation_loss_only_on_what_the_run_held_out():
    row = {"results": {"eval_loss": 2.5}, "measured": {"texts": [{"path": "validation of checkpoints/a", "own": True}]}}
    assert describe_evaluation(row) == "validation loss 2.5000"
    row["measured"] = {"texts": [{"path": "a.txt"}]}
    assert describe_evaluation(row) == "loss on text 2.5000"


def test_show_prints_ascii_in_an_ascii_terminal(line, capsys, monkeypatch):
    from llm_lab.terminal import listing

    monkeypatch.setattr(listing, "supports_unicode", lambda console: False)
    assert main(["show", "best"]) == 0
    text = capsys.readouterr().out
    assert text[text.index("lineage") :].isascii()
    assert "|-* reward" in text


def test_show_does_not_query_the_hub(in_tmp_path, capsys):
    assert main(["show", "owner/model"]) == 2
    assert "does not query the Hub" in " ".join(capsys.readouterr().err.split())


def test_a_later_evaluation_is_added_to_the_report(line):
    run = RunFolder(Path("checkpoints/best"))
    write_report(run)
    assert "## Evaluations" not in run.report_path.read_text()
    keep_evaluation(run.model_path, {"results": {"exact_match": 0.5}})
    assert "- exact match (greedy) 50.0 %" in run.report_path.read_text()


def test_headline_results_omit_a_reward_that_equals_the_exact_match():
    assert headline_results(
        {"eval_loss": 1.0, "exact_match": 0.5, "exact_match_sampled": 0.25, "eval_reward_sampled": 0.25}
    ) == [
        "validation loss 1.0000",
        "exact match (greedy) 50.0 %",
        "exact match (sampled) 25.0 %",
    ]
    assert headline_results({"eval_reward_sampled": -0.5, "tokens_per_second": 9.0}) == [
        "held-out reward (sampled) -0.500"
    ]
    row = {"checkpoint": "checkpoints/a/steps/checkpoint-1000", "results": {f"tasks/t{i}/acc": 0.5 for i in range(9)}}
    assert describe_evaluation(row, most=2) == "step 1,000: t0 acc 0.5000, t1 acc 0.5000, 7 more"


def test_a_lineage_of_many_generations_is_read_once_each(in_tmp_path):
    make_run("g0", stage="pretrain")
    for number in range(1, 24):
        before = f"checkpoints/g{number - 1}/model"
        recipe = {"dpo": {"reference": before}}
        reference = {"dpo.reference": {"path": before, "digest": f"g{number - 1}"}}
        make_run(f"g{number}", before, stage="dpo", recipe=recipe, references=reference)
    read = []

    def counting(folder):
        read.append(str(folder))
        return digest_of(folder)

    node = trace("checkpoints/g23/model", digest_of=counting)
    assert len(line_of(node)) == 24
    assert len(read) == len(set(read)) == 23
    assert main(["show", "g23"]) == 0


def test_adapters_from_elsewhere_that_are_each_others_base_are_named(in_tmp_path, capsys):
    for name, base in (("one", "two"), ("two", "one")):
        Path(name).mkdir()
        config = {"peft_type": "LORA", "base_model_name_or_path": base}
        Path(name, "adapter_config.json").write_text(json.dumps(config))
        Path(name, "adapter_model.safetensors").write_text("weights")
    for command in (["show", "one"], ["chat", "one", "--prompt", "hi"]):
        assert main(command) == 2
        assert "one -> two -> one" in " ".join(capsys.readouterr().err.split())
