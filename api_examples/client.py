"""Drive ComfyUI from Python: queue a workflow, watch it run, fetch its pictures.

Needs `pip install websocket-client` and nothing else; copy it into your own project.

    client = ComfyClient("http://127.0.0.1:8188")
    prompt_id = client.queue(json.load(open("workflow.api.json")))   # ComfyUI's File > Export (API)
    for event in client.follow(prompt_id):
        if event.type == "progress":
            print(event.data["value"], "of", event.data["max"])
    for node_id, pictures in client.images(prompt_id).items():
        ...

From the command line: `python client.py workflow.api.json` saves every picture beside you.
"""

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websocket

Graph = dict[str, dict[str, Any]]  # node id -> {"class_type", "inputs", "_meta"}

# The first number of a binary message (ComfyUI's protocol.py), and the feature that asks for the second kind.
PREVIEW, PREVIEW_WITH_METADATA = 1, 4
FEATURES = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
ENDINGS = {"execution_success", "execution_error", "execution_interrupted"}


class ComfyError(Exception):
    """ComfyUI said no, or does not answer."""


class PromptRefused(ComfyError):
    """The workflow did not pass ComfyUI's checks; `reply` is its whole answer."""

    def __init__(self, graph: Graph, reply: dict[str, Any]) -> None:
        self.reply = reply
        self.node_errors: dict[str, dict[str, Any]] = reply.get("node_errors") or {}
        error = reply.get("error") or {}
        lines = [" ".join(filter(None, [error.get("message"), error.get("details")]))]
        for node_id, node in self.node_errors.items():
            lines += [f"{title(graph, node_id)}: {e['message']}: {e['details']}" for e in node["errors"]]
        super().__init__("\n".join(filter(None, lines)))


class ExecutionFailed(ComfyError):
    """A node raised an error; `data` is ComfyUI's report with node_id, node_type and traceback."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        message = str(data.get("exception_message", "")).strip()
        super().__init__(f"{data.get('node_type')} (node {data.get('node_id')}): {message}")


class Interrupted(ComfyError):
    """The prompt was interrupted, or taken off the queue."""


@dataclass(frozen=True)
class Event:
    """One message of ComfyUI; `type` "preview" carries a picture (an encoded JPEG or PNG)."""

    type: str
    data: dict[str, Any]
    image: bytes = b""


class ComfyClient:
    """A connection to one ComfyUI server; also a context manager."""

    def __init__(self, url: str = "http://127.0.0.1:8188", timeout: float = 30.0) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self.client_id = uuid.uuid4().hex
        self._socket: websocket.WebSocket | None = None
        # A proxy named in the environment is for the internet, not for this machine.
        local = urllib.parse.urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))

    def __enter__(self) -> "ComfyClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the websocket; the next prompt opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def queue(self, graph: Graph) -> str:
        """Hand in a workflow in API format; returns its prompt id.

        ComfyUI runs the valid outputs of a workflow whose other outputs are refused; here that is a refusal too.
        """
        self._connect()  # before queueing, so that no message is missed
        try:
            reply = self._json("/prompt", {"prompt": graph, "client_id": self.client_id})
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptRefused(graph, json.load(error)) from None
        if reply.get("node_errors"):
            self.cancel(reply["prompt_id"])
            raise PromptRefused(graph, reply)
        return str(reply["prompt_id"])

    def follow(self, prompt_id: str, patience: float = 2.0) -> Iterator[Event]:
        """Yield what happens until the prompt is done; raise ExecutionFailed or Interrupted if it does not succeed.

        Messages come over the websocket. The history decides: it is asked whenever nothing came for `patience`
        seconds, so that neither a lost connection nor a prompt that ended before this call is waited for in vain.
        """
        while True:
            event = self._receive(patience)
            if event is not None and event.data.get("prompt_id", prompt_id) == prompt_id:
                yield event
            if event is None or event.type in ENDINGS:
                entry = self.history(prompt_id)
                if entry or not self._is_queued(prompt_id):
                    return self._conclude(prompt_id)

    def run(self, graph: Graph) -> dict[str, list[bytes]]:
        """Queue a workflow, wait for it, return its pictures by node id."""
        prompt_id = self.queue(graph)
        for _ in self.follow(prompt_id):
            pass
        return self.images(prompt_id)

    def images(self, prompt_id: str) -> dict[str, list[bytes]]:
        """The pictures of a finished prompt: node id -> encoded files, in the order of the batch."""
        outputs = self.history(prompt_id).get("outputs", {})
        return {node: [self.view(i) for i in out["images"]] for node, out in outputs.items() if out.get("images")}

    def view(self, image: dict[str, str]) -> bytes:
        """One file named by {"filename", "subfolder", "type"}."""
        return self._open("/view?" + urllib.parse.urlencode(image))

    def history(self, prompt_id: str) -> dict[str, Any]:
        """ComfyUI's record of a finished prompt (outputs, status); empty while it is not finished."""
        entry: dict[str, Any] = self._json(f"/history/{prompt_id}").get(prompt_id, {})
        return entry

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Stop the running prompt (or only if it is this one); may be called from another thread."""
        self._open("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def cancel(self, prompt_id: str) -> None:
        """Take a prompt off the queue, or stop it if it is running."""
        self._open("/queue", {"delete": [prompt_id]})
        self.interrupt(prompt_id)

    def object_info(self, node_class: str = "") -> dict[str, Any]:
        """What ComfyUI knows of its nodes, or of one of them: inputs, outputs, defaults, tooltips."""
        info: dict[str, Any] = self._json(f"/object_info/{node_class}".rstrip("/"))
        return info

    def upload(self, name: str, picture: bytes) -> str:
        """Put a picture into ComfyUI's input folder; returns the name for a Load Image node."""
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = head.encode() + picture + f"\r\n--{edge}--\r\n".encode()
        reply = json.loads(self._open("/upload/image", body, f"multipart/form-data; boundary={edge}"))
        return f"{reply['subfolder']}/{reply['name']}".lstrip("/")

    def _conclude(self, prompt_id: str) -> None:
        """Raise if a prompt that is off the queue did not succeed."""
        entry = self.history(prompt_id)
        if not entry:
            raise Interrupted("the prompt was taken off the queue")
        for kind, data in entry.get("status", {}).get("messages", []):
            if kind == "execution_error":
                raise ExecutionFailed(data)
            if kind == "execution_interrupted":
                raise Interrupted(f"interrupted in {data.get('node_type')} (node {data.get('node_id')})")

    def _is_queued(self, prompt_id: str) -> bool:
        queue = self._json("/queue")
        return any(item[1] == prompt_id for item in queue["queue_running"] + queue["queue_pending"])

    def _connect(self) -> websocket.WebSocket:
        if self._socket is None:
            address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
            try:
                self._socket = websocket.create_connection(address, timeout=self.timeout)
                self._socket.send(json.dumps(FEATURES))
            except (OSError, websocket.WebSocketException) as error:
                raise ComfyError(f"No ComfyUI answers at {self.url}: {error}") from error
        return self._socket

    def _receive(self, patience: float) -> Event | None:
        """The next message; None if nothing came or the connection was lost."""
        connection = self._connect()
        connection.settimeout(patience)
        try:
            message = connection.recv()
        except websocket.WebSocketTimeoutException:
            return None
        except (OSError, websocket.WebSocketException):
            self.close()
            return None
        if isinstance(message, bytes):
            return _preview(message)
        if not message:  # the server closed the connection
            self.close()
            return None
        content = json.loads(message)
        return Event(content["type"], content.get("data") or {})

    def _json(self, path: str, data: Any = None) -> Any:
        return json.loads(self._open(path, data))

    def _open(self, path: str, data: Any = None, content_type: str = "application/json") -> bytes:
        """GET, or POST if there is data (bytes as they are, anything else as JSON)."""
        body = data if data is None or isinstance(data, bytes) else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type})
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            raise ComfyError(f"ComfyUI at {self.url} does not answer: {error}") from error


def title(graph: Graph, node_id: str) -> str:
    """A node's title as on the canvas, else its class."""
    node = graph.get(node_id, {})
    return node.get("_meta", {}).get("title") or node.get("class_type") or f"node {node_id}"


def find_node(graph: Graph, wanted: str) -> str:
    """The id of the node with this title."""
    for node_id in graph:
        if title(graph, node_id).casefold() == wanted.casefold():
            return node_id
    raise ComfyError(f"No node is titled {wanted!r}. There are: {', '.join(title(graph, i) for i in graph)}.")


def _preview(message: bytes) -> Event:
    """A binary message: its kind (4 bytes), then a picture after its format or after its metadata as JSON."""
    kind, size = int.from_bytes(message[:4], "big"), int.from_bytes(message[4:8], "big")
    if kind == PREVIEW:
        return Event("preview", {}, message[8:])
    if kind == PREVIEW_WITH_METADATA:
        return Event("preview", json.loads(message[8 : 8 + size]), message[8 + size :])
    return Event("binary", {"kind": kind}, message[4:])


def main(path: str, url: str = "http://127.0.0.1:8188") -> None:
    """Run a workflow and save its pictures in the current folder."""
    graph = json.loads(Path(path).read_text(encoding="utf-8"))
    started = time.monotonic()
    with ComfyClient(url) as client:
        for node_id, pictures in client.run(graph).items():
            for number, picture in enumerate(pictures):
                target = Path(f"{title(graph, node_id)} {number}.png")
                target.write_bytes(picture)
                print(target)
    print(f"{time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
