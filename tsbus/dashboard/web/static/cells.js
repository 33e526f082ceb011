// What a cell shows, by the kind of its column. A value is text, a number or a short list, and only ever becomes
// text nodes: whatever a container is called, nothing of it is read as markup.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const NONE = "–";

/** How far this machine's clock is behind the server's: ages are counted on the server's. */
const clock = { ahead_ms: 0 };

export const now = () => Date.now() + clock.ahead_ms;

export function setClock(server_ms) {
  clock.ahead_ms = server_ms - Date.now();
}

export function bytes(value) {
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 9.95 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

export function count(value) {
  if (value < 10_000) return String(Math.round(value));
  const [scale, unit] = value < 999_500 ? [1e3, "k"] : [1e6, "M"];
  return `${(value / scale).toFixed(value / scale < 9.95 ? 1 : 0)} ${unit}`;
}

export function percent(value) {
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} %`;
}

export function milliseconds(value) {
  if (value >= 10_000) return age(value);
  if (value >= 1000) return `${(value / 1000).toFixed(1)} s`;
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ms`;
}

/** A span of time in its largest unit: nobody reads seconds behind days. */
export function age(span_ms) {
  const s = Math.max(0, Math.floor(span_ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

export function clockTime(at_ms) {
  const at = new Date(at_ms);
  const two = (value) => String(value).padStart(2, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A state is a shape, a word and a colour: any one of them is enough. */
function state([tone, word]) {
  const made = element("span", `state ${tone}`);
  const shape = element("i");
  shape.ariaHidden = "true";
  made.append(shape, word);
  return made;
}

/** A moment; its text is kept up by `tick`. */
function moment(at_ms, before = "") {
  const made = element("time", "", before + age(now() - at_ms));
  made.dataset.at = at_ms;
  if (before) made.dataset.before = before;
  made.title = new Date(at_ms).toLocaleString();
  return made;
}

/** A share of something bounded, as a bar and in words. */
function meter([share, text], calm) {
  const made = element("span", "meter");
  const bar = element("i");
  bar.ariaHidden = "true";
  bar.style.setProperty("--share", Math.min(1, Math.max(0, share)));
  if (share > 0.9 && !calm) bar.className = "high";
  made.append(bar, element("b", "", text));
  return made;
}

function chips(words) {
  const made = element("span", "chips");
  made.append(...words.map((word) => element("span", "chip", word)));
  made.title = words.join(", ");
  return made;
}

const NUMBERS = {
  bytes,
  count,
  percent,
  ms: milliseconds,
  rate: (value) => (value < 0.5 ? "0" : `${bytes(value)}/s`),
  each: (value) => (value < 0.05 ? "0" : `${value < 9.95 ? value.toFixed(1) : count(value)}/s`),
  span: age,
};

const DRAWN = {
  state,
  meter: (value) => meter(value),
  share: (value) => meter(value, true),
  chips,
  age: (value) => (Array.isArray(value) ? moment(...value) : moment(value)),
  time: (at_ms) => {
    const made = element("time", "", clockTime(at_ms));
    made.title = new Date(at_ms).toLocaleString();
    return made;
  },
};

/** Fill `cell` with `value`, as its kind has it. Nothing known is a dash, never a zero. */
export function fill(cell, kind, value) {
  if (value === null || value === undefined || value === "") {
    cell.replaceChildren(element("span", "none", NONE));
  } else if (kind in NUMBERS) {
    cell.textContent = NUMBERS[kind](value);
  } else if (kind in DRAWN) {
    cell.replaceChildren(DRAWN[kind](value));
  } else if (Array.isArray(value)) {
    cell.replaceChildren(state(value)); // a text that is more than that, this time
  } else {
    cell.textContent = value;
    cell.title = value.length > 20 ? value : "";
  }
}

/** What a value is sorted by. */
export function rank(kind, value) {
  if (Array.isArray(value)) return ["meter", "share", "age"].includes(kind) ? value[0] : value.join(" ");
  return value;
}

/** Let every age on the page say how old it is now. */
export function tick() {
  const at = now();
  for (const made of document.querySelectorAll("time[data-at]")) {
    const text = (made.dataset.before ?? "") + age(at - made.dataset.at);
    if (made.textContent !== text) made.textContent = text;
  }
}
