// Each outage from its t0: what was being waited for, until which mark; below each bar the stretch in which users saw failures.
const waterfallChart = (narrow, width) => {
  const bars = data.bars.map((id) => data.outages.find((outage) => outage.id === id));
  const parts = [], routings = [], dots = [], ends = [];
  bars.forEach((outage, row) => {
    // When users notice is no step of recovery: it begins the line below.
    const steps = outage.marks.filter(([mark]) => mark !== "firstFailure");
    for (let i = 1; i < steps.length; i++) {
      const [mark, at] = steps[i];
      const [from, since] = steps[i - 1];
      if (at > since) parts.push({ value: [row, since - outage.start, at - outage.start], outage, mark, from });
    }
    const last = steps.length ? steps[steps.length - 1][1] - outage.start : 0;
    if (outage.censored && outage.capacityMs > last) parts.push({ value: [row, last, outage.capacityMs], outage, mark: null, from: steps.length ? steps[steps.length - 1][0] : null });
    const first = outage.marks.find(([mark]) => mark === "firstFailure");
    if (first && outage.routingMs != null) routings.push({ value: [row, first[1] - outage.start, first[1] - outage.start + outage.routingMs], outage });
    const correct = outage.marks.find(([mark]) => mark === "firstCorrectPrediction");
    if (correct) dots.push({ value: [row, correct[1] - outage.start, correct[1] - outage.start], outage });
    ends.push({ value: [row, Math.max(outage.capacityMs, last), 0], outage });
  });
  const longest = Math.max(1, ...ends.map(({ value }) => value[1]), ...routings.map(({ value }) => value[2]), ...data.floor.map((limit) => limit.ms));
  const size = narrow ? 54 : bars.length > 16 ? 32 : 40, label = narrow ? 16 : 0;
  const left = narrow ? 8 : 204, right = narrow ? 70 : 118;
  const middle = (api, row) => api.coord([0, row])[1] + label / 2;
  const stretch = (params, api, y, height, least) => {
    const [x] = api.coord([api.value(1), api.value(0)]);
    const [end] = api.coord([api.value(2), api.value(0)]);
    return cut(params.coordSys, x, y, Math.max(end - x, least), height);
  };
  const custom = (points, renderItem, z, more = {}) => ({ type: "custom", data: points, z, encode: { x: [1, 2], y: 0 }, renderItem, ...more });
  const step = timeStep(longest, narrow ? 4 : 9);
  return {
    height: 34 + size * bars.length + 34 + (data.floor.length ? 16 : 0),
    marks: parts.length + routings.length + dots.length,
    option: {
      grid: { outerBoundsMode: "none", left, right, top: data.floor.length ? 42 : 12, bottom: 34 },
      tooltip: { ...tooltipStyle(), trigger: "item" },
      xAxis: { type: "value", min: 0, max: longest, interval: step, axisLabel: { color: colour("muted"), fontSize: 11, formatter: (ms) => (ms === 0 ? "t0" : `+${round(ms)}`), showMaxLabel: longest % step === 0, hideOverlap: true }, axisLine: { show: true, lineStyle: { color: colour("strong-line") } }, splitLine: { lineStyle: { color: colour("line") } } },
      yAxis: {
        type: "category", inverse: true, data: bars.map((outage) => `{name|#${outage.id} ${plain(short(outage.pod, 21))}}\n{node|${plain(`${outage.node} · ${outage.cause}`)}}`), axisLine: { show: false }, axisTick: { show: false },
        axisLabel: { show: !narrow, interval: 0, width: left - 16, overflow: "truncate", rich: { name: { color: colour("ink"), fontSize: 12, lineHeight: 16 }, node: { color: colour("muted"), fontSize: 11, lineHeight: 14, align: "right" } } },
      },
      series: [
        custom(parts, (params, api) => {
          const { mark } = parts[params.dataIndex];
          const shape = stretch(params, api, middle(api, api.value(0)) - 10, 15, 1);
          if (!shape) return null;
          const open = mark === null;
          const text = open ? "not recovered" : MARK[mark][1].replace(/^(server’s|first|sustained) /, "").replace("to a node", "");
          return { type: "group", children: [
            { type: "rect", shape: { ...shape, x: shape.x + 0.5, width: Math.max(shape.width - 1, 0.75) }, style: open ? { fill: "transparent", stroke: colour("noanswer"), lineDash: [4, 3] } : { fill: colour(PART[mark]) } },
            ...(shape.width > 62 ? inside(text, shape, open ? colour("muted") : colour(PART[mark] === "starting" || PART[mark] === "returning" ? "bar-ink" : "on-light")) : []),
          ] };
        }, 3, { tooltip: { formatter: ({ data: { outage, mark, from, value } }) => tip(`<b>${mark ? `until ${MARK[mark][0]}: ${MARK[mark][1]}` : "not recovered when the run ended"}</b>`, `${span(value[2] - value[1])}${from ? `, from ${MARK[from][0]} (${MARK[from][1]})` : ""}`, `<small>+${span(value[1])} to +${span(value[2])}; outage #${outage.id} of ${esc(outage.pod)}</small>`) } }),
        custom(routings, (params, api) => {
          const shape = stretch(params, api, middle(api, api.value(0)) + 7, 3, 2);
          return shape && { type: "rect", shape, style: { fill: colour("ink") } };
        }, 4, { tooltip: { formatter: ({ data: { outage, value } }) => tip(`<b>Routing outage ${span(outage.routingMs)}</b>`, `users saw failures from +${span(value[1])} to +${span(value[2])}`) } }),
        custom(dots, (params, api) => {
          const [x] = api.coord([api.value(1), api.value(0)]);
          const y = middle(api, api.value(0)) - 2.5;
          return { type: "polygon", shape: { points: [[x, y - 6], [x + 6, y], [x, y + 6], [x - 6, y]] }, style: { fill: colour("surface"), stroke: colour("ink"), lineWidth: 2 } };
        }, 5, { tooltip: { formatter: ({ data: { outage, value } }) => tip(`<b>First correct prediction</b>`, `+${span(value[1])}; outage #${outage.id} of ${esc(outage.pod)}`) } }),
        custom(ends, (params, api) => {
          const { outage } = ends[params.dataIndex];
          const [x] = api.coord([api.value(1), api.value(0)]);
          const y = middle(api, api.value(0)) - 2.5;
          const text = (string, y, fill, font) => ({ type: "text", silent: true, style: { text: string, x: x + 9, y, verticalAlign: "middle", fill, font } });
          return { type: "group", silent: true, children: [
            text(`${outage.censored ? "≥ " : ""}${span(outage.capacityMs)}`, narrow || outage.routingMs == null ? y : y - 6, colour("ink"), `bold 12px ${FONT}`),
            ...(narrow || outage.routingMs == null ? [] : [text(`users: ${span(outage.routingMs)}`, y + 8, colour("muted"), `11px ${FONT}`)]),
            ...(narrow ? [{ type: "text", silent: true, style: { text: `#${outage.id} ${outage.pod} · ${outage.cause}`, x: params.coordSys.x, y: y - 24, fill: colour("muted"), font: `11px ${FONT}`, width: width - 16, overflow: "truncate" } }] : []),
          ] };
        }, 6, { silent: true, tooltip: { show: false }, ...(data.floor.length ? {
          markLine: {
            silent: true, symbol: "none", animation: false, lineStyle: { color: colour("fail"), type: [2, 3], width: 1.5 }, label: { show: true, position: "start", color: colour("fail"), fontSize: 11, lineHeight: 13, formatter: ({ data: item }) => item.name },
            data: data.floor.map((limit, i) => ({ xAxis: limit.ms, name: narrow ? `${i ? "" : "floor "}${round(limit.ms)}` : `floor ${round(limit.ms)}\n${limit.label}`, label: { align: i || narrow ? "left" : "right", padding: i || narrow ? [0, 0, 0, 4] : [0, 4, 0, 0] } })),
          },
        } : {}) }),
      ],
    },
  };
};
