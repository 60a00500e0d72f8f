"""The page as people use it: with a mouse, a keyboard, a phone, a screen reader."""

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from spanlake.serving.keys import Key, Keys

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytest.importorskip("selenium", reason="NOT TESTED: the page. Install selenium.")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys as Press
from selenium.webdriver.support.ui import WebDriverWait

Browse = Callable[..., "Chrome"]
SENTENCE = "Alain Farley works at McGill University"


def ask(window: "Chrome", text: str, labels: str = "person, organization") -> None:
    """Types a text and labels, and waits for the answer."""
    area = window.find_element(By.ID, "text")
    # The driver cannot type beyond the Basic Multilingual Plane.
    window.execute_script("arguments[0].value = arguments[1]", area, text)
    while remove := window.find_elements(By.CSS_SELECTOR, "#labels button"):
        remove[0].click()
    window.find_element(By.ID, "label").send_keys(labels, Press.ENTER)
    window.find_element(By.ID, "find").click()
    answered(window)


def answered(window: "Chrome") -> None:
    WebDriverWait(window, 60).until(lambda w: "above" in w.find_element(By.ID, "status").text)


def marks(window: "Chrome") -> list[tuple[str, list[str]]]:
    """Each marked piece of the text with its tags, as the document holds them."""
    return [
        (text, tags)
        for text, tags in window.execute_script(
            """return [...document.querySelectorAll("#marked mark")].map((mark) => {
                const bare = mark.cloneNode(true);
                bare.querySelectorAll(".tag").forEach((tag) => tag.remove());
                const tags = [...mark.children].filter((child) => child.className === "tag");
                return [bare.textContent, tags.map((tag) => tag.textContent.replace(/^, /, ""))];
            });"""
        )
    ]


def slide(window: "Chrome", value: float) -> None:
    window.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'));",
        window.find_element(By.ID, "threshold"),
        value,
    )


def requests_sent(window: "Chrome") -> int:
    return window.execute_script(
        "return performance.getEntriesByType('resource').filter((e) => e.name.endsWith('/v1/extract')).length"
    )


def from_server(url: str, text: str, labels: list[str], **values: Any) -> list[dict[str, Any]]:
    body = {"texts": [text], "labels": labels, **values}
    return httpx.post(f"{url}/v1/extract", json=body, timeout=60).json()["results"][0]


def complaints(window: "Chrome") -> list[Any]:
    """What the browser has logged: violations of the content security policy among them."""
    return [entry for entry in window.get_log("browser") if entry["level"] != "INFO"]


def test_entities_are_marked_where_they_stand(url: str, browse: Browse):
    window = browse()
    window.get(url)
    ask(window, SENTENCE)
    expected = [
        (entity["text"], [f"{entity['label']}{entity['score']:.2f}"])
        for entity in from_server(url, SENTENCE, ["person", "organization"])
    ]
    assert ("Alain Farley", "person") in [(text, tags[0][:6]) for text, tags in expected]
    assert marks(window) == expected
    assert f"{len(expected)} entities above 0.50" in window.find_element(By.ID, "status").text
    assert complaints(window) == []


@pytest.mark.parametrize(
    "before",
    ["\U0001f30a\U0001f30a ", "e\u0301\u200d\u20e3 \U0001f468\u200d\U0001f469\u200d\U0001f467 ", "\n\n<b>&amp;</b>\n"],
)
def test_places_hold_after_what_javascript_counts_otherwise(url: str, browse: Browse, before: str):
    window = browse()
    window.get(url)
    ask(window, before + SENTENCE)
    expected = from_server(url, before + SENTENCE, ["person", "organization"])
    assert [text for text, _ in marks(window)] == [entity["text"] for entity in expected]
    assert any(entity["text"] == "Alain Farley" for entity in expected)
    shown = window.execute_script(
        "const m = document.getElementById('marked').cloneNode(true);"
        "m.querySelectorAll('.tag').forEach((tag) => tag.remove()); return m.textContent;"
    )
    assert shown == before + SENTENCE  # nothing of it became markup, nothing was lost
    assert window.execute_script("return document.querySelectorAll('#marked b').length") == 0


def test_the_slider_filters_without_a_request_and_as_the_server_would(url: str, browse: Browse):
    window = browse()
    window.get(url)
    window.find_element(By.XPATH, "//button[text()='Nested']").click()
    answered(window)
    text = window.find_element(By.ID, "text").get_property("value")
    sent = requests_sent(window)
    assert sent == 1
    counts = []
    for threshold in (0.05, 0.2, 0.37, 0.5, 0.82, 0.95):
        slide(window, threshold)
        expected = from_server(url, text, ["organization", "location", "person"], threshold=threshold, nested=True)
        found = window.execute_script(
            "return [...document.querySelectorAll('#rows tr')].map((r) => r.cells[3].textContent)"
        )
        assert sorted(found) == sorted(f"{e['start']}–{e['end']}" for e in expected)
        counts.append(len(found))
    assert counts[0] > counts[-1]
    assert requests_sent(window) == sent


def test_nested_entities_lie_within_each_other(url: str, browse: Browse):
    window = browse()
    window.get(url)
    window.find_element(By.XPATH, "//button[text()='Nested']").click()
    answered(window)
    slide(window, 0.3)
    boxes = window.execute_script(
        """return [...document.querySelectorAll("#marked mark mark")].map((inner) => {
            const [a, b] = [inner.getBoundingClientRect(), inner.parentElement.closest("mark").getBoundingClientRect()];
            return [a.top - b.top, b.bottom - a.bottom];
        })"""
    )
    assert boxes
    assert all(above > 1 and below > 1 for above, below in boxes)  # px: the outer box shows around the inner one


def test_everything_works_from_the_keyboard(url: str, browse: Browse):
    window = browse()
    window.get(url)
    window.find_element(By.ID, "text").send_keys(SENTENCE)
    label = window.find_element(By.ID, "label")
    label.click()
    for _ in range(3):
        label.send_keys(Press.BACKSPACE)
    assert window.find_elements(By.CSS_SELECTOR, "#labels li") == []
    label.send_keys("person", Press.ENTER, "school = university or college,", "city")
    chips = [chip.text.replace("\n", " ") for chip in window.find_elements(By.CSS_SELECTOR, "#labels li")]
    assert chips == ["person ×", "school university or college ×"]
    label.send_keys(Press.CONTROL, Press.ENTER)
    answered(window)
    legend = window.find_elements(By.CSS_SELECTOR, "#legend button")
    assert [button.get_attribute("value") for button in legend] == ["person", "school", "city"]  # the typed one too
    assert any("school" in tag for _, [tag] in marks(window))
    window.find_element(By.ID, "threshold").send_keys(Press.ARROW_RIGHT)
    assert window.find_element(By.ID, "threshold-value").text == "0.51"
    before = len(marks(window))
    window.find_element(By.CSS_SELECTOR, "#legend button").send_keys(Press.SPACE)
    assert len(marks(window)) < before
    assert window.switch_to.active_element.get_attribute("value") == "person"  # the focus stays where it was
    assert window.switch_to.active_element.get_attribute("aria-pressed") == "false"


def test_every_control_has_a_name_and_changes_are_announced(url: str, browse: Browse):
    window = browse()
    window.get(url)
    ask(window, SENTENCE)
    tree = window.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "textbox", "checkbox", "slider", "link", "group", "region", "list"}
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node.get("ignored") and node["role"]["value"] in roles
    ]
    assert [role for role, name in found if not name] == []
    names = {name for _, name in found}
    assert {"Text", "Labels", "Threshold", "Remove label person", "Find entities", "Nested"} <= names
    status = window.find_element(By.ID, "status")
    assert (status.get_attribute("role"), status.get_attribute("aria-live")) == ("status", "polite")
    assert window.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen_and_can_be_read(url: str, browse: Browse, width: int, dark: bool, tmp_path: Path):
    window = browse(width, 900, dark)
    window.get(url)
    window.find_element(By.XPATH, "//button[text()='Nested']").click()
    answered(window)
    slide(window, 0.2)
    assert window.execute_script("return document.documentElement.scrollWidth") <= width
    small = window.execute_script(
        "return [...document.querySelectorAll('button, input, select')].filter((e) => e.offsetParent)"
        ".map((e) => e.closest('label') ?? e).filter((e) => e.getBoundingClientRect().height < 24)"
        ".map((e) => e.outerHTML)"
    )
    assert small == []  # WCAG 2.5.8: targets of at least 24 px
    low = window.execute_script(CONTRAST)
    assert low == []  # WCAG 1.4.3: 4.5 to 1
    shot = window.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]
    folder = Path(os.environ.get("SPANLAKE_SCREENSHOTS", tmp_path))
    (folder / f"page-{width}-{'dark' if dark else 'light'}.png").write_bytes(base64.b64decode(shot))


# Texts whose contrast with the nearest painted background is below 4.5.
CONTRAST = """
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
  .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (channels(colour)[3] !== 0) return channels(colour);
  }
  return [255, 255, 255];
};
const low = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  if (!texts.currentNode.data.trim() || !element.offsetParent) continue;
  const [a, b] = [luminance(channels(getComputedStyle(element).color)), luminance(behind(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) low.push([texts.currentNode.data, ratio]);
}
return low;
"""


def test_what_is_missing_or_wrong_is_said(url: str, browse: Browse):
    window = browse()
    window.get(url)
    problem = window.find_element(By.ID, "problem")
    assert problem.get_attribute("role") == "alert"
    window.find_element(By.ID, "find").click()
    assert problem.text == "Paste a text first, or take an example."
    assert window.switch_to.active_element.get_attribute("id") == "text"
    window.execute_script("document.getElementById('text').value = 'word '.repeat(50000)")
    window.find_element(By.ID, "find").click()
    WebDriverWait(window, 30).until(lambda w: "characters" in problem.text)
    ask(window, SENTENCE)
    assert not problem.is_displayed()


def test_an_earlier_result_is_not_taken_for_the_present_one(url: str, browse: Browse):
    window = browse()
    window.get(url)
    ask(window, SENTENCE)
    result = window.find_element(By.ID, "result")
    assert "earlier" not in result.get_attribute("class")
    window.find_element(By.ID, "text").send_keys("!")
    assert "earlier" in result.get_attribute("class")
    WebDriverWait(window, 10).until(lambda w: "before your changes" in w.find_element(By.ID, "status").text)


def test_json_and_curl_can_be_taken_away(url: str, browse: Browse):
    window = browse()
    window.get(url)
    window.execute_script("navigator.clipboard.writeText = async (content) => { window.copied = content; };")
    ask(window, "Alain O'Farley works at McGill University")
    window.find_element(By.ID, "copy-json").click()
    copied = WebDriverWait(window, 10).until(lambda w: w.execute_script("return window.copied"))
    expected = from_server(url, "Alain O'Farley works at McGill University", ["person", "organization"])
    assert [e["text"] for e in json.loads(copied)["entities"]] == [e["text"] for e in expected]
    window.find_element(By.ID, "copy-curl").click()
    command = WebDriverWait(window, 10).until(
        lambda w: (said := w.execute_script("return window.copied")).startswith("curl") and said
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert [e["text"] for e in json.loads(done.stdout)["results"][0]] == [e["text"] for e in expected]


def test_a_server_with_keys_is_reached_with_the_key_that_the_browser_asked_for(
    serve_app: Callable[..., str], tiny_model_dir: Path, browse: Browse
):
    key = Key(sha256=hashlib.sha256(b"secret").hexdigest())
    url = serve_app({"model": str(tiny_model_dir)}, keys=Keys({"reader": key}))
    window = browse()
    window.get(url.replace("http://", "http://anyone:secret@") + "/")  # as typed into the browser's own question
    ask(window, SENTENCE)
    assert "secret" not in window.find_element(By.TAG_NAME, "body").get_property("innerHTML")


def test_a_key_is_asked_for_where_the_server_wants_one(url: str, browse: Browse):
    window = browse()
    window.get(url)
    window.execute_script(
        "const asked = window.fetch;"
        "window.fetch = (to, options) => options.headers.Authorization === 'Bearer secret' ? asked(to, options)"
        " : Promise.resolve(new Response('{}', {status: 401}));"
    )
    window.find_element(By.ID, "text").send_keys(SENTENCE)
    assert not window.find_element(By.ID, "key").is_displayed()
    window.find_element(By.ID, "find").click()
    WebDriverWait(window, 10).until(lambda w: w.find_element(By.ID, "problem").text == "This server needs an API key.")
    assert window.switch_to.active_element.get_attribute("id") == "key"
    window.switch_to.active_element.send_keys("secret", Press.ENTER)
    answered(window)
    assert marks(window)


def test_nothing_comes_from_elsewhere(url: str, browse: Browse):
    window = browse()
    window.get(url)
    ask(window, SENTENCE)
    loaded = window.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert loaded and all(name.startswith(url) for name in loaded)
    policy = httpx.get(url).headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy
