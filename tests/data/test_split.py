"""Training and validation are disjoint and stable, and split where nanoGPT splits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_lab.data.split import split_documents
from llm_lab.errors import UserError

TEXTS = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=30)
FRACTIONS = st.floats(0.01, 0.9)


def split(texts, fraction=0.1, take="end"):
    return split_documents(lambda: iter(texts), fraction=fraction, take=take)


def test_one_document_is_cut_at_exactly_90_percent():
    text = "".join(chr(97 + i % 26) for i in range(1_115_394))
    train, validation = split([text])
    cut = int(0.9 * len(text))
    assert list(train()) == [text[:cut]]
    assert list(validation()) == [text[cut:]]
    assert (train.characters, validation.characters) == (1_003_854, 111_540)


def test_several_documents_are_not_cut():
    texts = [f"document number {i}" for i in range(10)]
    train, validation = split(texts, 0.2)
    assert list(train()) == texts[:8]
    assert list(validation()) == texts[8:]
    assert (train.documents, validation.documents) == (8, 2)


def test_a_long_last_document_is_cut_at_the_boundary():
    train, validation = split(["ab", "x" * 98], 0.1)
    assert list(train()) == ["ab", "x" * 88]
    assert list(validation()) == ["x" * 10]


def test_fraction_0_keeps_everything_for_training():
    for take in ("end", "random"):
        train, validation = split(["one", "two"], 0.0, take)
        assert list(train()) == ["one", "two"]
        assert list(validation()) == []


def test_a_duplicate_document_is_kept_in_training_only():
    texts = ["again", "beta1", "gamma", "delta", "again", "final"]
    train, validation = split(texts, 0.34)
    assert list(train()) == texts[:4]
    assert list(validation()) == ["final"]
    assert validation.duplicates == 1


@settings(deadline=None)
@given(TEXTS, FRACTIONS)
def test_validation_at_the_end_is_disjoint_from_training(texts, fraction):
    train, validation = split(texts, fraction)
    first, held_out = list(train()), list(validation())
    if "".join(first) + "".join(held_out) == "".join(texts) and len(first) + len(held_out) > len(texts):
        return  # the last document was split in two
    assert not set(first) & set(held_out)
    assert len(first) + len(held_out) + validation.duplicates == len(texts)
    assert first == texts[: len(first)]


@settings(deadline=None)
@given(TEXTS, FRACTIONS)
def test_a_random_validation_split_is_disjoint_and_complete(texts, fraction):
    train, validation = split(texts, fraction, "random")
    assert not set(train()) & set(validation())
    assert sorted([*train(), *validation()]) == sorted(texts)


@settings(deadline=None)
@given(TEXTS, TEXTS, FRACTIONS, st.randoms())
def test_a_random_split_does_not_depend_on_order_or_additions(texts, more, fraction, shuffler):
    held_out = set(split(texts, fraction, "random")[1]())
    grown = texts + more
    shuffler.shuffle(grown)
    assert set(split(grown, fraction, "random")[1]()) & set(texts) == held_out


@settings(deadline=None)
@given(TEXTS, FRACTIONS, st.sampled_from(["end", "random"]))
def test_both_sides_read_the_same_every_time(texts, fraction, take):
    train, validation = split(texts, fraction, take)
    assert list(train()) == list(train())
    assert list(validation()) == list(validation())
    assert train.characters == sum(map(len, train()))
    assert validation.documents == len(list(validation()))


def test_a_random_split_holds_out_about_the_fraction():
    _, validation = split([f"document {i}" for i in range(5000)], 0.2, "random")
    assert abs(validation.documents - 1000) < 120


def test_a_single_document_cannot_be_split_at_random():
    with pytest.raises(UserError, match=r"validation\.from = random: There is only one document.*from: end"):
        split(["only one"], take="random")


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(UserError, match=r"validation\.fraction = .* Out of range"):
        split(["one", "two"], fraction)


def test_an_unknown_way_to_split_gets_a_suggestion():
    with pytest.raises(UserError, match=r"Allowed: end, random\. Did you mean random\?"):
        split(["one", "two"], take="ramdom")
