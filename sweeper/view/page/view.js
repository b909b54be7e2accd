/* Asks the server for the state every two seconds and shows it. All text from results is set as text, never as HTML. */
"use strict";
(() => {
  const EVERY_MS = 2000;
  const find = (selector, within = document) => within.querySelector(selector);

  function make(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children.flat());
    return made;
  }

  function duration(seconds) {
    const minutes = Math.floor(Math.round(seconds) / 60);
    if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
    return minutes ? `${minutes} min ${String(Math.round(seconds) % 60).padStart(2, "0")} s` : `${Math.round(seconds)} s`;
  }

  const number = (value, digits = 3) => (value === null ? "—" : value.toFixed(digits).replace("-", "−"));

  function track(counts, total, kind = "") {
    const parts = ["done", "running", "failed"].map((name) => {
      const part = make("i", { class: name });
      part.style.width = `${(100 * (counts[name] ?? 0)) / Math.max(1, total)}%`;
      return part;
    });
    return make("div", { class: `track ${kind}`, role: "img", "aria-label": `${counts.done} of ${total} done` }, parts);
  }

  function table(head, rows, numbers = []) {
    const cells = (tag, row) => row.map((cell, at) => make(at === 0 && tag === "td" ? "th" : tag, { ...(tag === "th" ? { scope: "col" } : at === 0 ? { scope: "row" } : {}), ...(numbers.includes(at) ? { class: "number" } : {}) }, cell));
    return make("table", {}, make("thead", {}, make("tr", {}, cells("th", head))), make("tbody", {}, rows.map((row) => make("tr", {}, cells("td", row)))));
  }

  // --- curves of a running trial -----------------------------------------------------------------

  function curve(epochs, lines, caption) {
    const shown = lines.filter(([, , values]) => values && values.length > 1);
    if (!shown.length) return [];
    const all = shown.flatMap(([, , values]) => values);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const at = (value, from, to, size) => (to > from ? ((value - from) / (to - from)) * size : size / 2);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 240 64");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${caption}, from ${number(low)} to ${number(high)}`);
    for (const [kind, , values] of shown) {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      line.setAttribute("class", kind);
      line.setAttribute("vector-effect", "non-scaling-stroke");
      line.setAttribute("points", values.map((value, place) => `${at(epochs[place], epochs[0], epochs[epochs.length - 1], 236) + 2},${62 - at(value, low, high, 60)}`).join(" "));
      svg.append(line);
    }
    const ends = shown.flatMap(([kind, name, values]) => [" ", make("span", { class: `key ${kind}` }, `${name} ${number(values[values.length - 1])}`)]);
    return [make("figure", {}, svg, make("figcaption", {}, `${caption}:`, ends))];
  }

  function running(one) {
    const { epoch = [], train_loss, test_loss, train_accuracy, test_accuracy } = one.curve;
    const curves = [
      ...curve(epoch, [["train", "training", train_loss], ["test", "test", test_loss]], "Loss"),
      ...curve(epoch, [["train", "training", train_accuracy], ["test", "test", test_accuracy]], "Accuracy"),
    ];
    const log = make("button", { type: "button" }, "log");
    log.addEventListener("click", () => showLog(one.place, one.target_id, one.title));
    return make("div", { class: "run" },
      make("p", {}, make("strong", {}, one.title), make("span", {}, `${one.stage}, ${Math.round(100 * one.fraction)} %, ${duration(one.seconds)}${one.node ? `, on ${one.node}` : ""} `, log)),
      make("div", { class: "curves" }, curves));
  }

  async function showLog(place, id, title) {
    const dialog = find("#log");
    find("h2", dialog).textContent = title;
    find("pre", dialog).textContent = "reading …";
    if (!dialog.open) dialog.showModal();
    const answer = await fetch(`log/${place}/${id}`);
    const pre = find("pre", dialog);
    pre.textContent = await answer.text();
    pre.scrollTop = pre.scrollHeight;
  }

  // --- one sweep ---------------------------------------------------------------------------------

  function usage(launches) {
    const NAMES = { CPU: "CPU cores", GPU: "GPUs", memory: "GB of memory", object_store_memory: "GB of Ray's object store" };
    return launches.map((launch) => {
      const uses = Object.entries(launch.resources).map(([name, [used, total]]) => {
        const unit = name.endsWith("memory") ? 1e9 : 1;
        return `${(used / unit).toFixed(unit > 1 ? 1 : 0)} of ${(total / unit).toFixed(unit > 1 ? 1 : 0)} ${NAMES[name]}`;
      });
      return make("p", { class: "note" }, `Launched by ${launch.name}, ${launch.started_at}: ${launch.n_running} running. ${uses.length ? `In use: ${uses.join(", ")}.` : ""}`);
    });
  }

  function failures(sweep, place) {
    if (!sweep.failures.length) return [make("p", { class: "none" }, "Nothing failed.")];
    const causes = Object.entries(sweep.causes).map(([cause, count]) => `${cause} ${count}`).join(", ");
    const listed = sweep.failures.map((failure) => {
      const lines = failure.error.trim().split("\n");
      const log = make("button", { type: "button" }, "log");
      log.addEventListener("click", () => showLog(place, failure.target_id, `${failure.arm || failure.target_id}`));
      const of = `${failure.target_id} ${failure.attack ?? ""}`;
      return make("details", { "data-of": of }, make("summary", {}, `${failure.cause ?? "error"}: ${failure.arm} ${of} ${lines[0]}`), make("pre", { tabindex: "0" }, failure.error), log);
    });
    const more = sweep.n_failures - sweep.failures.length;
    return [make("p", {}, `By cause: ${causes}.`), ...listed, ...(more > 0 ? [make("p", { class: "note" }, `and ${more} more`)] : [])];
  }

  function fill(section, sweep, place) {
    const body = find(".body", section);
    const opened = new Set([...section.querySelectorAll("details[open]")].map((one) => one.dataset.of));
    if (sweep.trials === undefined) {
      body.replaceChildren(make("p", { class: "problem" }, sweep.problem));
      return;
    }
    const rate = sweep.per_hour === null ? "" : `; ${sweep.per_hour.toPrecision(3)} trials an hour recently`;
    const left = sweep.left && sweep.left_s !== null ? `, about ${duration(sweep.left_s)} left` : "";
    const how = sweep.launches.length ? "" : sweep.left || sweep.failed ? " No launch is working on it now; the same command continues from here." : " The sweep is finished.";
    const arms = sweep.arms.map((arm) => [arm.name, track(arm, arm.total), `${arm.done} of ${arm.total}`, arm.running || "", arm.failed || ""]);
    body.replaceChildren(
      ...(sweep.problem ? [make("p", { class: "problem" }, sweep.problem)] : []),
      make("p", { class: "sum" }, `${sweep.done} of ${sweep.trials} trials done, ${sweep.failed} failed${rate}${left}.${how}`),
      track({ done: sweep.done, failed: sweep.failed, running: sweep.running.length }, sweep.trials, "whole"),
      ...(sweep.comparisons ? [make("p", { class: "note" }, `${sweep.compared} of ${sweep.comparisons} comparisons done.`)] : []),
      ...usage(sweep.launches),
      make("h3", {}, "Running"),
      ...(sweep.running.length ? sweep.running.map((one) => running({ ...one, place })) : [make("p", { class: "none" }, "Nothing runs now.")]),
      make("h3", {}, "Arms"),
      arms.length ? make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Arms" }, table(["Arm", "", "Done", "Running", "Failed"], arms, [2, 3, 4])) : make("p", { class: "none" }, "Launch the sweep again to see its arms."),
      make("h3", {}, "Failures"),
      ...failures(sweep, place),
    );
    for (const one of section.querySelectorAll("details")) one.open = opened.has(one.dataset.of);
    const { version, is_making, problem } = sweep.report;
    const state = find(".report-state", section);
    state.textContent = problem ? problem : version === 0 ? (is_making ? "The report is being made." : "There is no report yet: no trial is done.") : is_making ? "Of what is recorded by now; a newer one is being made." : "Of what is recorded by now.";
    if (version && section.dataset.version !== String(version)) {
      section.dataset.version = version;
      const link = `report/${place}/report.html?${version}`;
      const frame = make("iframe", { title: `Report of ${sweep.location}`, src: link, sandbox: "allow-scripts allow-popups" });
      find(".report", section).replaceChildren(make("p", { class: "note" }, make("a", { href: link, target: "_blank", rel: "noopener" }, "Open it in a tab of its own")), frame);
      compare();
    }
  }

  async function compare() {
    const section = find("#comparison");
    if (document.querySelectorAll("#sweeps > section").length < 2) return;
    const answer = await fetch("comparison");
    if (!answer.ok) return;
    const NAMES = { test_accuracy: "test accuracy", auc: "attack AUC" };
    const ends = ([mean, low, high], signed = false) => `${signed && mean > 0 ? "+" : ""}${number(mean)}${low === null ? "" : ` [${number(low)}, ${number(high)}]`}`;
    const found = await answer.json();
    const [first, ...others] = [...document.querySelectorAll("#sweeps > section > h2")].map((one) => one.textContent);
    const tables = found.flatMap((rows, place) => {
      const heading = make("h3", {}, `${first} and ${others[place]}`);
      if (!rows.length) return [heading, make("p", { class: "none" }, "No arm is in both on the same dataset and setting.")];
      return [heading, table(["Arm", "Where", "Quantity", "First", "Second", "Difference", "Second is"], rows.map((row) => [row.arm, row.where, NAMES[row.column], ends(row.first), ends(row.second), ends(row.difference, true), make("span", { class: row.outcome }, row.outcome)]), [3, 4, 5])];
    });
    section.hidden = false;
    find(".scroll", section).replaceChildren(...tables);
  }

  function sectionOf(sweep, place) {
    const known = find(`#sweep-${place}`);
    if (known) return known;
    const made = make("section", { id: `sweep-${place}`, "aria-label": sweep.location },
      make("h2", {}, sweep.location), make("div", { class: "body" }),
      make("h3", {}, "Report"), make("p", { class: "note report-state" }), make("div", { class: "report" }));
    find("#sweeps").append(made);
    return made;
  }

  /* Says it once: a screen reader reads every change aloud. */
  function say(text) {
    if (find("#alive").textContent !== text) find("#alive").textContent = text;
  }

  const known = [];

  /* Fills a section anew if anything in it changed. What was opened, focused and scrolled stays so. */
  function refill(section, sweep, place) {
    const { age_s, ...content } = sweep;
    const text = JSON.stringify(content);
    if (known[place] === text) return;
    known[place] = text;
    const parts = "button, summary, pre, [tabindex]";
    const at = [...section.querySelectorAll(parts)].indexOf(document.activeElement);
    const scrolled = [...section.querySelectorAll(".scroll, pre")].map((one) => [one.scrollLeft, one.scrollTop]);
    fill(section, sweep, place);
    if (at >= 0) section.querySelectorAll(parts)[at]?.focus({ preventScroll: true });
    [...section.querySelectorAll(".scroll, pre")].forEach((one, index) => {
      [one.scrollLeft, one.scrollTop] = scrolled[index] ?? [0, 0];
    });
  }

  async function look() {
    try {
      const answer = await fetch("state");
      if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
      const sweeps = await answer.json();
      sweeps.forEach((sweep, place) => refill(sectionOf(sweep, place), sweep, place));
      say("connected");
      const oldest = Math.max(0, ...sweeps.map((sweep) => sweep.age_s));
      find("#when").textContent = `, as of ${new Date(Date.now() - 1000 * oldest).toLocaleTimeString()}`;
    } catch (error) {
      say(`not connected (${error.message}); is “sweeper view” still running?`);
      find("#when").textContent = "";
    }
    setTimeout(look, EVERY_MS);
  }

  look();
})();
