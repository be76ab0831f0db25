"""The world of a built-in story: who is in it, where it plays, and how its sentences are drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from llm_lab.data import story_words as words

T = TypeVar("T")
_PRONOUNS = {"he": ("him", "his"), "she": ("her", "her")}


class Draw:
    """Choices from `random.random` alone, which Python keeps the same from version to version."""

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    def chance(self, share: float) -> bool:
        return self._random() < share

    def number(self, low: int, high: int) -> int:
        return low + int(self._random() * (high - low + 1))

    def pick(self, choices: Sequence[T]) -> T:
        return choices[int(self._random() * len(choices))]

    def several(self, choices: Sequence[T], count: int) -> list[T]:
        left = list(choices)
        return [left.pop(int(self._random() * len(left))) for _ in range(count)]


class Story:
    """Two friends, a place, a thing; and the paragraphs told about them so far.

    Sentences are written with {H} the hero, {he} {him} {his} {kind}, {F} the friend, {fhe} {fhim} {fhis}
    {fkind}, {E} an elder, {ehe} {ehis}, {where} and {to} the place, {thing}, and a capital where a
    sentence begins inside another.
    """

    def __init__(self, draw: Draw):
        self.draw = draw
        self.paragraphs: list[list[str]] = [[]]
        hero, friend = self._person(), self._person()
        while friend[0] == hero[0] or friend[1] == hero[1] not in ("boy", "girl"):
            friend = self._person()
        elder, ehe = draw.pick(words.ELDERS)
        where, to, self.spots = draw.pick(words.PLACES)
        trait, ftrait = draw.several(words.TRAITS, 2)
        toy, other_toy = draw.several(words.TOYS, 2)
        color, other_color = draw.several(words.COLORS, 2)
        self.words: dict[str, Any] = {
            **_person_words("", "H", *hero),
            **_person_words("f", "F", *friend),
            **_person_words("e", "E", elder, "", ehe),
            "trait": trait,
            "a_trait": article(trait),
            "a_ftrait": article(ftrait),
            "size": draw.pick(words.SIZES),
            "home": draw.pick(words.HOMES),
            "where": where,
            "to": to,
            "toy": toy,
            "thing": f"{color} {toy}",
            "a_thing": article(f"{color} {toy}"),
            "other": f"{other_color} {other_toy}",
            "an_other": article(f"{other_color} {other_toy}"),
            "weather": draw.pick(words.WEATHER),
            "time": draw.pick(words.TIMES),
            "good": draw.pick(words.FEEL_GOOD),
            "bad": draw.pick(words.FEEL_BAD),
            "treat": draw.pick(words.TREATS),
        }

    def tell(self, plot: Callable[[Story], None]) -> str:
        """Return the whole text of a plot in this world, its paragraphs apart by a blank line."""
        plot(self)
        return "\n\n".join(" ".join(lines) for lines in self.paragraphs if lines)

    def say(self, *ways: str, **more: Any) -> None:
        """Add a sentence or a few, told in one of several ways."""
        text = self.draw.pick(ways).format(**self.words, **more)
        # The quotation mark of a speech comes before its first letter.
        at = 1 if text[0] == '"' else 0
        self.paragraphs[-1].append(text[:at] + text[at].upper() + text[at + 1 :])

    def maybe(self, share: float, *ways: str, **more: Any) -> None:
        """Say it in a share of the stories only."""
        if self.draw.chance(share):
            self.say(*ways, **more)

    def turn(self) -> None:
        """Begin a paragraph."""
        self.paragraphs.append([])

    def _person(self) -> tuple[str, str, str]:
        he = self.draw.pick(("he", "she"))
        if self.draw.chance(0.5):
            names, kind = (words.BOYS, "boy") if he == "he" else (words.GIRLS, "girl")
            return self.draw.pick(names), kind, he
        kind, *names = self.draw.pick(words.ANIMALS)
        return names[0 if he == "he" else 1], kind, he


def article(phrase: str) -> str:
    """Return a phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def total(number: int, one: str, many: str) -> str:
    """Return "1 apple" or "3 apples"."""
    return f"{number} {one if number == 1 else many}"


def _person_words(prefix: str, letter: str, name: str, kind: str, he: str) -> dict[str, str]:
    him, his = _PRONOUNS[he]
    lower = {f"{prefix}he": he, f"{prefix}him": him, f"{prefix}his": his}
    # "fhe" is the friend's pronoun, "Fhe" the same one at the head of a sentence.
    upper = {key[0].upper() + key[1:]: word.capitalize() for key, word in lower.items()}
    return {letter: name, f"{prefix}kind": kind, **lower, **upper}
