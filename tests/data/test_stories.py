"""The built-in stories are the same on every machine, varied, clean, and correct in their sums."""

import hashlib
import re

import pytest

from llm_lab.data.builtin import BUILTIN, builtin_documents
from llm_lab.data.stories import PLOTS, Draw, Story


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return list(builtin_documents("stories"))


def test_the_stories_do_not_change_without_a_new_version(stories):
    digest = hashlib.sha256("\0".join(stories).encode()).hexdigest()[:16]
    # A change needs a new version, or cached tokens of the old text would be used.
    assert (BUILTIN["stories"].version, digest) == ("1", "09a0662658da1113")


def test_the_number_and_size_of_the_stories_are_as_described(stories):
    size = sum(len(story.encode()) for story in stories)
    assert BUILTIN["stories"].size == f"{len(stories):,} stories, {size / 2**20:.1f} MiB"


def test_every_story_is_unique_and_short(stories):
    assert len(set(stories)) == len(stories)
    lengths = [len(story.split()) for story in stories]
    assert min(lengths) >= 45
    assert max(lengths) <= 200


def test_every_sentence_is_clean_english(stories):
    for story in stories:
        assert story.isascii()
        assert not re.search(r"[{}|~@_]|  | [.,!?]|\.\.|\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", story), story
        assert story.count('"') % 2 == 0, story
        for sentence in re.split(r"(?<=[.!?]) +|\n\n", story.replace('"', "")):
            assert re.match(r"[A-Z0-9]", sentence) or re.search(rf'[!?]" {re.escape(sentence)}', story), story
            assert sentence[-1] in ".!?", story


def test_a_fifth_of_the_stories_contain_sums_and_every_sum_is_correct(stories):
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
def test_every_plot_works_with_any_words(plot):
    for seed in range(200):
        story = Story(Draw(seed))
        story._write(plot)
        assert story.words["H"] in story._text()


# SHA-256 of the text of every plot with seeds 0 to 49, recorded before the plots moved to story_plots.txt.
PLOT_DIGEST = "934c64c08d4c1aeeda4c22ab8322f0ee9796f187a4fd09348cc3d9c14800e4c1"


def test_every_plot_writes_the_same_text_for_a_seed_as_before():
    digest = hashlib.sha256()
    for plot in PLOTS:
        for seed in range(50):
            story = Story(Draw(seed))
            story._write(plot)
            digest.update(f"{story._text()}\0".encode())
    for seed in range(50):
        digest.update(f"{Story(Draw(seed)).sums()}\0".encode())
    assert digest.hexdigest() == PLOT_DIGEST


def test_an_unknown_corpus_is_a_key_error():
    with pytest.raises(KeyError):
        builtin_documents("tales")
