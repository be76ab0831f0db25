"""The built-in stories: a grammar that writes a story from a seed.

The plots are in story_plots.txt, the words in story_words.json. Changing a word changes the training data, its
fingerprint and all losses.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PROJECT_WORDS = ("make", "parts", "step", "trouble", "mending", "result")
PLOTS = (
    "lost_thing",
    "out_of_reach",
    "sharing",
    "rainy_day",
    "small_animal",
    "being_brave",
    "making_a_thing",
    "a_present",
    "telling_the_truth",
    "a_race",
    "making_friends",
)
_PLOT_FILE = Path(__file__).with_name("story_plots.txt")
_WORD_FILE = Path(__file__).with_name("story_words.json")
_PRONOUNS = {"he": ("him", "his"), "she": ("her", "her")}
_SOME = 0.6
_HIGHEST = 12


class Draw:
    """Random choices based on `random.random` alone, which is stable across Python versions."""

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
    """One story: its words are fixed at the start, its sentences are drawn one by one.

    H is the hero, F the friend, E an elder; {he}, {fhim} and {ehis} are their pronouns, {He} and {Fhis} the
    capitalized forms.
    """

    def __init__(self, draw: Draw):
        self.draw = draw
        self.words = _world(draw)
        self.paragraphs: list[list[str]] = [[]]

    def plot(self) -> str:
        """Return a complete story that follows one of the plots."""
        self._write(self.draw.pick(PLOTS))
        return self._text()

    def sums(self) -> str:
        """Return a complete story with one to three sums, each written out and correct."""
        one, many, found = self.draw.pick(_words()["countables"])
        have = self.draw.number(2, _HIGHEST)
        self.words |= {"many": many, "found": found, "n": _total(have, one, many)}
        self._write("numbers")
        for _ in range(self.draw.pick((1, 1, 1, 2, 2, 3))):
            takes = have > 3 and self.draw.chance(0.3)
            # At least one is left, so there is something to count at the end.
            change = self.draw.number(1, min(have - 1, _HIGHEST) if takes else _HIGHEST)
            then = have - change if takes else have + change
            self.words |= {"a": have, "b": change, "c": then}
            self.words |= {"n": _total(then, one, many), "nb": _total(change, one, many)}
            self._write("take" if takes else "add")
            have = then
        self._write("count")
        return self._text()

    def _text(self) -> str:
        return "\n\n".join(" ".join(lines) for lines in self.paragraphs if lines)

    def _write(self, section: str) -> None:
        for mark, ways in _sections()[section]:
            if mark == "~":
                self.paragraphs.append([])
            elif mark in ("?", "@?") and not self.draw.chance(_SOME):
                continue
            elif mark.startswith("@"):
                self._write(self.draw.pick(ways))
            else:
                self.paragraphs[-1].append(self.draw.pick(ways).format(**self.words))


@cache
def _words() -> dict[str, Any]:
    """Return the lists that the words of a story are drawn from."""
    words: dict[str, Any] = json.loads(_WORD_FILE.read_text(encoding="utf-8"))
    return words


@cache
def _sections() -> dict[str, list[tuple[str, list[str]]]]:
    """Return the steps of every section: a mark, and the alternative sentences or sections."""
    sections: dict[str, list[tuple[str, list[str]]]] = {}
    for line in _PLOT_FILE.read_text(encoding="utf-8").splitlines():
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
    elder, ehe = draw.pick(_words()["elders"])
    where, to, spots = draw.pick(_words()["places"])
    trait, ftrait = draw.several(_words()["traits"], 2)
    toy, other_toy = draw.several(_words()["toys"], 2)
    color, other_color = draw.several(_words()["colors"], 2)
    (try1, reason1), (try2, reason2) = draw.several(_words()["tries"], 2)
    fear, moment, truth = draw.pick(_words()["fears"])
    gift, other_gift = draw.several(_words()["gifts"], 2)
    animal = draw.pick(_words()["small_animals"])
    found: dict[str, Any] = {
        **_person_words("", "H", *hero),
        **_person_words("f", "F", *friend),
        **_person_words("e", "E", elder, "", ehe),
        "F_the": friend[0] if friend[1] in ("boy", "girl") else f"{friend[0]} the {friend[1]}",
        "a_fkind": _article(friend[1]),
        "a_trait": _article(trait),
        "a_ftrait": _article(ftrait),
        "trait": trait,
        "size": draw.pick(_words()["sizes"]),
        "hobby": draw.pick(_words()["hobbies"]),
        "home": draw.pick(_words()["homes"]),
        "thing": f"{color} {toy}",
        "a_thing": _article(f"{color} {toy}"),
        "an_other": _article(f"{other_color} {other_toy}"),
        "a_color": _article(other_color),
        "animal": animal,
        "a_small": _article(f"{draw.pick(('little', 'small', 'tiny'))} {animal}"),
        **dict(zip(("spot1", "spot2", "spot3"), draw.several(spots, 3), strict=True)),
        **dict(zip(("game1", "game2"), draw.several(_words()["games"], 2), strict=True)),
        **dict(zip(("fun", "indoors"), draw.pick(_words()["indoor_fun"]), strict=True)),
        **dict(zip(("race", "went"), draw.pick(_words()["races"]), strict=True)),
        **dict(zip(PROJECT_WORDS, draw.pick(_words()["projects"]), strict=True)),
        **{"where": where, "to": to, "toy": toy, "fear": fear, "gift": gift, "other_gift": other_gift},
        **{"try1": try1, "reason1": reason1, "try2": try2, "reason2": reason2},
        "high": draw.pick(_words()["high_places"]),
        "broken": draw.pick(_words()["breakables"]),
        "weather": draw.pick(_words()["weather"]),
        "time": draw.pick(_words()["times"]),
        "good": draw.pick(_words()["feel_good"]),
        "bad": draw.pick(_words()["feel_bad"]),
        "treat": draw.pick(_words()["treats"]),
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
        names, kind = (_words()["boys"], "boy") if he == "he" else (_words()["girls"], "girl")
        return draw.pick(names), kind, he
    kind, his_name, her_name = draw.pick(_words()["animals"])
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
