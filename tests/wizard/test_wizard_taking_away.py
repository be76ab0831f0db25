"""The wizard's Evaluate, Export and Checkpoints: figures, comparisons, files, and a line made again."""

import shutil
from pathlib import Path

import pytest
from support.wizard_keys import Key, answer, pick
from support.wizard_lab import LEAVE, MODEL, RUN, USUAL, base, lab, results, seen  # noqa: F401 - fixtures

from llm_lab.recipe.files import read_recipe_file
from llm_lab.wizard.comparing import Comparison

EVALUATE, EXPORT = pick("Evaluate "), pick("Export ")
MEASURE = (*EVALUATE, *pick("Measure a model"), *MODEL)


def test_a_run_is_measured_on_what_it_measured_itself_on(lab):  # noqa: F811
    screens = lab(
        *MEASURE, *pick("what its own run"), *USUAL, *answer("again"), *RUN, Key.ENTER, *LEAVE,
    )  # fmt: skip
    own = results("base")
    assert results("again")["eval_loss"] == pytest.approx(own["eval_loss"], rel=1e-5)
    assert seen(screens, "measured on what its own run measured itself on")


def test_texts_and_prompts_are_named_changed_and_taken_out(lab):  # noqa: F811
    Path("own.txt").write_text("Some words to foretell, and then some more of them.\n" * 20)
    screens = lab(
        *MEASURE,
        *pick("texts, for its loss"), *answer("nowhere.txt"), *answer("own.txt"), *pick("no, that is all"),
        *pick("prompts, for its answers"), Key.ENTER, *pick("these are all"), *pick("no"),
        *pick("prompts, for its answers: builtin:sums"), *pick("take it out"),
        *pick("that is all"), *USUAL, *answer("own"), *RUN, Key.ENTER, *LEAVE,
    )  # fmt: skip
    assert seen(screens, "There is no such file or folder.")
    assert seen(screens, "exact_number × 1")
    recipe = read_recipe_file(Path("checkpoints/own/recipe.yaml"))
    assert [source["path"] for source in recipe["data"]] == ["own.txt"]
    assert recipe["score"] is None
    assert results("own")["bits_per_byte"] > 0


def test_models_are_picked_and_compared(lab):  # noqa: F811
    asked = []
    screens = lab(
        *EVALUATE, *pick("Compare models"), *MODEL, *pick("another folder"), *answer("./no/such"), Key.ESCAPE,
        *pick("another folder"), *answer("checkpoints/base/model"), *pick("another model"), Key.ESCAPE,
        *pick("that is all"), *answer("What is 2 + 2?"), Key.ENTER, *LEAVE,
        compare=asked.append,
    )  # fmt: skip
    assert asked == [Comparison(("checkpoints/base", "checkpoints/base/model"), ("What is 2 + 2?",))]
    assert seen(screens, "There is no ./no/such.")


def test_the_time_machine_asks_for_a_run_and_a_prompt(lab):  # noqa: F811
    asked = []
    lab(*EVALUATE, *pick("Time machine"), *MODEL, Key.ENTER, Key.ENTER, *LEAVE, compare=asked.append)
    assert asked == [Comparison(("checkpoints/base",), (), steps=True)]


def test_a_comparison_is_printed(lab):  # noqa: F811
    shutil.copytree("checkpoints/base/model", "copied")
    screens = lab(
        *EVALUATE, *pick("Compare models"), *MODEL, *pick("another folder"), *answer("copied"),
        *pick("that is all"), *answer("Tom has"), Key.ENTER, *LEAVE,
    )  # fmt: skip
    assert seen(screens, "the same as A")


def test_an_export_says_beforehand_what_it_will_load_in_and_proves_it(lab):  # noqa: F811
    screens = lab(
        *EXPORT, *MODEL, *pick("gguf"), *pick("f32"), *pick("no, it stays here"), *USUAL, *answer("file"), *RUN,
        Key.ENTER, *LEAVE,
    )  # fmt: skip
    assert seen(screens, "a Llama file for llama.cpp, Ollama and LM Studio")
    assert [file.suffix for file in Path("checkpoints/file/gguf").iterdir() if file.suffix != ".md"] == [".gguf"]
    assert seen(screens, "verified")


def test_a_push_without_a_token_is_refused_before_anything_is_written(lab, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_HOME", str(Path("no-login").resolve()))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    screens = lab(
        *EXPORT, *MODEL, *pick("hf"), Key.ENTER, *pick("yes, to a repository"), *answer("two words"), Key.ERASE_LINE,
        *answer("me/mine"), *pick("yes"), *USUAL, *answer("sent"), *RUN, Key.ENTER, *LEAVE,
    )  # fmt: skip
    assert seen(screens, "Allowed: owner/name")
    assert seen(screens, "me/mine on the Hub, private")
    assert not Path("checkpoints/sent").exists()


def test_a_checkpoint_leads_to_all_of_it(lab):  # noqa: F811
    asked, made = [], []
    look = (*pick("Checkpoints "), *MODEL)
    screens = lab(
        *look, *pick("Measure it"), Key.CTRL_C,
        *look, *pick("Export it"), Key.CTRL_C,
        *look, *pick("Time machine"), Key.ENTER, Key.CTRL_C,
        *look, *pick("Make it again"), Key.ENTER, Key.CTRL_C, *LEAVE,
        compare=asked.append, replay=made.append,
    )  # fmt: skip
    assert seen(screens, "LLM Lab · Evaluate · base-eval")
    assert seen(screens, "LLM Lab · Export · base-export")
    assert asked == [Comparison(("checkpoints/base",), steps=True)]
    assert made == ["checkpoints/base"]
