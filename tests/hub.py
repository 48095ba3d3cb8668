"""A Hugging Face hub of our own on this machine: what huggingface_hub asks for, and faults on demand."""

from __future__ import annotations

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BLOCK = 10_000_000


class Hub:
    """Serves `files` ({"owner/name/file": bytes}); after `cut_after` bytes it hangs up, once."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.cut_after: int | None = None
        self.pause = 0.0  # seconds after each 10 MB
        self.store = ""  # another address to which requests for files are sent on, as the hub does with large ones
        self.tokens: list[str] = []  # what came with each request to prove who asks
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def version(self, file: str) -> str:
        """What tells this content of a file from others, as it stands in the name of its half."""
        (content,) = (content for name, content in self.files.items() if name.endswith(f"/{file}"))
        return hashlib.sha256(content).hexdigest()[:16]

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(send=False)

            def do_GET(self) -> None:
                self.answer(send=True)

            def answer(self, send: bool) -> None:
                wanted = self.headers.get("Range", "")
                hub.requests.append((self.command, self.path, wanted))
                hub.tokens.append(self.headers.get("Authorization", ""))
                name = self.path.split("?")[0].lstrip("/").replace("/resolve/main/", "/")
                content = hub.files.get(name)
                if content is None:
                    self.send_response(404)
                    known = any(file.startswith(name.rsplit("/", 1)[0]) for file in hub.files)
                    self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if hub.store:
                    self.send_response(302)
                    self.send_header("Location", hub.store + self.path)
                    self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                    self.send_header("X-Linked-Size", str(len(content)))
                    self.send_header("X-Repo-Commit", "0" * 40)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
                self.send_response(206 if start else 200)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Accept-Ranges", "bytes")
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                if not send:
                    return
                cut, hub.cut_after = hub.cut_after, None
                end = len(content) if cut is None else start + cut
                for at in range(start, end, BLOCK):
                    self.wfile.write(content[at : min(at + BLOCK, end)])
                    time.sleep(hub.pause)
                if cut is not None:
                    self.close_connection = True

        return Handler
