"""The routes of web search and voice: what they accept, answer and refuse."""

import pytest
from support.searxng import running
from support.sounds import noise, tone, wav_of


@pytest.fixture(scope="module")
def searxng():
    with running() as stand_in:
        yield stand_in


def ask(server, path, body, kind=None):
    status, headers, text = server.ask("POST", path, body, {"Content-Type": kind} if kind else None)
    return status, headers, text


def test_a_search_returns_numbered_results_and_says_where_the_question_went(server, searxng):
    found = server.api("/api/search", {"query": "mars", "backend": searxng.address()})
    assert found["backend"] == searxng.address()
    assert found["hits"][0] == {
        "n": 1,
        "title": "The red planet",
        "url": "https://example.org/mars",
        "snippet": "Mars is the fourth planet.",
    }
    about = server.api("/api/search/describe", {"backend": searxng.address()})
    assert about["privacy"].startswith("Your question leaves this machine: the SearXNG server at http://127.0.0.1")
    assert "DuckDuckGo" in server.api("/api/search/describe", {"backend": "ddgs"})["privacy"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"query": ""}, "the question is empty"),
        ({"query": 7}, "the question is empty"),
        ({"query": "x", "backend": "file:///etc/passwd"}, "not a backend"),
    ],
)
def test_a_search_that_is_refused_says_why(server, searxng, body, why):
    status, _, text = ask(server, "/api/search", {"backend": searxng.address(), **body})
    assert status == 400
    assert why in text


def test_a_failed_search_is_an_error_for_the_user(server, searxng):
    status, _, text = ask(server, "/api/search", {"query": "x", "backend": searxng.address("captcha")})
    assert status == 400
    assert "CAPTCHA" in text


def test_the_word_that_triggers_a_search_is_named(server):
    assert server.api("/api/search/reason", {"text": "the Latest moons"}) == {"reason": "Latest"}
    assert server.api("/api/search/reason", {"text": "the moons"}) == {"reason": None}


def test_silence_is_an_empty_text_and_other_recordings_are_refused(server):
    assert ask(server, "/api/voice/listen", wav_of(noise(1, 0.001)), "audio/wav")[2] == '{"text":""}'
    for body, why in ((b"x", "not a WAV file"), (b"x" * 4_000_000, "at most 120 seconds")):
        status, _, text = ask(server, "/api/voice/listen", body, "audio/wav")
        assert (status, why in text) == (400, True)


@pytest.mark.slow
def test_a_whisper_that_does_not_exist_is_named(server):
    status, _, text = ask(server, "/api/voice/listen?model=/nowhere/whisper", wav_of(tone(1)), "audio/wav")
    assert status == 400
    assert "/nowhere/whisper" in text


def test_without_piper_the_page_gets_the_reason(server):
    about = server.api("/api/voice")
    assert about["whisper"] == "openai/whisper-tiny"
    assert server.api("/api/voice?model=nobody/whisper")["downloaded"] is False
    assert server.api("/api/voice?model=.")["downloaded"] is True
    assert "pip install" in about["piper"]["why"] or "LLM_LAB_PIPER_VOICE" in about["piper"]["why"]
    status, _, text = ask(server, "/api/voice/speak", {"text": "hello"})
    assert status == 400
    assert "piper" in text
