"""A real `llm-lab web` in a folder of its own, and a real Chromium for its pages."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

# As root, Chromium needs --no-sandbox; the other options keep it from contacting Google's servers.
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def find_chromium():
    """Return the path of Debian's Chromium, or of another one; None if there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def run_apart(coroutine):
    """Return the result of a coroutine, run in a thread of its own: Playwright keeps an event loop in the main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


class WebServer:
    """A running `llm-lab web`. link: the printed link; port; home: the folder with its checkpoints/."""

    def __init__(self, home: Path, *, port: int = 0, environment: dict | None = None):
        self.home = home
        self.output = home / "web.log"
        # In a session of its own, so that the SIGINT of a test reaches nothing else.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llm_lab.cli", "web", "--port", str(port)],
            cwd=home,
            stdout=self.output.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "XDG_STATE_HOME": str(home / "state"), **(environment or {})},
        )
        deadline = time.monotonic() + 30
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/\?start=(\S+)", self.output.read_text())):
            assert time.monotonic() < deadline, self.output.read_text()
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.05)
        self.link, self.port, self.token = found[0], int(found[1]), found[2]
        self.address = f"http://127.0.0.1:{self.port}"
        self._cookie = None

    def ask(self, method, path, body=None, headers=None, *, cookie=True):
        """Return (status, headers, body as text) of one request, by default with the cookie of the page."""
        if cookie and self._cookie is None:
            entered = self.ask("GET", f"/?start={self.token}", cookie=False)
            self._cookie = entered[1]["set-cookie"].split(";")[0]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        all_headers = {"Cookie": self._cookie} if cookie else {}
        if isinstance(body, dict):
            body, all_headers["Content-Type"] = json.dumps(body), "application/json"
        connection.request(method, path, body, all_headers | (headers or {}))
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
        connection.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, text

    def api(self, path, body=None):
        """Return the JSON of an answer; with a body, that of a POST."""
        status, _, text = self.ask("GET" if body is None else "POST", path, body)
        assert status == 200, f"{status}: {text}"
        return json.loads(text)

    def stop(self, number=signal.SIGINT):
        """Stop the server; return how many seconds that took."""
        started = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return time.monotonic() - started


@contextmanager
def serving(home: Path, **options):
    """Run a server in a folder for the length of a block."""
    server = WebServer(home, **options)
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)
