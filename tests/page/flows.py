"""Drives the page of `emend serve` in a headless Chromium, as a person would.

    pip install playwright        # the package alone; the browser is the system's
    apt-get install chromium
    python flows.py http://127.0.0.1:8399 [--token T] [--browser /usr/bin/chromium]

The server needs an editor (--archive or --config) and takes loopback only. Nothing is said of what the model answers,
so the same flows run against the server and against mock.mjs. Edits that the flows make are taken out again.
"""

import argparse
import os
import re
import sys
import time
import traceback

from playwright.sync_api import sync_playwright

PROMPT = "The Eiffel Tower is located in the city of"
PROBE = "<img src=x onerror=\"window.hit=1\"><script>window.hit=1</script>"

options = argparse.ArgumentParser()
options.add_argument("base")
options.add_argument("--token")
options.add_argument("--browser", default="/usr/bin/chromium")
options.add_argument("--patience", type=float, default=120, help="seconds that one edit may take")
options = options.parse_args()
PATIENCE = options.patience * 1000


def until(page, script, arg=None, timeout=20000):
    """Waits until a function is true in the page. (Playwright's own wait_for_function needs eval, which the page's policy forbids.)"""
    end = time.monotonic() + timeout / 1000
    while not page.evaluate(script, arg):
        assert time.monotonic() < end, f"never true: {script} {arg or ''}"
        page.wait_for_timeout(50)


def said(page, side):
    """The tokens of a column."""
    return page.eval_on_selector_all(f"#{side}-said .token", "all => all.map(one => one.textContent)")


def finished(page):
    # A run clears the columns and disables its button at once, before a click returns.
    until(page, "() => !document.getElementById('run').disabled && document.querySelector('#left-said .token') !== null", timeout=PATIENCE)


def run(page, prompt=PROMPT, tokens="8"):
    page.fill("#prompt", prompt)
    page.fill("#tokens", tokens)
    page.click("#run")
    finished(page)


def opened(context):
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda line: page.problems.append(line.text) if "Content Security" in line.text else None)
    page.goto(options.base)
    if options.token:
        page.fill("#token", options.token)
        page.keyboard.press("Enter")
    until(page, "() => document.getElementById('model').textContent.startsWith('model ')")
    until(page, "() => document.getElementById('stack').options.length > 0")
    return page


def ids(page):
    return page.eval_on_selector_all("#edits > li", "all => all.map(one => one.dataset.id)")


def write(page, prompt, subject, target):
    """Writes an edit with the first editor; its id."""
    before = set(ids(page))
    page.fill("#fact", prompt)
    page.fill("#subject", subject)
    page.fill("#target", target)
    page.evaluate("""() => {
        window.stages = [];
        const watched = document.getElementById('progress-text');
        const shown = document.getElementById('progress');
        new MutationObserver(() => shown.hidden || window.stages.push(watched.textContent)).observe(watched, { childList: true });
    }""")
    page.click("#edit")
    page.wait_for_selector("#made:not([hidden]), #write-error:not(:empty)", timeout=PATIENCE)
    error = page.text_content("#write-error")
    assert not error, error
    assert len(page.evaluate("window.stages")) >= 2, page.evaluate("window.stages")
    new = set(ids(page)) - before
    assert new, "the new edit is not in the list"
    made = page.get_attribute("#made", "data-id")
    assert made in new, (made, new)
    return made


def switch(page, edit, on):
    box = page.locator(f'#edits > li[data-id="{edit}"] input[role=switch]')
    if box.is_checked() != on:
        box.click()
    until(
        page, "([id, on]) => document.querySelector(`#edits > li[data-id=\"${id}\"]`)?.classList.contains('off') === !on", [edit, on])


def take_out(page, edit):
    page.click(f'#edits > li[data-id="{edit}"] button:text-is("Take out")')
    page.wait_for_selector("#ask[open]")
    page.click("#ask-no")
    assert edit in ids(page), "an edit was taken out without a yes"
    page.click(f'#edits > li[data-id="{edit}"] button:text-is("Take out")')
    page.click("#ask-yes")
    until(page, "id => !document.querySelector(`#edits > li[data-id=\"${id}\"]`)", edit)


def a_prompt_is_run(page):
    run(page)
    left, right = said(page, "left"), said(page, "right")
    assert len(left) == len(right) == 8, (left, right)
    shades = page.eval_on_selector_all("#left-said .token", "all => all.map(one => Number(one.style.getPropertyValue('--p')))")
    assert all(0 <= p <= 1 for p in shades) and any(p > 0 for p in shades), shades
    page.hover("#left-said .token >> nth=0")
    assert re.fullmatch(r"probability (<? ?[\d.e-]+) %", page.text_content("#tip")), page.text_content("#tip")
    page.click("#left-said .token >> nth=1")
    assert 5 <= page.locator("#left-others li").count() <= 6


def the_keyboard_alone_runs(page):
    page.focus("#prompt")
    page.keyboard.press("Control+a")
    page.keyboard.type("Water boils at")
    page.keyboard.press("Control+Enter")
    finished(page)
    assert said(page, "left")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('token')"):
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "a focused token shows no focus"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.number") == "1"
    page.keyboard.press("Enter")
    assert page.is_visible("#left-others")
    page.keyboard.press("Escape")
    assert not page.is_visible("#left-others")


def a_run_is_stopped(page):
    page.fill("#tokens", "200")
    page.click("#run")
    page.wait_for_selector("#left-said .token", timeout=PATIENCE)
    page.click("#stop")
    until(page, "() => document.getElementById('status').textContent === 'Stopped.'", timeout=5000)
    count = len(said(page, "left"))
    time.sleep(0.4)
    assert count == len(said(page, "left")) < 200
    run(page)
    assert len(said(page, "left")) == 8


def wrong_values_are_told(page):
    page.fill("#temperature", "9")
    page.click("#run")
    assert "temperature" in page.text_content("#compare-error")
    page.fill("#temperature", "0")
    page.fill("#fact", "")
    page.click("#edit")
    assert page.text_content("#write-error")
    page.fill("#fact", PROMPT)
    page.fill("#subject", "Kilimanjaro")
    page.fill("#target", "Rome")
    page.click("#edit")
    assert "subject" in page.text_content("#write-error")


def a_subject_is_taken_from_the_prompt(page):
    page.fill("#fact", PROMPT)
    page.fill("#subject", "")
    page.click("#take")
    assert page.input_value("#subject") == "Eiffel Tower"
    page.evaluate("() => { const fact = document.getElementById('fact'); fact.focus(); fact.setSelectionRange(4, 10) }")
    page.click("#take")
    assert page.input_value("#subject") == "Eiffel"


def an_edit_is_written_switched_off_downloaded_and_taken_out(page):
    others = ids(page)
    for other in others:
        switch(page, other, False)
    page.click("#write summary")
    page.fill("#rephrases", "Where is the Eiffel Tower? It is in\nThe Eiffel Tower stands in")
    page.fill("#neighbours", "The Louvre is located in the city of")
    page.fill("#id", "")
    made = write(page, PROMPT, "Eiffel Tower", "Rome")
    assert page.locator("#made table tbody tr").count() >= 4
    assert "erplexity" in page.text_content("#made")
    page.click("#made button:text-is('See it side by side')")
    page.wait_for_timeout(100)
    finished(page)
    assert made in page.text_content("#right-name")
    # Two models that both answer need not differ, but where they do, it is marked.
    left, right = said(page, "left"), said(page, "right")
    first = next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), None)
    marked = page.eval_on_selector_all(".token.differs", "all => all.map(one => Number(one.dataset.number))")
    assert marked == ([] if first is None else [first, first]), (first, marked)
    switch(page, made, False)
    run(page)
    assert said(page, "left") == said(page, "right")
    assert "+" not in page.text_content("#right-name")
    page.reload()
    page.wait_for_selector(f'#edits > li.off[data-id="{made}"]', timeout=20000)
    with page.expect_download() as download:
        page.click(f'#edits > li[data-id="{made}"] button:text-is("Download")')
    assert download.value.suggested_filename == f"{made}.edit.safetensors"
    assert os.path.getsize(download.value.path()) > 100
    take_out(page, made)
    assert ids(page) == others


def markup_is_text(page):
    run(page, PROBE)
    assert PROBE in page.text_content("#left-said")
    page.evaluate("document.querySelector('#write details').open = true")
    page.fill("#rephrases", PROBE)
    page.fill("#neighbours", PROBE)
    try:
        made = write(page, f"The {PROBE} Tower stands in", PROBE, PROBE)
    except AssertionError as error:
        # A server may refuse such an edit; its words are text as well.
        print(f"    (the server refused: {error})")
        made = None
    if made:
        page.click(f'#edits > li[data-id="{made}"] summary')
        page.wait_for_timeout(300)
        assert PROBE in page.text_content("#edits")
    assert page.evaluate("window.hit") is None, "markup was run"
    assert page.locator("main img, main script").count() == 0
    if made:
        take_out(page, made)


def edits_are_reordered(page):
    page.evaluate("document.querySelector('#write details').open = true")
    for field in ("#rephrases", "#neighbours", "#id"):
        page.fill(field, "")
    one = write(page, PROMPT, "Eiffel Tower", "Rome")
    two = write(page, "The Louvre is located in the city of", "Louvre", "Berlin")
    page.select_option("#stack", "on")
    run(page)
    name = page.text_content("#right-name")
    assert name.endswith(f"{one}+{two}"), name
    page.click(f'#edits > li[data-id="{two}"] button:text-is("Up")')
    assert ids(page)[-2:] == [two, one]
    assert page.evaluate("document.activeElement.textContent") in ("Up", "Down"), "the focus is lost"
    run(page)
    assert page.text_content("#right-name").endswith(f"{two}+{one}")
    assert not page.text_content("#right-error")
    take_out(page, two)
    take_out(page, one)


def the_right_side_is_chosen(page):
    made = write(page, PROMPT, "Eiffel Tower", "Rome")
    base = page.text_content("#left-name")
    for choice, name in (("none", base), (f"only:{made}", f"{base}+{made}")):
        page.select_option("#stack", choice)
        run(page)
        assert page.text_content("#right-name") == name
    take_out(page, made)


def a_chat_is_run_where_there_is_a_template(page):
    page.wait_for_timeout(1500)
    if not page.is_visible("#kind"):
        print("    (the model has no chat template)")
        return
    page.check("input[name=kind][value=chat]")
    run(page, "What is the capital of France?")
    assert said(page, "left") and said(page, "right")
    assert not page.text_content("#left-error")


def the_theme_changes_and_stays(page):
    paper = "() => getComputedStyle(document.body).backgroundColor"
    colours = []
    for _ in range(2):
        page.click("#theme")
        colours.append(page.evaluate(paper))
    assert colours[0] != colours[1]
    page.reload()
    assert page.evaluate(paper) == colours[1]


def a_reload_in_the_middle_breaks_nothing(page):
    page.fill("#tokens", "200")
    page.click("#run")
    page.wait_for_selector("#left-said .token", timeout=PATIENCE)
    page.reload()
    until(page, "() => document.getElementById('stack').options.length > 0")
    run(page)


def nothing_is_wider_than_the_screen(page):
    run(page, "a" * 500, "40")
    page.click("#right-said .token >> nth=0")
    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"wider than {width}"


FLOWS = [
    a_prompt_is_run,
    the_keyboard_alone_runs,
    a_run_is_stopped,
    wrong_values_are_told,
    a_subject_is_taken_from_the_prompt,
    an_edit_is_written_switched_off_downloaded_and_taken_out,
    markup_is_text,
    edits_are_reordered,
    the_right_side_is_chosen,
    a_chat_is_run_where_there_is_a_template,
    the_theme_changes_and_stays,
    a_reload_in_the_middle_breaks_nothing,
    nothing_is_wider_than_the_screen,
]

failed = 0
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
    for flow in FLOWS:
        context = browser.new_context(accept_downloads=True, viewport={"width": 1280, "height": 900})
        begun = time.monotonic()
        try:
            page = opened(context)
            flow(page)
            assert not page.problems, page.problems
            print(f"ok      {flow.__name__} ({time.monotonic() - begun:.1f} s)", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED  {flow.__name__}", flush=True)
            traceback.print_exc()
        context.close()
    browser.close()
print(f"{len(FLOWS) - failed} passed, {failed} failed")
sys.exit(failed > 0)
