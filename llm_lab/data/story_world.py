"""The world of a built-in story: who is in it, where it plays, and how its sentences are drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

from . import story_words as words
from .story_plots import PLOTS, SECTIONS

T = TypeVar("T")
_PRONOUNS = {"he": ("him", "his"), "she": ("her", "her")}
_SOME = 0.6
_HIGHEST = 12


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
    """One story: its words stay the same from the first line to the last, its sentences are drawn.

    H is the hero, F the friend, E an elder; {he} {fhim} {ehis} are their pronouns, {He} {Fhis} with a
    capital.
    """

    def __init__(self, draw: Draw):
        self.draw = draw
        self.words = _world(draw)
        self.paragraphs: list[list[str]] = [[]]

    def plot(self) -> str:
        """Return a whole story after one of the plots."""
        self._tell(self.draw.pick(PLOTS))
        return self._text()

    def sums(self) -> str:
        """Return a whole story of one to three sums, each one written out, and right."""
        one, many, found = self.draw.pick(words.COUNTABLES)
        have = self.draw.number(2, _HIGHEST)
        self.words |= {"many": many, "found": found, "n": _total(have, one, many)}
        self._tell("numbers")
        for _ in range(self.draw.pick((1, 1, 1, 2, 2, 3))):
            takes = have > 3 and self.draw.chance(0.3)
            # One is always left, so that there is something to count in the end.
            change = self.draw.number(1, min(have - 1, _HIGHEST) if takes else _HIGHEST)
            then = have - change if takes else have + change
            self.words |= {"a": have, "b": change, "c": then}
            self.words |= {"n": _total(then, one, many), "nb": _total(change, one, many)}
            self._tell("take" if takes else "add")
            have = then
        self._tell("count")
        return self._text()

    def _text(self) -> str:
        return "\n\n".join(" ".join(lines) for lines in self.paragraphs if lines)

    def _tell(self, section: str) -> None:
        for mark, ways in _sections()[section]:
            if mark == "~":
                self.paragraphs.append([])
            elif mark in ("?", "@?") and not self.draw.chance(_SOME):
                continue
            elif mark.startswith("@"):
                self._tell(self.draw.pick(ways))
            else:
                self.paragraphs[-1].append(self.draw.pick(ways).format(**self.words))


@cache
def _sections() -> dict[str, list[tuple[str, list[str]]]]:
    """Return the steps of every section: a mark, and the ways to say it or the sections to tell."""
    sections: dict[str, list[tuple[str, list[str]]]] = {}
    for line in SECTIONS.strip().splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "==":
            steps = sections.setdefault(rest, [])
        elif mark == "|":
            steps[-1][1].append(rest)
        elif mark in ("-", "?"):
            steps.append((mark, [rest]))
        elif mark == "~":
            steps.append((mark, []))
        elif mark.startswith("@"):
            steps.append(("@?" if mark.startswith("@?") else "@", mark.lstrip("@?").split("|")))
    return sections


def _world(draw: Draw) -> dict[str, Any]:
    hero, friend = _person(draw), _person(draw)
    while friend[0] == hero[0] or friend[1] == hero[1] not in ("boy", "girl"):
        friend = _person(draw)
    elder, ehe = draw.pick(words.ELDERS)
    where, to, spots = draw.pick(words.PLACES)
    trait, ftrait = draw.several(words.TRAITS, 2)
    toy, other_toy = draw.several(words.TOYS, 2)
    color, other_color = draw.several(words.COLORS, 2)
    (try1, reason1), (try2, reason2) = draw.several(words.TRIES, 2)
    fear, moment, truth = draw.pick(words.FEARS)
    gift, other_gift = draw.several(words.GIFTS, 2)
    animal = draw.pick(words.SMALL_ANIMALS)
    found: dict[str, Any] = {
        **_person_words("", "H", *hero),
        **_person_words("f", "F", *friend),
        **_person_words("e", "E", elder, "", ehe),
        "F_the": friend[0] if friend[1] in ("boy", "girl") else f"{friend[0]} the {friend[1]}",
        "a_fkind": _article(friend[1]),
        "a_trait": _article(trait),
        "a_ftrait": _article(ftrait),
        "trait": trait,
        "size": draw.pick(words.SIZES),
        "hobby": draw.pick(words.HOBBIES),
        "home": draw.pick(words.HOMES),
        "thing": f"{color} {toy}",
        "a_thing": _article(f"{color} {toy}"),
        "an_other": _article(f"{other_color} {other_toy}"),
        "a_color": _article(other_color),
        "animal": animal,
        "a_small": _article(f"{draw.pick(('little', 'small', 'tiny'))} {animal}"),
        **dict(zip(("spot1", "spot2", "spot3"), draw.several(spots, 3), strict=True)),
        **dict(zip(("game1", "game2"), draw.several(words.GAMES, 2), strict=True)),
        **dict(zip(("fun", "indoors"), draw.pick(words.INDOOR_FUN), strict=True)),
        **dict(zip(("race", "went"), draw.pick(words.RACES), strict=True)),
        **dict(zip(words.PROJECT_WORDS, draw.pick(words.PROJECTS), strict=True)),
        **{"where": where, "to": to, "toy": toy, "fear": fear, "gift": gift, "other_gift": other_gift},
        **{"try1": try1, "reason1": reason1, "try2": try2, "reason2": reason2},
        "high": draw.pick(words.HIGH_PLACES),
        "broken": draw.pick(words.BREAKABLES),
        "weather": draw.pick(words.WEATHER),
        "time": draw.pick(words.TIMES),
        "good": draw.pick(words.FEEL_GOOD),
        "bad": draw.pick(words.FEEL_BAD),
        "treat": draw.pick(words.TREATS),
    }
    found["a_treat"] = _article(found["treat"])
    found |= {"moment": moment.format(**found), "truth": truth.format(**found)}
    return found | {
        "Home": _capital(found["home"]),
        "Gift": _capital(gift),
        "A_small": _capital(found["a_small"]),
    }


def _person(draw: Draw) -> tuple[str, str, str]:
    """Return (name, kind, "he" or "she")."""
    he = draw.pick(("he", "she"))
    if draw.chance(0.5):
        names, kind = (words.BOYS, "boy") if he == "he" else (words.GIRLS, "girl")
        return draw.pick(names), kind, he
    kind, his_name, her_name = draw.pick(words.ANIMALS)
    return (his_name if he == "he" else her_name), kind, he


def _person_words(prefix: str, letter: str, name: str, kind: str, he: str) -> dict[str, str]:
    him, his = _PRONOUNS[he]
    lower = {f"{prefix}he": he, f"{prefix}him": him, f"{prefix}his": his}
    return {
        letter: name,
        f"{prefix}kind": kind,
        **lower,
        **{_capital(k): _capital(v) for k, v in lower.items()},
    }


def _capital(phrase: str) -> str:
    return phrase[0].upper() + phrase[1:]


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _total(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
