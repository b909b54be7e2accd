/* Draws and links what the page holds: the trade-off, the ROC curves, the tables. Everything it shows comes from #data. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const state = { panel: 0, metric: null, utility: "accuracy", scale: null, arm: "", views: [] };
  const panel = () => data.panels[state.panel];
  const armOf = (key) => panel().arms.find((arm) => arm.key === key);
  const number = (value, digits = 3) => (value === null || value === undefined ? "—" : value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−"));
  // The end is kept too, because labels of one sweep often differ only there.
  const short = (text) => (text.length <= 28 ? text : `${text.slice(0, 14)}…${text.slice(-13)}`);
  // So many decimals that guessing itself has two digits
  const decimalsOf = (metric) => (metric.guessing > 0 ? Math.max(3, 1 - Math.floor(Math.log10(metric.guessing))) : 3);

  function make(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function options(select, entries, chosen) {
    select.replaceChildren(...entries.map(([value, text]) => {
      const option = make("option", { value }, text);
      option.selected = value === chosen;
      return option;
    }));
  }

  // --- charts ------------------------------------------------------------------------------------

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    return { ink: color("ink"), muted: color("muted"), line: color("line"), paper: color("paper") };
  }

  const colorOf = (arm, colors) => arm.color ?? colors.ink;

  function shownText(values, digits = 3) {
    const [mean, low, high] = values;
    return low === null ? number(mean, digits) : `${number(mean, digits)} [${number(low, digits)}, ${number(high, digits)}]`;
  }

  function corners(rows) {
    const proved = rows.filter((row) => row.family === "guaranteed");
    const beats = (a, b) => a !== b && a.leak <= b.leak && a.gain >= b.gain && (a.leak < b.leak || a.gain > b.gain);
    const best = proved.filter((row) => !proved.some((other) => beats(other, row)));
    return best.length > 1 ? best.sort((a, b) => a.leak - b.leak || a.gain - b.gain) : [];
  }

  function tradeoffRows(metric, isLog, colors) {
    const least = isLog && metric.guessing ? 0.4 * metric.guessing : -Infinity;
    const rows = [];
    for (const arm of panel().arms) {
      const x = arm.values[metric.key];
      const y = arm.values[state.utility];
      if (!x || !y) continue;
      const ends = (values, floor) => [values[1], values[2]].map((end) => Math.max(end === null ? values[0] : end, floor));
      const [x_low, x_high] = ends(x, least);
      const [y_low, y_high] = ends(y, -Infinity);
      const tip = { Arm: arm.name, [metric.name]: shownText(x, decimalsOf(metric)), "Test accuracy": arm.values.accuracy ? shownText(arm.values.accuracy) : "—" };
      if (arm.values.time) tip["Training time, times undefended"] = shownText(arm.values.time, 2);
      tip["ε proved"] = arm.epsilon;
      rows.push({
        arm: arm.key, name: short(arm.name), family: arm.family, color: colorOf(arm, colors), shape: data.markers[arm.marker], tip,
        x: Math.max(x[0], least), x_low, x_high, y: y[0], y_low, y_high,
        guess: metric.guessing === null ? x[0] : Math.max(metric.guessing, least),
        leak: Math.max(x[0], metric.guessing ?? -Infinity), gain: state.utility === "time" ? -y[0] : y[0],
      });
    }
    return rows;
  }

  function drawn(element, spec, values, signals, colors) {
    const made = structuredClone(spec);
    made.width = Math.max(260, element.clientWidth - 4);
    made.height = Math.round(Math.min(430, Math.max(290, made.width * 0.72)));
    for (const set of made.data) set.values = values[set.name] ?? [];
    for (const signal of made.signals) if (signal.name in signals) signal.value = signals[signal.name];
    made.config = {
      background: null,
      axis: { labelColor: colors.ink, titleColor: colors.ink, domainColor: colors.muted, tickColor: colors.muted, gridColor: colors.line, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 },
      text: { font: "system-ui, sans-serif" },
    };
    return window.vegaEmbed(element, made, { mode: "vega", renderer: "svg", actions: false, ast: false, tooltip: { theme: isDark.matches ? "dark" : "light" } })
      .then((result) => {
        result.view.addEventListener("click", (event, item) => {
          const key = item?.datum?.arm ?? item?.datum?.datum?.arm;
          if (key) choose(key === state.arm ? "" : key);
        });
        state.views.push(result.view);
        if (signals.selected !== state.arm) result.view.signal("selected", state.arm).run();  // chosen while it was drawn
        return result;
      });
  }

  const isDark = window.matchMedia("(prefers-color-scheme: dark)");

  async function draw() {
    for (const view of state.views.splice(0)) view.finalize();
    const now = panel();
    if (!now) return;
    const colors = theme();
    const shared = { ink: colors.ink, paper: colors.paper, muted: colors.muted, selected: state.arm };
    const section = document.getElementById(now.key);
    const metric = now.metrics.find((one) => one.key === state.metric);
    const box = find(".chart.tradeoff", section);
    const isLog = state.scale === "log" && metric !== undefined;
    const rows = metric ? tradeoffRows(metric, isLog, colors) : [];
    if (rows.length) {
      const spec = structuredClone(data.specs.tradeoff);
      spec.scales[0].type = isLog ? "log" : "linear";
      if (!isLog) delete spec.scales[0].base;
      const utility = state.utility === "accuracy" ? "Test accuracy (higher is better ↑)" : "Training time, times undefended (lower is better ↓)";
      spec.description = `${now.label}. ${spec.description}`;
      const line = corners(rows);
      await drawn(box, spec, { arms: rows, corners: line }, { ...shared, guessing: metric.guessing, x_title: `${metric.name} (← lower is better)`, y_title: utility }, colors);
    } else {
      box.replaceChildren(make("p", { class: "none" }, "No arm has both of these."));
    }
    const curves = document.getElementById("curves");
    curves.hidden = !now.roc;
    if (now.roc) await drawRoc(now, find(".chart.roc", curves), shared, colors);
  }

  async function drawRoc(now, box, shared, colors) {
    const lowest = now.roc.fpr[0];
    const values = [];
    for (const arm of now.arms) {
      (now.roc.tpr[arm.key] ?? []).forEach((tpr, at) => {
        const fpr = now.roc.fpr[at];
        values.push({ arm: arm.key, fpr, tpr: Math.max(tpr, lowest / 2), color: colorOf(arm, colors), dash: arm.dash, tip: { Arm: arm.name, FPR: number(fpr, 4), TPR: number(tpr, 4) } });
      });
    }
    const spec = structuredClone(data.specs.roc);
    spec.description = `${now.label}. ${spec.description}`;
    await drawn(box, spec, { curves: values }, { ...shared, lowest }, colors);
    find("#curves .legend").replaceChildren(...now.arms.filter((arm) => now.roc.tpr[arm.key]).map((arm) => {
      const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      swatch.setAttribute("viewBox", "0 0 30 8");
      swatch.setAttribute("aria-hidden", "true");
      swatch.innerHTML = `<line x1="0" x2="30" y1="4" y2="4" stroke-width="2.5"/>`;
      swatch.firstChild.setAttribute("stroke", colorOf(arm, colors));
      swatch.firstChild.setAttribute("stroke-dasharray", arm.dash.join(" "));
      const button = make("button", { type: "button", "aria-pressed": String(arm.key === state.arm) }, swatch, short(arm.name));
      button.addEventListener("click", () => choose(arm.key === state.arm ? "" : arm.key));
      button.dataset.arm = arm.key;
      return make("li", {}, button);
    }));
  }

  // --- one arm, everywhere -----------------------------------------------------------------------

  function choose(key) {
    state.arm = key;
    for (const view of state.views) view.signal("selected", key).run();
    for (const row of all("table.arms tr[data-arm]")) {
      row.classList.toggle("picked", row.dataset.arm === key);
      find(".pick", row).setAttribute("aria-pressed", String(row.dataset.arm === key));
    }
    for (const button of all("#curves .legend button")) button.setAttribute("aria-pressed", String(button.dataset.arm === key));
    drill(key ? armOf(key) : undefined);
  }

  const SEED_COLUMNS = [
    ["seed", "Seed", 0], ["accuracy", "Test accuracy", 3], ["train_accuracy", "Training accuracy", 3], ["auc", "AUC", 3],
    ["own-0.001", "TPR at 0.1 % FPR", 4], ["own-0.01", "TPR at 1 % FPR", 3], ["own-0.1", "TPR at 10 % FPR", 3], ["epsilon", "ε", 2], ["time", "Training time (s)", 1],
  ];

  function drill(arm) {
    const box = document.getElementById("drill");
    box.hidden = !arm;
    if (!arm) return;
    find("h3", box).textContent = `${arm.name}, ${panel().label}`;
    find(".guarantee", box).textContent = `Guarantee: ${arm.guarantee}.`;
    const shown = SEED_COLUMNS.filter(([key]) => arm.seeds.some((seed) => seed[key] !== null));
    const head = make("tr", {}, ...shown.map(([, name]) => make("th", { scope: "col" }, name)));
    const body = arm.seeds.map((seed) => make("tr", {}, ...shown.map(([key, , digits]) => make("td", seed[key] === null ? {} : { "data-v": seed[key] }, number(seed[key], digits)))));
    const table = make("table", { class: "data", "data-name": `seeds-${arm.key}` }, make("thead", {}, head), make("tbody", {}, ...body));
    find(".seeds", box).replaceChildren(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Seeds of ${arm.name}` }, table));
    furnish(table);
    const pictures = find(`.arm[data-panel="${panel().key}"][data-arm="${CSS.escape(arm.key)}"]`);
    const copies = pictures ? [make("h4", {}, "Most exposed examples"), make("div", { class: "arm" }, ...[...pictures.children].map((child) => child.cloneNode(true)))] : [];
    find(".examples", box).replaceChildren(...copies);
  }

  // --- tables ------------------------------------------------------------------------------------

  function cellText(cell) {
    const lines = [...cell.childNodes]
      .filter((node) => !(node.nodeType === 1 && node.matches("svg")))
      .map((node) => node.textContent.trim());
    return lines.filter(Boolean).join(" ").replace(/\s+/g, " ");
  }

  const LATEX = { "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", _: "\\_", "{": "\\{", "}": "\\}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "ε": "$\\varepsilon$", "δ": "$\\delta$", "±": "$\\pm$", "−": "$-$", "×": "$\\times$", "≤": "$\\leq$", "Δ": "$\\Delta$", "—": "---", "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", "†": "$\\dagger$" };
  const latex = (text) => [...text].map((letter) => LATEX[letter] ?? letter).join("");

  const FORMATS = {
    // A spreadsheet takes text that begins with = or @ for a formula; a quote before it keeps it text.
    CSV: ([head, ...rows]) => [head, ...rows].map((row) => row.map((cell) => cell.replace(/^(?=[=@])/, "'")).map((text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)).join(",")).join("\n"),
    Markdown: ([head, ...rows]) => [head, head.map(() => "---"), ...rows].map((row) => `| ${row.map((text) => text.replace(/[\\|<]/g, "\\$&")).join(" | ")} |`).join("\n"),
    LaTeX: ([head, ...rows]) => {
      const line = (row) => `${row.map(latex).join(" & ")} \\\\`;
      return [`\\begin{tabular}{l${"r".repeat(head.length - 1)}}`, "\\toprule", line(head), "\\midrule", ...rows.map(line), "\\bottomrule", "\\end{tabular}"].join("\n");
    },
  };

  function cellsOf(table) {
    const rows = all("tr", table).filter((row) => !row.hidden);
    return rows.map((row) => [...row.cells].map(cellText));
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = make("textarea", {});
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
    return true;
  }

  function sortBy(table, at, header) {
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of all("thead th", table)) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.classList.add("sorted");
    const key = (row) => {
      const cell = row.cells[at];
      if ("v" in cell.dataset) return cell.dataset.v === "" ? null : Number(cell.dataset.v);
      const text = cellText(cell);
      return text === "—" || text === "" ? null : text;
    };
    const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
    const rows = all("tbody tr", table).map((row) => [key(row), row]);
    rows.sort(([a], [b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : down ? compare(b, a) : compare(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  const FEWEST_ROWS_TO_FILTER = 6;

  function furnish(table) {
    all("thead th", table).forEach((header, at) => {
      const button = make("button", { type: "button", class: "sort" }, ...header.childNodes);
      button.addEventListener("click", () => sortBy(table, at, header));
      header.replaceChildren(button);
    });
    const said = make("span", { class: "said", role: "status" });
    const buttons = Object.entries(FORMATS).map(([name, format]) => {
      const button = make("button", { type: "button", "data-format": name }, name);
      button.addEventListener("click", async () => {
        said.textContent = (await copy(format(cellsOf(table)))) ? `${name} copied` : "The browser refused to copy.";
      });
      return button;
    });
    const tools = make("div", { class: "tools" });
    if (all("tbody tr", table).length >= FEWEST_ROWS_TO_FILTER) {
      const filter = make("input", { type: "search", placeholder: "Filter rows", "aria-label": "Filter the rows of this table" });
      filter.addEventListener("input", () => {
        const wanted = filter.value.trim().toLowerCase().split(/\s+/);
        for (const row of all("tbody tr", table)) row.hidden = !wanted.every((word) => row.textContent.toLowerCase().includes(word));
        table.classList.toggle("sorted", filter.value !== "" || find("[aria-sort]", table) !== null);
      });
      tools.append(filter);
    }
    tools.append("Copy as", ...buttons, said);
    (table.closest(".scroll") ?? table).after(tools);
  }

  // --- controls ----------------------------------------------------------------------------------

  function show(index) {
    state.panel = index;
    const now = panel();
    for (const one of data.panels) document.getElementById(one.key).hidden = one !== now;
    for (const button of all("[data-show]")) button.setAttribute("aria-pressed", String(button.dataset.show === now.key));
    const datasets = [...new Set(data.panels.map((one) => one.dataset))];
    const settings = data.panels.filter((one) => one.dataset === now.dataset);
    options(find("#dataset"), datasets.map((name) => [name, name]), now.dataset);
    options(find("#setting"), settings.map((one) => [one.key, one.setting || "the only one"]), now.key);
    find(".of-datasets").hidden = datasets.length < 2;
    find(".of-settings").hidden = settings.length < 2;
    if (!now.metrics.some((metric) => metric.key === state.metric)) {
      state.metric = now.metrics[0]?.key ?? null;
      state.scale = null;
    }
    options(find("#metric"), now.metrics.map((metric) => [metric.key, metric.name]), state.metric);
    find(".left", document.getElementById(now.key)).append(find("#curves"));
    if (!armOf(state.arm)) state.arm = "";
    measureBy(state.metric);
    choose(state.arm);
  }

  function measureBy(key) {
    state.metric = key;
    const metric = panel().metrics.find((one) => one.key === key);
    // A logarithmic axis needs values above zero, so only rates may have one.
    const may = Boolean(metric && metric.guessing && metric.key !== "auc");
    state.scale = may && (state.scale ?? (metric.log ? "log" : "linear")) === "log" ? "log" : "linear";
    find("#scale").value = state.scale;
    find("#scale").disabled = !may;
    return draw();
  }

  function start() {
    document.documentElement.classList.add("js-on");
    for (const table of all("table.data")) furnish(table);
    if (!data.panels.length) return;
    for (const element of all(".js")) if (!["drill", "curves"].includes(element.id)) element.hidden = false;
    for (const button of all("[data-show]")) button.addEventListener("click", () => show(data.panels.findIndex((one) => one.key === button.dataset.show)));
    find("#dataset").addEventListener("change", (event) => show(data.panels.findIndex((one) => one.dataset === event.target.value)));
    find("#setting").addEventListener("change", (event) => show(data.panels.findIndex((one) => one.key === event.target.value)));
    find("#metric").addEventListener("change", (event) => { state.scale = null; measureBy(event.target.value); });
    find("#utility").addEventListener("change", (event) => { state.utility = event.target.value; draw(); });
    find("#scale").addEventListener("change", (event) => { state.scale = event.target.value; draw(); });
    find("#unpick").addEventListener("click", () => choose(""));
    for (const row of all("table.arms tr[data-arm]")) {
      row.addEventListener("click", () => choose(row.dataset.arm === state.arm ? "" : row.dataset.arm));
    }
    document.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.arm) choose(""); });
    isDark.addEventListener("change", draw);
    let width = 0;
    const observer = new ResizeObserver(() => {
      const now = find(".left", document.getElementById(panel().key)).clientWidth;
      if (now && now !== width) { width = now; draw(); }
    });
    for (const left of all(".left")) observer.observe(left);
    show(0);
  }

  start();
})();
