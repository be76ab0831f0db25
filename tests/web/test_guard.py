"""The web server answers only the user's own browser."""

import pytest


def test_the_printed_link_gives_a_cookie_and_leaves_the_token_out_of_the_address(server):
    status, headers, _ = server.ask("GET", f"/?start={server.token}&sort=name", cookie=False)
    assert (status, headers["location"]) == (303, "/?sort=name")
    assert headers["set-cookie"].startswith(f"llm-lab-{server.port}=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(headers["set-cookie"].split("; "))
    assert server.ask("GET", "/")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "has_cookie"),
    [
        ("GET", "/", {}, False),
        ("GET", "/?start=wrong", {}, False),
        ("GET", "/static/lab.js", {}, False),
        ("GET", "/", {"Host": "evil.example"}, True),
        ("GET", "/", {"Host": "127.0.0.1"}, True),
        ("GET", "/", {"Host": "127.0.0.1:1"}, True),
        ("GET", "/", {"Origin": "https://evil.example"}, True),
        ("GET", "/", {"Origin": "null"}, True),
        ("GET", "/", {"Sec-Fetch-Site": "cross-site"}, True),
        ("GET", "/", {"Sec-Fetch-Site": "same-site"}, True),
        ("POST", "/api/updates", {"Content-Type": "text/plain"}, True),
        ("POST", "/api/updates", {"Content-Type": "multipart/form-data; boundary=x"}, True),
        ("POST", "/api/updates", {"Content-Type": "application/x-www-form-urlencoded"}, True),
        ("POST", "/api/updates", {}, True),
        ("POST", "/api/updates", {"Content-Type": "application/json", "Origin": "https://evil.example"}, True),
    ],
)
def test_a_foreign_request_is_refused_with_the_reason(server, method, path, headers, has_cookie):
    headers = {"Origin": server.address, **headers} if method == "POST" else headers
    status, answered, text = server.ask(method, path, "{}" if method == "POST" else None, headers, cookie=has_cookie)
    assert status == 403
    assert text.strip().endswith(".")
    assert "access-control-allow-origin" not in answered
    assert "set-cookie" not in answered


def test_the_right_token_from_a_foreign_page_gives_no_cookie(server):
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}):
        status, answered, _ = server.ask("GET", f"/?start={server.token}", headers=headers, cookie=False)
        assert status == 403
        assert "set-cookie" not in answered


@pytest.mark.parametrize("path", ["/", "/static/lab.js", "/api/nothing", "/runs/nothing"])
def test_every_answer_has_a_strict_policy(server, path):
    headers = server.ask("GET", path)[1]
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", ["../secret", "..%2fsecret", "%2e%2e/secret", "a/../../secret", "/etc", "link", "."])
def test_an_address_reaches_nothing_outside_the_runs(server, name):
    secret = server.home / "secret"
    secret.mkdir(exist_ok=True)
    (secret / "run.json").write_text('{"status": "done", "name": "outside"}')
    link = server.home / "checkpoints" / "link"
    if not link.is_symlink():
        link.symlink_to(secret)
    assert server.ask("GET", f"/runs/{name}")[0] == 404
