"use strict";
// The page's data stand in #data. Text reaches the page by textContent only, never as markup.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const READABLE = 0.5;  // the least zoom at which names can be read
  const $ = (id) => document.getElementById(id);
  const COLOUR = { positive: "#0072B2", negative: "#D55E00", neutral: "#555555", wire: "#9A9A9A" };
  const FILL = { head: "#EAF3FA", kv: "#F1EAF7", mlp: "#FFF4D6", embed: "#EEEEEE", output: "#EEEEEE" };
  const BORDER = { head: "#5B8DB8", kv: "#9A7BB5", mlp: "#C9A227" };
  const strength = (e) => (e.score === null ? e.kept : Math.abs(e.score));
  const colour = (e) => e.wire ? COLOUR.wire : e.score === null ? COLOUR.neutral
    : e.score >= 0 ? COLOUR.positive : COLOUR.negative;

  const elements = [];
  data.nodes.forEach((node, i) => elements.push({
    group: "nodes", data: { id: "n" + i, label: node.label, number: i, ports: node.ports.length,
      fill: FILL[node.kind] || "#FFFFFF", border: BORDER[node.kind] || "#666666" },
    position: { x: node.x, y: node.y },
  }));
  data.nodes.forEach((node, i) => node.ports.forEach(([port, offset]) => elements.push({
    group: "nodes", classes: "port", data: { id: "p" + i + port, label: port,
      owner: "n" + i, fill: "#FFFFFF", border: "#FFFFFF" },
    position: { x: node.x + offset, y: node.y + data.box[1] / 2 - 6 },
  })));
  data.edges.forEach((edge, i) => {
    const share = Math.sqrt(strength(edge) / data.largest);
    elements.push({ group: "edges", data: {
      id: "e" + i, source: "n" + edge.source, target: "n" + edge.target, number: i,
      colour: colour(edge), width: edge.wire ? 1.5 : 0.8 + 4 * share,
      opacity: edge.wire ? 0.9 : 0.35 + 0.55 * share, style: edge.wire ? "dotted" : "solid",
      arrow: edge.wire ? "none" : "triangle",
      from: edge.from, to: edge.to, weights: edge.weights, distances: edge.distances,
    } });
  });


  const edgeStyle = {
    "width": "data(width)", "line-color": "data(colour)", "line-opacity": "data(opacity)",
    "line-style": "data(style)", "target-arrow-color": "data(colour)",
    "target-arrow-shape": "data(arrow)", "arrow-scale": 0.8,
    "curve-style": "bezier",
  };
  const routed = {
    "curve-style": "unbundled-bezier", "edge-distances": "endpoints",
    "control-point-weights": "data(weights)", "control-point-distances": "data(distances)",
    "source-endpoint": "data(from)", "target-endpoint": "data(to)",
  };
  const cy = cytoscape({
    container: $("graph"), elements, layout: { name: "preset" }, minZoom: 0.03, maxZoom: 4,
    boxSelectionEnabled: false, autounselectify: true, autoungrabify: true,
    style: [
      { selector: "node", style: { "shape": "round-rectangle", "width": data.box[0],
        "height": data.box[1], "background-color": "data(fill)", "border-color": "data(border)",
        "border-width": 1, "label": "data(label)", "text-valign": "center", "font-size": 13,
        "color": "#111111", "min-zoomed-font-size": 3 } },
      { selector: "node[?ports]", style: { "text-margin-y": -4 } },
      { selector: ".port", style: { "background-opacity": 0, "border-width": 0, "width": 1,
        "height": 1, "font-size": 8, "color": "#444444", "events": "no", "z-index": 5 } },
      { selector: "edge", style: edgeStyle },
      { selector: "edge[weights]", style: routed },
      { selector: ".hidden", style: { "display": "none" } },
      { selector: "node.faded", style: { "opacity": 0.15 } },
      { selector: "edge.faded", style: { "opacity": 0.06 } },
      { selector: "node.found", style: { "border-width": 4, "border-color": "#CC79A7" } },
      { selector: "node.chosen", style: { "border-width": 4, "border-color": "#111111" } },
      { selector: "edge.hovered", style: { "line-opacity": 1, "z-index": 9 } },
    ],
  });

  const nodes = cy.nodes().not(".port");
  const follow = () => cy.nodes(".port").forEach((p) => {
    const owner = cy.getElementById(p.data("owner"));
    ["hidden", "faded"].forEach((name) => p.toggleClass(name, owner.hasClass(name)));
  });

  // ---- details
  const number = (x) => Number(x).toPrecision(4).replace(/\.?0+($|e)/, "$1");
  function details(title, rows) {
    const box = $("details");
    box.replaceChildren();
    const head = document.createElement("b");
    head.textContent = title;
    box.append(head);
    rows.forEach((row) => {
      const line = document.createElement("div");
      line.textContent = row;
      box.append(line);
    });
  }
  const nothing = () => details("", ["Point at a node or an edge for its details."]);
  cy.on("mouseover", "node", (event) => {
    const node = data.nodes[event.target.data("number")];
    const seen = (edges) => edges.filter((e) => !e.hasClass("hidden")).length;
    const rows = ["kind: " + node.kind];
    if (node.layer !== null) rows.push("layer: " + node.layer);
    rows.push("edges in: " + seen(event.target.incomers("edge")) +
      ", out: " + seen(event.target.outgoers("edge")));
    details(node.name, rows);
  });
  cy.on("mouseover", "edge", (event) => {
    const edge = data.edges[event.target.data("number")];
    event.target.addClass("hovered");
    if (edge.wire) {
      details(edge.name, ["always there, not counted"]);
      return;
    }
    const rows = ["kind: " + edge.kind];
    if (edge.score !== null) rows.push("score: " + number(edge.score));
    rows.push("mask: " + number(edge.kept));
    details(edge.name, rows);
  });
  cy.on("mouseout", "edge", (event) => event.target.removeClass("hovered"));
  cy.on("mouseout", "node, edge", nothing);

  // ---- what is shown
  // A large circuit opens with its strongest edges; the slider brings in the rest.
  const strengths = data.edges.filter((e) => !e.wire).map(strength).sort((a, b) => b - a);
  const start = strengths.length <= 200 ? 0
    : Math.floor(1000 * Math.sqrt(strengths[149] / data.largest)) / 10;
  $("threshold").value = start;
  const off = new Set();
  function show() {
    const share = Number($("threshold").value) / 100;
    const least = share * share * data.largest;
    $("least").textContent = number(least);
    let count = 0;
    cy.batch(() => {
      cy.edges().forEach((e) => {
        const edge = data.edges[e.data("number")];
        const hide = !edge.wire && (strength(edge) < least || off.has(edge.kind));
        e.toggleClass("hidden", hide);
        if (!hide && !edge.wire) count += 1;
      });
      nodes.forEach((n) => {
        const visible = n.connectedEdges().some((e) => !e.hasClass("hidden") &&
          !data.edges[e.data("number")].wire);
        n.toggleClass("hidden", !visible);
      });
      follow();
    });
    const held = data.shown < data.total ? " (this page holds the " + data.shown +
      " strongest)" : "";
    $("count").textContent = count + " of " + data.total + " edges shown" + held;
    if (chosen) highlight(chosen);
  }
  $("threshold").addEventListener("input", show);
  data.kinds.forEach((kind) => {
    const label = document.createElement("label");
    label.className = "inline";
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {
      if (box.checked) off.delete(kind); else off.add(kind);
      show();
    });
    label.append(box, document.createTextNode(" " + kind));
    $("kinds").append(label);
  });

  // ---- highlight
  let chosen = null;
  function reach(start, step) {
    let all = start;
    let front = start;
    while (front.nonempty()) {
      const edges = front[step]("edge").filter((e) => !e.hasClass("hidden"));
      const nodes = (step === "incomers" ? edges.sources() : edges.targets()).difference(all);
      all = all.union(edges).union(nodes);
      front = nodes;
    }
    return all;
  }
  function highlight(node) {
    chosen = node;
    const lit = reach(node, "incomers").union(reach(node, "outgoers"));
    cy.batch(() => {
      cy.elements().removeClass("chosen").addClass("faded");
      lit.removeClass("faded");
      node.addClass("chosen");
      follow();
    });
  }
  function clear() {
    chosen = null;
    cy.elements().removeClass("faded chosen");
  }
  cy.on("tap", "node", (event) => highlight(event.target));
  cy.on("tap", (event) => { if (event.target === cy) clear(); });

  // ---- search
  $("search").addEventListener("input", () => {
    const text = $("search").value.trim().toLowerCase();
    nodes.removeClass("found");
    if (!text) return;
    const names = (n) => data.nodes[n.data("number")].name.toLowerCase();
    const exact = nodes.filter((n) => names(n) === text);
    const found = exact.nonempty() ? exact : nodes.filter((n) => names(n).includes(text));
    found.addClass("found");
    if (found.nonempty()) cy.animate({ center: { eles: found }, duration: 200 });
  });
  $("search").addEventListener("keydown", (event) => {
    const found = nodes.filter(".found");
    if (event.key === "Enter" && found.nonempty()) highlight(found[0]);
  });
  // A deep model's graph fitted whole is too small to read: open at its top, at a readable size.
  function frame() {
    cy.fit(undefined, 30);
    if (cy.zoom() < READABLE) {
      cy.zoom(READABLE);
      const box = cy.elements().boundingBox();
      cy.pan({
        x: cy.width() / 2 - (READABLE * (box.x1 + box.x2)) / 2,
        y: 30 - READABLE * box.y1,
      });
    }
  }

  $("fit").addEventListener("click", () => cy.fit(undefined, 30));
  $("reset").addEventListener("click", () => {
    $("threshold").value = start;
    $("search").value = "";
    off.clear();
    document.querySelectorAll("#kinds input").forEach((box) => { box.checked = true; });
    nodes.removeClass("found");
    clear();
    show();
    frame();
  });

  // ---- words
  function legend(shade, text) {
    const line = document.createElement("span");
    const key = document.createElement("span");
    key.className = "key";
    key.style.background = shade;
    line.append(key, document.createTextNode(text), document.createElement("br"));
    $("legend").append(line);
  }
  if (data.scored) {
    legend(COLOUR.positive, "useful (positive score)");
    legend(COLOUR.negative, "harmful (negative score)");
  } else {
    legend(COLOUR.neutral, "kept (no scores)");
    $("threshold").parentElement.firstChild.textContent = "Least mask value shown: ";
  }
  if (data.edges.some((e) => e.wire)) legend(COLOUR.wire, "key/value head to its query heads");
  function table(id, rows) {
    rows.forEach(([name, value]) => {
      const row = $(id).insertRow();
      row.insertCell().textContent = name;
      row.insertCell().textContent = value;
    });
  }
  table("report", data.report);
  table("provenance", data.provenance);
  if (!data.report.length) $("report-title").remove();
  nothing();
  show();
  frame();
})();
