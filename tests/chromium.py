"""Headless Chromium, driven over its DevTools protocol; a test that asks for it is skipped where there is none."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

try:
    import fcntl
except ImportError:  # Windows, where its pipes are others
    fcntl = None  # type: ignore[assignment]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe
"""


class Browser:
    """One page of headless Chromium, driven over its DevTools protocol by a pair of pipes."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._write = self._pipe()
        self._read, from_browser = self._pipe()
        self._pid = os.posix_spawn(
            program,
            [program, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, to_browser, 3),
                (os.POSIX_SPAWN_DUP2, from_browser, 4),
            ],
            setpgroup=0,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._received = b""
        self._id = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    @staticmethod
    def _pipe() -> list[int]:
        # Away from 3 and 4, which Chromium is to find them at.
        ends = os.pipe()
        moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
        for end in ends:
            os.close(end)
        return moved

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            if not select.select([self._read], [], [], 60)[0]:
                raise TimeoutError("Chromium has not answered for a minute")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise ConnectionError("Chromium has ended")
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._id:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def open(self, url: str, width: int, height: int = 900, scheme: str = "light") -> None:
        self.resize(width, height)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        self.settle()

    def run(self, script: str) -> Any:
        """What a script evaluates to."""
        how = {"returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", expression=script, **how)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def settle(self) -> None:
        """Wait until what is due has been drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def complaints(self) -> list[Any]:
        """Exceptions and errors of the page so far."""
        found = []
        for event in self.events:
            params = event["params"]
            if (
                event["method"] == "Runtime.exceptionThrown"
                or (event["method"] == "Runtime.consoleAPICalled" and params["type"] == "error")
                or (event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error")
            ):
                found.append(params)
        return found

    def screenshot(self, path: Path) -> None:
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        self._session = None
        with contextlib.suppress(OSError):
            self.call("Browser.close")
        for _ in range(100):
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                break
            time.sleep(0.05)
        else:
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._read)
        os.close(self._write)


def find() -> str | None:
    """The program, where there is one that can be driven."""
    return fcntl and next(filter(None, map(shutil.which, NAMES)), None)


def overflow(browser: Browser, page: Path) -> list[int]:
    """How far a page of its own scrolls sideways on a screen and on a phone."""
    found = []
    for width in (1280, 390):
        browser.open(page.as_uri(), width)
        found.append(browser.run("document.documentElement.scrollWidth - innerWidth"))
        assert browser.complaints() == []
    return found


@contextlib.contextmanager
def start(profile: Path) -> Iterator[Browser]:
    """A browser of its own, with an empty folder for what it keeps."""
    program = find()
    if program is None:
        pytest.skip(f"no Chromium on the path: looked for {', '.join(NAMES)}")
    browser = Browser(program, profile)
    try:
        yield browser
    finally:
        browser.close()
