"""Reward models: any sequence classifier with its tokenizer, used as a function of (prompts, completions)."""

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
) -> RewardModel:
    """Load a reward model from a run, a folder, a LoRA adapter or the Hub; in bf16 on CUDA.

    Raises UserError if it can't be loaded, is not a classifier, or has more than two labels.
    """
    quiet_libraries()
    tokenizer = load_tokenizer(name, key=key)
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    model = load_classifier(name, dtype=dtype, device=device, key=key)
    return RewardModel(model, tokenizer, name=str(name), batch_size=batch_size, key=key)


class RewardModel:
    """A classifier that scores answers: called with prompts and completions, it returns one float for each.

    How a conversation is encoded depends on the model. With a chat template: by the template, including special
    tokens, as in training. An encoder (BERT, DeBERTa) without a template: as a pair of texts, tokenizer(prompt,
    completion). A decoder without a template: prompt and completion concatenated if the prompt is text; UserError if
    it is messages.

    One label: its logit. Two labels: the second logit minus the first (the log-odds). More are refused.

    truncated: how many texts were longer than max_length and lost their beginning.
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
        self.truncated = 0
        labels = model.config.num_labels
        if labels > 2:
            names = ", ".join(str(label) for label in list(model.config.id2label.values())[:6])
            raise UserError(
                Problem(
                    key, f"this classifier has {labels} labels ({names}); a reward model has one or two", value=name
                )
            )

    @property
    def about(self) -> str:
        """How the model reads a conversation, in one line."""
        written = {
            "template": "with its own chat template",
            "pair": "as a pair of prompt and answer",
            "text": "as prompt and answer concatenated (no chat template)",
        }[self.form]
        text = f"{self.name}: reads a conversation {written}; at most {self.max_length:,} tokens"
        if self.model.config.num_labels == 2:
            first, second = (self.model.config.id2label[index] for index in (0, 1))
            text += f"; the reward is the log-odds of {second} against {first}"
        return text

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return the scores of completions (text) to prompts (text, or messages)."""
        rows = [self.encode(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        scores = [0.0] * len(rows)
        # Rows of similar length share a batch, for less padding.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            for index, score in zip(chosen, self._score([rows[i] for i in chosen]), strict=True):
                scores[index] = score
        return scores

    def encode(self, prompt: Prompt, completion: str) -> dict[str, list[int]]:
        """Return the token ids of one conversation, cut at its beginning if it is too long."""
        if self.form == "pair":
            return self._encode_pair(prompt if isinstance(prompt, str) else _plain(prompt), completion)
        if self.form == "template":
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            messages.append({"role": "assistant", "content": completion})
            # Only the template writes special tokens; a special token that is spelled out in an answer stays text.
            ids = encode_conversation(self.tokenizer, messages, assistant_only=False).input_ids
        elif isinstance(prompt, str):
            ids = self.tokenizer(prompt + completion)["input_ids"]
        else:
            why = "this reward model has no chat template, so the format of conversations is unknown"
            fix = "Add the chat_template.jinja that it was trained with to its folder."
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
            # A decoder is read at the last token that is not the padding token, or at the last token if there is no
            # padding token. So pad with an id that no row contains: padding with the end token would move that
            # position.
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
            raise UserError(Problem(self.key, "the score of this reward model is not a number", value=self.name))
        return scores.tolist()


def longest_input(model: Any, tokenizer: Any) -> int:
    """Return the maximum input length of a model in tokens: the smaller limit of model and tokenizer."""
    limits = [tokenizer.model_max_length, context_of(model)]
    for name, module in model.named_modules():
        # The first position of RoBERTa is the one after its padding id.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    # A tokenizer without a limit reports 1e30.
    known = [limit for limit in limits if limit and 0 < limit < 10**8]
    return min(known) if known else 4096


def _plain(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(content_of(message) for message in messages)
