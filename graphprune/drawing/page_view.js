"use strict";
// The drawing: a canvas that shows the graph, is dragged, zoomed and pinched, and knows what is
// under the pointer. It holds no words of the panel; page.js decides what is shown and chosen.
function makeView(canvas, data, hooks) {
  const FEW = 2500; // so many edges are drawn anew in every frame; more are redrawn after a move
  const nodes = data.nodes, edges = data.edges, count = edges.source.length;
  const pen = canvas.getContext("2d");
  const picture = document.createElement("canvas"); // the last full drawing, shown while moving
  let view = { scale: 1, x: 0, y: 0 }, drawn = null, size = { width: 1, height: 1, ratio: 1 };
  let shown = new Uint8Array(count).fill(1), numberShown = count;
  let nodeShown = new Uint8Array(nodes.length).fill(1);
  let lit = null; // { nodes: Set, edges: Set }: everything else is pale
  let chosen = -1, hovered = -1, found = new Set();

  // ---- shapes, once: the eight numbers of each edge's curve, and its box
  const curve = new Float32Array(8 * count), box = new Float32Array(4 * count);
  for (let e = 0; e < count; e += 1) {
    const source = nodes[edges.source[e]], target = nodes[edges.target[e]];
    curve.set(data.layered ? upwards(source, target, e) : across(source, target), 8 * e);
    const xs = [0, 2, 4, 6].map((i) => curve[8 * e + i]);
    const ys = [1, 3, 5, 7].map((i) => curve[8 * e + i]);
    box.set([Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)], 4 * e);
  }
  function upwards(source, target, e) {
    const x0 = source.x, y0 = source.y - source.height / 2;
    const x1 = target.x + (data.portOffsets[data.kinds[edges.kind[e]]] || 0) * (target.ports ? 1 : 0);
    const y1 = target.y + target.height / 2;
    const reach = Math.min(0.45 * (y0 - y1), 220);
    // A long edge between nodes that stand above each other bows aside, past those in between.
    const bow = y0 - y1 > 200 && Math.abs(x1 - x0) < 60 ? 90 * (e % 2 ? 1 : -1) : 0;
    return [x0, y0, x0 + bow, y0 - reach, x1 + bow, y1 + reach, x1, y1];
  }
  function across(source, target) {
    const r = source.height / 2;
    if (source === target) {
      return [source.x - 4, source.y - r, source.x - 3 * r, source.y - 4 * r,
        source.x + 3 * r, source.y - 4 * r, source.x + 4, source.y - r];
    }
    const dx = target.x - source.x, dy = target.y - source.y, long = Math.hypot(dx, dy) || 1;
    const bend = 0.07; // so that an edge and the one back lie apart
    const a = [source.x + dx / 3 - dy * bend, source.y + dy / 3 + dx * bend];
    const b = [source.x + (2 * dx) / 3 - dy * bend, source.y + (2 * dy) / 3 + dx * bend];
    return [source.x + (dx / long) * r, source.y + (dy / long) * r, ...a, ...b,
      target.x - (dx / long) * r, target.y - (dy / long) * r];
  }

  // ---- drawing
  function screen(x, y) { return [x * view.scale + view.x, y * view.scale + view.y]; }
  function paint(context) {
    context.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
    context.clearRect(0, 0, size.width, size.height);
    paintBands(context);
    context.setTransform(size.ratio * view.scale, 0, 0, size.ratio * view.scale,
      size.ratio * view.x, size.ratio * view.y);
    const left = -view.x / view.scale, top = -view.y / view.scale;
    const right = left + size.width / view.scale, bottom = top + size.height / view.scale;
    const buckets = new Map(); // one stroke for all edges that look the same
    for (let e = 0; e < count; e += 1) {
      const b = 4 * e;
      if (!shown[e] || box[b] > right || box[b + 2] < left || box[b + 1] > bottom ||
        box[b + 3] < top) continue;
      const style = hooks.style(e);
      const pale = lit !== null && !lit.edges.has(e);
      const key = (pale ? "0" : e === hovered ? "2" : "1") + style.width.toFixed(1) + style.colour +
        style.dash; // pale ones first, then from thin to wide
      if (!buckets.has(key)) buckets.set(key, { style, pale, strong: e === hovered, edges: [] });
      buckets.get(key).edges.push(e);
    }
    const heads = numberShown <= FEW || view.scale > 1;
    [...buckets.keys()].sort().forEach((key) => paintBucket(context, buckets.get(key), heads));
    nodes.forEach((node, i) => {
      if (nodeShown[i] && node.x + node.width > left && node.x - node.width < right &&
        node.y + 40 > top && node.y - 40 < bottom) paintNode(context, node, i);
    });
  }
  function paintBucket(context, bucket, heads) {
    const thin = numberShown > FEW && lit === null ? 0.4 : 1; // thousands of edges: a texture
    context.globalAlpha = bucket.pale ? 0.07 : bucket.strong ? 1 : bucket.style.alpha * thin;
    context.strokeStyle = context.fillStyle = bucket.style.colour;
    context.lineWidth = Math.max(thin * bucket.style.width, 0.8 / view.scale) +
      (bucket.strong ? 1.5 : 0); // never under a pixel
    context.setLineDash(bucket.style.dash);
    context.beginPath();
    for (const e of bucket.edges) {
      const c = 8 * e;
      context.moveTo(curve[c], curve[c + 1]);
      context.bezierCurveTo(curve[c + 2], curve[c + 3], curve[c + 4], curve[c + 5], curve[c + 6],
        curve[c + 7]);
    }
    context.stroke();
    context.setLineDash([]);
    if (heads && bucket.style.head) {
      context.beginPath();
      const half = 2.5 + bucket.style.width / 2;
      for (const e of bucket.edges) {
        const c = 8 * e, x = curve[c + 6], y = curve[c + 7];
        const dx = x - curve[c + 4], dy = y - curve[c + 5], long = Math.hypot(dx, dy) || 1;
        const ux = dx / long, uy = dy / long;
        context.moveTo(x, y);
        context.lineTo(x - 2.4 * half * ux - half * uy, y - 2.4 * half * uy + half * ux);
        context.lineTo(x - 2.4 * half * ux + half * uy, y - 2.4 * half * uy - half * ux);
      }
      context.fill();
    }
    context.globalAlpha = 1;
  }
  function paintNode(context, node, i) {
    context.globalAlpha = lit !== null && !lit.nodes.has(i) ? 0.2 : 1;
    context.fillStyle = node.fill;
    context.strokeStyle = i === chosen ? "#111111" : found.has(i) ? "#CC3399" : node.border;
    context.lineWidth = i === chosen || found.has(i) ? 4 : 1;
    context.beginPath();
    const grown = Math.max(1, 4 / (node.height * view.scale)); // four pixels at least
    const wide = node.width * grown, high = node.height * grown;
    context.roundRect(node.x - wide / 2, node.y - high / 2, wide, high, data.layered ? 6 : high / 2);
    context.fill();
    context.stroke();
    if (view.scale * 13 >= 5 && node.label) {
      context.fillStyle = "#111111";
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.font = (data.layered ? 13 : 10) + "px system-ui, 'DejaVu Sans', sans-serif";
      context.fillText(node.label, node.x, node.y - (node.ports ? 5 : 0));
      if (node.ports) {
        context.font = "9px system-ui, 'DejaVu Sans', sans-serif";
        context.fillStyle = "#555555";
        for (const port of node.ports) {
          context.fillText(port, node.x + data.portOffsets[port], node.y + node.height / 2 - 6);
        }
      }
    }
    context.globalAlpha = 1;
  }
  function paintBands(context) {
    data.bands.forEach((band, i) => {
      const top = screen(0, band.top)[1], bottom = screen(0, band.bottom)[1];
      if (bottom < 0 || top > size.height) return;
      if (i % 2 === 0) {
        context.fillStyle = "#F5F5F5";
        context.fillRect(0, top, size.width, bottom - top);
      }
      if (bottom - top < 9) return;
      context.fillStyle = "#6A6A6A";
      context.textAlign = "left";
      context.textBaseline = "middle";
      context.font = "12px system-ui, 'DejaVu Sans', sans-serif";
      context.fillText("layer " + band.layer, 8, (top + bottom) / 2);
    });
  }

  // ---- frames: few edges are drawn each time; of many the last picture is moved along until rest
  let asked = false, rest = 0, moving = false;
  function redraw(isMove) {
    moving = Boolean(isMove) && numberShown > FEW && drawn !== null;
    if (moving) {
      clearTimeout(rest);
      rest = setTimeout(() => redraw(false), 140);
    }
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      if (moving) {
        const k = view.scale / drawn.scale;
        pen.setTransform(1, 0, 0, 1, 0, 0);
        pen.clearRect(0, 0, canvas.width, canvas.height);
        pen.drawImage(picture, size.ratio * (view.x - k * drawn.x),
          size.ratio * (view.y - k * drawn.y), canvas.width * k, canvas.height * k);
        return;
      }
      paint(pen);
      if (numberShown > FEW) {
        picture.width = canvas.width;
        picture.height = canvas.height;
        picture.getContext("2d").drawImage(canvas, 0, 0);
        drawn = { ...view };
      }
    });
  }
  function resize() {
    const area = canvas.getBoundingClientRect();
    size = { width: area.width, height: area.height, ratio: window.devicePixelRatio || 1 };
    canvas.width = Math.max(1, Math.round(area.width * size.ratio));
    canvas.height = Math.max(1, Math.round(area.height * size.ratio));
    redraw(false);
  }

  // ---- where we look
  function extent(only) {
    const some = nodes.filter((_, i) => nodeShown[i] && (!only || only.has(i)));
    const all = some.length ? some : nodes.length ? nodes : [{ x: 0, y: 0, width: 1 }];
    const xs = all.map((n) => n.x), ys = all.map((n) => n.y), pad = 60;
    return [Math.min(...xs) - pad, Math.min(...ys) - pad, Math.max(...xs) + pad,
      Math.max(...ys) + pad];
  }
  function fit(least) {
    const [x0, y0, x1, y1] = extent(null);
    const labels = data.bands.length ? 58 : 0; // the layers' names stand at the left
    const whole = Math.min((size.width - labels) / (x1 - x0), size.height / (y1 - y0), 1.6);
    const scale = Math.max(whole, least || 0.01);
    // What does not fit at a readable size opens at its top.
    const y = scale > whole ? -y0 * scale : size.height / 2 - (scale * (y0 + y1)) / 2;
    view = { scale, x: labels + (size.width - labels) / 2 - (scale * (x0 + x1)) / 2, y };
    redraw(false);
  }
  function zoom(factor, x, y) {
    const scale = Math.min(Math.max(view.scale * factor, 0.01), 6), k = scale / view.scale;
    view = { scale, x: x - k * (x - view.x), y: y - k * (y - view.y) };
    redraw(true);
  }
  function pan(dx, dy) {
    view = { ...view, x: view.x + dx, y: view.y + dy };
    redraw(true);
  }
  function show(only) { // brings nodes into sight, moving no more than needed
    const [x0, y0, x1, y1] = extent(only);
    const [left, top] = screen(x0, y0), [right, bottom] = screen(x1, y1);
    if (left >= 0 && top >= 0 && right <= size.width && bottom <= size.height) return;
    view = { ...view, x: size.width / 2 - (view.scale * (x0 + x1)) / 2,
      y: size.height / 2 - (view.scale * (y0 + y1)) / 2 };
    redraw(false);
  }

  // ---- what is under the pointer
  function at(px, py) {
    const x = (px - view.x) / view.scale, y = (py - view.y) / view.scale;
    for (let i = nodes.length - 1; i >= 0; i -= 1) {
      const node = nodes[i];
      if (nodeShown[i] && Math.abs(x - node.x) <= node.width / 2 + 2 &&
        Math.abs(y - node.y) <= node.height / 2 + 2) return { node: i, edge: -1 };
    }
    const near = 6 / view.scale;
    let best = near, edge = -1;
    for (let e = 0; e < count; e += 1) {
      const b = 4 * e;
      if (!shown[e] || (lit !== null && !lit.edges.has(e)) || x < box[b] - near ||
        x > box[b + 2] + near || y < box[b + 1] - near || y > box[b + 3] + near) continue;
      const distance = away(e, x, y);
      if (distance < best) [best, edge] = [distance, e];
    }
    return { node: -1, edge };
  }
  function away(e, x, y) { // the least distance from a curve, between points on it
    const c = 8 * e;
    let least = Infinity, px = curve[c], py = curve[c + 1];
    for (let i = 1; i <= 16; i += 1) {
      const t = i / 16, s = 1 - t, a = s * s * s, b = 3 * s * s * t, d = 3 * s * t * t, f = t * t * t;
      const qx = a * curve[c] + b * curve[c + 2] + d * curve[c + 4] + f * curve[c + 6];
      const qy = a * curve[c + 1] + b * curve[c + 3] + d * curve[c + 5] + f * curve[c + 7];
      const dx = qx - px, dy = qy - py, square = dx * dx + dy * dy || 1;
      const along = Math.min(Math.max(((x - px) * dx + (y - py) * dy) / square, 0), 1);
      least = Math.min(least, Math.hypot(x - px - along * dx, y - py - along * dy));
      [px, py] = [qx, qy];
    }
    return least;
  }

  // ---- fingers, mouse, keys
  const down = new Map();
  let travelled = 0;
  const local = (event) => {
    const area = canvas.getBoundingClientRect();
    return [event.clientX - area.left, event.clientY - area.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, local(event));
    if (down.size === 1) travelled = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = local(event);
    if (!down.has(event.pointerId)) {
      const under = at(x, y);
      canvas.style.cursor = under.node >= 0 ? "pointer" : "grab";
      if (under.edge !== hovered && numberShown <= FEW) {
        hovered = under.edge;
        redraw(false);
      }
      hooks.hover(under, x, y);
      return;
    }
    const [px, py] = down.get(event.pointerId);
    travelled += Math.hypot(x - px, y - py);
    if (down.size === 2) {
      const [ox, oy] = [...down].find(([id]) => id !== event.pointerId)[1];
      zoom(Math.hypot(x - ox, y - oy) / (Math.hypot(px - ox, py - oy) || 1), (x + ox) / 2,
        (y + oy) / 2);
    } else {
      pan(x - px, y - py);
    }
    down.set(event.pointerId, [x, y]);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (down.delete(event.pointerId) && down.size === 0 && travelled < 6) {
      hooks.tap(at(...local(event)));
    }
  });
  canvas.addEventListener("pointercancel", (event) => down.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => hooks.hover({ node: -1, edge: -1 }, 0, 0));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...local(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    const factor = { "+": 1.25, "=": 1.25, "-": 0.8 }[event.key];
    if (steps[event.key]) pan(...steps[event.key]);
    else if (factor) zoom(factor, size.width / 2, size.height / 2);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
  new ResizeObserver(resize).observe(canvas);
  resize();

  return {
    fit, show, zoom, resize,
    middle: () => [size.width / 2, size.height / 2],
    place: (i) => screen(nodes[i].x, nodes[i].y),
    setShown(edgeFlags, nodeFlags, number) {
      [shown, nodeShown, numberShown] = [edgeFlags, nodeFlags, number];
      redraw(false);
    },
    setLit(what, node) { [lit, chosen] = [what, node]; redraw(false); },
    setFound(which) { found = which; redraw(false); },
  };
}
