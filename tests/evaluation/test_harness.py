"""Tasks of lm-evaluation-harness: the results equal those computed from log-likelihoods directly."""

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support.measured_models import Notices, gpt2_model, make_tokenizer
from support.post_runs import post_recipe, write_base, write_questions, write_rows

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.evaluation import harness
from llm_lab.hf.load import load_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.resolve import resolve
from llm_lab.runner import run
from llm_lab.stages.eval import evaluate

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")


pytestmark = [needs_harness, pytest.mark.usefixtures("own_code")]
TASK = """task: words
dataset_path: json
dataset_kwargs: {data_files: {test: docs.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 2.0}
"""
GENERATE = """task: copying
dataset_path: json
dataset_kwargs: {data_files: {test: docs.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def write_task(count: int = 24) -> list[dict]:
    draw = random.Random(0)
    words = "sings falls waits runs under over near stone river".split()
    rows = []
    for i in range(count):
        choices = [" ".join(draw.sample(words, draw.randint(1, 3))) for _ in range(3)]
        rows.append({"question": f"the {draw.choice(words)} {i}", "choices": choices, "gold": i % 3, "answer": "x"})
    write_rows("docs.jsonl", rows)
    Path("task.yaml").write_text(TASK)
    return rows


def by_hand(model, tokenizer, rows: list[dict]) -> tuple[float, float]:
    """Accuracy by the choice with the highest log-likelihood, in total and per character."""
    right = right_norm = 0
    for row in rows:
        nats = []
        for choice in row["choices"]:
            ids = tokenizer(row["question"] + " " + choice)["input_ids"]
            start = len(tokenizer(row["question"])["input_ids"])
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            nats.append(sum(logs[i - 1, ids[i]].item() for i in range(start, len(ids))))
        right += int(np.argmax(nats)) == row["gold"]
        each = [total / len(choice) for total, choice in zip(nats, row["choices"], strict=True)]
        right_norm += int(np.argmax(each)) == row["gold"]
    return right / len(rows), right_norm / len(rows)


def tasks_of(folder: str, **tasks) -> dict:
    raw = {"stage": "eval", "device": "cpu", "model": {"checkpoint": folder}, "eval": {"speed_tokens": 0}}
    return evaluate(resolve(raw | {"tasks": {"names": ["task.yaml"]} | tasks}).recipe, Notices())["tasks"]


PARTS = {"position_embedding": "alibi", "norm": "layernorm", "activation": "relu", "qk_norm": True}


@pytest.mark.parametrize("which", ["llama-shaped", "own parts", "gpt2 with bpe", "sentencepiece", "gpt2's tokenizer"])
def test_the_accuracy_of_a_task_equals_that_of_the_log_likelihoods(which, in_tmp_path):
    rows = write_task()
    if which in ("llama-shaped", "own parts"):
        write_base("base", **(PARTS if which == "own parts" else {}))
    else:
        name = {"gpt2 with bpe": "bpe", "sentencepiece": "pieces", "gpt2's tokenizer": "gpt2"}[which]
        tokenizer = make_tokenizer(name)
        gpt2_model(tokenizer).save_pretrained("base")
        tokenizer.save_pretrained("base")
    found = tasks_of("base")["words"]
    acc, acc_norm = by_hand(load_model("base"), load_tokenizer("base"), rows)
    assert found["acc"] == pytest.approx(acc)
    assert found["acc_norm"] == pytest.approx(acc_norm)
    assert found["acc_stderr"] == pytest.approx((acc * (1 - acc) / (len(rows) - 1)) ** 0.5)
    assert (found["documents"], found["num_fewshot"], found["version"]) == (24, 0, 2.0)


def test_an_adapter_is_evaluated_with_its_base_and_limit_selects_the_first_documents(in_tmp_path):
    write_base()
    rows = write_task()
    lora = {"preset": "all", "r": 4}
    path = run(post_recipe("sft", lora=lora, **{"optimizer.learning_rate": 0.1, "train.max_steps": 12}))["path"]
    found = tasks_of(path, limit=10)["words"]
    acc, acc_norm = by_hand(load_model(f"{path}/model"), load_tokenizer(f"{path}/model"), rows[:10])
    assert (found["acc"], found["acc_norm"], found["documents"]) == (pytest.approx(acc), pytest.approx(acc_norm), 10)
    assert tasks_of(path)["words"] != tasks_of("base")["words"]


def test_answers_are_generated_for_generation_tasks(in_tmp_path):
    write_base()
    rows = write_task(4)
    Path("copying.yaml").write_text(GENERATE)
    model, tokenizer = load_model("base"), load_tokenizer("base")
    ids = torch.tensor([tokenizer(rows[1]["question"])["input_ids"]])
    written = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=256)[0, ids.shape[1] :]
    rows[1]["answer"] = tokenizer.decode(written).split("\n")[0]
    write_rows("docs.jsonl", rows)
    both = tasks_of("base", names=["copying.yaml", "task.yaml"])
    assert both["copying"]["exact_match"] == 0.25
    assert both["words"]["acc"] >= 0


def test_all_tasks_in_a_folder_are_run(in_tmp_path):
    write_base()
    write_task(4)
    Path("mine").mkdir()
    Path("mine/one.yaml").write_text(TASK)
    Path("mine/two.yaml").write_text(TASK.replace("task: words", "task: other_words"))
    assert set(tasks_of("base", names=["mine"])) == {"words", "other_words"}


@pytest.mark.slow
def test_few_shot_results_are_those_of_the_harness_itself(in_tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = make_tokenizer("bpe")
    gpt2_model(tokenizer, positions=512).save_pretrained("base")
    tokenizer.save_pretrained("base")
    write_task(200)
    Path("task.yaml").write_text(TASK + "fewshot_split: test\nfewshot_config: {sampler: default}\n")
    found = tasks_of("base", num_fewshot=4)["words"]
    adapted = HFLM(pretrained=load_model("base"), tokenizer=load_tokenizer("base"), backend="causal", batch_size=8)
    manager = TaskManager(include_defaults=False)
    options = {"tasks": [str(Path("task.yaml").resolve())], "num_fewshot": 4, "task_manager": manager}
    theirs, others = (
        simple_evaluate(adapted, **options, bootstrap_iters=0, **seeds)["results"]["words"]
        for seeds in ({}, {"fewshot_random_seed": 1337})
    )
    assert (theirs["acc,none"], theirs["acc_norm,none"]) != (others["acc,none"], others["acc_norm,none"])
    assert (found["acc"], found["acc_norm"]) == (theirs["acc,none"], theirs["acc_norm,none"])
    assert found["num_fewshot"] == 4


@pytest.fixture
def few_tasks(monkeypatch):
    """Index only the harness's tasks of ARC, because indexing all tasks takes six seconds."""
    from lm_eval.tasks import manager

    monkeypatch.setattr(manager, "__file__", str(Path(manager.__file__).parent / "arc" / "manager.py"))
    harness._manager.cache_clear()
    yield
    harness._manager.cache_clear()


@pytest.mark.usefixtures("few_tasks")
def test_unknown_tasks_are_reported_at_once_with_suggestions(in_tmp_path, capsys):
    write_base()
    write_task()
    assert main(["eval", "./base", "--tasks", "arc_esy,task.yaml,gone.yaml,./nowhere"]) == 2
    error = capsys.readouterr().err
    assert "arc_esy" in error
    assert "Did you mean arc_easy?" in error
    assert "gone.yaml" in error
    assert "nowhere" in error
    assert "harness" not in error.splitlines()[-1]


@pytest.mark.usefixtures("few_tasks")
def test_missing_task_data_is_an_error(in_tmp_path, capsys):
    write_base()
    assert main(["eval", "./base", "--tasks", "arc_easy"]) == 2
    assert "arc_easy: it can't be loaded" in capsys.readouterr().err
    write_task()
    Path("docs.jsonl").unlink()
    with pytest.raises(UserError, match=r"task\.yaml: it can't be loaded"):
        tasks_of("base")


def test_without_the_extra_tasks_exit_with_code_3_and_its_name(in_tmp_path, capsys, monkeypatch):
    write_base()
    monkeypatch.setattr("llm_lab.recipe.eval.is_installed", lambda name: False)
    assert main(["eval", "./base", "--tasks", "arc_easy"]) == 3
    error = capsys.readouterr().err
    assert "tasks: not installed: lm_eval" in error
    assert "pip install 'llm-lab[eval]'" in error
    write_questions()
    words = ["eval", "./base", "--prompts", "questions.jsonl", "eval.text_scores=[bleu,rouge]"]
    assert main(words) == 3
    assert "sacrebleu" in capsys.readouterr().err


def test_the_results_have_standard_errors_and_no_output_of_the_library(in_tmp_path, capfd):
    write_base()
    write_task()
    assert main(["eval", "./base", "--tasks", "task.yaml", "--limit", "6"]) == 0
    output = capfd.readouterr()
    assert output.err == ""
    assert "words" in output.out
    assert "±" in output.out
    kept = json.loads(Path("base/evaluations.jsonl").read_text())
    assert kept["results"]["tasks/words/acc"] == kept["measured"]["tasks"]["words"]["acc"]
    assert "lm_eval" in kept["versions"]
