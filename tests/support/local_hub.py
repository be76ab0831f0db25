"""A local server with the HTTP interface of the Hub that huggingface_hub uses, which can fail on demand.

Repositories are in memory. Large files are Git LFS objects (one PUT, or in parts); Xet is not supported.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

from support.hub_interface import Handler


@dataclass(frozen=True)
class User:
    """The user of a token. role: read, write or fineGrained; scoped: names a fine-grained token can write to.

    organizations: where the user can write; guest_of: where the user can only read.
    """

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()
    scoped: tuple[str, ...] = ()
    guest_of: tuple[str, ...] = ()

    def may_write(self, namespace: str) -> bool:
        allowed = self.scoped if self.role == "fineGrained" else (self.name, *self.organizations)
        return self.role != "read" and namespace in allowed


@dataclass
class Repository:
    """files: by path, bytes or the SHA-256 of an object; commits: their headers, oldest first."""

    private: bool
    files: dict[str, bytes | str] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{len(self.commits)} {sorted(self.files)}".encode()).hexdigest()


@dataclass
class LocalHub:
    """The state of the hub, and how it fails.

    cut_after_bytes: uploads break after this many bytes. part_bytes: objects are uploaded in parts of this size.
    refuse_commits: the HTTP status of every commit.
    """

    users: dict[str, User]
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    received: Counter[str] = field(default_factory=Counter)  # bytes by object, including failed uploads
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, user
    cut_after_bytes: int | None = None
    part_bytes: int | None = None
    refuse_commits: int | None = None
    url: str = ""

    def __enter__(self) -> LocalHub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.hub = self
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._parts: dict[str, dict[int, bytes]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def make_repository(self, repo: str, *, private: bool, files: dict[str, bytes | str]) -> None:
        self.repositories[repo] = Repository(private, files)

    def read(self, repo: str, path: str) -> bytes:
        """Return the content of a file in a repository."""
        held = self.repositories[repo].files[path]
        return held if isinstance(held, bytes) else self.objects[held]

    def written(self) -> list[tuple[str, str]]:
        """Return the requests that change something."""
        return [(method, path) for method, path, _ in self.requests if method in ("POST", "PUT", "DELETE")]

    def count(self, oid: str, size: int) -> bool:
        """Count received bytes of an object; return False if the connection should break now."""
        with self._lock:
            if self.cut_after_bytes is not None and sum(self.received.values()) + size > self.cut_after_bytes:
                return False
            self.received[oid] += size
            return True

    def keep_part(self, oid: str, number: int, content: bytes) -> None:
        with self._lock:
            self._parts.setdefault(oid, {})[number] = content

    def join_parts(self, oid: str) -> bytes:
        with self._lock:
            parts = self._parts.pop(oid)
        return b"".join(parts[number] for number in sorted(parts))
