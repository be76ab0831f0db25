"""The built-in stories: their words, and the grammar that writes a story from a seed.

The plots are in story_plots.txt. Changing a word changes the training data, its fingerprint and all losses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

GIRLS = (
    "Mia", "Lily", "Anna", "Rosa", "Ella", "Nora", "Ruby", "Zoe", "Ivy", "Clara", "Lucy", "Maya", "Sara",
    "Emma", "Daisy", "Amy", "Nina", "Eva",
)  # fmt: skip
BOYS = (
    "Tom", "Ben", "Max", "Sam", "Leo", "Jack", "Tim", "Noah", "Finn", "Oscar", "Theo", "Luke", "Adam",
    "Hugo", "Ravi", "Omar", "Felix", "Dan",
)  # fmt: skip
# (kind, a male name, a female name)
ANIMALS = (
    ("fox", "Rufus", "Rusty"),
    ("rabbit", "Hopper", "Clover"),
    ("bear", "Bruno", "Honey"),
    ("mouse", "Pip", "Minnie"),
    ("cat", "Whiskers", "Luna"),
    ("dog", "Buddy", "Bella"),
    ("duck", "Quackers", "Puddle"),
    ("frog", "Jumpy", "Lilypad"),
    ("owl", "Hoot", "Olive"),
    ("squirrel", "Nutty", "Hazel"),
    ("hedgehog", "Spike", "Prickle"),
    ("turtle", "Sheldon", "Myrtle"),
    ("goat", "Billy", "Nanny"),
    ("pony", "Chestnut", "Star"),
    ("lamb", "Curly", "Snowy"),
    ("pig", "Truffle", "Rosie"),
    ("otter", "Splash", "River"),
    ("badger", "Digger", "Bramble"),
)  # fmt: skip
TRAITS = (
    "kind", "brave", "clever", "gentle", "cheerful", "curious", "friendly", "quiet", "helpful", "playful",
    "patient", "funny",
)  # fmt: skip
SIZES = (
    "little", "small", "young", "little", "tiny",
)  # fmt: skip
COLORS = (
    "red", "blue", "green", "yellow", "purple", "orange", "white", "pink", "silver", "golden",
)  # fmt: skip
HOBBIES = (
    "sing", "dance", "draw", "read", "climb trees", "tell stories", "look at the stars", "collect stones",
    "play the drum", "bake bread", "make up songs", "plant seeds", "watch the clouds", "jump over puddles",
)  # fmt: skip
FEEL_GOOD = (
    "happy", "very happy", "glad", "proud", "so happy", "full of joy",
)  # fmt: skip
FEEL_BAD = (
    "sad", "very sad", "upset", "worried", "a little sad", "unhappy",
)  # fmt: skip
WEATHER = (
    "sunny", "warm", "bright", "windy", "cool", "quiet", "clear", "fine",
)  # fmt: skip
TIMES = (
    "morning", "day", "afternoon",
)  # fmt: skip
HOMES = (
    "near the river", "at the edge of the forest", "on a green hill", "by the sea", "in a small village",
    "near an old mill", "by a quiet lake", "in a little house with a red door", "at the end of a long road",
    "in a town with many trees",
)  # fmt: skip
# (where one is, where one goes, spots to look in)
PLACES = (
    ("in the garden", "to the garden", ("under the bench", "behind the roses", "by the wall")),
    ("in the park", "to the park", ("under the swing", "behind a bush", "beside the fountain")),
    ("in the forest", "into the forest", ("under a pile of leaves", "behind a tree", "beside a log")),
    ("on the beach", "to the beach", ("under a towel", "behind a big rock", "beside a sand castle")),
    ("on the farm", "to the farm", ("under the cart", "behind the barn", "in the hay")),
    ("in the meadow", "to the meadow", ("in the tall grass", "behind a stone", "by the gate")),
    ("by the river", "to the river", ("under the bridge", "behind a rock", "in the reeds")),
    ("on the hill", "up the hill", ("under a bush", "behind the old windmill", "in the grass")),
    ("in the village", "to the village", ("under a cart", "behind the bakery", "by the well")),
    ("by the pond", "to the pond", ("under a big leaf", "behind the willow", "in the reeds")),
    ("on the playground", "to the playground", ("under the slide", "behind the fence", "in the sand")),
    ("in the orchard", "to the orchard", ("under a ladder", "behind a basket", "beside an old tree")),
)  # fmt: skip
TOYS = (
    "ball", "kite", "drum", "boat", "doll", "book", "hat", "scarf", "bell", "lantern", "whistle", "teddy",
    "bucket", "puzzle", "robot", "train",
)  # fmt: skip
TREATS = (
    "cookie", "pear", "muffin", "peach", "cake", "pie", "bun", "plum", "pancake", "sandwich",
)  # fmt: skip
SMALL_ANIMALS = (
    "bird", "kitten", "puppy", "butterfly", "duckling", "beetle", "snail", "chick", "bunny", "ladybug",
)  # fmt: skip
HIGH_PLACES = (
    "in a tall tree", "on the roof", "on top of a high wall", "on a tall fence", "on a high branch",
)  # fmt: skip
# (what is tried, why it fails)
TRIES = (
    ("jumped as high as possible", "it was not high enough"),
    ("threw a stick at it", "it did not move"),
    ("tried to climb up", "it was too slippery"),
    ("shook and shook", "nothing came down"),
    ("stood on a box", "the box broke"),
    ("called to the wind for help", "the wind only laughed"),
    ("pulled with a long rope", "the rope was too short"),
)  # fmt: skip
GAMES = (
    "played hide and seek", "played tag", "built a tower of stones", "climbed a tree",
    "looked at the clouds", "ran up and down the hill", "jumped over puddles", "sang songs",
    "picked flowers", "told each other jokes", "made a little dam", "danced in a circle",
)  # fmt: skip
# (what is feared, how it comes, what it turns out to be)
FEARS = (
    ("the dark", "the lamp went out", "It was only dark, and the moon was shining through the window"),
    ("thunder", "a storm came and the thunder went boom", "It was only a loud noise, far away in the clouds"),
    ("the deep water", "it was time to learn to swim", "The water was soft, and it held {him} up"),
    ("the big slide", "it was {his} turn on the big slide", "The slide was fast, and it was fun"),
    ("the new school", "the first day of school came", "The teacher was kind, and there were many books"),
    ("loud dogs", "a big dog came running and barked", "The dog only wanted to play, and it wagged its tail"),
    ("the old bridge", "they had to cross the old bridge",
     "The bridge was strong, and it did not even shake"),
)  # fmt: skip
PROJECT_WORDS = ("make", "parts", "step", "trouble", "mending", "result")
PROJECTS = (
    ("a cake", "flour, eggs and sugar", "mixed it all in a big bowl", "forgot the eggs",
     "put the eggs in and mixed again", "The cake was soft and sweet"),
    ("a kite", "paper, string and two sticks", "tied the sticks into a cross", "tore the paper",
     "glued a new piece on top", "The kite flew high above the trees"),
    ("some soup", "carrots, potatoes and water", "cut the carrots into pieces", "put in too much salt",
     "added more water and one more potato", "The soup was warm and tasty"),
    ("a bird house", "wood, nails and paint", "cut the wood into six parts", "made the door too small",
     "made the door bigger with a saw", "Two little birds moved in that very day"),
    ("a snowman", "snow, a carrot and an old hat", "rolled three big balls of snow", "dropped the head",
     "rolled a new head, rounder than before", "The snowman smiled at everyone who came by"),
    ("a boat", "bark, a leaf and a stick", "put the leaf on the stick for a sail",
     "made a hole in the boat", "filled the hole with wax", "The boat floated down the stream like a swan"),
    ("a birthday card", "paper, glue and paint", "folded the paper in two", "spilled the paint",
     "turned the spot into a big flower", "It was the prettiest card of all"),
    ("a tree house", "boards, rope and nails", "carried the boards up the tree",
     "made the ladder too short", "added three more steps to the ladder",
     "From the tree house they could see the whole village"),
)  # fmt: skip
GIFTS = (
    "a warm scarf", "a little bell", "a box of paints", "a picture book", "a pot of honey", "a wooden boat",
    "a bunch of flowers", "a jar of jam", "a paper star", "a new hat",
)  # fmt: skip
ELDERS = (
    ("Grandma", "she"),
    ("Grandpa", "he"),
    ("Mom", "she"),
    ("Dad", "he"),
    ("Aunt May", "she"),
    ("Uncle Joe", "he"),
)  # fmt: skip
BREAKABLES = (
    "blue vase", "tea cup", "big bowl", "flower pot", "glass lamp", "clay jug", "mirror", "plate",
)  # fmt: skip
# (what is done, what it is called)
INDOOR_FUN = (
    ("built a house out of blankets", "the house of blankets"),
    ("put on a play with funny hats", "the play"),
    ("read a book about pirates", "the pirates"),
    ("played hide and seek in the whole house", "hide and seek"),
    ("painted a picture of the sea", "the picture"),
    ("made paper boats and let them float in the bath", "the paper boats"),
    ("baked bread in the shape of a snail", "the bread snail"),
)  # fmt: skip
RACES = (
    ("a race around the lake", "ran"),
    ("a race up the hill", "ran"),
    ("a sack race at the fair", "hopped"),
    ("a race through the forest", "ran"),
    ("a race across the meadow", "ran"),
    ("a race on one leg", "hopped"),
    ("a race from the mill to the bridge", "ran"),
)  # fmt: skip
# (one, many, where they are found)
COUNTABLES = (
    ("apple", "apples", "under the tree"),
    ("shell", "shells", "on the beach"),
    ("nut", "nuts", "in the forest"),
    ("flower", "flowers", "in the meadow"),
    ("stone", "stones", "by the river"),
    ("egg", "eggs", "in the barn"),
    ("berry", "berries", "behind the house"),
    ("leaf", "leaves", "in the park"),
    ("coin", "coins", "in a jar"),
    ("button", "buttons", "in a box"),
    ("marble", "marbles", "in the grass"),
    ("star", "stars", "on the card"),
    ("plum", "plums", "in the garden"),
    ("carrot", "carrots", "on the farm"),
    ("feather", "feathers", "by the pond"),
    ("pencil", "pencils", "in a drawer"),
)  # fmt: skip


T = TypeVar("T")
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
        one, many, found = self.draw.pick(COUNTABLES)
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
    elder, ehe = draw.pick(ELDERS)
    where, to, spots = draw.pick(PLACES)
    trait, ftrait = draw.several(TRAITS, 2)
    toy, other_toy = draw.several(TOYS, 2)
    color, other_color = draw.several(COLORS, 2)
    (try1, reason1), (try2, reason2) = draw.several(TRIES, 2)
    fear, moment, truth = draw.pick(FEARS)
    gift, other_gift = draw.several(GIFTS, 2)
    animal = draw.pick(SMALL_ANIMALS)
    found: dict[str, Any] = {
        **_person_words("", "H", *hero),
        **_person_words("f", "F", *friend),
        **_person_words("e", "E", elder, "", ehe),
        "F_the": friend[0] if friend[1] in ("boy", "girl") else f"{friend[0]} the {friend[1]}",
        "a_fkind": _article(friend[1]),
        "a_trait": _article(trait),
        "a_ftrait": _article(ftrait),
        "trait": trait,
        "size": draw.pick(SIZES),
        "hobby": draw.pick(HOBBIES),
        "home": draw.pick(HOMES),
        "thing": f"{color} {toy}",
        "a_thing": _article(f"{color} {toy}"),
        "an_other": _article(f"{other_color} {other_toy}"),
        "a_color": _article(other_color),
        "animal": animal,
        "a_small": _article(f"{draw.pick(('little', 'small', 'tiny'))} {animal}"),
        **dict(zip(("spot1", "spot2", "spot3"), draw.several(spots, 3), strict=True)),
        **dict(zip(("game1", "game2"), draw.several(GAMES, 2), strict=True)),
        **dict(zip(("fun", "indoors"), draw.pick(INDOOR_FUN), strict=True)),
        **dict(zip(("race", "went"), draw.pick(RACES), strict=True)),
        **dict(zip(PROJECT_WORDS, draw.pick(PROJECTS), strict=True)),
        **{"where": where, "to": to, "toy": toy, "fear": fear, "gift": gift, "other_gift": other_gift},
        **{"try1": try1, "reason1": reason1, "try2": try2, "reason2": reason2},
        "high": draw.pick(HIGH_PLACES),
        "broken": draw.pick(BREAKABLES),
        "weather": draw.pick(WEATHER),
        "time": draw.pick(TIMES),
        "good": draw.pick(FEEL_GOOD),
        "bad": draw.pick(FEEL_BAD),
        "treat": draw.pick(TREATS),
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
        names, kind = (BOYS, "boy") if he == "he" else (GIRLS, "girl")
        return draw.pick(names), kind, he
    kind, his_name, her_name = draw.pick(ANIMALS)
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
