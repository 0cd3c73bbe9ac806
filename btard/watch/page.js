"use strict";
// Everything that others chose goes into the page as text: `element` sets textContent, nothing sets HTML.
(() => {
  const CHARTS = ["loss", "accuracy", "peers", "seconds", "bytes"];
  const LIVE = 2000; // milliseconds between two questions for news
  const holder = document.getElementById("data");
  const live = holder.dataset.live === "yes";
  let data = JSON.parse(holder.textContent);
  let picked = 0; // a place in data.steps
  let views = {};
  let drawn = 0;
  const $ = (id) => document.getElementById(id);

  function element(tag, text, attributes, ...children) {
    const made = document.createElement(tag);
    if (text !== null && text !== undefined) made.textContent = text;
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }
  const number = (value) => (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6) || value === 0
    ? String(+value.toPrecision(4)) : value.toExponential(2);
  const seconds = (value) => (value < 1 ? `${number(value * 1000)} ms` : `${number(value)} s`);
  const bytes = (value) => (value < 1e3 ? `${Math.round(value)} B` : value < 1e6 ? `${number(value / 1e3)} kB` : `${number(value / 1e6)} MB`);
  function peersText(peers) {
    const sorted = [...peers].sort((a, b) => a - b), runs = [];
    for (const peer of sorted) {
      const last = runs[runs.length - 1];
      if (last && last[1] === peer - 1) last[1] = peer; else runs.push([peer, peer]);
    }
    return runs.map(([a, b]) => (a === b ? `${a}` : b === a + 1 ? `${a}, ${b}` : `${a}–${b}`)).join(", ");
  }
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

  // The head of the page.
  function head() {
    $("title").textContent = data.title;
    const planned = data.steps_planned === null ? "" : ` of ${data.steps_planned}`;
    const state = data.finished ? "finished" : live ? "live" : "not finished";
    $("state").textContent = `${state}: ${data.steps_done}${planned} steps; read ${data.read_at}`;
    $("facts").replaceChildren(...data.facts.map(([label, value]) =>
      element("div", null, {}, element("dt", label), element("dd", value))));
    const notes = data.notes.map((note) => element("li", note));
    $("notes").replaceChildren(...(notes.length ? [element("ul", null, {}, ...notes)] : []));
    $("star").hidden = !data.attackers_by;
    $("star").textContent = `* attacks, by ${data.attackers_by}`;
    $("bytes-note").textContent = data.charts.bytes
      ? `Bytes are those that ${data.bytes_of} sent, a copy for each recipient. Seconds are those of the process that wrote the files, for all peers in it.` : "";
  }

  // Charts: colours by name, looked up in the style, so that they follow light and dark.
  function coloured(spec) {
    const style = getComputedStyle(document.documentElement);
    const look = (value) => {
      if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
      if (Array.isArray(value)) return value.map(look);
      if (value && typeof value === "object") {
        return Object.fromEntries(Object.entries(value).map(([key, of]) => [key, key === "values" ? of : look(of)]));
      }
      return value;
    };
    return look(spec);
  }
  function config() {
    return coloured({
      background: "transparent", view: { stroke: null }, font: "system-ui, sans-serif",
      axis: { labelColor: "--soft", titleColor: "--soft", gridColor: "--edge", domainColor: "--edge", tickColor: "--edge", labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400 },
      legend: { labelColor: "--fg", titleColor: "--fg" },
    });
  }
  const size = (spec) => [spec, ...(spec.layer || [])].reduce((sum, part) => sum + ((part.data && part.data.values) || []).length, 0);
  async function draw() {
    const mine = ++drawn;
    for (const name of CHARTS) {
      const spec = data.charts[name], place = $(name);
      place.hidden = !spec;
      if (!spec) { place.replaceChildren(); delete views[name]; continue; }
      const room = element("div", null, { style: "width:100%" });
      place.append(room);
      const options = { ast: true, actions: false, renderer: size(spec) > 3000 ? "canvas" : "svg", config: config() };
      const result = await vegaEmbed(room, coloured(spec), options);
      if (mine !== drawn) { result.finalize(); room.remove(); return; }
      for (const old of [...place.children]) if (old !== room) old.remove();
      if (views[name]) views[name].finalize();
      views[name] = result.view;
      if (["loss", "accuracy", "peers"].includes(name)) {
        result.view.addEventListener("click", (event) => pickAt(result.view, event));
      }
    }
    mark();
    document.documentElement.dataset.drawn = String(mine);
  }
  function pickAt(view, event) {
    const box = view.container().querySelector("svg, canvas").getBoundingClientRect();
    const step = view.scale("x").invert(event.clientX - box.left - view.origin()[0]);
    pick(nearest(step));
  }
  function mark() {
    const now = data.steps[picked];
    for (const name of ["loss", "accuracy", "peers"]) {
      if (views[name] && now) views[name].signal("at", now.step).runAsync();
    }
  }

  // The picked step.
  function nearest(step) {
    let best = 0;
    data.steps.forEach((row, place) => {
      if (Math.abs(row.step - step) < Math.abs(data.steps[best].step - step)) best = place;
    });
    return best;
  }
  function pick(place, keepHash) {
    if (!data.steps.length) return;
    picked = Math.max(0, Math.min(data.steps.length - 1, place));
    const step = data.steps[picked].step;
    $("slider").max = data.steps.length - 1;
    $("slider").value = picked;
    $("slider").setAttribute("aria-valuetext", `step ${step}`);
    $("number").value = step;
    $("number").max = data.steps[data.steps.length - 1].step;
    if (!keepHash) history.replaceState(null, "", `#step=${step}`);
    showStep(data.steps[picked]);
    mark();
  }
  function showStep(row) {
    $("step-title").textContent = `Step ${row.step}`;
    const facts = [];
    const fact = (label, value) => facts.push(element("div", null, {}, element("dt", label), element("dd", value)));
    if (row.loss !== undefined) fact("loss", number(row.loss));
    if (row.test_accuracy !== undefined) fact("test accuracy", `${(100 * row.test_accuracy).toFixed(2)} %`);
    if (row.validation_loss !== undefined) fact("validation loss", number(row.validation_loss));
    if (row.active !== undefined) fact("peers after it", String(row.active));
    if (row.lr !== undefined) fact("learning rate", number(row.lr));
    if (row.tau !== undefined) fact("tau", number(row.tau));
    if (row.sent !== undefined) fact("bytes, all peers", bytes(row.sent));
    const parts = [element("dl", null, { class: "facts" }, ...facts)];
    const by = (letter) => [...(row.roles || "")].flatMap((said, peer) => (said === letter ? [peer] : []));
    const say = (text) => parts.push(element("p", text));
    if (row.roles) {
      say(`Worked: ${peersText(by("w")) || "nobody"}. ` + (row.checks ? row.checks.map(([a, b]) => `Peer ${a} checked what peer ${b} did in the step before.`).join(" ") : "Nobody validated."));
      if (by("i").length) say(`Here without a gradient: ${peersText(by("i"))}.`);
      if (by("a").length) say(`Away: ${peersText(by("a"))}.`);
      if (by("p").length) say(`On probation: ${peersText(by("p"))}.`);
    } else say("Who worked, validated or was away in this step is not recorded.");
    if (row.accused) say(`A claim was tried about: ${peersText(row.accused)}.`);
    if (row.skipped) say(`Parts ${peersText(row.skipped)} got a zero gradient: their aggregate could not be trusted, or their owner was away.`);
    if (row.back_to !== undefined) say(`At its end all went back to the state at the beginning of step ${row.back_to}.`);
    const entries = data.entries.filter((entry) => entry.step === row.step);
    for (const entry of entries) parts.push(element("p", null, {}, element("strong", titleOf(entry))));
    const body = element("tbody");
    for (const phase of data.phases) {
      const took = (row.seconds || {})[phase.title], sent = (row.bytes || {})[phase.title];
      const said = (row.messages || {})[phase.title];
      if (took === undefined && sent === undefined && !said) continue;
      const owing = [...phase.owed_by].flatMap(by);
      let who = !phase.owed_by ? "" : !row.roles ? "" : peersText(owing);
      if (said) who = `on record: ${peersText(said.senders)} (${plural(said.senders.length, "peer")}, ${bytes(said.bytes)} signed)`;
      body.append(element("tr", null, {},
        element("th", phase.title, { scope: "row" }),
        element("td", phase.happens, { "data-label": "what" }),
        element("td", who, said ? {} : { "data-label": "due from" }),
        element("td", phase.fixed, { "data-label": "fixed then" }),
        element("td", took === undefined ? "" : seconds(took), { "data-label": "time", class: "n" }),
        element("td", sent === undefined ? "" : bytes(sent), { "data-label": "sent", class: "n" })));
    }
    if (body.children.length) {
      const heads = ["phase", "what happens", "due from, or on record", "fixed once it is over", "time", "sent"];
      parts.push(element("div", null, { class: "scroll" }, element("table", null, { class: "phases" },
        element("thead", null, {}, element("tr", null, {}, ...heads.map((text) => element("th", text, { scope: "col" })))), body)));
      if (!row.messages) parts.push(element("p", "The run folder keeps the signed messages of this step no longer, as it put nothing into the ledger: who is named owed a message; an omission would have been punished.", { class: "soft" }));
    } else say("Seconds and bytes of this step are not recorded.");
    $("step").replaceChildren(...parts);
  }

  // The ledger.
  function titleOf(entry) {
    if (entry.kind === "heal") return entry.meaning;
    const who = entry.removed.length ? `peer${entry.removed.length > 1 ? "s" : ""} ${peersText(entry.removed)} removed` : `peer ${entry.accused}`;
    return `step ${entry.step}: ${who}: ${entry.kind}`;
  }
  function entryCard(entry, place) {
    const rows = [];
    const row = (label, value) => { if (value) rows.push(element("dt", label), element("dd", value)); };
    if (entry.kind !== "heal") row("what", entry.meaning);
    if (entry.accusers.length || entry.claims.length) {
      const claims = entry.claims.map((claim) => `peer ${claim.by} accused peer ${claim.accused} of ${claim.kind} in step ${claim.about}${claim.part >= 0 ? `, part ${claim.part}` : ""}`);
      row("claim", claims.length ? claims.join("; ") : `peer ${peersText(entry.accusers)} accused peer ${entry.accused}, about step ${entry.about}${entry.part >= 0 ? `, part ${entry.part}` : ""}`);
    } else if (entry.kind !== "heal" && entry.removed.length) row("claim", "none: it was seen in the broadcasts, or an alarm put the part on trial");
    row("verdict", entry.kind === "heal" ? "" : entry.verdict);
    row("votes", entry.votes.map((vote) => `${vote.judges.length} ${vote.verdict} (${peersText(vote.judges)})`).join("; "));
    row("recomputed", entry.decided);
    if (entry.losses.length) row("losses", entry.losses.map(([step, loss]) => `step ${step}: ${number(loss)}`).join("; "));
    if (entry.digest) row(entry.kind === "heal" ? "state chosen" : "evidence, digest", entry.digest);
    if (entry.evidence) {
      const pieces = entry.evidence.pieces.map((piece) => `peer ${piece.by} showed ${plural(piece.pieces, "packet")} (${piece.what} of peer ${piece.of})`);
      row("evidence on record", `recorded by peer ${entry.evidence.recorded_by} on ${entry.evidence.platform || "a platform without a name"}` + (pieces.length ? `; ${pieces.join("; ")}` : "; no packet had to be shown"));
    } else if (entry.kind !== "join" && entry.kind !== "member") row("evidence on record", "none in this folder");
    row("audit", entry.audit || (data.audit ? "" : "not audited for this page; python -m btard.audit checks it"));
    if (entry.honest.length) row("honest", `peer ${peersText(entry.honest)} does not attack, by ${data.attackers_by}`);
    const button = element("button", `show step ${entry.step}`, { type: "button" });
    button.addEventListener("click", () => { pick(nearest(entry.step)); $("step-title").focus(); });
    const open = place === 0 && data.entries.length < 4 ? { open: "" } : {};
    return element("details", null, open, element("summary", null, {}, element("h3", titleOf(entry))), element("dl", null, {}, ...rows), button);
  }
  function ledger() {
    const open = new Set([...$("entries").querySelectorAll("details")].flatMap((card, place) => (card.open ? [place] : [])));
    const cards = data.entries.map(entryCard);
    cards.forEach((card, place) => { if (open.has(place)) card.open = true; });
    $("entries").replaceChildren(...(cards.length ? cards : [element("p", "No entry: nobody was removed.")]));
    $("audit").textContent = !data.audit ? "" : data.audit === "in order" ? "An audit was made for this page: each entry says what it checked." : data.audit;
  }
  function now() {
    $("now-section").hidden = !data.now.length;
    const heads = ["peer", "state", "step", "phase", "loss", "removed for"];
    const rows = data.now.map((row) => element("tr", null, {},
      ...[row.peer, row.state, row.step, row.phase, row.loss === null ? "" : number(row.loss), row.banned].map((value) => element("td", value === undefined || value === null ? "" : String(value)))));
    $("now").replaceChildren(element("table", null, {}, element("thead", null, {}, element("tr", null, {}, ...heads.map((text) => element("th", text, { scope: "col" })))), element("tbody", null, {}, ...rows)));
  }

  // Controls.
  const entryAfter = (step) => data.entries.find((entry) => entry.step > step);
  const entryBefore = (step) => data.entries.filter((entry) => entry.step < step).pop();
  const at = () => (data.steps[picked] ? data.steps[picked].step : 0);
  const jump = (entry) => { if (entry) pick(nearest(entry.step)); };
  $("picker").addEventListener("submit", (event) => event.preventDefault());
  $("slider").addEventListener("input", () => pick(Number($("slider").value)));
  $("number").addEventListener("change", () => pick(nearest(Number($("number").value))));
  $("before").addEventListener("click", () => pick(picked - 1));
  $("after").addEventListener("click", () => pick(picked + 1));
  $("before-entry").addEventListener("click", () => jump(entryBefore(at())));
  $("after-entry").addEventListener("click", () => jump(entryAfter(at())));
  function fromHash() {
    const found = /^#step=(\d{1,9})$/.exec(location.hash);
    return found ? nearest(Number(found[1])) : -1;
  }
  window.addEventListener("hashchange", () => { if (fromHash() >= 0) pick(fromHash(), true); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  function all() { head(); ledger(); now(); return draw(); }
  const removal = data.entries.find((entry) => entry.removed.length);
  picked = fromHash() >= 0 ? fromHash() : removal ? nearest(removal.step) : data.steps.length - 1;
  all();
  pick(picked, true);
  if (!data.steps.length) $("step").replaceChildren(element("p", "No step is over yet."));

  // News, where a server watches the run.
  let tag = null;
  async function ask() {
    try {
      const answer = await fetch("data.json", { headers: tag ? { "If-None-Match": tag } : {} });
      if (answer.ok) {
        const said = await answer.json();
        if (tag !== null || said.steps_done !== data.steps_done || said.finished !== data.finished) {
          const step = at(), follows = picked === data.steps.length - 1;
          data = said;
          await all();
          pick(follows ? data.steps.length - 1 : nearest(step), true);
        }
        tag = answer.headers.get("ETag");
      }
    } catch (error) {
      $("state").textContent = `no answer from the program that watches; shown is what was read ${data.read_at}`;
    }
    setTimeout(ask, LIVE);
  }
  if (live) setTimeout(ask, LIVE);
})();
