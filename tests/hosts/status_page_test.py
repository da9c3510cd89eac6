"""The status page in headless Chromium, against status_page_host. --shots DIR also leaves pictures of it."""
import argparse
import os
import subprocess
import sys

import chromium

SKIPPED = 77


class Host:
    def __init__(self, binary, port=0):
        self.process = subprocess.Popen([binary, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self.process.stdout.readline()
        assert ready.startswith("ready status="), ready
        self.port = int(ready.split("=")[1])

    def stop(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def check_rows(browser):
    browser.until("document.querySelectorAll('#endpoints tr').length === 6", "rows of endpoints")
    first = browser.js("[...document.querySelectorAll('#endpoints tr')[0].cells].map(c => c.textContent)")
    check(first[0] == "default/decode-010.24.0.11:8000" and first[1] == "decode", first)
    browser.until("document.querySelectorAll('#endpoints .state.bad').length === 2", "one stale, one without metrics")
    states = browser.js("[...document.querySelectorAll('#endpoints .state')].map(x => x.textContent)")
    check(states == ["healthy", "healthy", "stale", "no metrics", "healthy", "healthy"], states)
    check(browser.js("document.getElementById('connection').textContent") == "Live", "connected")
    check("disagg-profile-handler" in browser.js("document.getElementById('configuration-text').textContent"), "configuration")
    check(browser.js("document.querySelectorAll('#warnings li').length") == 1, "warnings")
    check("GiB" in browser.js("document.getElementById('indexes').textContent"), "memory of the index")
    check("12 waiting" in browser.js("document.getElementById('flow').textContent"), "flow control")


def check_live(browser):
    before = browser.js("newest.decisions_seen")
    browser.until(f"newest.decisions_seen > {before}", "a further snapshot")
    seen = browser.js("Number(document.querySelector('#decisions > li').dataset.key)")
    browser.until(f"Number(document.querySelector('#decisions > li').dataset.key) > {seen}", "newer decisions in the list")
    browser.until("document.querySelectorAll('#decisions > li').length === 50", "fifty decisions")


def check_keyboard(browser):
    # From the skip link on, Tab reaches the decisions; Enter opens the one in focus.
    browser.js("document.activeElement.blur(), window.scrollTo(0, 0)")
    for _ in range(12):
        browser.key("Tab", 9)
        if browser.js("document.activeElement.matches('#decisions summary')"):
            break
    check(browser.js("document.activeElement.matches('#decisions summary')"), "Tab reaches a decision")
    # One with an explanation: the list moves while we look, so choose it and press in one snapshot.
    browser.js("paused || document.getElementById('pause').click(), "
               "[...document.querySelectorAll('#decisions > li')].find(x => !x.querySelector('.error')).querySelector('summary').focus()")
    browser.key("Enter", 13)
    browser.until("document.querySelector('#decisions details[open] table')", "the explanation")
    words = browser.js("document.querySelector('#decisions details[open] .body').innerText")
    for word in ("Profile decode: done", "queue-scorer × 2", "kv-cache-utilization-scorer × 1", "★ picked default/decode-",
                 "dropped by decode-filter", "Profile prefill: done", "Seed"):
        check(word in words, f"{word!r} in {words!r}")
    # While it is open, newer decisions wait behind a button.
    browser.js("document.getElementById('pause').click()")
    browser.until("!document.getElementById('newer').hidden", "newer decisions are announced")
    check(browser.js("document.querySelector('#decisions details[open]') !== null"), "the open one stays")


def check_no_script_runs(browser):
    browser.until("[...document.querySelectorAll('#decisions .what')].some(x => x.textContent.startsWith('<script>'))",
                  "the hostile model's name as text")
    check(browser.js("document.title") == "Gateway scheduler", "its script ran")
    check(browser.js("document.querySelectorAll('#decisions script, #decisions img').length") == 0, "its markup is markup")
    check(not browser.dialogs, browser.dialogs)
    # The policy refuses markup of others even where it would come in.
    blocked = """new Promise(done => {
      document.addEventListener('securitypolicyviolation', e => done(e.violatedDirective), {once: true});
      const s = document.createElement('script'); s.textContent = 'document.title = "owned"'; document.body.append(s);
    })"""
    check(browser.js(blocked).startswith("script-src"), "the content security policy")
    check(browser.js("document.title") == "Gateway scheduler", "an injected script ran")


def check_narrow(browser):
    for width in (320, 390, 768, 1280):
        browser.size(width, 800)
        wide = browser.js("document.documentElement.scrollWidth")
        check(wide <= width, f"at {width} pixels the page is {wide} wide")


def check_reconnect(browser, host, binary):
    host.stop()
    browser.until("document.getElementById('connection').textContent.startsWith('Disconnected')", "disconnection is shown")
    again = Host(binary, host.port)
    browser.until("document.getElementById('connection').textContent === 'Live'", "it reconnects")
    return again


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True, help="the program status_page_host")
    parser.add_argument("--shots")
    arguments = parser.parse_args()
    binary = chromium.find()
    if binary is None:
        print("SKIPPED: no chromium on the path")
        return SKIPPED
    host = Host(arguments.host)
    browser = chromium.Chromium(binary)
    try:
        browser.size(1280, 900)
        browser.call("Page.navigate", url=f"http://127.0.0.1:{host.port}/")
        browser.until("document.readyState === 'complete'", "the page")
        check_rows(browser)
        check_live(browser)
        check_keyboard(browser)
        check_no_script_runs(browser)
        check_narrow(browser)
        if arguments.shots:
            os.makedirs(arguments.shots, exist_ok=True)
            for dark in (False, True):
                browser.dark(dark)
                for width in (390, 1280):
                    browser.size(width, 900)
                    browser.shot(os.path.join(arguments.shots, f"{width}{'-dark' if dark else ''}.png"))
        host = check_reconnect(browser, host, arguments.host)
    finally:
        browser.close()
        host.process.kill()
        host.process.wait()
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
