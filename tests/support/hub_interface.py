"""The HTTP interface of the Hub that huggingface_hub uses, on the state in local_hub.py."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin", ".gguf", ".pt", ".model")
PIECE = 16 * 1024


class Handler(BaseHTTPRequestHandler):
    """One request to the stand-in hub, which is `self.hub`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    @property
    def hub(self) -> Any:
        return self.server.hub

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.user = self.hub.users.get(token)
        self.hub.requests.append((self.command, path, self.user.name if self.user else ""))
        parts = path.strip("/").split("/")
        try:
            if token and self.user is None:
                body = b"".join(self._body())
                self._send(401, {"error": "Invalid credentials"}, message="Invalid credentials in Authorization header")
            elif parts[0] == "lfs":
                self._object(parts[1:])
            elif parts[0] == "api":
                body = b"".join(self._body())
                self._api(parts[1:], body)
            elif path.endswith(".git/info/lfs/objects/batch"):
                self._batch("/".join(parts[:2]).removesuffix(".git"), json.loads(b"".join(self._body())))
            elif len(parts) > 4 and parts[2] == "resolve":
                self._resolve("/".join(parts[:2]), "/".join(parts[4:]))
            else:
                self._send(404, {"error": "Not found"})
        except ConnectionError:
            self.close_connection = True

    def _body(self) -> Iterator[bytes]:
        """Yield the body in pieces, whether its length is given or it is chunked."""
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            piece = self.rfile.read(min(PIECE, left))
            if not piece:
                raise ConnectionError("the client disconnected")
            left -= len(piece)
            yield piece

    def _send(
        self, status: int, body: Any = None, *, code: str = "", message: str = "", headers: dict | None = None
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), "X-Error-Code": code, "X-Error-Message": message} | (
            headers or {}
        )
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _api(self, parts: list[str], body: bytes) -> None:
        data = json.loads(body) if body and parts[-2:-1] != ["commit"] else {}
        if parts == ["whoami-v2"]:
            self._send(*((200, self._whoami()) if self.user else (401, {"error": "Unauthorized"})))
        elif parts == ["repos", "create"]:
            self._create(data)
        elif parts == ["validate-yaml"]:
            self._validate(data["content"])
        elif parts[0] == "models":
            self._model("/".join(parts[1:3]), parts[3:], data, body)
        else:
            self._send(404, {"error": "Not found"})

    def _whoami(self) -> dict[str, Any]:
        token: dict[str, Any] = {"displayName": "a token", "role": self.user.role}
        if self.user.role == "fineGrained":
            scoped = [
                {"entity": {"type": "user", "name": name}, "permissions": ["repo.content.read", "repo.write"]}
                for name in self.user.scoped
            ]
            token["fineGrained"] = {"global": [], "scoped": scoped}
        roles = dict.fromkeys(self.user.organizations, "write") | dict.fromkeys(self.user.guest_of, "read")
        orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in roles.items()]
        return {
            "type": "user",
            "name": self.user.name,
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": token},
        }

    def _create(self, data: dict[str, Any]) -> None:
        if self.user is None:
            return self._send(401, {"error": "Unauthorized"})
        namespace = data.get("organization") or self.user.name
        repo = f"{namespace}/{data['name']}"
        if not self.user.may_write(namespace):
            message = f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            return self._send(403, {"error": message}, message=message)
        if repo in self.hub.repositories:
            return self._send(409, {"error": "You already created this model repo"}, message="You already created it")
        files: dict[str, bytes | str] = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
        self.hub.make_repository(repo, private=data.get("visibility") == "private", files=files)
        return self._send(200, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def _validate(self, card: str) -> None:
        try:
            front = yaml.safe_load(card.split("---\n")[1])
            errors = [] if isinstance(front, dict) else [{"message": "the front matter is not a mapping"}]
        except (IndexError, yaml.YAMLError) as error:
            errors = [{"message": str(error)}]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _find(self, repo: str, *, write: bool = False) -> Any:
        """Return a repository that the user can read (or write to); else send an error and return None."""
        found = self.hub.repositories.get(repo)
        mine = self.user is not None and repo.split("/")[0] in (self.user.name, *self.user.organizations)
        if found is None or (found.private and not mine):
            self._send(404 if self.user else 401, {"error": "Repository not found"}, code="RepoNotFound")
            return None
        if write and not (self.user and self.user.may_write(repo.split("/")[0])):
            message = f"You have read access but not the required permissions for this operation on {repo}"
            self._send(403, {"error": message}, message=message)
            return None
        return found

    def _model(self, repo: str, rest: list[str], data: dict[str, Any], body: bytes) -> None:
        action = rest[0] if rest else ""
        writes = action in ("preupload", "commit") or rest == ["auth-check", "write"]
        found = self._find(repo, write=writes)
        if found is None:
            return
        if action in ("", "revision"):
            siblings = [{"rfilename": path} for path in found.files]
            self._send(200, {"_id": repo, "id": repo, "sha": found.sha, "private": found.private, "siblings": siblings})
        elif action == "auth-check":
            self._send(200, {})
        elif action == "tree":
            self._tree(found, "/".join(rest[2:]))
        elif action == "preupload":
            self._send(200, {"files": [self._mode(found, file) for file in data["files"]]})
        elif action == "commit":
            self._commit(repo, found, [json.loads(line) for line in body.splitlines()])
        else:
            self._send(404, {"error": "Not found"})

    def _tree(self, found: Any, folder: str) -> None:
        paths = [path for path in found.files if path.startswith(folder and f"{folder}/")]
        if folder and not paths:
            return self._send(404, {"error": "Not found"}, code="EntryNotFound")
        rows = []
        for path in paths:
            held = found.files[path]
            size = len(held if isinstance(held, bytes) else self.hub.objects[held])
            row = {"type": "file", "path": path, "size": size, "oid": _git_oid(held)}
            if isinstance(held, str):
                row["lfs"] = {"oid": held, "size": size, "pointerSize": 134}
            rows.append(row)
        return self._send(200, rows)

    def _mode(self, found: Any, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(LARGE) or file["size"] > 10 * 2**20
        large = large or b"\0" in base64.b64decode(file["sample"])
        held = found.files.get(file["path"])
        oid = None if held is None else held if isinstance(held, str) else _git_oid(held)
        mode = "lfs" if large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _batch(self, repo: str, data: dict[str, Any]) -> None:
        if self._find(repo, write=True) is None:
            return
        answers = []
        for item in data["objects"]:
            answer: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/lfs/{item['oid']}"
                upload: dict[str, Any] = {"href": href}
                if self.hub.part_bytes and item["size"] > self.hub.part_bytes:
                    count = -(-item["size"] // self.hub.part_bytes)
                    header = {"chunk_size": str(self.hub.part_bytes)}
                    header |= {str(number): f"{href}/{number}" for number in range(1, count + 1)}
                    upload = {"href": f"{href}/complete", "header": header}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{href}/verify"}}
            answers.append(answer)
        self._send(200, {"transfer": "basic", "objects": answers})

    def _object(self, parts: list[str]) -> None:
        """Receive an object or a part of one, or confirm that it is complete."""
        oid, what = parts[0], (parts[1] if len(parts) > 1 else "")
        if what == "verify":
            size = json.loads(b"".join(self._body()))["size"]
            held = self.hub.objects.get(oid)
            return self._send(200 if held is not None and len(held) == size else 404, {})
        if what == "complete":
            b"".join(self._body())
            content = self.hub.join_parts(oid)
        else:
            pieces = []
            for piece in self._body():
                if not self.hub.count(oid, len(piece)):
                    raise ConnectionError("cut on purpose")
                pieces.append(piece)
            content = b"".join(pieces)
            if what:
                self.hub.keep_part(oid, int(what), content)
                return self._send(200, {}, headers={"ETag": f'"{what}"'})
        if hashlib.sha256(content).hexdigest() != oid:
            return self._send(400, {"error": "the content does not match its hash"})
        self.hub.objects[oid] = content
        return self._send(200, {})

    def _commit(self, repo: str, found: Any, lines: list[dict[str, Any]]) -> None:
        if self.hub.refuse_commits:
            return self._send(self.hub.refuse_commits, {"error": "on purpose"})
        files = dict(found.files)
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile" and value["oid"] in self.hub.objects:
                files[value["path"]] = value["oid"]
            elif kind == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            else:
                return self._send(400, {"error": f"this can't be committed: {line}"})
        found.files = files
        found.commits.append(lines[0]["value"])
        url = f"{self.hub.url}/{repo}/commit/{found.sha}"
        return self._send(200, {"success": True, "commitOid": found.sha, "commitUrl": url, "hookOutput": ""})

    def _resolve(self, repo: str, path: str) -> None:
        found = self._find(repo)
        if found is None:
            return
        headers = {"X-Repo-Commit": found.sha}
        if path not in found.files:
            return self._send(404, {"error": "Entry not found"}, code="EntryNotFound", headers=headers)
        held = found.files[path]
        content = held if isinstance(held, bytes) else self.hub.objects[held]
        headers |= {"ETag": f'"{held if isinstance(held, str) else _git_oid(held)}"'}
        return self._send(200, content, headers=headers)


def _git_oid(content: bytes | str) -> str:
    content = content.encode() if isinstance(content, str) else content
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
