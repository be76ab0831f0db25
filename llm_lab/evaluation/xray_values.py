"""What the data X-ray tells: values, and an example's tokens as runs of like ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_lab.hf.conversations import Encoded

SHOWN_TOKENS = 400


@dataclass(frozen=True)
class Run:
    """Tokens in a row that are alike: learnt or only read, control tokens or text."""

    text: str
    learnt: bool
    control: bool


@dataclass(frozen=True)
class Specimen:
    """One example as tokens. `note` is what its answer is compared with, where there is such a thing."""

    label: str
    runs: tuple[Run, ...]
    tokens: int
    learnt: int
    cut: int  # tokens beyond train.max_length
    note: str | None = None


@dataclass(frozen=True)
class SetXray:
    """What one set amounts to. Lengths are in tokens, before anything is cut off, of the `measured` examples."""

    key: str
    description: str
    sides: str
    measured: int
    total: int | None
    lengths: Mapping[str, tuple[int, ...]]
    learnt_share: float | None  # None: the model writes itself what it learns from, or only judges
    warnings: tuple[str, ...]
    good: tuple[str, ...]
    rendered: str | None
    specimens: tuple[Specimen, ...]


@dataclass(frozen=True)
class StageXray:
    """What one stage of a recipe reads."""

    stage: str
    name: str
    template: str
    max_length: int
    sets: tuple[SetXray, ...]


def make_specimen(tokenizer: Any, label: str, whole: Encoded, note: str | None) -> Specimen:
    """Return an example's runs; a long one is shown with its beginning and its end, where turns end."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    rows = list(zip(whole.input_ids, whole.labels_mask, strict=True))
    runs: list[tuple[list[int], bool, bool]] = []
    half = SHOWN_TOKENS // 2
    left_out = max(0, len(rows) - SHOWN_TOKENS)
    for number, (token, mask) in enumerate(rows):
        if left_out and half <= number < half + left_out:
            if number == half:
                runs.append(([], False, False))
            continue
        like = (bool(mask), token in special)
        if runs and runs[-1][0] and runs[-1][1:] == like and not like[1]:
            runs[-1][0].append(token)
        else:
            runs.append(([token], *like))
    texts = tuple(
        Run(tokenizer.decode(ids, clean_up_tokenization_spaces=False), learnt, control)
        if ids
        else Run(f" ... {left_out:,} tokens ... ", False, False)
        for ids, learnt, control in runs
    )
    cut = whole.length - len(whole.input_ids)
    return Specimen(label, texts, len(rows), whole.trained_tokens, cut, note)
