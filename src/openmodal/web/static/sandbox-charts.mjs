// What a sandbox uses, as long as the page's server has watched it.

import { Nothing, call, html, loadCharts, size, useEffect, useRef, useState } from "./parts.mjs";

const MEBI = 2 ** 20;
const MOST = 3600;
const GAP = 5; // seconds
const HEIGHT = 190;

const CHARTS = [
  { title: "CPU, in cores", lines: { cores: (s) => s.cores }, least: 0.1, words: (v) => (v == null ? "–" : v.toFixed(2)) },
  { title: "Memory", lines: { memory: (s) => (s.memory == null ? null : s.memory * MEBI) }, least: MEBI, words: size, binary: true },
  { title: "Processes", lines: { processes: (s) => s.processes }, least: 4, words: (v) => (v == null ? "–" : v.toFixed(0)), whole: true },
  { title: "Written to disk", lines: { written: (s) => s.written }, least: 4096, words: size, binary: true },
  { title: "Network, in all", lines: { in: (s) => s.received, out: (s) => s.sent }, least: 4096, words: size, binary: true },
];

export function Charts({ id, live, rows, about }) {
  const [samples, know] = useState(null);
  const now = rows.get("use");
  useEffect(() => {
    call(`/sandbox/${encodeURIComponent(id)}/samples`).then(know, () => know([]));
  }, [id]);
  useEffect(() => {
    if (now && samples && now.at > (samples.at(-1)?.at ?? 0)) know([...samples.slice(1 - MOST), now]);
  }, [now?.at, !samples]);
  if (about.lacks.includes("usage")) return html`<${Nothing} title="This engine does not tell what a sandbox uses." />`;
  if (!samples) return null;
  if (samples.length < 2) return html`<${Nothing} title=${live ? "Measuring …" : "Nobody measured it while it ran."}>
    <p>It is measured each second while a page shows it.</p></${Nothing}>`;
  return html`<link rel="stylesheet" href="/vendor/uplot.css" />
    <div class="cards charts">${CHARTS.filter((chart) => told(chart, samples)).map((chart) => html`<${Chart} key=${chart.title} ...${{ chart, samples }} />`)}</div>`;
}

const told = (chart, samples) => samples.some((s) => Object.values(chart.lines).some((line) => line(s) != null));

/** Where nobody measured for a while, there is no line. */
function gapped(samples) {
  return samples.flatMap((s, i) => (i && s.at - samples[i - 1].at > GAP ? [{ at: s.at - 1 }, s] : [s]));
}

function Chart({ chart, samples }) {
  const box = useRef();
  const drawn = useRef();
  const names = Object.keys(chart.lines);
  const shown = gapped(samples);
  const data = [shown.map((s) => s.at), ...names.map((name) => shown.map((s) => chart.lines[name](s) ?? null))];
  const { words } = chart;
  useEffect(() => {
    let ended = false;
    const at = box.current;
    const watch = new ResizeObserver(() => drawn.current?.setSize({ width: at.clientWidth, height: HEIGHT }));
    loadCharts().then((Plot) => {
      if (ended) return;
      drawn.current = new Plot(options(at, names, chart), data, at);
      watch.observe(at);
    });
    return () => {
      ended = true;
      watch.disconnect();
      drawn.current?.destroy();
    };
  }, []);
  useEffect(() => drawn.current?.setData(data));
  const last = names.map((name) => chart.lines[name](samples.at(-1)));
  return html`<section class="card chart">
    <h2>${chart.title}</h2>
    <p class="now" aria-live="off">${last.map((value, i) => `${names.length > 1 ? `${names[i]} ` : ""}${value == null ? "–" : words(value)}`).join(" · ")}</p>
    <div ref=${box} role="img" aria-label=${`${chart.title}, as a chart`}></div>
  </section>`;
}

/** Round numbers of bytes are powers of two. */
const TIMES = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600];
const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
const BINARY = [...Array(50)].map((_, power) => 2 ** power);

function options(box, names, { words, least, whole, binary }) {
  // A canvas takes no light-dark(): an element does, and is asked at each drawing.
  const probe = box.appendChild(document.createElement("i"));
  const colour = (name) => () => ((probe.style.color = `var(${name})`), getComputedStyle(probe).color);
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const strokes = [colour("--accent"), colour("--middle")];
  return {
    width: box.clientWidth, height: HEIGHT, legend: { show: false }, cursor: { show: false },
    scales: { y: { range: (u, low, high) => [0, Math.max(high || 0, least) * 1.1] } },
    axes: [{ ...axis, values: (u, ticks) => ticks.map((t) => new Date(t * 1000).toLocaleTimeString([], { hour12: false })), space: 80, incrs: TIMES },
      { ...axis, size: 72, values: (u, ticks) => ticks.map(words), space: 26, ...(binary && { incrs: BINARY }), ...(whole && { incrs: WHOLE }) }],
    series: [{}, ...names.map((label, i) => ({ label, stroke: strokes[i], width: 2, points: { show: false } }))],
  };
}
