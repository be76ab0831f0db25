"""Recipes as text: numbers as people write them, overrides with the same types, and YAML that can be read back."""

import math

import pytest
from conftest import tiny_recipe, write_text
from hypothesis import given
from hypothesis import strategies as st

from llm_lab.errors import UserError
from llm_lab.recipe.files import apply_overrides, format_value, parse_yaml, read_recipe_file, to_yaml
from llm_lab.recipe.pretrain import PretrainRecipe
from llm_lab.recipe.resolve import resolve


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        ("1_000", 1000),
        (".5", 0.5),
        ("5.", 5.0),
        ("007", 7),
        (".inf", math.inf),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("off", "off"),
        ("Yes", "Yes"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'3e-4'", "3e-4"),
        ("1e", "1e"),
        ("[0.9, 0.95]", [0.9, 0.95]),
    ],
)
def test_values_are_read_as_yaml_1_2(text, value):
    found = parse_yaml(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_a_duplicate_key_is_refused_with_its_line():
    with pytest.raises(UserError, match=r"recipe, line 3, column 1.*duplicate key 'seed'"):
        parse_yaml("seed: 1\nname: a\nseed: 2\n")


def test_invalid_yaml_is_refused_with_its_position():
    with pytest.raises(UserError, match=r"x\.yaml, line 2.*invalid YAML"):
        parse_yaml("a: 1\n\tb: 2\n", "x.yaml")


def test_a_change_to_a_recipe_that_was_read_does_not_reach_the_next_reader():
    text = "data: [{path: a.txt}]"
    parse_yaml(text)["data"][0]["path"] = "b.txt"
    assert parse_yaml(text) == {"data": [{"path": "a.txt"}]}


def test_a_missing_empty_or_binary_recipe_file_is_refused(in_tmp_path):
    (in_tmp_path / "shakespeare.yaml").write_text("stage: pretrain\n")
    with pytest.raises(UserError, match=r"Did you mean shakespeare\.yaml\?"):
        read_recipe_file(in_tmp_path / "shakespear.yaml")
    for content in (b"", b"- a\n- b\n", b"text"):
        (in_tmp_path / "odd.yaml").write_bytes(content)
        with pytest.raises(UserError, match="a recipe is a mapping"):
            read_recipe_file(in_tmp_path / "odd.yaml")
    (in_tmp_path / "odd.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_recipe_file(in_tmp_path / "odd.yaml")
    (in_tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"contains no recipe\.yaml"):
        read_recipe_file(in_tmp_path / "folder")


def overridden(raw: dict, *overrides: str) -> dict:
    return apply_overrides(raw, overrides)[0]


def test_overrides_are_typed_as_in_a_file():
    result, touched = apply_overrides({}, ["train.max_steps=500", "optimizer.learning_rate=3e-4", "name=no"])
    assert result == {"train": {"max_steps": 500}, "optimizer": {"learning_rate": 3e-4}, "name": "no"}
    assert touched == {"train.max_steps", "optimizer.learning_rate", "name"}
    assert overridden({}, "optimizer.betas=[0.8, 0.9]") == {"optimizer": {"betas": [0.8, 0.9]}}
    assert overridden({}, "samples.prompts=[a=b]") == {"samples": {"prompts": ["a=b"]}}


def test_overrides_can_set_keys_of_list_items():
    raw = {"data": [{"path": "a.txt", "weight": 2.0}]}
    assert overridden(raw, "data.0.path=b.txt") == {"data": [{"path": "b.txt", "weight": 2.0}]}
    assert overridden(raw, "data.1.path=b.txt") == {"data": [{"path": "a.txt", "weight": 2.0}, {"path": "b.txt"}]}
    assert overridden({}, "data.0.path=b.txt") == {"data": [{"path": "b.txt"}]}
    assert raw == {"data": [{"path": "a.txt", "weight": 2.0}]}


def test_an_override_that_names_no_entry_of_a_list_says_which_numbers_there_are():
    raw = {"data": [{"path": "a.txt"}], "stages": [{"stage": "sft"}, {"stage": "dpo"}], "optimizer": {"betas": [1, 2]}}

    def refused(word: str) -> str:
        with pytest.raises(UserError) as error:
            overridden(raw, word)
        return str(error.value)

    assert refused("data.path=x.txt") == (
        "data.path: data is a list: name an entry by its number, as in data.0.path=x.txt. "
        "It has 1 entry (0); 1 adds another."
    )
    assert refused("data.2.path=b.txt").endswith("and it has no entry 2. It has 1 entry (0); 1 adds another.")
    assert refused("stages.train.max_steps=4").endswith("as in stages.0.train.max_steps=4. It has 2 entries (0 to 1).")
    assert refused("optimizer.betas.first=0.9").endswith("as in optimizer.betas.0=0.9. It has 2 entries (0 to 1).")
    raw["data"] = []
    assert "data.0.path='x y.txt'. It has no entries; 0 adds one." in refused("data.path=x y.txt")


def test_an_override_with_null_removes_a_key_or_a_list_item():
    assert overridden({"train": {"max_steps": 3, "compile": True}}, "train.max_steps=null") == {
        "train": {"compile": True}
    }
    assert overridden({"data": [{"path": "a"}, {"path": "b"}]}, "data.0=null") == {"data": [{"path": "b"}]}
    assert overridden({}, "train.max_steps=null") == {"train": {}}


def test_invalid_overrides_are_reported_together():
    with pytest.raises(UserError) as caught:
        apply_overrides({}, ["--fast", "=3", "seed=1", "a=[1"])
    assert [problem.key for problem in caught.value.problems][:2] == ["--fast", "=3"]
    assert len(caught.value.problems) == 3


def test_an_override_replaces_a_shorthand():
    assert overridden({"tokenizer": "bytes"}, "tokenizer.bpe=512") == {"tokenizer": {"bpe": 512}}


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.sampled_from(
        [
            "null",
            "3e-4",
            "no",
            "1:30",
            "# a",
            "a: b",
            "- a",
            "[x]",
            "...",
            "---",
            "a\nb",
            "~",
            "builtin:stories",
            "'",
            '"',
        ]
    ),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=4))


@given(VALUES)
def test_a_formatted_value_reads_back_as_the_same_value(value):
    found = parse_yaml(f"key: {format_value(value)} # remark")["key"]
    assert found == value
    assert type(found) is type(value)


def test_infinity_and_nan_read_back():
    assert math.isnan(parse_yaml(format_value(math.nan)))


@given(
    learning_rate=st.floats(1e-12, 10.0, exclude_min=True),
    prompts=st.lists(st.text(), min_size=1, max_size=3),
    weight=st.floats(0.0, 1e300, exclude_min=True),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_written_recipe_reads_back_as_the_same_values(learning_rate, prompts, weight, seed):
    values = tiny_recipe(**{"optimizer.learning_rate": learning_rate, "samples.prompts": prompts, "seed": seed})
    values["data"][0]["weight"] = weight
    text = to_yaml(values, PretrainRecipe, lambda path, help_text: help_text, header=("one", "two"))
    assert text.startswith("# one\n# two\n")
    assert parse_yaml(text) == values


def test_a_written_pipeline_reads_back(in_tmp_path):
    values = {"name": "both", "stages": [tiny_recipe(), tiny_recipe(name="second")]}
    assert parse_yaml(to_yaml(values, PretrainRecipe, lambda path, help_text: None)) == values


def test_a_resolved_recipe_resolves_to_itself(in_tmp_path):
    raw = tiny_recipe(write_text("text.txt"), **{"optimizer": {"name": "muon", "learning_rate": 0.1 + 0.2}})
    first = resolve(raw)
    again = resolve(parse_yaml(first.to_yaml()))
    assert again.values == first.values
    assert again.to_yaml() != first.to_yaml()  # what was derived is now given
    assert not [key for key, origin in again.origins.items() if origin.kind == "derived"]
