"""Who may use the server: only this machine's browser, after it has opened the printed link.

A page of another site can send requests to 127.0.0.1 (CSRF), and can point its own name at 127.0.0.1 to read the
answers (DNS rebinding). The guard therefore checks the exact Host with its port, the Origin and Sec-Fetch-Site, refuses
requests that a form of another site could send, and requires a cookie that only the printed link gives.
"""

from __future__ import annotations

import hmac
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = "start"  # the name of the start token in the printed link
READ = ("GET", "HEAD")
LONGEST_PATH = 2000  # characters; names in addresses are much shorter
# Content types that a form of another site can send without a CORS preflight.
FORM_TYPES = ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(self)",
}
OPEN_THE_LINK = "Open the link that `llm-lab web` printed in the terminal: it has the token that this page requires."


def hosts_of(port: int) -> tuple[str, ...]:
    """Return the values of the Host header that mean this server."""
    return tuple(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))


class Guard:
    """ASGI middleware that refuses requests from anywhere but the user's own browser, with 403 and the reason.

    token: the one in the printed link. session: the value of the cookie that the token is exchanged for.
    """

    def __init__(self, app: ASGIApp, *, port: int, token: str, session: str) -> None:
        self.app = app
        self._hosts = hosts_of(port)
        self._origins = tuple(f"http://{host}" for host in self._hosts)
        self._token, self._session = token, session
        self._cookie = f"llm-lab-{port}"  # with the port, as browsers send cookies to every port of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or pass on a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the server does not use websockets
        request = Request(scope)
        reason = self._foreign(request.headers, request.method)
        given = request.query_params.get(TOKEN)
        if reason is None and given is not None and request.method in READ:
            if hmac.compare_digest(given.encode(), self._token.encode()):
                await self._enter(request)(scope, receive, _with_headers(send))
                return
            reason = f"This link is from an earlier start of the server. {OPEN_THE_LINK}"
        known = request.cookies.get(self._cookie, "")
        if reason is None and not hmac.compare_digest(known.encode(), self._session.encode()):
            reason = OPEN_THE_LINK
        if reason is not None:
            await PlainTextResponse(reason + "\n", 403)(scope, receive, _with_headers(send))
            return
        if len(scope["path"]) > LONGEST_PATH:
            await PlainTextResponse("The address is too long.\n", 414)(scope, receive, _with_headers(send))
            return
        await self.app(scope, receive, _with_headers(send))

    def _foreign(self, headers: Headers, method: str) -> str | None:
        """Return why a request can't come from the user's own page, or None."""
        if headers.get("host") not in self._hosts:
            return f"The host is not allowed. Allowed: {', '.join(self._hosts)}."
        if headers.get("origin", self._origins[0]) not in self._origins:
            return "The origin is not allowed: another site sent this request."
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return f"Another site sent this request, or linked to it. {OPEN_THE_LINK}"
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if method not in READ and kind in FORM_TYPES:
            return "The content type is not allowed. Allowed: application/json, or that of an uploaded file."
        return None

    def _enter(self, request: Request) -> RedirectResponse:
        """Exchange the token of the link for the cookie, and remove it from the address."""
        rest = [(name, value) for name, value in parse_qsl(request.url.query) if name != TOKEN]
        path = "/" + request.url.path.lstrip("/")
        response = RedirectResponse(f"{path}?{urlencode(rest)}" if rest else path, 303)
        response.set_cookie(self._cookie, self._session, httponly=True, samesite="strict", path="/")
        return response


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            for name, value in HEADERS.items():
                headers.setdefault(name, value)  # pictures have a stricter policy of their own
            if "cache-control" not in headers:
                headers["cache-control"] = "no-store"
            message["headers"] = headers.raw
        await send(message)

    return send_with_headers
