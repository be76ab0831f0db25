"""The e-mails with subject lines: enough of them, all different, with held-out ones that are not trained on."""

import pytest

from llm_lab.data.examples import open_examples


def rows(split: str, kind: str = "conversation"):
    return open_examples("builtin:email-subjects", kind=kind, split=split).examples


def test_there_are_enough_e_mails_and_no_subject_line_occurs_twice():
    found = [*rows("train"), *rows("test")]
    assert len(found) >= 200
    assert len({example.prompt[-1]["content"] for example in found}) == len(found)
    subjects = [example.answer for example in found]
    assert len(set(subjects)) == len(subjects)
    assert all(3 <= len(subject) <= 60 for subject in subjects)
    assert not [subject for subject in subjects if subject.endswith(".") and not subject.endswith(("a.m.", "p.m."))]
    assert all(subject not in example.prompt[-1]["content"] for subject, example in zip(subjects, found, strict=True))


def test_the_held_out_e_mails_are_the_same_for_training_and_scoring():
    asked = [example.prompt for example in rows("test")]
    assert asked == [example.prompt for example in rows("test", "prompt")]
    assert not {str(prompt) for prompt in asked} & {str(example.prompt) for example in rows("train")}
    assert len(asked) >= 30


@pytest.mark.parametrize(("kind", "split"), [("preference", "train"), ("conversation", "validation")])
def test_what_the_set_does_not_have_is_an_error(kind, split):
    with pytest.raises(ValueError, match="no such split"):
        rows(split, kind)
