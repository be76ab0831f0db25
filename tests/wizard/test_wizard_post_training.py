"""The wizard's stages after pretraining: each to a recipe that runs, and where each leads."""

import json
import shutil
from pathlib import Path

import pytest
from support.wizard_keys import Key, answer, flat, keyboard, pick
from support.wizard_lab import LEAVE, MODEL, RUN, USUAL, results, seen

from llm_lab.estimate.machine import find_machine
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.optimizers import TUNED
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.resolve import resolve
from llm_lab.recipe.train_loop import SCHEDULERS
from llm_lab.wizard import tuning, untrained
from llm_lab.wizard.review import value_lines
from llm_lab.wizard.start_model import with_model
from llm_lab.wizard.tuning_answers import ask_finer, finer_paths, own_keys
from llm_lab.wizard_actions import wizard_actions

POST_TRAINING = [stage for stage in STAGES if stage != "pretrain"]
MENU = pick("Back to the menu")
ENTRIES = {stage: pick(f"{title} ") for stage, title in tuning.TITLES.items()}
DATA = (Key.ENTER, *pick("no, that is all"))
STEPS = (*pick("in steps"), *answer("2"), *answer("2"))
HEAD = {"sft": (*pick("yes"),), "reward": (), "dpo": (Key.ENTER, *pick("sigmoid"), Key.ENTER)}
NO_SCORE = pick("no")


class Started(list):
    """Stands for the runner: remembers what it was to run."""

    def __call__(self, recipe, *words, **options):
        self.append(recipe)
        return 0


def questions(stage, *, lora=(*pick("all weights"),), steps=STEPS, score=NO_SCORE, finer=USUAL, name="first"):
    """The keys from a stage's data to its review."""
    options = [*DATA, *lora, *HEAD[stage], *pick("adamw"), Key.ENTER, *steps]
    return (*options, *(() if stage == "reward" else score), *finer, *answer(name))


def test_sft_runs_and_leads_to_the_chat(lab):
    talked = []
    screens = lab(
        *ENTRIES["sft"], *MODEL, *questions("sft"), *RUN, *pick("Talk to it"), *LEAVE, chat=talked.append
    )  # fmt: skip
    assert talked == ["checkpoints/first"]
    assert results("first")["step"] == 2
    assert seen(screens, "prompt/completion (columns: prompt,")
    assert seen(screens, "2,000 of 2,000 rows")
    assert seen(screens, "assistant: So ")
    assert seen(screens, "What next with first?")


def test_an_adapter_is_trained_and_merged(lab):
    lora = (*pick("LoRA: an"), *pick("all  "), *answer("4"), *answer("8"))
    lab(
        *ENTRIES["sft"], *MODEL, *questions("sft", lora=lora), *RUN,
        *pick("Merge the adapter"), Key.ENTER, *RUN, *MENU, *LEAVE,
    )  # fmt: skip
    recipe = read_recipe_file(Path("checkpoints/first/recipe.yaml"))
    assert (recipe["lora"]["preset"], recipe["lora"]["r"], recipe["lora"]["alpha"]) == ("all", 4, 8.0)
    assert results("first-merged")["relative_logit_difference"] < 1e-4
    assert not Path("checkpoints/first-merged/model/adapter_config.json").exists()


def test_a_reward_model_leads_to_grpo_with_it_as_the_reward(lab):
    screens = lab(
        *ENTRIES["reward"], *MODEL, *questions("reward"), *RUN, *pick("GRPO with it as the reward"), *DATA,
        Key.CTRL_C, *ENTRIES["grpo"], *pick("start anew"), *MODEL, *DATA, *pick("add a reward model"),
        *pick("checkpoints/first"), Key.ENTER, Key.CTRL_C, *LEAVE,
    )  # fmt: skip
    assert results("first")["step"] == 2
    assert not seen(screens, "Talk to it")
    assert seen(screens, "LLM Lab · GRPO · base-grpo")
    assert seen(screens, "» these are all checkpoints/first × 1 add")
    assert seen(screens, "exact_number × 1 checkpoints/first × 1 add")


def test_dpo_runs_from_preferences(lab):
    lab(*ENTRIES["dpo"], *MODEL, *questions("dpo"), *RUN, *MENU, *LEAVE)
    assert results("first")["step"] == 2
    assert read_recipe_file(Path("checkpoints/first/recipe.yaml"))["dpo"]["beta"] == 0.1


def rollouts(stage, *rewards):
    own = {"grpo": (*answer("2"), *answer("8"), Key.ENTER, Key.ENTER), "ppo": (*answer("8"), *[Key.ENTER] * 3)}[stage]
    rows = pick("2     1 prompt") if stage == "grpo" else answer("2")
    head = [*DATA, *rewards, *pick("these are all"), *pick("all weights"), *own, *pick("adamw"), Key.ENTER]
    return (*head, *pick("in steps"), *answer("2"), *rows, *NO_SCORE, *USUAL, *answer("first"))


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_a_stage_that_tries_runs_with_a_sum_of_rewards(lab, stage):
    added = (*pick("add a function that"), *pick("length"), *answer("40"), *answer("0.5"))
    screens = lab(*ENTRIES[stage], *MODEL, *rollouts(stage, *added), *RUN, *MENU, *LEAVE)
    assert results("first")["step"] == 2
    rewards = read_recipe_file(Path("checkpoints/first/recipe.yaml"))["rewards"]
    assert rewards == [{"name": "exact_number", "weight": 1.0}, {"name": "length", "weight": 0.5, "length": 40}]
    assert seen(screens, "length (length 40) × 0.5")


def test_without_a_run_a_path_is_typed_and_what_is_missing_says_why(lab):
    shutil.rmtree("checkpoints/base")
    screens = lab(
        *ENTRIES["sft"], *pick("another folder"), *answer("./no/such"), Key.ESCAPE, Key.CTRL_C,
        *ENTRIES["merge"], *pick("another folder"), *answer("configs"), Key.CTRL_C, *LEAVE,
    )  # fmt: skip
    assert seen(screens, "- a run of mine (none yet: Pretrain makes one)")
    assert seen(screens, "There is no ./no/such.")
    assert seen(screens, "- a run of mine (no run has trained one yet)")


def test_only_adapters_are_merged(lab):
    screens = lab(*ENTRIES["merge"], *pick("another folder"), *answer("checkpoints/base"), Key.CTRL_C, *LEAVE)
    assert seen(screens, "checkpoints/base holds no adapter")


def test_columns_that_are_not_recognised_are_picked(lab):
    rows = [{"q": f"Question {n}?", "good": f"yes {n}", "bad": f"no {n}"} for n in range(20)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    started = Started()
    screens = lab(
        *ENTRIES["dpo"], *MODEL, *answer("nosuch.jsonl"), *answer("mine.jsonl"),
        *pick("good"), Key.ESCAPE, *pick("q"), *pick("good"), *pick("bad"), *pick("no, that is all"),
        *pick("all weights"), *HEAD["dpo"], *pick("adamw"), Key.ENTER, *STEPS, *NO_SCORE, *USUAL, *answer("two"),
        *RUN, Key.ENTER, *LEAVE, start=started,
    )  # fmt: skip
    assert seen(screens, "nosuch.jsonl: There is no such file or folder.")
    assert seen(screens, "are not recognized: q, good, bad")
    assert seen(screens, "- q (it is the prompt)")
    assert seen(screens, "chosen: yes 0")
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert started[0]["data"] == [{"path": "mine.jsonl", "columns": columns}]


def test_rows_that_are_dropped_are_counted_by_reason(lab):
    rows = ['{"prompt": "a", "completion": "b"}', '{"prompt": "a", "completion": ""}'] * 3
    Path("mine.jsonl").write_text("\n".join(rows))
    screens = lab(*ENTRIES["sft"], *MODEL, *answer("mine.jsonl"), Key.CTRL_C, *LEAVE)
    assert seen(screens, "3 of 6 rows; 3: ")


def test_several_sets_are_weighed(lab):
    started = Started()
    keys = list(flat(questions("sft")))
    Path("mine.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 9)
    again = (Key.ENTER, *pick("yes"), *answer("builtin:sums"), *answer("mine.jsonl"), *pick("no, that is all"),
             *answer("3"), *answer("1"))  # fmt: skip
    screens = lab(*ENTRIES["sft"], *MODEL, *again, *keys[3:], *RUN, Key.ENTER, *LEAVE, start=started)
    assert [source["weight"] for source in started[0]["data"]] == [3.0, 1.0]
    assert seen(screens, "the same set is already at data.0")


def test_four_bits_and_eight_bit_moments_say_that_they_need_cuda(lab):
    screens = lab(*ENTRIES["sft"], *MODEL, *DATA, *pick("all weights"), Key.ENTER, Key.CTRL_C, *LEAVE)
    if find_machine().best_device == "cpu":
        assert seen(screens, "- QLoRA: an adapter beside 4 bits (a base in 4 bits needs a CUDA GPU)")
        assert seen(screens, "- adamw_8bit")
    assert seen(screens, "(it works in pretraining only)")


def test_another_optimizer_offers_its_own_learning_rate(lab):
    screens = lab(
        *ENTRIES["sft"], *MODEL, *DATA, *pick("all weights"), *pick("yes"), *pick("lion"), Key.CTRL_C, *LEAVE
    )  # fmt: skip
    assert seen(screens, "lion has its own scale: its learning rate is now 4e-06; adamw's was 2e-05.")


def test_choices_that_need_more_bring_it(lab):
    started = Started()
    keys = (*pick("LoRA: an"), *pick("custom"), *answer('["q_proj", "o_proj"]'), Key.ENTER, Key.ENTER)
    lab(
        *ENTRIES["dpo"], *MODEL, *DATA, *keys, Key.ENTER, *pick("robust"), Key.ENTER, *pick("adamw"), Key.ENTER,
        *STEPS, *NO_SCORE, *USUAL, *answer("two"), *RUN, Key.ENTER, *LEAVE, start=started,
    )  # fmt: skip
    assert started[0]["lora"] == {"preset": "custom", "target_modules": ["q_proj", "o_proj"]}
    assert started[0]["dpo"] == {"loss_type": "robust", "label_smoothing": 0.1}


def test_grpo_offers_only_rows_that_hold_whole_groups_and_refuses_others(lab):
    screens = lab(
        *ENTRIES["grpo"], *MODEL, *DATA, *pick("these are all"), *pick("all weights"), *answer("3"), *[Key.ENTER] * 3,
        *pick("adamw"), Key.ENTER, *pick("in steps"), Key.ENTER, *pick("another number"), *answer("4"), Key.CTRL_C,
        *LEAVE,
    )  # fmt: skip
    offered = next(screen for screen in screens if "Rows in a batch?" in screen)
    assert [int(line.replace("»", "").split()[0]) for line in offered.splitlines() if "answers each" in line] == [
        3, 6, 9, 12, 18, 24, 36, 48,
    ]  # fmt: skip
    assert seen(screens, "4: a row is one answer, and the 4 of a step are no whole number of groups")


def test_a_python_function_is_run_only_after_a_yes_to_its_path(lab):
    Path("mine.py").write_text("def polite(completions, **columns):\n    return [1.0 for _ in completions]\n")
    started = Started()
    add = pick("add a Python function")
    rewards = (*add, *answer("mine.py:rude"), Key.ERASE_LINE, *answer("mine.py:polite"), Key.ENTER,  # no is the default
               Key.ENTER, *pick("yes, it is mine"), *answer("0"), Key.ERASE_LINE, *answer("-2"))  # fmt: skip
    screens = lab(*ENTRIES["grpo"], *MODEL, *rollouts("grpo", *rewards), *RUN, Key.ENTER, *LEAVE, start=started)
    assert seen(screens, "has no function `rude`")
    assert seen(screens, str(Path("mine.py").resolve()))
    assert seen(screens, "'0' is no weight")
    assert started[0]["rewards"] == [{"name": "exact_number"}, {"python": "mine.py:polite", "weight": -2.0}]


def test_rewards_are_changed_and_removed_and_at_least_one_stays(lab):
    screens = lab(
        *ENTRIES["ppo"], *MODEL, *DATA, *pick("exact_number"), *pick("remove"),
        *pick("add a function"), *pick("regex"), *answer("("), Key.ERASE_LINE, *answer("[0-9]"), Key.ENTER,
        *pick("regex"), *pick("change its settings"), *answer("[1-9]"), *pick("these are all"), Key.CTRL_C, *LEAVE,
    )  # fmt: skip
    assert seen(screens, "- that is all (there is none yet)")
    assert seen(screens, "This is no regular expression")
    assert seen(screens, "regex (pattern [1-9]) × 1")


def test_held_out_prompts_can_be_named_and_switched_off(lab):
    started = Started()
    named = (*pick("yes, on other prompts"), *answer("nosuch.jsonl"), *answer("builtin:sums"))
    screens = lab(
        *ENTRIES["dpo"], *MODEL, *questions("dpo", score=named), *RUN, Key.ENTER,
        *ENTRIES["ppo"], *MODEL, *rollouts("ppo"), *pick("Save the recipe"), *answer("ppo.yaml"), Key.ENTER,
        *RUN, Key.ENTER, *LEAVE, start=started,
    )  # fmt: skip
    assert seen(screens, "- yes, on prompts kept from the data (preferences hold no prompts to")
    assert started[0]["score"] == {"path": "builtin:sums"}
    assert started[1]["score"] is None
    saved = resolve(read_recipe_file(Path("ppo.yaml")))
    assert saved.values == resolve(started[1]).values
    assert saved.recipe.score is None


def test_an_adapter_of_defaults_is_saved_as_one(lab):
    lora = (*pick("LoRA: an"), Key.ENTER, Key.ENTER, Key.ENTER)
    lab(
        *ENTRIES["sft"], *MODEL, *questions("sft", lora=lora), *pick("Save the recipe"), *answer("sft.yaml"), Key.ENTER,
        Key.CTRL_C, *LEAVE,
    )  # fmt: skip
    assert resolve(read_recipe_file(Path("sft.yaml"))).recipe.lora.r == 8


def test_the_data_are_shown_as_tokens_before_the_run(lab):
    screens = lab(
        *ENTRIES["sft"], *MODEL, *questions("sft"), *pick("Look at the data as tokens"), *pick("Show more"), Key.ENTER,
        *pick("Back to the menu"), *LEAVE,
    )  # fmt: skip
    assert seen(screens, "every answer that is learnt ends with the end of its turn")
    assert seen(screens, "more lines")


def test_answers_that_leave_no_room_for_a_prompt_are_shortened_and_it_is_said(lab):
    screens = lab(*ENTRIES["grpo"], *MODEL, Key.CTRL_C, *LEAVE)
    assert seen(screens, "Answers of at most 80 tokens: half of the model's context.")


def test_the_review_leads_to_every_question_that_is_more_than_a_key(lab):
    started = Started()
    lab(
        *ENTRIES["grpo"], *MODEL, *rollouts("grpo"),
        *pick("Change the rewards"), *pick("exact_number"), *pick("change its weight"), *answer("2"),
        *pick("these are all"),
        *pick("Change the score"), *pick("yes, on prompts kept"),
        *pick("Train all weights, or"), *pick("LoRA: an"), Key.ENTER, Key.ENTER, Key.ENTER,
        *pick("train.max_steps"), *pick("in passes"), *answer("2"),
        *pick("grpo.num_generations"), *answer("3"),
        *pick("score.rewards.0.name"), *pick("exact_number"), *pick("change its weight"), *answer("3"),
        *pick("these are all"),
        *pick("model.checkpoint"), *MODEL,
        *RUN, Key.ENTER, *LEAVE, start=started,
    )  # fmt: skip
    (recipe,) = started
    assert recipe["rewards"] == [{"name": "exact_number", "weight": 2.0}]
    assert recipe["score"] == {"prompts": 100, "rewards": [{"name": "exact_number", "weight": 3.0}]}
    assert recipe["lora"] == {"preset": "minimal"}
    assert recipe["train"] == {"num_train_epochs": 2.0}  # two rows hold no group of three answers
    assert recipe["grpo"]["num_generations"] == 3


def test_escape_walks_back_to_the_menu_and_ctrl_c_keeps_the_answers(lab):
    screens = lab(
        *ENTRIES["sft"], *MODEL, *DATA, *pick("all weights"), *pick("no"), Key.CTRL_C,
        *ENTRIES["sft"], *pick("go on with it"), *[Key.ESCAPE] * 5, *LEAVE,
    )  # fmt: skip
    after = screens[max(n for n, screen in enumerate(screens) if "a draft was kept" in screen) + 1 :]
    order = [
        "Which optimizer",
        "Learn only the assistant's",
        "What is trained?",
        "Which conversations?",
        "Which model?",
    ]
    assert [next(name for name in order if name in screen) for screen in after[:5]] == order


def drafts_of(stage):
    """Drafts that between them have every key of a stage."""
    draft = with_model(tuning.new_draft(find_machine(), stage), "checkpoints/base")
    drafts = [draft]
    if STAGES[stage].trains:
        drafts += [draft.with_answer("optimizer.name", name) for name in TUNED]
        drafts += [draft.with_answer("scheduler.name", name) for name in SCHEDULERS]
        drafts += [draft.with_answer("lora", {"preset": "custom", "target_modules": ["q_proj"]})]
    if stage == "dpo":
        drafts.append(draft.with_answer("dpo.loss_type", "robust"))
    if stage == "eval":
        texts = [{"path": "builtin:stories", "subset": "a", "text_column": "b"}]
        drafts.append(draft.with_answer("data", texts).with_answer("tasks", {"names": ["arc_easy"]}))
    if "score" in STAGES[stage].recipe.model_fields:
        drafts.append(draft.with_answer("score", {"path": "builtin:sums"}))
    return drafts


@pytest.mark.parametrize("stage", POST_TRAINING)
def test_every_question_of_a_stage_is_reachable_in_the_review(lab, stage):
    from support.recipe_keys import every_key

    lines = [line.value for each in drafts_of(stage) for line in value_lines(each)]
    reachable = {".".join(step for step in line.split(".") if not step.isdigit()) for line in lines}
    asked = {key.path for key in every_key(STAGES[stage].recipe) if key.question}
    assert asked <= reachable


@pytest.mark.parametrize("stage", POST_TRAINING)
def test_every_question_of_a_stage_is_asked_or_among_the_finer_settings(lab, stage):
    from support.recipe_keys import every_key

    own = untrained.ASKED if not STAGES[stage].trains else own_keys(stage)
    asked = (*tuning.ASKED, *tuning.LORA_KEYS, *own, "data.path")
    finer = {path for draft in drafts_of(stage) for paths in finer_paths(draft, asked).values() for path in paths}
    assert {key.path for key in every_key(STAGES[stage].recipe) if key.question} <= {*asked, *finer}


@pytest.mark.parametrize("stage", POST_TRAINING)
def test_every_question_fits_the_terminal_with_its_why(lab, stage, monkeypatch, capsys):
    from llm_lab.wizard.asking import ask_key

    draft = drafts_of(stage)[-1]
    for line in value_lines(draft):
        if not draft.key(line.value).question or line.value in ("data.0.path", "eval.text_scores"):
            continue
        with keyboard([Key.WHY, Key.ENTER], monkeypatch, lambda: capsys.readouterr().out) as keys:
            ask_key(draft, line.value, show=tuning.show_tuning)
        assert len(keys.screens) == 2


def test_finer_settings_are_asked_by_group(lab, monkeypatch, capsys):
    draft = with_model(tuning.new_draft(find_machine(), "sft"), "checkpoints/base")
    keys = (*pick("SFT's own"), *pick("yes"), *pick("no, that is all"))
    with keyboard(keys, monkeypatch, lambda: capsys.readouterr().out):
        answered = ask_finer(draft, (*tuning.ASKED, *own_keys("sft")), askers={}, show=tuning.show_tuning)
    assert answered.raw["sft"] == {"packing": True}


def test_enter_leaves_what_only_the_run_can_derive_open(lab, monkeypatch, capsys):
    from llm_lab.wizard.asking import ask_key

    draft = with_model(tuning.new_draft(find_machine(), "sft"), "checkpoints/base")
    with keyboard([Key.ENTER], monkeypatch, lambda: capsys.readouterr().out) as keys:
        answered = ask_key(draft, "chat_template", show=tuning.show_tuning)
    assert "chat_template" not in answered.raw
    assert "Derived: own where the tokenizer has one, else chatml." in " ".join(keys.screens[0].split())


def test_a_second_model_is_picked_from_the_runs_or_left_open(lab, monkeypatch, capsys):
    draft = with_model(tuning.new_draft(find_machine(), "ppo"), "checkpoints/base")
    ask = tuning.askers_of("ppo", wizard_actions())["ppo.critic"]
    with keyboard((*pick("checkpoints/base:"), *pick("leave it open")), monkeypatch, lambda: capsys.readouterr().out):
        picked = ask(draft)
        opened = ask(picked)
    assert picked.raw["ppo"]["critic"] == "checkpoints/base"
    assert opened.value("ppo.critic") is None
