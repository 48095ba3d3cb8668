"""The browser for the browser tests: found, or on a CI machine installed. Standard library only."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from .environment import run_logged
from .paths import LOGS, DevError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VARIABLE = "TOKENOPT_CHROMIUM"  # how the tests learn of it
ADVICE = {
    "linux": "`apt install chromium` (Debian), or your system's package of that name",
    "darwin": "`brew install --cask chromium`, or Google Chrome",
    "win32": "`winget install Hibbiki.Chromium`, or Google Chrome",
}


def find() -> str | None:
    """The browser's program: CHROME_PATH if set, else the first one found where systems keep it."""
    chosen = os.environ.get("CHROME_PATH")
    if chosen and not Path(chosen).is_file():
        raise DevError(f"CHROME_PATH is {chosen!r}, but there is no such file.")
    return chosen or next(_candidates(), None)


def provide() -> None:
    """Set the variable that the browser tests look at; say what to do when there is no browser."""
    browser = find()
    if browser is None and os.environ.get("CI"):
        _install()
        browser = find()
    if browser is not None:
        os.environ[VARIABLE] = browser
        return
    os.environ.pop(VARIABLE, None)
    how = ADVICE.get(sys.platform, "Chromium or Google Chrome")
    print(f"No Chromium was found: the browser tests are SKIPPED. To run them, get {how},\nor set CHROME_PATH to it.")


def _candidates() -> Iterator[str]:
    yield from filter(None, map(shutil.which, NAMES))
    places: list[str] = []
    if sys.platform == "darwin":
        places = [f"/Applications/{n}.app/Contents/MacOS/{n}" for n in ("Chromium", "Google Chrome")]
    elif sys.platform == "win32":
        roots = [os.environ.get(n, "") for n in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")]
        ends = ("Google/Chrome/Application/chrome.exe", "Chromium/Application/chrome.exe")
        places = [os.path.join(root, end) for root in roots if root for end in ends]
    yield from (place for place in places if os.path.isfile(place))


def _install() -> None:
    """On a CI machine that is Debian, as root: install the browser; elsewhere its absence is an error."""
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise DevError("This CI machine has no Chromium, and none can be installed: this needs Debian and root.")
    log = LOGS / "chromium.log"
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    command = "apt-get update && apt-get install -y --no-install-recommends chromium"
    run_logged(["sh", "-c", command], log, "Installing Chromium: about a minute")
