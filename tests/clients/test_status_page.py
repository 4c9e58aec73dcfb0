"""The status page in a real browser: looked at, typed into, refused, drained. Screenshots stay below the target folder."""

import json
import shutil
import threading
import urllib.request

import pytest

from conftest import TARGET, eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = TARGET / "clients" / "screenshots"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the status page is not looked at: no chromium here")


@pytest.fixture(scope="module")
def browser():
    """One headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser):
    """Opens the status page of a worker; fails at the end when the browser complained of anything."""
    contexts, complaints = [], []

    def opened(worker, may_complain=False, **options):
        context = browser.new_context(**{"viewport": DESK, **options})
        contexts.append(context)
        page = context.new_page()
        if not may_complain:
            page.on("console", lambda said: complaints.append(said.text) if said.type != "log" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            foreign = lambda request: not request.url.startswith((worker.url, "data:"))
            page.on("request", lambda request: complaints.append(request.url) if foreign(request) else None)
        page.goto(worker.url + "/")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints, complaints


def send(page, text):
    """Types a message and sends it, by keyboard."""
    page.get_by_label("Message").focus()
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def answered(page, count=1):
    """Waits until that many answers are complete, and returns the last one."""
    page.locator(".message.assistant .foot").nth(count - 1).wait_for(timeout=60_000)
    return page.locator(".message.assistant").nth(count - 1)


def write_for_ever(worker):
    """Keeps the worker busy until its process ends."""
    body = json.dumps({"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "temperature": 1}).encode()
    request = urllib.request.Request(f"{worker.url}/v1/completions", body, {"content-type": "application/json"})

    def read():
        try:
            urllib.request.urlopen(request, timeout=120).read()
        except OSError:
            pass

    threading.Thread(target=read, daemon=True).start()


def shoot(page, name):
    """Leaves a picture for people."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=page.viewport_size["width"] < 500)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_the_worker_and_streams_an_answer(start_worker, open_page, scheme):
    busy = start_worker("--max-batch", "4", "--served-model-name", "haiku").wait_ready()
    page = open_page(busy, color_scheme=scheme)
    page.get_by_text("Healthy").wait_for()
    assert page.get_by_role("heading", level=1).inner_text() == "haiku-moe"
    assert page.title() == "haiku-moe – worker-orcd"
    for shown in ["MXFP4", "2,048 tokens", busy.health()["worker_id"]]:
        assert page.get_by_text(shown, exact=True).first.is_visible()
    total = page.locator("#memory").inner_text()
    assert total.endswith("MiB") and page.get_by_role("row", name="Weights").is_visible()
    for _ in range(5):
        write_for_ever(busy)
    page.wait_for_timeout(2500)
    assert page.locator("#rate").inner_text() not in ("–", "0")
    assert page.locator("#running").inner_text().split() == ["4", "running"]
    assert page.locator("#waiting").inner_text() == "1 waiting"
    send(page, "Write a haiku about the moon")
    page.locator(".message.live").wait_for()
    assert page.locator("#log").get_attribute("aria-busy") == "true"
    shoot(page, f"{scheme}-busy")
    page.get_by_role("button", name="Stop").click()
    assert "Stopped." in answered(page).inner_text()
    busy.kill()


def test_a_conversation_by_keyboard_alone(worker, open_page):
    page = open_page(worker)
    page.get_by_text("Healthy").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "prompt", "the first stop leads to the chat"
    page.keyboard.type("Write a haiku")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("about <b>rain</b>")
    page.keyboard.press("Enter")
    first = answered(page)
    assert page.locator(".message.user .text").inner_text() == "Write a haiku\nabout <b>rain</b>"
    assert "tokens" in first.locator(".foot").inner_text()
    assert first.locator(".text").inner_text() or first.locator("details").count()
    send(page, "Another one")
    answered(page, 2)
    shoot(page, "conversation")
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(200)
    shoot(page, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], "nothing hangs over the edge"
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".message").count() == 0 and page.locator("#empty").is_visible()


def test_what_a_model_writes_is_text(worker, open_page):
    said = "<img src=x onerror=alert(1)><script>document.title='owned'</script>&amp;"
    delta = lambda **fields: json.dumps({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})
    stream = "".join(f"data: {data}\n\n" for data in [delta(reasoning_content=said), delta(content=said), "[DONE]"])
    page = open_page(worker)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=200, content_type="text/event-stream", body=stream,
    ))
    page.get_by_text("Healthy").wait_for()
    send(page, "x")
    answer = answered(page)
    assert answer.locator(".text").inner_text() == said
    assert page.locator("#log img, #log script").count() == 0 and page.title() != "owned"
    assert answer.locator("details p").text_content() == said


def test_an_error_is_shown_and_the_conversation_goes_on(worker, open_page):
    page = open_page(worker, may_complain=True)
    page.get_by_text("Healthy").wait_for()
    page.get_by_label("Most tokens").fill("999999")
    send(page, "Too much")
    assert "max_tokens" in answered(page).locator(".fault").inner_text()
    page.get_by_label("Most tokens").fill("8")
    send(page, "Enough")
    assert "tokens" in answered(page, 2).locator(".foot").inner_text()


def test_a_key_is_asked_for_and_forgotten(start_worker, open_page, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("opens-it\n")
    locked = start_worker("--api-key-file", str(keys)).wait_ready()
    page = open_page(locked)
    page.get_by_label("This worker asks for an API key").wait_for()
    assert page.locator("#cache-note").inner_text() == "needs a key"
    page.get_by_label("Message").fill("Hello")
    assert page.get_by_role("button", name="Send").is_disabled()
    page.get_by_label("This worker asks for an API key").fill("opens-it")
    page.keyboard.press("Enter")
    page.locator("#unlock").wait_for(state="hidden")
    send(page, " there")
    assert "tokens" in answered(page).locator(".foot").inner_text()
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0 and page.context.cookies() == []
    page.reload()
    page.get_by_label("This worker asks for an API key").wait_for()


def test_it_loads_drains_and_comes_back(start_worker, open_page):
    first = start_worker("--drain-timeout-sec", "8", "--max-batch", "2").wait_ready()
    page = open_page(first, may_complain=True)
    page.get_by_text("Healthy").wait_for()
    write_for_ever(first)
    eventually(lambda: first.metric("worker_requests_running") == 1, "a request runs")
    first.terminate()
    page.get_by_text("The worker is draining").wait_for()
    assert page.get_by_role("button", name="Send").is_disabled()
    assert first.process.wait(30) == 0
    page.get_by_text("Unreachable").wait_for()
    loading = {"status": "loading", "requests_running": 0, "requests_waiting": 0, "uptime_seconds": 3, "stats": None,
               "model": None, "vram_bytes": {}, "vram_bytes_used": 0, "worker_id": "w", "locked": False}
    page.route("**/status", lambda route: route.fulfill(json=loading))
    page.get_by_text("The model is being loaded").wait_for()
    shoot(page, "loading")
    page.unroute("**/status")
    start_worker(port=first.port)
    page.get_by_text("Healthy").wait_for(timeout=60_000)


def test_its_policy_lets_nothing_else_in(worker):
    with urllib.request.urlopen(worker.url + "/") as reply:
        policy, page = reply.headers["content-security-policy"], reply.read().decode()
    assert "default-src 'none'" in policy and "unsafe" not in policy
    nonce = policy.split("'nonce-", 1)[1].split("'", 1)[0]
    assert page.count(f'nonce="{nonce}"') == 2 and "http://" not in page.replace("http://www.w3.org", "")
    with urllib.request.urlopen(worker.url + "/") as reply:
        assert nonce not in reply.headers["content-security-policy"], "every response has its own"
