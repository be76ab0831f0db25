"""Web search: titles, snippets and addresses from ddgs or a SearXNG server. The pages found are never opened."""

from __future__ import annotations

import datetime
import ipaddress
import os
import queue
import re
import threading
import time
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlencode, urlsplit

from llm_lab.errors import LabError, MachineError, Problem, UserError
from llm_lab.limits import parse_json
from llm_lab.safe_text import has_secret, printable, shorten, valid_text

KEY = "web search"
DDGS = "ddgs"
ADDRESS_VARIABLE = "LLM_LAB_SEARXNG"
INSTALL = f"pip install 'llm-lab[search]', or set {ADDRESS_VARIABLE} to the address of a SearXNG server."
MOST_RESULTS = 20
LONGEST_QUERY = 400
LONGEST_TITLE, LONGEST_SNIPPET, LONGEST_ADDRESS = 200, 500, 500
LARGEST_ANSWER = 2_000_000  # bytes
SECONDS = 10.0
# These join letters in Persian, Indic scripts and emoji; all other format characters are invisible or reverse text.
_JOINERS = "\u200c\u200d"
_BACKENDS = "ddgs, or the address of a SearXNG server, such as http://127.0.0.1:8888"
# Words that show that a message asks about current events, which a model can't know. They are listed in docs/chat.md.
# "now" and "current" alone are too common: "How many nuts does Tom have now?".
WORDS = (
    *("latest", "newest", "most recent", "up to date", "up-to-date", "right now", "at the moment", "currently"),
    *("today", "tonight", "tomorrow", "yesterday", "this week", "this month", "this year", "last week", "last month"),
    *("news", "headlines", "breaking", "weather", "forecast"),
    *("stock price", "share price", "exchange rate", "release date", "who won"),
    *("search the web", "search for", "look up"),
)
YEARS_BEFORE, YEARS_AFTER = 3, 1  # relative to the current year
_PATTERN = re.compile(r"\b(?:" + "|".join(r"\s+".join(map(re.escape, word.split())) for word in WORDS) + r")\b", re.I)
_CAPTCHA = ("captcha", "are you a robot", "unusual traffic", "not a robot", "challenge")


def search_reason(text: str, year: int | None = None) -> str | None:
    """Return the first word of a message because of which it needs a search, as written, or None.

    A recent year counts too. year: the current year; by default that of this machine's clock.
    """
    year = year or datetime.date.today().year
    years = "|".join(str(one) for one in range(year - YEARS_BEFORE, year + YEARS_AFTER + 1))
    found = [match for match in (_PATTERN.search(text), re.search(rf"\b(?:{years})\b", text)) if match]
    return min(found, key=lambda match: match.start())[0] if found else None


@dataclass(frozen=True)
class Hit:
    """One search result: text on one line each, and an http(s) address."""

    title: str
    url: str
    snippet: str


def search(query: str, n: int = 5, *, backend: str | None = None, seconds: float = SECONDS) -> list[Hit]:
    """Return up to n results, best first; never an empty list.

    backend: "ddgs" or the address of a SearXNG; by default the address in LLM_LAB_SEARXNG, else ddgs.
    Raises UserError if the query is refused, nothing is found or the backend fails, MachineError without ddgs.
    """
    query = " ".join(printable(valid_text(query)).split())
    if not query:
        raise UserError(Problem(KEY, "the question is empty"))
    if len(query) > LONGEST_QUERY:
        why = f"the question has {len(query):,} characters"
        raise UserError(Problem(KEY, why, allowed=f"at most {LONGEST_QUERY}", fix="Search for a few words."))
    if has_secret(query):
        why = "the question seems to hold an access token or a password, and a search sends it to other machines"
        raise UserError(Problem(KEY, why, fix="Remove it."))
    if not 1 <= n <= MOST_RESULTS:
        raise UserError(Problem("number of results", "invalid value", value=n, allowed=f"1 to {MOST_RESULTS}"))
    backend = check_backend(backend or default_backend())
    find = _ask_ddgs if backend == DDGS else _ask_searxng
    hits = hits_from(_within(seconds, lambda: find(backend, query, n, seconds)))[:n]
    if not hits:
        raise UserError(Problem(KEY, "nothing was found", fix="Use other words."))
    return hits


def default_backend() -> str:
    """Return the address in LLM_LAB_SEARXNG, or "ddgs"."""
    return os.environ.get(ADDRESS_VARIABLE, "").strip() or DDGS


def check_backend(backend: str) -> str:
    """Return "ddgs", or the address of a SearXNG without a slash at the end. Raises UserError if it is neither."""
    backend = backend.strip()
    if backend.lower() == DDGS:
        return DDGS
    problem = Problem("search backend", "not a backend", value=backend, allowed=_BACKENDS)
    try:
        parts = urlsplit(backend)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        valid = False
    if not valid or not backend.isprintable() or " " in backend or parts.query or parts.fragment:
        raise UserError(problem)
    if parts.username or parts.password:
        why = "an address with a password is not supported"
        raise UserError(Problem("search backend", why, fix="Use an address that needs none."))
    return backend.rstrip("/").removesuffix("/search")


def describe_privacy(backend: str) -> str:
    """Return the sentence that says where a question is sent."""
    if backend == DDGS:
        return "Your question leaves this machine: ddgs sends it to public search engines, such as DuckDuckGo and Bing."
    return f"Your question leaves this machine: the SearXNG server at {backend} sends it to public search engines."


def hits_from(rows: Iterable[Any]) -> list[Hit]:
    """Return the usable results in untrusted rows (title, url, snippet), each address once.

    Results whose address is not http(s), or contains a hidden user name, are left out.
    """
    found: dict[str, Hit] = {}
    for row in rows:
        if not isinstance(row, Mapping):
            continue
        url = str(row.get("url") or "").strip()
        if not _is_web_address(url) or url in found:
            continue
        title = _one_line(row.get("title"), LONGEST_TITLE) or url
        found[url] = Hit(title, url, _one_line(row.get("snippet"), LONGEST_SNIPPET))
    return list(found.values())


def _is_web_address(url: str) -> bool:
    if len(url) > LONGEST_ADDRESS or not url.isprintable() or any(sign in url for sign in ' "<>\\'):
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc


def _one_line(text: Any, longest: int) -> str:
    """Return text from elsewhere on one line, without invisible characters."""
    visible = "".join(
        sign
        for sign in valid_text(str(text or "")[: 4 * longest])
        if unicodedata.category(sign) != "Cf" or sign in _JOINERS
    )
    return shorten(printable(" ".join(visible.split())), longest)


def _within(seconds: float, work: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the result of work. Raises UserError after `seconds`; a socket's timeout applies only to each read."""
    answers: queue.Queue[list[dict[str, Any]] | BaseException] = queue.Queue()

    def run() -> None:
        try:
            answers.put(work())
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=run, daemon=True, name="web search").start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise _slow(seconds) from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _slow(seconds: float) -> UserError:
    return UserError(Problem(KEY, f"no answer within {seconds:g} seconds", fix="Try again, or use another backend."))


# ddgs


def _ask_ddgs(_: str, query: str, n: int, seconds: float) -> list[dict[str, Any]]:
    try:
        from ddgs import DDGS as Engines
        from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException
    except ImportError:
        raise MachineError(Problem(KEY, "ddgs is not installed", fix=INSTALL)) from None
    try:
        rows = Engines(timeout=max(1, int(seconds / 2))).text(query, max_results=n)
    except RatelimitException:
        raise _too_many("the search engines refuse further requests for now") from None
    except TimeoutException:
        raise _slow(seconds) from None
    except DDGSException as error:
        if "No results" in str(error):
            return []
        why = f"ddgs found nothing: {_one_line(error, 200)}"
        fix = "Search engines sometimes refuse ddgs: try again later, update ddgs, or use a SearXNG server."
        if any(word in str(error) for word in ("DNSError", "ConnectError")):
            why, fix = "the search engines can't be reached", "Check the network connection."
        raise UserError(Problem(KEY, why, fix=fix)) from None
    return [{"title": row.get("title"), "url": row.get("href"), "snippet": row.get("body")} for row in rows]


def _too_many(why: str) -> UserError:
    return UserError(Problem(KEY, why, fix="Wait a few minutes, or use another backend."))


# SearXNG


def _ask_searxng(address: str, query: str, n: int, seconds: float) -> list[dict[str, Any]]:
    body = _fetch(address, query, seconds)
    try:
        answer = parse_json(body)
    except ValueError:
        raise _no_json(address, body) from None
    rows = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise UserError(Problem(KEY, "the answer has no list of results: this is not a SearXNG server", value=address))
    if not rows and (silent := _silent_engines(answer)):
        why = f"nothing was found, and these engines did not answer: {silent}"
        raise UserError(Problem(KEY, why, fix="Try again later, or choose other engines in SearXNG's settings."))
    return [
        {"title": row.get("title"), "url": row.get("url"), "snippet": row.get("content")}
        for row in rows
        if isinstance(row, dict)
    ]


def _fetch(address: str, query: str, seconds: float) -> bytes:
    """Return the body of SearXNG's answer. Redirects are not followed, because they can lead to any machine."""
    until = time.monotonic() + seconds
    request = urllib.request.Request(
        f"{address}/search?{urlencode({'q': query, 'format': 'json'})}",
        headers={"Accept": "application/json", "Accept-Language": "en", "User-Agent": "llm-lab"},
    )
    handlers: list[Any] = [_NoRedirects()]
    if _is_this_machine(address):
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=seconds) as response:
            body = b""
            while piece := response.read1(1 << 16):
                body += piece
                if len(body) > LARGEST_ANSWER:
                    why = f"the answer is larger than {LARGEST_ANSWER // 1_000_000} MB: this is not a SearXNG server"
                    raise UserError(Problem(KEY, why, value=address))
                if time.monotonic() > until:
                    raise TimeoutError
            return body
    except urllib.error.HTTPError as error:
        raise _refused(address, error) from None
    except TimeoutError:
        raise _slow(seconds) from None
    except (OSError, HTTPException) as error:
        raise _unreachable(address, error, seconds) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _is_this_machine(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refused(address: str, error: urllib.error.HTTPError) -> LabError:
    if error.code == 403:
        why = "it refuses to answer in JSON (403)"
        fix = "In SearXNG's settings.yml, add json to search: formats: [html, json], and restart it."
        return UserError(Problem(KEY, why, value=address, fix=fix))
    if error.code == 429:
        return _too_many(
            f"{address} refuses further requests for now (429); its limiter may block programs (server: limiter)"
        )
    if 300 <= error.code < 400:
        to = _one_line(error.headers.get("Location"), LONGEST_ADDRESS)
        return UserError(
            Problem(KEY, f"it redirects to {to}", value=address, fix="Use the address that it redirects to.")
        )
    known = {401: "it requires a login (401)", 404: "there is no SearXNG server at this address (404)"}
    return UserError(Problem(KEY, known.get(error.code, f"it answers with HTTP status {error.code}"), value=address))


def _unreachable(address: str, error: OSError | HTTPException, seconds: float) -> LabError:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return _slow(seconds)
    if isinstance(reason, ConnectionRefusedError):
        return UserError(
            Problem(KEY, "nothing answers at this address", value=address, fix="Start SearXNG, or use another address.")
        )
    why = f"it can't be reached: {_one_line(reason, 200) or type(reason).__name__}"
    return UserError(Problem(KEY, why, value=address))


def _no_json(address: str, body: bytes) -> LabError:
    text = body[:200_000].decode("utf-8", "replace").lower()
    if any(words in text for words in _CAPTCHA):
        why = "it answers with a page that asks whether you are human (a CAPTCHA), not with results"
        return UserError(Problem(KEY, why, value=address, fix="Try again later, or use another backend."))
    what = "a web page" if "<html" in text or "<!doctype" in text else "something"
    fix = "Check that it is the address of a SearXNG server."
    return UserError(Problem(KEY, f"it answers with {what} that is not JSON", value=address, fix=fix))


def _silent_engines(answer: dict[str, Any]) -> str:
    """Return the engines that SearXNG could not query, with the reasons."""
    engines = answer.get("unresponsive_engines")
    if not isinstance(engines, list):
        return ""
    return _one_line(
        ", ".join(f"{one[0]} ({one[1]})" for one in engines if isinstance(one, list) and len(one) == 2), 200
    )
