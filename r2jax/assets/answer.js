"use strict";
// One strategy's answer, drawn from the page's data (viewer.py says what its fields are). Time is
// counted in forwards: at `now` = k a strategy is shown after its k-th own forward, or at its end.

const data = JSON.parse(document.getElementById("data").textContent);
const BOUNDS = [0.5, 0.7, 0.9, 0.99]; // of the colours of confidence
const FULL_BAR = 8; // tokens of a forward that fill a track's height

const longest = Math.max(...data.strategies.map((s) => s.nfe));
const ends = new Set(data.ends);
const sure = (confidence) => `sure-${BOUNDS.filter((bound) => confidence >= bound).length}`;

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function svg(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function mark(rule) {
  const shape = svg("use", { href: `#rule-${rule}` });
  return svg("svg", { class: `mark rule-${rule}`, "aria-hidden": true }, shape);
}

// A text with everything that would not be seen, or would turn its neighbours round, spelled out.
function visible(text) {
  const code = (char) => char.codePointAt(0).toString(16);
  const spell = (char) => ({ "\n": "↵", "\t": "⇥" })[char] ?? `\\u{${code(char)}}`;
  const unseen = /(?![\u200c\u200d])[\p{C}\p{Zl}\p{Zp}]/gu;
  return text.replace(unseen, spell).replace(/^\p{M}/u, "◌$&");
}
const prose = (text) => text.replace(/[^\n\t]+/g, visible);
const blank = (spaces) => "␣".repeat(spaces.length);
const label = (text) => (text === "" ? "∅" : /^ +$/.test(text) ? blank(text) : visible(text));
const quoted = (text) => `“${visible(text).replace(/^ +| +$/g, blank)}”`;

const exact = (confidence) => (confidence === null ? "unknown" : confidence.toFixed(4));
const short = (confidence) => confidence?.toFixed(2).replace(/^0|\.00$/g, "") ?? "–"; // .98, 1

// One strategy's answer: its tokens, its status and its track.
class Answer {
  constructor(strategy, index) {
    Object.assign(this, strategy);
    this.length = this.block_length;
    this.fates = this.tokens.map((token, position) => this.fate(token, position));
    this.chips = this.fates.map((fate, position) => this.chip(fate, position));
    this.drawn = this.fates.map(() => null);
    this.groups = [];
    for (let start = 0; start < this.tokens.length; start += this.length) {
      this.groups.push(this.group(start));
    }
    this.status = element("p", { className: "status" });
    this.progress = element("progress", { max: this.tokens.length, ariaLabel: "tokens written" });
    this.tally = element("p", { className: "status" });
    const options = Object.entries(this.options);
    this.panel = element(
      "article",
      {},
      element("h2", { id: `strategy-${index}`, textContent: this.name }),
      this.status,
      this.progress,
      this.tally,
      ...this.groups,
      this.details("Answer as text", this.text),
      this.details("Options", options.map(([option, value]) => `${option}: ${value}`).join("\n")),
    );
    this.panel.setAttribute("aria-labelledby", `strategy-${index}`);
    this.chips[0].tabIndex = 0;
    this.track = this.makeTrack();
  }

  // What becomes of a position: its token, and when, why and how surely it is committed.
  fate(token, position) {
    const at = this.committed_at[position];
    const rule = this.committed_by[position];
    const guess = at === null ? null : this.guess(position, at);
    const end = position >= this.answer_length && ends.has(token);
    return { token, end, at, rule, guess, sampled: guess !== null && guess.token !== token };
  }

  // What the k-th forward predicted at a position that was masked; null if it was of another block.
  guess(position, k) {
    const forward = this.forwards[k - 1];
    if (forward?.block !== Math.floor(position / this.length)) return null;
    const i = position % this.length;
    const token = forward.predictions[i];
    return token === null ? null : { token, confidence: forward.confidences[i] };
  }

  chip(fate, position) {
    const text = fate.end ? "end" : label(data.texts[fate.token]);
    const chip = element(
      "button",
      { type: "button", className: "token", tabIndex: -1 },
      element("span", { className: "final", textContent: text }),
      element("span", { className: "guess" }),
      element("span", { className: "number" }),
    );
    if (fate.rule >= 0) chip.append(mark(fate.rule));
    if (fate.sampled) chip.classList.add("sampled");
    else if (fate.guess?.confidence != null) chip.classList.add(sure(fate.guess.confidence));
    chip.classList.toggle("end", fate.end);
    return Object.assign(chip, { answer: this, position });
  }

  group(start) {
    const end = start + this.length;
    const block = start / this.length;
    const first = this.forwards.findIndex((forward) => forward.block === block) + 1;
    const last = this.forwards.findLastIndex((forward) => forward.block === block) + 1;
    const when = first < last ? `forwards ${first} to ${last}` : `forward ${first || "none"}`;
    const title = `block ${block + 1}: positions ${start} to ${end - 1}, ${when}`;
    const row = element("div", { className: "tokens" });
    for (let i = start; i < end; i++) {
      row.append(this.chips[i]);
      if (data.texts[this.tokens[i]].includes("\n")) {
        row.append(element("span", { className: "newline" }));
      }
    }
    const heading = element("h3", { textContent: title });
    const group = element("div", { className: "block", role: "group", ariaLabel: title });
    group.append(heading, row);
    return group;
  }

  details(title, text) {
    const pre = element("pre", { textContent: prose(text), dir: "auto" });
    return element("details", {}, element("summary", { textContent: title }), pre);
  }

  makeTrack() {
    this.bars = this.forwards.map((forward, i) => {
      const bar = svg("g", { transform: `translate(${i} 0)` });
      let top = FULL_BAR;
      for (let rule = 0; rule < data.rules.length - 1; rule++) { // the last is no decision
        const count = this.fates.filter((f) => f.at === i + 1 && f.rule === rule).length;
        const height = Math.min(count, top);
        top -= height;
        bar.append(svg("rect", { class: `rule-${rule}`, x: 0.1, y: top, width: 0.8, height }));
      }
      if (forward.full) {
        bar.append(svg("rect", { class: "refresh", x: 0, y: 8.8, width: 1, height: 1.2 }));
      }
      return bar;
    });
    this.cursor = svg("line", { y1: -1, y2: 10 });
    const box = { viewBox: `0 0 ${longest} 10`, preserveAspectRatio: "none" };
    const chart = svg("svg", box, ...this.bars, this.cursor);
    chart.addEventListener("click", (event) => {
      const { left, width } = chart.getBoundingClientRect();
      show(Math.ceil(((event.clientX - left) / width) * longest));
    });
    const [name, total] = [this.name, `NFE ${this.nfe}`].map((text) =>
      element("span", { textContent: text }),
    );
    return element("div", { className: "track rail" }, name, chart, total);
  }

  show(now) {
    const done = Math.min(now, this.nfe);
    const counts = data.rules.map(() => 0);
    let written = 0;
    this.fates.forEach((fate, position) => {
      const there = fate.at !== null && fate.at <= now;
      written += there;
      if (there && fate.rule >= 0) counts[fate.rule]++;
      this.draw(position, there, there ? null : this.guess(position, done), now);
    });

    const full = this.forwards.slice(0, done).filter((forward) => forward.full).length;
    const ended = now >= this.nfe;
    this.status.replaceChildren(
      element("strong", { textContent: ended ? "done" : `forward ${done}` }),
      ended ? `, ${this.nfe} forwards` : ` of ${this.nfe}`,
      ` (${full} full), ${written} of ${this.tokens.length} tokens`,
    );
    this.progress.value = written;
    const tally = (n, rule) => element("span", {}, mark(rule), ` ${n} ${data.rules[rule]}`);
    const own = (_, rule) => this.committed_by.includes(rule);
    this.tally.replaceChildren(...counts.map(tally).filter(own));
    const block = now > this.nfe ? null : this.forwards[done - 1]?.block;
    this.groups.forEach((group, i) => group.classList.toggle("current", i === block));
    this.bars.forEach((bar, i) => bar.classList.toggle("later", i >= now));
    for (const x of ["x1", "x2"]) this.cursor.setAttribute(x, now);
  }

  // One token, where it is not drawn like this already.
  draw(position, there, guess, now) {
    const fate = this.fates[position];
    const state = there ? `${fate.at === now}` : `${guess?.token} ${guess?.confidence}`;
    if (this.drawn[position] === state) return;
    this.drawn[position] = state;
    const chip = this.chips[position];
    chip.classList.toggle("masked", !there);
    chip.classList.toggle("new", there && fate.at === now);
    chip.classList.toggle("waiting", !there && guess === null);
    const shown = there && !fate.sampled ? fate.guess : guess;
    chip.querySelector(".guess").textContent = guess ? label(data.texts[guess.token]) : "";
    chip.querySelector(".number").textContent = there || guess ? short(shown?.confidence) : "";
    chip.ariaLabel = this.lines(position, now).join(", ");
  }

  // What is said of a position: to eyes in the tip, to ears as the token's label.
  lines(position, now) {
    const { token, at, rule, guess, sampled } = this.fates[position];
    const place = `position ${position}`;
    const told = (name, { token, confidence }) =>
      [`${name} ${quoted(data.texts[token])}`, `confidence ${exact(confidence)}`];
    if (at === null || at > now) {
      const found = this.guess(position, Math.min(now, this.nfe));
      return ["masked", place, ...(found ? told("guess", found) : ["its block has not begun"])];
    }
    const lines = [quoted(data.texts[token]), place, `${data.rules[rule]} at forward ${at}`];
    if (sampled) return [...lines, ...told("sampled; most likely:", guess)];
    return guess ? [...lines, `confidence ${exact(guess.confidence)}`] : lines;
  }

  // The forwards that predicted a position so far: [forward, guess], the latest last.
  history(position, now) {
    const last = Math.min(now, this.nfe, this.fates[position].at ?? Infinity);
    const found = [];
    for (let k = 1; k <= last; k++) {
      const guess = this.guess(position, k);
      if (guess !== null) found.push([k, guess]);
    }
    return found;
  }
}

