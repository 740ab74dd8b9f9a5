"""The page in a real browser, over the real routes and a real replica."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from tests.workflows.options.examples import EXAMPLES
from tests.workflows.serve.http.browser import Tab, opened

CONTROL = 2


@pytest.fixture(scope="module")
def url(api: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def browser(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with opened(f"{url}/", tmp_path_factory.mktemp("profile")) as tab:
        tab.size(1280, 900)
        yield tab


@pytest.fixture
def tab(browser: Tab, url: str) -> Tab:
    browser.send("Page.navigate", url=f"{url}/")
    browser.until("document.readyState === 'complete' && at('guidance').options.length > 0")
    return browser


def write(tab: Tab, **fields: str) -> None:
    for name, value in fields.items():
        tab.run(f"at({name!r}).value = {value!r}; at({name!r}).dispatchEvent(new Event('change'))")


DONE = "at('status').textContent.startsWith('Done')"


def test_a_prompt_gives_pictures_with_previews_on_the_way(tab: Tab) -> None:
    write(tab, prompt="a handwritten one", number="2", steps="24", seed="7")
    tab.run(
        "window.seen = []; new MutationObserver(() => { for (const one of document.querySelectorAll('#now figcaption'))"
        " window.seen.push(one.textContent); })"
        ".observe(at('now'), {subtree: true, childList: true, characterData: true})"
    )
    tab.run("at('draw').click()")
    tab.until(DONE)
    captions = tab.run("[...document.querySelectorAll('#now figcaption')].map((one) => one.textContent)")
    assert captions == ["seed 7", "seed 8"]
    steps = {int(step) for text in tab.run("window.seen") for step in re.findall(r"step (\d+) of 24", text)}
    assert len(steps) >= 3
    assert tab.run("[...document.querySelectorAll('#now img')].every((one) => one.naturalWidth === 8)")


def test_the_history_tells_where_a_picture_is_from(tab: Tab) -> None:
    write(tab, prompt="a handwritten two", steps="3", seed="18446744073709551615")
    tab.run("at('draw').click()")
    tab.until(DONE)
    assert tab.run("at('history').firstElementChild.querySelector('button').getAttribute('aria-pressed')") == "true"
    details = tab.run("at('details').innerText")
    assert "a handwritten two" in details
    assert "18446744073709551615" in details
    assert re.search(r"version\s+1\b", details)


def test_scales_are_compared_side_by_side_with_one_seed(tab: Tab) -> None:
    write(tab, prompt="a handwritten one", steps="6", scales="0, 2 8")
    tab.run("at('compare').click()")
    tab.until(DONE)
    captions = tab.run("[...document.querySelectorAll('#now figcaption')].map((one) => one.textContent)")
    assert captions == ["scale 0", "scale 2", "scale 8"]
    assert tab.run("new Set([...document.querySelectorAll('#now img')].map((one) => one.src)).size") == 3


@pytest.mark.parametrize("name", EXAMPLES)
def test_settings_in_the_fold_change_the_picture_and_come_back(tab: Tab, name: str) -> None:
    given = EXAMPLES[name]
    tab.run("at('advanced').open = true")
    write(tab, prompt="a handwritten one", steps="6", seed="7", scale=str(given["guidance_scale"]))
    tab.run("at('draw').click()")
    tab.until(DONE)
    plain = tab.run("document.querySelector('#now img').src")
    values = [json.dumps(value).removesuffix(".0") for value in np.atleast_1d(given[name]).tolist()]
    fields = f"document.querySelectorAll('[data-setting={name}] :is(input, select)')"
    tab.run(f"{values!r}.forEach((value, place) => {{ {fields}[place].value = value; }})")
    tab.run("at('draw').click()")
    tab.until(f"{DONE} && document.querySelector('#now img').src !== {plain!r}")
    assert name.replace("_", " ") in tab.run("at('details').innerText")
    tab.run(f"{fields}.forEach((field) => {{ field.value = ''; }})")
    tab.run("at('use-settings').click()")
    assert tab.run(f"[...{fields}].map((field) => field.value)") == values


@pytest.mark.parametrize(
    ("ends", "sent"), [(["0.5", ""], [0.5, 1e9]), (["", "3"], [0.0, 3.0]), (["0.5", "3"], [0.5, 3.0]), (["", ""], None)]
)
def test_an_end_of_an_interval_that_is_not_given_is_open(tab: Tab, ends: list[str], sent: list[float] | None) -> None:
    write(tab, prompt="a handwritten one", steps="3", scale="4")
    fields = "document.querySelectorAll('[data-setting=guidance_interval] input')"
    tab.run(f"{ends!r}.forEach((value, place) => {{ {fields}[place].value = value; }})")
    assert tab.run("advanced().guidance_interval ?? null") == sent
    tab.run("at('draw').click()")
    tab.until(DONE)


def test_the_fold_shows_what_the_guidance_reads(tab: Tab) -> None:
    shown = "[...document.querySelectorAll('[data-setting]:not(.hidden)')].map((field) => field.dataset.setting)"
    assert tab.run(shown) == list(EXAMPLES)
    write(tab, guidance="clip")
    assert tab.run(shown) == []


def test_the_keyboard_is_enough(tab: Tab) -> None:
    tab.run("at('prompt').focus()")
    tab.send("Input.insertText", text="a handwritten one")
    tab.press("Enter", CONTROL)
    tab.until(DONE)
    reached = set()
    tab.run("document.activeElement.blur()")
    for _ in range(120):
        tab.press("Tab")
        reached.add(tab.run("document.activeElement.id"))
    visible = tab.run(
        "[...document.querySelectorAll('form [id]')].filter((one) => one.matches('input, select, textarea, button')"
        " && !one.disabled && one.checkVisibility({contentVisibilityAuto: true})).map((one) => one.id)"
    )
    assert set(visible) <= reached


def test_escape_stops_and_the_page_can_draw_again(tab: Tab) -> None:
    write(tab, prompt="a handwritten one", steps="100", number="10", sampler="ddpm")
    tab.run("at('draw').click()")
    tab.press("Escape")
    tab.until("at('status').textContent === 'Stopped.'")
    write(tab, steps="2", number="1")
    tab.run("at('draw').click()")
    tab.until(DONE)


def test_what_is_wrong_is_said(tab: Tab) -> None:
    write(tab, prompt=" ")
    tab.run("at('draw').click()")
    tab.until("at('status').classList.contains('bad')")
    assert "needs one" in tab.run("at('status').textContent")
    # At its field too, where the focus is, and without a grey box that waits for ever.
    assert tab.run("[document.activeElement.id, at('prompt').getAttribute('aria-invalid')]") == ["prompt", "true"]
    assert "needs one" in tab.run("at(at('prompt').getAttribute('aria-errormessage')).textContent")
    assert tab.run("at('now').children.length") == 0
    write(tab, prompt="a handwritten one", steps="2")
    tab.run("at('draw').click()")
    tab.until(DONE)
    assert tab.run("document.querySelectorAll('.fault, [aria-invalid]').length") == 0


def test_a_phone_shows_all_of_it_without_scrolling_sideways(tab: Tab, tmp_path: Path) -> None:
    tab.size(360, 740, mobile=True)
    try:
        assert tab.run("document.documentElement.scrollWidth") <= 360
        small = tab.run(
            "[...document.querySelectorAll('form input, form select, .row:not(.examples) button')]"
            ".filter((one) => one.offsetParent && one.offsetHeight < 40).map((one) => one.id)"
        )
        assert small == []
    finally:
        tab.size(1280, 900)


def test_the_reference_is_read_offline(tab: Tab, url: str) -> None:
    tab.send("Page.navigate", url=f"{url}/docs")
    tab.until("document.readyState === 'complete' && document.title.includes('reference')")
    text = tab.run("document.body.innerText")
    assert "/v1/images/edits" in text and "negative_prompt" in text and "strength" in text


@pytest.mark.parametrize(
    ("field", "value", "press", "words"),
    [
        ("seed", "abc", "draw", "whole number"),
        ("seed", "abc", "compare", "whole number"),
        ("steps", "0", "compare", "from 1 to"),
        ("number", "11", "draw", "from 1 to 10"),
        ("scales", "1 two", "compare", "numbers of at least 0"),
    ],
)
def test_draw_and_compare_check_the_fields_alike(tab: Tab, field: str, value: str, press: str, words: str) -> None:
    write(tab, prompt="a handwritten one", **{"steps": "2", field: value})
    tab.run(f"at({press!r}).click()")
    tab.until("document.querySelector('.fault') !== null")
    assert words in tab.run("document.querySelector('.fault').textContent")
    assert tab.run("document.activeElement.id") == field
    assert tab.run("at('now').children.length") == 0


def test_a_seed_is_kept_while_it_is_locked(tab: Tab) -> None:
    def drawn() -> str:
        tab.run("at('draw').click()")
        tab.until(DONE)
        found: str = tab.run("document.querySelector('#now figcaption').textContent")
        return found

    write(tab, prompt="a handwritten one", steps="2")
    tab.run("at('seed').value = ''; lock(false)")
    assert drawn() != drawn()
    tab.run("at('die').click()")
    assert drawn() == drawn()
    tab.run("at('lock').click()")
    assert drawn() != drawn()
    write(tab, seed="18446744073709551615")
    assert drawn() == "seed 18446744073709551615"


def test_the_history_lasts_over_a_reload_and_a_click_shows_at_once(tab: Tab, url: str) -> None:
    for seed in ("21", "22"):
        write(tab, prompt="a handwritten two", steps="2", seed=seed)
        tab.run("at('draw').click()")
        tab.until(DONE)
    tab.until("kept[0].key !== undefined")
    tab.send("Page.navigate", url=f"{url}/")
    tab.until("document.readyState === 'complete' && at('guidance').options.length > 0 && kept.length >= 2")
    captions = tab.run(
        "[...document.querySelectorAll('#history figcaption')].slice(0, 2).map((one) => one.textContent)"
    )
    assert [caption.rpartition(", seed ")[2].split(",")[0] for caption in captions] == ["22", "21"]
    milliseconds = tab.run(
        "(() => { const began = performance.now(); at('history').children[1].querySelector('button').click();"
        " at('save').getBoundingClientRect(); return performance.now() - began; })()"
    )
    assert "21" in tab.run("at('details').innerText")
    assert tab.run("[...at('history').querySelectorAll('button')].map((one) => one.ariaPressed).slice(0, 2)") == [
        "false",
        "true",
    ]
    assert milliseconds < 2000
    # A second click enlarges the picture, and the focus comes back.
    tab.run("at('history').children[1].querySelector('button').focus(); document.activeElement.click()")
    assert tab.run("at('large').open && at('large-picture').naturalWidth") == 8
    tab.run("at('close').click()")
    assert tab.run("document.activeElement === at('history').children[1].querySelector('button')")


def test_what_is_copied_makes_exactly_this_picture(tab: Tab, url: str, tmp_path: Path) -> None:
    write(tab, prompt='it\'s a "one"', steps="3", seed="18446744073709551614", scale="3")
    tab.run("at('draw').click()")
    tab.until(DONE)
    command = tab.run("curlOf(chosen.settings)")
    assert f"{url}/v1/images/generations" in command
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=60)
    wanted = base64.b64decode(tab.run("chosen.b64_json"))
    assert (tmp_path / "picture.png").read_bytes() == wanted
    (tmp_path / "picture.png").unlink()
    program = tab.run("pythonOf(chosen.settings)")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "picture.png").read_bytes() == wanted


def test_a_picture_is_edited_behind_a_painted_mask(tab: Tab) -> None:
    write(tab, prompt="a handwritten one", steps="6", seed="7")
    tab.run("at('draw').click()")
    tab.until(DONE)
    tab.run("at('edit-this').click()")
    tab.until("start !== null && !at('editing').classList.contains('hidden')")
    assert tab.run("[start.settings.seeds[0], document.activeElement.id]") == ["7", "strength"]
    # A stroke over the left half.
    tab.run(
        "(() => { const box = at('canvas').getBoundingClientRect(); at('brush').value = 2;"
        " for (let row = 0; row <= 8; row += 0.5) paint({ buttons: 1, clientX: box.left + box.width / 4,"
        " clientY: box.top + (box.height * row) / 8 }); })()"
    )
    before = tab.run("chosen.b64_json")
    write(tab, seed="8", prompt="a handwritten two")
    tab.run("at('draw').click()")
    tab.until(f"{DONE} && chosen.b64_json !== {before!r}")
    assert tab.run("[chosen.settings.inpainted, chosen.settings.strength]") == [True, 1]
    first, second = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(int)
        for text in (before, tab.run("chosen.b64_json"))
    )
    assert np.abs(first[:, 5:] - second[:, 5:]).max() <= 1
    assert np.abs(first[:, 1:3] - second[:, 1:3]).max() > 1
    tab.run("at('forget').click()")
    assert tab.run("[start, at('draw').textContent]") == [None, "Draw"]


def test_a_file_of_ours_gives_its_settings_back(tab: Tab) -> None:
    write(tab, prompt="a handwritten two", steps="4", seed="77", scale="5", sampler="ddpm")
    tab.run("at('draw').click()")
    tab.until(DONE)
    write(tab, prompt="nothing", steps="9", seed="1", scale="1", sampler="ddim")
    tab.run("startFrom(new File([Uint8Array.from(atob(chosen.b64_json), (one) => one.charCodeAt(0))], 'a.png'))")
    tab.until("start !== null && start.settings !== null")
    tab.run("at('adopt').click()")
    fields = "['prompt', 'steps', 'seed', 'scale', 'sampler'].map((one) => at(one).value)"
    assert tab.run(fields) == ["a handwritten two", "4", "77", "5", "ddpm"]
    tab.run("at('forget').click(); startFrom(new File(['no picture'], 'a.png'))")
    tab.until("document.querySelector('.fault') !== null")
    assert tab.run("document.activeElement.id") == "file"


def test_the_focus_never_falls_to_the_body(tab: Tab) -> None:
    write(tab, prompt="a handwritten one", steps="50", number="4", sampler="ddpm")
    for pressed in ("draw", "compare"):
        tab.run(f"at({pressed!r}).focus(); at({pressed!r}).click()")
        tab.until("leaving !== null")
        assert tab.run("document.activeElement.id") == pressed
        tab.run("at('stop').focus(); at('stop').click()")
        tab.until("leaving === null")
        assert tab.run("document.activeElement.id") == "stop"


def test_a_service_that_is_gone_says_so(tab: Tab) -> None:
    write(tab, prompt="a handwritten one", steps="2")
    tab.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch')); at('draw').click()")
    tab.until("at('status').classList.contains('bad')")
    assert "does not answer" in tab.run("at('status').textContent")
    assert tab.run("at('now').children.length") == 0


def test_an_empty_page_shows_what_the_model_makes(tab: Tab, url: str) -> None:
    tab.run("clearHistory()")
    tab.send("Page.navigate", url=f"{url}/")
    tab.until("document.querySelectorAll('#gallery img').length > 0", 60)
    tab.run("document.querySelector('#gallery button').click()")
    assert tab.run("at('prompt').value") == tab.run("model().example_prompts[0]")
    write(tab, steps="2")
    tab.run("at('draw').click()")
    tab.until(DONE)
    assert tab.run("at('gallery-field').classList.contains('hidden')")


def test_numbers_stand_where_the_model_decides(tab: Tab) -> None:
    assert tab.run("at('scale').placeholder") == "2"
    write(tab, guidance="classifier")
    assert tab.run("at('scale').placeholder") == "3"
    shown = tab.run(
        "document.body.innerText + [...document.querySelectorAll('[placeholder]')].map((one) => one.placeholder)"
    )
    assert "model's own" not in shown


def test_every_class_and_example_can_be_chosen(tab: Tab, api: FastAPI, ask: Callable[..., httpx.Response]) -> None:
    card = ask(api, "GET", "/v1/models").json()["data"][0]
    assert tab.run("[...at('class').options].map((one) => one.value).slice(1)") == card["classes"]
    assert tab.run("[...at('examples').children].map((one) => one.textContent)") == card["example_prompts"]


def test_tokens_that_were_cut_are_told_at_the_prompt(tab: Tab) -> None:
    tab.run("at('prompt').value = 'one '.repeat(60); count()")
    assert "tokens that the model reads" in tab.run("at('tokens').textContent")
    write(tab, steps="2")
    tab.run("at('draw').click()")
    tab.until(DONE)
    assert "did not read the last" in tab.run("at('tokens').textContent")


NAMELESS = """
[...document.querySelectorAll('input, select, textarea, button, a, [role=img], dialog')]
  .filter((one) => one.checkVisibility() && !(one.labels?.length || one.ariaLabel || one.textContent.trim()))
  .map((one) => one.id)
"""
TEXTS = "p, small, label, dt, dd, button, a, h1, h2, summary, figcaption, legend, input, select, textarea"
PALE = r"""
(() => {
  const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const linear = (one) => (one <= 10.3 ? one / 3294.6 : ((one / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const color = parse(getComputedStyle(one).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll(TEXTS)].filter((one) => {
    if (!one.checkVisibility() || one.disabled || !(one.textContent.trim() || one.value)) return false;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  }).map((one) => one.id || one.textContent.slice(0, 30));
})()
""".replace("TEXTS", repr(TEXTS))
UNIQUE = """
((all) => new Set(all.map((one) => one.id)).size === all.length)([...document.querySelectorAll('[id]')])
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_everything_has_a_name_and_can_be_read(tab: Tab, scheme: str, width: int, tmp_path: Path) -> None:
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.size(width, 900, mobile=width < 500)
    try:
        write(tab, prompt="a handwritten one", steps="2", number="3")
        tab.run("at('advanced').open = at('start').open = true; at('draw').click()")
        tab.until(DONE)
        assert tab.run(NAMELESS) == []
        assert tab.run(PALE) == []
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.run(UNIQUE)
        if width < 500:
            # After Draw the pictures are on the screen.
            top = tab.run("at('now').getBoundingClientRect().top")
            assert 0 <= top < 900
        if folder := os.environ.get("RAVERSE_SCREENSHOTS"):
            tab.screenshot(Path(folder) / f"page-{width}-{scheme}.png")
    finally:
        tab.send("Emulation.setEmulatedMedia", features=[])
        tab.size(1280, 900)
