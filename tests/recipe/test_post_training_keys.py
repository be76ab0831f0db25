"""No dead keys after pretraining: changing one key of these recipes changes what a real run does."""

import copy
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.listeners import Handlers
from support.post_runs import post_recipe, weights_of, write_base, write_rows
from support.recipe_keys import every_fifth, is_checkpointed

from llm_lab.data import examples as example_sets
from llm_lab.data import sources as text_sources
from llm_lab.errors import LabError
from llm_lab.evaluation import forgetting_meter, score
from llm_lab.recipe.fields import leaf_keys
from llm_lab.recipe.optimizers import GROUPS, TUNED
from llm_lab.recipe.pretrain import PRETRAIN
from llm_lab.recipe.registry import STAGES
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.stages import reward
from llm_lab.training import tuned_run as tuning

SCORED = {"score": {"path": "rows.jsonl", "split": "train", "prompts": 4, "max_completion_length": 4}}
NEAR = {"python": "mine.py:near"}
JUDGED = SCORED["score"] | {"rewards": [NEAR]}
MIXED = {"data": [{"path": "rows.jsonl"}, {"path": "other.jsonl"}]}
BY_TEXT = {"data": [{"path": "rows.jsonl", "columns": {"text": "body"}}]}
BY_CHAT = {"data": [{"path": "rows.jsonl", "columns": {"messages": "chat"}}]}
NAMED = {"data": [{"path": "rows.jsonl", "columns": {"prompt": "question", "completion": "answer"}}]}
PAIRS = {"data": [{"path": "pairs.jsonl", "columns": {"chosen": "chosen", "rejected": "rejected"}}]}
ANSWERED = {"data": [{"path": "rows.jsonl", "columns": {"answer": "answer"}}], "rewards": [NEAR]}
GENERAL = {"forgetting": {"path": "general.txt", "max_tokens": 200, "threshold": 50.0}}
IN_COLUMN = {"forgetting": {"path": "rows.jsonl", "text_column": "body", "max_tokens": 200}}
ADAPTER = {"lora": {"preset": "all", "r": 4}}
OFTEN = {"train.num_train_epochs": 0.4, "train.max_steps": None}
RARELY = {"train.max_steps": 4, "train.eval_steps": 4, "train.save_steps": 4}


def rewarded_by(*terms: dict) -> dict:
    return {"rewards": list(terms)}


# {key: (the stage that tests it, its new value, the effect that changes, what else the recipe needs)}. The stage is
# None for a stage's own keys, which that stage tests.
EFFECTS: dict[str, tuple] = {
    "ModelCheckpoint.checkpoint": ("sft", "base-2", "losses"),
    "ExampleSet.path": ("sft", "other.jsonl", "losses"),
    "ExampleSet.subset": ("sft", "part", "sources"),
    "ExampleSet.split": ("sft", "test", "sources"),
    "ExampleSet.weight": ("sft", 9.0, "losses", MIXED),
    "Columns.messages": ("sft", "chat_2", "losses", BY_CHAT),
    "Columns.prompt": ("sft", "ask", "losses", NAMED),
    "Columns.completion": ("sft", "reply", "losses", NAMED),
    "Columns.chosen": ("dpo", "better", "losses", PAIRS),
    "Columns.rejected": ("dpo", "worse", "losses", PAIRS),
    "Columns.answer": ("grpo", "reply", "rewards", ANSWERED),
    "Columns.text": ("sft", "body_2", "losses", BY_TEXT | {"samples.prompts": ["1?"]}),
    "ExampleValidation.fraction": ("sft", 0.5, "evaluations"),
    "ExampleValidation.from": ("sft", "end", "evaluations"),
    "ExampleValidation.max_examples": ("sft", 1, "evaluations"),
    "PromptValidation.fraction": ("grpo", 0.45, "samples", {"validation": {"from": "end"}}),
    "PromptValidation.from": ("grpo", "end", "samples"),
    "Lora.preset": ("sft", "minimal", "adapter", ADAPTER),
    "Lora.target_modules": ("sft", ["o_proj"], "adapter", {"lora": {"preset": "custom", "target_modules": ["q_proj"]}}),
    "Lora.r": ("sft", 2, "adapter", ADAPTER),
    "Lora.alpha": ("sft", 64.0, "losses", ADAPTER),
    "Lora.dropout": ("sft", 0.5, "losses", ADAPTER),
    "Lora.use_rslora": ("sft", True, "losses", ADAPTER),
    "Lora.use_dora": ("sft", True, "losses", ADAPTER),
    "Lora.load_in_4bit": ("sft", True, "refused", ADAPTER),
    "TuneTrain.num_train_epochs": ("sft", 0.6, "logged at", OFTEN),
    "TuneTrain.max_steps": ("sft", 3, "logged at"),
    "TuneTrain.max_length": ("sft", 28, "losses"),
    "TuneTrain.per_device_train_batch_size": ("sft", 2, "losses"),
    "TuneTrain.gradient_accumulation_steps": ("sft", 2, "losses"),
    "TuneTrain.max_grad_norm": ("sft", 1e-6, "losses"),
    "TuneTrain.eval_steps": ("sft", 1, "evaluations"),
    "TuneTrain.save_steps": ("sft", 1, "checkpoints"),
    "TuneTrain.save_total_limit": ("sft", 1, "checkpoints", {"train.save_steps": 1}),
    "TuneTrain.logging_steps": ("sft", 3, "logged at", RARELY),
    "TuneTrain.dtype": ("sft", "bfloat16", "losses"),
    "TuneTrain.attn_implementation": ("sft", "eager", "built"),
    "TuneTrain.gradient_checkpointing": ("sft", True, "built"),
    "TuneTrain.threads": ("sft", 2, "threads"),
    "TuneTrain.deterministic": ("sft", True, "deterministic"),
    "TuneTrain.report_to": ("sft", ["tensorboard"], "trackers"),
    "Scheduler.name": ("sft", "none", "learning rates"),
    "Scheduler.warmup_steps": ("sft", 2, "learning rates", RARELY),
    "Scheduler.warmup_ratio": ("sft", 0.5, "learning rates", RARELY | {"scheduler": {}}),
    "Scheduler.min_ratio": ("sft", 0.9, "learning rates"),
    "Scheduler.power": ("sft", 3.0, "learning rates", RARELY | {"scheduler": {"name": "polynomial"}}),
    "Scheduler.weight_decay": (
        "sft",
        "linear",
        "losses",
        {"train.max_steps": 4, "optimizer": {"name": "adamw", "learning_rate": 0.01, "weight_decay": 9.0}},
    ),
    "Scheduler.decay_ratio": ("sft", 0.9, "learning rates", RARELY | {"scheduler": {"name": "wsd"}}),
    "Score.path": ("sft", "other.jsonl", "scores", {"score": JUDGED}),
    "Score.subset": ("sft", "part", "sources", SCORED),
    "Score.split": ("sft", "test", "sources", SCORED),
    "Score.prompts": ("sft", 2, "scores", {"score": JUDGED}),
    "Score.max_completion_length": ("sft", 2, "scores", {"score": JUDGED}),
    "Forgetting.path": ("sft", "mine.py", "general text", GENERAL),
    "Forgetting.subset": ("sft", "part", "sources", GENERAL),
    "Forgetting.split": ("sft", "test", "sources", GENERAL),
    "Forgetting.text_column": ("sft", "body_2", "general text", IN_COLUMN),
    "Forgetting.max_tokens": ("sft", 40, "general text", GENERAL),
    "Forgetting.threshold": ("sft", 1e-7, "warnings", GENERAL | {"optimizer": {"name": "adamw", "learning_rate": 0.5}}),
    "RewardTerm.name": ("grpo", "format", "rewards", rewarded_by({"name": "regex", "pattern": "[a-m]"})),
    "RewardTerm.model": ("grpo", "scorer-2", "rewards", rewarded_by({"model": "scorer"})),
    "RewardTerm.python": ("grpo", "mine.py:far", "rewards", rewarded_by(NEAR)),
    "RewardTerm.weight": ("grpo", 3.0, "rewards", rewarded_by({"name": "length", "length": 8})),
    "RewardTerm.pattern": ("grpo", ".", "rewards", rewarded_by({"name": "regex", "pattern": "[a-m]"})),
    "RewardTerm.length": ("grpo", 80, "rewards", rewarded_by({"name": "length", "length": 8})),
    "RewardTerm.ngram": ("grpo", 1, "rewards", rewarded_by({"name": "repetition", "ngram": 2})),
    "Replies.prompts": ("sft", ["why?"], "samples"),
    "Replies.max_new_tokens": ("sft", 9, "samples"),
    "Replies.temperature": ("sft", 5.0, "samples"),
    "SftOptions.assistant_only_loss": (None, False, "losses"),
    "SftOptions.packing": (None, True, "losses"),
    "RewardOptions.center_rewards_coefficient": (None, 9.0, "losses"),
    "DpoOptions.beta": (None, 5.0, "losses"),
    "DpoOptions.loss_type": (None, "ipo", "losses"),
    "DpoOptions.label_smoothing": (None, 0.4, "losses", {"dpo": {"loss_type": "robust", "label_smoothing": 0.1}}),
    "DpoOptions.sft_weight": (None, 1.0, "losses"),
    "DpoOptions.reference": (None, "tuned", "losses"),
    "GrpoOptions.num_generations": (None, 4, "losses"),
    "GrpoOptions.max_completion_length": (None, 4, "rewards"),
    "GrpoOptions.temperature": (None, 0.3, "losses"),
    "GrpoOptions.beta": (None, 9.0, "weights"),
    "GrpoOptions.epsilon": (None, 1e-4, "weights", {"grpo.num_iterations": 2}),
    "GrpoOptions.num_iterations": (None, 2, "rewards"),
    "GrpoOptions.loss_type": (None, "grpo", "weights"),
    "GrpoOptions.scale_rewards": (None, "none", "weights"),
    "GrpoOptions.mask_truncated_completions": (None, True, "weights"),
    "PpoOptions.max_completion_length": (None, 4, "rewards"),
    "PpoOptions.temperature": (None, 0.3, "losses"),
    "PpoOptions.kl_coef": (None, 9.0, "losses", {"train.max_steps": 3}),
    "PpoOptions.gamma": (None, 0.1, "losses"),
    "PpoOptions.lam": (None, 0.1, "losses", {"ppo.gamma": 0.5}),
    "PpoOptions.cliprange": (None, 1e-4, "losses"),
    "PpoOptions.cliprange_value": (None, 1e-4, "losses"),
    "PpoOptions.num_ppo_epochs": (None, 1, "rewards"),
    "PpoOptions.num_mini_batches": (None, 2, "losses"),
    "PpoOptions.critic": (None, "scorer", "losses"),
    "PpoOptions.critic_learning_rate": (None, 0.1, "losses"),
    "PpoOptions.missing_eos_penalty": (None, 9.0, "losses"),
    "MergeOptions.tolerance": (None, 1e-12, "refused"),
}
for _stage in ("sft", "reward", "dpo", "grpo", "ppo", "merge"):
    _owner = STAGES[_stage].recipe.__name__
    _seen = {"sft": "losses", "reward": "losses", "dpo": "losses", "grpo": "rewards", "ppo": "rewards"}
    EFFECTS[f"{_owner}.name"] = (_stage, "renamed", "path")
    EFFECTS[f"{_owner}.seed"] = (_stage, 7, _seen.get(_stage, "results"))
    EFFECTS[f"{_owner}.device"] = (_stage, "cuda", "refused")
    if _stage != "merge":
        EFFECTS[f"{_owner}.chat_template"] = (_stage, "llama3", "template")
        EFFECTS[f"{_owner}.template_date"] = (_stage, "2024-02-03", "date", {"model": {"checkpoint": "dated"}})
for _name in ("adamw", "muon", "lion", "adafactor"):
    _needs = {"optimizer": {"name": _name, "learning_rate": 3e-3}}
    _other = "lion" if _name == "adamw" else "adamw"
    EFFECTS[f"{TUNED[_name].__name__}.name"] = ("sft", _other, "losses", _needs)
    EFFECTS[f"{TUNED[_name].__name__}.learning_rate"] = ("sft", 3e-2, "losses", _needs)
EFFECTS["TuneMuon.adamw_learning_rate"] = ("sft", 0.1, "losses", {"optimizer": {"name": "muon"}})

STAGE_OF = {
    "SftOptions": "sft",
    "RewardOptions": "reward",
    "DpoOptions": "dpo",
    "GrpoOptions": "grpo",
    "PpoOptions": "ppo",
    "MergeOptions": "merge",
}
PLACES: dict[str, dict[str, str]] = {}  # {key: {stage: its dotted key}}, the first if there are two
for _stage, _recipe in ((name, stage.recipe) for name, stage in STAGES.items()):
    # Stages that do not train have test files of their own.
    for _key, _owner in leaf_keys(_recipe) if _stage not in ("pretrain", "eval", "export") else ():
        if _key.path != "stage":
            _known = PLACES.setdefault(f"{_owner}.{_key.name}", {})
            if _stage not in _known or _key.path.startswith(("data", "rewards")):
                _known[_stage] = _key.path


def is_an_optimizers(key: str) -> bool:
    """An optimizer's other keys are those of pretraining, tested there, and the same builder reads them."""
    group = next((group for group in TUNED.values() if group.__name__ == key.split(".")[0]), None)
    return group is not None and issubclass(group, GROUPS)


# For runs that go wrong (training/test_seat_belts.py) and several processes (stages/test_processes_agree.py).
TESTED_ELSEWHERE = {f"TuneTrain.{key}" for key in ("on_divergence", "distributed")}
TESTED_ELSEWHERE |= {"GrpoOptions.on_collapse", "PpoOptions.on_collapse"}


def test_every_key_has_a_visible_effect_listed():
    others = {key for key in PLACES if is_an_optimizers(key)} - set(EFFECTS)
    assert {key.removeprefix("Tune") for key in others} <= {
        f"{owner}.{key.name}" for key, owner in leaf_keys(PRETRAIN.recipe)
    }
    assert set(EFFECTS) == set(PLACES) - others - TESTED_ELSEWHERE


MINE = """
def near(completions, answer=None, **columns):
    right_answers = answer or [""] * len(completions)
    return [sum(map(ord, text)) % 97 / 97 + len(right) for text, right in zip(completions, right_answers)]

def far(completions, **columns):
    return [float(-len(text)) for text in completions]
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with models and data for all of this file's runs."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("keys"))
    small = {"hidden_size": 16, "num_hidden_layers": 1}
    write_base(**small)
    write_base("base-2", hidden_size=24, num_hidden_layers=1)
    rows = []
    for i in range(24):
        chats = ([{"role": "user", "content": f"{i} {said}"}, {"role": "assistant", "content": said}] for said in "ab")
        rows.append(
            {"question": f"{i}: {i % 7}?", "answer": f"It is {i % 5}.", "ask": f"say {i}", "reply": f"{i % 3} it is"}
            | dict(zip(("chat", "chat_2"), chats, strict=True))
            | {"body": f"some words {i}", "body_2": f"other words {i}"}
        )
    write_rows("rows.jsonl", rows)
    Path("general.txt").write_text("It was a dark and stormy night, and nobody slept.\n" * 9)
    write_rows("other.jsonl", [{"question": f"other {i}", "answer": "z"} for i in range(24)])
    pair = {"chosen": "yes {}", "rejected": "no, {}", "better": "of course {}", "worse": "never {}"}
    texts = [{"prompt": f"{i}?"} | {name: text.format(i) for name, text in pair.items()} for i in range(24)]
    write_rows("pairs.jsonl", texts)
    Path("mine.py").write_text(MINE)
    for seed, name in ((1, "scorer"), (2, "scorer-2")):
        scorer = recipe("reward", {"name": name, "seed": seed})
        os.rename(Path(run(scorer)["path"]) / "model", name)
    os.rename(
        Path(run(recipe("sft", {"name": "tuned", "optimizer": {"learning_rate": 0.1}}))["path"]) / "model", "tuned"
    )
    os.rename(Path(run(recipe("sft", ADAPTER | {"name": "adapter"}))["path"]) / "model", "adapter")
    shutil.copytree("tuned", "dated")
    template = Path("dated/chat_template.jinja")
    template.write_text("{{- strftime_now('%d %b %Y') }}" + template.read_text())
    yield
    os.chdir(before)


def recipe(stage: str, changes: dict) -> dict:
    """Return a recipe of two updates: the loss of the second shows the effect of the first."""
    if stage == "merge":
        raw: dict[str, Any] = {"stage": "merge", "device": "cpu", "name": "merge", "model": {"checkpoint": "adapter"}}
    else:
        raw = post_recipe("sft", name=stage, **{"validation.fraction": 0.25}, data=[{"path": "rows.jsonl"}]) | {
            "stage": stage
        }
        raw["train"] |= {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "dtype": "float32"}
    if stage in ("reward", "dpo"):
        raw["data"] = [{"path": "pairs.jsonl"}]
    if stage == "reward":
        del raw["samples"]
    if stage in ("grpo", "ppo"):
        raw |= {"rewards": [{"name": "length", "length": 8}], "score": None, stage: {"max_completion_length": 6}}
        raw["train"] |= {"per_device_train_batch_size": 8}
    if stage == "grpo":
        raw["grpo"]["num_generations"] = 2
    for key, value in copy.deepcopy(changes).items():
        group, _, name = key.rpartition(".")
        (raw.setdefault(group, {}) if group else raw)[name] = value
    return raw


def put(raw: dict, path: str, value: Any) -> dict:
    *groups, name = path.split(".")
    node: Any = raw
    for group in groups:
        node = node[0] if group == "N" else node.setdefault(group, {})
    if path == "optimizer.name":
        node.pop("learning_rate")
    node[name] = value
    return raw


class Notes(Handlers):
    def __init__(self):
        self.lines = []

    def notice(self, text):
        self.lines.append(text)


def observe(raw: dict) -> dict[str, Any]:
    """Run a recipe and return its visible effects.

    Subset and split apply to Hub datasets; here, they only have to reach the dataset.
    """
    seen: dict[str, Any] = {"sources": []}
    open_text = forgetting_meter.open_source
    open_set, build_scorer, build_policy = example_sets.open_examples, reward.build, tuning.load_model

    def watched_set(path, *, subset=None, split="train", **keys):
        seen["sources"].append((subset, split))
        return open_set(path, **keys)

    def watched_text(path, *, subset=None, split="train", **keys):
        seen["sources"].append((subset, split))
        return open_text(path, **keys)

    def watch(model):
        seen["threads"] = torch.get_num_threads()
        seen["deterministic"] = torch.are_deterministic_algorithms_enabled()
        seen["model"] = model
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "open_examples", watched_set)
        patch.setattr(score, "open_examples", watched_set)
        patch.setattr(forgetting_meter, "open_source", watched_text)
        patch.setattr(text_sources, "look_at_source", lambda *args, **keys: None)
        patch.setattr(example_sets, "look_at_examples", lambda *args, **keys: None)
        patch.setattr(tuning, "load_model", lambda *args, **keys: watch(build_policy(*args, **keys)))
        patch.setattr(reward, "build", lambda *args: (lambda both: (watch(both[0]), both[1]))(build_scorer(*args)))
        try:
            facts = run(raw, listener=Notes())
        except LabError as error:
            return {"refused": str(error)}
    folder = RunFolder(Path(facts["path"]))
    rows = folder.metrics()
    updates = [row for row in rows if "loss" in row]
    config = folder.model_path / "adapter_config.json"
    model = seen.pop("model", None)
    tokenizer = json.loads((folder.model_path / "tokenizer_config.json").read_text())
    return seen | {
        "path": re.sub(r"-\d+$", "", folder.path.name),
        "results": facts["results"].get("adapter_effect"),
        "losses": [[row[name] for name in ("loss", "value_loss") if name in row] for row in updates],
        "rewards": [row.get("reward") for row in updates],
        "learning rates": [row["learning_rate"] for row in updates],
        "logged at": [row["step"] for row in updates],
        "evaluations": [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row],
        "scores": [
            {k: v for k, v in row.items() if k.startswith(("eval_", "exact"))} for row in rows if "loss" not in row
        ],
        "general text": [row["general_bits_per_byte"] for row in rows if "general_bits_per_byte" in row],
        "warnings": facts.get("warnings"),
        "checkpoints": [step for step, _ in folder.checkpoints()],
        "samples": folder.samples_path.read_text() if folder.samples_path.exists() else None,
        "trackers": (folder.path / "tracking").exists(),
        "weights": digest(weights_of(folder.path)),
        "adapter": config.exists() and {k: v for k, v in json.loads(config.read_text()).items() if k != "base"},
        "built": model is not None and (model.config._attn_implementation, is_checkpointed(model)),
        "date": tokenizer.get("template_date"),
        "template": tokenizer.get("chat_template") or (folder.model_path / "chat_template.jinja").read_text(),
    }


def digest(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def observed():
    """The effects of recipes before the change; each is run once."""
    return {}


@pytest.mark.parametrize("key", every_fifth(EFFECTS))
def test_changing_one_key_changes_the_run(key, workplace, observed):
    stage, value, facet, *needs = EFFECTS[key]
    stage = stage or STAGE_OF[key.split(".")[0]]
    needs = needs[0] if needs else {}
    known = json.dumps([stage, needs])
    if known not in observed:
        observed[known] = observe(recipe(stage, needs))
        assert "refused" not in observed[known], observed[known]["refused"]
    after = observe(put(recipe(stage, needs), PLACES[key][stage], value))
    assert facet == "refused" or "refused" not in after, after["refused"]
    assert after.get(facet) != observed[known].get(facet)
    if facet == "refused":
        assert PLACES[key][stage] in after["refused"]


@pytest.mark.parametrize("stage", ["reward", "dpo", "grpo", "ppo"])
def test_shared_keys_have_an_effect_in_each_stage(stage, workplace, observed):
    """Shared keys with separate effects are all changed in one run. SFT tests each alone."""
    known = json.dumps([stage, {}])
    if known not in observed:
        observed[known] = observe(recipe(stage, {}))
    before = observed[known]
    kernel = {"train.attn_implementation": "eager", "train.gradient_checkpointing": True}
    course = {"train.save_steps": 1, "scheduler": {"name": "none", "warmup_steps": 1}, "train.max_steps": 3}
    after = observe(recipe(stage, kernel | course | {"train.max_grad_norm": 1e-6, "train.eval_steps": 1}))
    assert (before["built"], after["built"]) == (("sdpa", False), ("eager", True))
    assert after["checkpoints"] == [1, 2, 3]
    assert after["learning rates"][1:] == pytest.approx([3e-3, 3e-3])
    for change in ({"train.max_grad_norm": 1e-6}, {"train.dtype": "bfloat16"}):
        assert observe(recipe(stage, change))["weights"] != before["weights"], change
