"""The page of a run: self-contained, nothing of it cut or missing in a real browser, and no name in it obeyed."""

import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from commands import assert_one_line_refusal, invoke
from matplotlib.image import imread
from runs import HOSTILE, make_run

from convexmoe.files.hub import read_certificate
from interop.command import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# For the copy that is measured: what reaches beyond its box or the window, what has no size, which pictures are none.
MEASURE = """<script>addEventListener("load", () => {
  const faults = [], width = document.documentElement.clientWidth, sections = {};
  for (const e of document.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect(), name = e.tagName + ": " + e.textContent.slice(0, 40);
    if (["SCRIPT", "STYLE"].includes(e.tagName)) continue;
    if (e.clientWidth && e.scrollWidth > e.clientWidth + 1) faults.push("overflows " + name);
    if (box.right > width + 1 || box.left < -1) faults.push("beyond the window " + name);
    if (e.tagName == "IMG" && !(e.complete && e.naturalWidth > 50)) faults.push("no picture " + e.alt.slice(0, 40));
    if (["SECTION", "HEADER", "FOOTER"].includes(e.tagName)) sections[e.textContent.trim()] = [box.top, box.bottom];
  }
  const found = {faults, width, sections, height: document.documentElement.scrollHeight,
    wide: document.documentElement.scrollWidth, pictures: document.images.length};
  parent.document.body.setAttribute("data-found", JSON.stringify(found)); });</script>"""
PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


@pytest.fixture(scope="module")
def browser():
    """The path of a browser; without one a failure where CI is set, and else a skip."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    reason = "no browser is installed: apt-get install chromium"
    assert not os.environ.get("CI"), reason
    pytest.skip(reason)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with names of anyone, and the text of its page."""
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    record = {"verdict": "proved", "property": "convex", "strength": "structural", "model": {"sha256": digest}}
    (folder / "model.certificate.json").write_text(json.dumps(record))
    result = invoke("report", folder, "--html", "--framework", "torch")
    assert result.exit_code == 0, result.output
    return folder, (folder / "report.html").read_text()


def look(browser, folder, page, width, height, *options):
    """What a browser prints of a page in a frame of a width: a window is 500 wide at least."""
    path = folder / "shown.html"
    style = f"border: 0; display: block; width: {width}px; height: {height}px"
    path.write_text(f'<body style="margin: 0"><iframe style="{style}" srcdoc="{html.escape(page)}"></iframe></body>')
    base = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    base += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000"]
    command = [*base, f"--window-size=1280,{height}", *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def measure(browser, folder, page, width):
    """What `MEASURE` finds; the copy has no policy against scripts, which would stop it, too."""
    copy = re.sub(r"<meta http-equiv.*?>", "", page, flags=re.DOTALL).replace("</body>", f"{MEASURE}</body>")
    shown = look(browser, folder, copy, width, 2000, "--dump-dom")
    return json.loads(html.unescape(re.search(r'data-found="(.*?)"', shown, re.DOTALL)[1]))


def ink(browser, folder, page, found):
    """The share of a section's pixels that are no background, by section, and of the last columns of the window."""
    place = folder / "shown.png"
    look(browser, folder, page, found["width"], int(found["height"]), f"--screenshot={place}")
    picture = (imread(place)[:, : found["width"], :3] < 0.8).any(axis=2)
    parts = {name[:30]: picture[int(top) : int(bottom)].mean() for name, (top, bottom) in found["sections"].items()}
    return parts, picture[:, -2:].mean()


@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_is_cut_or_missing_in_a_browser(browser, run, tmp_path, width):
    found = measure(browser, tmp_path, run[1], width)
    assert found["faults"] == [] and found["width"] == found["wide"] == width
    assert found["pictures"] == 8 and len(found["sections"]) == 10  # three effects, one context, four more
    parts, edge = ink(browser, tmp_path, run[1], found)
    assert min(parts.values()) > 0.003 and edge == 0, parts


def test_control_a_broken_picture_and_a_wide_table_are_seen(browser, run, tmp_path):
    spoiled = PICTURE.sub("data:image/png;base64,AAAA", run[1], count=1)
    spoiled = spoiled.replace("<td>", '<td style="white-space: nowrap">' + "m" * 80, 1)
    spoiled = spoiled.replace("<footer>", '<section style="color: white; height: 300px">nothing</section><footer>')
    found = measure(browser, tmp_path, spoiled, 420)
    assert found["wide"] > 420 and {fault.split(" ")[0] for fault in found["faults"]} >= {"overflows", "no", "beyond"}
    assert ink(browser, tmp_path, spoiled, found)[0]["nothing"] < 0.003


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def requests_of(page):
    """What a page would ask for or run: scripts, handlers, and every address that is no picture in it."""
    found = ["url"] * ("url(" in page or "@import" in page)
    for tag, attributes in Tags(page).tags:
        found += [tag] * (tag in ("script", "iframe", "link", "object", "embed", "base", "form"))
        found += [name for name in attributes if name.startswith("on") or name in ("href", "srcset", "action")]
        found += ["src"] * (not PICTURE.fullmatch(attributes.get("src", "data:image/png;base64,A")))
    return found


def test_the_page_asks_for_nothing_and_obeys_no_name(run):
    shown = Tags(run[1])
    assert requests_of(run[1]) == []
    for name in (
        *HOSTILE[:3],
        r"a & b \u202e&amp;",
        "t<b>.csv",
        "<u>w</u>",
        "3 <petals>",
        "1.25 times as large",
        "region=south",
        "(<north>, south)",
        "92.5%",
        "(p = 0.5)",
    ):
        assert name in shown.text, name
    assert "\u202e" not in run[1] and {tag for tag, _ in shown.tags}.isdisjoint({"b", "u", "petals"})
    assert all(len(of["alt"]) > 10 for tag, of in shown.tags if tag == "img")
    for fault, tag in (("script", "<script>"), ("src", "<img src=x")):  # control
        assert fault in requests_of(run[1].replace(html.escape(tag), tag))


def test_a_certificate_is_on_the_page_if_it_is_of_this_file(run, tmp_path):
    assert "proved: convex (structural)" in run[1] and "Not proved yet" not in run[1]
    for path in run[0].glob("model.*"):
        shutil.copy(path, tmp_path)
    model = tmp_path / "model.safetensors"
    assert read_certificate(model)["verdict"] == "proved"
    model.write_bytes(model.read_bytes() + b" ")  # control: another file
    assert read_certificate(model) is None
    assert "Not proved yet" in page._certainties(json.loads((run[0] / "metrics.json").read_text()), None)


def test_what_is_no_run_is_refused_in_a_line(run, tmp_path):
    def refused(name, content, *parts):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(run[0], folder)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        assert_one_line_refusal(invoke("report", folder, "--framework", "torch"), name, *parts)

    metrics = json.loads((run[0] / "metrics.json").read_text())
    other = metrics | {"data": metrics["data"] | {"columns": ["a", "b"]}}
    refused("model.safetensors", None, "no such file")
    bare = metrics | {"plan": {"seed": 0}}
    for content in (None, b"{", b"[]", json.dumps(other).encode(), json.dumps(bare).encode()):
        refused("metrics.json", content, "Name the folder")
    good = (run[0] / "report.safetensors").read_bytes()
    nan = good[:-8] + np.float64(np.nan).tobytes()
    for content in (None, b"", b"\x80\x04.", good[:-3], nan):
        refused("report.safetensors", content, "Fit anew")
    for out in (tmp_path, run[0] / "model.safetensors"):
        assert_one_line_refusal(invoke("report", run[0], "--out", out, "--framework", "torch"), "--out", str(out))
