"""Examples that a model's own chat template refuses or changes, in a real run of SFT."""

import json
from pathlib import Path

import pytest
import torch
from support.post_runs import post_recipe, rows_of, write_base, write_rows

from llm_lab.errors import UserError
from llm_lab.evaluation.xray import xray_stages
from llm_lab.events import ignore
from llm_lab.hf.chat_templates import apply_chat_template_choice
from llm_lab.hf.conversations import encode_prompt
from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.resolve import resolve
from llm_lab.runner import load, run
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.replay import compose
from llm_lab.training.tuned_run import choose_template

# Without a system role, like Gemma's; with the date, like Llama 3.2's; earlier answers without reasoning, like Qwen3's.
TEMPLATE = (
    "{{ strftime_now('%d %b %Y') }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('No system role here') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STEPS = {"train.max_steps": 1, "train.eval_steps": 1, "train.save_steps": 1}


def talk(*texts, system=None):
    turns = [
        {"role": "user", "content": text}
        if number % 2 == 0
        else {"role": "assistant", "content": text, "thinking": "Hm"}
        for number, text in enumerate(texts)
    ]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


@pytest.fixture(autouse=True)
def base(in_tmp_path):
    write_base(hidden_size=16, num_hidden_layers=1)
    tokenizer = load_tokenizer("base")
    apply_chat_template_choice(tokenizer, "chatml")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained("base")


def test_a_run_counts_examples_that_its_template_refuses_and_replays_with_its_date():
    rows = [talk(f"{number}?", "Yes.", "Sure?", "So it is.") for number in range(10)]
    write_rows("rows.jsonl", [*rows, *(talk(f"{number}!", "No.", system="Be brief.") for number in range(10, 14))])
    recipe = post_recipe("sft", data=[{"path": "rows.jsonl"}], **STEPS, **{"validation.fraction": 0.0})
    xray = xray_stages([resolve(recipe).recipe])[0]
    refused = "the template does not accept this conversation: No system role here"
    assert any(f"4 of 14: left out: {refused}" in warning for warning in xray.sets[0].warnings)
    assert "it writes the current date" in xray.template
    path = run(recipe)["path"]
    facts = RunFolder(Path(path)).facts()
    said = "\n".join(facts["warnings"])
    assert f"4 of 14 examples: left out: {refused} (the first: 'system: Be brief." in said
    assert "put the system text into the first question, or set chat_template: chatml" in said
    assert "10 of 14 examples: split into one sequence per answer" in said
    saved = json.loads(Path(path, "model", "tokenizer_config.json").read_text())["template_date"]
    assert facts["template_date"] == saved
    # On another day, a resumed run and a replay get the date of the run.
    RunFolder(Path(path)).update(template_date="2024-02-03")
    settled = resolve(post_recipe("sft", data=[{"path": "rows.jsonl"}])).recipe
    assert choose_template(settled, load_tokenizer("base"), RunFolder(Path(path)), ignore).date == "2024-02-03"
    again = compose(path, name="again", digest_of=lambda place: "same")
    assert again.recipe["stages"][0]["template_date"] == "2024-02-03"
    run(recipe | {"name": "other", "template_date": "2024-02-03"})
    assert rows_of("checkpoints/other") != rows_of(path)


def test_a_dataset_that_the_template_refuses_completely_is_an_error_with_the_reason():
    write_rows("rows.jsonl", [talk(f"{number}!", "No.", system="Be brief.") for number in range(10)])
    recipe = post_recipe("sft", data=[{"path": "rows.jsonl"}], **STEPS, **{"validation.fraction": 0.0})
    with pytest.raises(UserError) as caught:
        run(recipe)
    assert "no example is left to train on: 10 left out: the template does not accept" in str(caught.value)
    assert "No system role here" in str(caught.value)
    assert "put the system text into the first question" in str(caught.value)


@pytest.mark.slow
def test_answers_end_after_lora_training_on_a_base_that_never_saw_the_control_tokens_of_its_tokenizer():
    sums = [(i, j) for i in range(9) for j in range(9)]
    Path("text.txt").write_text("".join(f"What is {i} plus {j}? It is {i + j}.\n\n" for i, j in sums) * 20)
    few = {"max_steps": 150, "eval_steps": 150, "save_steps": 150, "logging_steps": 150}
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
    first = {"stage": "pretrain", "name": "first", "device": "cpu", "model": sizes, "tokenizer": "bytes"}
    first |= {"data": [{"path": "text.txt"}], "samples": {"max_new_tokens": 2}}
    path = run(first | {"train": few | {"max_length": 64, "per_device_train_batch_size": 16, "compile": False}})["path"]
    model, tokenizer = load(path)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            weight[257:] = 1e-5
    save_model(model, Path("held"), tokenizer)
    rows = [{"question": f"What is {i} plus {j}?", "answer": f"It is {i + j}."} for i, j in sums]
    recipe = post_recipe("sft", data=[{"path": write_rows("rows.jsonl", rows)}], lora={"preset": "all"})
    recipe |= {"model": {"checkpoint": "held"}, "optimizer": {"name": "adamw", "learning_rate": 1e-2}}
    recipe["train"] |= few | {"max_steps": 200, "per_device_train_batch_size": 16}
    facts = run(recipe)
    assert any("was never trained on <|im_start|>, <|im_end|>" in warning for warning in facts["warnings"])
    tuned, tokenizer = load(facts["path"])
    for number in range(8):
        prompt = encode_prompt(tokenizer, [{"role": "user", "content": f"What is {number} plus 3?"}])
        ids = torch.tensor([prompt])
        written = tuned.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
        assert written[0, -1] == tokenizer.eos_token_id
