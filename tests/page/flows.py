"""Drives the page of `emend serve` in a headless browser, as a reader would.

    python -m venv venv && venv/bin/pip install playwright
    venv/bin/python flows.py http://127.0.0.1:8399 [--token T] [--chromium /usr/bin/chromium] [--editor NAME] [--axe axe.min.js]

Without --chromium Playwright's own is used (`playwright install chromium`). It needs a server with an editor for its flows of edits, leaves the edits that were there as
they were, and asserts nothing of what the model says. The edits' fact can be given: --prompt, --subject, --target.
"""

import argparse
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

# Short, as a small model reads little.
PROBE = "<img src=x onerror=hit=1>"

arguments = argparse.ArgumentParser()
arguments.add_argument("base")
arguments.add_argument("--token")
arguments.add_argument("--chromium")
arguments.add_argument("--editor")
arguments.add_argument("--axe")
arguments.add_argument("--prompt", default="The Eiffel Tower is in the city of")
arguments.add_argument("--subject", default="The Eiffel Tower")
arguments.add_argument("--target", default="Rome")
arguments.add_argument("--seconds", type=int, default=300, help="how long an edit or an answer may take")
arguments = arguments.parse_args()
PATIENCE = 1000 * arguments.seconds
problems = []


def passed(what):
    print(f"ok    {what}", flush=True)


def open_page(browser, **settings):
    context = browser.new_context(accept_downloads=True, **settings)
    page = context.new_page()
    page.set_default_timeout(15_000)
    # Statuses of refused requests are told on the console; what the page itself does wrong is not among them.
    page.on("console", lambda said: said.type == "error" and "status of" not in said.text and problems.append(said.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.goto(arguments.base)
    if arguments.token:
        expect(page.locator("#token-form")).to_be_visible()
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-error")).not_to_be_empty()
        page.fill("#token", arguments.token)
        page.keyboard.press("Enter")
    expect(page.locator("#token-form")).to_be_hidden()
    expect(page.locator("#model")).not_to_be_empty()
    page.locator("#write:not([hidden]), #no-editor:not([hidden])").wait_for()
    return page


def wait_for_answers(page):
    expect(page.locator("#stop")).to_be_disabled(timeout=PATIENCE)
    for side in ("left", "right"):
        expect(page.locator(f"#{side} .foot")).not_to_be_empty()


def run(page, prompt, tokens=8):
    page.fill("#prompt", prompt)
    page.fill("#tokens", str(tokens))
    page.click("#run")
    wait_for_answers(page)


def answer(page, side):
    return page.locator(f"#{side} .token").all_text_contents()


def filled(page):
    for side in ("left", "right"):
        assert answer(page, side), f"nothing on the {side}"
        expect(page.locator(f"#{side} .error")).to_be_empty()


def unharmed(page):
    assert page.evaluate("window.hit") is None, "markup of a text ran"
    assert page.locator("img").count() == 0, "markup of a text became an element"
    assert page.locator("script").count() == 1, "markup of a text became an element"


def row(page, id):
    return page.locator(f'#edits li[data-id="{id}"]')


def switch(page, id, on):
    box = row(page, id).locator("[data-act=on]")
    if box.is_checked() != on:
        with page.expect_response(lambda response: response.request.method == "PATCH"):
            box.click()
    expect(row(page, id).locator("[data-act=on]")).to_be_checked(checked=on)


def write(page, prompt, subject, target, rephrases="", neighbours=""):
    """Writes an edit and waits for its report; its id."""
    if arguments.editor:
        page.select_option("#editor", arguments.editor)
    page.fill("#edit-prompt", prompt)
    page.fill("#subject", "")
    at = prompt.index(subject)
    page.evaluate("([from, to]) => document.getElementById('edit-prompt').setSelectionRange(from, to)", [at, at + len(subject)])
    page.click("#take-subject")
    expect(page.locator("#subject")).to_have_value(subject)
    page.fill("#target", target)
    page.evaluate("document.getElementById('more').open = true")
    page.fill("#rephrases", rephrases)
    page.fill("#neighbours", neighbours)
    page.evaluate("""() => {
        window.stages = [];
        const note = () => { if (!document.getElementById('progress').hidden) window.stages.push(document.getElementById('stage').textContent); };
        new MutationObserver(note).observe(document.getElementById('progress'), { subtree: true, childList: true, characterData: true, attributes: true });
    }""")
    page.click("#make")
    page.locator("#outcome:not([hidden]), #write .error:not(:empty)").first.wait_for(timeout=PATIENCE)
    wrong = page.locator("#write .error:not(:empty)").all_text_contents()
    assert not wrong, f"the edit was refused: {wrong}"
    assert len(set(page.evaluate("window.stages"))) > 1, "no progress was shown"
    expect(page.locator("#progress")).to_be_hidden()
    return page.locator("#outcome").get_attribute("data-id")


def remove(page, id):
    row(page, id).locator("[data-act=out]").click()
    page.click("#ask button[value=yes]")
    expect(row(page, id)).to_have_count(0)


def check_comparing(page):
    page.click("#run")
    expect(page.locator("#compare-error")).not_to_be_empty()
    passed("an empty prompt is told at its field")
    run(page, arguments.prompt)
    filled(page)
    expect(page.locator("#parting")).not_to_be_empty()
    passed("both sides fill")
    page.locator("#left .token").first.hover()
    expect(page.locator("#tip")).to_contain_text("%")
    page.locator("#left .token").first.click()
    assert 5 <= page.locator("#left .instead tr").count() <= 6
    page.locator("#left .instead button").click()
    expect(page.locator("#left .instead")).to_be_hidden()
    passed("a token shows its probability and its alternatives")
    page.fill("#tokens", "200")
    # At the first token: a small model is done before a pointer gets there.
    page.evaluate("""() => {
        const text = document.querySelector('#left .text');
        const watch = new MutationObserver(() => {
            if (!text.querySelector('.token')) return;
            watch.disconnect();
            document.getElementById('stop').click();
        });
        document.getElementById('run').click();
        watch.observe(text, { childList: true });
    }""")
    wait_for_answers(page)
    expect(page.locator("#left .foot")).to_contain_text("stopped")
    assert len(answer(page, "left")) < 200
    passed("an answer is stopped")
    run(page, arguments.prompt)
    page.click("#run")
    page.click("#run")
    wait_for_answers(page)
    assert len(answer(page, "left")) <= 8, "two runs went into one side"
    passed("a second run takes the place of the first")
    run(page, PROBE + arguments.prompt)
    unharmed(page)
    passed("markup in a prompt does nothing")


def check_edits(page):
    ids = page.locator("#edits > li").evaluate_all("rows => rows.map((row) => row.dataset.id)")
    were_on = [id for id in ids if row(page, id).locator("[data-act=on]").is_checked()]
    if page.evaluate("document.getElementById('subject').required"):
        page.fill("#edit-prompt", arguments.prompt)
        page.fill("#target", arguments.target)
        page.click("#make")
        expect(page.locator("#subject-error")).not_to_be_empty()
        expect(page.locator("#subject")).to_be_focused()
        passed("a missing subject is told at its field")
    id = write(page, arguments.prompt, arguments.subject, arguments.target, f"{arguments.subject} stands in", "The Louvre is in the city of")
    assert page.locator("#outcome .report tbody tr").count() >= 3, "a report without the edit, its rephrase and its neighbour"
    expect(page.locator("#outcome")).to_contain_text("erplexity")
    expect(row(page, id).locator("[data-act=on]")).to_be_checked()
    passed(f"an edit is written, with progress and a report: {id}")
    page.click("#outcome [data-act=try]")
    wait_for_answers(page)
    filled(page)
    assert id in page.locator("#right .name").text_content()
    passed("it is compared on its prompt")

    with page.expect_download() as download:
        row(page, id).locator("[data-act=file]").click()
    assert download.value.suggested_filename == f"{id}.edit.safetensors"
    assert Path(download.value.path()).stat().st_size > 0
    passed("its file is downloaded")

    for other in [*were_on, id]:
        switch(page, other, False)
    run(page, arguments.prompt)
    filled(page)
    assert answer(page, "left") == answer(page, "right"), "the sides differ without an edit"
    expect(page.locator("#parting")).to_have_class("parting none")
    passed("switched off, the sides are equal")

    switch(page, id, True)
    page.fill("#name", id)
    page.click("#make")
    expect(page.locator("#name-error")).not_to_be_empty(timeout=PATIENCE)
    page.fill("#name", "")
    passed("a name that exists is told at its field")

    second = write(page, f"{PROBE} {arguments.prompt}", arguments.subject, f"{PROBE} {arguments.target}")
    unharmed(page)
    row(page, second).locator("summary").click()
    unharmed(page)
    run(page, arguments.prompt)
    unharmed(page)
    passed("markup in an edit does nothing")

    base = page.locator("#left .name").text_content()
    expect(page.locator("#right .name")).to_have_text(f"{base}+{id}+{second}")
    page.click(f'#stack [aria-label="Lay {id} later"]')
    expect(page.locator("#right .name")).to_have_text(f"{base}+{second}+{id}")
    run(page, arguments.prompt)
    filled(page)
    page.click(f'#stack [aria-label="Leave {id} out of the comparison"]')
    expect(page.locator("#right .name")).to_have_text(f"{base}+{second}")
    expect(row(page, id).locator("[data-act=side]")).not_to_be_checked()
    page.get_by_text("Back to all edits that are on").click()
    expect(page.locator("#right .name")).to_have_text(f"{base}+{id}+{second}")
    passed("the stack is put in order, and back")

    headers = {"Authorization": f"Bearer {arguments.token}"} if arguments.token else {}
    assert page.request.delete(f"{arguments.base}/edits/{second}", headers=headers).status == 204
    run(page, arguments.prompt)
    expect(page.locator("#right .error")).not_to_be_empty()
    expect(row(page, second)).to_have_count(0)
    passed("an edit taken out elsewhere is told, and leaves the list")

    row(page, id).locator("[data-act=out]").click()
    page.click("#ask button[value=no]")
    expect(row(page, id)).to_have_count(1)
    remove(page, id)
    expect(page.locator("#outcome")).to_be_hidden()
    passed("it is taken out, after a question")

    third = write(page, arguments.prompt, arguments.subject, arguments.target)
    page.click("#outcome [data-act=undo]")
    page.click("#ask button[value=yes]")
    expect(row(page, third)).to_have_count(0)
    passed("a new edit is taken out again")
    for other in were_on:
        switch(page, other, True)
    # What an editor laid under its edits.
    for left_over in page.locator("#edits > li").evaluate_all("rows => rows.map((row) => row.dataset.id)"):
        if left_over not in ids:
            remove(page, left_over)


def check_keyboard(page):
    """Runs, opens a token and reaches every control without a pointer."""
    page.reload()
    page.locator("#write:not([hidden]), #no-editor:not([hidden])").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type(arguments.prompt)
    page.keyboard.press("Tab")
    page.keyboard.type("6")
    page.keyboard.press("Control+Enter")
    wait_for_answers(page)
    filled(page)
    seen = []
    for _ in range(200):
        page.keyboard.press("Tab")
        at = page.evaluate("""() => {
            const element = document.activeElement, style = getComputedStyle(element);
            if (element === document.body) return null;
            const label = element.getAttribute('aria-label') || element.labels?.[0]?.textContent || element.textContent;
            return { label: label.trim(), token: element.classList.contains('token'), outline: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2, id: element.id };
        }""")
        if at is None:
            break
        assert at["outline"], f"no focus is seen on {at}"
        assert at["label"], f"no label on {at}"
        seen.append(at)
        if at["token"] and sum(one["token"] for one in seen) == 1:
            first = page.evaluate("document.activeElement.textContent")
            page.keyboard.press("ArrowRight")
            expect(page.locator("#left .token").nth(1)).to_be_focused()
            expect(page.locator("#tip")).to_contain_text("%")
            page.keyboard.press("Enter")
            expect(page.locator("#left .instead")).to_be_visible()
            page.keyboard.press("Enter")
            expect(page.locator("#left .instead")).to_be_hidden()
            page.keyboard.press("Home")
            assert page.evaluate("document.activeElement.textContent") == first
    names = [one["id"] for one in seen]
    assert "theme" not in names or names.index("run") < names.index("theme"), "the controls come in a strange order"
    assert sum(one["token"] for one in seen) == 2, "each side is one stop of the Tab key"
    if page.locator("#write").is_visible():
        assert {"editor", "edit-prompt", "subject", "target", "make"} <= set(names), names
    passed(f"the keyboard alone runs and reaches {len(seen)} controls")


def check_looks(browser):
    for scheme in ("light", "dark"):
        for width, height in ((320, 640), (768, 1024), (1280, 900)):
            page = open_page(browser, viewport={"width": width, "height": height}, color_scheme=scheme)
            run(page, "abcdefghij" * 5)
            page.locator("#left .token").first.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"wider than {width} pixels"
            ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
            if arguments.axe:
                page.evaluate(Path(arguments.axe).read_text())
                found = page.evaluate("axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'] })")
                wrong = [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found["violations"]]
                assert not wrong, wrong
            before = ground()
            page.click("#theme")
            assert ground() != before, "the theme does not change"
            page.reload()
            assert page.evaluate("document.documentElement.dataset.theme") == ("light" if scheme == "dark" else "dark"), "the theme is forgotten"
            page.context.close()
    passed("nothing runs over at 320, 768 and 1280 pixels; light and dark" + ("; axe finds nothing" if arguments.axe else ""))


with sync_playwright() as playwright:
    # In a container there is no sandbox to be had.
    browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
    page = open_page(browser)
    check_comparing(page)
    if page.locator("#write").is_visible():
        check_edits(page)
    else:
        expect(page.locator("#no-editor")).to_contain_text("--archive")
        print("--    the server has no editor: its line is shown, the flows of edits are left out")
    check_keyboard(page)
    check_looks(browser)
    browser.close()
if problems:
    sys.exit("the page met errors:\n" + "\n".join(problems))
print("all passed")
