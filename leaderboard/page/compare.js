"use strict";
(() => {
  const data = JSON.parse(document.getElementById("pairs").textContent);
  const el = (id) => document.getElementById(id);
  const names = data.rows.map((row) => row.name);
  const signed = (value) => {
    const text = value.toFixed(1);
    return Number(text) === 0 ? "0.0" : text.replace("-", "−");
  };
  const svg = (kind, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const html = (kind, attributes = {}, ...children) => {
    const node = document.createElement(kind);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };

  const pair = (a, b) => {
    const found = data.pairs[`${Math.min(a, b)},${Math.max(a, b)}`];
    if (!found || a < b) return found;
    const [value, low, high, images] = found;
    return [value === null ? null : -value, high === null ? null : -high, low === null ? null : -low, images];
  };

  const say = (a, b) => {
    const [first, second] = [data.rows[a], data.rows[b]];
    if (a === b) return "Choose two different rows.";
    const [value, low, high, images] = pair(a, b);
    if (!images) return "They have no images in common.";
    const reach = `${first.name} reaches ${first.psnr}, ${second.name} ${second.psnr} dB.`;
    if (low === null) return `${reach} One batch is too few for an interval.`;
    const interval = `${signed(value)} dB [${signed(low)}, ${signed(high)}] on ${images} common images`;
    if (low > 0 || high < 0) {
      return `${reach} ${low > 0 ? first.name : second.name} is better: first minus second is ${interval}.`;
    }
    return `${reach} A tie: first minus second is ${interval}.`;
  };

  const plot = (a, b) => {
    const size = 420, left = 44, bottom = 40;
    const points = Object.entries(data.rows[a].scores).filter(([key]) => key in data.rows[b].scores)
      .map(([key, value]) => [key, value, data.rows[b].scores[key]]);
    const values = points.flatMap(([, x, y]) => [x, y]);
    const low = Math.floor(Math.min(...values, 10) / 10) * 10, high = Math.ceil(Math.max(...values, 20) / 10) * 10;
    const x = (value) => left + ((value - low) / (high - low)) * (size - left - 12);
    const y = (value) => size - bottom - ((value - low) / (high - low)) * (size - bottom - 16);
    const root = svg("svg", { viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": `PSNR of each image, ${names[a]} against ${names[b]}` });
    for (let tick = low; tick <= high; tick += high - low > 50 ? 20 : 10) {
      root.append(svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: y(low), y2: y(high) }));
      root.append(svg("line", { class: "grid", x1: x(low), x2: x(high), y1: y(tick), y2: y(tick) }));
      root.append(svg("text", { x: x(tick), y: size - bottom + 16, "text-anchor": "middle" }, tick));
      root.append(svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, tick));
    }
    root.append(svg("line", { class: "mark", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }));
    for (const [key, first, second] of points) {
      const dot = svg("circle", { class: "point c0", cx: x(first).toFixed(1), cy: y(second).toFixed(1), r: 4 });
      dot.append(svg("title", {}, `${data.images[key]}: ${signed(first)} and ${signed(second)} dB`));
      root.append(dot);
    }
    root.append(svg("text", { x: size - 12, y: size - 6, "text-anchor": "end" }, `${names[a]}, dB`));
    root.append(svg("text", { x: 0, y: 10 }, `${names[b]}, dB`));
    el("plot").replaceChildren(root);
  };

  const pictures = (a, b) => {
    const common = data.order.filter((key) => key in data.rows[a].pictures && key in data.rows[b].pictures);
    const line = (title, of) => html("tr", {}, html("th", { scope: "row" }, title), ...common.map(of));
    const cell = (row) => (key) => {
      const score = signed(row.scores[key]);
      const caption = html("span", row.scores[key] >= data.success ? { class: "hit" } : {}, score);
      return html("td", {}, html("img", { src: `../${row.pictures[key]}`, alt: `reconstruction of ${data.images[key]}, ${score} dB` }), caption);
    };
    const truth = (key) => html("td", {}, html("img", { src: `../${data.private[key]}`, alt: `private image ${data.images[key]}` }));
    const table = html("table", { class: "gallery" }, html("tbody", {},
      line("private", truth), line(names[a], cell(data.rows[a])), line(names[b], cell(data.rows[b]))));
    el("pictures").replaceChildren(common.length ? table : html("p", {}, "They store no picture of the same image."));
  };

  const show = () => {
    const [a, b] = ["a", "b"].map((id) => names.indexOf(el(id).value));
    el("verdict").textContent = say(a, b);
    plot(a, b);
    pictures(a, b);
    const hash = `#${new URLSearchParams({ a: names[a], b: names[b] })}`;
    if (location.hash !== hash) history.replaceState(null, "", hash);
  };
  const read = () => {
    if (location.hash === "#main") return;
    const hash = new URLSearchParams(location.hash.slice(1));
    el("a").value = names.includes(hash.get("a")) ? hash.get("a") : names[0];
    el("b").value = names.includes(hash.get("b")) ? hash.get("b") : names[Math.min(1, names.length - 1)];
    show();
  };
  for (const id of ["a", "b"]) el(id).addEventListener("change", show);
  el("swap").addEventListener("click", () => {
    [el("a").value, el("b").value] = [el("b").value, el("a").value];
    show();
  });
  addEventListener("hashchange", read);
  el("live").hidden = false;
  read();
})();
