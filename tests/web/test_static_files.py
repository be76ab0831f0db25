"""Templates and scripts: no data is parsed as HTML, nothing is inline or from elsewhere, and files are small."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parent.parent.parent / "llm_lab" / "web"
TEMPLATES = sorted((WEB / "templates").glob("*.html"))
SCRIPTS = sorted((WEB / "static").glob("*.js"))
STYLES = sorted((WEB / "static").glob("*.css"))
HEAVY = ("torch", "transformers", "datasets", "pandas", "trl", "peft", "pyarrow", "numpy")


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_a_script_never_interprets_text_as_html_or_code(file):
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|createContextualFragment"
    )
    assert not re.findall(forbidden, file.read_text())


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_a_template_escapes_everything_and_has_nothing_inline(file):
    text = file.read_text()
    assert not re.findall(r"\|\s*safe\b|Markup|autoescape", text)
    assert not re.findall(r"""\sstyle=|\son\w+=|<style|javascript:""", text)
    assert not re.findall(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)", text)


@pytest.mark.parametrize("file", [*TEMPLATES, *SCRIPTS, *STYLES], ids=lambda file: file.name)
def test_a_file_names_no_other_site(file):
    named = set(re.findall(r"https?://[\w.-]+", file.read_text()))
    assert named <= {"http://www.w3.org", "http://127.0.0.1"}


def test_the_first_page_weighs_less_than_200_kilobytes(server):
    text = server.ask("GET", "/")[2]
    size, files = len(text.encode()), set(re.findall(r"""(?:src|href)="(/static/[^"]+)""", text))
    while files:
        file = files.pop()
        content = server.ask("GET", file)[2]
        size += len(content.encode())
        files |= {f"/static/{name}" for name in re.findall(r"""from "\./([\w.-]+)";""", content)}
    assert size < 200_000


def test_the_server_imports_nothing_heavy():
    program = f"import sys, llm_lab.web.server, llm_lab.web.app; print([n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
