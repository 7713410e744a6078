"""Drives headless Chromium through chromedriver's plain HTTP protocol; needs only the standard library."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_START_SECONDS = 60.0

KEYS = {"tab": "\ue004", "escape": "\ue00c", "down": "\ue015", "up": "\ue013", "enter": "\ue007"}


def find_browser() -> tuple[str, str] | None:
    """Paths of the browser and its driver, or None where one of the two is absent."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One browser window; a context manager."""

    def __init__(self, browser: str, driver: str, profile: Path, log: Path) -> None:
        self._log = log.open("w+")
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._base = f"http://127.0.0.1:{self._port()}"
        options = {
            "binary": browser,
            "args": [*_FLAGS, f"--user-data-dir={profile}", "--window-size=1360,900"],
        }
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{answer['sessionId']}"

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._driver.terminate()
            self._driver.wait(30)
            if self._driver.stdout:
                self._driver.stdout.close()
            self._log.close()

    def _port(self) -> int:
        assert self._driver.stdout is not None
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            line = self._driver.stdout.readline()
            if "started successfully on port" in line:
                return int(line.split("port")[1].strip(" .\n"))
            if not line:
                break
        raise RuntimeError("chromedriver did not start")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self._base + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode(errors="replace")[:2000]) from None

    def open(self, page: Path) -> None:
        """Load a file and wait until it is complete."""
        self._call("POST", self._session + "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a function body in the page and return what it returns."""
        return self._call(
            "POST", self._session + "/execute/sync", {"script": script, "args": list(arguments)}
        )

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        body = {"cmd": name, "params": parameters}
        return self._call("POST", self._session + "/goog/cdp/execute", body)

    def resize(self, width: int, height: int) -> None:
        """Set the viewport's size in CSS pixels, as on a phone below 600."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def prefer(self, scheme: str) -> None:
        """Set prefers-color-scheme to "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def hover(self, selector: str) -> None:
        """Move the mouse to the middle of an element."""
        element = self._call(
            "POST", self._session + "/element", {"using": "css selector", "value": selector}
        )[_ELEMENT]
        move = {"type": "pointerMove", "duration": 0, "origin": {_ELEMENT: element}, "x": 0, "y": 0}
        pointer = {
            "type": "pointer",
            "id": "mouse",
            "parameters": {"pointerType": "mouse"},
            "actions": [move],
        }
        self._call("POST", self._session + "/actions", {"actions": [pointer]})

    def press(self, key: str) -> None:
        """Press and release one of `KEYS`."""
        actions = [{"type": kind, "value": KEYS[key]} for kind in ("keyDown", "keyUp")]
        keyboard = {"type": "key", "id": "keyboard", "actions": actions}
        self._call("POST", self._session + "/actions", {"actions": [keyboard]})

    def console(self) -> list[str]:
        """Warnings and errors of the console since the last call."""
        entries = self._call("POST", self._session + "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def screenshot(self, out: Path, *, full: bool = True) -> None:
        """Save what the page looks like, whole or the visible part, as PNG."""
        picture = self.command("Page.captureScreenshot", captureBeyondViewport=full, **self._clip(full))
        out.write_bytes(base64.b64decode(picture["data"]))

    def _clip(self, full: bool) -> dict[str, Any]:
        if not full:
            return {}
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def print(self, out: Path) -> None:
        """Save the page as it would be printed, as PDF."""
        answer = self.command("Page.printToPDF", preferCSSPageSize=True, paperWidth=8.27, paperHeight=11.69)
        out.write_bytes(base64.b64decode(answer["data"]))
