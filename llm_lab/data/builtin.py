"""Built-in datasets: stories and arithmetic from fixed seeds; e-mails, support conversations and instructions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from .arithmetic_world import world_documents, world_examples
from .email_subjects import subject_rows
from .sample_sets import instruction_rows, support_rows
from .stories import Draw, Story

_STORIES = 7000
_SEED = 20_240_229
_SHARE_OF_SUMS = 0.2


@dataclass(frozen=True)
class BuiltinCorpus:
    """A built-in corpus: its size in words, and the version that is part of its fingerprint."""

    size: str
    version: str  # increase it whenever the corpus changes


BUILTIN = {
    "stories": BuiltinCorpus("7,000 stories, 3.7 MiB", "1"),  # one in five has sums
    # Both also have examples for SFT, DPO, GRPO and PPO: the same problems, always in the same words or in varied ones.
    "sums": BuiltinCorpus("24,000 documents, 3.2 MiB", "1"),
    "word-problems": BuiltinCorpus("24,000 documents, 3.1 MiB", "1"),
}

ABOUT_BUILTIN = {
    "stories": "short English stories for pretraining, generated on this machine",
    "word-problems": "word problems with checkable answers, for every stage, generated on this machine",
    "sums": "the problems of word-problems, but always in the same words; for every stage",
    "support-chat": "40 conversations of a support desk, of several turns each, for SFT",
    "instruct": "60 short instructions of many kinds with their answers, for SFT",
    "email-subjects": "180 e-mails with their subject lines, for SFT and scoring",
}


# Generated documents are kept (a few megabytes): a run reads its data several times, to check, measure and train.
_documents: dict[str, tuple[str, ...]] = {}


@cache
def _rows(varied: bool, kind: str, split: str) -> tuple[Mapping[str, str], ...]:
    return tuple(world_examples(kind, split, varied=varied))


# {name: function of (kind of example, split) that returns rows}. It raises KeyError, listing the known splits.
BUILTIN_EXAMPLES: dict[str, Callable[[str, str], Iterable[Mapping[str, Any]]]] = {
    "sums": partial(_rows, False),
    "word-problems": partial(_rows, True),
    "email-subjects": subject_rows,
    "support-chat": support_rows,
    "instruct": instruction_rows,
}


def builtin_documents(name: str) -> Iterator[str]:
    """Yield the documents of a built-in corpus, the same on every machine. Raises KeyError for an unknown name."""
    makers: dict[str, Callable[[], Iterator[str]]]
    makers = {"stories": _stories, "sums": world_documents, "word-problems": partial(world_documents, varied=True)}
    make = makers[name]
    return iter(_documents[name]) if name in _documents else _keep(name, make())


def _keep(name: str, documents: Iterator[str]) -> Iterator[str]:
    read = []
    for text in documents:
        read.append(text)
        yield text
    _documents[name] = tuple(read)


def _stories() -> Iterator[str]:
    for number in range(_STORIES):
        # One generator per story, so a change in one story does not affect the others.
        draw = Draw(_SEED + number)
        story = Story(draw)
        yield story.sums() if draw.chance(_SHARE_OF_SUMS) else story.plot()
