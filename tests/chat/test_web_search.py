"""Web search: what is found, what is refused, and the message for each failure of a backend."""

import inspect
import socket
import sys
import time
from pathlib import Path

import pytest
from support.searxng import running

from llm_lab.chat.web_search import WORDS, Hit, default_backend, describe_privacy, search, search_reason
from llm_lab.errors import MachineError, UserError


@pytest.fixture(scope="module")
def searxng():
    with running() as stand_in:
        yield stand_in


def test_a_searxng_returns_titles_addresses_and_snippets(searxng):
    hits = search("  moons of\nMars ", 2, backend=searxng.address() + "/")
    assert hits == [
        Hit("The red planet", "https://example.org/mars", "Mars is the fourth planet."),
        Hit("Moons of Mars", "http://example.org/moons?a=1&b=2", "Phobos and Deimos."),
    ]
    assert searxng.queries[-1] == {"q": "moons of Mars", "format": "json"}


def test_text_from_the_web_is_one_visible_line_and_only_web_addresses_are_kept(searxng):
    first, second = search("x", backend=searxng.address("poisoned"))
    assert first.title == "<b>Best</b><script>document.title='owned'</script>"
    assert second == Hit("https://example.org/untitled", "https://example.org/untitled", "")
    assert first.snippet.isprintable()
    assert "\N{SYMBOL FOR ESCAPE}[2J" in first.snippet
    assert first.snippet.isascii() is False
    assert not [sign for sign in first.snippet if ord(sign) > 0xFFFF or sign in "\u200b\u202e\x1b"]


@pytest.mark.parametrize(
    ("mode", "words"),
    {
        "forbidden": ("403", "formats: [html, json]"),
        "limited": ("429", "Wait a few minutes"),
        "broken": ("HTTP status 500",),
        "captcha": ("CAPTCHA",),
        "page": ("a web page that is not JSON",),
        "other": ("no list of results",),
        "deep": ("not JSON",),
        "huge": ("larger than 2 MB",),
        "empty": ("nothing was found",),
        "blocked": ("google (CAPTCHA), bing (timeout)",),
        "redirecting": ("it redirects to http://169.254.169.254/secrets",),
    }.items(),
)
def test_each_failure_of_a_searxng_explains_what_is_wrong(searxng, mode, words):
    with pytest.raises(UserError) as raised:
        search("x", backend=searxng.address(mode))
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("mode", ["slow", "dripping"])
def test_a_slow_answer_ends_the_search_in_time(searxng, mode):
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no answer within 0\.3 seconds"):
        search("x", backend=searxng.address(mode), seconds=0.3)
    assert time.monotonic() - began < 1.5


def test_an_address_that_does_not_answer_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=f"{address}: nothing answers"):
        search("x", backend=address)


def test_a_search_on_this_machine_uses_no_proxy(searxng, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert search("x", backend=searxng.address())


@pytest.mark.parametrize(
    "backend",
    [
        "google",
        "file:///etc/passwd",
        "ftp://host",
        "http://",
        "http://a b",
        "http://h/?q=1",
        "http://h:99999",
        "http://[",
    ],
)
def test_a_search_backend_that_does_not_exist_is_refused(backend):
    with pytest.raises(UserError, match=r"ddgs, or the address of a SearXNG server"):
        search("x", backend=backend)


def test_an_address_with_a_password_is_refused_and_not_shown():
    with pytest.raises(UserError, match="password is not supported") as raised:
        search("x", backend="http://me:hunter2@127.0.0.1")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("query", "n", "why"),
    [
        (" \n", 5, "the question is empty"),
        ("x" * 401, 5, "401 characters"),
        ("use hf_abcdefghijklmnopqrstuvwx to log in", 5, "an access token or a password"),
        ("x", 0, "1 to 20"),
        ("x", 21, "1 to 20"),
    ],
)
def test_a_question_that_must_not_be_sent_is_refused(searxng, query, n, why):
    before = len(searxng.queries)
    with pytest.raises(UserError, match=why) as raised:
        search(query, n, backend=searxng.address())
    assert len(searxng.queries) == before
    assert "hf_abc" not in str(raised.value)


def test_the_default_backend_is_the_address_in_the_environment(searxng, monkeypatch):
    monkeypatch.delenv("LLM_LAB_SEARXNG", raising=False)
    assert default_backend() == "ddgs"
    monkeypatch.setenv("LLM_LAB_SEARXNG", searxng.address())
    assert search("x")
    assert searxng.address() in describe_privacy(default_backend())


FAKE_DDGS = """
from . import exceptions
class DDGS:
    def __init__(self, timeout): pass
    def text(self, query, max_results):
        if query == "found":
            return [{"title": "A", "href": "https://example.org/a", "body": "b"}, {"title": "no address"}] * max_results
        raise {"limited": exceptions.RatelimitException("202"), "slow": exceptions.TimeoutException("timed out"),
               "none": exceptions.DDGSException("No results found."),
               "offline": exceptions.DDGSException("DNSError('no records found')"),
               "changed": exceptions.DDGSException("html changed")}[query]
"""
EXCEPTIONS = """
class DDGSException(Exception): pass
class RatelimitException(DDGSException): pass
class TimeoutException(DDGSException): pass
"""


@pytest.fixture
def ddgs(tmp_path, monkeypatch):
    """A package with the interface of ddgs 9, which needs no network."""
    (tmp_path / "ddgs").mkdir()
    (tmp_path / "ddgs" / "__init__.py").write_text(FAKE_DDGS)
    (tmp_path / "ddgs" / "exceptions.py").write_text(EXCEPTIONS)
    modules = ("ddgs", "ddgs.exceptions")
    for name in modules:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with monkeypatch.context() as path:
        path.syspath_prepend(tmp_path)
        yield
    for name in modules:
        sys.modules.pop(name, None)


def test_ddgs_results_are_read(ddgs):
    assert search("found", 3, backend="ddgs") == [Hit("A", "https://example.org/a", "b")]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("limited", "refuse further requests"),
        ("slow", "no answer within"),
        ("none", "nothing was found"),
        ("offline", "Check the network connection"),
        ("changed", r"html changed.*update ddgs"),
    ],
)
def test_each_failure_of_ddgs_explains_what_is_wrong(ddgs, query, why):
    with pytest.raises(UserError, match=why):
        search(query, backend="ddgs")


def test_without_ddgs_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ddgs", None)
    with pytest.raises(MachineError, match=r"pip install 'llm-lab\[search\]', or set LLM_LAB_SEARXNG"):
        search("x", backend="ddgs")


def test_the_installed_ddgs_has_the_interface_that_llm_lab_uses():
    pytest.importorskip("ddgs", reason="ddgs is not installed (the extra `search`)")
    from ddgs import exceptions
    from ddgs.ddgs import DDGS

    assert "timeout" in inspect.signature(DDGS.__init__).parameters
    assert {"RatelimitException", "TimeoutException", "DDGSException"} <= set(dir(exceptions))
    # `text` passes its options to this function.
    assert "max_results" in inspect.signature(DDGS._search_sync).parameters


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("What is the LATEST Python?", "LATEST"),
        ("Who won the match?", "Who won"),
        ("Rain\ntoday, or news?", "today"),
        ("What happened in 2026?", "2026"),
        ("What happened in 1969?", None),
        ("Write the game 2048 for me", None),
        ("Tom has 3 nuts. How many nuts does Tom have now?", None),
        ("The newsagent was outdated", None),
        ("", None),
    ],
)
def test_words_about_the_present_are_a_reason_to_search(text, reason):
    assert search_reason(text, year=2026) == reason


def test_the_documentation_lists_all_words_that_start_a_search():
    text = " ".join((Path(__file__).parents[2] / "docs" / "chat.md").read_text(encoding="utf-8").split())
    assert [word for word in WORDS if f" {word}," not in text and f" {word};" not in text] == ["up-to-date"]
