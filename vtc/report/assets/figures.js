// Figures. Plotly is unpacked when the first of them comes near the screen; each is drawn when it does.
const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6FDF", "#7A7A00"]; // Okabe & Ito first
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star"];
const AXES = {
  tokens: ["visual tokens an image has left", r => r.tokens, "log", 1, tokens],
  flops: ["prefill FLOPs, share of the uncompressed", r => r.flops, "log", 1, percent],
  ttft: ["time to the first token, ms", r => r.ttft, "log", 1, x => `${number(x, 1)} ms`],
  throughput: ["throughput, tokens a second", r => r.throughput, "log", -1, x => `${number(x, 0)} tokens/s`],
  bytes: ["KV cache, bytes", r => r.bytes, "log", 1, bytes],
};
const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
let plotly;
const library = () => plotly ??= unpacked("plotly").then(text => {
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);
  return window.Plotly;
});
const drawers = {}, near = new Set(), stale = new Set();
const eye = new IntersectionObserver(entries => {
  for (const e of entries) { near[e.isIntersecting ? "add" : "delete"](e.target.id); if (e.isIntersecting && stale.has(e.target.id)) render(e.target.id); }
}, { rootMargin: "400px" });
// On paper nothing comes near: whoever prints gets the figures that were never scrolled to.
window.addEventListener("beforeprint", () => { for (const id of [...stale]) render(id); });
async function render(id) {
  stale.delete(id);
  const Plotly = await library();
  const { traces, layout, empty, click } = drawers[id](), node = $(id);
  if (empty) { Plotly.purge(node); node.innerHTML = `<p class="soft">${esc(empty)}</p>`; node.style.minHeight = "0"; node.dataset.drawn = "empty"; return; }
  if (!node.classList.contains("js-plotly-plot")) node.replaceChildren();
  node.style.minHeight = "";
  const axis = { gridcolor: color("--line"), zeroline: false, linecolor: color("--line"), tickcolor: color("--line"), automargin: true };
  const { xaxis, yaxis, ...rest } = layout;
  await Plotly.react(node, traces, { font: { family: "ui-sans-serif, system-ui, sans-serif", size: 12.5, color: color("--ink") }, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    margin: { l: 60, r: 20, t: 16, b: 52 }, hovermode: "closest", showlegend: false, dragmode: false, hoverlabel: { bgcolor: color("--paper"), bordercolor: color("--line"), font: { color: color("--ink"), size: 12.5 }, align: "left" },
    xaxis: { ...axis, fixedrange: true, ...xaxis }, yaxis: { ...axis, fixedrange: true, ...yaxis }, ...rest }, { displayModeBar: false, responsive: true, scrollZoom: false });
  node.removeAllListeners?.("plotly_click");
  if (click) node.on("plotly_click", e => click(e.points[0]));
  node.dataset.drawn = String(Date.now());
}
function figures() { for (const id of Object.keys(drawers)) { stale.add(id); if (near.has(id)) render(id); } }

// ---- methods in colour
const list = key => state[key] ? state[key].split("|") : [];
function front(runs, get, way) {
  const best = [];
  for (const r of runs.filter(r => !r.baseline && get(r) != null && score(r) != null).sort((a, b) => way * (get(a) - get(b)) || score(b) - score(a))) {
    const last = best.at(-1);
    if (!last || score(r) > score(last) || (score(r) === score(last) && get(r) === get(last))) best.push(r);
  }
  return best.sort((a, b) => get(a) - get(b));
}
function styles(runs, get, way) {
  const hold = list("hold"), hide = list("hide"), on = [...new Set([...hold, ...front(runs, get, way).map(r => r.label)])].filter(l => !hide.includes(l)), out = new Map();
  const labels = [...new Set(runs.filter(r => !r.baseline).map(r => r.label))];
  const chosen = labels.length <= PALETTE.length ? labels.filter(l => !hide.includes(l)) : on;
  for (const label of labels) { const at = chosen.indexOf(label); out.set(label, { hidden: hide.includes(label), on: at >= 0, color: at < 0 ? color("--grey") : PALETTE[at % PALETTE.length], symbol: at < 0 ? "circle" : SYMBOLS[(at + Math.floor(at / PALETTE.length)) % SYMBOLS.length], held: hold.includes(label) }); }
  return out;
}
function toggle(label) {
  const hold = list("hold"), hide = list("hide"), without = (all, x) => all.filter(y => y !== x);
  if (hold.includes(label)) write({ hold: without(hold, label).join("|"), hide: [...hide, label].join("|") });
  else if (hide.includes(label)) write({ hide: without(hide, label).join("|") });
  else write({ hold: [...hold, label].join("|") });
  figures(); chips();
}
function chips() {
  const [, get, , way] = AXES[state.axis], look = styles(shown(), get, way);
  const others = [...look].filter(([, s]) => !s.on && !s.hidden).map(([label]) => [label, label]);
  fill("hold", [["", "a method …"], ...others], "");
  $("chips").replaceChildren(...[...look].filter(([, s]) => s.on || s.hidden).map(([label, s]) => {
    const chip = document.createElement("button");
    Object.assign(chip, { className: "chip", textContent: label, onclick: () => toggle(label) });
    chip.dataset.state = s.hidden ? "hide" : s.held ? "hold" : s.on ? "on" : "";
    if (s.on) chip.style.color = s.color;
    return chip;
  }));
}
$("hold").onchange = e => e.target.value && toggle(e.target.value);
const hover = (r, more = "") => `<b>${esc(r.name)}</b><br>${esc(groupTitle())} ${number(score(r))} ± ${number(half(r))}<br>retained ${percent(r.retained[state.group])}${more}`;
const measure = r => state.measure === "score" ? score(r) : r.retained[state.group];
function lines(runs, get, look, value, show) {
  const by = Map.groupBy ? Map.groupBy(runs, r => r.label) : runs.reduce((m, r) => m.set(r.label, [...(m.get(r.label) ?? []), r]), new Map());
  return [...by].filter(([label]) => !look.get(label)?.hidden).sort((a, b) => look.get(a[0]).on - look.get(b[0]).on).map(([label, mine]) => {
    const s = look.get(label), sorted = mine.filter(r => get(r) != null && value(r) != null).sort((a, b) => get(a) - get(b));
    return { x: sorted.map(get), y: sorted.map(value), mode: "lines+markers", name: esc(label), meta: label, opacity: s.on ? 1 : .8,
      line: { color: s.color, width: s.on ? 1.8 : .8 }, marker: { color: s.color, symbol: s.symbol, size: s.on ? 8 : 5 }, error_y: s.on && state.measure === "score" ? { type: "data", array: sorted.map(r => half(r) ?? 0), color: s.color, thickness: 1, width: 0 } : undefined,
      text: sorted.map(r => hover(r, `<br>${show(get(r))}`)), hovertemplate: "%{text}<extra></extra>" };
  });
}
const held = point => point.data.meta && toggle(point.data.meta);
function levels() {
  const s = setting(), whole = state.measure === "score" ? s.reference[state.group] ?? s.runs.filter(r => r.baseline).map(score)[0] : 1, blind = state.measure === "score" ? s.blind[state.group] : null;
  return { shapes: [[whole, "dash"], [blind, "dot"]].filter(([y]) => y != null).map(([y, dash]) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: color("--soft"), width: 1, dash } })),
    annotations: [[whole, "uncompressed"], [blind, "blind (no image)"]].filter(([y]) => y != null).map(([y, text]) => ({ xref: "paper", x: 1, y, text, showarrow: false, xanchor: "right", yanchor: "bottom", font: { size: 11, color: color("--soft") } })) };
}
// Where all have the same cost they stand side by side, in the order of their scores: an axis of one value would collapse.
drawers.pareto = () => {
  const s = setting(), [title, get, type, way, show] = AXES[state.axis], runs = shown().filter(r => !r.baseline && get(r) != null && measure(r) != null);
  if (!runs.length) return { empty: "No run here states this cost." };
  const look = styles(runs, get, way), values = [...new Set(runs.map(get))], alone = Math.max(...values) < 1.01 * Math.min(...values);
  const ranked = [...runs].sort((a, b) => score(b) - score(a)), place = new Map(ranked.map((r, at) => [r, at + 1]));
  const x = alone ? r => place.get(r) : get, best = alone ? [] : front(runs, get, way).filter(r => !look.get(r.label).hidden);
  const traces = lines(runs, x, look, measure, alone ? () => "" : show);
  if (alone) traces.forEach(t => { t.mode = "markers"; });
  if (best.length > 1) traces.unshift({ x: best.map(get), y: best.map(measure), mode: "lines", line: { color: color("--accent"), width: 5, shape: way > 0 ? "hv" : "vh" }, opacity: .22, hoverinfo: "skip", name: "front", meta: "" });
  const printed = state.axis === "tokens" && state.measure === "score" && !alone ? s.printed.filter(p => p.task === state.group && p.tokens != null) : [];
  if (printed.length) traces.unshift({ x: printed.map(p => p.tokens), y: printed.map(p => p.score), mode: "markers", name: "printed", meta: "", marker: { symbol: "diamond-open", size: 10, color: color("--soft") }, text: printed.map(p => `<b>${esc(p.label)}</b>, as printed<br>${number(p.score)}, ${tokens(p.tokens)} tokens<br>${esc(p.where)}`), hovertemplate: "%{text}<extra></extra>" });
  const ticks = state.axis === "tokens" && !alone ? { tickmode: "array", tickvals: spaced(values.sort((a, b) => a - b)), ticktext: spaced(values).map(tokens) } : {};
  return { traces, click: held, layout: { xaxis: alone ? { title: { text: `all at ${show(values[0])}: side by side, best first` }, showticklabels: false } : { title: { text: title }, type, ...ticks, ...(state.axis === "flops" ? { tickformat: ".0%" } : {}) }, yaxis: { title: { text: `${groupTitle()}${state.measure === "score" ? "" : ", retained"}` }, ...(state.measure === "score" ? {} : { tickformat: ".0%" }) }, ...levels() } };
};
const spaced = all => all.reduce((kept, t) => !kept.length || t / kept.at(-1) >= 1.22 ? [...kept, t] : kept, []);
drawers.curves = () => {
  const value = r => r.retained[state.group], runs = shown().filter(r => !r.baseline && r.tokens != null && value(r) != null), per = new Map();
  for (const r of runs) per.set(r.label, (per.get(r.label) ?? new Set()).add(r.tokens));
  const several = runs.filter(r => per.get(r.label).size > 1);
  if (!several.length) return { empty: "No method here has runs at several budgets that state what they retain." };
  const values = spaced([...new Set(several.map(r => r.tokens))].sort((a, b) => a - b));
  const traces = lines(several, r => r.tokens, styles(shown(), r => r.tokens, 1), value, tokens);
  traces.forEach(t => { t.error_y = undefined; });
  return { traces, click: held, layout: { xaxis: { type: "log", title: { text: "visual tokens an image has left" }, tickmode: "array", tickvals: values, ticktext: values.map(tokens) }, yaxis: { tickformat: ".0%", title: { text: "retained" } },
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: color("--soft"), width: 1, dash: "dash" } }] } };
};
const cut = (text, most = narrow() ? 18 : 40) => text.length > most ? `${text.slice(0, most - 1)}…` : text;
function names(runs) { // what axes say: short, and each different
  const seen = new Map();
  return runs.map(r => { const name = cut(r.label) + (budget() == null && r.tokens != null ? ` · ${tokens(r.tokens)}` : ""), count = seen.get(name) ?? 0; seen.set(name, count + 1); return esc(name) + "\u200b".repeat(count); });
}
drawers.heat = () => {
  const s = setting(), runs = atBudget().filter(r => !r.baseline && s.tasks.some(t => r.retained[t] != null)).sort((a, b) => score(a) - score(b));
  if (!runs.length) return { empty: "No run here states what it retains of the uncompressed score." };
  const titles = s.groups.filter(g => s.tasks.includes(g[0])), z = runs.map(r => titles.map(([t]) => r.retained[t] ?? null)), few = runs.length * titles.length <= 400 && !narrow();
  $("heat").style.height = `${Math.max(200, 22 * runs.length + 90)}px`;
  return { traces: [{ type: "heatmap", z, x: titles.map(t => esc(t[1])), y: names(runs), zmin: .5, zmax: 1, xgap: 2, ygap: 2, showscale: false, colorscale: [[0, color("--wash")], [1, color("--accent")]],
    text: z.map(row => row.map(v => v == null ? "" : `${Math.round(100 * v)}`)), texttemplate: few ? "%{text}" : "", customdata: runs.map(r => titles.map(([t, name]) => `<b>${esc(r.name)}</b><br>${esc(name)} ${number((r.scores[t] ?? [])[0])}, retained ${percent(r.retained[t])}`)), hovertemplate: "%{customdata}<extra></extra>" }],
    click: p => openRun(runs[p.pointIndex[0]]), layout: { xaxis: { side: "top", showgrid: false, tickangle: narrow() ? -60 : -30 }, yaxis: { showgrid: false, tickfont: { size: 11.5 } }, margin: { l: 60, r: 10, t: 40, b: 10 } } };
};
drawers.matrix = () => {
  const s = setting(), runs = atBudget().filter(r => !r.baseline).sort((a, b) => (b.scores.all ?? [0])[0] - (a.scores.all ?? [0])[0]);
  if (budget() == null) return { empty: "Choose a number of visual tokens: methods are compared at one." };
  if (runs.length < 2) return { empty: "There are no two methods to compare at this budget." };
  const at = new Map(runs.map((r, i) => [s.runs.indexOf(r), i])), z = runs.map(() => runs.map(() => null)), said = runs.map(() => runs.map(() => ""));
  for (const [a, b, difference, p, holm, test] of s.pairs) if (at.has(a) && at.has(b)) for (const [i, j, sign] of [[at.get(a), at.get(b), 1], [at.get(b), at.get(a), -1]]) {
    z[i][j] = holm != null && holm < s.alpha ? sign * difference : 0;
    said[i][j] = `<b>${esc(runs[i].label)}</b> against <b>${esc(runs[j].label)}</b><br>difference ${(sign * difference).toFixed(3)}<br>p ${p == null ? "–" : p < .001 ? "<0.001".replace("<", "&lt;") : p.toFixed(3)}, Holm ${holm == null ? "–" : holm < .001 ? "&lt;0.001" : holm.toFixed(3)} (${esc(test)})<br>${holm != null && holm < s.alpha ? "told apart" : "can't be told apart"}`;
  }
  const most = Math.max(.01, ...z.flat().map(v => Math.abs(v ?? 0))), short = names(runs);
  $("matrix").style.height = `${Math.max(240, 20 * runs.length + 150)}px`;
  return { traces: [{ type: "heatmap", z, x: short, y: short, customdata: said, hovertemplate: "%{customdata}<extra></extra>", xgap: 1.5, ygap: 1.5, zmin: -most, zmax: most, showscale: false, colorscale: [[0, "#b3372f"], [.4999, "#ecd3d0"], [.5, color("--line")], [.5001, "#cfdcef"], [1, "#1f5fbf"]] }],
    layout: { xaxis: { showgrid: false, tickangle: -45, side: "bottom", tickfont: { size: 11 } }, yaxis: { autorange: "reversed", showgrid: false, tickfont: { size: 11 } }, margin: { l: 60, r: 10, t: 10, b: 60 } } };
};
drawers.cost = () => {
  const runs = atBudget().filter(r => r.seconds != null && score(r) != null);
  if (!runs.length) return { empty: "No run here has trained weights that state their training." };
  const look = styles(runs, r => r.seconds, 1);
  const traces = lines(runs, r => r.seconds / 3600, look, measure, x => `${number(x, 2)} h`);
  traces.forEach(t => { t.mode = "markers"; });
  return { traces, click: held, layout: { xaxis: { type: "log", title: { text: "hours of training" } }, yaxis: { title: { text: groupTitle() } }, ...levels() } };
};
for (const id of Object.keys(drawers)) eye.observe($(id));
fill("axis", Object.entries(AXES).map(([key, [title]]) => [key, title]), state.axis);
for (const id of ["axis", "measure"]) { $(id).value = state[id]; $(id).onchange = e => { write({ [id]: e.target.value }); chips(); figures(); }; }
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => figures());
