// Samples: the picture with the kept tokens on it, the question, what each run answered.
const STEP = 12;
let all, many = STEP;
const loaded = () => all ??= unpacked("samples-data").then(JSON.parse);
const sampleSet = async () => (await loaded()).find(s => s.setting === setting().name);
const good = answer => answer?.score != null && answer.score >= .5;

// Squares of the tokens that are left; the rest is dimmed, but where a token of another tile stands on the same place.
function drawing(set, answer) {
  const image = answer?.images?.[0];
  if (!image) return "";
  const boxes = set.boxes[image.layout], left = image.held.flat(), some = new Set(left), rects = [];
  const add = (token, kind, group = "") => {
    const box = boxes[token];
    if (box && box[2] > box[0] && box[3] > box[1]) rects.push(`<rect class="${kind}" data-token="${token}" data-group="${group}" x="${box[0]}" y="${box[1]}" width="${box[2] - box[0]}" height="${box[3] - box[1]}" vector-effect="non-scaling-stroke"/>`);
  };
  const merged = image.held.some(group => group.length > 1);
  if (boxes.length && some.size < boxes.length) boxes.forEach((box, token) => { if (box && !some.has(token) && !left.some(t => boxes[t] && overlaps(boxes[t], box))) add(token, "dim"); });
  if (some.size < boxes.length || merged) image.held.forEach((group, at) => group.forEach((token, member) => add(token, group.length > 1 ? (member ? "merged" : "merged kept") : "kept", at)));
  return `<svg viewBox="0 0 1000 1000" preserveAspectRatio="none">${rects.join("")}</svg>`;
}
function light(box) { // a merged token shows where it came from
  const all = box.querySelectorAll("rect.merged"), mark = group => all.forEach(r => r.classList.toggle("over", r.dataset.group === group));
  all.forEach(r => { r.onmouseenter = () => mark(r.dataset.group); r.onmouseleave = () => mark(null); });
}
const overlaps = (a, b) => Math.min(a[2], b[2]) - Math.max(a[0], b[0]) > 1 && Math.min(a[3], b[3]) - Math.max(a[1], b[1]) > 1;

function said(answer) {
  const image = answer?.images?.[0];
  if (!answer) return "";
  if (!image) return "the run doesn't state what it kept.";
  const left = image.held.length, merged = image.held.filter(g => g.length > 1).length;
  return `${left} of ${set_size(image)} tokens left${merged ? `, ${merged} of them merged: point at one to see from where` : ""}${image.made ? `; ${image.made} made of the whole image` : ""}`;
}
let set_size = () => 0;

async function samples() {
  const none = !$("samples-data");
  const set = none ? null : await sampleSet();
  $("samples").hidden = !set;
  for (const link of document.querySelectorAll("[data-for=samples]")) link.hidden = !set;
  if (!set) return;
  const s = setting(), runs = set.runs.map(at => [String(at), s.runs[at]]);
  set_size = image => set.boxes[image.layout].length || "all";
  const named = runs.map(([at, r]) => [at, r.name]), listed = runs.filter(([, r]) => r.baseline || (matches(r) && (budget() == null || r.tokens === budget())));
  const other = runs.filter(([, r]) => !r.baseline).map(([at]) => at);
  fill("one", named, state.one || other[0] || named[0][0]);
  fill("two", named, state.two || other[1] || named.at(-1)[0]);
  fill("task", [["", "all"], ...s.groups.filter(g => set.rows.some(r => r.task === g[0]))], state.task);
  const drawn = state.draw || (listed.find(([at, r]) => !r.baseline && set.rows.some(q => q.answers[at]?.images?.some(image => image.held.length))) ?? listed.find(([, r]) => !r.baseline) ?? runs[0])[0];
  fill("draw", named, drawn);
  $("kind").value = state.kind;
  for (const id of ["one", "two"]) $(id).parentElement.hidden = state.kind !== "split" && state.kind !== "flip";
  const compressed = listed.filter(([, r]) => !r.baseline).map(([at]) => at), base = listed.filter(([, r]) => r.baseline).map(([at]) => at);
  const tests = {
    "": () => true,
    split: q => good(q.answers[$("one").value]) && q.answers[$("two").value] && !good(q.answers[$("two").value]),
    flip: q => q.answers[$("one").value] && q.answers[$("two").value] && good(q.answers[$("one").value]) !== good(q.answers[$("two").value]),
    none: q => !listed.some(([at]) => good(q.answers[at])) && listed.some(([at]) => q.answers[at]),
    only: q => base.some(at => good(q.answers[at])) && compressed.length > 0 && !compressed.some(at => good(q.answers[at])),
  };
  const rows = set.rows.filter(q => (!state.task || q.task === state.task) && tests[state.kind in tests ? state.kind : ""](q));
  $("samples-about").textContent = `${rows.length} of ${set.rows.length} questions, the most telling of the test set. Right and wrong at half of the full score. Choose an answer to draw what its run kept.`;
  $("sample-list").replaceChildren(...rows.slice(0, many).map(q => {
    const box = document.createElement("article"), title = (s.groups.find(g => g[0] === q.task) ?? [q.task, q.task])[1];
    box.className = "sample";
    box.innerHTML = `<div><div class="shot">${q.pictures[0] ? `<img alt="" src="${esc(q.pictures[0])}">` : `<div class="noshot">The picture isn't at hand here.</div>`}</div><p class="soft kept"></p></div>
      <div><h3>${esc(q.question || q.id)}</h3><p class="soft">${esc(title)} · ${esc(q.id)} · answer: <strong>${esc(q.target)}</strong></p><div class="answers"></div></div>`;
    const show = at => {
      const answer = q.answers[at];
      box.querySelector("svg")?.remove();
      if (q.pictures[0]) box.querySelector(".shot").insertAdjacentHTML("beforeend", drawing(set, answer));
      light(box);
      box.querySelector("p.kept").textContent = answer ? `${s.runs[at].baseline ? "uncompressed" : split(s.runs[at].label)[0]}: ${said(answer)}` : "";
      for (const b of box.querySelectorAll(".answer")) b.classList.toggle("on", b.dataset.run === at);
    };
    box.querySelector(".answers").append(...listed.filter(([at]) => q.answers[at]).map(([at, r]) => {
      const a = q.answers[at], button = document.createElement("button");
      button.className = `answer ${a.score == null ? "" : good(a) ? "right" : "wrong"}`;
      button.dataset.run = at;
      button.innerHTML = `<span class="mark">${a.error ? "!" : a.score == null ? "·" : good(a) ? "✓" : "✗"}</span><span class="who">${esc(r.baseline ? "uncompressed" : split(r.label)[0])}${budget() == null && r.tokens != null && !r.baseline ? ` ${tokens(r.tokens)}` : ""}</span><span>${esc(a.error ?? a.text)}</span>`;
      button.title = r.name;
      button.onclick = () => show(at);
      return button;
    }));
    show(q.answers[drawn] ? drawn : (listed.find(([at]) => q.answers[at]) ?? [""])[0]);
    return box;
  }));
  $("more").hidden = rows.length <= many;
}
for (const id of ["kind", "one", "two", "task", "draw"]) $(id).onchange = e => { many = STEP; write({ [id]: e.target.value }); samples(); };
$("more").onclick = () => { many += STEP; samples(); };

function draw() {
  notes();
  hard();
  const ready = [leaderboard(), samples()];
  chips();
  figures();
  return Promise.all(ready);
}
addEventListener("hashchange", () => { state = read(); controls(); draw(); });
controls();
const trains = data.settings.some(s => s.runs.some(r => r.seconds != null));
$("training").hidden = !trains;
for (const link of document.querySelectorAll("[data-for=training]")) link.hidden = !trains;
const run = setting().runs[state.run];
draw().then(() => { if (state.run !== "" && run) openRun(run); document.body.dataset.ready = "yes"; });
