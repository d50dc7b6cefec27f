// Lanes of the pods: what state each was in, how its golden replays went, its outages with their marks; the phases on top, the faults behind everything.
const LANES_SHOWN = 12;
const RIBBON = 32;
let allLanes = data.lanes.length <= LANES_SHOWN + 4;

const shownLanes = () => {
  const all = data.lanes.map((lane, index) => ({ ...lane, index }));
  if (allLanes) return all;
  // Those where something happened come first; what remains keeps its order.
  const chosen = new Set([...all.filter((lane) => lane.notable), ...all.filter((lane) => !lane.notable)].slice(0, LANES_SHOWN).map((lane) => lane.index));
  return all.filter((lane) => chosen.has(lane.index));
};

const windows = () => [
  ...BEFORE.map((before) => [{ xAxis: before.start, itemStyle: { color: colour("raised") } }, { xAxis: before.end }]),
  ...data.phases.filter((phase) => phase.kind === "recovery").map((phase) => [{ xAxis: phase.start, itemStyle: { color: colour("recovery-tint") } }, { xAxis: phase.end }]),
  ...data.faults.map((fault) => [{ xAxis: fault.start, itemStyle: { color: colour("fault-tint") } }, { xAxis: Math.max(fault.end, fault.start) }]),
];
// A series without points that shades the windows behind its grid.
const shade = (axis) => ({
  type: "line", xAxisIndex: axis, yAxisIndex: axis, data: [], silent: true, z: 0,
  markArea: { silent: true, animation: false, data: windows() },
  markLine: {
    silent: true, animation: false, symbol: "none", label: { show: false }, lineStyle: { color: colour("fault"), width: 1, type: [3, 3], opacity: 0.7 },
    data: data.faults.flatMap((fault) => (fault.end > fault.start ? [{ xAxis: fault.start }, { xAxis: fault.end }] : [{ xAxis: fault.start }])),
  },
});

// Text inside a bar, where the bar has room for it.
const inside = (text, shape, fill, size = 11) =>
  shape.width < 34 ? [] : [{ type: "text", silent: true, style: { text, x: shape.x + 5, y: shape.y + shape.height / 2, verticalAlign: "middle", fill, font: `${size}px ${FONT}`, width: shape.width - 8, overflow: "truncate", ellipsis: "…" } }];

const STYLE_OF = {
  serving: () => ({ fill: colour("serving") }), loading: () => ({ fill: colour("loading") }), notReady: () => ({ fill: colour("notready"), stroke: colour("loading") }),
  backOff: () => ({ fill: colour("backoff") }), terminating: () => ({ fill: colour("terminating") }),
  pending: () => ({ fill: "transparent", stroke: colour("noanswer"), lineWidth: 1.5 }), silent: () => ({ fill: "transparent", stroke: colour("silent"), lineWidth: 1.5, lineDash: [4, 3] }),
};
const INK_IN = { serving: "ink", loading: "on-light", notReady: "on-light", backOff: "on-light", terminating: "ink", pending: "ink", silent: "ink" };

const timelineLanes = (narrow) => {
  const lanes = shownLanes();
  const dense = lanes.length > 16;
  const size = dense ? 24 : narrow ? 76 : 58;
  const labelSpace = narrow ? 16 : 0;
  const row = new Map(lanes.map((lane, position) => [lane.index, position + 1]));
  const states = [], golden = [], verdicts = [], braces = [], ticks = [];
  for (const lane of lanes) {
    lane.pods.forEach((pod, i) => {
      // Where its replacement stands already, the one that is gone makes room.
      const next = lane.pods[i + 1]?.states[0]?.[1] ?? Infinity;
      for (const [state, start, end] of pod.states) {
        if (start < next || state === "serving") states.push({ value: [row.get(lane.index), start, state === "serving" ? end : Math.min(end, next)], pod, state, until: end });
      }
      for (const run of pod.golden) golden.push({ value: [row.get(lane.index), run.start, run.end], pod, run });
      for (const [at, set, verdict] of pod.verdicts) verdicts.push({ value: [row.get(lane.index), at, at], pod, set, verdict });
    });
  }
  for (const outage of data.outages) {
    const position = row.get(outage.lane);
    if (position === undefined) continue;
    braces.push({ value: [position, outage.start, outage.start + outage.capacityMs], outage });
    for (const [mark, at] of outage.marks) ticks.push({ value: [position, at, at], outage, mark });
  }
  let taken = [];
  const phases = [...BEFORE, ...data.phases];
  const bar = dense ? 9 : 17, strip = dense ? 4 : 6;
  // The axis counts lanes; the phases have the space of RIBBON above the first.
  const above = (api, position) => api.coord([0, RIBBON / size + position - 1])[1];
  const top = (api, position) => above(api, position) + 3 + labelSpace;
  const between = (params, api, y, height, least = 1) => {
    const [x] = api.coord([api.value(1), api.value(0)]);
    const [end] = api.coord([api.value(2), api.value(0)]);
    return cut(params.coordSys, x, y, Math.max(end - x, least), height);
  };
  const custom = (points, renderItem, z, more = {}) => ({
    type: "custom", xAxisIndex: 0, yAxisIndex: 0, data: points, z, encode: { x: [1, 2], y: 0 }, clip: true, renderItem, tooltip: { trigger: "item" }, ...more,
  });
  const at = (params, api, y) => {
    const [x] = api.coord([api.value(1), api.value(0)]);
    return x < params.coordSys.x - 1 || x > params.coordSys.x + params.coordSys.width + 1 ? null : [x, y];
  };
  const series = [
    shade(0),
    custom(phases.map((phase) => ({ value: [0, phase.start, phase.end], phase })), (params, api) => {
      const phase = phases[params.dataIndex];
      const shape = between(params, api, params.coordSys.y + 2, 20);
      if (!shape) return null;
      const fault = phase.kind === "fault";
      if (phase.kind === "before") return { type: "group", children: inside(phase.name, shape, colour("muted"), 11) };
      return { type: "group", children: [
        { type: "rect", shape: { ...shape, x: shape.x + 1, width: Math.max(shape.width - 2, 1), r: 3 }, style: fault ? { fill: colour("fault"), opacity: 0.9 } : { fill: colour(phase.kind === "recovery" ? "recovery-tint" : "raised"), stroke: colour("strong-line") } },
        ...inside(phase.name, shape, fault ? colour("on-light") : colour("muted"), 11.5),
      ] };
    }, 3, { tooltip: { trigger: "item", formatter: ({ data: { phase } }) => tip(`<b>${esc(phase.name)}</b>`, `${PHASE[phase.kind]}, ${clock(phase.start)} to ${clock(phase.end)} (${span(phase.end - phase.start)})`) } }),
    custom(states, (params, api) => {
      const { state, pod } = states[params.dataIndex];
      const shape = between(params, api, top(api, api.value(0)), bar);
      if (!shape) return null;
      const text = state === "serving" ? (narrow || shape.width < 120 ? "" : pod.name) : STATE[state];
      const outlined = state === "silent" || state === "pending" || state === "notReady";
      const body = outlined ? { x: shape.x + 0.75, y: shape.y + 0.75, width: Math.max(shape.width - 1.5, 0.5), height: shape.height - 1.5, r: 2 } : { ...shape, r: 2 };
      return { type: "group", children: [{ type: "rect", shape: body, style: STYLE_OF[state]() }, ...(dense || !text ? [] : inside(text, shape, colour(INK_IN[state])))] };
    }, 4, { tooltip: { trigger: "item", formatter: ({ data: { pod, state, value, until } }) => tip(`<b>${esc(pod.name)}</b> on ${esc(pod.node)}`, `${STATE[state]}, ${clock(value[1])} to ${clock(until)} (${span(until - value[1])})`) } }),
    custom(golden, (params, api) => {
      const { run } = golden[params.dataIndex];
      const y = top(api, api.value(0)) + bar + 3;
      const shape = between(params, api, y, strip, 1.5);
      if (!shape) return null;
      const middle = y + strip / 2;
      if (run.answer === "none") return { type: "line", shape: { x1: shape.x, x2: shape.x + shape.width, y1: middle, y2: middle }, style: { stroke: colour("noanswer"), lineWidth: 2, lineDash: [2, 2.5] } };
      if (run.answer === "match") return { type: "rect", shape: { ...shape, y: y + 1, height: strip - 2, r: 1 }, style: { fill: colour("match") } };
      const half = strip / 2 + 2;
      return { type: "group", children: [
        { type: "rect", shape, style: { fill: colour("mismatch") } },
        { type: "polygon", shape: { points: [[shape.x, middle - half], [shape.x + half, middle], [shape.x, middle + half], [shape.x - half, middle]] }, style: { fill: colour("mismatch"), stroke: colour("surface"), lineWidth: 1 } },
      ] };
    }, 5, { tooltip: { trigger: "item", formatter: ({ data: { pod, run } }) => tip(`<b>Golden replays</b>, ${esc(pod.name)}`, `${count(run.replays)} ${run.answer === "mismatch" ? "replays, some of which " : "replays "}${ANSWER[run.answer]}`, `${clock(run.start)} to ${clock(run.end)}`, run.detail && `<small>${esc(run.detail)}</small>`) } }),
    custom(braces, (params, api) => {
      const { outage } = braces[params.dataIndex];
      const y = top(api, api.value(0)) + bar + strip + (dense ? 5 : 10);
      const shape = between(params, api, y, 1, 2);
      if (!shape) return null;
      const end = shape.x + shape.width;
      const stroke = colour("brace");
      // It began before what is shown.
      const [began] = api.coord([outage.start, api.value(0)]);
      const earlier = began < params.coordSys.x - 1;
      const label = `#${outage.id}  ${earlier ? `◀ since ${clock(outage.start, false)}, ` : ""}${outage.censored ? "≥ " : ""}${span(outage.capacityMs)}${outage.censored ? ", not recovered" : ""}`;
      // Beside its end where there is room, else on a line below; left out where another label stands already: the tooltip has it.
      if (params.dataIndex === 0) taken = [];
      const wide = label.length * 6.4;
      const area = params.coordSys.x + params.coordSys.width;
      // Marks may lie beyond the end: a prediction that was right after good service had begun.
      const last = Math.max(end, ...outage.marks.map(([, at]) => Math.min(api.coord([at, api.value(0)])[0], area))) + 9;
      const below = last + wide > area;
      const x = below ? Math.max(params.coordSys.x, Math.min(shape.x, area - wide)) : last;
      const row = api.value(0) * 2 + (below ? 1 : 0);
      const free = !taken.some((other) => other.row === row && x < other.end + 6 && other.x < x + wide + 6);
      if (free) taken.push({ row, x, end: x + wide });
      return { type: "group", children: [
        { type: "line", shape: { x1: shape.x, x2: end, y1: y, y2: y }, style: { stroke, lineWidth: 1.5, lineDash: outage.censored ? [5, 3] : undefined } },
        ...(earlier ? [{ type: "polygon", shape: { points: [[shape.x, y], [shape.x + 7, y - 4.5], [shape.x + 7, y + 4.5]] }, style: { fill: stroke } }] : []),
        { type: "rect", shape: { x: shape.x, y: y - 5, width: Math.max(shape.width, 4), height: 10 }, style: { fill: "transparent" } },
        ...(dense || !free ? [] : [{ type: "text", silent: true, style: { text: label, x: x + (below ? wide : 0), y: below ? y + 13 : y, align: below ? "right" : "left", verticalAlign: "middle", fill: stroke, font: `11px ${FONT}` } }]),
      ] };
    }, 6, { tooltip: { trigger: "item", formatter: ({ data: { outage } }) => outageTip(outage) } }),
    custom(ticks, (params, api) => {
      const { mark } = ticks[params.dataIndex];
      const y = top(api, api.value(0)) + bar + strip + (dense ? 5 : 10);
      const place = at(params, api, y);
      if (!place) return null;
      const [x] = place;
      const stroke = colour("brace");
      const ends = mark === "fault" || mark === "sustained";
      const body = mark === "firstCorrectPrediction"
        ? { type: "polygon", shape: { points: [[x, y - 4.5], [x + 4.5, y], [x, y + 4.5], [x - 4.5, y]] }, style: { fill: colour("surface"), stroke, lineWidth: 1.5 } }
        : { type: "line", shape: { x1: x, x2: x, y1: y - (ends ? 6 : 4), y2: y + (ends ? 3 : 1) }, style: { stroke, lineWidth: ends ? 2 : 1.25 } };
      return { type: "group", children: [{ type: "rect", shape: { x: x - 3, y: y - 7, width: 6, height: 12 }, style: { fill: "transparent" } }, body] };
    }, 7, { tooltip: { trigger: "item", formatter: ({ data: { outage, mark, value } }) => tip(`<b>${MARK[mark][0]}: ${MARK[mark][1]}</b>`, `${clock(value[1])}, ${span(value[1] - outage.start)} after t0`, `<small>outage #${outage.id} of ${esc(outage.pod)}</small>`) } }),
    custom(verdicts, (params, api) => {
      const { verdict } = verdicts[params.dataIndex];
      const place = at(params, api, top(api, api.value(0)) + bar + 3 + strip / 2);
      if (!place || dense) return null;
      const x = Math.max(place[0], params.coordSys.x + 8), y = place[1];
      const fill = colour(verdict === "Pass" ? "pass" : verdict === "Fail" ? "fail" : verdict === "Inconclusive" ? "inconclusive" : "halted");
      return { type: "group", children: [
        { type: "rect", shape: { x: x - 7, y: y - 7, width: 14, height: 14, r: verdict === "Fail" ? 1 : 7 }, style: { fill, stroke: colour("surface"), lineWidth: 1.5 } },
        { type: "text", silent: true, style: { text: verdict === "ReferenceBroken" ? "R" : verdict === "Inconclusive" ? "?" : verdict[0], x, y: y + 0.5, align: "center", verticalAlign: "middle", fill: colour("surface"), font: `bold 10px ${FONT}` } },
      ] };
    }, 8, { tooltip: { trigger: "item", formatter: ({ data: { pod, set, verdict, value } }) => tip(`<b>Golden verdict: ${esc(verdict)}</b>`, `${esc(pod.name)}, set ${esc(set)}, at ${clock(value[1])}`) } }),
    custom(lanes.map((lane, position) => ({ value: [position + 1, 0, 0], lane })), (params, api) => {
      const { pods: [pod] } = lanes[params.dataIndex];
      const area = params.coordSys;
      const y = above(api, params.dataIndex + 1);
      const text = (string, x, y, fill, size, more) => ({ type: "text", style: { text: string, x, y, fill, font: `${size}px ${FONT}`, verticalAlign: "middle", overflow: "truncate", ellipsis: "…", ...more } });
      const label = narrow ? [text(`${pod.name} · ${pod.node}`, area.x + 2, y + 10, colour("muted"), 11, { width: area.width - 4 })]
        : dense ? [text(short(pod.name), area.x - 9, y + size / 2, colour("ink"), 11, { align: "right", width: area.x - 12 })]
        : [text(short(pod.name), area.x - 9, y + size / 2 - 9, colour("ink"), 12, { align: "right", width: area.x - 12 }), text(pod.node, area.x - 9, y + size / 2 + 8, colour("muted"), 11, { align: "right", width: area.x - 12 })];
      return { type: "group", children: [{ type: "line", shape: { x1: area.x, x2: area.x + area.width, y1: y - 0.5, y2: y - 0.5 }, style: { stroke: colour("line") } }, ...label] };
    }, 2, { silent: true, clip: false, tooltip: { show: false } }),
  ];
  return { series, rows: RIBBON / size + lanes.length, height: size * lanes.length + RIBBON, marks: states.length + data.phases.length + golden.length + braces.length + ticks.length };
};

const outageTip = (outage) => tip(
  `<b>Outage #${outage.id}</b>: ${esc(outage.pod)} on ${esc(outage.node)}`,
  esc(outage.cause),
  outage.replacement ? `replaced by ${esc(outage.replacement === outage.pod ? "itself" : outage.replacement)}` : "not replaced",
  `<table>${outage.marks.map(([mark, at]) => `<tr><td>${MARK[mark][0]}</td><td>${MARK[mark][1]}</td><td>+${span(at - outage.start)}</td></tr>`).join("")}</table>`,
  `capacity outage ${outage.censored ? "≥ " : ""}${span(outage.capacityMs)}; routing outage ${outage.routingMs == null ? "none seen" : span(outage.routingMs)}`,
);
