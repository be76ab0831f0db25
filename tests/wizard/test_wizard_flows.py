"""The wizard from the menu to what it leaves behind: a design, a run, a recipe, a reply."""

import dataclasses
from pathlib import Path

import pytest
from conftest import write_text
from support.wizard_keys import Key, answer, keyboard, pick

from llm_lab.errors import MachineError, Problem
from llm_lab.estimate.machine import find_machine
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.optimizers import OPTIMIZERS
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.resolve import resolve
from llm_lab.recipe.train_loop import SCHEDULERS
from llm_lab.runs.folder import RunFolder
from llm_lab.wizard import design, pretraining
from llm_lab.wizard.review import value_lines
from llm_lab.wizard.wizard import MENU, run_wizard
from llm_lab.wizard_actions import wizard_actions

LEAVE = pick("Leave")
TO_TEXTS = (*pick("Pretrain "), *pick("a size from the dial"), *pick("nano"))
TEXT = (*answer("text.txt"), *pick("no, that is all"))
TO_REVIEW = (*TO_TEXTS, *TEXT, *pick("bytes"), *pick("adamw"), Key.ENTER, *pick("cosine"), *answer("32"), *answer("2"),
             *answer("4"), *answer("first"))  # fmt: skip
DESIGN_DEFAULTS = [Key.ENTER] * 8  # norm, attention, activation, width, depth, heads, key-value heads, context


@pytest.fixture
def lab(monkeypatch, capsys, in_tmp_path):
    """Return a function: the screens of a visit to the wizard with these keys, the doings replaced as said."""
    write_text("text.txt")

    def visit(*steps, **replaced):
        actions = dataclasses.replace(wizard_actions(), **replaced)
        with keyboard(steps, monkeypatch, lambda: capsys.readouterr().out) as keys:
            assert run_wizard(actions, debug=True) == 0
        return keys.screens

    return visit


class Started(list):
    """Stands for the runner: remembers what it was to run."""

    def __call__(self, recipe, *words, **options):
        self.append((recipe, words, options))
        return 0


def seen(screens, text):
    return any(text in screen for screen in screens)


def test_the_menu_shows_the_machine_and_the_life_of_a_model(lab):
    (screen, *_) = lab(*LEAVE)
    assert "machine  " in screen
    assert "runs     none yet" in screen
    names = [entry.name for entry in MENU]
    assert {"Design a model", "Pretrain", "Chat", "Checkpoints", "Replay a recipe", "Doctor"} <= set(names)
    assert {"Fine-tune (SFT)", "Reward model", "DPO", "GRPO", "PPO", "Merge LoRA"} <= set(names)
    assert {"Evaluate", "Export"} <= set(names)
    assert all(f"   {name} " in screen or f" » {name} " in screen for name in names)


@pytest.mark.parametrize("key", [Key.ESCAPE, Key.CTRL_C])
def test_escape_and_ctrl_c_leave_the_menu(lab, key):
    lab(key)


def test_a_design_of_usual_parts_is_a_plain_llama(lab):
    from transformers import AutoConfig

    lab(
        *pick("Design a model"), *answer("mine"), *pick("bytes"), *pick("nano"), *pick("rope"), *DESIGN_DEFAULTS,
        *pick("no, the usual"), *pick("Save this design"), *pick("Back to the menu"), *LEAVE,
    )  # fmt: skip
    config = AutoConfig.from_pretrained("configs/models/mine")
    assert (config.model_type, config.hidden_size, config.num_key_value_heads) == ("llama", 128, 2)


def test_a_design_of_other_parts_carries_its_code(lab):
    from transformers import AutoConfig

    lab(
        *pick("Design a model"), *answer("odd"), *pick("bytes"), *pick("nano"), *pick("alibi"), *pick("layernorm"),
        *pick("mha"), *pick("relu "), *pick("64 "), *answer("2"), *pick("2 "), *answer("128"),
        *pick("no, the usual"), *pick("Save this design"), *pick("Back to the menu"), *LEAVE,
    )  # fmt: skip
    config = AutoConfig.from_pretrained("configs/models/odd", trust_remote_code=True)
    assert config.model_type == "llm_lab"
    assert (config.position_embedding, config.norm, config.activation) == ("alibi", "layernorm", "relu")
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (64, 2, 2)


def test_a_design_goes_on_to_its_pretraining_with_its_tokenizer(lab):
    started = Started()
    lab(
        *pick("Design a model"), *answer("mine"), *pick("a BPE"), *answer("300"), *pick("nano"), *pick("rope"),
        *DESIGN_DEFAULTS, *pick("no, the usual"), *pick("Save this design"), *pick("Pretrain it"),
        *TEXT, *pick("a BPE"), *answer("300"), *pick("muon"), Key.ENTER, *pick("cosine"), Key.ENTER, Key.ENTER,
        *answer("3"), Key.ENTER, *pick("Start"), *pick("Yes"), Key.ENTER, *LEAVE,
        start=started,
    )  # fmt: skip
    ((recipe, _, options),) = started
    assert recipe["model"] == {"config": "configs/models/mine"}
    assert recipe["tokenizer"] == {"bpe": 300}
    assert recipe["name"] == "mine"
    assert options == {"show_plan": False}


def test_the_numbers_of_a_design_follow_the_answers(lab):
    screens = lab(*pick("Design a model"), Key.ENTER, *pick("bytes"), *pick("micro"), *pick("yarn"), Key.CTRL_C, *LEAVE)
    panels = [line for screen in screens for line in screen.splitlines() if line.startswith("parameters")]
    assert "771 k" in panels[0]
    assert "2.8 M" in panels[-1]


def test_pretraining_runs_and_the_model_is_in_the_menu_and_the_checkpoints(lab):
    screens = lab(
        *TO_REVIEW, *pick("Start: see the plan"), *pick("Yes, start"), *pick("Back to the menu"),
        *pick("Checkpoints"), *pick("checkpoints/first"), *pick("Back to the list"), Key.ESCAPE, *LEAVE,
    )  # fmt: skip
    run = RunFolder(Path("checkpoints/first"))
    assert run.status() == "done"
    assert run.facts()["results"]["train_tokens"] == 4 * 2 * 32
    assert seen(screens, "╭─ Plan: first")
    assert seen(screens, "Done: checkpoints/first/")
    assert seen(screens, "runs     checkpoints/first: done, validation loss")
    assert seen(screens, "Talk to it")


def test_chat_is_handed_the_run_that_was_picked(lab):
    (Path("checkpoints/first/model")).mkdir(parents=True)
    RunFolder(Path("checkpoints/first")).update(status="done", created_at=1.0)
    talked = []
    lab(*pick("Chat"), *pick("checkpoints/first"), *LEAVE, chat=talked.append)
    assert talked == ["checkpoints/first"]


def test_a_checkpoint_that_can_not_be_read_is_said_and_the_menu_stays(lab, capsys):
    def chat(path):
        raise MachineError(Problem(path, "too large for this machine"))

    lab(*pick("Chat"), *pick("another folder"), *answer("some/where"), Key.ENTER, *LEAVE, chat=chat)


def test_a_fault_leaves_the_menu_standing(lab, monkeypatch, capsys, in_tmp_path):
    def doctor():
        raise RuntimeError("boom")

    actions = dataclasses.replace(wizard_actions(), doctor=doctor)
    with keyboard([*pick("Doctor"), Key.ENTER, *LEAVE], monkeypatch) as keys:
        assert run_wizard(actions) == 0
    assert "A fault of LLM Lab's: RuntimeError: boom" in capsys.readouterr().err
    assert len(keys.screens) > 3


def test_ctrl_c_returns_to_the_menu_and_the_draft_goes_on_where_it_was(lab):
    screens = lab(
        *TO_TEXTS, *TEXT, *pick("bytes"), *pick("adamw"), Key.CTRL_C,
        *pick("Pretrain "), *pick("go on with it"), Key.CTRL_C, *LEAVE,
    )  # fmt: skip
    assert "What would you like to do?" in screens[-1]
    (last_question,) = [s for s in screens[-20:] if "Learning rate?" in s and "adamw" in s][-1:]
    assert "0.001" in last_question


def test_a_draft_can_be_started_anew(lab):
    screens = lab(*TO_TEXTS, *TEXT, Key.CTRL_C, *pick("Pretrain "), *pick("start anew"), Key.CTRL_C, *LEAVE)
    asked = max(number for number, screen in enumerate(screens) if "a draft was kept" in screen)
    assert "Which model?" in screens[asked + 1]


def test_a_draft_without_an_answer_is_not_asked_about(lab):
    screens = lab(*pick("Pretrain "), Key.ESCAPE, *pick("Pretrain "), Key.ESCAPE, *LEAVE)
    assert not seen(screens, "a draft was kept")


def test_escape_walks_back_from_the_review_to_the_menu(lab):
    screens = lab(*TO_REVIEW, *[Key.ESCAPE] * 11, *LEAVE)
    order = ["Name of the run", "How many steps", "Rows in a batch", "Context while training"]
    order += ["learning-rate curve", "Learning rate?", "Which optimizer", "Which tokenizer", "Which text?"]
    order += ["Which model?", "like to do?"]
    back = [next((name for name in order if name in screen), "") for screen in screens]
    back = back[len(back) - back[::-1].index("Name of the run") - 1 :]
    assert [name for at, name in enumerate(back) if name and name not in back[:at]] == order


def test_the_review_shows_where_every_value_came_from_and_changes_any(lab):
    started = Started()
    screens = lab(
        *TO_REVIEW,
        *pick("train.max_steps"), *answer("40"),  # a number
        *pick("model.attention "), *pick("mha"),  # a choice
        *pick("train.gradient_checkpointing"), *pick("yes"),  # yes or no
        *pick("model.hidden_size"), *pick("64 "),  # a number from a list
        *pick("optimizer.betas"), *answer("[0.8, 0.99]"),  # a list
        *pick("samples.prompts"), *answer('["Once"]'),
        *pick("model.sliding_window"), *answer("8"),  # a value that may be missing
        *pick("model.sliding_window"), Key.ERASE_LINE, Key.ENTER,
        *pick("tokenizer"), *pick("a BPE"), *answer("300"),
        *pick("data.0.path"), *answer("builtin:stories"), *pick("no, that is all"),
        *pick("Start: see"), *pick("No, back"), *pick("Start: see"), *pick("Yes"), Key.ENTER, *LEAVE,
        start=started,
    )  # fmt: skip
    ((recipe, _, _),) = started
    resolved = resolve(recipe, machine=find_machine())
    values, origins = resolved.values, resolved.origins
    assert values["train"]["max_steps"] == 40
    assert values["train"]["gradient_checkpointing"] is True
    assert values["model"]["hidden_size"] == 64
    assert values["model"]["num_key_value_heads"] == values["model"]["num_attention_heads"]
    assert origins["model.num_key_value_heads"].reason == "mha: one per head"
    assert list(values["optimizer"]["betas"]) == [0.8, 0.99]
    assert list(values["samples"]["prompts"]) == ["Once"]
    assert values["model"]["sliding_window"] is None
    assert values["tokenizer"] == {"bpe": 300}
    assert values["data"][0]["path"] == "builtin:stories"
    for text in ("answer", "default", "derived: 5 % of max_steps"):
        assert seen(screens, text)


def test_the_optimizer_is_changed_in_the_review_with_all_that_is_its_own(lab):
    started = Started()
    screens = lab(
        *TO_REVIEW, *pick("optimizer.betas"), *answer("[0.8, 0.9]"), *pick("optimizer.name"), *pick("muon"),
        *pick("Start: see"), *pick("Yes"), Key.ENTER, *LEAVE, start=started,
    )  # fmt: skip
    assert started[0][0]["optimizer"] == {"name": "muon"}
    assert seen(screens, "muon has its own scale")


def test_a_run_that_this_machine_can_not_do_is_not_started_but_saved(lab):
    if find_machine().cuda_problem is None:
        pytest.skip("this machine has a GPU")
    screens = lab(*TO_REVIEW, *pick("device"), *pick("cuda"), Key.HOME, *pick("Back to the menu"), *LEAVE)
    assert seen(screens, "- Start: see the plan first (this machine can't")
    assert seen(screens, "Save the recipe to a file")


def test_a_saved_recipe_replays_to_the_same_values(lab):
    started, replayed = Started(), Started()
    lab(
        *TO_REVIEW, *pick("Save the recipe"), *answer("mine.yaml"), Key.ENTER,
        *pick("Start: see"), *pick("Yes"), Key.ENTER, *LEAVE, start=started,
    )  # fmt: skip
    lab(
        *pick("Replay"), *pick("another file"), *answer("mine.yaml"),
        *answer("train.max_steps=x"), Key.ERASE_LINE, Key.ENTER, Key.ENTER, *LEAVE, start=replayed,
    )  # fmt: skip
    machine = find_machine()
    saved = resolve(read_recipe_file(Path("mine.yaml")), machine=machine)
    assert saved.values == resolve(started[0][0], machine=machine).values
    assert replayed == [("mine.yaml", ([],), {"ask": True})]


def test_a_recipe_is_not_saved_over_another(lab):
    Path("old.yaml").write_text("stage: pretrain\n")
    screens = lab(*TO_REVIEW, *pick("Save the recipe"), *answer("old.yaml"), Key.ESCAPE, Key.CTRL_C, *LEAVE)
    assert seen(screens, "old.yaml exists, and is not overwritten.")
    assert Path("old.yaml").read_text() == "stage: pretrain\n"


def test_a_text_that_is_not_there_is_asked_again(lab):
    screens = lab(*TO_TEXTS, *answer("nosuch.txt"), *TEXT, Key.CTRL_C, *LEAVE)
    assert seen(screens, "There is no such file or folder.")


def test_several_texts_are_weighed(lab):
    started = Started()
    write_text("more.txt", seed=1)
    lab(
        *TO_TEXTS, *answer("text.txt"), *pick("yes"), *answer("more.txt"), *pick("no, that is all"),
        *answer("0"), Key.ERASE_LINE, *answer("2"), Key.ENTER,
        *pick("bytes"), *pick("adamw"), Key.ENTER, *pick("cosine"), *answer("32"), *answer("2"), *answer("4"),
        *answer("two"), *pick("Start: see"), *pick("Yes"), Key.ENTER, *LEAVE, start=started,
    )  # fmt: skip
    assert [(s["path"], s["weight"]) for s in started[0][0]["data"]] == [("text.txt", 2.0), ("more.txt", 1.0)]


def test_a_set_on_the_hub_can_be_streamed(lab):
    started = Started()
    screens = lab(
        *TO_TEXTS, *answer("owner/name"), *answer("sample"), *answer("text"), *pick("yes"), *pick("no, that is all"),
        *pick("bytes"), *pick("adamw"), Key.ENTER, *pick("cosine"), *answer("32"), *answer("2"), *answer("4"),
        *answer("two"), *pick("Start: see"), *pick("Yes"), Key.ENTER, *LEAVE, start=started,
    )  # fmt: skip
    assert seen(screens, "Stream it?")
    assert started[0][0]["data"] == [
        {"path": "owner/name", "subset": "sample", "text_column": "text", "streaming": True}
    ]


def test_every_key_with_a_question_is_reachable_in_the_review():
    from support.recipe_keys import every_key

    draft = pretraining.new_draft(find_machine())
    drafts = [draft, draft.with_answer("model.position_embedding", "yarn")]
    drafts += [draft.with_answer("optimizer.name", name) for name in OPTIMIZERS]
    drafts += [draft.with_answer("scheduler.name", name) for name in SCHEDULERS]
    drafts.append(draft.with_answer("score", {"path": "builtin:sums"}))
    lines = [line.value for each in drafts for line in value_lines(each)]
    reachable = {".".join(step for step in line.split(".") if not step.isdigit()) for line in lines}
    assert {key.path for key in every_key(STAGES["pretrain"].recipe) if key.question} <= reachable


def test_every_part_of_a_model_is_asked_in_the_design():
    asked = design.design_paths(advanced=False) + design.design_paths(advanced=True)
    from llm_lab.recipe.fields import keys_of
    from llm_lab.recipe.parts import ModelParts

    assert sorted(asked) == sorted(key.path for key in keys_of(ModelParts, "model."))


def test_the_finer_settings_are_asked_one_by_one_on_request(lab):
    count = len([p for p in design.design_paths(advanced=True) if "original_max" not in p])
    screens = lab(
        *pick("Design a model"), *answer("fine"), *pick("bytes"), *pick("nano"), *pick("rope"), *DESIGN_DEFAULTS,
        *pick("yes, one by one"), *[Key.ENTER] * count, *pick("Back to the menu"), *LEAVE,
    )  # fmt: skip
    assert seen(screens, "Sliding window, in tokens")


def test_a_dumb_terminal_gets_numbered_lists(monkeypatch, capsys):
    from llm_lab.terminal import prompts

    monkeypatch.setattr(prompts, "_is_dumb", lambda: True)
    typed = iter(["?", "9", "2", "1", "", "", "x y", "good"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed))
    options = [prompts.Option("a", "first"), prompts.Option("b", "second", "no way"), prompts.Option("c", "third")]
    assert prompts.choose("Which?", options, default="c", why="Because.") == "a"
    assert prompts.choose("Which?", options, default="c", why="Because.") == "c"
    assert prompts.type_in("Name?", default="d") == "d"
    assert prompts.type_in("Name?", validate=lambda text: "no spaces" if " " in text else None) == "good"
    said = capsys.readouterr().out
    for text in ("Because.", "A number from 1 to 3", "Not now: no way", "no spaces"):
        assert text in said
