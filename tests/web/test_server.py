"""`llm-lab web` starts at once, ends at once, and can be restarted."""

import signal

import pytest
from support.web_server import WebServer, serving


def test_ctrl_c_ends_the_server_at_once_also_while_a_page_is_open(tmp_path):
    with serving(tmp_path) as server:
        assert server.ask("GET", "/")[0] == 200
        assert server.stop(signal.SIGINT) < 3
        assert server.process.returncode == 0
        assert "Closed. Runs continue." in server.output.read_text()


def test_a_page_keeps_its_cookie_when_the_server_is_started_again(tmp_path):
    first = WebServer(tmp_path)
    assert first.ask("GET", "/")[0] == 200
    first.stop(signal.SIGKILL)
    with serving(tmp_path, port=first.port) as second:
        second._cookie = first._cookie
        assert second.ask("GET", "/")[0] == 200
        assert second.token != first.token
        assert (tmp_path / "state" / "llm-lab" / "web" / f"session-{first.port}").stat().st_mode & 0o077 == 0


def test_a_port_that_is_taken_is_an_error_that_says_so(server, tmp_path):
    from llm_lab.errors import UserError
    from llm_lab.web.server import serve

    with pytest.raises(UserError, match=f"--port = {server.port}: Address already in use"):
        serve(server.port, say=print)
    with pytest.raises(UserError, match="Allowed: 0 to 65535"):
        serve(99999, say=print)


def test_the_page_shows_when_its_server_is_gone_and_reconnects_by_itself(page, tmp_path):
    from playwright.sync_api import expect

    first = WebServer(tmp_path)
    page.goto(first.link)
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    first.stop(signal.SIGKILL)
    expect(page.locator("#lost")).to_contain_text("does not answer")
    with serving(tmp_path, port=first.port):
        expect(page.locator("#lost")).to_be_hidden(timeout=10_000)


@pytest.mark.parametrize("body", ["", "[]", "{", "null", '{"topics": []}', '{"topics": {"runs": {}, "x:../..": 1}}'])
def test_a_wrong_request_is_answered_with_its_problem_and_never_by_a_crash(server, body):
    headers = {"Content-Type": "application/json"}
    status, _, text = server.ask("POST", "/api/updates", body, headers)
    assert status in (200, 400)
    assert ("updates" if status == 200 else "problems") in text
