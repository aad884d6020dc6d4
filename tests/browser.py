"""A headless Chromium for tests of pages, driven by its own protocol through two pipes.

Neither Playwright nor Selenium is needed: only the browser, from apt or as CI machines have it.
https://chromedevtools.github.io/devtools-protocol describes the methods.
"""

import base64
import contextlib
import functools
import http.server
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import threading
import time

import pytest

BINARIES = "chromium", "chromium-browser", "google-chrome"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--remote-debugging-pipe"),
)
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Tab": 9, "Home": 36, "End": 35}
SECONDS = 60  # The longest answer that is waited for; cores are shared.
DOMAINS = "Page", "Runtime", "Log", "Network"
DRAWN = "document.body.dataset.drawn == asked && !busy"  # On a page of distill_jax.demo.


class Chromium:
    """A running browser."""

    def __init__(self, binary, profile):
        theirs, self._to = os.pipe()
        self._from, back = os.pipe()
        words = [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        script = f'exec "$0" "$@" 3<&{theirs} 4>&{back}'  # Chromium's pipes are 3 and 4.
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(
            ["bash", "-c", script, *words], pass_fds=(theirs, back), **quiet
        )
        os.close(theirs)
        os.close(back)
        self._numbers, self._rest, self.pages = itertools.count(1), b"", {}

    def call(self, method, session=None, **params):
        """Returns the result of a method; meanwhile events go to their pages."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            if page := self.pages.get(answer.get("sessionId")):
                page.note(answer["method"], answer["params"])
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _next(self):
        while b"\0" not in self._rest:
            if not select.select([self._from], [], [], SECONDS)[0]:
                raise TimeoutError(f"Chromium is silent for {SECONDS} s")
            content = os.read(self._from, 2**20)
            if not content:
                raise RuntimeError("Chromium has ended")
            self._rest += content
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def close(self):
        self.call("Browser.close")
        self._process.wait(SECONDS)
        os.close(self._to)
        os.close(self._from)


class Page:
    """An open page.

    `errors` has its console errors, exceptions and failed requests; `addresses` what it asked the
    network for.
    """

    def __init__(self, chromium, address, width, height=900):
        target = chromium.call("Target.createTarget", url="about:blank")["targetId"]
        attached = chromium.call("Target.attachToTarget", targetId=target, flatten=True)
        self._chromium, self._target = chromium, target
        self._session = attached["sessionId"]
        self.errors, self.addresses = [], []
        chromium.pages[self._session] = self
        for domain in DOMAINS:
            self.call(f"{domain}.enable")
        self.resize(width, height)
        address = str(address)
        local = "://" not in address and not address.startswith("data:")
        self.call("Page.navigate", url=pathlib.Path(address).as_uri() if local else address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def note(self, method, params):
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(arg.get("value")) for arg in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.addresses.append(params["request"]["url"])

    def call(self, method, **params):
        return self._chromium.call(method, self._session, **params)

    def resize(self, width, height=900):
        """Sets the size of the page, in CSS pixels; below 700 it is a phone with touch."""
        phone = width < 700
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def prefer(self, scheme):
        """Sets the colour scheme, dark or light."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def evaluate(self, expression):
        """Returns the value of a JavaScript expression; a promise is awaited."""
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def wait(self, expression, seconds=SECONDS):
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} is not true after {seconds} s: {self.errors}")
            time.sleep(0.05)

    def press(self, key):
        """Presses one of KEYS."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **about)

    def drag(self, start, end):
        """Presses the mouse at one point (x, y), moves it to another, and releases it."""
        for kind, (x, y) in (("Pressed", start), ("Moved", end), ("Released", end)):
            about = {"button": "left", "buttons": 1, "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **about)

    def click(self, selector):
        """Clicks on the middle of an element, which is scrolled into view."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{found}.scrollIntoView({{block: 'center'}})")
        box = self.evaluate(f"{found}.getBoundingClientRect().toJSON()")
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.drag(middle, middle)

    def choose(self, selector, value):
        """Chooses a value of a menu or field as a person does."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{found}.value = {json.dumps(value)}")
        for kind in ("input", "change"):
            self.evaluate(f"{found}.dispatchEvent(new Event('{kind}'))")

    def screenshot(self, whole=False):
        """Returns a PNG of what is visible, or of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole, format="png")
        return base64.b64decode(shot["data"])

    def close(self):
        self._chromium.call("Target.closeTarget", targetId=self._target)
        del self._chromium.pages[self._session]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line of each."""

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def served(folder):
    """Yields the address of a file server of a folder."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def installed():
    """Returns the path of a Chromium; None where none is installed."""
    return next(filter(None, map(shutil.which, BINARIES)), None)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """Returns a running Chromium; skips the test where none is installed."""
    binary = installed()
    if binary is None:
        pytest.skip(f"no browser: expected {', '.join(BINARIES)} in PATH, such as apt's chromium")
    browser = Chromium(binary, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def open_page(chromium):
    """Returns a function (address or file, width, height=900) that opens a Page."""
    pages = []

    def opened(address, width, height=900):
        pages.append(Page(chromium, address, width, height))
        return pages[-1]

    yield opened
    for page in pages:
        page.close()
