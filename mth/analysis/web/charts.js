/* Line charts and stacked bars over steps, in SVG. All charts of a page share one range of steps and one cursor: hover shows the values of a
   step in every legend, a drag zooms, a double click or Escape goes back, + - and the arrow keys do the same without a pointer. */
"use strict";
const Charts = (() => {
  const NS = "http://www.w3.org/2000/svg";
  const EDGE = {left: 50, right: 12, top: 8, bottom: 22};
  const HEIGHT = 190, DRAG = 6;  // px; a shorter drag is a click
  let clips = 0;
  const MARKED = 40;  // most points that get a marker each

  function node(parent, tag, attributes = {}, text = "") {
    const made = document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    parent.append(made);
    return made;
  }

  /** A number in at most four digits, with k, M, G where it is large. */
  function number(value) {
    if (!Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size >= 1e4) return new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 4}).format(value);
    if (size > 0 && size < 1e-3) return Number(value.toPrecision(3)).toExponential();
    return String(Number(value.toPrecision(4)));
  }

  /** A value and its standard error, whose second digit is the last of both. */
  function withError(value, error) {
    if (!(Number.isFinite(value) && error > 0)) return number(value);
    const digits = Math.min(12, Math.max(0, 1 - Math.floor(Math.log10(error))));
    return `${value.toFixed(digits)} ± ${error.toFixed(digits)}`;
  }

  /** Round values between two ends, about `count` of them. */
  function ticks(low, high, count, whole) {
    const rough = (high - low) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(rough));
    let gap = [1, 2, 5, 10].map(each => each * power).find(each => each >= rough * 0.999);
    if (whole) gap = Math.max(1, Math.round(gap));
    const found = [];
    for (let i = Math.ceil(low / gap - 1e-9); i * gap <= high + gap * 1e-9; i++) found.push(Number((i * gap).toPrecision(12)));
    return found;
  }

  /** What the charts of a page share. onPick(step): called for a click. */
  class Shared {
    constructor(onPick) {
      this.charts = [];
      this.range = null;
      this.onPick = onPick;
      this.onZoom = () => {};
    }
    zoom(range) {
      this.range = range;
      this.onZoom(range);
      for (const chart of this.charts) chart.draw();
    }
    point(step) {
      for (const chart of this.charts) chart.point(step);
    }
  }

  class Chart {
    /** series: [{label, x: steps, y: values, error: values or null}]; a value that is no number leaves a gap. */
    constructor(host, {title, note, stacked, series}, shared) {
      Object.assign(this, {host, series, stacked, shared, hidden: new Set(), cursor: null, clip: `clip${clips++}`});
      this.steps = [...new Set(series.flatMap(each => each.x))].sort((a, b) => a - b);
      this.values = series.map(({x, y}) => new Map(x.map((step, i) => [step, y[i]])));
      this.errors = series.map(({x, error}) => new Map(error ? x.map((step, i) => [step, error[i]]) : []));
      host.classList.add("chart");
      const head = host.appendChild(document.createElement("h3"));
      head.textContent = title;
      if (note) head.title = note;
      this.legend = host.appendChild(document.createElement("div"));
      this.legend.className = "legend";
      this.labels = series.map((each, index) => this.label(each, index));
      this.svg = node(host, "svg", {tabindex: 0, role: "img", "aria-label": `${title} over steps`});
      this.listen();
      shared.charts.push(this);
      new ResizeObserver(() => this.draw()).observe(host);
    }

    label({label}, index) {
      const button = this.legend.appendChild(document.createElement("button"));
      button.type = "button";
      button.title = "show or hide";
      const swatch = button.appendChild(document.createElement("i"));
      swatch.style.background = `var(--c${index % 7})`;
      button.append(label, " ");
      button.addEventListener("click", () => {
        if (!this.hidden.delete(index)) this.hidden.add(index);
        button.classList.toggle("off", this.hidden.has(index));
        this.draw();
      });
      return button.appendChild(document.createElement("b"));
    }

    get ends() {
      return this.shared.range || [this.shared.first, this.shared.last];
    }

    /** Lowest and highest value of the steps in view, errors included. */
    extent(shown) {
      const [from, to] = this.ends;
      let low = this.stacked ? 0 : Infinity, high = -Infinity;
      for (const step of this.steps.filter(each => each >= from && each <= to)) {
        if (this.stacked) {
          high = Math.max(high, shown.reduce((sum, i) => sum + (this.values[i].get(step) || 0), 0));
          continue;
        }
        for (const i of shown) {
          const value = this.values[i].get(step), error = this.errors[i].get(step) || 0;
          if (!Number.isFinite(value)) continue;
          low = Math.min(low, value - error);
          high = Math.max(high, value + error);
        }
      }
      if (!(low <= high)) return [0, 1];
      const room = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
      return [this.stacked || (low >= 0 && low < room) ? 0 : low - room, high + room];
    }

    draw() {
      const width = this.host.clientWidth;
      if (!width) return;
      this.svg.replaceChildren();
      for (const [key, value] of Object.entries({width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`})) this.svg.setAttribute(key, value);
      const shown = this.series.map((_, i) => i).filter(i => !this.hidden.has(i));
      let [from, to] = this.ends;
      const [low, high] = this.extent(shown);
      if (this.stacked || from === to) [from, to] = [from - 0.5, to + 0.5];
      const inner = {width: width - EDGE.left - EDGE.right, height: HEIGHT - EDGE.top - EDGE.bottom};
      this.x = step => EDGE.left + (step - from) / (to - from) * inner.width;
      this.y = value => EDGE.top + (high - value) / (high - low) * inner.height;
      this.step = pixel => from + (pixel - EDGE.left) / inner.width * (to - from);
      this.axes(width, from, to, low, high);
      const room = this.shared.range ? 0 : 5;  // for markers at the ends
      const seen = {x: EDGE.left - room, y: EDGE.top - 5, width: inner.width + 2 * room, height: inner.height + 5 + room};
      node(node(this.svg, "clipPath", {id: this.clip}), "rect", seen);
      const body = node(this.svg, "g", {"clip-path": `url(#${this.clip})`});
      if (this.stacked) this.bars(body, shown); else for (const i of shown) this.line(body, i);
      this.rule = node(this.svg, "line", {class: "rule", y1: EDGE.top, y2: HEIGHT - EDGE.bottom, visibility: "hidden"});
      this.box = node(this.svg, "rect", {class: "box", y: EDGE.top, height: inner.height, width: 0});
      this.point(this.cursor);
    }

    axes(width, from, to, low, high) {
      for (const value of ticks(low, high, 5, false)) {
        node(this.svg, "line", {class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: this.y(value), y2: this.y(value)});
        node(this.svg, "text", {x: EDGE.left - 6, y: this.y(value) + 4, "text-anchor": "end"}, number(value));
      }
      for (const step of ticks(Math.ceil(from), Math.floor(to), Math.max(2, width / 80), true)) {
        node(this.svg, "text", {x: this.x(step), y: HEIGHT - 6, "text-anchor": "middle"}, String(step));
      }
      node(this.svg, "line", {class: "axis", x1: EDGE.left, x2: width - EDGE.right, y1: HEIGHT - EDGE.bottom, y2: HEIGHT - EDGE.bottom});
    }

    line(body, index) {
      const {x, y} = this.series[index], color = `var(--c${index % 7})`, [from, to] = this.ends;
      const has = i => Number.isFinite(y[i]), error = i => this.errors[index].get(x[i]);
      const place = i => `${this.x(x[i]).toFixed(1)},${this.y(y[i]).toFixed(1)}`;
      const few = x.filter(step => step >= from && step <= to).length <= MARKED;
      node(body, "path", {class: "line", stroke: color, d: x.map((_, i) => has(i) ? `${i && has(i - 1) ? "L" : "M"}${place(i)}` : "").join("")});
      x.forEach((step, i) => {
        if (!has(i)) return;
        if (Number.isFinite(error(i))) {
          const ends = {y1: this.y(y[i] - error(i)), y2: this.y(y[i] + error(i))};
          node(body, "line", {class: "error", stroke: color, x1: this.x(step), x2: this.x(step), ...ends});
        }
        if (few || !(has(i - 1) || has(i + 1))) node(body, "circle", {fill: color, cx: this.x(step), cy: this.y(y[i]), r: few ? 2.6 : 1.5});
      });
    }

    bars(body, shown) {
      const below = new Map();
      for (const index of shown) {
        let path = "";
        for (const step of this.steps) {
          const value = this.values[index].get(step), base = below.get(step) || 0;
          if (!(value > 0)) continue;
          path += `M${this.x(step - 0.5).toFixed(1)},${this.y(base).toFixed(1)}V${this.y(base + value).toFixed(1)}`
            + `H${this.x(step + 0.5).toFixed(1)}V${this.y(base).toFixed(1)}Z`;
          below.set(step, base + value);
        }
        node(body, "path", {fill: `var(--c${index % 7})`, d: path});
      }
    }

    /** Show a step's values in the legend; those of the last step that has any if no step is given. */
    point(step) {
      this.cursor = step;
      this.labels.forEach((label, i) => {
        const known = step === null ? this.series[i].x.at(-1) : this.series[i].x.findLast(each => each <= step);
        const value = this.values[i].get(known), error = this.errors[i].get(known);
        const exact = step === null || known === step || known === undefined;
        label.textContent = withError(value, error) + (exact ? "" : ` (step ${known})`);
      });
      if (!this.rule) return;
      const visible = step !== null && step >= this.ends[0] && step <= this.ends[1];
      this.rule.setAttribute("visibility", visible ? "visible" : "hidden");
      if (!visible) return;
      this.rule.setAttribute("x1", this.x(step));
      this.rule.setAttribute("x2", this.x(step));
    }

    nearest(event) {
      const wanted = this.step(event.clientX - this.svg.getBoundingClientRect().left), [from, to] = this.ends;
      const inside = this.steps.filter(each => each >= from && each <= to);
      return inside.length ? inside.reduce((best, each) => Math.abs(each - wanted) < Math.abs(best - wanted) ? each : best) : null;
    }

    listen() {
      let start = null;
      const pixel = event => event.clientX - this.svg.getBoundingClientRect().left;
      this.svg.addEventListener("pointerdown", event => {
        if (event.button !== 0) return;
        start = pixel(event);
        this.svg.setPointerCapture(event.pointerId);
      });
      this.svg.addEventListener("pointermove", event => {
        this.shared.point(this.nearest(event));
        if (start === null) return;
        const [left, right] = [start, pixel(event)].sort((a, b) => a - b);
        this.box.setAttribute("x", left);
        this.box.setAttribute("width", right - left);
      });
      this.svg.addEventListener("pointerup", event => {
        if (start === null) return;
        const [left, right] = [start, pixel(event)].sort((a, b) => a - b);
        start = null;
        this.box.setAttribute("width", 0);
        if (right - left > DRAG) this.zoomTo(this.step(left), this.step(right));
        else if (this.nearest(event) !== null) this.pick(this.nearest(event));
      });
      this.svg.addEventListener("pointercancel", () => { start = null; this.box.setAttribute("width", 0); });
      this.svg.addEventListener("pointerleave", event => { if (start === null && event.pointerType === "mouse") this.shared.point(null); });
      this.svg.addEventListener("dblclick", () => this.shared.zoom(null));
      this.svg.addEventListener("keydown", event => this.key(event));
    }

    pick(step) {
      this.shared.point(step);
      this.shared.onPick(step);
    }

    /** Zoom to whole steps between two places; nothing happens if they hold fewer than two. */
    zoomTo(low, high) {
      const range = [Math.max(this.shared.first, Math.ceil(low)), Math.min(this.shared.last, Math.floor(high))];
      if (range[1] > range[0]) this.shared.zoom(range);
    }

    key(event) {
      const [from, to] = this.ends, at = this.steps.indexOf(this.cursor), middle = this.cursor ?? (from + to) / 2;
      const actions = {
        ArrowLeft: () => this.shared.point(this.steps[Math.max(0, (at < 0 ? this.steps.length : at) - 1)] ?? null),
        ArrowRight: () => this.shared.point(this.steps[Math.min(this.steps.length - 1, at + 1)] ?? null),
        Enter: () => { if (this.cursor !== null) this.pick(this.cursor); },
        Escape: () => this.shared.zoom(null),
        "+": () => this.zoomTo(middle - (to - from) / 4, middle + (to - from) / 4),
        "-": () => this.zoomTo(middle - (to - from), middle + (to - from)),
      };
      if (!actions[event.key]) return;
      event.preventDefault();
      actions[event.key]();
    }
  }
  return {Chart, Shared, number};
})();
