"""Stories in which somebody counts things, with the facts at two points of each: the labels of a probe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llm_lab.data.arithmetic_world import PEOPLE, THINGS, world_examples

_STEP = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)\.")
_NAMES = [name for name, _ in PEOPLE]


@dataclass(frozen=True)
class CountedStory:
    """A story and its steps, up to the `=` of the last one.

    story: "Tom has 5 apples. First he finds 3 more. Then he loses 2." steps: "So 5 + 3 = 8. 8 - 2 =". labels: whole
    numbers, by the names in `LABELS`.
    """

    story: str
    steps: str
    labels: dict[str, int]

    @property
    def text(self) -> str:
        """The whole text, as in the pretraining texts of builtin:sums."""
        return f"{self.story}\n{self.steps}"

    @property
    def kind(self) -> tuple[int, int]:
        """Who counts what: a control task gives each of these kinds a random label."""
        return self.labels["person"], self.labels["thing"]


# {label: its meaning}. All hold at both points; only the last one has to be computed.
LABELS = {
    "person": "who counts",
    "thing": "what is counted",
    "start": "the number at the start",
    "last change": "whether things are added or taken at the end",
    "changes": "how often the number changes",
    "answer": "the number at the end",
}


def counted_stories(split: str) -> Iterator[CountedStory]:
    """Yield the stories of a split, train or test. The splits share no problem, and neither do pretraining texts."""
    for row in world_examples("conversation", split):
        story = row["prompt"].rpartition(" How many")[0]
        steps = _STEP.findall(row["completion"])
        name, _, start, thing = story.partition(".")[0].split(" ")
        shown = row["completion"].rpartition(" The answer is")[0].rpartition(" ")[0]  # cut before the last result
        labels = {
            "person": _NAMES.index(name),
            "thing": THINGS.index(thing),
            "start": int(start),
            "last change": int(steps[-1][1] == "+"),
            "changes": len(steps),
            "answer": int(steps[-1][3]),
        }
        yield CountedStory(story, shown, labels)
