"""Reward models: any sequence classifier as a function of (prompts, completions), with its own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.hf.conversations import encode_conversation
from llm_lab.hf.load import context_of, quiet_libraries
from llm_lab.hf.tokenizers import load_tokenizer

from .classifier import is_encoder, load_classifier
from .combine import Prompt, content_of


def load_reward_model(
    name: str | Path,
    *,
    device: str = "cpu",
    batch_size: int = 16,
    key: str = "rewards.model",
    trust_remote_code: bool = False,
) -> RewardModel:
    """Load a reward model from a folder (ours, a LoRA adapter, anyone's) or the Hub, in bf16 on CUDA.

    UserError where it can't be loaded, is no classifier, or gives more than two numbers.
    """
    quiet_libraries()
    tokenizer = load_tokenizer(name, key=key)
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    model = load_classifier(name, dtype=dtype, device=device, key=key, trust_remote_code=trust_remote_code)
    return RewardModel(model, tokenizer, name=str(name), batch_size=batch_size, key=key)


class RewardModel:
    """A classifier as a judge: called with prompts and completions, returns one float each.

    How a conversation is written depends on the model. With a chat template: by it, special tokens and all, as in
    training. An encoder (BERT, DeBERTa) without one: as a pair of texts, tokenizer(prompt, completion). A decoder
    without one: prompt and completion end to end where the prompt is text; UserError where it is messages.

    One label: its logit. Two labels: the second's logit minus the first's (the log-odds). More are refused.

    scored, truncated: how many texts were scored, and how many of them were longer than max_length and lost their
    beginning.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "reward model",
        batch_size: int = 16,
        key: str = "rewards.model",
        max_length: int | None = None,
    ):
        self.model, self.tokenizer, self.name, self.key = model.eval(), tokenizer, name, key
        self.batch_size = batch_size
        self.max_length = max_length or longest_input(model, tokenizer)
        self.encoder = is_encoder(model.config)
        self.form = "template" if tokenizer.chat_template else "pair" if self.encoder else "text"
        self.scored = self.truncated = 0
        labels = model.config.num_labels
        if labels > 2:
            names = ", ".join(str(label) for label in list(model.config.id2label.values())[:6])
            raise UserError(
                Problem(key, f"this classifier gives {labels} numbers ({names}); a reward is one", value=name)
            )

    @property
    def about(self) -> str:
        """What it does with a conversation, in words."""
        written = {
            "template": "with its own chat template",
            "pair": "as a pair of prompt and answer",
            "text": "prompt and answer end to end: it has no chat template",
        }[self.form]
        said = f"{self.name}: reads a conversation {written}; at most {self.max_length:,} tokens"
        if self.model.config.num_labels == 2:
            first, second = (self.model.config.id2label[index] for index in (0, 1))
            said += f"; the reward is the log-odds of {second} against {first}"
        return said

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return the scores of completions (text) to prompts (text, or messages)."""
        rows = [self.encode(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        scores = [0.0] * len(rows)
        # Rows of like length share a batch: less padding.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            for index, score in zip(chosen, self._score([rows[i] for i in chosen]), strict=True):
                scores[index] = score
        self.scored += len(rows)
        return scores

    def encode(self, prompt: Prompt, completion: str) -> dict[str, list[int]]:
        """Return the token ids of one conversation, cut at its beginning where it is too long."""
        if self.form == "pair":
            return self._encode_pair(prompt if isinstance(prompt, str) else _plain(prompt), completion)
        if self.form == "template":
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            messages.append({"role": "assistant", "content": completion})
            # The template writes the special tokens, and none that an answer spells out becomes one.
            ids = encode_conversation(self.tokenizer, messages, assistant_only=False).input_ids
        elif isinstance(prompt, str):
            ids = self.tokenizer(prompt + completion)["input_ids"]
        else:
            why = "this reward model has no chat template, so how it wants a conversation written is not known"
            fix = "Put the chat_template.jinja that it was trained with into its folder."
            raise UserError(Problem(self.key, why, value=self.name, fix=fix))
        if len(ids) > self.max_length:
            self.truncated += 1
            ids = ids[-self.max_length :]
        return {"input_ids": ids}

    def _encode_pair(self, prompt: str, completion: str) -> dict[str, list[int]]:
        row = self.tokenizer(prompt, completion)
        if len(row["input_ids"]) > self.max_length:
            self.truncated += 1
            self.tokenizer.truncation_side = "left"
            row = self.tokenizer(prompt, completion, truncation="longest_first", max_length=self.max_length)
        return {key: list(value) for key, value in row.items() if key != "attention_mask"}

    def _score(self, rows: Sequence[Mapping[str, list[int]]]) -> list[float]:
        import torch

        config = self.model.config.get_text_config()
        own_pad = config.pad_token_id
        if own_pad is not None:
            pad = own_pad
        elif self.encoder:
            pad = self.tokenizer.pad_token_id or 0
        else:
            # A decoder is read at the last token that is not the padding token; without one, at the last. So pad
            # with an id that none of these rows has: the end token would move the place where they are read.
            used = {token for row in rows for token in row["input_ids"]}
            pad = next(token for token in range(len(used) + 1) if token not in used)
        longest = max(len(row["input_ids"]) for row in rows)
        fills = {key: pad if key == "input_ids" else 0 for key in rows[0]}
        batch = {
            key: torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows])
            for key, fill in fills.items()
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        batch = {key: value.to(self.model.device) for key, value in batch.items()}
        config.pad_token_id = pad
        try:
            with torch.inference_mode():
                logits = self.model(**batch, **({} if self.encoder else {"use_cache": False})).logits.float()
        finally:
            config.pad_token_id = own_pad
        scores = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        if not torch.isfinite(scores).all():
            raise UserError(Problem(self.key, "this reward model gave a score that is no number", value=self.name))
        return scores.tolist()


def longest_input(model: Any, tokenizer: Any) -> int:
    """Return the most tokens that a model reads: the smaller of its own limit and its tokenizer's."""
    limits = [tokenizer.model_max_length, context_of(model)]
    for name, module in model.named_modules():
        # RoBERTa's first position is the one after its padding id.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    # A tokenizer that knows no limit says 1e30.
    known = [limit for limit in limits if limit and 0 < limit < 10**8]
    return min(known) if known else 4096


def _plain(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(content_of(message) for message in messages)
