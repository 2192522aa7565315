"""The dashboard as its readers meet it: in a real Chromium, over HTTP, from a state database that lives on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from mlops_ray.config import Project
from mlops_ray.dashboard import page as pages
from mlops_ray.dashboard.document import document, to_json
from mlops_ray.dashboard.gathered import gather
from mlops_ray.endpoint import board, operation
from mlops_ray.serving.access import Access, Open, Role, new_token
from mlops_ray.serving.service import Service, Wanted
from mlops_ray.serving.web.http import Application
from mlops_ray.state import Store
from tests import fakes, histories
from tests.chromium import BINARY, Page, chromium
from tests.histories import BEGAN, DAY

pytestmark = [pytest.mark.skipif(BINARY is None, reason="needs Chromium: apt-get install chromium")]

DESK, PHONE = (1280, 900), (360, 740)


@dataclass
class Up:
    """A project whose endpoint is up."""

    project: Project
    store: Store
    url: str
    token: str
    server: uvicorn.Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


def served(folder: Path, *, auth: str = "off", port: int = 0) -> Up:
    """The endpoint below the project's name, as Ray Serve mounts it."""
    project = histories.project(serving={"auth": auth})
    store = Store.open(f"sqlite:///{folder}/state.db")
    token, grant = new_token("ann", (Role.READ,), now=0.0, expires=None)
    access = Access([grant]) if auth == "token" else Open()
    first = Wanted(stable=fakes.held(1))
    service = Service(project, fakes.FakeLog(), fakes.FakeLoader(), fakes.no_canary, first=first)
    application = Application(lambda: service, lambda: access, operation.extension(project, store))

    async def below(scope: Any, receive: Any, send: Any) -> None:
        await application({**scope, "root_path": f"/{project.project}"}, receive, send)

    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/{project.project}"
    server = uvicorn.Server(uvicorn.Config(below, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    fakes.eventually(lambda: server.started)
    return Up(project, store, url, token, server, thread)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page) -> Page:
    """The tab, with nothing in it."""
    browser.open("about:blank")
    browser.errors.clear()
    browser.requests.clear()
    return browser


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    found = served(tmp_path)
    histories.history(found.store, found.project)
    yield found
    found.stop()
    found.store.close()


def shown(page: Page) -> None:
    """All figures are drawn."""
    page.wait("document.querySelector('#loop svg')")
    page.wait("[...document.querySelectorAll('figure')].every((f) => f.querySelector('svg'))")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_it_shows_what_the_state_says_on_any_screen(page: Page, up: Up, size: tuple[int, int], dark: bool) -> None:
    page.size(*size, dark=dark)
    page.open(f"{up.url}/dashboard")
    shown(page)
    assert page.errors == []
    assert {address.rpartition("/small/")[2] for address in page.requests} <= {"dashboard", "dashboard/data", "data:,"}
    assert page.run("document.documentElement.scrollWidth") <= size[0]
    assert page.text("#loop .says") == (
        "Canary v3 at 20 %: 412 of about 900 keys; log-loss difference −0.0040 to +0.0110, margin 0.02"
    )
    assert page.text("#loop li[aria-current=step] b") == "Rollout"
    assert page.text("#stable") == "v2 stable"
    assert "v1: 24,360 rows in all" in page.text("#traffic")
    assert "last update" in page.text("#fresh")
    assert page.run("document.querySelectorAll('#rollout figure').length") == 2
    assert page.run("document.querySelectorAll('#quality .solid').length") == 9 + 1  # and one in the legend
    assert page.run("document.querySelectorAll('#drift figure .flag').length") >= 1
    assert page.run("document.querySelectorAll('#ledger tbody tr').length") == 13
    assert "tried against v2" in page.text("#lineage")


def test_it_can_be_read_without_a_pointer_and_without_sight(page: Page, up: Up) -> None:
    page.size(*DESK)
    page.open(f"{up.url}/dashboard")
    shown(page)
    page.run("document.querySelector('#drift figure svg').focus()")
    page.press("End")
    page.press("ArrowLeft")
    tip = page.text("#drift .tip")
    assert "PSI" in tip
    assert "limit" in tip
    page.press("Home")
    assert page.text("#drift .tip").startswith("x, ")
    # Each chart has the same as a table, each control and region a name, and headings do not skip a level.
    assert page.run(
        "[...document.querySelectorAll('figure')].every((f) => f.parentElement.querySelector('details table'))"
    )
    names = "[...document.querySelectorAll('main > section:not([hidden]), figure svg, nav, .wide')]"
    named = "(n) => n.getAttribute('aria-label') || document.getElementById(n.getAttribute('aria-labelledby'))"
    assert page.run(f"{names}.every({named})")
    assert page.run("document.querySelectorAll('h1').length") == 1
    ids = "[...document.querySelectorAll('[id]')].map((n) => n.id)"
    assert page.run(f"new Set({ids}).size === {ids}.length")
    for dark in (False, True):
        page.size(*DESK, dark=dark)
        assert page.run(CONTRAST) == []


# Of every element with text of its own: colour against the nearest background that is painted (WCAG 2.2, 1.4.3).
CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const line = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * line(r) + 0.7152 * line(g) + 0.0722 * line(b);
  const behind = (node) => {
    for (let n = node; n; n = n.parentElement) {
      const colour = rgb(getComputedStyle(n).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *:not(script, style)")) {
    const said = [...node.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join("");
    if (!said || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const one = light(rgb(node instanceof SVGElement ? style.fill : style.color)), two = light(behind(node));
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) found.push(`${node.tagName} ${said.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return found;
})()"""


def test_it_follows_what_happens_and_leaves_what_the_reader_did(page: Page, up: Up) -> None:
    page.size(*DESK)
    page.open(f"{up.url}/dashboard")
    shown(page)
    page.run("document.querySelector('#rollout details').open = true")
    page.run("document.querySelector('#rollout summary').focus()")
    page.run("window.scrollTo(0, 300)")
    page.run("window.before = document.querySelector('#ledger table')")
    rollout = up.store.run(lambda tx: tx.open_rollout(up.project.project))
    assert rollout is not None
    histories.look(up.store, rollout.id, histories.seen(BEGAN + 84 * DAY, 640, 0.0035, 0.006))
    page.wait("document.querySelector('#loop .says').innerText.includes('640 of about 900 keys')")
    assert page.run("document.querySelector('#rollout details').open")
    page.wait("document.activeElement === document.querySelector('#rollout summary')")
    assert page.run("window.scrollY") == 300
    assert page.run("window.before === document.querySelector('#ledger table')")  # what is the same is not drawn again
    assert page.errors == []


def test_it_says_that_the_server_is_away_and_goes_on_when_it_is_back(page: Page, tmp_path: Path) -> None:
    first = served(tmp_path)
    histories.serve(first.store, first.project)
    page.size(*PHONE)
    page.open(f"{first.url}/dashboard")
    shown(page)
    assert "none has come yet" in page.text("#loop .says")
    assert "No traffic has been seen yet" in page.text("#traffic")
    first.stop()
    page.wait("!document.getElementById('away').hidden")
    assert "The server is away since" in page.text("#away")
    assert "none has come yet" in page.text("#loop .says")
    second = served(tmp_path, port=int(first.url.split(":")[2].split("/")[0]))
    page.wait("document.getElementById('away').hidden")
    second.stop()


def test_with_tokens_it_asks_for_one_and_keeps_it_in_the_tab(page: Page, tmp_path: Path) -> None:
    up = served(tmp_path, auth="token")
    histories.serve(up.store, up.project)
    assert httpx.get(f"{up.url}/dashboard/data").status_code == 401
    page.size(*PHONE)
    page.open(f"{up.url}/dashboard")
    page.wait("!document.getElementById('token').hidden")
    assert page.run("document.querySelector('#loop').hidden")
    assert page.run("document.documentElement.scrollWidth") <= PHONE[0]
    for token, waits in (
        ("mr_wrong", "document.getElementById('refused').textContent"),
        (up.token, "document.querySelector('#loop svg')"),
    ):
        page.run(f"document.getElementById('secret').value = '{token}'")
        page.run("document.querySelector('#token button').click()")
        page.wait(waits)
    assert page.run("document.getElementById('token').hidden")
    assert page.run("localStorage.length") == 0
    assert up.token not in " ".join(page.requests)
    page.run("document.getElementById('leave').click()")
    page.wait("!document.getElementById('token').hidden")
    assert page.text("#loop") == ""
    up.stop()


def test_the_theme_is_the_readers(page: Page, up: Up) -> None:
    page.size(*DESK, dark=False)
    page.open(f"{up.url}/dashboard")
    shown(page)
    bright = page.run("getComputedStyle(document.body).backgroundColor")
    page.run("document.getElementById('theme').click()")  # light, whatever the system likes
    page.size(*DESK, dark=True)
    assert page.run("getComputedStyle(document.body).backgroundColor") == bright
    page.run("document.getElementById('theme').click()")
    assert page.run("getComputedStyle(document.body).backgroundColor") != bright
    page.run("localStorage.clear()")


def test_a_snapshot_needs_no_server(page: Page, up: Up, tmp_path: Path) -> None:
    body = to_json(document(gather(up.store, up.project, machine_now=2e9), release="0"))
    file = tmp_path / "snapshot.html"
    file.write_text(pages.snapshot(up.project.project, body, taken=2e9), encoding="utf-8")
    page.size(*PHONE)
    page.open(file.as_uri())
    shown(page)
    assert page.errors == []
    assert page.requests[0] == file.as_uri()
    assert all(address.startswith("data:") for address in page.requests[1:])
    assert "snapshot of 18 May 2033" in page.text("#fresh")
    assert page.run("document.documentElement.scrollWidth") <= PHONE[0]


def test_a_document_that_is_known_is_not_sent_again(up: Up) -> None:
    first = httpx.get(f"{up.url}/dashboard/data")
    assert first.status_code == 200
    assert first.json()["loop"]["stage"] == "rollout"
    again = httpx.get(f"{up.url}/dashboard/data", headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert "content-length" not in again.headers
    assert "frame-ancestors 'none'" in httpx.get(f"{up.url}/dashboard").headers["content-security-policy"]


def test_all_who_ask_at_once_are_told_by_one_reading(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    readings, read = [], board.gather

    def counted(*args: Any, **more: Any) -> Any:
        readings.append(1)
        return read(*args, **more)

    monkeypatch.setattr(board, "gather", counted)
    threads = [threading.Thread(target=httpx.get, args=(f"{up.url}/dashboard/data",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(readings) <= 2  # two where they straddle an age
