"""The trajectory viewer in headless Chromium: slider, keys, pointer, focus, colours, requests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from r2jax import viewer
from tests.trajectories import FAST, MASK, OUTPUTS, PROMPT, TEXTS, TOKENS, make_page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Headless, 1200 x 900, with the page open."""
    assert CHROMIUM and DRIVER
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    page: Path = tmp_path_factory.mktemp("page") / "trajectory.html"
    page.write_text(make_page(), encoding="utf-8")
    resize(browser, 1200)
    browser.get("about:blank")
    browser.get_log("performance")  # the browser's own first page
    browser.get(page.as_uri())
    yield browser
    browser.quit()


def resize(browser: webdriver.Chrome, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> webdriver.Chrome:
    chromium.refresh()
    return chromium


def press(browser: webdriver.Chrome, *keys: str) -> None:
    ActionChains(browser).send_keys(*keys).perform()


def now(browser: webdriver.Chrome) -> int:
    """Where the slider stands; the number beside it agrees."""
    at, count = browser.execute_script(  # at once: it may be playing
        "return ['slider', 'count'].map((id) => document.getElementById(id).value)"
    )
    assert count == f"{at} / 24"
    return int(at)


def shown(browser: webdriver.Chrome) -> list[list[str | None]]:
    """Each strategy's tokens as they stand there; None where there is none."""
    return browser.execute_script(
        """return [...document.querySelectorAll("article")].map((article) =>
          [...article.querySelectorAll(".token .final")].map((token) =>
            getComputedStyle(token).visibility === "visible" ? token.textContent : null))"""
    )


def token(browser: webdriver.Chrome, strategy: int, position: int) -> Any:
    article = browser.find_elements(By.TAG_NAME, "article")[strategy]
    return article.find_elements(By.CLASS_NAME, "token")[position]


SIGNS = {1: "end", 6: "↵", 7: "␣␣", 8: "∅"}  # of tokens whose text would not be seen
SIGNS |= {9: r"\u{0}\u{1b}", 11: r"\u{202e}evil", 12: r"\u{2028}"}


def test_the_slider_moves_the_tokens(browser: webdriver.Chrome):
    """At every forward the tokens are those of the trace's state, of each strategy its own."""
    assert now(browser) == 4, "it opens where the first strategy is done"
    slider = browser.find_element(By.ID, "slider")
    slider.send_keys(Keys.HOME)
    for k in range(25):
        assert now(browser) == k
        for out, tokens in zip(OUTPUTS.values(), shown(browser), strict=True):
            nfe = int(out.nfe[0])
            assert out.output.states is not None
            state = TOKENS if k >= nfe else np.asarray(out.output.states)[0, k].tolist()
            want = [None if i == MASK else SIGNS.get(i, TEXTS[i]) for i in state]
            assert tokens == want
        slider.send_keys(Keys.ARROW_RIGHT)
    assert now(browser) == 24


def test_keys(browser: webdriver.Chrome):
    press(browser, Keys.END)
    assert now(browser) == 24
    press(browser, Keys.ARROW_RIGHT)
    assert now(browser) == 24
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert now(browser) == 22
    press(browser, Keys.HOME)
    assert now(browser) == 0
    play, speed = browser.find_element(By.ID, "play"), browser.find_element(By.ID, "speed")
    browser.execute_script("arguments[0].value = 5", speed)
    press(browser, Keys.SPACE)
    assert play.text == "Pause"
    wait(browser, lambda: now(browser) >= 2)
    press(browser, Keys.SPACE)
    assert play.text == "Play"
    assert 2 <= now(browser) < 24
    browser.execute_script("arguments[0].value = 30", speed)
    press(browser, Keys.SPACE)  # to the end, where it stops by itself
    wait(browser, lambda: play.text == "Play")
    assert now(browser) == 24
    browser.execute_script("arguments[0].value = 5", speed)
    play.click()  # from the start again
    wait(browser, lambda: 0 < now(browser) < 24)
    press(browser, Keys.ARROW_LEFT)  # the button has the focus; a step pauses
    assert play.text == "Play" and now(browser) < 24


def wait(browser: webdriver.Chrome, condition: Callable[[], bool]) -> None:
    WebDriverWait(browser, 10, poll_frequency=0.02).until(lambda _: condition())


def test_a_token_under_the_pointer_says_what_it_is(browser: webdriver.Chrome):
    tip = browser.find_element(By.ID, "tip")
    assert not tip.is_displayed()
    chip = token(browser, 1, 4)
    ActionChains(browser).move_to_element(chip).perform()
    text = tip.text.splitlines()
    assert text[:4] == [
        "“↵”",
        "position 4",
        "confidence cluster at forward 2",
        "confidence 0.2778",
    ]
    assert text[5:] == ["1 “↵” 0.1389", "2 “↵” 0.2778"], "its history"
    ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
    wait(browser, lambda: not tip.is_displayed())


def test_a_focused_token_says_what_it_is(browser: webdriver.Chrome):
    tip = browser.find_element(By.ID, "tip")
    press(browser, Keys.HOME)
    browser.execute_script("document.querySelector('#rules button:last-child').focus()")
    for _ in range(4):  # guesses, numbers, speed, and the first answer's one stop
        press(browser, Keys.TAB)
    press(browser, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert tip.text == "masked\nposition 3\nits block has not begun"
    press(browser, Keys.ARROW_RIGHT)  # a forward, not a token
    assert now(browser) == 1
    assert tip.text.splitlines()[:3] == ["masked", "position 3", "guess “<b>bold</b>”"]
    press(browser, *[Keys.ARROW_RIGHT] * 3)
    assert tip.text.splitlines()[:5] == [
        "“\"'`\\”",
        "position 3",
        "transfer at forward 4",
        "sampled; most likely: “<b>bold</b>”",
        "confidence 0.0741",
    ]
    focused = browser.switch_to.active_element
    assert focused.get_attribute("aria-label") == ", ".join(tip.text.splitlines()[:5])
    assert focused.get_attribute("aria-describedby") == "tip"
    press(browser, Keys.ESCAPE)
    assert not tip.is_displayed()
    press(browser, Keys.TAB)
    assert "Answer as text" in browser.switch_to.active_element.text, "one stop an answer"


def test_every_rule_has_its_mark(browser: webdriver.Chrome):
    press(browser, Keys.END)
    marks = browser.execute_script(
        """return [...document.querySelectorAll("article")[1].querySelectorAll(".token")]
          .map((token) => token.querySelector("use").getAttribute("href"))"""
    )
    assert FAST.output.committed_by is not None
    assert marks == [f"#rule-{rule}" for rule in np.asarray(FAST.output.committed_by)[0]]
    shapes = browser.execute_script(
        "return [...document.querySelectorAll('symbol')].map((symbol) => symbol.innerHTML)"
    )
    assert len(shapes) == len(set(shapes)) == len(viewer.RULES)
    buttons = browser.find_elements(By.CSS_SELECTOR, "#rules button")
    assert [button.text for button in buttons] == list(viewer.RULES)
    scale = browser.find_elements(By.CSS_SELECTOR, "#scale .sure")
    assert [sure.text for sure in scale][4:] == ["from 0.99", "sampled, not the most likely"]
    buttons[3].click()
    opaque = browser.execute_script(
        """return [...document.querySelectorAll("article")[1].querySelectorAll(".token")]
          .flatMap((token, i) => getComputedStyle(token).opacity === "1" ? [i] : [])"""
    )
    assert opaque == [6, 7]
    assert [b.get_attribute("aria-pressed") for b in buttons] == ["false"] * 3 + ["true", "false"]


def test_hostile_text_is_shown_and_stays_in_its_place(browser: webdriver.Chrome):
    assert browser.title.startswith("</script><h1>Hi</h1>")
    prompt = browser.find_element(By.ID, "prompt").text
    assert prompt == PROMPT.replace("\u202e", r"\u{202e}")
    assert not browser.find_elements(By.CSS_SELECTOR, "img, article b, h1 + h1")
    assert browser.find_elements(By.TAG_NAME, "h2")[1].text == "fast </h2>"
    press(browser, Keys.END)
    boxes = browser.execute_script(
        """return [...document.querySelectorAll("article")[1].querySelectorAll(".token")]
          .map((token) => token.getBoundingClientRect()).map((box) => [box.top, box.left])"""
    )
    assert boxes == sorted(boxes), "in reading order, whatever the direction of a token's script"
    ends = [token(browser, 1, i).get_attribute("class") for i in (15, 17)]
    assert [" end" in classes for classes in ends] == [False, True]


CONTRAST = """
const parse = (color) => {
  const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
  return { rgb: [r, g, b], a };
};
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const style = getComputedStyle(node);
    if (style.backgroundImage !== "none") return null;
    const { rgb, a } = parse(style.backgroundColor);
    if (a === 1) return rgb;
    if (a > 0) return null;
  }
  return null;
};
const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((c) => linear(c / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const found = {};
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  const style = getComputedStyle(node);
  if (!own || style.visibility !== "visible" || !node.getClientRects().length) continue;
  const under = ground(node);
  if (under === null) continue;
  const [x, y] = [luminance(parse(style.color).rgb), luminance(under)].sort((a, b) => b - a);
  const name = `${node.tagName} ${node.className} ${node.parentElement.className}`;
  found[name] = (x + 0.05) / (y + 0.05);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(browser: webdriver.Chrome, scheme: str):
    """Contrast of at least 4.5 (WCAG AA), of every text on its ground."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.find_element(By.ID, "numbers").click()
    ratios = {}
    for key in (Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.END):
        press(browser, key)
        ratios |= browser.execute_script(CONTRAST)
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(13, 17, 23)") == (scheme == "dark")
    assert len(ratios) > 20 and any("guess" in name for name in ratios)
    assert {f"sure-{i}" for i in range(4)} <= {word for name in ratios for word in name.split()}
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}


def test_a_narrow_window(browser: webdriver.Chrome):
    try:
        for width in (320, 700):
            resize(browser, width)
            needed = browser.execute_script("return document.documentElement.scrollWidth")
            assert needed <= width
        resize(browser, 320)
        chip = token(browser, 0, 3)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chip)
        ActionChains(browser).move_to_element(chip).perform()
        box = browser.find_element(By.ID, "tip").rect
        assert box["width"] > 0 and box["x"] >= 0 and box["x"] + box["width"] <= 320
    finally:
        resize(browser, 1200)


def test_no_error_and_no_request(chromium: webdriver.Chrome):
    """All of the above left nothing in the console, and asked for nothing but the page."""
    chromium.refresh()
    assert chromium.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in sent
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert urls and {url.split(":")[0] for url in urls} <= {"file", "data"}
    assert {url for url in urls if url.startswith("file:")} == {chromium.current_url}
