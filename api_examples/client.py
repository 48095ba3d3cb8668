"""Drive ComfyUI from Python: queue a workflow, watch it run, fetch its pictures.

Needs `pip install websocket-client` and nothing else; copy it into your own project.

    client = ComfyClient("http://127.0.0.1:8188")
    graph = json.load(open("workflow.api.json"))   # ComfyUI's File > Export (API)
    with Progress(graph) as progress:
        prompt_id = client.execute(graph, progress)
    for node_id, pictures in client.images(prompt_id).items():
        ...

`run.py` beside this file is the same from the command line.
"""

import http.client
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import websocket

Graph = dict[str, dict[str, Any]]  # node id -> {"class_type", "inputs", "_meta"}

# The first number of a binary message (ComfyUI's protocol.py), and the feature that asks for the second kind.
PREVIEW, PREVIEW_WITH_METADATA = 1, 4
FEATURES = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
ENDINGS = {"execution_success", "execution_error", "execution_interrupted"}


class ComfyError(Exception):
    """ComfyUI said no, or does not answer."""


class NotAnswering(ComfyError):
    """There is no ComfyUI at this address, or no more."""


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

    def __init__(self, graph: Graph, data: dict[str, Any]) -> None:
        self.data = data
        node_id, message = str(data.get("node_id")), str(data.get("exception_message", "")).strip()
        name = title(graph, node_id) if node_id in graph else data.get("node_type")
        super().__init__(f"{name} (node {node_id}): {message}")


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
        url = url if "://" in url else f"http://{url}"
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
        prompt_id = str(uuid.uuid4())  # ours, so that the prompt can be cancelled before the answer is here
        try:
            reply = self._json("/prompt", {"prompt": graph, "client_id": self.client_id, "prompt_id": prompt_id})
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptRefused(graph, json.load(error)) from None
        except KeyboardInterrupt:
            self.cancel(prompt_id)
            raise
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

    def execute(self, graph: Graph, watch: Callable[[Event], None] = lambda event: None) -> str:
        """Queue a workflow and wait for it; `watch` is called with its events. Returns the prompt id.

        Whatever ends the wait early (Ctrl-C, an error of `watch`) also takes the prompt off the server.
        """
        prompt_id = self.queue(graph)
        try:
            for event in self.follow(prompt_id):
                watch(event)
        except ComfyError:
            raise
        except BaseException:
            self.cancel(prompt_id)
            raise
        return prompt_id

    def run(self, graph: Graph) -> dict[str, list[bytes]]:
        """Queue a workflow, wait for it, return its pictures by node id."""
        return self.images(self.execute(graph))

    def images(self, prompt_id: str, kind: str = "") -> dict[str, list[bytes]]:
        """The pictures of a finished prompt: node id -> encoded files, in the order of the batch.

        `kind` chooses among them: "output" for what was saved, "temp" for what was only shown.
        """
        outputs = self.history(prompt_id).get("outputs", {})
        chosen = {
            node_id: [image for image in output.get("images") or [] if kind in ("", image["type"])]
            for node_id, output in outputs.items()
        }
        return {node_id: [self.view(image) for image in images] for node_id, images in chosen.items() if images}

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

    def finish(self, node_id: str = "") -> list[str]:
        """End the optimization that a node runs, or whichever runs, with what it has so far; the workflow goes on.

        Returns the ids of the nodes that were asked; may be called from another thread, or while events are followed.
        """
        asked: list[str] = self._json("/tokenopt/finish", {"node": node_id} if node_id else {})["finishing"]
        return asked

    def cancel(self, prompt_id: str, patience: float = 10.0) -> None:
        """Take a prompt off the queue, or stop it if it is running; return when it is gone, or out of patience."""
        self._open("/queue", {"delete": [prompt_id]})
        deadline = time.monotonic() + patience
        while self._is_queued(prompt_id) and time.monotonic() < deadline:
            self.interrupt(prompt_id)  # again and again: ComfyUI forgets one that comes just before the start
            time.sleep(0.2)

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
                raise ExecutionFailed(entry["prompt"][2], data)
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
                raise NotAnswering(f"No ComfyUI answers at {self.url}: {error}") from error
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
        except (OSError, http.client.HTTPException) as error:
            raise NotAnswering(f"ComfyUI at {self.url} does not answer: {error}") from error


class Progress:
    """Shows a prompt's progress: a bar that is redrawn on a terminal, elsewhere a line about every tenth."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._terminal = graph, sys.stdout.isatty()
        self._node, self._tenth, self._started = "", -1, 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_line()

    def __call__(self, event: Event) -> None:
        """Draw what an event says of the progress, if anything."""
        if event.type != "progress":
            return
        node, value, total = str(event.data["node"]), int(event.data["value"]), max(int(event.data["max"]), 1)
        if node != self._node:
            self._end_line()
            self._node, self._tenth, self._started = node, -1, time.monotonic()
        tenth = 10 * value // total
        text = f"  {title(self._graph, node)}: {value}/{total}, {time.monotonic() - self._started:.0f} s"
        if self._terminal:
            print(f"\r\x1b[K  [{'#' * (2 * tenth):<20}]{text}", end="", flush=True)
        elif tenth != self._tenth:
            print(text, flush=True)
        self._tenth = tenth

    def _end_line(self) -> None:
        if self._terminal and self._node:
            print(flush=True)


def title(graph: Graph, node_id: str) -> str:
    """A node's title as on the canvas, else its class."""
    node = graph.get(node_id, {})
    return node.get("_meta", {}).get("title") or node.get("class_type") or f"node {node_id}"


def find_nodes(graph: Graph, wanted: str) -> list[str]:
    """The ids of the nodes with this id, else with this title, else of this class."""
    if wanted in graph:
        return [wanted]
    titled = [node_id for node_id in graph if title(graph, node_id).casefold() == wanted.casefold()]
    return titled or [node_id for node_id, node in graph.items() if node.get("class_type") == wanted]


def find_node(graph: Graph, wanted: str) -> str:
    """The id of the only node with this id, title or class."""
    found = find_nodes(graph, wanted)
    if not found:
        names = ", ".join(f"{title(graph, node_id)} ({node_id})" for node_id in graph)
        raise ComfyError(f"No node is titled {wanted!r}. There are: {names}.")
    if len(found) > 1:
        raise ComfyError(f"{len(found)} nodes are titled {wanted!r}. Name one by its id: {', '.join(found)}.")
    return found[0]


def _preview(message: bytes) -> Event:
    """A binary message: its kind (4 bytes), then a picture after its format or after its metadata as JSON."""
    kind, size = int.from_bytes(message[:4], "big"), int.from_bytes(message[4:8], "big")
    if kind == PREVIEW:
        return Event("preview", {}, message[8:])
    if kind == PREVIEW_WITH_METADATA:
        return Event("preview", json.loads(message[8 : 8 + size]), message[8 + size :])
    return Event("binary", {"kind": kind}, message[4:])
