"use strict";
(() => {
  const board = JSON.parse(document.getElementById("board").textContent);
  const place = new Map(board.flat.map((name, index) => [name, index]));
  const get = (id, name) => board.rows[id][place.get(name)];
  const el = (id) => document.getElementById(id);
  const all = (query, from = document) => [...from.querySelectorAll(query)];
  const columns = new Map(board.columns.map((column) => [column.key, column]));
  const usual = board.columns.filter((column) => column.shown).map((column) => column.key);
  const sections = all("section[data-threat]").map((section) => ({
    section,
    name: section.dataset.threat,
    bodies: all("tbody.scenario", section).map((body) => ({
      body,
      attacks: all("tr.attack", body),
      floors: all("tr.floor, tr.oracle", body),
    })),
  }));
  const hay = new Map(
    sections.flatMap(({ name, section, bodies }) =>
      bodies.flatMap(({ attacks, body }) =>
        attacks.map((row) => [
          row.dataset.id,
          ["data", "scenario", "attack", "title", "family", "threat_model"].map((key) => get(row.dataset.id, key))
            .concat(section.querySelector("h2").textContent, body.querySelector(".head").textContent)
            .join(" ").toLowerCase(),
        ]),
      ),
    ),
  );
  let state;

  // What a sort compares: the first flat column of a heading; empty ones last, whichever way.
  const valueOf = (id, key) => get(id, key === "title" ? "title" : columns.get(key).flat[0]);
  const isNumber = (text) => text !== "" && Number.isFinite(Number(text));

  const read = () => {
    const hash = new URLSearchParams(location.hash.slice(1));
    const [key, way] = (hash.get("sort") || "").split(".");
    const cols = hash.has("cols") ? hash.get("cols").split(",").filter((name) => columns.has(name)) : usual;
    return {
      q: hash.get("q") || "",
      data: hash.get("data") || "",
      family: hash.get("family") || "",
      threat: hash.get("threat") || "",
      leaks: hash.get("leaks") === "1",
      verified: hash.get("verified") === "1",
      sort: key === "title" || columns.has(key) ? { key, up: way === "up" } : null,
      cols,
      pick: (hash.get("pick") || "").split(",").filter((id) => hay.has(id)).slice(0, 2),
    };
  };

  const write = () => {
    const hash = new URLSearchParams();
    for (const key of ["q", "data", "family", "threat"]) if (state[key]) hash.set(key, state[key]);
    for (const key of ["leaks", "verified"]) if (state[key]) hash.set(key, "1");
    if (state.sort) hash.set("sort", `${state.sort.key}.${state.sort.up ? "up" : "down"}`);
    if (state.cols.join() !== usual.join()) hash.set("cols", state.cols.join());
    if (state.pick.length) hash.set("pick", state.pick.join());
    const text = hash.toString();
    el("link").href = `#${text}`;
    if (text !== location.hash.slice(1)) history.replaceState(null, "", `#${text}`);
  };

  const matches = (id) => {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    return words.every((word) => hay.get(id).includes(word))
      && (!state.data || get(id, "data") === state.data)
      && (!state.family || get(id, "family") === state.family)
      && (!state.threat || get(id, "threat_model") === state.threat)
      && (!state.leaks || ["leak", "leak in part", "labels only"].includes(get(id, "verdict")))
      && (!state.verified || ["image by image", "on average"].includes(get(id, "checked")));
  };

  const compare = (first, second) => {
    const { key, up } = state.sort;
    const [a, b] = [valueOf(first.dataset.id, key), valueOf(second.dataset.id, key)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const found = isNumber(a) && isNumber(b) ? Number(a) - Number(b) : a.localeCompare(b, "en");
    return up ? found : -found;
  };

  const order = () => {
    for (const { bodies } of sections) {
      for (const { body, attacks, floors } of bodies) {
        const wanted = state.sort ? [...attacks].sort(compare) : attacks;
        const shown = [body.querySelector(".head"), ...wanted, ...floors];
        if (shown.some((row, index) => body.rows[index] !== row)) body.append(...shown);
      }
    }
    for (const head of all("th[data-key]")) {
      if (state.sort && head.dataset.key === state.sort.key) {
        head.setAttribute("aria-sort", state.sort.up ? "ascending" : "descending");
      } else head.removeAttribute("aria-sort");
    }
  };

  const filter = () => {
    let count = 0;
    for (const { section, bodies } of sections) {
      let inSection = 0;
      for (const { body, attacks } of bodies) {
        let inBody = 0;
        for (const row of attacks) {
          row.hidden = !matches(row.dataset.id);
          inBody += !row.hidden;
        }
        body.hidden = inBody === 0;
        inSection += inBody;
      }
      section.hidden = inSection === 0;
      count += inSection;
    }
    el("nothing").hidden = count > 0 || hay.size === 0;
    el("count").textContent = `${count.toLocaleString("en")} of ${hay.size.toLocaleString("en")} rows`;
  };

  let painted = "";
  const paintColumns = () => {
    if (painted === state.cols.join()) return;
    painted = state.cols.join();
    const shown = new Set(state.cols);
    for (const cell of all("[data-c], thead th[data-key]")) {
      const key = cell.dataset.c || cell.dataset.key;
      if (key !== "title") cell.hidden = !shown.has(key);
    }
    for (const box of all("#columns input")) box.checked = shown.has(box.value);
  };

  const tray = () => {
    for (const box of all(".pick input")) box.checked = state.pick.includes(box.value);
    const [first, second] = state.pick;
    el("tray").hidden = !first;
    if (!first) return;
    const scenario = (id) => id.split("--").slice(0, 3).join("--");
    const names = state.pick.map((id) => `${get(id, "title")} (${get(id, "attack")})`).join(" and ");
    const parts = [document.createTextNode(second ? names : `${names}: choose a second row to compare`)];
    const paired = (id) => document.querySelector(`tr[data-id="${CSS.escape(id)}"]`).hasAttribute("data-paired");
    if (second && scenario(first) === scenario(second) && paired(first) && paired(second)) {
      const link = document.createElement("a");
      const hash = new URLSearchParams({ a: first.split("--")[3], b: second.split("--")[3] });
      link.className = "button";
      link.id = "compare";
      link.href = `compare/${scenario(first)}.html#${hash}`;
      link.textContent = "Compare image by image";
      parts.push(link);
    } else if (second && scenario(first) === scenario(second)) {
      parts.push(document.createTextNode("do not both answer images, so nothing can be paired."));
    } else if (second) {
      parts.push(document.createTextNode("belong to different scenarios: other images, so nothing can be paired."));
    }
    const clear = document.createElement("button");
    clear.type = "button";
    clear.textContent = "Clear";
    clear.addEventListener("click", () => set({ pick: [] }));
    el("tray").replaceChildren(...parts, clear);
  };

  const controls = () => {
    for (const key of ["q", "data", "family", "threat"]) if (el(key).value !== state[key]) el(key).value = state[key];
    for (const key of ["leaks", "verified"]) el(key).checked = state[key];
  };

  const show = () => { controls(); paintColumns(); order(); filter(); tray(); write(); };
  const set = (change) => { state = { ...state, ...change }; show(); };

  // Exports: of the rows that are shown, in their order, with the columns that are shown.
  const shownRows = () =>
    all("section:not([hidden]) tbody.scenario:not([hidden]) tr[data-id]:not([hidden])").map((row) => row.dataset.id);
  const shownNames = () => [...board.identity, ...state.cols.flatMap((key) => columns.get(key).flat)];
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const tex = (text) => text.replace(/[\\~^&%$#_{}−–✓↑↓]/g, (letter) => ({
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "−": "$-$", "–": "--", "✓": "", "↑": "", "↓": "",
  })[letter] ?? `\\${letter}`);
  const cellText = (cell) => {
    const copy = cell.cloneNode(true);
    all(".unseen, .key", copy).forEach((part) => part.remove());
    all(".interval", copy).forEach((part) => part.prepend(" "));
    return copy.textContent.trim().replace(/\s+/g, " ").replace(/^–$/, "");
  };
  const makers = {
    csv: () => [shownNames(), ...shownRows().map((id) => shownNames().map((name) => get(id, name)))]
      .map((cells) => cells.map(quoted).join(",")).join("\n") + "\n",
    json: () => JSON.stringify(shownRows().map((id) => Object.fromEntries(shownNames().map((name) => {
      const text = get(id, name);
      return [name, text === "" ? null : board.texts.includes(name) ? text : Number(text)];
    }))), null, 2) + "\n",
    tex: () => {
      const keys = state.cols;
      const lines = shownRows().map((id) => {
        const row = document.querySelector(`tr[data-id="${CSS.escape(id)}"]`);
        const cells = keys.map((key) => cellText(row.querySelector(`[data-c="${key}"]`)));
        return [get(id, "scenario"), cellText(row.querySelector(".name")), ...cells].map(tex).join(" & ") + " \\\\";
      });
      const heads = ["scenario", "attack", ...keys.map((key) => columns.get(key).head)].map(tex).join(" & ");
      return [`\\begin{tabular}{ll${"r".repeat(keys.length)}}`, "\\toprule", `${heads} \\\\`, "\\midrule", ...lines,
        "\\bottomrule", "\\end{tabular}", ""].join("\n");
    },
    bib: () => [...new Set(shownRows().map((id) => board.cited[id]).filter(Boolean))].sort()
      .map((key) => board.bibtex[key]).join("\n"),
  };
  const save = (kind) => {
    const types = { csv: "text/csv", json: "application/json", tex: "application/x-tex", bib: "application/x-bibtex" };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([makers[kind]()], { type: types[kind] }));
    link.download = `gibench-leaderboard.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  // What the page has with JavaScript only.
  for (const head of all("th[data-key]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => {
      const { key } = head.dataset;
      const rising = ["title", "rank", "family", "checked", "device", "fidelity", "gradients", "seconds"].includes(key);
      const same = state.sort && state.sort.key === key;
      // First the better end, then the other, then the order of the ranks again.
      set({ sort: !same ? { key, up: rising } : state.sort.up === rising ? { key, up: !rising } : null });
    });
    head.append(button);
  }
  for (const row of all("tr.attack")) {
    const box = document.createElement("input");
    box.type = "checkbox";
    box.value = row.dataset.id;
    box.setAttribute("aria-label", `compare ${get(row.dataset.id, "title")}`);
    box.addEventListener("change", () => {
      const others = state.pick.filter((id) => id !== box.value);
      set({ pick: box.checked ? [...others, box.value].slice(-2) : others });
    });
    row.querySelector(".pick").append(box);
  }
  el("tools").addEventListener("submit", (event) => event.preventDefault());
  el("q").addEventListener("input", () => set({ q: el("q").value }));
  for (const key of ["data", "family", "threat"]) el(key).addEventListener("change", () => set({ [key]: el(key).value }));
  for (const key of ["leaks", "verified"]) el(key).addEventListener("change", () => set({ [key]: el(key).checked }));
  el("columns").addEventListener("change", () =>
    set({ cols: board.columns.map(({ key }) => key).filter((key) =>
      el("columns").querySelector(`input[value="${key}"]`).checked) }));
  for (const button of all("[data-export]")) button.addEventListener("click", () => save(button.dataset.export));
  const reset = () => set({ q: "", data: "", family: "", threat: "", leaks: false, verified: false, sort: null, cols: usual, pick: [] });
  el("reset").addEventListener("click", reset);
  el("again").addEventListener("click", reset);
  for (const menu of all(".menu")) {
    menu.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && menu.open) { menu.open = false; menu.querySelector("summary").focus(); }
    });
  }
  addEventListener("click", (event) => {
    for (const menu of all(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, select, textarea")) { event.preventDefault(); el("q").focus(); }
  });
  addEventListener("hashchange", () => {
    if (location.hash === "#main") return; // the link to the content, not a view
    state = read();
    show();
  });
  state = read();
  el("tools").hidden = false;
  show();
})();
