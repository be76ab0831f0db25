"""The arithmetic problems are correct and the same on every machine, and no split contains the test problems."""

import hashlib
import itertools
import json
import operator
import re

import pytest
from support.shown_questions import shape_of

from llm_lab.data import arithmetic_world as world
from llm_lab.data.builtin import BUILTIN, BUILTIN_EXAMPLES, builtin_documents
from llm_lab.data.examples import open_examples
from llm_lab.rewards.functions import exact_number

STEP = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)\.")
GAINS, LOSSES = ("finds", "gets", "buys"), ("loses", "gives", "sells")


DIGESTS = {"sums": "c5464227fce6dd75", "word-problems": "acc8df1a86802bf4"}


@pytest.fixture(scope="module", params=DIGESTS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def documents(name) -> list[str]:
    return list(builtin_documents(name))


@pytest.fixture(scope="module")
def examples(name) -> dict[tuple[str, str], list[dict[str, str]]]:
    return {which: list(BUILTIN_EXAMPLES[name](*which)) for which in world.EXAMPLES}


def numbers_of(text: str) -> tuple[int, ...]:
    """Parse the numbers of a problem from its words."""
    start = int(re.search(r"has (\d+)", text)[1])
    changes = re.findall(rf"({'|'.join(GAINS + LOSSES)}) (\d+)", text)
    return (start, *(int(number) if verb in GAINS else -int(number) for verb, number in changes))


def test_the_problems_do_not_change_without_a_new_version(name, documents, examples):
    digest = hashlib.sha256(json.dumps([documents, list(examples.items())]).encode()).hexdigest()[:16]
    # A change needs a new version, or cached tokens of the old text would be used.
    assert (BUILTIN[name].version, digest) == ("1", DIGESTS[name])


def test_the_number_and_size_of_the_texts_are_as_described(name, documents):
    size = sum(len(document.encode()) for document in documents)
    assert BUILTIN[name].size == f"{len(documents):,} documents, {size / 2**20:.1f} MiB"


def test_every_sum_in_the_texts_follows_the_story_and_is_correct(documents):
    for document in documents:
        numbers = numbers_of(document)
        steps = STEP.findall(document)
        assert [int(b) if sign == "+" else -int(b) for _, sign, b, _ in steps] == list(numbers[1:]), document
        totals = list(itertools.accumulate(numbers))
        assert [(int(a), int(c)) for a, _, _, c in steps] == list(itertools.pairwise(totals)), document
        assert int(re.findall(r"\d+", document)[-1]) == totals[-1]


@pytest.mark.parametrize("which", world.EXAMPLES)
def test_every_answer_is_the_result_of_its_question(examples, which):
    for row in examples[which]:
        assert row["answer"] == str(sum(numbers_of(row["prompt"]))), row


@pytest.mark.parametrize("split", ["train", "test"])
def test_completions_are_correct_and_rejected_ones_wrong(examples, split):
    right = examples["conversation", split]
    answers = [row["answer"] for row in right]
    assert exact_number([row["completion"] for row in right], answer=answers) == [1.0] * len(right)
    pairs = examples["preference", split]
    answers = [row["answer"] for row in pairs]
    assert exact_number([row["chosen"] for row in pairs], answer=answers) == [1.0] * len(pairs)
    assert exact_number([row["rejected"] for row in pairs], answer=answers) == [0.0] * len(pairs)


def test_30_percent_of_the_homework_solutions_contain_a_mistake(examples):
    rows = examples["conversation", "homework"]
    right = exact_number([row["completion"] for row in rows], answer=[row["answer"] for row in rows])
    assert sum(right) / len(right) == pytest.approx(0.7, abs=0.03)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in examples["conversation", "train"]]


def test_rejected_solutions_are_plausible(examples):
    for row in examples["preference", "train"]:
        wrong = STEP.findall(row["rejected"])
        assert wrong, row
        assert row["rejected"].startswith("So "), row
        assert all(a == c for (_, _, _, c), (a, _, _, _) in itertools.pairwise(wrong)), row
        assert re.search(r"The answer is (\d+)\.$", row["rejected"])[1] == wrong[-1][3], row
        assert all(0 <= int(c) <= world._HIGHEST for *_, c in wrong), row
        # In most pairs, length does not show which solution is wrong.
    same_length = [
        len(STEP.findall(r["chosen"])) == len(STEP.findall(r["rejected"])) for r in examples["preference", "train"]
    ]
    assert sum(same_length) > 0.7 * len(same_length)


def test_no_two_datasets_share_a_problem_except_the_test_splits(documents, examples):
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


def test_varied_wording_changes_no_problem_and_no_solution():
    plain, varied = (list(world.world_examples("conversation", "train", varied=varied)) for varied in (False, True))
    for one, other in zip(plain, varied, strict=True):
        assert (numbers_of(one["prompt"]), one["completion"]) == (numbers_of(other["prompt"]), other["completion"])
    assert len({shape_of(row["prompt"]) for row in plain}) == 3  # one per number of changes
    assert len({shape_of(row["prompt"]) for row in varied}) > 200


def test_every_bucket_belongs_to_one_dataset():
    buckets = [world.TEXTS.buckets, *{chosen.buckets for chosen in world.EXAMPLES.values()}]
    flat = sorted(bucket for some in buckets for bucket in some)
    assert flat == list(range(world._BUCKETS))


def test_the_texts_contain_all_words_of_the_examples_but_no_question_before_a_solution(documents, examples):
    words = set(re.findall(r"[A-Za-z]+", " ".join(documents)))
    for rows in examples.values():
        for row in rows:
            assert set(re.findall(r"[A-Za-z]+", " ".join(row.values()))) <= words
    assert not any(re.search(r"\?.*=", document, re.DOTALL) for document in documents)


@pytest.mark.parametrize(("kind", "split"), world.EXAMPLES)
def test_the_examples_are_opened_by_name(kind, split):
    source = open_examples("builtin:sums", kind=kind, split=split)
    assert source.counts.kept == source.counts.read == world.EXAMPLES[kind, split].rows
    example = source.examples[0]
    assert [message["role"] for message in example.prompt] == ["user"]
    if kind == "prompt":
        assert example.answer.isdigit()


def test_an_unknown_split_is_a_key_error_with_the_known_splits():
    with pytest.raises(KeyError, match="test, train"):
        world.world_examples("prompt", "validation")


def test_built_in_data_is_generated_once(name, documents):
    assert all(map(operator.is_, documents, builtin_documents(name)))
    first, again = (BUILTIN_EXAMPLES[name]("prompt", "test") for _ in range(2))
    assert all(map(operator.is_, first, again))
