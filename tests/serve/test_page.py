"""The page in a real browser, on the model that comes with jaxstate: what people see and do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from jaxstate.serve.app import PAGE
from tests.serve.servers import Server, served

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs chromium, chromium-driver"
    ),
]
QUESTION = "What is the last close of ACME?"
EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served("streams-20m", tmp_path_factory.mktemp("page"), "--api-key", "secret") as one:
        yield one


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER or "")
    with webdriver.Chrome(options=options, service=service) as one:
        one.set_window_size(1280, 1240)
        yield one


@pytest.fixture
def page(server: Server, browser: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """Open, with the key given, and nothing wrong on its console in the end."""
    browser.get(server.url)
    if not shown(browser, "layout"):
        keyed = until(browser, "key")
        keyed.send_keys("secret" + Keys.ENTER)
        wait(browser, lambda: shown(browser, "layout"))
    yield browser
    # But for a look that was refused before the key was there.
    wrong = [line for line in browser.get_log("browser") if "401" not in line["message"]]
    assert [line for line in wrong if line["level"] == "SEVERE"] == []
    with httpx.Client(base_url=server.url, headers={"x-api-key": "secret"}) as http:
        for one in http.get("/v1/sessions").json()["data"]:
            http.delete(f"/v1/sessions/{one['id']}")


def wait(browser: webdriver.Chrome, met: object, seconds: float = 60.0) -> None:
    WebDriverWait(browser, seconds, poll_frequency=0.05).until(lambda _: met())  # pyright: ignore


def until(browser: webdriver.Chrome, name: str) -> WebElement:
    wait(browser, lambda: shown(browser, name))
    return browser.find_element(By.ID, name)


def shown(browser: webdriver.Chrome, name: str) -> bool:
    return browser.find_element(By.ID, name).is_displayed()


def text(browser: webdriver.Chrome, selector: str) -> str:
    found = browser.find_elements(By.CSS_SELECTOR, selector)
    return found[0].text if found else ""


def keep(browser: webdriver.Chrome, name: str, place: Path) -> None:
    """A picture to look at: in JAXSTATE_ARTEFACTS if that is set."""
    kept = Path(os.environ.get("JAXSTATE_ARTEFACTS", place))
    kept.mkdir(parents=True, exist_ok=True)
    browser.execute_script("scrollTo(0, 0)")
    assert browser.save_screenshot(str(kept / name))


def test_a_wrong_key_is_said_to_be_one(server: Server, browser: webdriver.Chrome) -> None:
    browser.get(server.url)
    until(browser, "key").send_keys("wrong" + Keys.ENTER)
    wait(browser, lambda: "no valid API key" in text(browser, "#login-error"))
    browser.execute_script("sessionStorage.clear()")


def test_register_push_and_see_the_answer_change(
    page: webdriver.Chrome, server: Server, tmp_path: Path
) -> None:
    """With the keyboard alone."""
    until(page, "new-id").send_keys("prices" + Keys.ENTER)
    wait(page, lambda: text(page, "#session-name") == "prices")
    data = until(page, "data")
    data.send_keys("ACME open 99.10 close 101.20" + Keys.ENTER)
    until(page, "flash-query").send_keys(QUESTION + Keys.ENTER)
    wait(page, lambda: text(page, "#flashes .value") == "101.20")
    assert text(page, "#flashes .query") == QUESTION
    data.send_keys("ACME open 101.20 close 87.50" + Keys.ENTER)
    wait(page, lambda: text(page, "#flashes .value") == "87.50")
    until(page, "prompt").send_keys(QUESTION + Keys.ENTER)
    wait(page, lambda: "was there already" in text(page, "#answers .state"))
    assert text(page, "#answers .value") == "87.50"
    until(page, "prompt").send_keys("What is the last open of ACME?" + Keys.ENTER)
    wait(page, lambda: "computed" in text(page, "#answers .state"))
    wait(page, lambda: "ACME open 101.20 close 87.50" in text(page, "#entries"))
    wait(page, lambda: "version 2" in text(page, "#sessions small"))
    # From elsewhere: the events stream says it.
    httpx.post(
        f"{server.url}/v1/sessions/prices/push",
        json={"data": "ACME open 87.50 close 120.00"},
        headers={"x-api-key": "secret"},
    )
    wait(page, lambda: text(page, "#flashes .value") == "120.00")
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#latency polyline[points]"))
    keep(page, "page.png", tmp_path)
    page.find_element(By.CSS_SELECTOR, "#flashes button").send_keys(Keys.ENTER)
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#flashes li") == [])


def test_nothing_of_a_stream_is_taken_for_markup(page: webdriver.Chrome, server: Server) -> None:
    with httpx.Client(base_url=server.url, headers={"x-api-key": "secret"}) as http:
        http.post("/v1/sessions", json={"id": "evil"})
        http.post("/v1/sessions/evil/push", json={"data": EVIL})
        http.post("/v1/sessions/evil/flash", json={"query": EVIL})
    wait(page, lambda: "evil" in text(page, "#sessions"))
    page.find_element(By.CSS_SELECTOR, "#sessions button").click()
    wait(page, lambda: EVIL in text(page, "#entries"))
    wait(page, lambda: EVIL in text(page, "#flashes .query"))
    assert page.find_elements(By.CSS_SELECTOR, "main img, main script") == []
    assert page.title.startswith("jaxstate")


def test_it_fits_a_phone_and_the_dark(page: webdriver.Chrome, tmp_path: Path) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    until(page, "new-id").send_keys("phone" + Keys.ENTER)
    wait(page, lambda: text(page, "#session-name") == "phone")
    wide = "return document.documentElement.scrollWidth"
    assert page.execute_script(wide) <= 360
    ground = page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert ground == "rgba(23, 23, 21, 1)"
    keep(page, "page-phone.png", tmp_path)
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_has_no_markup_from_text() -> None:
    source = (PAGE / "app.js").read_text()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in source
