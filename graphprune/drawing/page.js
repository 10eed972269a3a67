"use strict";
// The panel: what is shown, what is chosen, and tables of it. The page's data stand in #data; text
// reaches the page by textContent only, never as markup.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { nodes, edges, kinds, states } = data;
  const count = edges.source.length;
  const READABLE = window.innerWidth < 760 ? 0.6 : 0.8, ROWS = 400, WIRE = -1;
  const $ = (id) => document.getElementById(id);
  const compared = states.length === 3;
  const isWire = (e) => edges.state[e] === WIRE;
  const strength = (e) => isWire(e) ? Infinity
    : data.scored ? Math.abs(edges.score[e]) : edges.kept[e];
  const incoming = nodes.map(() => []), outgoing = nodes.map(() => []);
  for (let e = 0; e < count; e += 1) {
    incoming[edges.target[e]].push(e);
    outgoing[edges.source[e]].push(e);
  }
  function name(e) {
    const port = data.ports.includes(kinds[edges.kind[e]]) ? "<" + kinds[edges.kind[e]] + ">" : "";
    return edges.names[e] || nodes[edges.source[e]].name + "->" + nodes[edges.target[e]].name + port;
  }
  const number = (x) => {
    const text = Number(x).toPrecision(3);
    return text.includes("e") ? text : String(Number(text));
  };
  function make(tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  // ---- how edges look
  const SOLID = [], DOTS = [2, 3], DASHES = [5, 4];
  const styles = [];
  function style(e) {
    if (styles[e]) return styles[e];
    if (isWire(e)) return (styles[e] = look(data.colours.wire, 1.3, DOTS, 0.9, false));
    const share = Math.min(Math.sqrt(strength(e) / data.largest), 1);
    const state = states[edges.state[e]];
    if (state.cut) return (styles[e] = look(state.colour, 1, DASHES, 0.8, false));
    const colour = state.colour || (!data.scored ? data.colours.neutral
      : edges.score[e] < 0 ? data.colours.negative : data.colours.positive);
    const width = Math.round((0.7 + 3.8 * share) * 2) / 2;
    return (styles[e] = look(colour, width, SOLID, Math.round((0.4 + 0.5 * share) * 10) / 10, true));
  }
  const look = (colour, width, dash, alpha, head) => ({ colour, width, dash, alpha, head });

  // ---- what is shown: by threshold, kinds and states
  const offKinds = new Set(), offStates = new Set();
  let shown = new Uint8Array(count), nodeShown = new Uint8Array(nodes.length), chosen = -1;
  const strengths = [];
  for (let e = 0; e < count; e += 1) if (!isWire(e)) strengths.push(strength(e));
  strengths.sort((a, b) => b - a);
  // A large circuit opens with its strongest edges; the slider brings in the rest.
  const start = !data.layered || strengths.length <= 250 ? 0
    : Math.floor(1000 * Math.sqrt(strengths[199] / data.largest)) / 10;
  function refresh() {
    const share = Number($("threshold").value) / 100, least = share * share * data.largest;
    $("least").textContent = number(least);
    shown = new Uint8Array(count);
    nodeShown = new Uint8Array(nodes.length);
    let edgesShown = 0, cutShown = 0;
    for (let e = 0; e < count; e += 1) {
      if (isWire(e)) continue;
      shown[e] = Number(strength(e) >= least && !offKinds.has(edges.kind[e]) &&
        !offStates.has(edges.state[e]));
      if (!shown[e]) continue;
      if (states[edges.state[e]].cut) cutShown += 1;
      else edgesShown += 1;
      nodeShown[edges.source[e]] = nodeShown[edges.target[e]] = 1;
    }
    let drawn = edgesShown + cutShown;
    for (let e = 0; e < count; e += 1) {
      if (isWire(e) && nodeShown[edges.source[e]] && nodeShown[edges.target[e]]) {
        shown[e] = 1;
        drawn += 1;
      }
    }
    const held = data.held < data.total
      ? "; this page holds the " + data.held + " strongest, " + data.share + " of the score" : "";
    $("count").textContent = edgesShown + " of " + data.total + " edges shown" + held +
      (cutShown ? "; and " + cutShown + " cut ones" : "");
    view.setShown(shown, nodeShown, drawn);
    if (chosen >= 0) select(chosen, false);
    search();
  }

  // ---- a node and what it depends on
  function reach(from, lists, end) {
    const seenNodes = new Set([from]), seenEdges = new Set(), queue = [from];
    while (queue.length) {
      for (const e of lists[queue.pop()]) {
        if (!shown[e]) continue;
        seenEdges.add(e);
        const next = end[e];
        if (!seenNodes.has(next)) {
          seenNodes.add(next);
          queue.push(next);
        }
      }
    }
    return [seenNodes, seenEdges];
  }
  // The path whose weakest edge is strongest: one node after the other, the best reached first.
  function strongestPath(from, lists, end, goals) {
    const best = new Map([[from, [Infinity, 0]]]), came = new Map(), done = new Set();
    for (;;) {
      let node = -1, value = [-1, 0];
      for (const [candidate, reached] of best) {
        if (!done.has(candidate) && (reached[0] > value[0] ||
          (reached[0] === value[0] && reached[1] < value[1]))) [node, value] = [candidate, reached];
      }
      if (node < 0) return null;
      if (goals.includes(node)) {
        const path = [];
        for (let at = node; at !== from; at = path[path.length - 1].before) path.push(came.get(at));
        return path.reverse();
      }
      done.add(node);
      for (const e of lists[node]) {
        if (!shown[e] || edges.state[e] >= 0 && states[edges.state[e]].cut) continue;
        const next = end[e], reached = [Math.min(value[0], strength(e)), value[1] + 1];
        const old = best.get(next);
        if (!old || reached[0] > old[0] || (reached[0] === old[0] && reached[1] < old[1])) {
          best.set(next, reached);
          came.set(next, { edge: e, before: node, node: next });
        }
      }
    }
  }
  let sorting = { by: "strength", down: true };
  function select(node, look) {
    chosen = node;
    const [upNodes, upEdges] = reach(node, incoming, edges.source);
    const [downNodes, downEdges] = reach(node, outgoing, edges.target);
    view.setLit({ nodes: new Set([...upNodes, ...downNodes]),
      edges: new Set([...upEdges, ...downEdges]) }, node);
    if (look) view.show(new Set([node]));
    describe(node);
  }
  function clear() {
    chosen = -1;
    view.setLit(null, -1);
    $("selection").replaceChildren(make("p", "Select a node to see its edges, and its paths to the " +
      "input and the output.", "soft"));
  }
  function describe(node) {
    const box = $("selection"), about = nodes[node];
    const words = [about.words || about.kind];
    if (about.layer !== null) words.push("layer " + about.layer);
    const counted = (e) => shown[e] && !isWire(e);
    words.push(incoming[node].filter(counted).length + " edges in, " +
      outgoing[node].filter(counted).length + " out");
    box.replaceChildren(make("h2", about.name), make("p", words.join(" · "), "soft"));
    if (data.inputs.length && data.outputs.length) {
      path(box, "Strongest path from the input", node, incoming, edges.source, data.inputs, true);
      path(box, "Strongest path to the output", node, outgoing, edges.target, data.outputs, false);
    }
    table(box, node);
    const done = make("button", "Clear selection");
    done.addEventListener("click", clear);
    box.append(done);
  }
  function nodeButton(node) {
    const button = make("button", nodes[node].name, "name");
    button.addEventListener("click", () => select(node, true));
    return button;
  }
  function path(box, title, node, lists, end, goals, backwards) {
    if (goals.includes(node)) return;
    const steps = strongestPath(node, lists, end, goals);
    const line = make("p");
    line.append(make("b", title + ": "));
    if (steps === null) {
      line.append("none among the edges shown.");
    } else {
      const chain = [node, ...steps.map((step) => step.node)];
      if (backwards) chain.reverse();
      chain.forEach((at, i) => line.append(i ? " → " : "", nodeButton(at)));
      const weakest = steps.map((s) => strength(s.edge)).filter((x) => x < Infinity);
      if (weakest.length) line.append(" (weakest edge " + number(Math.min(...weakest)) + ")");
    }
    box.append(line);
  }
  function table(box, node) {
    const rows = [...incoming[node].map((e) => [e, "from", edges.source[e]]),
      ...outgoing[node].map((e) => [e, "to", edges.target[e]])]
      .filter(([e]) => shown[e])
      .map(([e, way, other]) => ({ e, way, other, node: nodes[other].name, strength: strength(e),
        kind: isWire(e) ? "fixed wire" : kinds[edges.kind[e]],
        score: isWire(e) ? NaN : data.scored ? edges.score[e] : edges.kept[e],
        state: isWire(e) ? "always there" : states[edges.state[e]].name }));
    if (!rows.length) return;
    const columns = [["way", ""], ["node", "node"], ["kind", "input"],
      ["strength", data.scored ? "score" : "mask"]];
    if (states.length > 1) columns.push(["state", "edge in"]);
    const made = make("table"), head = made.createTHead().insertRow();
    columns.forEach(([key, title]) => {
      const cell = make("th"), button = make("button", (title || "way") +
        (sorting.by === key ? (sorting.down ? " ↓" : " ↑") : ""));
      if (key === "strength") cell.className = "number";
      cell.setAttribute("aria-sort",
        sorting.by !== key ? "none" : sorting.down ? "descending" : "ascending");
      button.addEventListener("click", () => {
        sorting = { by: key, down: sorting.by === key ? !sorting.down : key === "strength" };
        describe(node);
      });
      cell.append(button);
      head.append(cell);
    });
    const sign = sorting.down ? -1 : 1, key = sorting.by;
    rows.sort((a, b) => key === "strength" ? sign * ((a.strength < b.strength ? -1 : 1) *
      (a.strength === b.strength ? 0 : 1)) : sign * a[key].localeCompare(b[key], "en", { numeric: true }));
    const body = made.createTBody();
    rows.slice(0, ROWS).forEach((row) => {
      const line = body.insertRow();
      line.title = isWire(row.e) ? "" : name(row.e);
      line.insertCell().textContent = row.way;
      line.insertCell().append(nodeButton(row.other));
      line.insertCell().textContent = row.kind;
      const cell = line.insertCell();
      cell.className = "number";
      cell.textContent = Number.isNaN(row.score) ? "" : number(row.score);
      if (states.length > 1) line.insertCell().textContent = row.state;
    });
    const scroll = make("div", undefined, "scroll");
    scroll.append(made);
    box.append(scroll);
    if (rows.length > ROWS) box.append(make("p", ROWS + " of " + rows.length + " edges listed.", "soft"));
  }

  // ---- search
  let matches = [];
  function search() {
    const text = $("search").value.trim().toLowerCase();
    if (!text) {
      [matches, $("found").textContent] = [[], ""];
      view.setFound(new Set());
      return;
    }
    const low = nodes.map((n) => n.name.toLowerCase());
    const all = [...nodes.keys()].filter((i) => low[i] === text);
    const some = all.length ? all : [...nodes.keys()].filter((i) => low[i].includes(text));
    matches = some.filter((i) => nodeShown[i]);
    const hidden = some.length - matches.length;
    $("found").textContent = !some.length ? "No node of this circuit has “" + text + "” in its name."
      : matches.length + (matches.length === 1 ? " node" : " nodes") + " found" +
        (hidden ? ", " + hidden + " more hidden by the filters" : "") +
        (matches.length ? "; Enter selects " + nodes[matches[0]].name : "") + ".";
    view.setFound(new Set(matches));
  }
  $("search").addEventListener("input", () => {
    search();
    if (matches.length) view.show(new Set(matches));
  });
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && matches.length) {
      const next = matches[(matches.indexOf(chosen) + 1) % matches.length];
      select(next, true);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== $("search")) {
      event.preventDefault();
      $("search").focus();
    } else if (event.key === "Escape") {
      clear();
    }
  });

  // ---- the drawing
  const view = makeView($("graph"), data, {
    style,
    tap(under) {
      if (under.node >= 0) select(under.node, false);
      else if (under.edge < 0) clear();
    },
    hover(under, x, y) {
      const tip = $("tip");
      tip.hidden = under.node < 0 && under.edge < 0;
      if (tip.hidden) return;
      if (under.node >= 0) tip.textContent = nodes[under.node].name;
      else if (isWire(under.edge)) tip.textContent = name(under.edge) + ": always there, not counted";
      else {
        const e = under.edge;
        tip.textContent = name(e) + ": " + (data.scored ? "score " + number(edges.score[e])
          : "mask " + number(edges.kept[e])) + (states.length > 1 ? ", " + states[edges.state[e]].name : "");
      }
      tip.style.left = Math.max(4, Math.min(x + 12, $("graph").clientWidth - 200)) + "px";
      tip.style.top = y + 14 + "px";
    },
  });
  $("in").addEventListener("click", () => view.zoom(1.3, ...view.middle()));
  $("out").addEventListener("click", () => view.zoom(1 / 1.3, ...view.middle()));
  $("fit").addEventListener("click", () => view.fit());

  // ---- filters and words
  function boxes(id, names, off, colours) {
    if (names.length < 2) return $(id).remove();
    names.forEach((text, i) => {
      const label = make("label"), box = make("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => {
        if (box.checked) off.delete(i); else off.add(i);
        refresh();
      });
      label.append(box, " " + text);
      if (colours && colours[i]) label.style.color = colours[i];
      $(id).append(label);
    });
  }
  boxes("states", states.map((s) => s.name), offStates, compared ? states.map((s) => s.colour) : null);
  boxes("kinds", kinds, offKinds, null);
  if (!compared && $("states")) $("states").querySelector("legend").textContent = "Edges";
  function key(css, text) {
    const line = make("div"), mark = make("span", undefined, "key");
    Object.assign(mark.style, css);
    line.append(mark, text);
    $("key").append(line);
  }
  const bar = (colour, width, kind) => ({ borderTop: (width || 3) + "px " + (kind || "solid") + " " + colour });
  const real = (e) => !isWire(e) && !states[edges.state[e]].cut;
  if (compared) {
    states.forEach((s) => key(bar(s.colour), "edge in " + s.name));
  } else if (data.scored) {
    if (edges.score.some((x, e) => real(e) && x >= 0)) key(bar(data.colours.positive), "positive score");
    if (edges.score.some((x, e) => real(e) && x < 0)) key(bar(data.colours.negative), "negative score");
  } else {
    key(bar(data.colours.neutral), "kept edge (no scores)");
  }
  key(bar("#555555", 1), "wider: larger " + (data.scored ? "|score|" : "mask value") +
    ", up to " + number(data.largest));
  states.filter((s) => s.cut).forEach((s) => key(bar(s.colour, 2, "dashed"), "cut edge"));
  if (edges.state.includes(WIRE)) key(bar(data.colours.wire, 2, "dotted"), "key/value head to its query heads");
  data.key.forEach(([text, fill, border]) => key({ height: "12px", background: fill,
    border: "1px solid " + border, borderRadius: "3px" }, text));
  if (!data.scored) $("threshold-name").textContent = "Least mask value shown";
  function plainTable(id, rows) {
    rows.forEach(([left, right]) => {
      const row = $(id).insertRow();
      row.insertCell().textContent = left;
      row.insertCell().textContent = right;
    });
    if (!rows.length) $(id + "-fold").remove();
  }
  plainTable("report", data.report);
  plainTable("provenance", data.provenance);
  data.prompts.forEach((prompt) => {
    const box = make("div", undefined, "prompt"), sides = make("div", undefined, "sides");
    box.append(make("q", prompt.prompt));
    if (prompt.answer) box.append(make("div", "right answer: " + prompt.answer, "soft"));
    [["model", "The model"], ["circuit", "The circuit"]].forEach(([side, title]) => {
      const part = make("div");
      part.append(make("b", title));
      prompt[side].forEach(([text, share]) => part.append(make("div", text +
        (share === null ? "" : "  " + (100 * share).toFixed(share < 0.1 ? 1 : 0) + " %"))));
      sides.append(part);
    });
    box.append(sides);
    $("prompts").append(box);
  });
  if (!data.prompts.length) $("prompts").remove();

  function reset() {
    $("threshold").value = start;
    $("search").value = "";
    [offKinds, offStates].forEach((off) => off.clear());
    document.querySelectorAll("fieldset input").forEach((box) => { box.checked = true; });
    clear();
    refresh();
    view.fit(data.layered ? READABLE : 0);
  }
  $("threshold").addEventListener("input", refresh);
  $("reset").addEventListener("click", reset);
  reset();
  window.graphprunePage = Object.freeze({ place: (text) => view.place(nodes.findIndex((n) => n.name === text)) });
})();
