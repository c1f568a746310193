"""A small Hugging Face hub on loopback: the part of its HTTP protocol that a snapshot download needs, over real sockets.

Serves one commit of one repository from a folder, and notes every path asked for.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit


class HubServer:
    """`with HubServer(folder, "org/name", commit) as hub: ... hub.url`."""

    def __init__(self, folder: Path, repository: str, commit: str) -> None:
        self.folder = folder
        self.repository = repository
        self.commit = commit
        self.requested: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def files_sent(self) -> set[str]:
        """Names of the files whose content was asked for."""
        marker = f"GET /{self.repository}/resolve/{self.commit}/"
        return {line.removeprefix(marker) for line in self.requested if line.startswith(marker)}

    def tree(self) -> list[dict[str, Any]]:
        """The repository's files as the hub's tree API lists them."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [
            {"type": "file", "path": str(path.relative_to(self.folder)), "size": path.stat().st_size, "oid": etag(path)}
            for path in paths
        ]


def etag(path: Path) -> str:
    """A name for the file's content."""
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requested.append(f"{self.command} {path}")
            api = f"/api/models/{hub.repository}/"
            if path.startswith((f"/{hub.repository}/resolve/", api + "revision/", api + "tree/")):
                self._answer_repository(path, with_body)
            else:
                self._send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})

        def _answer_repository(self, path: str, with_body: bool) -> None:
            kind, revision, *rest = path.split(f"/{hub.repository}/", 1)[1].split("/")
            if revision not in (hub.commit, "main"):
                self._send(404, b"{}", with_body, {"X-Error-Code": "RevisionNotFound"})
            elif kind == "resolve":
                self._answer_file("/".join(rest), with_body)
            else:
                self._send(200, json.dumps(self._description(kind)).encode(), with_body, {"Content-Type": "application/json"})

        def _description(self, kind: str) -> Any:
            if kind == "tree":
                return hub.tree()
            siblings = [{"rfilename": entry["path"]} for entry in hub.tree()]
            return {"id": hub.repository, "sha": hub.commit, "siblings": siblings}

        def _answer_file(self, name: str, with_body: bool) -> None:
            path = hub.folder / name
            if not path.is_file():
                self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})
                return
            self._send(200, path.read_bytes(), with_body, {"ETag": f'"{etag(path)}"', "X-Repo-Commit": hub.commit})

        def _send(self, status: int, body: bytes, with_body: bool, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    return Handler
