// The page around the charts: theme, zoom, copying, printing.
let zoomed = [0, 100];
const drawAll = () => {
  colours = new Map();
  draw("timeline", timelineChart);
  draw("waterfall", waterfallChart);
  charts.get("timeline")?.dispatchAction({ type: "dataZoom", start: zoomed[0], end: zoomed[1] });
  root.dataset.overflow = String(Math.max(0, root.scrollWidth - root.clientWidth));
};

for (const element of document.querySelectorAll(".scripted")) element.hidden = false;

const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
const theme = byId("theme");
const nameTheme = () => {
  theme.textContent = dark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Use ${dark() ? "light" : "dark"} colours`);
};
theme.addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  nameTheme();
  drawAll();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  nameTheme();
  drawAll();
});

const more = byId("all-lanes");
if (more) {
  const say = () => {
    more.hidden = data.lanes.length <= LANES_SHOWN + 4;
    more.textContent = allLanes ? "Show fewer pods" : `Show all ${data.lanes.length} pods (now the ${LANES_SHOWN} where most happened)`;
  };
  more.addEventListener("click", () => {
    allLanes = !allLanes;
    say();
    drawAll();
  });
  say();
}

const zooms = [...document.querySelectorAll(".zoom button")];
const press = () => {
  for (const button of zooms) button.setAttribute("aria-pressed", String(Math.abs(button.dataset.from - zoomed[0]) < 0.01 && Math.abs(button.dataset.to - zoomed[1]) < 0.01));
};
for (const button of zooms) {
  button.addEventListener("click", () => {
    zoomed = [Number(button.dataset.from), Number(button.dataset.to)];
    charts.get("timeline")?.dispatchAction({ type: "dataZoom", start: zoomed[0], end: zoomed[1] });
  });
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const source = byId(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      // A file opened from disk may have no clipboard: select the text instead.
      getSelection().selectAllChildren(source);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

// Paper is light, and narrower than a screen.
let before;
addEventListener("beforeprint", () => {
  before = root.dataset.theme;
  root.dataset.theme = "light";
  for (const details of document.querySelectorAll("details")) {
    details.dataset.open = String(details.open);
    details.open = true;
  }
  for (const element of document.querySelectorAll(".chart")) element.style.width = "700px";
  drawAll();
});
addEventListener("afterprint", () => {
  if (before === undefined) delete root.dataset.theme;
  else root.dataset.theme = before;
  for (const details of document.querySelectorAll("details")) details.open = details.dataset.open === "true";
  for (const element of document.querySelectorAll(".chart")) element.style.width = "";
  drawAll();
});

nameTheme();
drawAll();
charts.get("timeline")?.on("datazoom", () => {
  const timeline = charts.get("timeline");
  const { start, end } = timeline.getOption().dataZoom[0];
  zoomed = [start, end];
  const at = (percent) => data.beginMs + ((data.durationMs - data.beginMs) * percent) / 100;
  const customValues = ticks(at(start), at(end), byId("timeline").clientWidth < 640);
  timeline.setOption({ xAxis: timeline.getOption().xAxis.map(() => ({ axisLabel: { customValues }, axisTick: { customValues } })) });
  press();
});
let width = root.clientWidth;
addEventListener("resize", () => {
  if (root.clientWidth === width) return;
  width = root.clientWidth;
  drawAll();
});
root.dataset.ready = "true";
