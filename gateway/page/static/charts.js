// Throughput, latency and errors over time.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { stats as readStats } from "./api.js";
import { count, date, hourAndMinute, span, timeOfDay, when } from "./format.js";
import { WINDOWS } from "./filters.js";
import { Link } from "./places.js";

const REFRESH_MS = { "15m": 3000, "1h": 5000, "6h": 15_000, "24h": 30_000, "7d": 60_000 };
const HEIGHT = 96;
const DAY_SECONDS = 86_400;
const FEW_POINTS = 12; // below this, dots are drawn too: a line alone would show nothing, or values that were not measured
const { uPlot } = window;

const answers = (bucket) => bucket.completed + bucket.incomplete;
const total = (buckets, value) => buckets.reduce((sum, bucket) => sum + (value(bucket) ?? 0), 0);

const CHARTS = [
  {
    title: "Answers",
    series: [{ name: "finished", colour: "--chart-1", bars: true, value: answers }],
    headline: (stats) => count(total(stats.buckets, answers)),
    note: (stats) => `${count(total(stats.buckets, (b) => b.tokens))} tokens`,
    written: count,
  },
  {
    title: "Latency",
    series: [
      { name: "p95", colour: "--chart-3", value: (b) => b.latencyP95 },
      { name: "median", colour: "--chart-1", value: (b) => b.latencyP50 },
      { name: "first token", colour: "--chart-2", value: (b) => b.firstTokenP50 },
    ],
    headline: (stats) => span(latest(stats, (b) => b.latencyP50)),
    note: () => "median, newest",
    written: span,
  },
  {
    title: "Errors",
    series: [{ name: "failed", colour: "--chart-error", bars: true, value: (b) => b.failed }],
    headline: (stats) => count(total(stats.buckets, (b) => b.failed)),
    note: (stats) => share(total(stats.buckets, (b) => b.failed), total(stats.buckets, (b) => answers(b) + b.failed)),
    written: count,
  },
];

const latest = (stats, value) => stats.buckets.map(value).filter((found) => found != null).at(-1);
const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(part && part < whole ? 1 : 0)} % of all that ended` : "nothing ended yet");

/** The figures of a window, polled while the tab is visible. */
function useStats(window) {
  const [stats, set] = useState(null);
  useEffect(() => {
    let over = false;
    const look = () => {
      if (document.hidden) return;
      readStats(window).then(
        (found) => over || set(found),
        () => {}, // the next request may succeed; the state of the connection is shown at the top
      );
    };
    look();
    const timer = setInterval(look, REFRESH_MS[window]);
    document.addEventListener("visibilitychange", look);
    return () => {
      over = true;
      clearInterval(timer);
      document.removeEventListener("visibilitychange", look);
    };
  }, [window]);
  return stats;
}

export function Charts({ window, hrefOf }) {
  const stats = useStats(window);
  return html`<section class="charts" aria-label="Figures">
    <nav class="windows" aria-label="Time window">
      ${Object.entries(WINDOWS).map(
        ([name, title]) => html`<${Link} href=${hrefOf(name)} aria-current=${name === window ? "true" : undefined}>${title}<//>`,
      )}
    </nav>
    <div class="three" tabindex="0" role="group" aria-label="Charts">${CHARTS.map((chart) => html`<${Chart} key=${chart.title} chart=${chart} stats=${stats} />`)}</div>
  </section>`;
}

function Chart({ chart, stats }) {
  const place = useRef(null);
  const plot = useRef(null);
  const [at, setAt] = useState(null);

  useEffect(() => {
    const make = () => {
      plot.current?.destroy();
      plot.current = drawn(chart, place.current, setAt);
    };
    make();
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const sized = new ResizeObserver(() => plot.current.setSize({ width: place.current.clientWidth, height: HEIGHT }));
    dark.addEventListener("change", make);
    sized.observe(place.current);
    return () => {
      dark.removeEventListener("change", make);
      sized.disconnect();
      plot.current.destroy();
    };
  }, []);
  useEffect(() => {
    if (stats) plot.current.setData(columns(chart, stats));
  }, [stats]);

  const bucket = at != null && stats?.buckets[at];
  return html`<figure class="card chart" aria-label=${stats ? `${chart.title}: ${chart.headline(stats)}, ${chart.note(stats)}` : chart.title}>
    <figcaption>
      <h2>${chart.title}</h2>
      <strong>${stats ? chart.headline(stats) : "–"}</strong>
      <small class="muted">${bucket ? `${stats.bucketSeconds < 3600 ? timeOfDay(bucket.at) : when(bucket.at)}` : stats ? chart.note(stats) : ""}</small>
    </figcaption>
    <div class="plot" ref=${place} aria-hidden="true"></div>
    <ul class="legend" aria-hidden="true">
      ${chart.series.map(
        (one) => html`<li><i data-colour=${one.colour} />${one.name}${bucket ? html` <b>${chart.written(one.value(bucket))}</b>` : ""}</li>`,
      )}
    </ul>
  </figure>`;
}

const columns = (chart, stats) => [
  stats.buckets.map((bucket) => new Date(bucket.at) / 1000),
  ...chart.series.map((one) => stats.buckets.map((bucket) => one.value(bucket) ?? null)),
];

function tick({ scales: { x } }, time) {
  return x.max - x.min > 2 * DAY_SECONDS ? date(time) : hourAndMinute(time);
}

function drawn(chart, place, setAt) {
  const style = getComputedStyle(place);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = {
    stroke: colour("--muted"),
    font: `11px ${style.fontFamily}`,
    ticks: { show: false },
    grid: { stroke: colour("--line"), width: 1 },
  };
  const series = chart.series.map((one) => ({
    stroke: colour(one.colour),
    width: one.bars ? 0 : 2,
    fill: one.bars ? colour(one.colour) : undefined,
    paths: one.bars ? uPlot.paths.bars({ size: [0.72, 18], radius: 0.2 }) : uPlot.paths.linear(),
    points: { show: (plot, place) => !one.bars && plot.data[place].filter((value) => value != null).length < FEW_POINTS, size: 5, fill: colour(one.colour) },
    spanGaps: true,
  }));
  const options = {
    width: place.clientWidth,
    height: HEIGHT,
    padding: [6, 4, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { setScale: false }, points: { show: false } },
    scales: { y: { range: (_plot, _low, high) => [0, Math.max(high ?? 0, 1) * 1.1] } },
    axes: [
      { ...axis, grid: { show: false }, size: 22, space: 70, values: (plot, times) => times.map((time) => tick(plot, time * 1000)) },
      { ...axis, size: 46, space: 34, values: (_plot, values) => values.map((value) => (Number.isInteger(value) ? chart.written(value) : "")) },
    ],
    series: [{}, ...series],
    hooks: { setCursor: [(plot) => setAt(plot.cursor.idx ?? null)] },
  };
  return new uPlot(options, [[], ...chart.series.map(() => [])], place);
}
