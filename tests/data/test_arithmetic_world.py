"""The teaching world is right, the same everywhere, and shows no set what another is tested on."""

import hashlib
import itertools
import json
import re

import pytest

from llm_lab.data import arithmetic_world as world
from llm_lab.data.builtin import BUILTIN, BUILTIN_VERSION, builtin_documents
from llm_lab.data.examples import open_examples
from llm_lab.rewards.functions import exact_number

STEP = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)\.")
GAINS, LOSSES = ("finds", "gets", "buys"), ("loses", "gives", "sells")


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(builtin_documents("sums"))


@pytest.fixture(scope="module")
def examples() -> dict[tuple[str, str], list[dict[str, str]]]:
    return {which: list(world.world_examples(*which)) for which in world.EXAMPLES}


def numbers_of(text: str) -> tuple[int, ...]:
    """Read a story by its words alone, as a pupil would."""
    start = int(re.search(r"has (\d+)", text)[1])
    changes = re.findall(rf"({'|'.join(GAINS + LOSSES)}) (\d+)", text)
    return (start, *(int(number) if verb in GAINS else -int(number) for verb, number in changes))


def test_the_world_never_changes_under_its_version(documents, examples):
    digest = hashlib.sha256(json.dumps([documents, list(examples.items())]).encode()).hexdigest()[:16]
    # Another digest needs another version, or old tokens would be taken for these.
    assert (BUILTIN_VERSION["sums"], digest) == ("1", "c5464227fce6dd75")


def test_the_texts_are_as_many_and_as_large_as_they_say(documents):
    size = sum(len(document.encode()) for document in documents)
    assert BUILTIN["sums"].size == f"{len(documents):,} texts, {size / 1e6:.1f} MB"


def test_every_sum_in_the_texts_follows_the_story_and_is_right(documents):
    for document in documents:
        told = numbers_of(document)
        steps = STEP.findall(document)
        assert [int(b) if sign == "+" else -int(b) for _, sign, b, _ in steps] == list(told[1:]), document
        totals = list(itertools.accumulate(told))
        assert [(int(a), int(c)) for a, _, _, c in steps] == list(itertools.pairwise(totals)), document
        assert int(re.findall(r"\d+", document)[-1]) == totals[-1]


@pytest.mark.parametrize("which", world.EXAMPLES)
def test_every_answer_is_what_the_words_of_its_question_come_to(examples, which):
    for row in examples[which]:
        assert row["answer"] == str(sum(numbers_of(row["prompt"]))), row


@pytest.mark.parametrize("split", ["train", "test"])
def test_completions_score_full_marks_and_rejected_ones_none(examples, split):
    right = examples["conversation", split]
    answers = [row["answer"] for row in right]
    assert exact_number([row["completion"] for row in right], answer=answers) == [1.0] * len(right)
    pairs = examples["preference", split]
    answers = [row["answer"] for row in pairs]
    assert exact_number([row["chosen"] for row in pairs], answer=answers) == [1.0] * len(pairs)
    assert exact_number([row["rejected"] for row in pairs], answer=answers) == [0.0] * len(pairs)


def test_three_in_ten_of_the_homework_hold_a_mistake(examples):
    rows = examples["conversation", "homework"]
    right = exact_number([row["completion"] for row in rows], answer=[row["answer"] for row in rows])
    assert sum(right) / len(right) == pytest.approx(0.7, abs=0.03)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in examples["conversation", "train"]]


def test_a_rejected_working_is_plausible(examples):
    for row in examples["preference", "train"]:
        wrong = STEP.findall(row["rejected"])
        assert wrong, row
        assert row["rejected"].startswith("So "), row
        assert all(a == c for (_, _, _, c), (a, _, _, _) in itertools.pairwise(wrong)), row
        assert re.search(r"The answer is (\d+)\.$", row["rejected"])[1] == wrong[-1][3], row
        assert all(0 <= int(c) <= world._HIGHEST for *_, c in wrong), row
        # Both are of the same make: neither length nor form gives the wrong one away in most pairs.
    same_length = [
        len(STEP.findall(r["chosen"])) == len(STEP.findall(r["rejected"])) for r in examples["preference", "train"]
    ]
    assert sum(same_length) > 0.7 * len(same_length)


def test_no_two_sets_share_a_problem_but_the_kinds_of_one_test(documents, examples):
    of_texts = {numbers_of(document) for document in documents}
    problems = {which: [numbers_of(row["prompt"]) for row in rows] for which, rows in examples.items()}
    for which, these in problems.items():
        assert len(set(these)) == len(these)
        assert not set(these) & of_texts
        for other, those in problems.items():
            homework = {which, other} <= {("conversation", "train"), ("conversation", "homework")}
            if which[1] == other[1] == "test" or homework:
                assert these == those
            elif which != other:
                assert not set(these) & set(those), (which, other)


def test_a_problem_belongs_to_one_bucket_and_a_bucket_to_one_set():
    buckets = [world.TEXTS.buckets, *{chosen.buckets for chosen in world.EXAMPLES.values()}]
    flat = sorted(bucket for some in buckets for bucket in some)
    assert flat == list(range(world._BUCKETS))


def test_the_texts_hold_all_words_of_questions_and_answers_but_never_a_question_before_its_working(documents, examples):
    words = set(re.findall(r"[A-Za-z]+", " ".join(documents)))
    for rows in examples.values():
        for row in rows:
            assert set(re.findall(r"[A-Za-z]+", " ".join(row.values()))) <= words
    assert not any(re.search(r"\?.*=", document, re.DOTALL) for document in documents)


@pytest.mark.parametrize(("kind", "split"), world.EXAMPLES)
def test_a_recipe_opens_the_examples_by_name(kind, split):
    source = open_examples("builtin:sums", kind=kind, split=split)
    assert source.counts.kept == source.counts.read == world.EXAMPLES[kind, split].rows
    example = source.examples[0]
    assert [message["role"] for message in example.prompt] == ["user"]
    if kind == "prompt":
        assert example.answer.isdigit()


def test_a_split_that_there_is_not_is_refused_by_name():
    with pytest.raises(KeyError, match="test, train"):
        world.world_examples("prompt", "validation")
