"""The form of a run has one field for every recipe key, each in one tab."""

from collections import Counter

import pytest

from llm_lab.recipe.fields import leaf_keys
from llm_lab.recipe.registry import STAGES
from llm_lab.web.form_fields import TABS, describe_form


def fields_shown(form):
    fields = [*form["placed"], *(f for tab in form["tabs"] for section in tab["sections"] for f in section["fields"])]
    return fields, [tab["name"] for tab in form["tabs"]]


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_of_a_stage_is_one_field_in_one_tab(stage):
    fields, tabs = fields_shown(describe_form(stage))
    assert tabs == [tab for tab in TABS if tab in tabs]
    shown = Counter((field["path"], field["of"]) for field in fields)
    assert set(shown.values()) == {1}
    # The optimizers share the key that names them; every other key of each is a field of its own.
    expected = Counter(key.path for key, _ in leaf_keys(STAGES[stage].recipe))
    expected |= {"optimizer.name": 1} if "optimizer.name" in expected else {}
    expected["optimizer.name"] = min(1, expected["optimizer.name"])
    assert Counter(field["path"] for field in fields) == +expected


@pytest.mark.parametrize("stage", STAGES)
def test_no_two_fields_of_a_form_have_the_same_label(stage):
    fields, _ = fields_shown(describe_form(stage))
    kinds = {field["of"] for field in fields if field["section"] == "optimizer"} - {None}
    for kind in kinds or {None}:
        labels = [
            (field["label"], field["path"].rpartition(".N.")[0])  # the entry of a list has its number next to it
            for field in fields
            if field["section"] != "optimizer" or field["of"] in (kind, None)
        ]
        assert [label for label, many in Counter(labels).items() if many > 1] == []
    assert all(field["label"] and field["help"] for field in fields)
