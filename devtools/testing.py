"""The test run: pytest in this process, on the screen and in a log."""

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from typing import IO

import pytest

from .paths import LOGS, ROOT

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Tee:
    """A text stream that also writes a log; in all else the stream itself."""

    def __init__(self, stream: IO[str], log: IO[str]) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        """Write to both; the log goes without colours."""
        self._log.write(COLOUR.sub("", text))
        return self._stream.write(text)

    def flush(self) -> None:
        """Flush both."""
        self._log.flush()
        self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def run(arguments: Sequence[str]) -> int:
    """Run the tests; `arguments` go to pytest. Returns pytest's exit code.

    In this process, so that whatever ends it ends the tests too, and with them their servers.
    """
    log = LOGS / "test.log"
    print(f"Running the tests (log: {log.relative_to(ROOT)})", flush=True)
    os.chdir(ROOT)
    os.environ["HF_HUB_OFFLINE"] = "1"  # a test that asks the hub for weights is a mistake
    options = ["-q", "--tb=short", "-ra", f"--junit-xml={LOGS / 'test.xml'}", *arguments]
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(Tee(sys.stdout, file)):
        return int(pytest.main(options))
