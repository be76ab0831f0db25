"""Train on my text: from the files of a folder to a recipe that starts, in four screens; and the list of files."""

import dataclasses
import io
import json
import os
import re
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from rich.theme import Theme
from support.wizard_answers import BACK, ENTER, Refused, answers
from support.wizard_keys import Key, keyboard, pick

from llm_lab.commands.wizard_commands import wizard_commands
from llm_lab.errors import UserError
from llm_lab.estimate.formatting import size
from llm_lab.estimate.machine import Gpu, Machine
from llm_lab.job import check
from llm_lab.runs.folder import RunFolder
from llm_lab.terminal.ask import title_of
from llm_lab.terminal.console import PALETTE
from llm_lab.terminal.driver import Wizard, run_wizard
from llm_lab.terminal.prompt_layout import Back
from llm_lab.terminal.results_view import print_closing
from llm_lab.wizard import quick_start as quick_start_module
from llm_lab.wizard.model_questions import why_no_model
from llm_lab.wizard.places import best_text, places_in
from llm_lab.wizard.questions import BackTo, Choice, Next, Question, StartRun
from llm_lab.wizard.quick_start import quick_start, recipe_of, size_question, text_question, tokens_in
from llm_lab.wizard.recipe_question import ask_recipe, recipe_summary
from llm_lab.wizard.walk import forget_looks

SENTENCE = "The old house is on a hill, and the wind went around it every night.\n"
CPU = Machine((), "a CPU", 2, 16 * 2**30, False, False)
GPU = dataclasses.replace(CPU, gpus=(Gpu("NVIDIA A100-SXM4-80GB", 80 * 2**30, (8, 0)),))
PATH = Question("p", "Which file?", "path", default="", look_for="texts")


@pytest.fixture(autouse=True)
def folder(in_tmp_path, monkeypatch):
    """A folder with a large and a small text, texts in a folder, a table, and files that can't be read."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    Path("book.txt").write_text(SENTENCE * 3000)
    Path("note.md").write_text(SENTENCE * 60)
    Path("more/deep").mkdir(parents=True)
    Path("more/one.txt").write_text(SENTENCE)
    Path("more/deep/two.txt").write_text(SENTENCE)
    Path("rows.jsonl").write_text('{"text": "a row of text"}\n')
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes("Stra\xdfe".encode("latin-1"))
    Path("photo.txt").write_bytes(bytes(range(256)))
    Path("README.md").write_text("# About\n")
    Path("program.py").touch()


def press(question, monkeypatch, *steps, trouble=""):
    with keyboard(steps, monkeypatch) as keys:
        return Wizard(wizard_commands(), debug=True).ask(question, trouble=trouble), keys.screens


def test_texts_are_listed_nearest_first_and_unreadable_ones_say_why():
    os.mkfifo("pipe.txt")  # reading it would block forever
    listed = places_in("", "texts")
    usable = [place.path for place in listed if not place.why_not and not place.enters]
    assert usable == ["book.txt", "note.md", "rows.jsonl", "more/one.txt", "more/deep/two.txt", "README.md"]
    assert {place.path: place.why_not for place in listed if place.why_not} == {
        "empty.txt": "empty",
        "latin.txt": "not UTF-8 text",
        "photo.txt": "binary, not text",
        "pipe.txt": "not a regular file",
    }
    assert [place.path for place in listed if place.enters] == ["more/"]
    assert best_text(listed) == "book.txt"


def test_samples_continue_from_the_first_words_of_a_text():
    assert recipe_of("nano", [({"path": "book.txt"}, 216_000)], CPU)["samples"] == {"prompts": ["The old house is"]}
    assert "samples" not in recipe_of("nano", [({"path": "builtin:stories"}, None)], CPU)


def test_enter_alone_leads_from_home_to_the_training_in_at_most_five_screens(monkeypatch, capsys):
    started = []
    commands = dataclasses.replace(
        wizard_commands(), start=lambda recipe, overrides, **options: started.append((recipe, options))
    )
    steps = [Key.ENTER, Key.ENTER, Key.ENTER, Key.ENTER, Key.ENTER, *pick("Quit")]
    with keyboard(steps, monkeypatch, lambda: capsys.readouterr().out) as keys:
        assert run_wizard(commands, debug=True) == 0
    recipe, options = started[0]
    assert options["show_plan"] is False
    assert (recipe["name"], recipe["data"]) == ("book", [{"path": "book.txt"}])
    assert ["What would you like to do?" in keys.screens[0], "Which text?" in keys.screens[1]] == [True, True]
    assert "How large should the model be?" in keys.screens[2]
    assert "Start now?" in keys.screens[3]
    assert check(recipe).stages[0].values["train"]["max_steps"] == recipe["train"]["max_steps"]


@pytest.mark.parametrize(("machine", "rope_theta"), [(CPU, 1000.0), (GPU, 10_000.0)], ids=["CPU", "GPU"])
def test_the_short_rows_of_a_cpu_get_a_smaller_rope_base(machine, rope_theta):
    raw = recipe_of("nano", [({"path": "builtin:stories"}, None)], machine)
    assert raw["model"]["qk_norm"]
    assert check(raw, machine=machine).stages[0].values["model"]["rope_theta"] == rope_theta


def test_several_texts_are_read_in_proportion_to_their_size():
    short = Refused(["book.txt", "more/one.txt"], "at least 4,000 are needed")
    visit = answers(quick_start, [short, ["book.txt", "note.md"], "nano", ENTER])
    recipe = visit.effects[0].recipe
    assert recipe["data"] == [{"path": "book.txt", "weight": 50.0}, {"path": "note.md", "weight": 1.0}]
    assert visit.result == Next("after a run", {"name": "book"})


def test_the_way_back_longer_training_and_all_settings_are_reached_from_the_plan():
    usual = answers(quick_start, [ENTER, ENTER, ENTER]).effects[0].recipe["train"]["max_steps"]
    visit = answers(quick_start, [ENTER, ENTER, "Train longer", BACK, "Train longer", "start"])
    assert visit.effects == [StartRun(visit.effects[0].recipe)]
    assert visit.effects[0].recipe["train"]["max_steps"] == 2 * usual
    assert answers(quick_start, [ENTER, ENTER, "back to the sizes"]).question.key == "quick.size"
    other = answers(quick_start, [ENTER, "micro", "Change settings", BACK, BACK, "nano"])
    assert other.question.suggested == "start"  # not the choice for the other size
    settings = answers(quick_start, [ENTER, "micro", "Change settings"])
    assert settings.question.screen.title == "Train on my text"
    assert "quick" not in settings.question.key
    origins = {row.key: row.origin for row in settings.question.form.rows}
    assert (origins["model.size"], origins["data.0.path"]) == ("yours", "yours")
    computed = ("name", "device", "tokenizer.bpe", "scheduler.name", "train.max_steps")
    assert {origins[key] for key in computed} == {"derived"}


def test_without_a_text_file_the_built_in_stories_are_offered_and_a_path_can_be_typed():
    for file in Path().rglob("*.*"):
        file.unlink() if file.is_file() else None
    question = text_question()
    assert question.suggested == ["builtin:stories"]
    assert "No text file in" in question.screen.lines[0].text
    visit = answers(quick_start, [Refused(["nothing.txt"], "nothing.txt"), ["builtin:stories"]])
    assert visit.question.key == "quick.size"


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["CPU", "GPU"])
def test_every_size_says_what_it_needs_and_the_steps_follow_from_the_text(machine):
    texts = [({"path": "book.txt"}, Path("book.txt").stat().st_size)]
    question = size_question(texts, machine)
    assert "parameters" in question.choices[0].text
    assert max(len(choice.text) for choice in question.choices) <= 56
    assert "epochs of the text. Time roughly estimated" in question.choices[0].effect
    small, large = (recipe_of("nano", [({"path": "a.txt"}, size)], machine) for size in (20_000, 10**9))
    assert small["train"]["max_steps"] < large["train"]["max_steps"]
    tiny = recipe_of("micro", [({"path": "a.txt"}, 5_000)], machine)
    assert (tiny["tokenizer"], tiny["train"]["max_steps"]) == ("bytes", 150)
    book = check(recipe_of("nano", texts, machine), machine=machine).stages[0].estimate
    assert book.tokens <= 11 * tokens_in({"bpe": 1024}, texts[0][1])


def test_a_file_is_picked_with_the_arrow_keys_and_several_with_the_space_bar(monkeypatch):
    assert press(PATH, monkeypatch, Key.DOWN, Key.ENTER)[0] == "note.md"
    several = dataclasses.replace(PATH, kind="paths", default=["book.txt"])
    for enter in (Key.ENTER, "\n"):  # an Enter that was pressed early arrives as the second one
        assert press(several, monkeypatch, enter)[0] == ["book.txt"]
    assert press(several, monkeypatch, " ", Key.DOWN, " ", Key.ENTER)[0] == ["book.txt", "note.md"]


def test_a_file_list_whose_filter_is_cleared_points_at_the_same_file_again(monkeypatch):
    asked = dataclasses.replace(PATH, default="note.md")
    for clears in ([Key.ERASE_LINE], [Key.BACKSPACE] * 4):
        assert press(asked, monkeypatch, *"book", *clears, Key.ENTER)[0] == "note.md"


def test_a_refused_path_can_be_corrected(monkeypatch):
    refused, trouble = dataclasses.replace(PATH, default="/nope"), "/nope: No such file."
    picked, screens = press(refused, monkeypatch, Key.ENTER, trouble=trouble)
    assert picked == "/nope"
    assert press(refused, monkeypatch, "no", Key.ENTER, trouble=trouble)[0] == "note.md"  # a letter replaces it
    assert 'use "/nope" as typed' in screens[0]
    assert text_question().problem(["/nope"]).startswith("/nope: ")


def test_a_name_that_was_refused_does_not_stay_in_the_list(monkeypatch):
    refused = dataclasses.replace(PATH, default="/nope")
    picked, screens = press(refused, monkeypatch, Key.ERASE_LINE, Key.ENTER, trouble="/nope: No such file.")
    assert picked == "book.txt"
    assert "No such file." in screens[0]
    assert "/nope" not in screens[-1]


def test_a_text_that_is_neither_here_nor_on_the_hub_is_refused_at_its_question():
    refusal = text_question().problem(["zzz"])
    assert refusal.startswith("zzz: There is no such file or folder")
    assert "Hub datasets are named owner/name" in refusal
    assert "There is no such file or folder" in text_question().problem(["owner/name"])


def test_a_text_that_disappears_before_the_start_leads_back_to_the_question_for_it():
    flow = quick_start()
    question = next(flow)
    while question.key != "quick.start.nano" if isinstance(question, Question) else True:
        question = flow.send(question.suggested if isinstance(question, Question) else None)
    assert isinstance(flow.send("start"), StartRun)
    Path("book.txt").unlink()
    forget_looks()
    assert flow.send(False) == BackTo("quick.text")


def test_the_expected_epochs_are_those_that_the_vocabulary_gives():
    measured = {512: 1.94, 1024: 2.43, 2048: 2.87, 4096: 3.24}  # on 1.1 MB of Shakespeare, with its own BPE
    for entries, bytes_per_token in measured.items():
        assert tokens_in({"bpe": entries}, 10**6) == pytest.approx(0.9e6 / bytes_per_token, rel=0.03)


def test_typing_filters_the_files_and_is_itself_an_answer_if_none_matches(monkeypatch):
    picked, screens = press(PATH, monkeypatch, "t", "w", Key.ENTER)
    assert picked == "more/deep/two.txt"
    assert "book.txt" not in screens[-1]
    assert press(PATH, monkeypatch, "owner/name", Key.ENTER)[0] == "owner/name"
    assert press(PATH, monkeypatch, "boo", "\t", Key.ENTER)[0] == "book.txt"
    strict = dataclasses.replace(PATH, check=lambda path: None if Path(path).exists() else f"there is no {path}")
    assert press(strict, monkeypatch, "zzz", Key.ENTER, Key.ERASE_LINE, Key.ENTER)[0] == "book.txt"


def test_a_typed_file_that_cannot_be_used_says_why(monkeypatch):
    Path("empty.txt").touch()
    _, screens = press(PATH, monkeypatch, "empty.txt", Key.ENTER, Key.ERASE_LINE, Key.ENTER)
    assert "empty.txt: empty." in " ".join(screens[-1].split()) or any("empty.txt: empty." in one for one in screens)
    assert any("- empty.txt " in one for one in screens), "in full, although its mark takes room"


def test_folders_are_entered_and_left_again_and_can_be_an_answer_as_a_whole(monkeypatch):
    picked, screens = press(PATH, monkeypatch, *pick("more/  "), Key.ENTER)
    assert picked == "more"
    assert "all 2 files, " in screens[-1]
    assert press(PATH, monkeypatch, *pick("more/  "), *pick(".."), *pick("note.md"))[0] == "note.md"
    assert press(PATH, monkeypatch, "more/", Key.DOWN, Key.ENTER)[0] == "more/one.txt"


def test_a_measured_size_does_not_seem_to_need_more_memory_than_a_larger_one(monkeypatch):
    texts = [({"path": "book.txt"}, 200_000)]
    before = {choice.value: choice.text for choice in size_question(texts, CPU).choices}
    estimate = {name: quick_start_module._resolved(recipe_of(name, texts, CPU), CPU) for name in ("nano", "micro")}
    assert [plan.estimate.unpredicted_bytes for plan in estimate.values()] == [0, 0]
    nano, micro = (plan.estimate for plan in estimate.values())
    measured = dataclasses.replace(nano, memory_bytes=nano.memory_bytes + 100 * 2**20)
    assert micro.comparable_memory_bytes(measured) == micro.memory_bytes + 100 * 2**20
    assert measured.comparable_memory_bytes(measured) == measured.memory_bytes
    assert size(nano.memory_bytes) in before["nano"]


def test_esc_clears_what_was_typed_then_lists_the_folder_before_and_then_goes_back(monkeypatch):
    inside = (*pick("more/  "), *pick("more/deep/  "))
    picked, _ = press(PATH, monkeypatch, *inside, *"tw", Key.ESCAPE, Key.ESCAPE, *pick("one.txt"))
    assert picked == "more/one.txt"
    picked, _ = press(PATH, monkeypatch, *inside, Key.ERASE_LINE, *pick("book.txt"))
    assert picked == "book.txt", "Ctrl-U lists the first folder again"
    with pytest.raises(Back):
        press(PATH, monkeypatch, *pick("more/  "), Key.ESCAPE, Key.ESCAPE)


def test_a_folder_with_files_of_several_types_cannot_be_one_dataset_and_says_why(monkeypatch):
    Path("more/rows.jsonl").write_text(json.dumps({"text": SENTENCE}) + "\n")
    picked, screens = press(PATH, monkeypatch, *pick("more/  "), *pick("one.txt"))
    assert picked == "more/one.txt"
    assert "(several types: 2 text, 1 jsonl)" in " ".join(screens[-1].split())


def test_offered_data_and_an_answer_from_elsewhere_are_in_the_list(monkeypatch):
    offered = dataclasses.replace(PATH, choices=(Choice("builtin:stories", "stories"),), default="/elsewhere/a.txt")
    assert press(offered, monkeypatch, Key.ENTER)[0] == "/elsewhere/a.txt"
    assert press(offered, monkeypatch, *pick("builtin:stories"))[0] == "builtin:stories"


def test_data_of_recent_runs_that_is_still_there_is_offered_again(tmp_path_factory):
    kept = tmp_path_factory.mktemp("elsewhere") / "kept.txt"
    kept.write_text(SENTENCE)
    paths = (str(kept), "/no/longer/there.txt", "builtin:stories", "me/corpus", "no name/of a dataset")
    data = [{"path": path, "fingerprint": "0"} for path in paths]
    RunFolder(Path("checkpoints/first")).update(stage="pretrain", created_at=1, data=data)
    RunFolder(Path("checkpoints/tuned")).update(
        stage="sft", created_at=2, data=[{"path": "me/talks", "fingerprint": "0"}]
    )
    own = {"path": "validation of checkpoints/first", "fingerprint": "0", "own": True}
    RunFolder(Path("checkpoints/first-eval")).update(stage="eval", created_at=3, data=[own])
    forget_looks()
    choices = {choice.value: choice.text for choice in text_question().choices}
    assert list(choices) == [str(kept), "me/corpus", "builtin:stories"]
    assert choices["me/corpus"] == "used by first"


def test_models_recipes_and_new_files_are_listed_by_what_fits():
    Path("tuned").mkdir()
    Path("tuned/config.json").write_text("{}")
    Path("a.yaml").write_text("stage: sft\n")
    assert [(p.path, p.enters) for p in places_in("", "models")] == [("tuned", False), ("more/", True)]
    assert [p.path for p in places_in("", "recipes") if not p.enters] == ["a.yaml"]
    assert next(p for p in places_in("", "new file") if p.path == "a.yaml").why_not == "already exists"


def test_a_mistyped_model_is_refused_with_the_one_that_was_meant():
    Path("checkpoints/shakespeare").mkdir(parents=True)
    why = why_no_model("checkpoints/shakspeare")
    assert why == "checkpoints/shakspeare does not exist. Did you mean checkpoints/shakespeare?"
    with pytest.raises(UserError, match="Did you mean checkpoints/shakespeare"):
        check({"stage": "export", "device": "cpu", "model": {"checkpoint": "checkpoints/shakspeare"}})


def test_a_run_that_ends_in_the_wizard_shows_no_commands(capsys):
    for facts in ({"status": "stopped"}, {"status": "done", "stage": "pretrain", "results": {"eval_loss": 1.0}}):
        print_closing({"path": "checkpoints/a", **facts}, in_wizard=True)
        assert "checkpoints/a" in (printed := capsys.readouterr().out)
        assert "llm-lab" not in printed


def test_the_end_of_an_export_breaks_paths_at_slashes_and_commands_between_words(in_tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), width=60, force_terminal=True, no_color=True, theme=Theme(PALETTE))
    monkeypatch.setattr("llm_lab.terminal.results_view.make_console", lambda: console)
    path = "checkpoints/shakespeare-sft-grpo-2-dpo-f32"
    export = {"to": "gguf", "path": f"{path}/gguf/shakespeare-sft-f32.gguf", "proof": {"verdict": "proven"}}
    print_closing({"path": path, "status": "done", "stage": "export", "export": export})
    lines = re.sub(r"\x1b\[\d*m", "", console.file.getvalue()).splitlines()
    assert [line.strip() for line in lines if len(line) > 60] == [export["path"]]  # a word of a command stays whole
    whole = "\n".join(lines)
    assert f"Exported, verified:\n{path}/gguf/\nshakespeare-sft-f32.gguf\n" in whole
    assert f"usage        {path}/\n{' ' * 15}gguf/README.md\n" in whole
    assert f"details      llm-lab show \\\n{' ' * 15}{path}\n" in whole


def test_recipes_are_listed_in_two_columns_and_cut_after_whole_words():
    visit = answers(partial(ask_recipe, "Sweep", ""), [])
    lines = [title_of(choice) for choice in visit.question.choices[:-1]]
    column = lines[0].index(recipe_summary(Path(visit.question.choices[0].value))[:9])
    for choice, line in zip(visit.question.choices, lines, strict=False):
        assert len(line) <= 74
        assert line[column - 1] == " " != line[column]
        assert recipe_summary(Path(choice.value)).startswith(line[column:].removesuffix(" …"))


def test_a_sweep_offers_the_recipes_of_all_runs_that_train_the_newest_first():
    for number, stage in enumerate(("pretrain", "sft", "eval", "export", "merge", "dpo")):
        run = Path(f"checkpoints/plays-{stage}")
        run.mkdir(parents=True)
        RunFolder(run).update(stage=stage, status="done", created_at=number)
        (run / "recipe.yaml").write_text(f"stage: {stage}\n")
    pipeline = Path("checkpoints/plays-all")
    pipeline.mkdir()
    RunFolder(pipeline).update(status="done", created_at=9, stages=["sft"])
    (pipeline / "recipe.yaml").write_text("stages: []\n")

    def offered(**options):
        choices = answers(partial(ask_recipe, "Sweep", "", **options), []).question.choices
        return [choice.value.removeprefix("checkpoints/plays-") for choice in choices if "plays" in choice.value]

    assert offered(compares=True) == ["all", "dpo", "sft", "pretrain"]
    assert offered() == ["all", "dpo", "merge", "export", "eval", "sft", "pretrain"]


def test_the_recipes_of_the_newest_runs_are_offered_first():
    for number in range(5):
        run = Path(f"checkpoints/plays-{number}")
        run.mkdir(parents=True)
        RunFolder(run).update(stage="pretrain", status="done", created_at=number)
        (run / "recipe.yaml").write_text("stage: pretrain\n")
    (Path("checkpoints/plays-4") / "recipe.yaml").unlink()
    choices = answers(partial(ask_recipe, "Sweep", ""), []).question.choices
    assert [choice.value for choice in choices[:4]] == [f"checkpoints/plays-{number}" for number in (3, 2, 1, 0)]
    assert "your run, pretrain" in choices[0].text
    assert Path(choices[4].value).name == "demo.yaml"


def test_a_shipped_recipe_is_named_on_the_screen_without_its_folder():
    from llm_lab.wizard.sweep_questions import sweep

    stories = next(one.value for one in answers(sweep, []).question.choices if one.text.startswith("stories "))
    assert answers(sweep, [stories]).question.screen.where == "stories"


def test_in_a_plain_terminal_a_refused_path_is_neither_listed_nor_the_default(monkeypatch, capsys):
    monkeypatch.setenv("LLM_LAB_PLAIN", "1")
    prompts, typed = [], iter(["abc", "1"])
    monkeypatch.setattr("builtins.input", lambda prompt="": [prompts.append(prompt), next(typed)][1])
    strict = dataclasses.replace(
        PATH, check=lambda path: None if Path(path).exists() else f"there is no {path}", wait="Reading ..."
    )
    assert Wizard(wizard_commands(), debug=True).ask(strict) == "book.txt"
    assert "abc" not in prompts[-1]
    assert "there is no abc" in capsys.readouterr().out


def test_plain_terminals_pick_files_by_number_or_path(monkeypatch, capsys):
    monkeypatch.setenv("LLM_LAB_PLAIN", "1")
    typed = iter(["2", "9 ", "10", "3", "owner/name", "1 2", "", "7"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed))
    wizard = Wizard(wizard_commands(), debug=True)
    assert wizard.ask(PATH) == "note.md"
    several = dataclasses.replace(PATH, kind="paths", default=["book.txt"])
    assert wizard.ask(dataclasses.replace(PATH, check=lambda text: None)) is not None
    assert wizard.ask(PATH) == "owner/name"
    assert wizard.ask(several) == ["book.txt", "note.md"]
    assert wizard.ask(several) == ["book.txt"]
    assert "binary, not text" in capsys.readouterr().out
