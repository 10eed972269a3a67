"""The page in a browser: what is clicked, typed and filtered, on a desktop and on a phone."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_export_html import EVIL, evil
from transformer_graph import random_scores, transformer_graph

from graphprune import Circuit
from graphprune.export import to_html

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed")

HELP = """
"use strict";
const $ = (id) => document.getElementById(id);
const text = (id) => $(id).textContent;
const fire = (node, event) => node.dispatchEvent(event);
const type = (words) => { $("search").value = words; fire($("search"), new Event("input")); };
const key = (node, key) => fire(node, new KeyboardEvent("keydown",
  { key, bubbles: true, cancelable: true }));
const slide = (value) => {
  $("threshold").value = value;
  fire($("threshold"), new Event("input"));
};
const rows = () => [...document.querySelectorAll("#selection tbody tr")];
const column = (i) => rows().map((row) => row.cells[i].textContent);
const paths = () => [...document.querySelectorAll("#selection p")].map((p) => p.textContent);
const click = (name) => {
  const [x, y] = graphprunePage.place(name), area = $("graph").getBoundingClientRect();
  for (const kind of ["pointerdown", "pointerup"]) fire($("graph"), new PointerEvent(kind,
    { pointerId: 1, clientX: x + area.left, clientY: y + area.top }));
};
const found = {};
"""


def in_browser(page: Path, steps: str, size: tuple[int, int] = (1200, 800)) -> dict:
    """What ``steps`` put into ``found``, run on a copy of the page that allows them."""
    script = (
        f"{HELP}window.addEventListener('load', () => {{ try {{ {steps} }} catch (error) "
        "{ found.error = String(error); }"
        " const box = document.createElement('pre'); box.id = 'found';"
        " box.textContent = JSON.stringify(found); document.body.append(box); });"
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8")
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    driven = page.with_name("driven.html")
    driven.write_text(text.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    profile = page.parent / "profile"
    run = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
         f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=4000", "--dump-dom",
         driven.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    [shown] = re.findall(r'<pre id="found">(.*?)</pre>', run.stdout, re.DOTALL)
    result = json.loads(html.unescape(shown))
    assert "error" not in result, result
    return result


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    graph = transformer_graph(4, 4, 2)
    scores = random_scores(graph)
    return Circuit.from_mask(scores.connected(60), scores, notes={"by": "test"})


def test_a_selected_node_lists_its_edges_and_paths(tmp_path, circuit):
    page = to_html(circuit, tmp_path / "c.html")
    graph, kept = circuit.graph, circuit.mask.kept
    touching = (graph.edge_index == graph.node_number["m1"]).any(0) & kept
    assert int(touching.sum()) > 2
    found = in_browser(
        page,
        """
        found.count = text("count");
        $("fit").click();
        click("m1");
        found.title = document.querySelector("#selection h2").textContent;
        found.paths = paths();
        found.score = column(3).map(Number);
        document.querySelectorAll("#selection th button")[3].click();
        found.upwards = column(3).map(Number);
        document.querySelectorAll("#selection th button")[1].click();
        found.nodes = column(1);
        document.querySelector("#selection tbody button").click();
        found.next = document.querySelector("#selection h2").textContent;
        key(document.body, "Escape");
        found.cleared = text("selection");
        """,
    )
    assert found["count"] == "60 of 60 edges shown"
    assert found["title"] == "m1"
    scores = circuit.scores.values[touching]
    expected = scores[scores.abs().argsort(descending=True)].tolist()
    assert found["score"] == pytest.approx(expected, rel=6e-3)
    assert found["upwards"] == found["score"][::-1]
    assert found["nodes"] == sorted(
        found["nodes"], key=lambda n: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", n)]
    )
    assert found["next"] == found["nodes"][0]
    assert "Select a node" in found["cleared"]
    upstream = next(p for p in found["paths"] if "from the input" in p)
    assert upstream.startswith("Strongest path from the input: input → ")
    assert " → m1 (weakest edge " in upstream


def widest(circuit: Circuit, source: str, target: str) -> float:
    """The greatest least |score| of a path, by trying thresholds one after the other."""
    graph, strength = circuit.graph, circuit.scores.values.abs()
    for least in sorted(strength[circuit.mask.kept].tolist(), reverse=True):
        kept = (circuit.mask.kept & (strength >= least)).numpy()
        if graph.reachable([graph.node_number[source]], kept)[graph.node_number[target]]:
            return least
    raise AssertionError


def test_paths_are_the_widest(tmp_path, circuit):
    page = to_html(circuit, tmp_path / "c.html")
    node = next(name for name in reversed(circuit.nodes()) if ".h" in name)
    steps = f'type("{node}"); key($("search"), "Enter"); found.paths = paths();'
    found = in_browser(page, steps)
    for words, ends in (("from the input", ("input", node)), ("to the output", (node, "logits"))):
        told = next(p for p in found["paths"] if words in p)
        weakest = float(re.findall(r"weakest edge (.*)\)", told)[0])
        assert weakest == pytest.approx(widest(circuit, *ends), rel=6e-3)


def test_search_threshold_and_kinds(tmp_path, circuit):
    page = to_html(circuit, tmp_path / "c.html")
    strength = circuit.scores.values[circuit.mask.kept].abs()
    kinds = circuit.graph.edge_kind[circuit.mask.kept]
    found = in_browser(
        page,
        """
        type("zz"); found.none = text("found");
        type("A1.H"); found.some = text("found");
        type(""); found.empty = text("found");
        slide(50); found.half = text("count");
        slide(0);
        const [q] = document.querySelectorAll("#kinds input");
        q.checked = false; fire(q, new Event("change")); found.without = text("count");
        $("reset").click(); found.reset = text("count");
        key(document.body, "/"); found.focus = document.activeElement.id;
        found.folded = [$("report-fold"), $("provenance-fold").open];
        found.labels = [...document.querySelectorAll("#key div")].map((d) => d.textContent);
        """,
    )
    assert "No node of this circuit has “zz”" in found["none"]
    nodes = [n for n in circuit.nodes() if "a1.h" in n]
    assert found["some"].startswith(f"{len(nodes)} node")
    assert found["empty"] == ""
    half = int((strength >= 0.25 * strength.max() * (1 - 1e-4)).sum())
    assert found["half"] == f"{half} of 60 edges shown"
    assert found["without"] == f"{int((kinds != 0).sum())} of 60 edges shown"
    assert found["reset"] == "60 of 60 edges shown"
    assert found["focus"] == "search"
    assert found["folded"] == [None, False]  # no report; provenance there and closed
    assert {"positive score", "negative score", "attention head"} <= set(found["labels"])


def test_the_difference_of_two_circuits_is_filtered(tmp_path, circuit):
    scores = random_scores(circuit.graph, 1)
    other = Circuit.from_mask(scores.connected(60), scores)
    page = to_html(circuit, tmp_path / "c.html", against=other, names=("one", "two"))
    found = in_browser(
        page,
        """
        found.all = text("count");
        const boxes = document.querySelectorAll("#states input");
        for (const i of [0, 1]) { boxes[i].checked = false; fire(boxes[i], new Event("change")); }
        found.two = text("count");
        """,
    )
    union = circuit | other
    assert found["all"] == f"{union.mask.num_kept} of {union.mask.num_kept} edges shown"
    assert found["two"].startswith(f"{(other - circuit).mask.num_kept} of ")


def test_a_hostile_name_stays_text(tmp_path):
    page = to_html(
        evil(), tmp_path / "c.html", answers=[{"prompt": EVIL, "model": EVIL, "circuit": EVIL}]
    )
    found = in_browser(
        page,
        """
        let alarm = 0; window.alert = () => { alarm += 1; };
        type("script"); key($("search"), "Enter");
        found.title = document.querySelector("#selection h2").textContent;
        found.alarm = alarm;
        found.scripts = document.scripts.length;
        found.prompt = document.querySelector("#prompts q").textContent;
        """,
    )
    assert found["title"].replace("\r", "") == EVIL
    assert (found["alarm"], found["scripts"]) == (0, 4)  # the page's three, and this test's own
    assert found["prompt"] == EVIL


def test_a_phone_has_the_drawing_above_the_panel_and_no_sideways_scroll(tmp_path, circuit):
    found = in_browser(
        to_html(circuit, tmp_path / "c.html"),
        """
        const graph = $("graph").getBoundingClientRect();
        const panel = document.querySelector("aside").getBoundingClientRect();
        found.graph = [graph.width, graph.height];
        found.below = panel.top >= graph.bottom - 1;
        found.wide = document.documentElement.scrollWidth -
          document.documentElement.clientWidth;
        found.width = document.documentElement.clientWidth;  // a scroll bar aside
        """,
        size=(500, 844),  # chromium has no narrower window
    )
    assert found["below"]
    assert found["wide"] <= 0
    assert found["graph"][0] == found["width"]
    assert found["graph"][1] > 400


def test_keys_move_and_zoom_the_drawing(tmp_path, circuit):
    found = in_browser(
        to_html(circuit, tmp_path / "c.html"),
        """
        const gap = () => graphprunePage.place("logits")[1] - graphprunePage.place("input")[1];
        $("fit").click();
        const [x] = graphprunePage.place("input"), start = gap();
        key($("graph"), "ArrowLeft"); found.moved = graphprunePage.place("input")[0] - x;
        key($("graph"), "+"); found.zoomed = gap() / start;
        key($("graph"), "0"); found.again = gap() / start;
        found.focusable = $("graph").tabIndex;
        """,
    )
    assert found == pytest.approx({"moved": 60, "zoomed": 1.25, "again": 1, "focusable": 0})


def test_twenty_thousand_edges_answer_at_once(tmp_path):
    graph = transformer_graph(12, 12)
    scores = random_scores(graph)
    page = to_html(Circuit.from_mask(scores.connected(20_000), scores), tmp_path / "c.html")
    assert page.stat().st_size < 1_500_000
    found = in_browser(
        page,
        """
        found.first = text("count");
        slide(0); found.count = text("count");
        type("m5"); key($("search"), "Enter");
        found.listed = column(1).length;
        """,
    )
    assert re.match(r"20\d of 20000 edges shown", found["first"])
    assert found["count"] == "20000 of 20000 edges shown"
    assert 0 < found["listed"] <= 400
