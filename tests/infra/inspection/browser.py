"""A page in headless Chromium, over the DevTools protocol."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_KEY_CODES = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27}


class Browser:
    """One page. `problems` has its exceptions, console messages and requests other than for the page itself."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=60)
        self._number = 0
        self.problems: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                self.problems.append(message["params"])
            elif message.get("method") == "Network.requestWillBeSent":
                if not message["params"]["request"]["url"].startswith("file:"):
                    self.problems.append(message["params"]["request"])
            elif message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def open(self, page: Path, width: int, height: int = 900) -> None:
        """Load the page in a window of this width, and wait until it is drawn."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + 60
        while self.value("document.getElementById('heads')?.dataset.drawn") != "yes":
            assert time.monotonic() < deadline, f"the page is not drawn: {self.problems}"
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript returns."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": _KEY_CODES[key]}
            self.call("Input.dispatchKeyEvent", **event)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Chromium with one empty page; it ends with the block. `profile` is an empty folder."""
    assert CHROMIUM
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "about:blank"]
    options += ["--remote-allow-origins=*", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [CHROMIUM, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text()):
            assert time.monotonic() < deadline and process.poll() is None, "Chromium does not start"
            time.sleep(0.05)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as response:
            [page] = [one for one in json.load(response) if one["type"] == "page"]
        yield Browser(page["webSocketDebuggerUrl"])
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
