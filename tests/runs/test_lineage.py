"""Where a checkpoint comes from, read from run.json and recipe.yaml alone."""

import json
from pathlib import Path

import pytest
import yaml

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.runs.describe import describe_evaluation, reached
from llm_lab.runs.folder import RunFolder, create_run
from llm_lab.runs.lineage import describe_line, find_traced, line_of, main_line, trace
from llm_lab.runs.report import keep_evaluation, write_report
from llm_lab.terminal.results_view import print_closing
from llm_lab.wizard.menu import next_stages

CONFIG = {"model_type": "llama", "vocab_size": 257, "hidden_size": 16, "max_position_embeddings": 64}


def digest_of(folder) -> str | None:
    """As good as a digest here: the text of the weights."""
    file = Path(folder) / "model.safetensors"
    return file.read_text() if file.is_file() else None


def make_run(
    name: str, parent: str | None = None, *, stage: str = "sft", weights: str | None = None, **more
) -> RunFolder:
    """A run as it is left behind, from another's model."""
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
    make_run("judge", "checkpoints/chat/model", stage="reward")
    reference = {"rewards.0.model": {"path": "checkpoints/judge/model", "digest": "judge"}}
    judged = {"recipe": {"rewards": [{"model": "checkpoints/judge"}]}, "references": reference}
    make_run("best", "checkpoints/chat/model", stage="ppo", **judged)
    return trace("checkpoints/best/model", digest_of=digest_of)


def test_each_model_of_the_line_stands_once_after_what_it_comes_from(line):
    assert [node.name.removeprefix("checkpoints/") for node in line_of(line)] == ["base", "chat", "judge", "best"]
    assert [node.stage for node in main_line(line)] == ["pretrain", "sft", "ppo"]
    assert {link.state for node in line_of(line) for link in node.links} == {"same"}
    told = "scratch -> pretrain (checkpoints/base) -> sft (checkpoints/chat) -> ppo (checkpoints/best)"
    assert describe_line(RunFolder(Path("checkpoints/best"))) == told


def test_weights_that_were_replaced_since_are_told_wherever_they_were_used(line):
    Path("checkpoints/judge/model/model.safetensors").write_text("trained on")
    Path("checkpoints/base/model/model.safetensors").write_text("trained on")
    again = trace("checkpoints/best/model", digest_of=digest_of)
    assert [(link.key, link.state) for link in again.links] == [
        ("model.checkpoint", "same"),
        ("rewards.0.model", "changed"),
    ]
    assert again.parent.node.parent.state == "changed"


def test_without_a_digest_nothing_is_claimed(line):
    assert trace("checkpoints/best/model", digest_of=lambda folder: None).parent.state == "unrecorded"


def test_a_checkpoint_within_a_run_is_of_that_run_and_that_step(line):
    step = make_folder(Path("checkpoints/chat/steps/checkpoint-20"), "half")
    (step / "trainer_state.json").write_text("{}")
    node = trace(step, digest_of=digest_of)
    assert (node.name, node.step, node.parent.node.name) == ("checkpoints/chat", 20, "checkpoints/base")


def test_a_name_on_the_hub_is_an_end_of_the_line(in_tmp_path):
    make_run("tuned", "owner/model")
    node = trace("checkpoints/tuned/model", digest_of=digest_of)
    assert (node.parent.state, node.parent.node.place, node.parent.node.run) == ("unrecorded", "owner/model", None)
    assert (
        describe_line(RunFolder(Path("checkpoints/tuned"))) == "owner/model (not made here) -> sft (checkpoints/tuned)"
    )


def test_a_merge_whose_adapter_is_gone_is_traced_on_by_its_base(line):
    base = {"path": "checkpoints/base/model", "digest": "base"}
    run = make_run("merged", "checkpoints/base/model", stage="merge", base=base)
    run.update(parent={"path": "checkpoints/adapter/model", "digest": "1"})
    node = trace("checkpoints/merged/model", digest_of=digest_of)
    assert (node.parent.state, node.parent.node) == ("gone", None)
    assert [(link.key, link.state, link.node.name) for link in node.others] == [("base", "same", "checkpoints/base")]


def test_a_run_that_was_replaced_by_what_came_of_it_ends_no_loop(in_tmp_path):
    make_run("a", stage="pretrain")
    make_run("b", "checkpoints/a/model")
    run = RunFolder(Path("checkpoints/a"))
    run.update(stage="sft", parent={"path": "checkpoints/b/model", "digest": "b"})
    node = trace("checkpoints/a/model", digest_of=digest_of)
    assert [one.name for one in line_of(node)] == ["checkpoints/b", "checkpoints/a"]
    assert node.parent.node.parent.state == "changed"


def test_a_run_without_a_model_is_traced_too_and_nothing_is_no_checkpoint(line):
    run = make_run("file", "checkpoints/best/model", stage="export")
    for file in run.model_path.iterdir():
        file.unlink()
    assert find_traced("file") == "checkpoints/file"
    node = trace(find_traced("file"), digest_of=digest_of)
    assert (node.stage, node.parent.node.name) == ("export", "checkpoints/best")
    assert find_traced("best") == "checkpoints/best/model"
    with pytest.raises(UserError, match="there is no such checkpoint"):
        find_traced("bset")


def test_show_tells_the_proof_of_an_export_and_what_was_measured_and_fits_80_columns(line, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    numbers = {"logit_difference": 0.0123, "greedy_agreement": 0.995}
    checks = [{"program": "llama.cpp", "verdict": "proven", "reason": "", **numbers}]
    checks += [{"program": "Transformers", "verdict": "not tried", "reason": "it does not read it"}]
    make_run("file", "checkpoints/best/model", stage="export", proof={"verdict": "proven", "checks": checks})
    results = {"eval_loss": 2.5, "perplexity": 12.18}
    row = {"time": 0, "data": [{"path": "b.txt", "fingerprint": "f" * 64}], "results": results}
    keep_evaluation("checkpoints/file/model", row)
    assert main(["show", "file"]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    told = " ".join(text.split())
    assert "llama.cpp: verified (largest logit difference 0.012, 99.5 % of top tokens equal)" in told
    assert "Transformers: not verified: it does not read it" in told
    assert "on b.txt (ffffffffffff): loss 2.5000, perplexity 12.1800" in told
    assert "├─● reward checkpoints/judge" in told
    assert "● export checkpoints/file <- this one" in told
    assert "data a.jsonl (basebasebase)" in told
    assert "loss 1.2500, 1.5000 bits a byte" in told


def test_show_tells_a_reward_model_and_says_of_none_what_loads_or_holds_it(line, capsys):
    config = CONFIG | {"architectures": ["LlamaForSequenceClassification"]}
    Path("checkpoints/judge/model/config.json").write_text(json.dumps(config))
    assert main(["show", "judge"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "reward model it judges answers and writes none" in told
    assert "GGUF" not in told
    assert "any tool" not in told


def test_a_reward_model_that_was_merged_leads_to_no_talk(line, capsys):
    run = make_run("whole", "checkpoints/judge/model", stage="merge")
    assert "chat" in next_stages(run)
    print_closing(run.facts() | {"path": str(run.path)})
    assert "llm-lab chat" in capsys.readouterr().out
    config = CONFIG | {"architectures": ["LlamaForSequenceClassification"]}
    (run.model_path / "config.json").write_text(json.dumps(config))
    assert next_stages(run) == []
    print_closing(run.facts() | {"path": str(run.path)})
    assert "llm-lab chat" not in capsys.readouterr().out


def test_show_finds_the_context_that_gpt2_has_another_name_for(in_tmp_path, capsys):
    make_folder(Path("gpt2"), "")
    config = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 32}
    Path("gpt2/config.json").write_text(json.dumps(config))
    assert main(["show", "gpt2"]) == 0
    assert "context 32 tokens" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["show", "eval", "replay"])
def test_a_file_in_the_place_of_a_model_is_told(in_tmp_path, capsys, command):
    Path("text.txt").write_text("a text")
    assert main([command, "text.txt"]) == 2
    assert "this is a file, and a model is a folder" in " ".join(capsys.readouterr().err.split())


def test_an_evaluation_is_told_with_how_much_the_model_saw_at_once(in_tmp_path):
    row = {"data": [{"path": "a.txt", "fingerprint": "f" * 64}], "results": {"eval_loss": 2.5}}
    row["measured"] = {"texts": [{"path": "a.txt", "max_length": 1024}]}
    assert describe_evaluation(row) == "on a.txt (ffffffffffff, 1,024 tokens at once): loss 2.5000"


def test_show_speaks_ascii_where_the_terminal_does(line, capsys, monkeypatch):
    from llm_lab.terminal import listing

    monkeypatch.setattr(listing, "supports_unicode", lambda console: False)
    assert main(["show", "best"]) == 0
    text = capsys.readouterr().out
    assert text[text.index("where it comes from") :].isascii()
    assert "|-* reward" in text


def test_a_name_that_is_only_on_the_hub_is_not_looked_up(in_tmp_path, capsys):
    assert main(["show", "owner/model"]) == 2
    assert "the Hub is not asked" in " ".join(capsys.readouterr().err.split())


def test_an_evaluation_after_the_run_stands_in_its_report(line):
    run = RunFolder(Path("checkpoints/best"))
    write_report(run)
    assert "Measured since" not in run.report_path.read_text()
    keep_evaluation(run.model_path, {"results": {"exact_match": 0.5}})
    assert "- exact match 50.0 %" in run.report_path.read_text()


def test_results_are_told_in_words_and_a_reward_that_is_the_exact_match_once():
    assert reached(
        {"eval_loss": 1.0, "exact_match": 0.5, "exact_match_sampled": 0.25, "eval_reward_sampled": 0.25}
    ) == [
        "loss 1.0000",
        "exact match 50.0 %",
        "sampled 25.0 %",
    ]
    assert reached({"eval_reward_sampled": -0.5, "tokens_per_second": 9.0}) == ["reward -0.500"]
    row = {"checkpoint": "checkpoints/a/steps/checkpoint-1000", "results": {f"tasks/t{i}/acc": 0.5 for i in range(9)}}
    assert describe_evaluation(row, most=2) == "step 1,000: tasks/t0/acc 0.5000, tasks/t1/acc 0.5000, 7 more"
