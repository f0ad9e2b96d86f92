"""Photographs with headless Chromium, through ChromeDriver.

picture.py URL DIRECTORY           the page, light and dark, into DIRECTORY
picture.py --terminal ANSI FILE    a terminal's screen, as tmux capture-pane -e
                                   prints it
"""

import base64
import contextlib
import html
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --hide-scrollbars"
).split()

# The sixteen colours of a dark terminal.
COLOURS = (
    "#1d2129 #f0665c #56c271 #e3b341 #6ea8fe #c58af9 #4fc3d9 #d5dae3 "
    "#7d8694 #ff8a80 #7ee39a #f5d06f #9cc5ff #dcb1ff #86e0f0 #ffffff"
).split()
GROUND, TEXT = "#14171d", "#d5dae3"


@contextlib.contextmanager
def browser(width, height):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True
        )
        found = (re.search(r"successfully on port (\d+)", line) for line in driver.stdout)
        port = next(match.group(1) for match in found if match)

        def ask(path, body, method="POST"):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}{path}",
                method=method,
                data=json.dumps(body).encode() if method == "POST" else None,
                headers={"Content-Type": "application/json"},
            )
            return json.load(urllib.request.urlopen(request))["value"]

        flags = FLAGS + [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        wanted = {"alwaysMatch": {"goog:chromeOptions": {"args": flags}}}
        session = "/session/" + ask("/session", {"capabilities": wanted})["sessionId"]
        try:
            yield lambda path, body=None, method="POST": ask(session + path, body or {}, method)
        finally:
            ask(session, None, "DELETE")
            driver.terminate()
            driver.wait()


def shoot(ask, file):
    with open(file, "wb") as out:
        out.write(base64.b64decode(ask("/screenshot", method="GET")))


def page(url, directory):
    with browser(1280, 1020) as ask:
        for scheme, name in [("light", "page.png"), ("dark", "page-dark.png")]:
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            ask("/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": media})
            ask("/url", {"url": url})
            # The rates need two readings.
            time.sleep(4)
            shoot(ask, f"{directory}/{name}")


def spans(line):
    """A line with SGR codes as HTML."""
    out, style = [], {}
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        codes = re.fullmatch(r"\x1b\[([0-9;]*)m", part)
        if codes:
            codes = [int(code) for code in (codes.group(1) or "0").split(";")]
            while codes:
                code = codes.pop(0)
                if code == 0:
                    style = {}
                elif code in (1, 2, 7):
                    style[code] = True
                elif code in (22, 27):
                    for key in (1, 2) if code == 22 else (7,):
                        style.pop(key, None)
                elif code in (38, 48) and codes[:1] == [5]:
                    style["fg" if code == 38 else "bg"] = COLOURS[codes[1] % 16]
                    codes = codes[2:]
                elif 30 <= code <= 37 or 90 <= code <= 97:
                    style["fg"] = COLOURS[code - 30 if code < 90 else code - 82]
                elif 40 <= code <= 47:
                    style["bg"] = COLOURS[code - 40]
                elif code in (39, 49):
                    style.pop("fg" if code == 39 else "bg", None)
        elif part:
            fg, bg = style.get("fg", TEXT), style.get("bg", GROUND)
            if 7 in style:
                fg, bg = bg, fg
            look = f"color:{fg};background:{bg}"
            look += ";font-weight:bold" if 1 in style else ""
            look += ";opacity:.6" if 2 in style and 7 not in style else ""
            out.append(f'<span style="{look}">{html.escape(part)}</span>')
    return "".join(out)


def terminal(ansi, file):
    lines = open(ansi, encoding="utf-8").read().rstrip("\n").split("\n")
    body = "\n".join(spans(line) for line in lines)
    text = (
        f"<!doctype html><meta charset=utf-8><style>body{{margin:0;padding:14px 16px;"
        f"background:{GROUND};width:fit-content}}pre{{margin:0;color:{TEXT};"
        f"font:14px/18px 'DejaVu Sans Mono',monospace}}span{{display:inline-block;"
        f"height:18px}}</style><pre>{body}</pre>"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        with browser(1400, 800) as ask:
            ask("/url", {"url": f"file://{out.name}"})
            script = "const r = document.body.getBoundingClientRect(); return [r.width, r.height]"
            width, height = ask("/execute/sync", {"script": script, "args": []})
            size = {"width": round(width), "height": round(height)}
            size |= {"deviceScaleFactor": 1, "mobile": False}
            ask("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})
            shoot(ask, file)


if __name__ == "__main__":
    if sys.argv[1] == "--terminal":
        terminal(sys.argv[2], sys.argv[3])
    else:
        page(sys.argv[1], sys.argv[2])
