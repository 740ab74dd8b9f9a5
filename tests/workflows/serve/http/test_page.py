"""The page in a real browser, over the real routes and a real replica."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

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
    assert tab.run("at('history').children.length") == 1
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
    tab.run("[...at('details').querySelectorAll('button')].at(-1).click()")
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
    for _ in range(40):
        tab.press("Tab")
        reached.add(tab.run("document.activeElement.id"))
    visible = tab.run(
        "[...document.querySelectorAll('form [id]')].filter((one) => one.matches('input, select, textarea, button')"
        " && !one.disabled && one.offsetParent).map((one) => one.id)"
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
