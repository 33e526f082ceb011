// Figures over time. The server sends points and marks; the look comes from the page's own colours, dark and light.

import { echarts } from "nicegui-echart";
import { bytes, clockTime, percent } from "treescale/cells.js";
import { part } from "treescale/parts.js";

/** Steps that make round numbers: of bytes powers of two. */
function scale(top, binary) {
  const base = binary ? 2 : 10;
  const rough = Math.max(top, binary ? 1024 : 1) / 3;
  const power = base ** Math.floor(Math.log(rough) / Math.log(base));
  const step = (binary ? [1, 2] : [1, 2, 5, 10]).find((one) => one * power >= rough) * power;
  return { interval: step, max: step * Math.ceil(top / step || 1) };
}

const WORDS = { percent, bytes, rate: (value) => `${bytes(value)}/s` };
const STROKES = ["—", "- -"]; // as the lines are drawn, so that nobody has to tell colours apart
const DAY_MS = 86400000;
const day = (at) => new Date(at).toLocaleDateString([], { day: "numeric", month: "short" });
const LIGHT = matchMedia("(prefers-color-scheme: light)");

export default {
  mixins: [part],
  template: `<figure class="graph"><figcaption>{{ label }}<span class="last">{{ last }}</span></figcaption>
    <div class="plot" ref="plot" role="img" :aria-label="label + (last ? ': ' + last : '')"></div></figure>`,
  props: { label: String, kind: String },
  data() {
    return { last: "" };
  },
  mounted() {
    this.chart = echarts.init(this.$refs.plot, null, { renderer: "canvas" });
    this.watcher = new ResizeObserver(() => this.chart.resize());
    this.watcher.observe(this.$refs.plot);
    this.redraw = () => this.drawn && this.put(this.drawn);
    LIGHT.addEventListener("change", this.redraw);
  },
  beforeUnmount() {
    LIGHT.removeEventListener("change", this.redraw);
    this.watcher.disconnect();
    this.chart.dispose();
  },
  methods: {
    /** `from`, `to` in ms; `lines`: [name, [[ms, value]...]], of means with the highest as a third; `limit`: a line to stay below; `marks`: [ms, word, tone]. */
    put(drawn) {
      this.drawn = drawn;
      const { from, to, lines, limit, marks } = drawn;
      const css = getComputedStyle(this.$el);
      const colour = (name) => css.getPropertyValue(`--${name}`).trim();
      const words = WORDS[this.kind];
      const text = { color: colour("dim"), fontSize: 11, fontFamily: css.fontFamily };
      const colours = [colour("accent"), colour("second")];
      const newest = lines.map(([name, points]) => [name, points.findLast(([, value]) => value !== null)?.[1]]);
      this.last = newest
        .filter(([, value]) => value !== undefined)
        .map(([name, value], index) => (lines.length > 1 ? `${STROKES[index]} ${name} ${words(value)}` : words(value)))
        .join(" · ");
      if (lines.some(([, , above]) => above)) this.last += " · dots: the highest";
      const highest = Math.max(0, ...lines.flatMap(([, ...each]) => each.flat().map(([, value]) => value ?? 0)));
      const top = limit && highest > limit / 2 ? Math.max(highest, limit) : highest;
      const markLines = marks.map(([at, word, tone]) => ({
        xAxis: at,
        name: word,
        lineStyle: { color: colour(tone), type: "solid", width: 1 },
        label: { show: true, formatter: word.replaceAll("{", "("), color: colour(tone), fontSize: 10, position: "insideEndTop" },
      }));
      if (limit && top >= limit) {
        const label = { formatter: `limit ${words(limit)}`, color: colour("warn"), fontSize: 10, position: "insideStartBottom" };
        markLines.push({ yAxis: limit, lineStyle: { color: colour("warn"), type: "dashed" }, label });
      }
      this.chart.setOption(
        {
          animation: false,
          grid: { left: 58, right: 8, top: 10, bottom: 22 },
          textStyle: text,
          xAxis: {
            type: "time",
            min: from,
            max: to,
            axisLine: { lineStyle: { color: colour("line") } },
            axisTick: { show: false },
            axisLabel: { ...text, hideOverlap: true, formatter: (at) => (to - from > 2 * DAY_MS ? day(at) : clockTime(at).slice(0, 5)) },
            splitLine: { show: false },
          },
          yAxis: {
            type: "value",
            min: 0,
            ...scale(top, this.kind !== "percent"),
            axisLabel: { ...text, formatter: (value) => (value ? words(value) : "0") },
            splitLine: { lineStyle: { color: colour("line") } },
          },
          tooltip: {
            trigger: "axis",
            backgroundColor: colour("panel"),
            borderColor: colour("line"),
            textStyle: { color: colour("text"), fontSize: 12 },
            renderMode: "richText",
            valueFormatter: (value) => (value === null || value === undefined ? "–" : words(value)),
          },
          series: lines.flatMap(([name, ...each], index) => each.map((data, above) => ({
            name: each.length < 2 ? name : `${name}, ${above ? "highest" : "mean"}`,
            data,
            type: "line",
            showSymbol: data.filter(([, value]) => value !== null).length < Math.max(3, data.length / 60),
            symbol: "circle",
            symbolSize: 4,
            connectNulls: false,
            lineStyle: { width: above ? 1 : 1.5, color: colours[index], type: above ? "dotted" : index ? "dashed" : "solid" },
            itemStyle: { color: colours[index] },
            areaStyle: lines.length > 1 || above ? undefined : { color: colours[index], opacity: 0.08 },
            markLine: index || above ? undefined : { silent: true, symbol: "none", data: markLines },
          }))),
        },
        { replaceMerge: ["series"] },
      );
    },
  },
};
