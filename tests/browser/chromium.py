"""A headless Chromium, driven over its DevTools pipe: JSON messages, each ending in a zero byte."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    "--remote-debugging-pipe",
)
TIMEOUT_SECONDS = 120
"""A browser that is silent for this long hangs; the timeout makes the test say so."""

CONSOLE_EVENTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


class Browser:
    """One page, with its console messages and the URLs that it requested."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser, self.from_browser = to_browser, from_browser
        self.buffer = b""
        self.num_sent = 0
        self.session = ""
        self.console_messages: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.loaded: set[str] = set()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Page.setLifecycleEventsEnabled", enabled=True)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self.num_sent += 1
        message = {"id": self.num_sent, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while (reply := self.receive()).get("id") != self.num_sent:
            pass
        assert "error" not in reply, f"{method}: {reply['error']}"
        return dict(reply["result"])

    def receive(self) -> dict[str, Any]:
        """Return the next message; keep console messages and requests."""
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.from_browser], [], [], TIMEOUT_SECONDS)
            assert ready, "the browser does not reply"
            part = os.read(self.from_browser, 1 << 16)
            assert part, "the browser has ended"
            self.buffer += part
        raw, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        method, params = message.get("method"), message.get("params", {})
        if method in CONSOLE_EVENTS:
            self.console_messages.append(params)
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.lifecycleEvent" and params["name"] == "load":
            self.loaded.add(params["loaderId"])
        return message

    def open(
        self, path: Path, fragment: str = "", width: int = 1100, scheme: str = "light", scripts: bool = True
    ) -> None:
        """Load a file in a window `width` CSS pixels wide, and wait until it has loaded."""
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        preferences = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in preferences.items()]
        self.send("Emulation.setEmulatedMedia", media="", features=features)
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._go("about:blank")  # otherwise a URL that differs only in its fragment loads nothing
        self._go(path.resolve().as_uri() + fragment)

    def _go(self, address: str) -> None:
        loader = self.send("Page.navigate", url=address)["loaderId"]
        while loader not in self.loaded:
            self.receive()

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression on the page."""
        reply = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press and release a key, with the character that it types."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    def screenshot(self, height: int | None = None) -> bytes:
        """Return a PNG of the page from its top, `height` pixels of it or all."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a new profile folder; stop it at the end of the block."""
    assert PROGRAM
    its_input, to_browser = _pipe()
    from_browser, its_output = _pipe()
    arguments = [PROGRAM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    # Chromium reads its commands from descriptor 3 and answers on 4.
    places: list[Any] = [(os.POSIX_SPAWN_DUP2, its_input, 3), (os.POSIX_SPAWN_DUP2, its_output, 4)]
    silent = (os.POSIX_SPAWN_OPEN, 2, str(profile.with_suffix(".log")), os.O_WRONLY | os.O_CREAT, 0o644)
    environment = os.environ | {"HOME": str(profile), "XDG_CONFIG_HOME": str(profile), "XDG_CACHE_HOME": str(profile)}
    process = os.posix_spawn(PROGRAM, arguments, environment, file_actions=[*places, silent], setpgroup=0)
    os.close(its_input)
    os.close(its_output)
    try:
        yield Browser(to_browser, from_browser)
    finally:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(to_browser)
        os.close(from_browser)


def _pipe() -> tuple[int, int]:
    """Open a pipe well above descriptors 3 and 4, so that moving its ends there cannot overwrite one of them."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 32) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]
