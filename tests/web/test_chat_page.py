"""The chat page in a real browser, with real tiny models."""

import json
import re
import shutil
import signal
import threading

import psutil
import pytest
from support.chat_models import speller, write_run, write_speller
from support.chat_sessions import GREEDY, open_session, say
from support.own_code import write_model_with_code
from support.web_server import serving

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed").expect
MANY_MS = 120_000  # because a worker first imports torch
HOSTILE = """<img src=x onerror="document.title='hacked'"> ![leak](http://evil.example/x.png) <b>bold</b>
[click](javascript:alert(1)) http://evil.example/y

```html
<script>document.title = 'hacked'</script>
```
- **one** [1]\x1b[31m"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose folder has the run `tale` with three checkpoints, and the models chat/ and base/."""
    home = tmp_path_factory.mktemp("chat")
    write_run(home, "tale")
    write_speller(home / "chat", seed=3)
    write_speller(home / "base", seed=3, chat=False)
    with serving(home) as running:
        yield running


@pytest.fixture
def chat(page, server):
    """Return a function that opens the page with a query."""

    def open_chat(query="model=tale", **settings):
        page.goto(server.link)
        kept = {"temperature": 0, "max_new_tokens": 24, **settings}
        start = {"names": {}, "system": "", "settings": kept, "turns": [], "file": None}
        page.evaluate("start => sessionStorage.setItem('chat', start)", json.dumps(start))
        page.goto(f"{server.address}/chat?{query}")
        return page

    return open_chat


def send(page, text):
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answer(page, slot="a", turn=-1):
    return page.locator(f"[data-slot={slot}] .text").nth(turn)


def expected(text, seed=2, **more):
    """Return the reply of a chat session in the terminal."""
    session = open_session(speller(seed), chat=True, **more)
    return " ".join(say(session, text).split())


def done(page, count=1):
    expect(page.locator(".numbers:not(:empty)")).to_have_count(count, timeout=MANY_MS)


def workers_of(server):
    """Return the processes of chat models."""
    return [one for one in psutil.Process(server.process.pid).children() if "chat_calls" in " ".join(one.cmdline())]


def end_workers(server):
    for slot in ("a", "b"):
        server.api("/api/chat/unload", {"slot": slot})


def test_an_answer_equals_that_of_the_terminal_and_stop_keeps_what_has_arrived(chat, server):
    page = chat(max_new_tokens=24)
    send(page, "hello")
    done(page)
    expect(answer(page)).to_have_text(expected("hello"))
    expect(page.locator(".numbers").last).to_contain_text("24 tokens")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Maximum length").fill("4000")
    send(page, "a long one")
    expect(answer(page)).to_contain_text(re.compile(r"\w+ \w+ \w+"), timeout=MANY_MS)
    page.keyboard.press("Escape")
    expect(page.locator(".numbers").last).to_have_text("stopped")
    part = answer(page).inner_text()
    assert 0 < len(part) < 3900
    assert page.evaluate("document.activeElement.id") == "message"
    page.get_by_label("Maximum length").fill("8")
    send(page, "next")
    done(page, 3)
    page.reload()
    expect(answer(page, turn=1)).to_have_text(part)
    end_workers(server)
    assert workers_of(server) == []


def test_planted_markup_in_an_answer_is_text(page, server):
    folder = server.home / "conversations"
    folder.mkdir(exist_ok=True)
    source = {"n": 1, "title": "<b>Moons</b>", "url": "https://example.org/moons", "snippet": "<i>two</i>"}
    asked = {"role": "user", "content": HOSTILE, "sources": [source]}
    saved = {
        "kind": "llm-lab conversation",
        "mode": "chat",
        "model": "tale",
        "settings": {},
        "system": None,
        "messages": [asked, {"role": "assistant", "content": HOSTILE}],
    }
    (folder / "hostile.json").write_text(json.dumps(saved))
    (folder / "broken.json").write_text("{}")
    page.goto(server.link)
    page.goto(f"{server.address}/chat?model=tale#saved")
    page.get_by_role("button", name=re.compile("onerror")).first.click()
    shown = page.locator(".answer .text")
    expect(shown).to_contain_text("![leak](http://evil.example/x.png) <b>bold</b>")
    expect(shown.locator("pre")).to_have_text("<script>document.title = 'hacked'</script>")
    expect(shown.locator("strong")).to_have_text("one")
    expect(shown).to_contain_text("\u241b[31m")
    assert page.locator("#turns img, #turns b, #turns script, #turns i").count() == 0
    links = page.locator("#turns a").evaluate_all("all => all.map(one => [one.href, one.rel.includes('noopener')])")
    assert links == [["https://example.org/moons", True]] * 2
    assert "hacked" not in page.title()
    expect(page.locator("#saved-panel .help")).to_contain_text("conversations/hostile.json")
    page.get_by_role("button", name=re.compile("Delete")).click()
    page.get_by_role("button", name=re.compile("Delete")).click()
    expect(page.get_by_text("Nothing is saved yet.")).to_be_visible()
    expect(page.locator("#saved-panel .help code")).to_have_text("llm-lab chat")  # without backticks
    assert (folder / "broken.json").exists()
    assert not (folder / "hostile.json").exists()


def texts_of(page, slot):
    """Return, for each turn, the prompt, and the answer of a slot or None."""
    turns = page.locator(".turn").all()
    shown = [turn.locator(f"[data-slot={slot}] .text") for turn in turns]
    answers = [one.inner_text() if one.count() and one.is_visible() else None for one in shown]
    return [(turn.locator(".bubble").inner_text(), one) for turn, one in zip(turns, answers, strict=True)]


def test_a_file_of_messages_in_which_the_second_model_came_later_is_loaded_as_it_was(page, server):
    folder = server.home / "conversations"
    folder.mkdir(exist_ok=True)

    def side(model, *texts):
        messages = [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(texts)]
        return {"mode": "chat", "model": model, "messages": messages}

    saved = {
        "kind": "llm-lab conversation",
        **side("tale", "first", "a1", "second", "a2", "third", "a3"),
        "settings": {},
        "system": None,
        "against": side("chat", "second", "b2", "between", "b0", "third", "b3"),
    }
    (folder / "late.json").write_text(json.dumps(saved))
    page.goto(server.link)
    page.goto(f"{server.address}/chat?model=tale#saved")
    row = page.get_by_role("button", name=re.compile("first tale"))
    expect(row).to_contain_text("3 prompts")
    row.click()
    expect(page.locator(".turn")).to_have_count(4)
    assert texts_of(page, "a") == [("first", "a1"), ("second", "a2"), ("between", None), ("third", "a3")]
    assert texts_of(page, "b") == [("first", None), ("second", "b2"), ("between", "b0"), ("third", "b3")]
    assert json.loads((folder / "late.json").read_text()) == saved
    less = {**side("tale", "first", "a1"), "settings": {}, "name": "late", "turns": []}
    assert server.api("/api/chat/conversations", less)["name"] == "first"
    assert json.loads((folder / "late.json").read_text()) == saved
    for file in ("late", "first"):
        (folder / f"{file}.json").unlink()


@pytest.mark.parametrize("name", ["../tale", "..%2Ftale", "%2Fetc%2Fpasswd", ".hidden"])
def test_no_file_outside_the_folder_of_conversations_is_read_or_deleted(server, name):
    (server.home / "tale.json").write_text("{}")
    for method in ("GET", "DELETE"):
        path = f"/api/chat/conversations/{name}"
        assert server.ask(method, path, "{}", {"content-type": "application/json"})[0] in (400, 404, 405)
    body = {"mode": "chat", "model": "x", "messages": [], "name": name.replace("%2F", "/")}
    assert server.ask("POST", "/api/chat/conversations", body)[0] == 404
    assert (server.home / "tale.json").read_text() == "{}"


def test_the_server_lists_models_and_their_checkpoints_without_torch(server):
    names = [row["name"] for row in server.api("/api/chat/models")["models"] if row["group"] == "Runs"]
    assert names == ["tale"]
    found = server.api("/api/chat/model", {"model": "tale"})
    assert [(point["number"], point["step"]) for point in found["points"]] == [(10, 10), (20, 20), (30, None)]
    status, _, text = server.ask("POST", "/api/chat/model", {"model": "tail"})
    assert status == 400
    assert "Did you mean" in text
    loaded = psutil.Process(server.process.pid).memory_maps() if psutil.LINUX else []
    assert not [file.path for file in loaded if "libtorch" in file.path]


def test_a_study_is_not_listed_as_a_model_and_its_runs_are_named_instead(server):
    write_run(server.home, "study/model")
    facts = {"name": "study", "status": "done", "created_at": 2.0, "study": {"experiment": "attention"}}
    (server.home / "checkpoints" / "study" / "run.json").write_text(json.dumps(facts))
    for path in ("/models", "/new?stage=sft", "/api/chat/models"):
        text = server.ask("GET", path)[2]
        assert "tale" in text
        assert "checkpoints/study" not in text
        assert '"study"' not in text
    status, _, text = server.ask("POST", "/api/chat/model", {"model": "study"})
    assert status == 400
    assert "Name one of them: checkpoints/study/model." in text
    assert "llm-lab" not in text
    shutil.rmtree(server.home / "checkpoints" / "study")


@pytest.mark.slow
def test_regenerate_adds_an_answer_and_editing_starts_again_from_there(chat, server):
    page = chat(temperature=1.0)
    send(page, "hello")
    done(page)
    first = answer(page).inner_text()
    page.get_by_role("button", name="Reply again").click()
    expect(page.locator(".variants .numeric")).to_have_text("2 / 2", timeout=MANY_MS)
    done(page)
    assert answer(page).inner_text() != first
    page.get_by_role("button", name="Earlier reply").click()
    expect(answer(page)).to_have_text(first)
    send(page, "more")
    done(page, 2)
    page.get_by_role("button", name="Edit and send again").first.click(force=True)
    page.get_by_label("Edit the message").fill("other words")
    page.get_by_role("button", name="Send again", exact=True).click()
    expect(page.locator(".turn")).to_have_count(1)
    expect(page.locator(".bubble")).to_have_text("other words")
    done(page)
    end_workers(server)


@pytest.mark.slow
def test_two_models_answer_one_prompt_and_a_closed_comparison_frees_its_process(chat, server):
    page = chat("model=tale&against=chat")
    send(page, "hello")
    done(page, 2)
    expect(answer(page, "a")).to_have_text(expected("hello"))
    expect(answer(page, "b")).to_have_text(expected("hello", seed=3))
    expect(page.locator("[data-slot=b] .numbers")).to_contain_text(re.compile(r"A\)"))
    send(page, "and then?")
    done(page, 4)
    session = open_session(speller(3), chat=True)
    say(session, "hello")
    expect(answer(page, "b")).to_have_text(" ".join(say(session, "and then?").split()))
    assert len(workers_of(server)) == 2
    page.get_by_role("button", name="Close the comparison").click()
    expect(page.locator("[data-slot=b]")).to_have_count(0)
    assert len(workers_of(server)) == 1
    end_workers(server)


@pytest.mark.slow
def test_a_base_model_continues_the_text(chat, server):
    page = chat("model=base")
    expect(page.get_by_text("This is a base model")).to_be_visible()
    send(page, "Once upon")
    done(page)
    session = open_session(speller(3))
    written = say(session, "Once upon")
    expect(answer(page)).to_have_text(" ".join(f"Once upon{written}".split()))
    page.get_by_role("textbox", name="Message", exact=True).focus()
    page.keyboard.press("Enter")
    done(page, 2)
    expect(answer(page)).to_have_text(" ".join(say(session, "").split()))
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("System prompt")).to_be_disabled()
    end_workers(server)


@pytest.mark.slow
def test_replies_of_a_small_base_model_leave_room_in_its_context_unless_a_length_was_chosen(chat, server):
    narrow = shutil.copytree(server.home / "base", server.home / "narrow")
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 400}))
    page = chat("model=narrow", max_new_tokens=256)
    page.get_by_role("button", name="Settings").click()
    length = page.get_by_label("Maximum length")
    expect(length).to_have_value("100", timeout=MANY_MS)
    length.fill("24")
    page.reload()
    expect(page.get_by_text("parameters · context")).to_be_visible(timeout=MANY_MS)
    expect(page.get_by_label("Maximum length")).to_have_value("24")
    end_workers(server)


@pytest.mark.slow
def test_every_checkpoint_answers_the_prompt_and_its_answers_are_kept(chat, server):
    page = chat()
    send(page, "hello")
    done(page)
    for step, seed in ((20, 1), (10, 0)):
        page.keyboard.press("Alt+ArrowDown")
        expect(page.locator("#time-label")).to_have_text(f"step {step}")
        expect(answer(page)).to_have_text(expected("hello", seed=seed), timeout=MANY_MS)
        expect(page).to_have_url(re.compile(f"step={step}"))
    done(page)
    page.locator("#time-range").focus()
    page.keyboard.press("End")
    expect(answer(page)).to_have_text(expected("hello"))
    expect(page.locator(".variants .numeric")).to_have_text("1 / 3")
    page.goto(f"{server.address}/chat?model=tale&step=20")
    expect(page.locator("#time-label")).to_have_text("step 20")
    end_workers(server)


@pytest.mark.slow
def test_a_conversation_is_saved_loaded_and_opened_in_the_terminal(chat, server):
    page = chat("model=tale&against=chat")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("be short")
    send(page, "hello there")
    done(page, 2)
    page.get_by_role("tab", name="Saved").click()
    page.get_by_role("button", name="Save this conversation").click()
    expect(page.locator("#saved-panel .help")).to_contain_text("conversations/hello-there.json")
    send(page, "and then?")
    done(page, 4)
    session = open_session(speller(2), chat=True)
    session.load(server.home / "conversations" / "hello-there.json")
    assert (len(session.messages), session.system) == (4, "be short")
    before = page.locator("#turns").inner_text()
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.get_by_role("button", name=re.compile("hello there")).first.click()
    done(page, 4)
    assert page.locator("#turns").inner_text() == before
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile("Download")).click()
    assert json.loads(download.value.path().read_text())["against"]["model"] == "chat"
    send(page, "once more")
    expect(page.locator(".turn")).to_have_count(3)
    done(page, 6)
    end_workers(server)


@pytest.mark.slow
def test_a_comparison_that_began_late_is_saved_loaded_and_continued_without_loss(chat, server):
    page = chat()
    send(page, "alone")
    done(page)
    page.goto(f"{server.address}/chat?model=tale&against=chat#saved")
    send(page, "together")
    done(page, 3)
    page.get_by_role("button", name="Save this conversation").click()
    expect(page.locator("#saved-panel .help").first).to_contain_text("conversations/alone.json")
    before = page.locator("#turns").inner_text()
    file = server.home / "conversations" / "alone.json"
    turns = json.loads(file.read_text())["turns"]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.get_by_role("button", name=re.compile("alone")).first.click()
    done(page, 3)
    assert page.locator("#turns").inner_text() == before
    send(page, "and now?")
    done(page, 5)
    expect(page.locator("#saved-panel li").filter(has_text="alone")).to_contain_text("3 prompts")
    assert json.loads(file.read_text())["turns"][:2] == turns
    page.get_by_role("button", name="Edit and send again").first.click(force=True)
    page.get_by_label("Edit the message").fill("apart")
    page.get_by_role("button", name="Send again", exact=True).click()
    expect(page.get_by_text("has messages that are no longer in this conversation")).to_be_visible(timeout=MANY_MS)
    assert json.loads(file.read_text())["turns"][:2] == turns
    end_workers(server)


@pytest.mark.slow
def test_a_killed_worker_causes_one_error_and_the_next_prompt_works(chat, server):
    page = chat(max_new_tokens=4000)
    send(page, "hello")
    expect(answer(page)).to_contain_text(re.compile(r"\w+ \w+ \w+"), timeout=MANY_MS)
    workers_of(server)[0].kill()
    problem = page.locator(".problem:visible")
    expect(problem).to_have_count(1)
    expect(problem).to_contain_text("the process of this model ended unexpectedly")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Maximum length").fill("8")
    send(page, "again")
    expect(page.locator(".numbers").last).to_contain_text("8 tokens", timeout=MANY_MS)
    send(page, "x" * 5000)
    expect(page.locator(".problem:visible").last).to_contain_text("the model's context holds 4,096")
    end_workers(server)


@pytest.mark.slow
def test_a_restarted_server_finds_the_conversation_in_the_page(chromium, tmp_path):
    write_run(tmp_path, "tale")
    with serving(tmp_path) as first:
        page = chromium.new_page()
        page.goto(first.link)
        page.goto(f"{first.address}/chat?model=tale")
        send(page, "hello")
        done(page)
        first.stop(signal.SIGKILL)
        send(page, "is anybody there?")
        expect(page.locator(".problem:visible")).to_contain_text("The server does not answer")
    with serving(tmp_path, port=first.port):
        send(page, "and now?")
        done(page, 2)
        page.reload()
        expect(page.locator(".turn")).to_have_count(3)
    page.close()


@pytest.mark.slow
def test_a_reader_who_leaves_stops_the_model_and_a_second_tab_waits_for_it(chat, server, page):
    body = {"slot": "a", "model": "tale", "messages": [], "settings": {"temperature": 0, "max_new_tokens": 4000}}
    page = chat(max_new_tokens=4000)
    send(page, "hello")
    expect(answer(page)).to_contain_text(re.compile(r"\w+ \w+"), timeout=MANY_MS)
    answers = []
    short = {**body, "text": "hello", "settings": {"temperature": 0, "max_new_tokens": 5}}
    second = threading.Thread(target=lambda: answers.append(server.ask("POST", "/api/chat/reply", short)[2]))
    second.start()
    page.goto("about:blank")
    second.join(30)
    lines = [json.loads(line) for line in answers[0].splitlines()]
    assert lines[0] == {"waiting": True}
    assert lines[-1]["result"]["content"] == say(
        open_session(speller(2), chat=True, settings=type(GREEDY)(temperature=0, max_new_tokens=5)), "hello"
    )
    end_workers(server)


@pytest.mark.slow
def test_everything_is_reached_with_the_keyboard(chat, server):
    page = chat()
    expect(page.get_by_role("textbox", name="Message", exact=True)).to_be_focused()
    picker = page.get_by_role("combobox", name="Model", exact=True)
    picker.focus()
    page.keyboard.type("chat")
    expect(page.get_by_role("option", name=re.compile("Use “chat”"))).to_be_visible()
    page.keyboard.press("Enter")
    expect(picker).to_have_value("chat")
    expect(page.get_by_role("textbox", name="Message", exact=True)).to_be_focused()
    page.keyboard.type("hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("you")
    page.keyboard.press("Enter")
    done(page)
    expect(page.locator(".bubble")).to_have_text("hello\nyou")
    expect(answer(page)).to_have_text(expected("hello\nyou", seed=3))
    end_workers(server)


def test_an_updated_list_keeps_the_choice_of_the_arrow_keys(chat):
    page = chat()
    picker = page.get_by_role("combobox", name="Model", exact=True)
    picker.click()
    chosen = page.locator("#options-a .active")
    expect(chosen).to_have_attribute("data-name", "tale")
    page.keyboard.press("Escape")
    waiting = []
    page.route("**/api/chat/models", lambda route: waiting.append(route))
    picker.fill("t")
    expect(chosen).to_have_attribute("data-name", "t")
    page.keyboard.press("ArrowUp")
    expect(chosen).to_have_attribute("data-name", "tale")
    while not waiting:
        page.wait_for_timeout(10)
    chosen.evaluate("one => (one.title = 'of the first list')")
    waiting[0].continue_()
    expect(page.locator("#options-a [title]")).to_have_count(0)
    expect(chosen).to_have_attribute("data-name", "tale")


@pytest.mark.slow
def test_a_model_with_code_of_its_own_runs_it_only_after_a_yes(chat, server):
    write_model_with_code(server.home / "theirs", f"open({str(server.home / 'ran')!r}, 'w').close()\n")
    page = chat("model=theirs")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("contains custom code", timeout=MANY_MS)
    dialog.get_by_role("button", name="Don't run it").click()
    expect(page.locator(".slot .state")).to_contain_text("runs only with your permission")
    assert not (server.home / "ran").exists()
    send(page, "hello")
    dialog.get_by_role("button", name="Run its code").click()
    done(page)
    assert (server.home / "ran").exists()
    end_workers(server)


@pytest.mark.slow
@pytest.mark.parametrize("screen", [(1280, 800, "light"), (390, 844, "dark")])
def test_a_conversation_with_its_panel_and_lists_is_accessible_and_fits_the_screen(chat, server, screen):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    width, height, scheme = screen
    page = chat("model=tale&against=base")
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    send(page, "hello")
    done(page, 2)

    def check():
        page.wait_for_timeout(300)
        found = axe.Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert not [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in serious]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#composer").bounding_box()["y"] + 60 < height

    check()
    page.get_by_role("combobox", name="Second model").click()
    expect(page.get_by_role("option", name=re.compile("tale")).last).to_be_visible()
    check()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings").click()
    for name in ("Web search", "Voice"):
        page.locator("summary").filter(has_text=name).click()
    check()
    page.get_by_role("tab", name="Saved").click()
    page.get_by_role("button", name="Save this conversation").click()
    expect(page.get_by_role("link", name=re.compile("Download")).first).to_be_visible()
    check()
    end_workers(server)
