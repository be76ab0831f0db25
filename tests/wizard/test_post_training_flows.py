"""The stages after pretraining in the wizard: each leads to a recipe that runs, and to next steps."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from support.old_runs import copy_to, unpack
from support.recipe_keys import every_key
from support.wizard_answers import BACK, ENTER, STAY, Fill, Refused, answers, ask, follow, rows_of
from support.wizard_lab import base, lab, results, run_it  # noqa: F401 - fixtures

from llm_lab.estimate.machine import Machine, find_machine
from llm_lab.job import look_at_data, read_job
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.optimizers import TUNED
from llm_lab.recipe.plan_warnings import enough_epochs
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.resolve import resolve
from llm_lab.recipe.train_loop import SCHEDULERS
from llm_lab.runs.plan_lines import plan_lines
from llm_lab.wizard import training_runs
from llm_lab.wizard.draft_page import page_question
from llm_lab.wizard.menu import replay
from llm_lab.wizard.places import places_in
from llm_lab.wizard.questions import Next, OpenChat, Plan, StartRun
from llm_lab.wizard.run_questions import after_a_run
from llm_lab.wizard.training_runs import askers_of, new_draft, run_of_stage, run_page

pytestmark = pytest.mark.usefixtures("lab")

MODEL = "checkpoints/base:"
POST_TRAINING = [stage for stage in STAGES if stage != "pretrain"]
DATA = [ENTER, "No, continue"]
START = "Yes, start"
TWO = {"name": "first", "optimizer.name": "adamw", "train.max_steps": "2", "train.per_device_train_batch_size": "2"}
SHORT = {"lora": "all weights", **TWO}
LORA = {"lora": "LoRA: an", "lora.preset": "all  ", "lora.r": "4", "lora.alpha": "8", **TWO}


def flow(stage, **known):
    return partial(run_of_stage, stage, **known)


def rollouts(stage):
    own = {"grpo.num_generations": "2", "grpo.max_completion_length": "8"} if stage == "grpo" else {}
    return {**own, **({"ppo.max_completion_length": "8"} if stage == "ppo" else {}), **SHORT}


def without_scores(*steps):
    """Return answers on the page: no held-out score, then further steps."""
    return ["score", "No", *steps]


def recipe_of(visit):
    return next(effect.recipe for effect in visit.effects if isinstance(effect, StartRun))


def test_sft_runs_and_leads_to_the_chat():
    visit = answers(flow("sft"), [MODEL, *DATA, *without_scores(Fill(SHORT)), START], execute=run_it)
    assert results("first")["step"] == 2
    for text in ("prompt/completion (columns: prompt,", "2,000 of 2,000 rows", "assistant: So "):
        assert text in visit.texts()
    after = follow(visit.result, ["Chat with it"])
    assert after.effects == [OpenChat("checkpoints/first")]


def test_a_plan_with_few_steps_offers_the_epochs_that_give_enough():
    to_plan = (MODEL, "builtin:instruct", "No, continue", *without_scores(ENTER))
    visit = answers(flow("sft"), [*to_plan, "Train for", "No", ENTER, START])
    plans = [question.screen.panel.resolved for question in visit.questions if question.key == "start"]
    assert [bool(enough_epochs(plan)) for plan in plans] == [True, False, False], "the page keeps them"
    assert recipe_of(visit)["train"] == {"num_train_epochs": float(enough_epochs(plans[0]))}


def test_prompts_that_no_rule_can_check_come_last_and_say_so():
    visit = answers(flow("grpo"), [MODEL])
    listed = [choice.value for choice in visit.question.choices]
    assert listed[:2] == ["builtin:word-problems", "builtin:sums"]
    assert all("needs a reward model" in choice.text for choice in visit.question.choices[2:])


def test_an_adapter_is_trained_and_merged():
    visit = answers(flow("sft"), [MODEL, *DATA, *without_scores(Fill(LORA)), START], execute=run_it)
    merge = follow(visit.result, ["Merge the adapter"]).result
    assert follow(merge, [ENTER, START], execute=run_it).result == Next("after a run", {"name": "first-merged"})
    recipe = read_recipe_file(Path("checkpoints/first/recipe.yaml"))
    assert (recipe["lora"]["preset"], recipe["lora"]["r"], recipe["lora"]["alpha"]) == ("all", 4, 8.0)
    assert results("first-merged")["relative_logit_difference"] < 1e-4
    assert not Path("checkpoints/first-merged/model/adapter_config.json").exists()


def test_a_reward_model_leads_to_grpo_with_it_as_the_reward():
    visit = answers(flow("reward"), [MODEL, *DATA, Fill(SHORT), START], execute=run_it)
    assert results("first")["step"] == 2
    after = follow(visit.result, ["GRPO with it as the reward model"])
    assert "Chat with it" not in after.texts()
    grpo = follow(after.result, [*DATA, "rewards", "Add a reward model", "checkpoints/first", ENTER])
    assert grpo.question.screen.title == "GRPO"
    assert grpo.question.screen.where == "base-grpo"
    assert [choice.text for choice in grpo.question.choices][:3] == ["Done, use these", *["checkpoints/first × 1"] * 2]


def test_dpo_runs_from_preference_pairs():
    visit = answers(flow("dpo"), [MODEL, *DATA, *without_scores(Fill(SHORT)), START], execute=run_it)
    (plan,) = (question.screen.panel for question in visit.questions if isinstance(question.screen.panel, Plan))
    assert 1700 < plan.resolved.examples.training <= 1800  # of 2,000 rows, a tenth is held out
    assert results("first")["step"] == 2
    assert read_recipe_file(Path("checkpoints/first/recipe.yaml"))["dpo"]["beta"] == 0.1


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_rl_runs_with_a_sum_of_rewards(stage):
    added = ["rewards", "Add a built-in function", "length", "40", "0.5", "Done"]
    keys = [MODEL, *DATA, *added, *without_scores(Fill(rollouts(stage))), START]
    visit = answers(flow(stage), keys, execute=run_it)
    assert results("first")["step"] == 2
    rewards = read_recipe_file(Path("checkpoints/first/recipe.yaml"))["rewards"]
    assert rewards == [{"name": "exact_number", "weight": 1.0}, {"name": "length", "weight": 0.5, "length": 40}]
    assert "length (length 40) × 0.5" in visit.texts()


def test_without_a_run_a_path_is_typed_and_what_is_missing_says_why():
    shutil.rmtree("checkpoints/base")
    sft = answers(flow("sft"), ["another folder", Refused("./no/such", "does not exist"), BACK])
    assert next(one.why for one in sft.questions if one.kind == "path").startswith("Choose a folder, or type a path")
    assert "one of my runs (none yet; train one with Pretrain)" in sft.texts()
    merge = answers(flow("merge"), ["another folder", Refused("configs", "does not exist")])
    assert "one of my runs (none yet; train one with LoRA)" in merge.texts()


def test_a_model_that_is_not_listed_can_only_be_what_the_question_takes():
    assert "another folder, a GGUF file, or a name on the Hub" in answers(flow("sft"), []).texts()
    assert "another folder with an adapter" in answers(flow("merge"), []).texts()
    reward = answers(flow("grpo"), [MODEL, *DATA, "rewards", "Add a reward model"])
    assert "another folder, or a name on the Hub" in reward.texts()


def test_only_adapters_are_merged():
    answers(flow("merge"), ["another folder", Refused("checkpoints/base", "has no adapter")])


def test_columns_that_are_not_recognized_are_chosen():
    rows = [{"q": f"Question {n}?", "good": f"yes {n}", "bad": f"no {n}"} for n in range(20)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = [Refused("nosuch/it.jsonl", "no folder"), "mine.jsonl", "good", BACK, "q", Refused("q", "the prompt")]
    Path("small.jsonl").write_text('{"q": "Hi?"}\n')  # a column too few to choose from
    columns.insert(1, Refused("small.jsonl", "are not recognized: q"))
    columns.insert(1, Refused("zzz", "no such dataset in the Hub's cache"))
    data = [*columns, "good", "bad", "No, continue"]
    visit = answers(flow("dpo"), [MODEL, *data, *without_scores(ENTER), START])
    assert "q, good, bad" in visit.texts()
    assert "chosen: yes 0" in visit.texts()
    named = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert recipe_of(visit)["data"] == [{"path": "mine.jsonl", "columns": named}]


def test_rows_that_are_dropped_are_counted_by_reason():
    rows = ['{"prompt": "a", "completion": "b"}', '{"prompt": "a", "completion": ""}'] * 3
    Path("mine.jsonl").write_text("\n".join(rows))
    assert "3 of 6 rows; 3: " in answers(flow("sft"), [MODEL, "mine.jsonl"]).question.help


def test_several_sets_get_weights_and_none_is_offered_twice():
    Path("mine.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 9)
    data = [ENTER, "Yes", Refused("builtin:word-problems", "data.1.path"), "mine.jsonl", "No, continue", "3", "1"]
    visit = answers(flow("sft"), [MODEL, *data, ENTER, START])
    assert [source["weight"] for source in recipe_of(visit)["data"]] == [3.0, 1.0]


def test_four_bits_and_eight_bit_moments_say_that_they_need_cuda():
    form = answers(flow("sft"), [MODEL, *DATA]).question.form
    optimizer = form.row("optimizer.name").question()
    if find_machine().best_device == "cpu":
        assert "CUDA" in form.row("lora").question().problem("qlora")
        assert optimizer.problem("adamw_8bit")
    assert "for pretraining only" in [choice.why_not for choice in optimizer.choices]


def test_another_optimizer_offers_its_own_learning_rate():
    visit = answers(flow("sft"), [MODEL, *DATA, Fill({"optimizer.name": "lion"}, STAY)])
    assert "lion has its own scale: its learning rate is now 0.000128; for adamw it was 0.00064." in visit.texts()


def test_choices_that_require_another_key_bring_it():
    changes = {"lora": "LoRA: an", "lora.preset": "custom", "lora.target_modules": '["q_proj", "o_proj"]'}
    visit = answers(flow("dpo"), [MODEL, *DATA, Fill({**changes, "dpo.loss_type": "robust"}), START])
    assert recipe_of(visit)["lora"] == {"preset": "custom", "target_modules": ["q_proj", "o_proj"]}
    assert recipe_of(visit)["dpo"] == {"loss_type": "robust", "label_smoothing": 0.1}
    assert "dpo.label_smoothing is now 0.1, because robust requires it." in visit.texts()


def test_grpo_offers_only_rows_that_hold_whole_groups_and_refuses_others():
    rows = "train.per_device_train_batch_size"
    changes = {"grpo.num_generations": "3", rows: Refused("4", "4: ")}
    form = answers(flow("grpo"), [MODEL, *DATA, Fill(changes, STAY)]).question.form
    offered = [choice.value for choice in form.row(rows).question().choices if "outputs each" in choice.text]
    assert offered == [str(rows) for rows in (3, 6, 9, 12, 18, 24, 36, 48)]


def test_a_python_function_is_run_only_after_a_yes_to_its_path():
    Path("mine.py").write_text("def polite(completions, **columns):\n    return [1.0 for _ in completions]\n")
    function = [
        "Add your own Python function",
        Refused("mine.py:rude", "rude"),
        "mine.py:polite",
        "No",
        ENTER,
        "Yes, I wrote",
    ]
    weight = [Refused("0", "not a number other than 0"), "-2", "Done"]
    visit = answers(flow("grpo"), [MODEL, *DATA, "rewards", *function, *weight, ENTER, START])
    trust = next(question for question in visit.questions if question.key == "rewards.python.trusted")
    assert trust.suggested is False
    assert trust.help == str(Path("mine.py").resolve())
    assert recipe_of(visit)["rewards"] == [{"name": "exact_number"}, {"python": "mine.py:polite", "weight": -2.0}]


def test_a_python_reward_is_chosen_from_the_functions_of_a_python_file_which_is_not_run():
    usable = "def polite(completions, **columns):\n    return [1.0 for _ in completions]\n"
    Path("mine.py").write_text(f"raise SystemExit\n{usable}\ndef short(completions):\n    return []\n")
    Path("one.py").write_text(usable)
    Path("bad.py").write_text("def short(completions):\n    return []\n")
    Path("none.py").write_text("x = 1\n")
    refused = [Refused("none.py", "none.py defines no function"), Refused("bad.py", "does not accept the columns"),
               Refused("no.py", "can't be read"), Refused("", "required")]  # fmt: skip
    page = [MODEL, *DATA, "rewards", "Add your own Python function"]
    visit = answers(flow("grpo"), [*page, *refused, "mine.py"])
    assert [choice.text for choice in visit.question.choices] == ["polite", "short"]
    assert "columns" in visit.question.choices[1].why_not
    files = next(question for question in visit.questions if question.key == "rewards.python")
    listed = [place.path for place in places_in("", files.look_for) if not place.enters]
    assert listed == ["bad.py", "mine.py", "none.py", "one.py"]
    assert answers(flow("grpo"), [*page, "one.py"]).question.text.endswith("to use its function polite?")


def test_rewards_are_changed_and_removed_and_at_least_one_stays():
    pattern = [Refused("(", "not a valid regular expression"), "[0-9]", ENTER]
    visit = answers(flow("ppo"), [
        MODEL, *DATA, "rewards", "exact_number", "Remove", Refused("done", "add at least one"), "Add a built-in",
        "regex", *pattern, "regex", "Change its settings", "[1-9]",
    ])  # fmt: skip
    assert "regex (pattern [1-9]) × 1" in visit.texts()


def test_held_out_prompts_can_be_named_and_switched_off():
    named = ["Yes, other prompts", Refused("nosuch.jsonl", "nosuch.jsonl")]
    named += [Refused("zzz", "no such file"), "builtin:sums"]
    dpo = answers(flow("dpo"), [MODEL, *DATA, "score", *named, ENTER, START])
    assert "(the data has no prompts to hold out)" in dpo.texts()
    assert recipe_of(dpo)["score"] == {"path": "builtin:sums"}
    ppo = answers(flow("ppo"), [MODEL, *DATA, *without_scores("save", "ppo.yaml", ENTER, START)])
    assert recipe_of(ppo)["score"] is None
    Path("ppo.yaml").write_text(ppo.effects[0].text)
    saved = resolve(read_recipe_file(Path("ppo.yaml")))
    assert saved.values == resolve(recipe_of(ppo)).values


def test_a_text_to_measure_forgetting_on_is_named_changed_and_removed():
    Path("general.txt").write_text("Some words that the model knows.\n" * 20)
    asked = ["forgetting", Refused("nowhere.txt", "no such file"), Refused("me/none", "no such dataset")]
    asked.append("general.txt")
    changed = [Fill({"forgetting.threshold": "0.3"}, "forgetting.path"), "builtin:stories"]
    visit = answers(flow("sft"), [MODEL, *DATA, *asked, *changed, ENTER, START])
    assert recipe_of(visit)["forgetting"] == {"path": "builtin:stories", "threshold": 0.3}
    removed = answers(flow("sft"), [MODEL, *DATA, *asked, "forgetting", "", ENTER, START])
    assert "forgetting" not in recipe_of(removed)


def test_an_adapter_with_default_options_is_saved_as_an_adapter():
    visit = answers(flow("sft"), [MODEL, *DATA, Fill({"lora": "LoRA: an"}, "save"), "sft.yaml"])
    Path("sft.yaml").write_text(visit.effects[0].text)
    assert resolve(read_recipe_file(Path("sft.yaml"))).recipe.lora.r == 8


def test_the_page_leads_to_every_question_that_is_more_than_a_key():
    rows = {"grpo.num_generations": "2", "train.per_device_train_batch_size": "2", "train.max_steps": "2"}
    visit = answers(flow("grpo"), [
        MODEL, *DATA,
        Fill(rows, "rewards"), "exact_number", "Change its weight", "2", "Done",
        "score", "Yes, prompts held out",
        Fill({"lora": "LoRA: an", "train.num_train_epochs": "2", "grpo.num_generations": "3"}, "score.rewards.0.name"),
        "exact_number", "Change its weight", "3", "Done",
        "model", MODEL,
        ENTER, START,
    ])  # fmt: skip
    recipe = recipe_of(visit)
    assert recipe["rewards"] == [{"name": "exact_number", "weight": 2.0}]
    assert recipe["score"] == {"prompts": 100, "rewards": [{"name": "exact_number", "weight": 3.0}]}
    assert recipe["lora"] == {}
    assert recipe["train"] == {"num_train_epochs": 2}  # not steps; two rows can't hold a group of three answers
    assert recipe["grpo"]["num_generations"] == 3


def test_going_back_leads_from_the_page_to_the_questions_before_it():
    visit = answers(flow("sft"), [MODEL, *DATA, "score", "No", *[BACK] * 3])
    assert visit.keys[-4:] == ["settings", "data.1", "data.0.path", "model.checkpoint"]


def drafts_of(stage):
    """Drafts that together have every key of a stage."""
    draft = new_draft(stage, model="checkpoints/base")
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
def test_every_question_of_a_stage_is_on_its_page(stage):
    page = run_page(stage)
    rows = [row for draft in drafts_of(stage) for row in rows_of(page_question(draft, draft, page))]
    reachable = {".".join(step for step in row.key.split(".") if not step.isdigit()) for row in rows}
    asked = {key.path for key in every_key(STAGES[stage].recipe) if key.question}
    assert asked <= reachable


def test_an_evaluation_without_anything_to_measure_says_so_on_its_page_and_before_its_plan(in_tmp_path):
    copy_to(in_tmp_path, unpack(in_tmp_path / "unpacked"))
    recipe = Path("checkpoints/tiny-sft/recipe.yaml")
    values = read_recipe_file(recipe)
    values["validation"]["fraction"] = 0.0
    recipe.write_text(json.dumps({key: value for key, value in values.items() if key != "score"}))
    page, shown = run_page("eval"), {}
    for model in ("tiny", "tiny-sft"):
        draft = new_draft("eval", model=model)
        shown[model] = next(row.value for row in rows_of(page_question(draft, draft, page)) if row.key == "data")
    assert shown["tiny"] == "the validation data of its run"
    assert shown["tiny-sft"].startswith("choose datasets")
    job, _ = read_job({"stage": "eval", "model": "tiny-sft", "device": "cpu"})
    (problem,), _ = look_at_data(job.stages[0])
    assert "has no validation data and scored no prompts" in str(problem)


def test_a_second_model_is_chosen_from_the_runs_or_omitted():
    draft, critic = new_draft("ppo", model="checkpoints/base"), askers_of("ppo")["ppo.critic"]
    picked, _ = ask(draft, critic, [MODEL])
    assert picked.raw["ppo"]["critic"] == "checkpoints/base"
    opened, _ = ask(picked, critic, ["leave unset"])
    assert opened.value("ppo.critic") is None


def test_a_run_that_was_stopped_has_no_next_steps():
    from llm_lab.wizard.questions import Pause

    assert answers(partial(after_a_run, "nothing"), []).effects == [Pause()]


def test_a_model_of_the_library_is_chosen_with_its_facts_and_what_fits():
    visit = answers(flow("sft"), ["a model from the library", "SmolLM2-135M-Instruct"])
    listed = next(question for question in visit.questions if question.key == "model.checkpoint.library")
    assert all(len(choice.text) < 76 for choice in listed.choices)
    facts = next(choice for choice in listed.choices if choice.value == "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "License apache-2.0, not gated; context 8,192 tokens." in facts.effect
    assert visit.question.screen.where == "SmolLM2-135M-Instruct-sft"
    assert "library" not in answers(flow("merge"), []).texts()
    again = answers(flow("sft"), ["a model from the library", "google/gemma-3-270m-it", BACK])
    assert again.question.key == "model.checkpoint.library"


def test_if_all_weights_do_not_fit_an_adapter_is_suggested_and_all_weights_stay_possible(monkeypatch):
    small = Machine((), "a CPU", 8, 7 * 2**30, True, False)
    monkeypatch.setattr(training_runs, "find_machine", lambda: small)
    draft = new_draft("sft", model="HuggingFaceTB/SmolLM2-360M")
    question = training_runs.lora_question(draft)
    assert question.suggested != "all"
    assert "Does not fit: up to" in question.choices[0].effect
    answered = training_runs.change(draft, "lora", "all")
    assert answered.raw["lora"] is None
    assert "lora" in answered.raw


def test_a_model_that_could_not_be_checked_is_named_above_the_start(monkeypatch):
    monkeypatch.setattr("llm_lab.hf.hub.go_offline_without_hub", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: 1 / 0)
    walk = answers(flow("sft", values={"model": {"checkpoint": "bse"}}), [*DATA, "Continue to the plan"])
    assert walk.question.key == "start"
    assert "bse is not a local folder and was not checked" in walk.question.notice
    assert "Did you mean checkpoints/base?" in walk.question.notice
    recipe = {"stage": "sft", "name": "tuned", "model": "bse", "data": [{"path": "builtin:instruct"}]}
    Path("tuned.yaml").write_text(json.dumps(recipe))
    walk = answers(replay, ["another file", "tuned.yaml", ""])
    assert "bse is not a local folder and was not checked" in walk.question.notice


def test_the_name_of_a_run_follows_from_a_model_that_was_given_on_the_command_line():
    draft = new_draft("sft", values={"model": {"checkpoint": "checkpoints/base"}})
    assert (draft.raw["name"], draft.origin("name")) == ("base-sft", ("derived", "from the model's name"))
    assert new_draft("sft", values={"model": "gpt2", "name": "mine"}).raw["name"] == "mine"


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_the_plan_of_a_run_that_starts_from_an_unfinished_run_has_its_numbers_and_names_the_step(stage):
    data = "builtin:stories" if stage == "pretrain" else "builtin:sums"
    raw = {"model": {"checkpoint": "checkpoints/base"}, "data": [{"path": data}], "device": "cpu"}
    raw |= {"train": {"max_length": 32, "max_steps": 5}}
    finished = new_draft(stage, values=raw).look()[0]
    folder = Path("checkpoints/base")
    shutil.rmtree(folder / "steps", ignore_errors=True)
    for step in (9, 40):
        shutil.copytree(folder / "model", folder / f"steps/checkpoint-{step}")
        (folder / f"steps/checkpoint-{step}/trainer_state.json").write_text("{}")
    shutil.rmtree(folder / "model")
    running = new_draft(stage, values=raw).look()[0]
    assert running.estimate == finished.estimate
    assert running.estimate.parameters
    plan = {name: text for name, text, _ in plan_lines(running)}
    assert plan["model"] == "checkpoints/base, after step 40: starts from its weights"
    assert {"parameters", "memory", "time", "disk"} <= plan.keys()
