"""The built-in stories are the same everywhere, varied, clean, and right in their sums."""

import hashlib
import re

import pytest

from llm_lab.data.builtin import BUILTIN, BUILTIN_VERSION, builtin_documents
from llm_lab.data.stories import PLOTS, Draw, Story


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return list(builtin_documents("stories"))


def test_the_stories_never_change_under_their_version(stories):
    digest = hashlib.sha256("\0".join(stories).encode()).hexdigest()[:16]
    # Another digest needs another version, or old tokens would be taken for these.
    assert (BUILTIN_VERSION["stories"], digest) == ("1", "09a0662658da1113")


def test_the_stories_are_as_many_and_as_large_as_they_say(stories):
    size = sum(len(story.encode()) for story in stories)
    assert BUILTIN["stories"].size == f"{len(stories):,} stories, {size / 1e6:.1f} MB"


def test_no_story_is_told_twice_and_all_are_short(stories):
    assert len(set(stories)) == len(stories)
    lengths = [len(story.split()) for story in stories]
    assert min(lengths) >= 45
    assert max(lengths) <= 200


def test_every_sentence_is_written_cleanly(stories):
    for story in stories:
        assert story.isascii()
        assert not re.search(r"[{}|~@_]|  | [.,!?]|\.\.|\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", story), story
        assert story.count('"') % 2 == 0, story
        for sentence in re.split(r"(?<=[.!?]) +|\n\n", story.replace('"', "")):
            assert re.match(r"[A-Z0-9]", sentence) or re.search(rf'[!?]" {re.escape(sentence)}', story), story
            assert sentence[-1] in ".!?", story


def test_a_fifth_of_the_stories_hold_sums_and_every_sum_is_right(stories):
    with_sums = 0
    for story in stories:
        sums = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", story)
        with_sums += bool(sums)
        result = None
        for a, sign, b, c in sums:
            assert int(a) + (int(b) if sign == "+" else -int(b)) == int(c), story
            assert result is None or result == a, story
            result = c
        if sums:
            assert re.findall(r"\d+", story)[-1] == result, story
    assert 0.18 < with_sums / len(stories) < 0.22


@pytest.mark.parametrize("plot", PLOTS)
def test_every_plot_can_be_told_with_any_words(plot):
    for seed in range(200):
        story = Story(Draw(seed))
        story._tell(plot)
        assert story.words["H"] in story._text()


def test_an_unknown_corpus_is_a_key_error():
    with pytest.raises(KeyError):
        builtin_documents("tales")
