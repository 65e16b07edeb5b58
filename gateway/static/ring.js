// The ring of the request that runs: its stages as arcs, a rider that goes once around for each token, and what broke.

import { speed } from "./chat.js";

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const RADIUS = 84;
const MIDDLE = 120;
const SHOWN = 75;

function draw(kind, attributes, text = "") {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

function ms(microseconds) {
  return (microseconds / 1000).toFixed(1) + " ms";
}

function point(turn, radius = RADIUS) {
  const angle = (turn - 0.25) * 2 * Math.PI;
  return [MIDDLE + radius * Math.cos(angle), MIDDLE + radius * Math.sin(angle)];
}

function arc(from, to) {
  const [x1, y1] = point(from);
  const [x2, y2] = point(to);
  return `M${x1} ${y1}A${RADIUS} ${RADIUS} 0 ${to - from > 0.5 ? 1 : 0} 1 ${x2} ${y2}`;
}

export class Ring {
  constructor(nameOf, colourOf) {
    this.nameOf = nameOf;
    this.colourOf = colourOf;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.route = [];
    this.key = "";
    this.rider = draw("circle", { r: 9, class: "rider", visibility: "hidden" });
    this.speed = draw("text", { x: MIDDLE, y: MIDDLE + 8, class: "speed" }, "–");
    this.times = [];
    this.failovers = 0;
    this.draw();
    this.fall([]);
  }

  // --- what the chat tells ---------------------------------------------------------------------------------------

  begin() {
    this.times = [];
    this.failovers = 0;
    this.last = null;
    this.running = true;
    at("failovers").replaceChildren();
    at("ring-state").textContent = "waiting for the first token";
    for (const name of ["tokens", "first", "failovers"]) at("fact-" + name).textContent = "–";
    this.speed.textContent = "…";
    this.stall = setInterval(() => this.notice(), 250);
    this.bars();
    this.fall([]);
  }

  ride(told) {
    this.route = told.route;
    this.mended = told.failovers.length > this.failovers;
    for (const failover of told.failovers.slice(this.failovers)) this.tell(failover);
    this.failovers = told.failovers.length;
    this.draw();
  }

  token(told, timings) {
    const now = performance.now();
    if (timings) this.fall(timings);
    if (this.last !== null) this.times.push({ took: now - this.last, mended: this.mended });
    this.mended = false;
    this.last = now;
    at("ring-state").textContent = this.stages();
    at("fact-tokens").textContent = String(told.tokens);
    at("fact-first").textContent = ((told.first - told.began) / 1000).toFixed(2) + " s";
    at("fact-failovers").textContent = String(this.failovers);
    this.speed.textContent = speed(told) ? speed(told).toFixed(1) : "…";
    this.goRound();
    this.bars();
  }

  end(told) {
    clearInterval(this.stall);
    this.running = false;
    this.rider.setAttribute("visibility", "hidden");
    at("ring-state").textContent = told.error ? "ended with an error" : this.route.length ? "last request: " + this.stages() : "idle";
    if (!speed(told)) this.speed.textContent = "–";
  }

  // --- the page --------------------------------------------------------------------------------------------------

  stages() {
    return this.route.length + (this.route.length === 1 ? " stage" : " stages");
  }

  notice() {
    if (this.last !== null && performance.now() - this.last > Math.max(1000, 8 * this.typical())) at("ring-state").textContent = "the ring is broken: repairing…";
  }

  typical() {
    const took = this.times.map((time) => time.took).sort((a, b) => a - b);
    return took.length ? took[took.length >> 1] : 500;
  }

  tell(failover) {
    const lost = failover.lost.map((peer) => this.nameOf(peer)).join(", ") || "nobody";
    const how = { shadow: "a standby took over", journal: "rebuilt from its neighbour's journal", tokens: "rebuilt from the text", none: "the same ring went on" }[failover.tier] ?? failover.tier;
    const item = document.createElement("li");
    item.textContent = `Token ${failover.index}: lost ${lost}; ${how} in ${Math.round(failover.stall_s * 1000)} ms.`;
    at("failovers").append(item);
  }

  refresh() {
    if (this.key !== this.state()) this.draw();
  }

  state() {
    return this.route.map((stage) => `${stage.peer}${stage.start}:${stage.end}${this.nameOf(stage.peer)}`).join();
  }

  draw() {
    this.key = this.state();
    const parts = [];
    const layers = this.route.at(-1)?.end ?? 0;
    if (!layers) parts.push(draw("circle", { cx: MIDDLE, cy: MIDDLE, r: RADIUS, class: "bare" }));
    for (const stage of this.route) {
      const gap = this.route.length > 1 ? 0.008 : 0;
      const from = stage.start / layers + gap;
      const to = Math.min(stage.end / layers - gap, from + 0.9999);
      parts.push(draw("path", { d: arc(from, to), class: "arc" }));
      parts.at(-1).style.stroke = this.colourOf(stage.peer);
      parts.push(...this.label(stage, (stage.start + stage.end) / 2 / layers));
    }
    const unit = draw("text", { x: MIDDLE, y: MIDDLE + 27, class: "unit" }, "tokens/s");
    at("ring").replaceChildren(...parts, this.speed, unit, this.rider);
    const said = this.route.map((stage) => `${this.nameOf(stage.peer)} layers ${stage.start} to ${stage.end - 1}`);
    at("ring").setAttribute("aria-label", said.length ? "Ring of " + said.join(", then ") : "No request yet");
  }

  label(stage, middle) {
    if (stage.end - stage.start < 1 || this.route.length > 8) return [];
    const [x, onRim] = point(middle, RADIUS + 18);
    const y = onRim + (onRim - MIDDLE) / 8 - 5;
    const anchor = Math.abs(x - MIDDLE) < 12 ? "middle" : x < MIDDLE ? "end" : "start";
    const name = draw("text", { x, y: y + 4, class: "who", "text-anchor": anchor }, this.nameOf(stage.peer));
    const layers = draw("text", { x, y: y + 17, class: "layers", "text-anchor": anchor }, `${stage.start}–${stage.end - 1}`);
    return [name, layers];
  }

  goRound() {
    if (this.still.matches || !this.route.length) return;
    const took = Math.min(600, Math.max(60, this.typical()));
    const began = performance.now();
    this.rider.setAttribute("visibility", "visible");
    cancelAnimationFrame(this.frame);
    const step = (now) => {
      const turn = Math.min(1, (now - began) / took);
      const [x, y] = point(turn);
      this.rider.setAttribute("cx", x);
      this.rider.setAttribute("cy", y);
      if (turn < 1 && this.running) this.frame = requestAnimationFrame(step);
    };
    this.frame = requestAnimationFrame(step);
  }

  // One row a stage, from left to right: the hop to it, its wait, its computing, where they lie in the token's trip.
  fall(stages) {
    const row = 20;
    const whole = Math.max(1, stages.flat().reduce((sum, part) => sum + Math.max(0, part), 0));
    const parts = [];
    let x = 0;
    stages.forEach((times, index) => {
      const stage = this.route[index];
      const y = index * row;
      times.forEach((took, part) => {
        const width = (Math.max(0, took) / whole) * 200;
        const made = draw("rect", { x, y: y + 3, width, height: row - 7, rx: Math.min(2, width / 2), class: ["hop", "queue", "compute"][part] });
        if (stage) made.style.color = this.colourOf(stage.peer);
        made.append(draw("title", {}, ["on the way", "waiting", "computing"][part] + ` ${ms(took)}`));
        parts.push(made);
        x += width;
      });
      const name = stage ? this.nameOf(stage.peer) : `stage ${index + 1}`;
      parts.push(draw("text", { x: 300, y: y + 13, "text-anchor": "end" }, `${name} ${ms(times[1] + times[2])}`));
    });
    at("fall").setAttribute("viewBox", `0 0 300 ${Math.max(1, stages.length) * row}`);
    at("fall").parentElement.hidden = !stages.length;
    at("fall").replaceChildren(...parts);
    at("fall-sum").textContent = stages.length ? ms(stages.flat().reduce((sum, part) => sum + part, 0)) : "";
  }

  bars() {
    const shown = this.times.slice(-SHOWN);
    const typical = this.typical();
    const most = Math.max(...shown.map((time) => Math.min(time.took, 5 * typical)), 1.6 * typical);
    const bars = shown.map((time, index) => {
      const height = Math.max(1.5, (Math.min(time.took, most) / most) * 42);
      const kind = time.mended ? "mended" : time.took > 2.5 * typical ? "slow" : "";
      return draw("rect", { x: index * 4, y: 44 - height, width: 3, height, class: kind });
    });
    at("pulse").replaceChildren(...bars);
    at("pulse-scale").textContent = shown.length ? `typically ${Math.round(typical)} ms` : "";
  }
}
