// The player: the tip of a token, the slider, the keys, and the page put together.

const byId = (id) => document.getElementById(id);
// The tip: of the token under the pointer, or else of the focused one. It may be entered with the
// pointer, and Escape hides it.
const tip = {
  box: byId("tip"),
  chip: null,
  timer: 0,

  show(chip) {
    clearTimeout(this.timer);
    if (this.chip !== chip) this.hide();
    this.chip = chip;
    chip.classList.add("shown");
    chip.setAttribute("aria-describedby", "tip");
    const { answer, position } = chip;
    const [text, ...lines] = answer.lines(position, now);
    const history = answer.history(position, now);
    const row = (kind, cells) =>
      element("tr", {}, ...cells.map((cell) => element(kind, { textContent: cell })));
    const rows = history.slice(-6).map(([k, { token, confidence }]) =>
      row("td", [k, quoted(data.texts[token]), exact(confidence)]),
    );
    if (rows.length) rows.unshift(row("th", ["forward", "most likely", "confidence"]));
    if (history.length > 6) lines.push(`${history.length} forwards so far, of them the last:`);
    this.box.replaceChildren(
      element("div", { className: "text", textContent: text }),
      ...lines.map((line) => element("div", { textContent: line })),
      element("table", {}, ...rows),
    );
    this.box.hidden = false;
    const at = chip.getBoundingClientRect();
    const { width, height } = this.box.getBoundingClientRect();
    const [left, below, above] = [at.left, at.bottom + 6, at.top - height - 6];
    const top = below + height < innerHeight ? below : above;
    const room = document.documentElement.clientWidth - width - 8;
    this.box.style.left = `${Math.max(8, Math.min(left, room))}px`;
    this.box.style.top = `${Math.max(8, top)}px`;
  },

  hide() {
    this.chip?.classList.remove("shown");
    this.chip?.removeAttribute("aria-describedby");
    this.chip = null;
    this.box.hidden = true;
  },

  leave() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const focused = document.activeElement.closest(".token:focus-visible");
      if (focused) this.show(focused);
      else this.hide();
    }, 150);
  },
};

let now = 0;
let playing = 0; // the timer's id

function show(forwards) {
  now = Math.max(0, Math.min(longest, forwards));
  byId("slider").value = now;
  byId("slider").setAttribute("aria-valuetext", `${now} of ${longest} forwards`);
  byId("count").textContent = `${now} / ${longest}`;
  for (const answer of answers) answer.show(now);
  if (tip.chip) tip.show(tip.chip);
}

function pause() {
  clearTimeout(playing);
  playing = 0;
  byId("play").textContent = "Play";
  byId("count").ariaLive = "polite";
}

function step() {
  if (now >= longest) return pause();
  show(now + 1);
  playing = setTimeout(step, 1000 / byId("speed").value);
}

function play() {
  if (playing) return pause();
  if (now >= longest) show(0);
  byId("play").textContent = "Pause";
  byId("count").ariaLive = "off"; // not read out at every step
  playing = setTimeout(step, 1000 / byId("speed").value);
}

function showRule(rule, button) {
  const alone = button.ariaPressed !== "true";
  for (const other of byId("rules").querySelectorAll("button")) {
    other.ariaPressed = other === button && alone;
  }
  byId("strategies").classList.toggle("one-rule", alone);
  for (const { chips, fates } of answers) {
    chips.forEach((chip, i) => chip.classList.toggle("chosen", fates[i].rule === rule));
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const target = event.target.closest("button, input, select, summary");
  const token = event.target.closest(".token");
  const actions = {
    ArrowLeft: () => show(now - 1),
    ArrowRight: () => show(now + 1),
    Home: () => show(0),
    End: () => show(longest),
    " ": play,
    Escape: () => tip.hide(),
  };
  if (token) {
    const { chips } = token.answer;
    actions.ArrowUp = () => chips[Math.max(0, token.position - 1)].focus();
    actions.ArrowDown = () => chips[Math.min(chips.length - 1, token.position + 1)].focus();
  }
  if (target?.matches("select")) return; // they have their own keys
  if (event.key === " " && target && !token && target.type !== "range") return;
  if (!(event.key in actions)) return;
  event.preventDefault();
  if (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End") pause();
  actions[event.key]();
});

const main = byId("strategies");
main.addEventListener("pointerover", (event) => {
  const chip = event.target.closest(".token");
  if (chip) tip.show(chip);
});
main.addEventListener("pointerout", () => tip.leave());
main.addEventListener("focusin", (event) => {
  const chip = event.target.closest(".token");
  if (!chip) return;
  for (const other of chip.answer.chips) other.tabIndex = other === chip ? 0 : -1;
  tip.show(chip);
});
main.addEventListener("focusout", () => tip.leave());
tip.box.addEventListener("pointerenter", () => clearTimeout(tip.timer));
tip.box.addEventListener("pointerleave", () => tip.leave());
byId("slider").addEventListener("input", (event) => {
  pause();
  show(event.target.valueAsNumber);
});
byId("play").addEventListener("click", play);
for (const name of ["guesses", "numbers"]) {
  const box = byId(name);
  box.addEventListener("change", () => main.classList.toggle(name, box.checked));
}

const used = (rule) => data.strategies.some((s) => s.committed_by.includes(rule));
const answers = data.strategies.map((strategy, index) => new Answer(strategy, index));
document.title = `${data.prompt.slice(0, 60)} – r2jax trajectory`;
byId("prompt").textContent = prose(data.prompt);
byId("about").textContent = data.about;
byId("slider").max = longest;
byId("tracks").prepend(...answers.map((answer) => answer.track));
BOUNDS.concat(1).forEach((bound, i) => {
  const text = i === 0 ? `below ${BOUNDS[0]}` : `from ${BOUNDS[i - 1]}`;
  byId("scale").append(element("span", { className: `sure sure-${i}`, textContent: text }));
});
if (answers.some(({ fates }) => fates.some((fate) => fate.sampled))) {
  const text = "sampled, not the most likely";
  byId("scale").append(element("span", { className: "sure sampled", textContent: text }));
}
data.rules.forEach((rule, i) => {
  if (!used(i)) return;
  const button = element("button", { type: "button", ariaPressed: false }, mark(i), rule);
  button.addEventListener("click", () => showRule(i, button));
  byId("rules").append(button);
});
main.classList.add("guesses");
main.append(...answers.map((answer) => answer.panel));
show(Math.min(...data.strategies.map((s) => s.nfe))); // the first to finish has just done so
