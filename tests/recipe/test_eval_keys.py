"""No dead keys in an evaluation: changing one key changes what a real evaluation measures."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import write_text
from support.post_runs import write_base, write_rows

from llm_lab.data import sources as text_sources
from llm_lab.errors import LabError
from llm_lab.evaluation import perplexity as text_loss
from llm_lab.hf.chat_templates import apply_chat_template_choice, resize_for
from llm_lab.hf.load import load_model
from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.eval import EvalRecipe
from llm_lab.recipe.fields import leaf_keys
from llm_lab.runner import run
from llm_lab.stages import eval as eval_stage

ASKED = {"path": "rows.jsonl", "prompts": 4, "max_completion_length": 6, "rewards": [{"python": "mine.py:near"}]}
TASK = {"tasks": {"names": ["task.yaml"]}, "data": None}
ROWS = {"data": [{"path": "rows.jsonl", "text_column": "question"}]}

# {key: (its new value, the effect that changes, what else the recipe needs)}
EFFECTS: dict[str, tuple] = {
    "EvalRecipe.name": ("other", "path"),
    "EvalRecipe.seed": (7, "scores", {"score": ASKED}),
    "EvalRecipe.device": ("cuda", "refused"),
    "ModelCheckpoint.checkpoint": ("base-2", "texts"),
    "EvalText.path": ("other.txt", "texts"),
    "EvalText.subset": ("part", "sources"),
    "EvalText.split": ("test", "sources"),
    "EvalText.text_column": ("answer", "texts", ROWS),
    "EvalOptions.max_tokens": (100, "texts"),
    "EvalOptions.max_length": (8, "texts"),
    "EvalOptions.stride": (4, "texts"),
    "EvalOptions.per_device_eval_batch_size": (3, "batches"),
    "EvalOptions.dtype": ("bfloat16", "texts"),
    "EvalOptions.text_scores": (["bleu"], "scores", {"score": ASKED}),
    "EvalOptions.speed_tokens": (5, "speed"),
    "EvalTasks.names": (["task_2.yaml"], "tasks", TASK),
    "EvalTasks.limit": (3, "tasks", TASK),
    "EvalTasks.num_fewshot": (1, "tasks", TASK),
    "EvalTasks.apply_chat_template": (True, "asked", TASK | {"model": {"checkpoint": "talker"}}),
    "Score.path": ("other.jsonl", "scores", {"score": ASKED}),
    "Score.prompts": (2, "scores", {"score": ASKED}),
    "Score.max_completion_length": (2, "scores", {"score": ASKED}),
}
# Keys of Score, Columns and RewardTerm work as in any stage's evaluation, through the same Scorer.
LEAVES = {f"{owner}.{key.name}": key.path for key, owner in leaf_keys(EvalRecipe) if key.path != "stage"}
OTHERS = ("Columns.", "RewardTerm.", "Score.subset", "Score.split")
TASK_FILE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["It is 1.", "It is 2.", "nothing"]
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_every_key_has_a_visible_effect_listed():
    assert set(EFFECTS) == {key for key in LEAVES if not key.startswith(OTHERS)}


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory):
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("eval"))
    write_base(hidden_size=16, num_hidden_layers=1)
    write_base("base-2", hidden_size=24, num_hidden_layers=1)
    model, tokenizer = load_model("base"), load_tokenizer("base")
    resize_for(model, tokenizer, apply_chat_template_choice(tokenizer, "chatml"), seed=0)
    save_model(model, Path("talker"), tokenizer)
    write_text("text.txt", 30)
    write_text("other.txt", 30, seed=1)
    rows = [{"question": f"{i}: {i % 7}?", "answer": f"It is {i % 5}.", "gold": i % 3} for i in range(12)]
    write_rows("rows.jsonl", rows)
    write_rows("other.jsonl", [{"question": f"other {i}", "answer": "z", "gold": 0} for i in range(12)])
    for name in ("rows", "other"):
        Path("task.yaml" if name == "rows" else "task_2.yaml").write_text(
            TASK_FILE.format(name=f"words_{name}", file=f"{name}.jsonl")
        )
    code = "def near(completions, **columns): return [sum(map(ord, text)) % 97 / 97 for text in completions]"
    Path("mine.py").write_text(code)
    yield
    os.chdir(before)


def recipe(changes: dict) -> dict:
    raw: dict[str, Any] = {"stage": "eval", "device": "cpu", "model": {"checkpoint": "base"}}
    raw |= {"data": [{"path": "text.txt"}], "eval": {"speed_tokens": 2}}
    for key, value in copy.deepcopy(changes).items():
        raw[key] = value
    return raw


def put(raw: dict, path: str, value: Any) -> dict:
    *groups, name = path.split(".")
    node: Any = raw
    for group in groups:
        node = node[0] if group == "N" else node[group]
    node[name] = value
    return raw


def observe(raw: dict) -> dict[str, Any]:
    """Run a recipe and return its visible effects; for subset and split, that they reach the text's source."""
    seen: dict[str, Any] = {"sources": [], "batches": set(), "asked": set()}
    open_source, summed, load = text_loss.open_source, text_loss.summed_nats, eval_stage.load_model

    def watched_source(path, *, subset=None, split="train", **keys):
        seen["sources"].append((subset, split))
        return open_source(path, **keys)

    def watched_nats(model, ids, *rest):
        seen["batches"].add(tuple(ids.shape))
        return summed(model, ids, *rest)

    def watched_load(*args, **keys):
        model = load(*args, **keys)
        model.register_forward_pre_hook(lambda module, given: seen["asked"].add(given[0].shape if given else None))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_loss, "open_source", watched_source)
        patch.setattr(text_loss, "summed_nats", watched_nats)
        patch.setattr(eval_stage, "load_model", watched_load)
        patch.setattr(text_sources, "look_at_source", lambda *args, **keys: None)
        try:
            facts = run(raw)
        except LabError as error:
            return {"refused": str(error)}
    measured = facts["measured"]
    speed = {key: value for key, value in measured["speed"].items() if "second" not in key}
    return seen | {
        "path": Path(facts["path"]).name.rstrip("-0123456789"),
        "texts": [[row["loss"], row["tokens"]] for row in measured.get("texts", ())],
        "scores": {key: value for key, value in measured.get("scores", {}).items() if key != "before"},
        "tasks": measured.get("tasks"),
        "speed": speed,
    }


@pytest.fixture(scope="module")
def observed():
    """The effects of recipes before the change; each is run once."""
    return {}


@pytest.mark.parametrize("key", EFFECTS)
def test_changing_one_key_changes_what_is_measured(key, observed):
    value, facet, *needs = EFFECTS[key]
    needs = needs[0] if needs else {}
    known = json.dumps(needs)
    if known not in observed:
        observed[known] = observe(recipe(needs))
        assert "refused" not in observed[known], observed[known]["refused"]
    after = observe(put(recipe(needs), LEAVES[key], value))
    assert facet == "refused" or "refused" not in after, after["refused"]
    assert after.get(facet) != observed[known].get(facet)
