"""The page of a study in a browser: what it draws, asks for, and does when it is used."""

import json
import re
import shutil
import subprocess

import made_study
import pytest

from kzoo.studies import report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

CHINESE = "一个因果模型"  # a label
LISTEN = """<script>
window.heard = [];
for (const kind of ["error", "warn"]) {
  const before = console[kind];
  console[kind] = (...what) => { heard.push(`${kind}: ${what.join(" ")}`); before(...what); };
}
addEventListener("error", (event) => heard.push(`error: ${event.message}`));
addEventListener("unhandledrejection", (event) => heard.push(`rejected: ${event.reason}`));
document.addEventListener("securitypolicyviolation", (e) => heard.push(`asks for ${e.blockedURI}`));
</script>"""
USE = """<script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const all = (selector, of = document) => [...of.querySelectorAll(selector)];
const lines = (chart) => all("g.mark-line.role-mark path", chart).length;
const marks = (chart) => all("g.role-mark path, g.role-mark line, g.role-mark text", chart).length;
const title = (chart) => all("g.role-axis-title text", chart).map((text) => text.textContent);
(async () => {
  while (!document.documentElement.dataset.ready) await wait(50);
  const charts = all("[data-figure]"), found = {};
  found.drawn = Object.fromEntries(charts.map((c) => [c.dataset.figure, marks(c)]));
  const paints = all("svg *").flatMap((e) => [e.getAttribute("fill"), e.getAttribute("stroke")]);
  found.paints = [...new Set(paints.filter((paint) => paint && !paint.startsWith("var(")))];
  found.wide = document.documentElement.scrollWidth - innerWidth;
  found.unlabelled = charts.filter((c) => !(c.getAttribute("aria-label") ?? "").length).length;
  found.unscoped = all("th:not([scope])").length;
  const section = charts.find((c) => c.dataset.figure === "curves-1-held-out").closest("section");
  const [held, training] = all("[data-figure]", section);
  const shown = () => [lines(held), lines(training)];
  found.lines = [shown()];
  const box = section.querySelector("[data-arm]");
  box.click(); await wait(200); found.lines.push(shown());
  const axis = section.querySelector("select");
  axis.value = "tokens"; axis.dispatchEvent(new Event("change", { bubbles: true }));
  section.querySelector("[data-log=x]").click();
  await wait(500); found.lines.push(shown()); found.title = title(held)[0];
  box.click(); await wait(200); found.lines.push(shown());
  const table = section.querySelector("table"), button = all("th button", table)[1];
  const means = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
  button.click(); found.up = means(); found.sorted = button.closest("th").ariaSort;
  button.click(); found.down = means();
  const point = all("g.mark-symbol path[opacity='0']", held)[1];  // seen once it is pointed at
  const { left, top } = point.getBoundingClientRect();
  const at = { clientX: left + 4, clientY: top + 4, bubbles: true };
  point.dispatchEvent(new PointerEvent("pointerover", at));
  point.dispatchEvent(new PointerEvent("pointermove", at));
  await wait(200);
  found.told = document.getElementById("vg-tooltip-element")?.textContent;
  found.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  found.heard = heard;
  const out = document.createElement("pre");
  out.id = "found"; out.textContent = JSON.stringify(found);
  document.body.append(out);
})();
</script>"""


def in_browser(page, folder):
    """What a browser of a phone's width finds when it uses the page: a dict."""
    text = page.read_text(encoding="utf-8")
    text = text.replace("<title>", f"{LISTEN}<title>", 1)
    text, _, end = text.rpartition("</body>")  # what comes before may be in a script
    text = f"{text}{USE}</body>{end}"
    used = folder / "used.html"
    used.write_text(text, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,844", "--dump-dom"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=60000"]
    done = subprocess.run(
        [BROWSER, *flags, used.as_uri()], capture_output=True, text=True, timeout=240
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert match, done.stderr[-2000:]
    return json.loads(match[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


def change(record):
    """The first arm's second run ended with a NaN, and one run of the tuning did."""
    if record["arm"] == CHINESE and record["seed"] in (1, 100):
        record.update(status="nan", bits=None, spectrum=[], steps=20)
        record.update(held_out=record["held_out"][:2], train_loss=record["train_loss"][:20])
    return record


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    text = json.dumps([made_study.ARMS, made_study.HYPOTHESES]).replace('"GPT"', f'"{CHINESE}"')
    arms, hypotheses = json.loads(text)
    asked = made_study.study(arms=arms, hypotheses=hypotheses, steps=40)
    return in_browser(report(made_study.write(folder / "made", asked, change)), folder)


@pytest.mark.slow
def test_every_figure_is_drawn_without_an_error_or_a_request(found):
    assert found["heard"] == []
    assert found["requests"] == []
    names = {"verdicts", "verdicts-2", "curves-1-held-out", "curves-2-training", "rates-1"}
    assert names | {"mask-4", "spectrum-1-rank"} <= set(found["drawn"])
    assert min(found["drawn"].values()) >= 3, found["drawn"]


def test_arms_can_be_hidden_and_stay_so_on_another_axis(found):
    assert found["lines"] == [[3, 3], [2, 2], [2, 2], [3, 3]]
    assert found["title"] == "tokens seen"


def test_a_point_is_told_under_the_pointer(found):
    assert re.search(r"arm(UniLM|GPT linear|一个因果模型).*mean\d\.\d{4}least", found["told"])


def test_the_table_sorts_by_a_column(found):
    assert found["up"] == sorted(found["up"]) and found["sorted"] == "ascending"
    assert found["down"] == found["up"][::-1] and len(set(found["up"])) == 3


def test_the_page_fits_a_phone_and_follows_light_and_dark(found):
    assert found["wide"] <= 0
    # Whatever is painted names a colour of the style sheet, which has two sets of them.
    assert set(found["paints"]) <= {"none", "transparent"}
    assert found["unlabelled"] == 0 and found["unscoped"] == 0
