// Shared by all charts: the data, words, figures, colours.
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const byId = (id) => document.getElementById(id);

const esc = (text) => String(text).replace(/[&<>"']/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[c]);
const count = (n) => n.toLocaleString("en-US");
const span = (ms) => {
  const size = Math.abs(ms);
  if (size === 0) return "0 s";
  if (size < 9.995) return `${ms.toFixed(2)} ms`;
  if (size < 999.5) return `${ms.toFixed(0)} ms`;
  if (size < 9995) return `${(ms / 1e3).toFixed(2)} s`;
  if (size < 99950) return `${(ms / 1e3).toFixed(1)} s`;
  const seconds = Math.round(ms / 1e3);
  return seconds % 60 ? `${Math.trunc(seconds / 60)} min ${Math.abs(seconds % 60)} s` : `${seconds / 60} min`;
};
const clock = (ms, tenths = true) => {
  const all = Math.round(Math.abs(ms) / 100);
  const whole = `${ms < 0 && all ? "−" : ""}${Math.trunc(all / 600)}:${String(Math.trunc(all / 10) % 60).padStart(2, "0")}`;
  return tenths && all % 10 ? `${whole}.${all % 10}` : whole;
};
// Rounded down: 99.996% is not 100%.
const percent = (ratio) => (ratio >= 1 ? "100%" : `${(Math.floor(ratio * 1e4 + 1e-6) / 100).toFixed(2)}%`);
// Without what the chart library would read as its own label markup.
const plain = (text) => text.replace(/[{}|\n]/g, " ");
// A figure that somebody chose: `4 s`, where a measured one is `4.00 s`.
const round = (ms) => span(ms).replace(/\.(\d*?)0+(?= )/, (_, rest) => (rest ? `.${rest}` : ""));
// A long name keeps its end, which tells it from its siblings.
const short = (name, most = 22) => (name.length <= most ? name : `${name.slice(0, most - 11)}…${name.slice(-10)}`);
const tip = (...lines) => `<div class="tip">${lines.filter(Boolean).join("<br>")}</div>`;

const STATE = {
  pending: "pending", loading: "loading", notReady: "not ready", serving: "serving", backOff: "back-off", silent: "silent", terminating: "terminating",
};
const ANSWER = { match: "matched", mismatch: "mismatched", none: "had no answer" };
const PHASE = { baseline: "baseline", fault: "fault", recovery: "recovery", before: "told of in the report before" };
// What an outage that goes on had seen before this window's zero.
const BEFORE = data.beginMs < 0 ? [{ name: "before this window", kind: "before", start: data.beginMs, end: 0 }] : [];
const MARK = {
  fault: ["t0", "fault began"], firstFailure: ["t1", "first failure seen by a client"], detected: ["t2", "detected by the platform"],
  endpointRemoved: ["t3", "endpoint withdrawn"], replacementCreated: ["t4", "replacement created"], scheduled: ["t5", "scheduled to a node"],
  initialized: ["t6", "sidecar up"], containerStarted: ["t7", "server’s process started"], modelLoaded: ["t8", "model loaded"], ready: ["t9", "ready"],
  endpointAdded: ["t10", "endpoint added"], firstGoodResponse: ["t11", "first good response"], firstCorrectPrediction: ["t11c", "first correct prediction"],
  sustained: ["t12", "sustained good service"],
};
// What each mark ends, in four kinds: twelve colours nobody can tell apart.
const PART = {
  detected: "noticing", endpointRemoved: "noticing", replacementCreated: "replacing", scheduled: "replacing", initialized: "starting", containerStarted: "starting",
  modelLoaded: "starting", ready: "returning", endpointAdded: "returning", firstGoodResponse: "returning", firstCorrectPrediction: "returning", sustained: "returning",
};

// The style sheet owns the palette; a probe resolves its light-dark() pairs.
const probe = document.createElement("i");
probe.hidden = true;
document.body.append(probe);
let colours = new Map();
const colour = (name) => {
  if (!colours.has(name)) {
    probe.style.color = `var(--${name})`;
    colours.set(name, getComputedStyle(probe).color);
  }
  return colours.get(name);
};
const FONT = getComputedStyle(document.body).fontFamily;

const charts = new Map();
// Draws a chart into its element, where the page has it, and says in the element what was drawn.
const draw = (id, build) => {
  const element = byId(id);
  if (!element) return;
  const narrow = element.clientWidth < 640;
  const { option, height, marks, ready } = build(narrow, element.clientWidth);
  element.style.height = `${height}px`;
  let chart = charts.get(id);
  if (!chart) {
    chart = echarts.init(element, null, { renderer: "svg" });
    charts.set(id, chart);
  } else {
    chart.resize({ width: "auto", height });
  }
  chart.setOption({ animation: false, textStyle: { fontFamily: FONT, color: colour("ink") }, ...option }, { notMerge: true });
  if (ready) ready(chart);
  element.dataset.marks = String(marks);
};

const tooltipStyle = () => ({
  confine: true, backgroundColor: colour("surface"), borderColor: colour("strong-line"), padding: [8, 11], textStyle: { color: colour("ink"), fontSize: 12.5, fontFamily: FONT }, extraCssText: "box-shadow:0 4px 18px rgba(0,0,0,.16)",
});
// Rectangle cut to the drawing area, or nothing where they do not meet.
const cut = (area, x, y, width, height) => {
  const left = Math.max(x, area.x);
  const right = Math.min(x + width, area.x + area.width);
  return right <= left ? null : { x: left, y, width: right - left, height };
};
