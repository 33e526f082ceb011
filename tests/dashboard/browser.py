"""A real browser for tests: Debian's Chromium without a window, spoken to in its own DevTools protocol.

One process serves all tests of a module; each takes a `Tab`, with cookies and a cache of its own or those of others.
What the page writes to the console as an error, and every exception in it, is kept in `Tab.errors`.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.sync.client import connect

LIMIT_S = 60.0
TRIES = 5
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
    "--remote-debugging-port=0", "--no-proxy-server",
)  # fmt: skip
_KEEPER = """
read -r _
kill -s KILL -- "-$1"
n=0; while ! rm -rf -- "$2" && [ $((n += 1)) -lt 200 ]; do sleep 0.1; done
"""
"""Ends the browser, and removes all its files, when its standard input ends: when we end it, or are gone ourselves."""
CALM = """Promise.allSettled(document.getAnimations().map((one) => one.finished))
  .then(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))))"""
"""Resolves when what was done before is painted, and rests."""

_PLACE = """(async () => {
  const one = [...document.querySelectorAll(%s)].find((one) => one.checkVisibility() && one.innerText.includes(%s));
  one?.scrollIntoView({block: "center"});
  const middle = () => {
    const box = one.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  };
  const before = one && middle();
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const [x, y] = one ? middle() : [];
  return one && before[0] === x && before[1] === y && one.contains(document.elementFromPoint(x, y)) ? [x, y] : null;
})()"""
"""Where an element is, if it rests there and nothing covers it."""


class Browser:
    """A Chromium process."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ts-browser-"))
        # The wrapper /usr/bin/chromium asks the machine many things first; the program behind it is enough.
        program = "/usr/lib/chromium/chromium" if Path("/usr/lib/chromium/chromium").exists() else "chromium"
        argv = [shutil.which(program) or program, *FLAGS, f"--user-data-dir={self.folder}", "about:blank"]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it is open as long as the browser)
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True,
            env=os.environ | {"TMPDIR": str(self.folder)},
        )  # fmt: skip
        self._keeper = subprocess.Popen(
            ["sh", "-c", _KEEPER, "keeper", str(self.process.pid), self.folder],
            stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(
            # Without pings: nobody reads while a test waits for something else.
            connect(self._address(), max_size=None, compression=None, proxy=None, ping_interval=None)
        )
        self._number = 0
        self._tabs: dict[str, Tab] = {}
        self._contexts: dict[str, str] = {}

    def _address(self) -> str:
        deadline = time.monotonic() + LIMIT_S
        port_file = self.folder / "DevToolsActivePort"
        while not (port_file.exists() and port_file.read_text().count("\n")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                self._end()
                raise AssertionError(f"the browser did not start: {self._log.read()[-2000:]}")
            time.sleep(0.02)
        port, path = port_file.read_text().splitlines()[:2]
        return f"ws://127.0.0.1:{port}{path}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._end()
        self._log.close()

    def _end(self) -> None:
        self._keeper.communicate()
        self.process.wait()

    def call(self, method: str, session: str = "", **params: Any) -> Any:
        """Send a command and return its result; events that come meanwhile go to their tabs."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=LIMIT_S))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if (tab := self._tabs.get(answer.get("sessionId", ""))) is not None:
                tab.happened(answer["method"], answer["params"])

    @contextlib.contextmanager
    def tab(self, width: int = 1400, height: int = 900, dark: bool = False, known: str = "") -> Iterator["Tab"]:
        """Open a page with nothing remembered, or with what pages that were `known` by the same name remembered."""
        context = self._contexts.get(known) or self.call("Target.createBrowserContext")["browserContextId"]
        if known:
            self._contexts[known] = context
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                tab.call(f"{domain}.enable")
            tab.look(width, height, dark)
            yield tab
        finally:
            del self._tabs[session]
            if known:
                self.call("Target.closeTarget", targetId=target)
            else:
                self.call("Target.disposeBrowserContext", browserContextId=context)


class Tab:
    """One page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []
        self.fetched: list[str] = []
        """Addresses that the page asked for."""
        self._disturbed = False
        """Requests were given up because a device came or went: other tests make some."""
        self._trace: list[dict[str, Any]] = []
        self._tracing = False

    def call(self, method: str, **params: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self._browser.call(method, self._session, **params)

    def happened(self, event: str, params: Any) -> None:
        """Take an event."""
        if event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in params["args"]))
        elif event == "Log.entryAdded" and "ERR_NETWORK_CHANGED" in params["entry"]["text"]:
            self._disturbed = True
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self.fetched.append(params["request"]["url"])
        elif event == "Tracing.dataCollected":
            self._trace += params["value"]
        elif event == "Tracing.tracingComplete":
            self._tracing = False

    def look(self, width: int, height: int = 900, dark: bool = False) -> None:
        """Set the size of the page and whether the system is dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, motion])

    def go(self, url: str) -> None:
        """Load a page; wait until its document is there, with all that it loads."""
        known = len(self.errors)
        for _ in range(TRIES):
            self._disturbed = False
            del self.errors[known:]  # they were of requests that were given up
            failed = self.call("Page.navigate", url=url).get("errorText", "")
            if "ERR_NETWORK_CHANGED" in failed:
                continue
            assert not failed, f"{url}: {failed}"
            self.wait("the document", "document.readyState === 'complete'")
            if not self._disturbed:
                return
        raise AssertionError(f"{url}: devices came or went {TRIES} times while it was loaded")

    def js(self, expression: str) -> Any:
        """Return what an expression, or the promise that it is, comes to."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait(self, what: str, expression: str, limit_s: float = LIMIT_S) -> Any:
        """Wait until an expression is true, and return it; `what` says in a failure what did not come."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                value = self.js(expression)
            except AssertionError as error:  # the document that it asked is gone
                value, why = None, str(error)
            else:
                why = ""
            if value:
                return value
            if time.monotonic() > deadline:
                body = self.js("document.body.innerText.slice(0, 2000)")
                raise AssertionError(f"this did not come: {what} {why}\nerrors: {self.errors}\npage: {body}")
            time.sleep(0.03)

    @contextlib.contextmanager
    def traced(self, *categories: str) -> Iterator[list[dict[str, Any]]]:
        """Trace all of the browser, other tabs included, while the block lasts; the list is full at its end."""
        self._trace, self._tracing = [], True
        chosen = {"includedCategories": categories, "excludedCategories": ["*"]}
        self.call("Tracing.start", transferMode="ReportEvents", traceConfig=chosen)
        yield self._trace
        self.call("Tracing.end")
        while self._tracing:
            self.js("1")

    def text(self) -> str:
        """Return what can be read on the page."""
        return str(self.js("document.body.innerText"))

    def shows(self, words: str) -> None:
        """Wait until the page shows these words."""
        self.wait(words, f"document.body.innerText.includes({json.dumps(words)})")

    def click(self, selector: str, words: str = "") -> None:
        """Click with the mouse on the first visible element that fits and has these words, once it rests."""
        x, y = self.wait(f"{selector} {words} to click", _PLACE % (json.dumps(selector), json.dumps(words)))
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other: `j`, `Enter`, `Escape`."""
        codes = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "Tab": 9}
        for key in keys:
            extra = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
            code = codes.get(key, ord(key[0].upper()))
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **extra)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, words: str, selector: str = "") -> None:
        """Type into an element, or that which has the focus."""
        if selector:
            here = f"document.querySelector({json.dumps(selector)})"
            self.wait(f"{selector} to type into", f"({here}?.focus(), document.activeElement === {here})")
        self.call("Input.insertText", text=words)

    def screenshot(self, path: Path) -> None:
        """Keep what is in sight as a PNG file."""
        self.js(CALM)
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))
