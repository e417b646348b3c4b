"""A headless Chromium, driven over its DevTools protocol through two pipes: no driver, no further package."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Iterator

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# No name is resolved: a page that asks for something on the network fails, and says so in the console.
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars "
    "--remote-debugging-pipe --disable-background-networking --disable-component-update "
    "--disable-extensions --host-resolver-rules='MAP * ~NOTFOUND'"
)


class Page:
    """One tab. `complaints`: what the console got, uncaught errors too; `requests`: what was asked for."""

    def __init__(self, send: Any, receive: Callable[[float], bytes]):
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._send, self._receive = send, receive
        self._numbers, self._session = itertools.count(1), None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict:
        """The result of one command; AssertionError where the browser refuses it or does not answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._send(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._receive(60.0))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, event: str, values: dict) -> None:
        if event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(values))
        elif event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, a promise's too."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, (script, result)
        return result["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.02)

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=Path(path).absolute().as_uri())
        self.wait_for("location.protocol === 'file:' && document.readyState === 'complete'")

    def look(self, width: int, height: int = 900, *, dark: bool = False, calm: bool = False) -> None:
        """The window's size in pixels, and what the reader prefers: dark colours, no motion."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = {"prefers-color-scheme": "dark" if dark else "light"}
        features["prefers-reduced-motion"] = "reduce" if calm else "no-preference"
        wanted = [{"name": name, "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=wanted)

    def press(self, key: str) -> None:
        """One of the keys ArrowRight, ArrowLeft, Home, End, on what has the focus."""
        code = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """A PNG of the whole page, or of what the window shows."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A page of a new browser whose profile is in `folder`; the browser is ended with the block."""
    commands, to_browser = os.pipe()
    from_browser, answers = os.pipe()
    # The protocol's pipes are the browser's files 3 and 4.
    line = f'exec "$0" {OPTIONS} --user-data-dir="$1" 3<&{commands} 4>&{answers}'
    process = subprocess.Popen(
        ["bash", "-c", line, CHROMIUM, str(folder)],
        pass_fds=(commands, answers), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.close(commands)
    os.close(answers)
    try:
        yield Page(lambda data: _write_all(to_browser, data), _reader(from_browser))
    finally:
        with contextlib.suppress(OSError):
            _write_all(to_browser, b'{"id": 0, "method": "Browser.close"}\0')
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        os.close(to_browser)
        os.close(from_browser)


def _write_all(pipe: int, data: bytes) -> None:
    while data:
        data = data[os.write(pipe, data) :]


def _reader(pipe: int) -> Callable[[float], bytes]:
    """receive(seconds): the next message, which ends with a zero byte."""
    buffer = bytearray()

    def receive(seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while b"\0" not in buffer:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([pipe], [], [], left)[0], "the browser does not answer"
            data = os.read(pipe, 1 << 16)
            assert data, "the browser has ended"
            buffer.extend(data)
        message, _, rest = bytes(buffer).partition(b"\0")
        buffer[:] = rest
        return message

    return receive
