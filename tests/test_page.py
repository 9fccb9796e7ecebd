"""The page, in a real Chromium against a real server: talk, tick, compare, thumbs; by keyboard, on a phone; errors in words."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving import N, Running, open_session, running, write_policy

from convrec_r1.data.adapters import jsonl
from convrec_r1.serve.http.service import Served

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.processes("page"),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)"),
]
expect.set_options(timeout=20_000)  # milliseconds: others may work on this machine
PHONE = {"width": 360, "height": 740}
ASKED = "I loved Alien. Something scary in space?"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        sandbox = [] if os.getuid() else ["--no-sandbox"]  # Chromium refuses to run as root with it
        yield playwright.chromium.launch(executable_path=BROWSER, args=sandbox)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Iterator[list[Served]]:
    """Two policies of random weights over movieland's films."""
    with contextlib.ExitStack() as stack:
        served = []
        for seed, name in enumerate(("rank_grpo", "sft")):
            session = open_session(write_policy(tmp_path_factory.mktemp(name), seed))
            stack.callback(session.close, wait=False)
            served.append(Served.of(name, session))
        yield served


@pytest.fixture(scope="module")
def server(models, tmp_path_factory) -> Iterator[Running]:
    with running(*models, feedback=str(tmp_path_factory.mktemp("thumbs") / "thumbs.jsonl")) as server:
        yield server


@contextlib.contextmanager
def opened(browser: Browser, url: str, *, errors: bool = False, **options) -> Iterator[Page]:
    """The page in a fresh profile. It may ask its own server only, and nothing may fail unless `errors`."""
    options = {"viewport": {"width": 1280, "height": 860}, "reduced_motion": "reduce", **options}
    context = browser.new_context(**options)
    context.set_default_timeout(20_000)
    wrong: list[str] = []
    context.on("request", lambda request: request.url.startswith(url) or wrong.append(request.url))
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: said.type == "error" and not errors and wrong.append(said.text))
    try:
        page.goto(url)
        yield page
        assert wrong == []
    finally:
        context.close()


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    with opened(browser, server.url) as page:
        expect(page.locator("#examples button")).to_have_count(4)
        yield page


def ask(page: Page, text: str = ASKED) -> dict:
    """Send a message. Returns the body of the request, once all lists are complete."""
    page.get_by_label("Message").fill(text)
    with page.expect_request("**/v1/recommendations") as request:
        page.keyboard.press("Enter")
    wait(page)
    return request.value.post_data_json


def wait(page: Page) -> None:
    expect(page.locator(".answer[aria-busy=true]")).to_have_count(0)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def names(page: Page, answer: int = -1) -> list[str]:
    """`Title (Year)` of each line of a list."""
    lists = page.locator(".answer").all()
    return [line.get_attribute("data-name") or "" for line in lists[answer].locator(".line").all()]


def test_a_conversation_and_its_lists(page):
    first = ask(page)
    assert first["messages"] == [{"role": "user", "content": ASKED}]
    listed = names(page)
    assert len(set(listed)) == N
    lines = page.locator(".line")
    expect(lines.first.locator(".title")).to_have_text(listed[0].rpartition(" (")[0])
    expect(lines.first.locator(".value")).to_have_text(re.compile(r"^(< 0\.1|\d+(\.\d)?) %$"))
    expect(page.get_by_role("status")).to_contain_text(f"rank_grpo: {listed[0]}, ")
    second = ask(page, "Less scary?")
    said = [(m["role"], m["content"]) for m in second["messages"]]
    assert said == [("user", ASKED), ("assistant", ", ".join(listed)), ("user", "Less scary?")]
    page.get_by_role("button", name="More, without these").last.click()
    wait(page)
    assert not set(names(page)) & set(names(page, 1))
    expect(page.locator(".turn")).to_have_count(3)
    page.get_by_role("button", name="New").click()
    expect(page.locator(".turn")).to_have_count(0)
    assert len(ask(page)["messages"]) == 1


def test_nothing_moves_while_lines_arrive(page):
    page.get_by_label("Length of a list").fill("60")
    page.evaluate(
        "window.moved = []; new PerformanceObserver((list) => {"
        "  if (!document.querySelector('.line.waiting')) return;"
        "  for (const entry of list.getEntries()) for (const {node} of entry.sources)"
        "    window.moved.push((node?.outerHTML ?? node?.parentElement?.outerHTML ?? 'gone').slice(0, 60));"
        "}).observe({type: 'layout-shift'})"
    )
    page.get_by_label("Message").fill(ASKED)
    page.keyboard.press("Enter")
    expect(page.locator(".line.waiting").first).to_be_visible()
    tall = page.locator(".answer").bounding_box()
    wait(page)
    assert page.locator(".answer").bounding_box() == tall
    assert page.evaluate("window.moved") == []


def test_a_list_is_stopped(page):
    page.get_by_label("Length of a list").fill("100")
    page.get_by_label("Message").fill(ASKED)
    page.keyboard.press("Enter")
    expect(page.locator(".line:not(.waiting)").first).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".progress")).to_have_text("Stopped")
    assert 0 < len(names(page)) < 100


def test_what_is_ticked_or_found_by_title_is_left_out(page):
    ask(page)
    ticked, *_ = names(page)
    page.get_by_label(f"Seen: {ticked}").check()
    search = page.get_by_role("combobox", name="Already seen")
    search.fill("alie")
    expect(page.get_by_role("option", name="Alien (1979)")).to_be_visible()
    search.press("Enter")
    chips = page.get_by_label("Titles you have seen")
    expect(chips.get_by_role("listitem")).to_have_text([ticked, "Alien (1979)"])
    body = ask(page, "Another list, please")
    assert body["seen"] == [ticked, "Alien (1979)"]
    assert ticked not in names(page)
    chips.get_by_label(f"Remove {ticked}").click()
    expect(page.get_by_label(f"Seen: {ticked}")).not_to_be_checked()
    assert ask(page, "And now?")["seen"] == ["Alien (1979)"]


def test_two_policies_side_by_side(page):
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("Length of a list").fill("20")
    ask(page)
    left, right = page.locator(".answer").all()
    assert [side.locator("h2").inner_text() for side in (left, right)] == ["rank_grpo", "sft"]
    a, b = left.bounding_box(), right.bounding_box()
    assert a["y"] == b["y"]
    assert a["x"] + a["width"] < b["x"]
    first, second = names(page, 0), names(page, 1)
    assert first != second
    both = set(first) & set(second)
    expect(page.locator(".shared")).to_have_text(f"{len(both)} of 20 items are in both lists.")
    marked = {line.get_attribute("data-name") for line in left.locator(".line:has(.both:not([hidden]))").all()}
    assert marked == both


def test_thumbs_are_feedback_that_data_jsonl_reads(page, server):
    file = Path(server.service.cfg.feedback)
    file.write_text("")
    ask(page)
    good, bad, turned, *_ = names(page)

    def press(kind: str, name: str) -> None:
        with page.expect_response("**/v1/feedback") as answer:
            page.get_by_role("button", name=f"{kind}: {name}").click()
        assert answer.value.ok

    press("Good", good)
    press("Bad", bad)
    press("Good", turned)
    press("Bad", turned)
    expect(page.get_by_role("button", name=f"Good: {good}")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name=f"Good: {turned}")).to_have_attribute("aria-pressed", "false")
    (read,) = jsonl.read(file)
    assert [str(item) for item in read.ground_truth] == [good]
    assert [m.content for m in read.messages] == [ASKED]
    press("Good", good)  # once more takes it back
    expect(page.get_by_role("button", name=f"Good: {good}")).to_have_attribute("aria-pressed", "false")
    assert good not in file.read_text()


def test_the_filter_is_applied_and_its_faults_are_explained(page):
    where = page.get_by_label("Only items where")
    where.fill("genre=comedy and year>1990")
    ask(page)
    assert all(int(name[-5:-1]) > 1990 for name in names(page))
    assert all("comedy" in line.inner_text() for line in page.locator(".details").all())
    where.fill("year>2100")
    ask(page, "From the future?")
    expect(page.locator(".note").last).to_be_visible()
    with_error = page.locator("#where-error")
    expect(with_error).to_have_text("")


def test_a_faulty_filter_is_explained_beside_it(browser, server):
    with opened(browser, server.url, errors=True) as page:
        expect(page.locator("#examples button")).to_have_count(4)
        page.get_by_label("Only items where").fill("genre==")
        ask(page)
        expect(page.locator("#where-error")).to_contain_text("where")
        expect(page.locator(".failed p")).to_contain_text("where")
        page.get_by_label("Only items where").fill("")
        page.get_by_role("button", name="Try again").click()
        wait(page)
        assert len(names(page)) == N


def test_by_keyboard_alone(page):
    focused = page.locator(":focus")
    expect(focused).to_have_attribute("id", "message")
    page.keyboard.type(ASKED)
    page.keyboard.press("Enter")
    wait(page)
    listed = names(page)
    page.locator(".act input").first.focus()  # from here on with the keys only
    page.keyboard.press("Space")
    expect(page.get_by_label(f"Seen: {listed[0]}")).to_be_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name=f"Good: {listed[0]}")).to_have_attribute("aria-pressed", "true")
    for _ in range(60):
        page.keyboard.press("Tab")
        if focused.get_attribute("id") == "search":
            break
    page.keyboard.type("the")
    expect(page.locator("#found [role=option]").nth(2)).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    chosen = page.locator("#found [aria-selected=true]").inner_text()
    assert page.locator("#search").get_attribute("aria-activedescendant") == "found-2"
    page.keyboard.press("Enter")
    expect(page.get_by_label("Titles you have seen").get_by_role("listitem").last).to_have_text(chosen)
    page.keyboard.type("the")
    expect(page.get_by_role("listbox")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("listbox")).to_be_hidden()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # takes the first chip back; the focus goes on to the next
    expect(focused).to_have_attribute("aria-label", f"Remove {chosen}")


def test_on_a_phone(browser, server):
    with opened(browser, server.url, viewport=PHONE, has_touch=True, is_mobile=True) as page:
        expect(page.locator("#examples button")).to_have_count(4)
        page.locator("#examples button").first.tap()
        wait(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for control in page.locator(".line").first.locator(".act").all():
            box = control.bounding_box()
            assert min(box["width"], box["height"]) >= 36
        expect(page.get_by_label("Only items where")).to_be_hidden()
        page.get_by_role("button", name="Options").tap()
        expect(page.get_by_label("Only items where")).to_be_in_viewport()
        page.get_by_label("Only items where").fill("year>1990")
        page.keyboard.press("Escape")
        expect(page.get_by_label("Only items where")).to_be_hidden()
        expect(page.get_by_role("button", name="Options 1")).to_be_focused()
        page.get_by_role("button", name="Compare").tap()
        ask(page, "And these two?")
        a, b = (answer.bounding_box() for answer in page.locator(".turn").last.locator(".answer").all())
        assert a["x"] == b["x"]  # below each other
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(browser, server, scheme):
    """Names, roles, contrast: what the axe rules can tell."""
    with opened(browser, server.url, color_scheme=scheme) as page:
        expect(page.locator("#examples button")).to_have_count(4)
        found = [Axe().run(page)]
        page.get_by_role("button", name="Compare").click()
        ask(page)
        page.locator(".act input").first.check()
        with page.expect_response("**/v1/feedback"):
            page.locator(".up").nth(1).click()
        page.get_by_role("combobox", name="Already seen").fill("the")
        expect(page.locator("#found [role=option]").first).to_be_visible()
        found.append(Axe().run(page))
    faults = [violation for result in found for violation in result.response["violations"]]
    assert [(fault["id"], node["html"]) for fault in faults for node in fault["nodes"]] == []


def test_text_of_users_is_never_markup(page):
    text = "<img src=x onerror=\"document.title='broken'\"><b>bold</b>"
    ask(page, text)
    expect(page.locator(".said p")).to_have_text(text)
    assert page.locator("main img, main b").count() == 0
    assert page.title() == "ConvRec-R1"


def test_a_busy_server(browser, models):
    with running(*models, limit=1) as server, opened(browser, server.url, errors=True) as page:
        expect(page.locator("#examples button")).to_have_count(4)
        server.service.under_way += 1  # as if another client's list were being written
        ask(page)
        expect(page.get_by_role("alert").filter(has_text="busy")).to_have_text(
            "The server is busy. Try again in 1 second.Try again"
        )
        server.service.under_way -= 1
        page.get_by_role("button", name="Try again").click()
        wait(page)
        assert len(names(page)) == N
        assert page.locator(".up").count() == 0  # the server keeps no thumbs


def test_a_server_that_stops_and_one_that_is_gone(browser, models):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(*models))
        page = stack.enter_context(opened(browser, server.url, errors=True))
        expect(page.locator("#examples button")).to_have_count(4)
        server.service.stopping = True
        ask(page)
        expect(page.locator(".failed p")).to_have_text("The server is starting or stopping. Try again in a moment.")
        server.service.stopping = False
        page.route("**/v1/recommendations", lambda route: route.abort("connectionrefused"))
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".failed p")).to_contain_text("The server cannot be reached.")
        page.unroute("**/v1/recommendations")
        page.get_by_role("button", name="Try again").click()
        wait(page)
        assert len(names(page)) == N


def test_a_server_with_a_key(browser, models):
    with running(*models, key="a key of the tests") as server, opened(browser, server.url, errors=True) as page:
        field = page.get_by_label("Key of this server")
        expect(field).to_be_focused()
        field.fill("a key of the tests")
        field.press("Enter")
        expect(page.locator("#examples button")).to_have_count(4)
        ask(page)
        assert len(names(page)) == N
