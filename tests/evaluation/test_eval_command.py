"""`llm-lab eval` and eval recipes: a run's own numbers, any Hugging Face folder, saved results, pipelines."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny_recipe, write_text
from support.measured_models import GPT2, Notices, gpt2_model, make_tokenizer
from support.own_code import write_model_with_code
from support.post_runs import post_recipe, write_base, write_questions, write_rows

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.estimate.machine import find_machine
from llm_lab.evaluation.score import text_scores
from llm_lab.job import check
from llm_lab.recipe.resolve import resolve
from llm_lab.runner import run
from llm_lab.runs.evaluations import evaluations_of
from llm_lab.runs.folder import RunFolder, find_model
from llm_lab.stages.eval import evaluate
from llm_lab.terminal.results_view import print_evaluation

QUICK = {"speed_tokens": 0}


def eval_recipe(checkpoint: str, **changes) -> dict:
    return {"stage": "eval", "device": "cpu", "model": {"checkpoint": str(checkpoint)}, "eval": QUICK} | changes


def measure(checkpoint: str, **changes) -> dict:
    return evaluate(resolve(eval_recipe(checkpoint, **changes)).recipe, Notices())


def hugging_face_folder(name: str = "theirs") -> str:
    """A GPT-2 model saved by transformers, with GPT-2's tokenizer or one trained here."""
    tokenizer = make_tokenizer("gpt2" if GPT2.exists() else "pieces")
    gpt2_model(tokenizer).save_pretrained(name)
    tokenizer.save_pretrained(name)
    return name


@pytest.mark.parametrize("changes", [{}, {"train.document_mask": True}, {"train.dtype": "bfloat16"}])
def test_without_data_the_loss_equals_the_runs_own_at_every_checkpoint(changes, in_tmp_path):
    write_text("text.txt", 200)
    lines = Path(write_text("more.txt", 200, seed=1)).read_text().splitlines()
    write_rows("rows.jsonl", [{"text": line} for line in lines])
    data = [{"path": "text.txt"}, {"path": "rows.jsonl"}]
    facts = run(tiny_recipe(data=data, tokenizer={"bpe": 280}, **changes))
    folder = RunFolder(Path(facts["path"]))

    row = measure(facts["path"])["texts"][0]
    for key in ("loss", "bits_per_byte"):
        assert row[key] == pytest.approx(facts["results"][f"eval_{key}" if key == "loss" else key], rel=1e-6)
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))

    middle = next(line for line in folder.metrics() if line["step"] == 10 and "eval_loss" in line)
    row = measure(f"{facts['path']}/steps/checkpoint-10")["texts"][0]
    assert row["loss"] == pytest.approx(middle["eval_loss"], rel=1e-6)


def test_without_data_a_fine_tuned_model_gets_the_loss_of_its_run_on_the_held_out_conversations(in_tmp_path, capsys):
    write_base()
    for lora in ({}, {"lora": {"preset": "all", "r": 4}}):
        facts = run(post_recipe("sft", **lora, **{"optimizer.learning_rate": 0.02}))
        measured = measure(facts["path"])
        (row,) = measured["texts"]
        assert row["loss"] == pytest.approx(facts["results"]["eval_loss"], rel=1e-5)
        assert row["own"]
        assert row["tokens"] > 0
        assert "bits_per_byte" not in row
        print_evaluation(measured)
        assert f"validation of {facts['path']}" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(UserError, match=r"eval\.max_tokens = 100: .* all measured"):
        measure(facts["path"], eval=QUICK | {"max_tokens": 100})


def test_without_data_a_fine_tuned_model_whose_run_held_nothing_out_is_refused(in_tmp_path):
    write_base()
    facts = run(post_recipe("sft", validation={"fraction": 0}))
    with pytest.raises(UserError, match=r"has no validation data and scored no prompts"):
        measure(facts["path"])


def test_without_data_a_fine_tuned_model_answers_its_runs_held_out_prompts(in_tmp_path):
    write_base()
    score = {"prompts": 6, "max_completion_length": 6, "rewards": [{"name": "length", "length": 8}]}
    for lora in ({}, {"lora": {"preset": "all", "r": 4}}):
        facts = run(post_recipe("sft", score=score, **lora, **{"optimizer.learning_rate": 0.02}))
        scores = measure(facts["path"])["scores"]
        for key in ("eval_reward", "eval_reward_sampled", "eval_completion_length"):
            assert scores[key] == facts["results"][key]
        assert scores["prompts"] == 4
    merged = run({"stage": "merge", "device": "cpu", "name": "merged", "model": {"checkpoint": facts["path"]}})
    scores = measure(merged["path"])["scores"]  # the lineage leads to the run that trained the adapter
    assert scores["eval_reward"] == pytest.approx(facts["results"]["eval_reward"], abs=0.03)


def test_exact_match_equals_the_runs_own(in_tmp_path):
    write_base()
    rows = [{"question": f"say {i % 3}", "answer": "a"} for i in range(30)]
    write_rows("same.jsonl", rows)
    score = {"path": "same.jsonl", "prompts": 8, "max_completion_length": 2}
    changes = {"optimizer.learning_rate": 0.02, "train.max_steps": 30, "train.eval_steps": 30, "train.save_steps": 30}
    changes |= {"validation": {"fraction": 0}}
    facts = run(post_recipe("sft", data=[{"path": "same.jsonl"}], score=score, **changes))
    scores = measure(facts["path"])["scores"]
    assert scores["exact_match"] == facts["results"]["exact_match"] > 0.9
    assert scores["exact_match_sampled"] == facts["results"]["exact_match_sampled"]
    named = measure(facts["path"], score=score, eval=QUICK | {"text_scores": ["rouge"]})["scores"]
    assert named["rouge1"] == named["exact_match"]


def test_text_scores_are_refused_for_a_run_without_scored_prompts(in_tmp_path):
    write_text("text.txt", 200)
    path = run(tiny_recipe())["path"]
    with pytest.raises(UserError, match=r"eval\.text_scores: checkpoints/tiny scored no prompts"):
        measure(path, eval=QUICK | {"text_scores": ["bleu"]})


def test_changed_data_of_the_run_is_an_error(in_tmp_path):
    write_text("text.txt", 200)
    path = run(tiny_recipe())["path"]
    write_text("text.txt", 200, seed=5)
    with pytest.raises(UserError, match="this data has changed"):
        measure(path)


def test_a_hugging_face_folder_gets_the_loss_that_transformers_computes(in_tmp_path, capsys):
    folder = hugging_face_folder()
    Path("text.txt").write_text("A red river runs over an old stone; the small bird sings.")
    assert main(["eval", f"./{folder}", "--data", "text.txt"]) == 0
    output = capsys.readouterr().out

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = Path("text.txt").read_text()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    (kept,) = evaluations_of(folder)
    assert kept["results"]["eval_loss"] == pytest.approx(loss, rel=1e-4)
    assert kept["results"]["bits_per_byte"] == pytest.approx(loss * (ids.shape[1] - 1) / math.log(2) / len(text))
    assert kept["recipe"]["data"][0]["path"] == "text.txt"
    assert kept["versions"]["torch"]
    assert len(kept["digest"]) == len(kept["data"][0]["fingerprint"]) == 64
    assert f"{loss:.4f}" in output
    assert "tokens/s" in output


def test_a_hugging_face_folder_without_data_is_an_error_with_a_fix(in_tmp_path, capsys):
    write_text("text.txt", 5)
    assert main(["eval", f"./{hugging_face_folder()}"]) == 2
    error = capsys.readouterr().err
    assert "does not belong to a run of LLM Lab" in error
    assert "--data FILE" in error
    with pytest.raises(UserError, match="--data FILE"):
        check(eval_recipe("theirs"))


def test_a_second_evaluation_shows_the_change_and_keeps_both(in_tmp_path, capsys):
    write_base()
    write_text("text.txt", 20)
    words = ["eval", "./base", "--data", "text.txt", "eval.speed_tokens=0"]
    assert main(words) == 0
    assert "(" not in capsys.readouterr().out
    assert main(words) == 0
    assert capsys.readouterr().out.count("(=)") == 3
    other = write_base("other", hidden_size=24)
    shutil.copy(f"{other}/model.safetensors", "base/model.safetensors")
    shutil.copy(f"{other}/config.json", "base/config.json")
    assert main(words) == 0
    output = capsys.readouterr().out
    first, last = evaluations_of("base")[0], evaluations_of("base")[-1]
    change = last["results"]["eval_loss"] - first["results"]["eval_loss"]
    assert f"({'+' if change > 0 else '-'}{abs(change):.4f})" in output
    assert first["digest"] != last["digest"]
    assert main([*words, "eval.max_tokens=100"]) == 0  # fewer tokens of the same text are not comparable
    assert "(" not in capsys.readouterr().out


def test_bleu_and_rouge_compare_greedy_answers_with_the_references(in_tmp_path):
    write_base()
    write_questions()
    score = {"path": "questions.jsonl", "prompts": 5, "max_completion_length": 4}
    scores = measure("base", score=score, eval=QUICK | {"text_scores": ["bleu", "rouge"]})["scores"]
    assert scores["bleu"] < 20
    assert scores["examples"][0]["reference"].startswith("It is")
    write_rows("free.jsonl", [{"prompt": "say"}] * 4)
    free = {"path": "free.jsonl", "max_completion_length": 4, "rewards": [{"name": "length", "length": 8}]}
    with pytest.raises(UserError, match=r"eval\.text_scores: none of the prompts has a reference"):
        measure("base", score=free, eval=QUICK | {"text_scores": ["bleu"]})


def test_bleu_and_rouge_equal_a_calculation_by_hand():
    answers, references = ["the cat sat down", "a dog"], ["the cat sat", "a dog"]
    found = text_scores(["bleu", "rouge"], answers, references)
    f1 = 2 * (3 / 4) * 1 / (3 / 4 + 1)
    assert found["rouge1"] == pytest.approx((f1 + 1) / 2)
    assert found["rougeL"] == pytest.approx((f1 + 1) / 2)
    two = 2 * (2 / 3) * 1 / (2 / 3 + 1)
    assert found["rouge2"] == pytest.approx((two + 1) / 2)
    # In total: 5 of 6 words, 3 of 4 bigrams, 1 of 2 trigrams, 0 of 1 four-gram, which is smoothed to 0.5.
    assert found["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 4 * 1 / 2 * 0.5 / 1) ** 0.25)


def test_all_input_errors_are_reported_at_once_before_the_model_is_loaded(in_tmp_path, capsys):
    write_base()
    words = ["--data", "gone.txt", "--data", "gone-too.txt", "--prompts", "gone.jsonl"]
    assert main(["eval", "./base", *words, "eval.max_tokens=1"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("gone.txt", "gone-too.txt", "gone.jsonl", "eval.max_tokens"))
    assert main(["eval", "./base", "--prompts", "gone.jsonl", "eval.max_tokens=9"]) == 2
    assert "eval.max_tokens = 9: has no effect without data" in capsys.readouterr().err
    write_text("text.txt", 5)
    assert main(["eval", "./base", "--data", "text.txt", "eval.text_scores=[bleu]"]) == 2
    assert "eval.text_scores" in capsys.readouterr().err
    assert main(["eval", "./base", "--data", "text.txt", "--data", "text.txt"]) == 2
    assert "Remove one" in capsys.readouterr().err
    assert main(["eval", "./base", "--data", "text.txt", "eval.max_length=129"]) == 2
    assert "the model's context is 128 tokens" in capsys.readouterr().err
    assert main(["eval", "./base", "--data", "text.txt", "--limit", "5"]) == 2
    assert "--limit: requires --tasks" in " ".join(capsys.readouterr().err.split())
    assert main(["eval", "./base", "--data", "text.txt", "--tasks", ""]) == 2
    assert "at least one entry" in " ".join(capsys.readouterr().err.split())
    assert main(["eval", "bse", "--data", "text.txt"]) == 2
    assert not Path("base/evaluations.jsonl").exists()


def test_reward_models_and_mismatched_tokenizers_are_refused(in_tmp_path):
    write_text("text.txt", 5)
    write_base()
    config = json.loads(Path("base/config.json").read_text())
    shutil.copytree("base", "reward")
    Path("reward/config.json").write_text(json.dumps(config | {"architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(UserError, match="this is a reward model"):
        measure("reward", data=[{"path": "text.txt"}])
    make_tokenizer("bpe").save_pretrained("base")
    with pytest.raises(UserError, match=r"tokenizer: it has 300 tokens, but the model has 257"):
        measure("base", data=[{"path": "text.txt"}])


def test_an_evaluation_is_a_run_that_can_be_replayed(in_tmp_path, capsys):
    write_base()
    write_text("text.txt", 20)
    write_text("more.txt", 20, seed=1)
    raw = eval_recipe("base", data=[{"path": "text.txt"}, {"path": "more.txt"}], name="measured")
    Path("eval.yaml").write_text(yaml.safe_dump(raw))
    assert main(["run", "eval.yaml"]) == 0
    output = capsys.readouterr().out
    assert "bits per byte" in output
    facts = RunFolder(Path("checkpoints/measured")).facts()
    rows = facts["measured"]["texts"]
    nats = sum(row["loss"] * row["tokens"] for row in rows)
    assert facts["results"]["eval_loss"] == pytest.approx(nats / sum(row["tokens"] for row in rows))
    assert facts["results"]["eval_loss/more.txt"] == rows[1]["loss"]
    assert facts["parent"]["path"] == "base"
    assert [source["path"] for source in facts["data"]] == ["text.txt", "more.txt"]
    with pytest.raises(UserError, match="evaluated a model"):
        find_model("measured")
    report = Path("checkpoints/measured/report.md").read_text()
    assert "loss on text, more.txt" in report
    assert "validation loss" not in report
    again = run("checkpoints/measured/recipe.yaml")
    assert again["results"]["eval_loss"] == facts["results"]["eval_loss"]
    assert [row["by"] for row in evaluations_of("base")] == ["eval", "eval"]


def test_in_a_pipeline_the_next_stage_continues_from_the_evaluated_model(in_tmp_path):
    write_text("text.txt", 100)
    write_questions()
    tuned = post_recipe("sft", score=None)
    for key in ("model", "name", "device"):
        tuned.pop(key)
    tuned["train"] |= {"max_length": 32}
    stages = [tiny_recipe(name="pretrain"), {"stage": "eval", "eval": QUICK}, tuned]
    stages += [{"stage": "eval", "name": "last", "data": [{"path": "text.txt"}], "eval": QUICK}]
    facts = run({"name": "line", "device": "cpu", "stages": stages})
    home = Path(facts["path"])
    before, after = (json.loads((home / name / "run.json").read_text()) for name in ("pretrain", "eval"))
    assert after["results"]["eval_loss"] == pytest.approx(before["results"]["eval_loss"], rel=1e-6)
    sft, last = (RunFolder(home / name).facts()["parent"]["path"] for name in ("sft", "last"))
    assert (sft, last) == (str(home / "pretrain/model"), str(home / "sft/model"))
    assert find_model("line") == home / "sft/model"
    stages[2] = tuned | {"model": {"checkpoint": "stage:eval"}}
    with pytest.raises(UserError, match="evaluates a model and does not create one"):
        check({"name": "line", "device": "cpu", "stages": stages})


def test_results_are_returned_if_the_checkpoint_folder_is_read_only(in_tmp_path, monkeypatch):
    write_base()
    write_text("text.txt", 20)

    def refuse(*args, **keys):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("llm_lab.stages.eval.keep_evaluation", refuse)
    notices = Notices()
    found = evaluate(resolve(eval_recipe("base", data=[{"path": "text.txt"}])).recipe, notices)
    assert found["texts"][0]["loss"] > 0
    assert notices.notices[-1] == "could not be saved with the checkpoint: Read-only file system"


def test_the_results_fit_into_80_columns_with_any_names(in_tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    before = {"time": 1.7e9, "loss": 12.3456, "perplexity": 99_999.99, "bits_per_byte": 12.3456, "exact_match": 0.5}
    row = {"path": "/a/long/path/" * 9 + "end.txt", "tokens": 1_048_576, "whole": False, "max_length": 1024}
    row |= {"loss": 11.1111, "perplexity": 88_888.88, "bits_per_byte": 11.1111, "before": before}
    scores = {"path": row["path"], "prompts": 100, "exact_match": 0.75, "bleu": 12.5, "before": before}
    scores |= {"examples": [{"prompt": "why\n" * 90, "answer": "\x1b[31mbecause " * 90, "reference": None}]}
    task = {"acc": 0.25, "acc_stderr": 0.0123, "exact_match (strict-match)": 0.5, "documents": 1_319}
    speed = {"seconds_to_first_token": 0.0123, "tokens_per_second": 1234.5, "prompt_tokens": 107, "new_tokens": 64}
    measured = {"checkpoint": "checkpoints/a", "device": "cpu", "dtype": "float32", "texts": [row, row | {"path": "b"}]}
    measured |= {"scores": scores, "tasks": {"a_task_of_a_rather_long_name" * 2: task}, "speed": speed}
    print_evaluation(measured)
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    assert "\x1b" not in output
    for words in ("end.txt", "(-1.2345)", "75.0 % (+25.0 %)", "0.2500 ± 0.0123", "strict-match", "1,234", "12.3 ms"):
        assert words in output


def test_a_long_name_next_to_numbers_is_wrapped_between_its_parts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = {"path": "validation data of checkpoints/a-run-with-a-long-name", "tokens": 12_345, "max_length": 128}
    row |= {"loss": 1.2345, "perplexity": 3.4, "bits_per_byte": 1.1}
    print_evaluation({"checkpoint": "checkpoints/a", "device": "cpu", "dtype": "float32", "texts": [row]})
    names = [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert names[4:7] == ["validation data of", "checkpoints/", "a-run-with-a-long-name"]


@pytest.mark.gpu
@pytest.mark.skipif(find_machine().cuda_problem is not None, reason="no CUDA GPU that does bf16")
def test_on_a_gpu_in_bf16_the_loss_equals_the_runs_own(in_tmp_path):
    write_text("text.txt", 200)
    facts = run(tiny_recipe(device="cuda", **{"train.dtype": "bfloat16"}))
    found = measure(facts["path"], device="cuda", eval={"speed_tokens": 8})
    assert (found["device"], found["dtype"]) == ("cuda", "bfloat16")
    assert found["texts"][0]["loss"] == pytest.approx(facts["results"]["eval_loss"], rel=1e-5)
    assert found["speed"]["tokens_per_second"] > 0
    named = measure(facts["path"], device="cuda", data=[{"path": "text.txt"}])
    on_cpu = measure(facts["path"], data=[{"path": "text.txt"}])
    assert named["texts"][0]["loss"] == pytest.approx(on_cpu["texts"][0]["loss"], rel=1e-2)


def test_two_models_get_an_error_that_names_compare(capsys):
    assert main(["eval", "one", "two"]) == 2
    assert "llm-lab compare one two" in " ".join(capsys.readouterr().err.split())


def test_a_tokenizer_with_custom_code_is_loaded_only_with_trust_remote_code(in_tmp_path, capsys):
    write_model_with_code("theirs")
    shutil.copytree("theirs", "others")
    Path("text.txt").write_text("Some words.\n" * 50)
    measured = ["eval", "theirs", "--data", "text.txt", "eval.speed_tokens=0"]
    compared = ["compare", "theirs", "others", "--prompt", "Some", "--max-new-tokens", "2"]
    for command in (measured, compared):
        assert main(command) == 2
        assert "--trust-remote-code" in capsys.readouterr().err
    assert main([*measured, "--trust-remote-code"]) == 0
    assert main([*compared, "--trust-remote-code"]) == 2
    assert "several of these models come with code: theirs, others" in " ".join(capsys.readouterr().err.split())
    assert main([*compared, "--trust-code-of", "theirs"]) == 2
    assert "others" in capsys.readouterr().err
    assert main([*compared, "--trust-code-of", "theirs", "--trust-code-of", "others"]) == 0


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_an_evaluation_shows_its_texts_and_their_numbers_whole_in_every_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = {"path": "validation of checkpoints/words", "tokens": 21_330, "loss": 3.1486, "perplexity": 23.3}
    text |= {"bits_per_byte": 1.482, "before": {"loss": 3.2, "perplexity": 24.0, "bits_per_byte": 1.5}}
    model = {"checkpoint": "checkpoints/words/model", "dtype": "float32", "device": "cpu"}
    print_evaluation({**model, "texts": [text]})
    said = capsys.readouterr().out
    for number in ("21,330", "3.1486 (-0.0514)", "23.30 (-0.70)", "1.4820 (-0.0180)", "loss on text", "bits per byte"):
        assert number in said
    assert max(len(line.rstrip()) for line in said.splitlines()) <= columns
    assert "validation of" in said
    assert "checkpoints/words" in said
