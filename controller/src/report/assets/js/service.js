// Availability by cause and latency, on the lanes' own axis: together they are one chart with one zoom.
const CAUSES = [
  ["good", "good"], ["wrong", "wrong"], ["failedUpstream", "upstream"], ["failedInjected", "injected"], ["failedProxy", "proxy"], ["failedSilence", "silence"],
];
const CAUSE_NAME = { good: "good", wrong: "wrong answer", failedUpstream: "model server’s error", failedInjected: "injected", failedProxy: "sidecar or gateway", failedSilence: "silence" };

// Buckets with the same shares side by side are one rectangle: a quiet minute is one mark.
const availabilityRuns = () => {
  const { bucketMs, attempted } = data.series;
  const runs = [];
  attempted.forEach((all, i) => {
    if (!all) return;
    const shares = CAUSES.map(([key]) => data.series[key][i] / all);
    const last = runs[runs.length - 1];
    if (last && last.end === i && last.shares.every((share, k) => share === shares[k])) last.end = i + 1;
    else runs.push({ start: i, end: i + 1, shares });
  });
  return runs.flatMap(({ start, end, shares }) => {
    let from = 0;
    return shares.flatMap((share, k) => {
      const bottom = from;
      from += share;
      return share > 0 ? [{ value: [start * bucketMs, end * bucketMs, bottom * 100, from * 100], colour: CAUSES[k][1] }] : [];
    });
  });
};

// Steps between buckets with gaps where nothing was measured; the log axis knows no zero.
const latencyLine = (values) => {
  const { bucketMs } = data.series;
  const points = [];
  values.forEach((ms, i) => {
    if (ms == null) {
      if (points.length && points[points.length - 1][1] != null) points.push([i * bucketMs, null]);
      return;
    }
    points.push([(i + 0.5) * bucketMs, Math.max(ms, 0.01)]);
  });
  // A value between two gaps would be a line without length: it becomes a short one.
  return points.flatMap((point, i) => {
    const alone = point[1] != null && (points[i - 1]?.[1] ?? null) === null && (points[i + 1]?.[1] ?? null) === null;
    return alone ? [[point[0] - bucketMs * 0.4, point[1]], [point[0] + bucketMs * 0.4, point[1]]] : [point];
  });
};

const bucketTip = (params) => {
  const at = params[0]?.axisValue;
  if (at === undefined || at < 0) return "";
  const { bucketMs, attempted, p50, p99 } = data.series;
  const i = Math.min(attempted.length - 1, Math.max(0, Math.floor(at / bucketMs)));
  const phase = data.phases.find((phase) => phase.start <= at && at < phase.end);
  const head = `<b>${clock(i * bucketMs)} to ${clock((i + 1) * bucketMs)}</b>${phase ? ` · ${esc(phase.name)}` : ""}`;
  if (!attempted[i]) return tip(head, "no request");
  const rows = CAUSES.filter(([key]) => data.series[key][i] > 0).map(([key]) => `<tr><td>${CAUSE_NAME[key]}</td><td>${count(data.series[key][i])}</td><td>${percent(data.series[key][i] / attempted[i])}</td></tr>`);
  const latency = p99[i] == null ? "no latency measured" : `p50 ${p50[i] == null ? "–" : span(p50[i])}, p99 ${span(p99[i])}`;
  return tip(head, `${count(attempted[i])} requests`, `<table>${rows.join("")}</table>${latency}`);
};

// Times at whole seconds or minutes, some `most` of them.
const timeStep = (range, most) => [100, 200, 500, 1e3, 2e3, 5e3, 1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 12e5, 18e5, 36e5, 72e5].find((step) => range / step <= most) ?? 144e5;
const ticks = (from, to, narrow) => {
  const step = timeStep(to - from, narrow ? 5 : 11);
  return Array.from({ length: Math.floor(to / step) - Math.ceil(from / step) + 1 }, (_, i) => (Math.ceil(from / step) + i) * step);
};

const timeAxis = (index, narrow, labelled) => ({
  type: "value", gridIndex: index, min: data.beginMs, max: data.durationMs,
  axisLabel: { show: labelled, color: colour("muted"), fontSize: 11, formatter: (ms) => clock(ms), hideOverlap: true, customValues: ticks(data.beginMs, data.durationMs, narrow) },
  axisLine: { show: true, onZero: false, lineStyle: { color: colour("strong-line") } }, axisTick: { show: labelled, customValues: ticks(data.beginMs, data.durationMs, narrow) }, splitLine: { show: false },
  axisPointer: { show: index > 0, type: "line", snap: false, label: { show: false }, lineStyle: { color: colour("muted"), type: "dashed" } },
});


const serviceSeries = (narrow) => {
  const runs = availabilityRuns();
  const p50 = latencyLine(data.series.p50);
  const p99 = latencyLine(data.series.p99);
  const line = (name, points, style) => ({
    type: "line", name, xAxisIndex: 2, yAxisIndex: 2, data: points, showSymbol: false, connectNulls: false, z: 5, lineStyle: { width: 1.75, ...style }, itemStyle: { color: style.color }, emphasis: { disabled: true }, silent: true,
  });
  const limits = data.latencyLimits.filter((limit) => limit.ms > 0);
  const values = [...data.series.p50, ...data.series.p99].filter((ms) => ms != null);
  const low = values.length ? Math.max(0.01, Math.min(...values)) : 1;
  const high = Math.max(...(values.length ? values : [100]), ...limits.map((limit) => limit.ms));
  return {
    marks: runs.length + (p50.length ? 1 : 0) + (p99.length ? 1 : 0),
    min: 10 ** Math.floor(Math.log10(low)), max: 10 ** Math.ceil(Math.log10(high * 1.02)),
    series: [
      shade(1),
      {
        type: "custom", xAxisIndex: 1, yAxisIndex: 1, data: runs, z: 3, encode: { x: [0, 1], y: [2, 3] }, clip: true, silent: true, emphasis: { disabled: true },
        renderItem: (params, api) => {
          const [x, bottom] = api.coord([api.value(0), api.value(2)]);
          const [end, top] = api.coord([api.value(1), api.value(3)]);
          // On whole pixels, so that neighbours leave no seam.
          const left = Math.round(x);
          const shape = cut(params.coordSys, left, top, Math.max(Math.round(end) - left, 1), Math.max(bottom - top, 1));
          return shape && { type: "rect", shape, style: { fill: colour(runs[params.dataIndex].colour), opacity: runs[params.dataIndex].colour === "good" ? 0.75 : 1 } };
        },
      },
      // Not seen: gives the pointer a value in every bucket.
      { type: "line", xAxisIndex: 1, yAxisIndex: 1, data: data.series.attempted.map((_, i) => [(i + 0.5) * data.series.bucketMs, 0]), symbol: "none", silent: true, lineStyle: { opacity: 0 }, emphasis: { disabled: true } },
      shade(2),
      {
        ...line("p99", p99, { color: colour("p99") }),
        markLine: {
          silent: true, symbol: "none", animation: false, lineStyle: { color: colour("muted"), type: "dashed", width: 1 },
          label: { position: "insideEndTop", color: colour("muted"), fontSize: 11, formatter: ({ data: item }) => item.name },
          data: limits.map((limit) => ({ yAxis: limit.ms, name: limit.label })),
        },
      },
      line("p50", p50, { color: colour("p50"), type: [5, 3] }),
    ],
  };
};

const timelineChart = (narrow) => {
  const lanes = timelineLanes(narrow);
  const service = serviceSeries(narrow);
  const some = data.series.attempted.some((all) => all > 0);
  const left = narrow ? 52 : 186, right = narrow ? 16 : 18;
  const rows = lanes.height;
  const first = 8 + rows, gap = 34, tall = narrow ? 96 : 116;
  const availabilityTop = first + gap, latencyTop = availabilityTop + tall + gap;
  const bottom = some ? latencyTop + tall : first;
  const height = bottom + 62;
  const axes = [timeAxis(0, narrow, !some), ...(some ? [timeAxis(1, narrow, false), timeAxis(2, narrow, true)] : [])];
  const axisTip = { show: true, trigger: "axis" };
  const grids = [{ left, right, top: 8, height: rows, outerBoundsMode: "none" }, ...(some ? [{ left, right, top: availabilityTop, height: tall, tooltip: axisTip, outerBoundsMode: "none" }, { left, right, top: latencyTop, height: tall, tooltip: axisTip, outerBoundsMode: "none" }] : [])];
  return {
    height, marks: lanes.marks + (some ? service.marks : 0),
    option: {
      grid: grids,
      xAxis: axes,
      yAxis: [
        { type: "value", gridIndex: 0, inverse: true, min: 0, max: lanes.rows, show: false },
        ...(some ? [
          { type: "value", gridIndex: 1, min: 0, max: 100, interval: 50, name: "Availability", axisLabel: { color: colour("muted"), fontSize: 11, formatter: "{value}%" }, splitLine: { lineStyle: { color: colour("line") } } },
          { type: "log", gridIndex: 2, min: service.min, max: service.max, name: "Latency", axisLabel: { color: colour("muted"), fontSize: 11, formatter: (ms) => (ms >= 1000 ? `${ms / 1000} s` : `${ms} ms`) }, splitLine: { lineStyle: { color: colour("line") } } },
        ].map((axis) => ({ ...axis, nameLocation: "end", nameGap: 9, nameTextStyle: { color: colour("ink"), fontSize: 12, fontWeight: 600, align: "left", padding: [0, 0, 0, narrow ? -40 : -44] }, axisLine: { show: false, onZero: false }, axisTick: { show: false } })) : []),
      ],
      tooltip: { ...tooltipStyle(), trigger: "item", formatter: (params) => (Array.isArray(params) ? bucketTip(params) : ""), axisPointer: { type: "line" } },
      axisPointer: { link: [{ xAxisIndex: "all" }] },
      dataZoom: [
        { type: "slider", xAxisIndex: axes.map((_, i) => i), filterMode: "none", left, right, bottom: 10, height: 22, showDataShadow: false, brushSelect: false, labelFormatter: (ms) => clock(ms), textStyle: { color: colour("muted"), fontSize: 11 }, borderColor: colour("line"), fillerColor: colour("recovery-tint"), handleStyle: { color: colour("surface"), borderColor: colour("muted") }, moveHandleStyle: { color: colour("strong-line") }, showDetail: !narrow },
        // The wheel scrolls the page; with a modifier it zooms.
        { type: "inside", xAxisIndex: axes.map((_, i) => i), filterMode: "none", zoomOnMouseWheel: "ctrl", moveOnMouseMove: !narrow, preventDefaultMouseMove: false },
      ],
      series: some ? [...lanes.series, ...service.series] : lanes.series,
    },
  };
};
