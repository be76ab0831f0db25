"""Experiments are found in folders and read without running them; a broken one does not hide others."""

from pathlib import Path

import pytest

from llm_lab.errors import UserError
from llm_lab.studies.experiment_files import (
    SHIPPED,
    allowed_words,
    command,
    defaults_of,
    find_experiment,
    list_experiments,
    read_experiment,
    read_value,
    read_values,
)

pytestmark = pytest.mark.usefixtures("in_tmp_path")

GOOD = '''"""What it shows.

What to expect.
"""
from typing import Literal
from pydantic import BaseModel, Field

open("was-run", "w")
APP_NAME = "My experiment"
RATES = [1e-3, 1e-2]


class Options(BaseModel):
    """Words."""

    rates: list[float] = Field(RATES, description="learning rates", min_length=1)
    steps: int = Field(10, ge=1, le=100, description="training steps")
    kind: Literal["a", "b"] = "a"
    layers: Literal[1, 2] = 2
    model: str | None = None
    words: "tuple[str, ...]" = ("x",)
    fast: bool = False


def run(options: Options, study) -> None:
    raise AssertionError
'''


def write(name: str, text: str) -> Path:
    file = Path("experiments") / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def experiment_with(line: str):
    """Return the error of an experiment that has one option."""
    text = f'from pydantic import BaseModel, Field\nAPP_NAME = "X"\nclass Options(BaseModel):\n    {line}\n'
    return read_experiment(write("one.py", text + "def run(options, study): ...\n"))


def test_an_experiment_is_read_from_its_file_which_is_not_run():
    found = read_experiment(write("mine.py", GOOD))
    assert (found.name, found.title, found.error) == ("mine", "My experiment", None)
    assert (found.summary, found.about) == ("What it shows.", "What to expect.")
    read = {key.path: (key.kind, key.default, key.allowed(), key.help) for key in found.option_keys()}
    assert read["rates"] == ("list", (1e-3, 1e-2), "a list", "learning rates")
    assert read["steps"] == ("int", 10, "a whole number from 1 to 100", "training steps")
    assert read["kind"][:3] == ("choice", "a", "a, b")
    assert read["model"][:3] == ("text", None, "text, or null")
    model = next(key for key in found.option_keys() if key.path == "model")
    assert allowed_words(model) == "a run, a folder or a name on the Hub, or none"
    assert read_value(found, "model", "none") is read_value(found, "model", "null") is None, (
        "as screens and recipes say"
    )
    assert not Path("was-run").exists()


def test_options_are_parsed_by_their_types():
    mine = read_experiment(write("mine.py", GOOD))
    for name in ("3", "a b"):  # a named model must exist
        Path(name).mkdir()
        Path(name, "config.json").write_text("{}")
    words = ["rates=1e-4,3e-4", "steps=7", "kind=b", "layers=1", "model=3", "words=a, 2", "fast=true"]
    wanted = {"rates": (1e-4, 3e-4), "steps": 7, "kind": "b", "layers": 1, "model": "3", "words": ("a", "2")}
    assert read_values(mine, words) == wanted | {"fast": True}
    assert read_values(mine, ["rates=[1, 2]"])["rates"] == (1, 2)
    values = read_values(mine, ["model=a b", "rates=0.5,2.0"])
    again = command("mine", values, defaults_of(mine))
    assert again == "llm-lab study mine rates=0.5,2.0 'model=a b'"


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("stps=3", "Did you mean steps?"),
        ("steps=0", "from 1 to 100"),
        ("steps=ten", "a whole number"),
        ("rates=", "at least one entry"),
        ("rates=1,x", "rates.1 = x"),
        ("kind=c", "Allowed: a, b."),
        ("fast=1", "true, false"),
        ("steps", "an option has the form name=value"),
        ("steps=[", "invalid YAML"),
    ],
)
def test_an_option_of_the_wrong_type_gets_a_clear_message(word, part):
    mine = read_experiment(write("mine.py", GOOD))
    with pytest.raises(UserError) as error:
        read_values(mine, [word])
    assert part in str(error.value)
    assert len(error.value.problems) == 1


def test_all_wrong_options_are_reported_at_once():
    mine = read_experiment(write("mine.py", GOOD))
    with pytest.raises(UserError) as error:
        read_values(mine, ["stps=3", "steps=0", "nonsense", "kind=c"])
    assert len(error.value.problems) == 4


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("def (", "syntax error in line 1"),
        ("x = '\0'", "null bytes"),
        ("(" * 5000, "too many nested parentheses"),
        (GOOD.replace("def run(", "def walk("), "no function run"),
        (GOOD.replace("def run(options: Options, study)", "def run()"), "must take two arguments"),
        (GOOD.replace("def run(", "async def run("), "not async"),
        (GOOD.replace('APP_NAME = "My experiment"', "APP_NAME = str(1)"), "no APP_NAME"),
        (GOOD.replace("class Options(", "class Choices("), "no class Options"),
    ],
)
def test_a_broken_file_is_listed_with_its_error_and_hides_no_other(text, error):
    write("good.py", GOOD)
    write("broken.py", text)
    found = {one.name: one for one in list_experiments()}
    assert found["good"].error is None
    assert error in found["broken"].error
    with pytest.raises(UserError, match=r"broken\.py"):
        find_experiment("broken")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("a: dict = {}", "a: its type can't be read: dict. Allowed: int, float"),
        ("a: int = compute()", "a: its default can't be read without running the file"),
        ("a: int = Field(default_factory=int)", "a: its default can't be read"),
        ("a: int = Field(3, ge=lowest())", "a: ge can't be read"),
        ("a: int = Field(3, le=2)", "the default of an option is not allowed: a = 3"),
        ("a: int = 'x'", "the default of an option is not allowed: a = x"),
        ("a: str = Field('x', pattern='(')", "options can't be read"),
    ],
)
def test_options_that_cannot_be_read_say_why(line, error):
    assert error in experiment_with(line).error


def test_an_option_without_a_default_is_required():
    one = experiment_with("file: str = Field(description='a text file')")
    assert one.error is None
    with pytest.raises(UserError, match="this key is required"):
        read_values(one, [])
    assert read_values(one, ["file=a.txt"]) == {"file": "a.txt"}


def test_files_that_are_not_experiments_are_not_listed():
    write("helper.py", "VALUE = 3\n")
    write("_private.py", GOOD)
    Path("experiments/folder.py").mkdir()
    names = [one.name for one in list_experiments() if not one.is_shipped]
    assert names == ["folder"]  # as one that can't be read


def test_an_experiment_is_found_by_name_title_or_file_and_a_misspelled_one_is_suggested():
    write("my_own.py", GOOD)
    for name in ("my_own", "my-own", "My experiment", "experiments/my_own.py"):
        assert find_experiment(name).name == "my_own"
    with pytest.raises(UserError, match="Did you mean my_own"):
        find_experiment("my_on")


def test_a_users_experiment_comes_before_a_shipped_one_of_the_same_name():
    shipped = next(SHIPPED.glob("[a-z]*.py"), None)
    if shipped is None:
        pytest.skip("nothing is shipped yet")
    write(shipped.name, GOOD)
    assert find_experiment(shipped.stem).title == "My experiment"


def test_every_shipped_experiment_can_be_read():
    for file in SHIPPED.glob("[a-z]*.py"):
        found = read_experiment(file)
        assert found is not None
        assert found.error is None, found.error
        assert found.summary
        assert found.about
        assert all(key.help for key in found.option_keys())
