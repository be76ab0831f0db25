"""Toy preferences and tiny runs of the reward stage."""

import json
import random
from pathlib import Path

import torch
from support.listeners import Handlers

from llm_lab.hf.configs import config_of_parts
from llm_lab.hf.load import build_from_config
from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.recipe.parts import ModelParts
from llm_lab.recipe.reward import RewardRecipe
from llm_lab.runs.folder import RunFolder
from llm_lab.stages import reward

ANSWERS = ["no", "go away", "it is red", "a tree", "who knows", "three", "not now", "in the sea"]


class Notes(Handlers):
    """A listener that records notices and log rows."""

    def __init__(self):
        self.notices, self.rows = [], []

    def notice(self, text):
        self.notices.append(text)

    def log(self, row):
        self.rows.append(row)


def write_preferences(path: Path, count: int = 300, seed: int = 0, wrong: float = 0.0) -> str:
    """Write preferences: chosen answers contain "please", rejected ones a different word of the same length.

    wrong: share of the preferences that are swapped.
    """
    pick = random.Random(seed)
    rows = []
    for number in range(count):
        better, worse = pick.choice(ANSWERS), pick.choice(ANSWERS)
        polite, rude = ("please {}", "{} please"), ("banana {}", "{} banana")
        better, worse = pick.choice(polite).format(better), pick.choice(rude).format(worse)
        if pick.random() < wrong:
            better, worse = worse, better
        rows.append({"prompt": f"{number}?", "chosen": better, "rejected": worse})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_base(folder: Path, **parts) -> str:
    """Write a tiny causal LM (Llama unless parts differ), and a byte tokenizer without chat template or padding."""
    import torch

    values = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "intermediate_size": 64, "max_position_embeddings": 128,
    } | parts  # fmt: skip
    tokenizer = make_byte_tokenizer()
    torch.manual_seed(0)
    every = {**ModelParts().model_dump(by_alias=True), **values}
    model = build_from_config(config_of_parts({k: v for k, v in every.items() if v is not None}, len(tokenizer)))
    save_model(model, folder, tokenizer)
    return str(folder)


def make_recipe(base: str, data: str, **changes) -> RewardRecipe:
    """Return a recipe that runs for about two seconds; changes are {"group.key": value} or {"key": value}."""
    values = {
        "stage": "reward",
        "name": "reward-model",
        "device": "cpu",
        "model": {"checkpoint": base},
        "data": [{"path": data}],
        "validation": {"fraction": 0.2},
        "optimizer": {"name": "adamw", "learning_rate": 3e-3},
        "scheduler": {"warmup_steps": 5},
        "train": {
            "max_steps": 60, "max_length": 96, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
            "eval_steps": 30, "save_steps": 30, "logging_steps": 10, "dtype": "float32",
            "gradient_checkpointing": False,
        },
    }  # fmt: skip
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        (values[group] if group else values)[name] = value
    return RewardRecipe.model_validate(values)


def run_stage(recipe: RewardRecipe, path: Path, *, resume: bool = False):
    """Run the stage; return (folder, result, recorded notes)."""
    path.mkdir(parents=True, exist_ok=True)
    folder, notes = RunFolder(path), Notes()
    result = reward.run(recipe, folder, notes, resume=resume)
    return folder, result, notes


def word_tokenizer():
    """Return a word tokenizer like BERT's: [CLS] first [SEP] second [SEP], with segments 0 and 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = "what is two and three ? five it six , i think or so seems to me a".split()
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=32,
    )  # fmt: skip


def encoder(kind, **changes):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    options = {"intermediate_size": 32, "max_position_embeddings": 32, "num_labels": 1, "initializer_range": 0.5}
    config = AutoConfig.for_model(kind, **sizes, **(options | changes))
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()
