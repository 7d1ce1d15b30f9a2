// State in the address, the controls, the leaderboard and the dialog of a run.
const $ = id => document.getElementById(id);
// Whatever comes from a result file passes through here before it is HTML, or Plotly's likeness of it.
const esc = text => String(text ?? "").replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
const number = (x, digits = 3) => x == null ? "–" : x.toFixed(digits);
const percent = x => x == null ? "–" : `${(100 * x).toFixed(1)} %`;
const tokens = x => x == null ? "–" : String(+x.toPrecision(4));
const bytes = x => x == null ? "–" : x >= 1e9 ? `${(x / 1e9).toFixed(2)} GB` : x >= 1e6 ? `${(x / 1e6).toFixed(2)} MB` : `${(x / 1e3).toFixed(0)} kB`;
const narrow = () => innerWidth < 640;

async function unpacked(id) {
  const binary = Uint8Array.from(atob($(id).textContent), c => c.charCodeAt(0));
  return new Response(new Blob([binary]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
const data = JSON.parse(await unpacked("data"));
let details;
const detailsOf = async (table, run) => (await (details ??= unpacked("details").then(JSON.parse)))[table][run];

// ---- state
const DEFAULTS = { table: "0", group: "all", budget: "", trained: "", search: "", axis: "tokens", measure: "score", hold: "", hide: "",
  seeds: "", sort: "", columns: "", kind: "", one: "", two: "", task: "", draw: "", run: "" };
const read = () => ({ ...DEFAULTS, ...data.state, ...Object.fromEntries(new URLSearchParams(location.hash.replace(/^#\??/, "").includes("=") ? location.hash.replace(/^#\??/, "") : "")) });
let state = read();
function write(change) {
  state = { ...state, ...change };
  const said = Object.entries(state).filter(([key, value]) => key in DEFAULTS && value !== ({ ...DEFAULTS, ...data.state })[key]);
  history.replaceState(null, "", said.length ? `#?${new URLSearchParams(said)}` : location.pathname + location.search);
}
const setting = () => data.settings[state.table] ?? data.settings[0];
const budgets = s => [...new Set(s.runs.filter(r => !r.baseline && r.tokens != null).map(r => r.tokens))].sort((a, b) => a - b);
const budget = () => state.budget === "all" ? null : state.budget === "" ? setting().budget : +state.budget;
const groupTitle = () => (setting().groups.find(g => g[0] === state.group) ?? setting().groups[0])[1];
const words = () => state.search.toLowerCase().split(/\s+/).filter(Boolean);
const matches = r => (state.trained === "" || r.baseline || r.trained === (state.trained === "yes")) && words().every(w => r.label.toLowerCase().includes(w));
// Runs of several seeds are one row, unless each is asked for.
for (const s of data.settings) { s.members = new Set(s.seeds.flatMap(f => f.members)); s.seeds.forEach(f => { f.several = f.members.length; }); }
const runsOf = s => state.seeds === "each" || !s.seeds.length ? s.runs : [...s.runs.filter((_, at) => !s.members.has(at)), ...s.seeds];
const shown = () => runsOf(setting()).filter(matches);
const atBudget = () => shown().filter(r => r.baseline || budget() == null || r.tokens === budget());
const score = r => (r.scores[state.group] ?? [null, null])[0];
const half = r => (r.scores[state.group] ?? [null, null])[1];

// A method's rank is one more than the number of methods that are better by more than chance.
function ranks() {
  const s = setting(), out = new Map();
  if (state.group !== "all" || budget() == null) return out;
  for (const [at, run] of s.runs.entries()) if (!run.baseline && run.tokens === budget())
    out.set(run, 1 + s.pairs.filter(([, worse, , , p]) => worse === at && p != null && p < s.alpha).length);
  return out;
}

// ---- controls
function fill(id, options, value) {
  const select = $(id);
  select.replaceChildren(...options.map(([key, title]) => new Option(title, key)));
  select.value = value;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}
function controls() {
  const s = setting(), distinct = key => [...new Set(data.settings.map(x => x[key]))].map(x => [x, x]);
  fill("backbone", distinct("backbone"), s.backbone);
  fill("benchmark", [...new Set(data.settings.filter(x => x.backbone === s.backbone).map(x => x.benchmark))].map(x => [x, x]), s.benchmark);
  const alike = data.settings.map((x, at) => [String(at), x.name, x]).filter(([, , x]) => x.backbone === s.backbone && x.benchmark === s.benchmark);
  fill("table", alike, state.table);
  $("table-label").hidden = alike.length < 2;
  fill("group", s.groups, state.group);
  fill("budget", [["all", "all"], ...budgets(s).map(t => [String(t), tokens(t)])], budget() == null ? "all" : String(budget()));
  $("trained").value = state.trained;
  $("seeds").value = state.seeds;
  $("seeds-label").hidden = !s.seeds.length;
  $("search").value = state.search;
}
function choose(change) {
  const other = "table" in change && change.table !== state.table;
  write({ ...change, ...(other ? { budget: "", group: "all", sort: "", hold: "", hide: "", task: "", one: "", two: "", draw: "" } : {}) });
  if (other) controls();
  draw();
}
const first = test => String(data.settings.findIndex(test));
$("backbone").onchange = e => choose({ table: first(s => s.backbone === e.target.value) });
$("benchmark").onchange = e => choose({ table: first(s => s.backbone === setting().backbone && s.benchmark === e.target.value) });
for (const id of ["table", "group", "budget", "trained", "seeds"]) $(id).onchange = e => choose({ [id]: e.target.value });
let typing;
$("search").oninput = e => { clearTimeout(typing); typing = setTimeout(() => choose({ search: e.target.value }), 150); };

// ---- leaderboard
const split = label => { const at = label.indexOf(" ("); return at < 0 ? [label, ""] : [label.slice(0, at), label.slice(at + 2, -1)]; };
// The score as a tick on its interval; all rows on one scale.
function scoreCell(value, spread, low, high, whole) {
  if (value == null) return "–";
  const share = x => (100 * (x - low) / Math.max(1e-9, high - low)).toFixed(2);
  if (value < low) return `${number(value)}<span class="bar below" title="below the scale of the bars">‹</span>`;
  const range = spread == null ? "" : `<i style="left:${share(value - spread)}%;width:${(100 * 2 * spread / Math.max(1e-9, high - low)).toFixed(2)}%"></i>`;
  return `${number(value)}<span class="bar">${whole == null ? "" : `<u style="left:${share(whole)}%"></u>`}${range}<b style="left:${share(value)}%"></b></span>`;
}
let board, jq;
async function leaderboard() {
  if (!jq) {
    const url = URL.createObjectURL(new Blob([await unpacked("datatables")], { type: "text/javascript" }));
    jq = (await import(url)).jQuery;
    URL.revokeObjectURL(url);
  }
  const s = setting(), rank = ranks(), rows = atBudget(), known = rows.filter(r => score(r) != null);
  // Of many rows bars span the better half: far worse scores would leave them no room.
  const better = known.map(score).sort((a, b) => b - a).slice(0, Math.max(12, Math.ceil(known.length / 2))).at(-1);
  const low = Math.min(...known.filter(r => score(r) >= better).map(r => score(r) - (half(r) ?? 0))), high = Math.max(...known.map(r => score(r) + (half(r) ?? 0))), whole = known.filter(r => r.baseline).map(score)[0];
  const numeric = (title, get, show, extra = {}) => ({ title, data: null, render: (_, type, r) => type === "display" ? show(get(r), r) : get(r) ?? -Infinity, ...extra });
  const columns = [
    { title: "rank", name: "rank", data: null, render: (_, type, r) => type === "display" ? rank.get(r) ?? "–" : rank.get(r) ?? 1e9 },
    { title: "method", name: "method", className: "text name", data: null, render: (_, type, r) => { const [name, options] = split(r.label); return type === "display" ? `${esc(name)}${options ? ` <span class="options">${esc(options)}</span>` : ""}${r.several ? ` <span class="options">mean of ${r.several} seeds</span>` : ""}` : r.label; } },
    numeric("tokens", r => r.tokens, tokens, { name: "tokens" }),
    numeric("score", score, (x, r) => scoreCell(x, half(r), low, high, whole), { name: "score" }),
    numeric("± 95 %", half, (x, r) => r.several ? `${number(x)} sd` : number(x), { name: "interval" }),
    numeric("retained", r => r.retained[state.group], percent, { name: "retained" }),
    numeric("agreement", r => r.agreement, percent, { name: "agreement" }),
    numeric("FLOPs", r => r.flops, percent, { name: "flops" }),
    numeric("first token", r => r.faster, x => x == null ? "–" : `${x.toFixed(2)}×`, { name: "speed" }),
    numeric("ms", r => r.ttft, x => number(x, 1), { name: "ttft" }),
    numeric("tokens/s", r => r.throughput, x => number(x, 0), { name: "throughput" }),
    numeric("KV cache", r => r.bytes, bytes, { name: "bytes" }),
    { title: "trained", name: "trained", data: null, render: (_, type, r) => r.baseline ? "" : r.trained ? "yes" : "no" },
    ...s.groups.filter(g => g[0] !== state.group).map(([key, title]) => numeric(esc(title), r => (r.scores[key] ?? [])[0], x => number(x), { name: key })),
  ];
  const usual = narrow() ? ["rank", "method", "score", "retained"] : ["rank", "method", "tokens", "score", "retained", "agreement", "flops", "speed", "bytes"];
  const visible = state.columns ? state.columns.split(",") : usual;
  const some = key => key !== "agreement" && key !== "speed" && key !== "bytes" && key !== "flops" ? true : rows.some(r => r[{ speed: "faster" }[key] ?? key] != null);
  for (const c of columns) c.visible = visible.includes(c.name) && (state.columns !== "" || some(c.name));
  const named = name => columns.findIndex(c => c.name === name);
  const [by, way] = state.sort ? state.sort.split(".") : ["score", "desc"];
  board?.off("column-visibility.dt order.dt"); // destroy() shows every column again, which is no choice of the reader
  board?.destroy();
  $("board-table").innerHTML = '<table class="board"></table>';
  board = jq("#board-table table").DataTable({
    data: rows, columns, order: [[Math.max(0, named(by)), way === "asc" ? "asc" : "desc"]], paging: rows.length > 100, pageLength: 100, lengthChange: false,
    searching: false, info: rows.length > 100, autoWidth: false, layout: { topStart: null, topEnd: { buttons: [{ extend: "colvis", text: "Columns" }] }, bottomStart: rows.length > 100 ? "info" : null, bottomEnd: rows.length > 100 ? "paging" : null },
    createdRow: (row, r) => { if (r.baseline) row.classList.add("base"); row.tabIndex = 0; row.onclick = () => openRun(r); row.onkeydown = e => { if (e.key === "Enter") openRun(r); }; },
    language: { emptyTable: "no run matches" },
  });
  board.on("order.dt", () => { const [[at, dir] = []] = board.order(); if (at != null) write({ sort: columns[at].name === "score" && dir === "desc" ? "" : `${columns[at].name}.${dir}` }); });
  board.on("column-visibility.dt", () => write({ columns: columns.filter((_, at) => board.column(at).visible()).map(c => c.name).join(",") }));
  const tied = state.group === "all" && budget() != null ? "Methods that can't be told apart from a better one share its rank: a rank counts the methods that are better by more than chance (Holm)." : "Ranks need one budget and the mean over all tasks, which is what the tests are of.";
  $("board-about").textContent = `${s.name} · ${groupTitle()}${budget() == null ? "" : ` · ${tokens(budget())} visual tokens`}. ${tied}`;
}

// ---- the run behind a number
async function openRun(run) {
  const s = setting(), at = run.members ? run.members[0] : s.runs.indexOf(run), said = await detailsOf(data.settings.indexOf(setting()), at), facts = [
    ["score", `${number(score(run))} ± ${number(half(run))} (${groupTitle()}${run.several ? `, mean and standard deviation of ${run.several} seeds; what follows is of the first` : ""})`], ["command", run.command], ["result", run.file], ["run", run.id], ["made", run.created], ...(run.members ? [["seeds", run.members.map(m => s.runs[m].id).join(", ")]] : [])];
  $("run").innerHTML = `<button class="close" aria-label="close">Close</button><h2>${esc(run.name)}</h2><dl>${facts.map(([k, v]) => `<dt>${esc(k)}</dt><dd>${k === "command" ? `<code>${esc(v)}</code>` : esc(v)}</dd>`).join("")}</dl>`
    + `<p class="soft">Configuration, versions, hash of the code, budget and costs, as the result file states them. Its samples lie beside it.</p><pre>${esc(JSON.stringify(said, null, 1))}</pre>`;
  $("run").querySelector("button").onclick = () => $("run").close();
  if (!$("run").open) $("run").showModal();
  write({ run: String(at) });
}
$("run").addEventListener("close", () => write({ run: "" }));
$("run").addEventListener("click", e => { if (e.target === $("run")) $("run").close(); });

// Samples that take compression to answer, and scores without the right picture.
function hard() {
  const s = setting(), rows = s.splits.map(p => [s.runs[p.run], p]).filter(([r]) => matches(r) && (budget() == null || r.tokens === budget()));
  const own = s.runs.filter(r => r.picture === "own"), twin = r => own.find(o => o.method === r.method && o.tokens === r.tokens);
  const controls = s.runs.filter(r => r.picture !== "own" && matches(r) && (r.method === "none" || budget() == null || r.tokens === budget())).map(r => [r, twin(r)]);
  const cell = pair => pair ? `${number(pair[0])} ± ${number(pair[1])}` : "–";
  const table = (head, body) => `<div class="scroll"><table class="board"><thead><tr>${head.map((h, at) => `<th class="${at ? "" : "text"}">${h}</th>`).join("")}</tr></thead><tbody>${body.map(row => `<tr>${row.map((c, at) => `<td class="${at ? "" : "text"}">${c}</td>`).join("")}</tr>`).join("")}</tbody></table></div>`;
  $("hard").hidden = !s.splits.length && !s.runs.some(r => r.picture !== "own");
  for (const link of document.querySelectorAll("[data-for=hard]")) link.hidden = $("hard").hidden;
  $("hard-table").innerHTML = rows.length ? table(["method", "hard samples", "n", "easy samples", "n"], rows.map(([r, p]) => [esc(budget() == null ? r.name : r.label), cell(p.hard), p.n_hard, cell(p.easy), p.n_easy])) : s.splits.length ? '<p class="soft">Downsampling has no run at this budget.</p>' : "";
  $("control-table").innerHTML = controls.length ? table(["method", "picture", "score", "with its own"], controls.map(([r, o]) => [esc(r.name), esc(r.picture), cell(r.scores[state.group]), cell(o?.scores[state.group])])) : "";
  $("hard-about").hidden = !s.splits.length;
  $("control-about").hidden = !controls.length;
}

function notes() {
  const s = setting();
  $("notes").innerHTML = [s.about, ...(s.pocket ? ["Pocket is a miniature: a model of a few million parameters on drawn scenes. It shows the order of methods, not the numbers of a real LVLM."] : []), ...s.notes]
    .map(n => `<p class="note">${esc(n)}</p>`).join("");
}
