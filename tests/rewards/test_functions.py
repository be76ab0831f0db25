"""Verifiable rewards: the final number and words of an answer, and the other functions of text."""

import doctest
import inspect
import time
from fractions import Fraction

import pytest

from llm_lab.recipe.scoring import REWARDS, RewardTerm
from llm_lab.rewards import answer_parsing, functions
from llm_lab.rewards.answer_parsing import find_number, find_words
from llm_lab.rewards.functions import FUNCTIONS, exact_match, exact_number, format, length, regex, repetition


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = <<3+4=7>>7 apples.\n#### 7", 7),  # GSM8K's own format
        ("#### 1,234", 1234),
        ("#### -12", -12),
        ("#### $1,000.00 dollars", 1000),
        ("####\n5", 5),
        ("It costs $3.50.", Fraction(7, 2)),
        ("It costs $3.", 3),
        ("a loss of -$3.50", Fraction(-7, 2)),
        ("a loss of $-3", -3),
        ("so it is \N{MINUS SIGN}7.", -7),
        ("10-5", 5),  # a subtraction, not a negative number
        ("about 12,345,678 people", 12345678),
        ("0.5", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("1,2,3", 3),
        ("3/4 cup", Fraction(3, 4)),
        ("50%", 50),
        ("7 - 9 = -2", -2),
        ("a = 5\nSo b = 12 apples for 2", 12),  # after the =, not the last
        ("3 + 4 = 7; 7 + 5 = 12", 12),
        ("Step 1: add.\nThe answer is **42**, I am 99% sure.", 42),
        ("Final answer: 8 (of 10)", 8),
        ("The answer is clear: he paid 5", 5),
        (r"so \boxed{\frac{1}{2}} of 8", Fraction(1, 2)),
        (r"\boxed{1{,}234\text{ m}}", 1234),
        (r"\boxed{\$18}", 18),
        (r"\boxed{5", 5),  # cut off: the last number of the text
        ("<answer> 6 </answer> and 7", 6),
        ("x5 and v2", None),
        ("no number", None),
        ("#### none, 5 was wrong", 5),
        ("7 ####", None),  # nothing after the marker
        ("1/0", None),
        ("", None),
    ],
)
def test_the_final_number_of_an_answer_is_found(text, number):
    assert find_number(text) == number


def test_answers_are_compared_as_numbers_and_not_as_text():
    completions = ["#### 1,234.0", "= 0.1", "seven", "12", "the answer is 5.", "10 or 11"]
    answer = ["She has 1,234.\n#### 1234", 0.1, "7", 12, "5", "10"]
    assert exact_number(completions, answer=answer) == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]


def test_a_row_without_an_answer_has_no_reward():
    assert exact_number(["5"], answer=[None]) == [None]
    assert exact_match(["5"], answer=[None]) == [None]


def test_an_endless_number_is_ignored_quickly():
    start = time.perf_counter()
    assert find_number("9" * 20_000) is None
    assert find_number("1" + ",234" * 3_000 + "5") is not False  # any result, but quickly
    assert find_number("= " * 10_000) is None
    assert find_words("<answer>" * 1_000) is not None
    assert time.perf_counter() - start < 2.0


def test_expressions_in_an_answer_are_not_evaluated():
    assert find_number("__import__('os').system('echo 2 > x') + 3") == 3
    assert find_number("2**100000") == 100000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  The  Nile. ", "the nile"),
        ("I think <answer>Paris!</answer> is it", "paris"),
        ("Reasons ...\n#### New York", "new york"),
        (r"so \boxed{x^{2}}", "x^{2}"),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}", "a"),
        ("STRASSE", "strasse"),
    ],
)
def test_the_words_of_an_answer_are_normalized(text, words):
    assert find_words(text) == words


def test_one_of_several_correct_answers_is_enough():
    assert exact_match(["U.S.A.", "usa"], answer=[["USA", "U.S.A"], ["united states"]]) == [1.0, 0.0]


def test_regex_matches_anywhere_and_format_the_whole_answer():
    texts = ["<think>a\nb</think> 4", "well <think>a</think> 4", "4"]
    assert regex(texts, pattern="<think>.*</think>") == [1.0, 1.0, 0.0]
    assert format(texts, pattern="<think>.*</think>.*") == [1.0, 0.0, 0.0]
    assert format(["\n4\n"], pattern="[0-9]") == [1.0]


def test_the_length_reward_falls_linearly_to_zero():
    assert length(["", "ab", "abcd", "abcdef"], length=4) == [1.0, 0.5, 0.0, 0.0]


def test_repetition_is_the_share_of_repeated_ngrams():
    # go go | go go | go go | go go: four bigrams, one of them new.
    assert repetition(["go go go go go"], ngram=2) == [-0.75]
    assert repetition(["all of these words differ", "short", ""]) == [0.0, 0.0, 0.0]
    assert repetition(["!!!!!!!!!!"])[0] < -0.8
    loop = repetition(["the cat sat " * 50])[0]
    assert -1.0 < loop < -0.95


def test_schema_and_functions_have_the_same_rewards_and_keys():
    assert list(FUNCTIONS) == list(REWARDS)
    keys = set(RewardTerm.model_fields) - {"name", "model", "python", "weight"}
    assert {key for known in FUNCTIONS.values() for key in known.keys} == keys
    for name, known in FUNCTIONS.items():
        parameters = inspect.signature(known.function).parameters
        assert set(parameters) == {"completions", *known.keys, *known.columns, "columns"}, name


@pytest.mark.parametrize("module", [answer_parsing, functions])
def test_the_docstring_examples_are_correct(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_gsm8k_answers_are_parsed_with_and_without_their_marker():
    import json
    import re
    from pathlib import Path

    file = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k_train.jsonl"
    if not file.exists():
        pytest.skip("the dataset is not available")
    texts = [json.loads(line)["answer"] for line in file.read_text().splitlines()]
    gold = [text.rpartition("####")[2].strip() for text in texts]
    assert [find_number(text) for text in texts] == [Fraction(number.replace(",", "")) for number in gold]
    # As a model writes it, without calculator annotations and without the marker.
    working = [re.sub(r"<<.*?>>", "", text.rpartition("####")[0]) for text in texts]
    assert sum(exact_number(working, answer=gold)) / len(texts) > 0.98
