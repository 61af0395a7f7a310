/* The page of one run: its curves, and a browser of its samples. What a model wrote becomes text nodes only. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = id => document.getElementById(id);
  const AT_A_TIME = 20;
  const KINDS = {eval: "evaluation", train: "training"};

  function element(parent, tag, name = "", text = "") {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text) made.textContent = text;
    parent?.append(made);
    return made;
  }

  // ---- curves -----------------------------------------------------------------------------------------------------------------------

  const shared = new Charts.Shared(step => browser?.open(step));
  const axes = data.axes;
  [shared.first, shared.last] = [Math.min(...axes.map(each => each[0])), Math.max(...axes.map(each => each.at(-1)))];

  function panel(host, {title, note, stacked, series}) {
    const lines = series.map(({metric, label, error}) => {
      const [axis, values] = data.metrics[metric];
      const known = error && new Map(axes[data.metrics[error][0]].map((step, i) => [step, data.metrics[error][1][i]]));
      return {label, x: axes[axis], y: values, error: known ? axes[axis].map(step => known.get(step)) : null};
    });
    return new Charts.Chart(element(host, "div"), {title, note, stacked, series: lines}, shared);
  }

  for (const each of data.panels) panel(byId("charts"), each);
  byId("more")?.addEventListener("toggle", () => data.more.splice(0).forEach(each => panel(byId("more-charts"), each)));
  shared.onZoom = range => {
    byId("zoom").hidden = !range;
    if (range) byId("zoom").textContent = `steps ${range[0]} to ${range[1]}: show all`;
  };
  byId("zoom")?.addEventListener("click", () => shared.zoom(null));

  // ---- samples ----------------------------------------------------------------------------------------------------------------------

  /** A text in which special tokens are pale. */
  function written(host, text) {
    for (const part of text.split(/(<\|[^|<>\s]{1,40}\|>)/)) {
      if (/^<\|.*\|>$/.test(part)) element(host, "span", "token", part); else host.append(part);
    }
  }

  function passage(host, name, text) {
    const part = element(host, "section", name);
    element(part, "h4", "", name);
    written(element(part, "pre"), text);
  }

  const worth = reward => reward >= 1 ? "right" : reward <= 0 ? "wrong" : "between";

  function facts(sample) {
    const scores = Object.entries(sample.scores).filter(([name]) => name !== "reward").map(([name, value]) => `${name} ${Charts.number(value)}`);
    const more = ["advantage", "logprob", "entropy"].filter(name => Number.isFinite(sample[name])).map(name => `${name} ${sample[name].toFixed(3)}`);
    return [`${sample.tokens} tokens`, ...scores, ...more].join(" · ");
  }

  class Browser {
    constructor(samples) {
      this.samples = samples;
      this.limit = AT_A_TIME;
      this.followed = null;
      this.controls = Object.fromEntries(["step", "kind", "task", "from", "to", "text", "order"].map(name => [name, byId(`by-${name}`)]));
      const kinds = [...new Set(samples.map(each => each.kind))].sort();
      for (const kind of kinds) this.option("kind", kind, KINDS[kind] ?? kind);
      for (const task of [...new Set(samples.map(each => each.task))].sort()) this.option("task", task, task);
      this.controls.kind.value = kinds[0];
      this.steps(Infinity);
      for (const [name, control] of Object.entries(this.controls)) control.addEventListener("input", () => this.change(name));
      byId("earlier").addEventListener("click", () => this.move(-1));
      byId("later").addEventListener("click", () => this.move(1));
      byId("more-samples").addEventListener("click", () => { this.limit += AT_A_TIME; this.render(); });
      byId("unfollow").addEventListener("click", () => this.follow(null));
      for (const button of document.querySelectorAll("[data-rewards]")) {
        button.addEventListener("click", () => {
          [this.controls.from.value, this.controls.to.value] = button.dataset.rewards.split(",");
          this.change("from");
        });
      }
      this.render();
    }

    option(control, value, text) {
      const made = element(this.controls[control], "option", "", text);
      made.value = value;
    }

    /** Fill the choice of steps with those that have samples of the chosen kind, and take the one nearest to `wanted`; null: every step. */
    steps(wanted) {
      const kind = this.controls.kind.value, control = this.controls.step;
      const known = [...new Set(this.samples.filter(each => !kind || each.kind === kind).map(each => each.step))].sort((a, b) => a - b);
      control.replaceChildren();
      this.option("step", "", "every step");
      for (const step of known) this.option("step", step, `step ${step}`);
      control.value = wanted === null ? "" : known.reduce((best, each) => Math.abs(each - wanted) <= Math.abs(best - wanted) ? each : best, known.at(-1));
    }

    change(name) {
      if (name === "kind") this.steps(this.controls.step.value === "" ? null : Number(this.controls.step.value));
      this.limit = AT_A_TIME;
      this.render();
    }

    move(by) {
      const {step} = this.controls, next = step.selectedIndex + by;
      if (next < 1 || next >= step.options.length) return;
      step.selectedIndex = next;
      this.change("step");
    }

    /** Choose the step nearest to one that was clicked in a chart. */
    open(step) {
      this.followed = null;
      this.steps(step);
      this.change("step");
      byId("picked").hidden = false;
      byId("picked").textContent = `samples of step ${this.controls.step.value}`;
    }

    follow(sample) {
      this.followed = sample;
      this.limit = AT_A_TIME;
      this.render();
      byId("samples").scrollIntoView({block: "start"});
    }

    chosen() {
      if (this.followed) {
        const {task, uid} = this.followed;
        return this.samples.filter(each => each.task === task && each.uid === uid).sort((a, b) => a.step - b.step || a.reply - b.reply);
      }
      const {step, kind, task, from, to, text, order} = Object.fromEntries(Object.entries(this.controls).map(([name, each]) => [name, each.value]));
      const found = this.samples.filter(each =>
        (step === "" || each.step === Number(step)) && (!kind || each.kind === kind) && (!task || each.task === task)
        && (from === "" || each.reward >= Number(from)) && (to === "" || each.reward <= Number(to))
        && (!text || [each.uid, data.prompts[each.prompt], ...each.turns].some(one => one.includes(text))));
      const sorts = {best: (a, b) => b.reward - a.reward, worst: (a, b) => a.reward - b.reward, long: (a, b) => b.tokens - a.tokens};
      return sorts[order] ? found.sort(sorts[order]) : found;
    }

    render() {
      const found = this.chosen(), list = byId("list");
      list.replaceChildren();
      byId("filters").hidden = Boolean(this.followed);
      byId("following").hidden = !this.followed;
      this.head(found);
      for (const sample of found.slice(0, this.limit)) this.card(list, sample);
      byId("more-samples").hidden = found.length <= this.limit;
      byId("more-samples").textContent = `${found.length - this.limit} more`;
    }

    /** What was found in one line; of a followed prompt also its text, its truth and its rewards over steps. */
    head(found) {
      const mean = found.reduce((sum, each) => sum + each.reward, 0) / found.length;
      const sum = found.length ? `, mean reward ${mean.toFixed(3)}` : "";
      byId("found").textContent = `${found.length} ${found.length === 1 ? "reply" : "replies"}${sum}`;
      const place = byId("followed");
      place.replaceChildren();
      shared.charts = shared.charts.filter(each => each.host.isConnected);
      if (!this.followed) return;
      const {task, uid, prompt, truth} = this.followed;
      byId("whom").textContent = `${task} ${uid}`;
      const texts = element(place, "div", "texts");
      passage(texts, "prompt", data.prompts[prompt]);
      if (truth.length) passage(texts, "truth", truth.join("\n"));
      const steps = [...new Set(found.map(each => each.step))];
      if (steps.length < 2) return;
      const rewards = steps.map(step => found.filter(each => each.step === step).map(each => each.reward));
      const y = rewards.map(each => each.reduce((a, b) => a + b) / each.length);
      const own = new Charts.Shared(step => byId(`reply-${step}`)?.scrollIntoView({behavior: "smooth", block: "center"}));
      [own.first, own.last] = [steps[0], steps.at(-1)];
      new Charts.Chart(element(place, "div"), {title: "Reward of this prompt", series: [{label: "reward", x: steps, y, error: null}]}, own);
    }

    card(list, sample) {
      const card = element(list, "article"), head = element(card, "header");
      if (this.followed) card.id = `reply-${sample.step}`;
      element(head, "span", `reward ${worth(sample.reward)}`, sample.reward.toFixed(3));
      const which = this.followed ? [] : [sample.task, sample.uid];
      const where = [`step ${sample.step}`, KINDS[sample.kind] ?? sample.kind, ...which, sample.reply ? `reply ${sample.reply}` : ""];
      element(head, "strong", "", where.filter(Boolean).join(" · "));
      element(head, "span", sample.stop === "cut" ? "cut" : "facts", sample.stop === "cut" ? "cut off" : sample.stop);
      element(head, "span", "facts", facts(sample));
      if (!this.followed) {
        const button = element(head, "button", "", "follow this prompt");
        button.type = "button";
        button.addEventListener("click", () => this.follow(sample));
      }
      const texts = element(card, "div", "texts");
      if (!this.followed) passage(texts, "prompt", data.prompts[sample.prompt]);
      const replies = this.followed ? texts : element(texts, "div");
      sample.turns.forEach((text, index) => passage(replies, index % 2 ? "user" : "reply", text));
      if (!this.followed && sample.truth.length) passage(replies, "truth", sample.truth.join("\n"));
    }
  }

  const browser = data.samples.length ? new Browser(data.samples) : null;
})();
