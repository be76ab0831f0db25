"""A page is one file that makes no requests, shows every text as text, and can be read with a screen reader."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from llm_lab.runs.page import Page
from llm_lab.runs.plots import Line, draw_lines
from llm_lab.safe_text import printable

HOSTILE = "<script>alert(1)</script><img src=http://x onerror=y>&amp;\x1b[2J\x00\u202e\"'</table></main>"


class Elements(HTMLParser):
    """The elements of a page as (tag, attributes), and the texts in each kind of element."""

    def __init__(self, html):
        super().__init__()
        self.found, self.texts, self._open = [], {}, []
        self.feed(html)
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def page_of(text):
    page = Page(text)
    page.heading(text)
    page.text(f"{text}\n\nsecond paragraph")
    page.items([text])
    page.picture(draw_lines([Line(text, [(1, 1.0), (2, 2.0)])], title=text, x=text, y=text), text)
    page.table([text, "loss", "kind"], [[text, "1.25", text], ["b", "-3e-4", text]], text)
    with page.details(text):
        page.code(text)
    return page


def test_a_page_is_complete_and_readable_by_screen_readers():
    page = Elements(page_of("a & b").html())
    assert page.all("html") == [{"lang": "en"}]
    assert page.texts["title"][0] == page.texts["h1"][0] == "a & b"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert [cell["scope"] for cell in page.all("th")] == ["col"] * 3 + ["row"] * 2
    assert page.texts["figcaption"] == ["a & b", "a & b"]
    assert [table["aria-label"] for table in page.all("table")] == ["a & b"]
    assert all(box["aria-label"] and box["tabindex"] == "0" for box in page.all("div")), "it scrolls by keyboard"
    assert page.texts["summary"] == page.texts["code"] == ["a & b"]
    assert page.texts["p"] == ["a & b", "second paragraph"]


def test_numbers_are_aligned_to_the_right_and_texts_are_not():
    page = Elements(page_of("a").html())
    assert [cell.get("class") for cell in page.all("th")[:3]] == [None, "number", None]
    assert [cell.get("class") for cell in page.all("td")] == ["number", None] * 2
    page = Page("t")
    page.table(["seed", "loss"], [["1", "2.5"], ["2", "failed"], ["3", ""], ["4", "2.6"]])
    assert {cell.get("class") for cell in Elements(page.html()).all("td")} == {"number"}


def test_no_text_is_read_as_html():
    html = page_of(HOSTILE).html()
    page, plain = Elements(html), Elements(page_of("a").html())
    assert {tag for tag, _ in page.found} == {tag for tag, _ in plain.found}
    assert page.texts["h1"] == [re.sub(r"[\x1b\x00\u202e]", lambda sign: printable(sign[0]), HOSTILE)]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", html)


def test_a_page_makes_no_request():
    html = page_of(HOSTILE).html()
    page = Elements(html)
    for _, attributes in page.found:
        assert not attributes.keys() & {"src", "href", "srcset", "action", "onerror", "onload", "data"}
    assert "url(" not in html
    assert "@import" not in html
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script-src 'none'" in policy


def test_only_our_own_scripts_are_allowed_to_run():
    page = page_of("a")
    page.raw('<div id="own"></div>', script="let own = 1;")
    html = page.html()
    digest = base64.b64encode(hashlib.sha256(b"let own = 1;").digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "<script>let own = 1;</script>" in html
    assert '<div id="own"></div>' in html


def test_text_between_backticks_is_code():
    page = Page("t")
    page.text("Run `llm-lab look <x>` or `a")
    elements = Elements(page.html())
    assert elements.texts["code"] == ["llm-lab look <x>"]
    assert "".join(elements.texts["p"]) == "Run  or `a"


def test_a_table_without_rows_says_so():
    page = Page("t")
    page.table(["a", "b"], [])
    assert "no rows" in Elements(page.html()).texts["td"]


def test_only_a_picture_is_accepted_as_a_picture():
    with pytest.raises(ValueError, match="SVG"):
        Page("t").picture("<img src=x>", "caption")
