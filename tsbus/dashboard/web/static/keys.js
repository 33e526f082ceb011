// The keyboard: / searches, j and k move, Enter opens, h and l fold, Esc leaves, g and a letter go to a screen.

import { tick } from "treescale/cells.js";

/** The tables of the page, in the order in which they came. */
export const tables = new Set();

const SCREENS = { t: "/", c: "/containers", b: "/balancers", e: "/events", u: "/bus", m: "/commands", a: "/alerts" };
const GOING_MS = 3000;
let going = 0;

function isTyping(target) {
  return target.closest?.("input, textarea, select, [contenteditable]");
}

function go(path) {
  const link = Object.assign(document.createElement("a"), { href: path, hidden: true });
  document.body.append(link); // as a click on a link: whoever routes links routes this too
  link.click();
  link.remove();
}

function inUse() {
  const known = [...tables].filter((table) => table.shown.length);
  return known.find((table) => table.current !== null) ?? known[0];
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (isTyping(event.target) || document.querySelector(".q-dialog")) return;
  const table = inUse();
  const { key } = event;
  if (performance.now() - going < GOING_MS && key in SCREENS) go(SCREENS[key]);
  else if (key === "/") document.querySelector("#search")?.focus();
  else if (key === "j" || (key === "ArrowDown" && table?.current)) table?.move(1);
  else if (key === "k" || (key === "ArrowUp" && table?.current)) table?.move(-1);
  else if (key === "Enter" && table?.current && !event.target.closest("button, a")) table.open(table.current);
  else if (key === "h" || key === "l") table?.fold?.(table.current, key === "h");
  else if (key === "Escape") table?.choose(null);
  else if (key !== "g") return;
  going = key === "g" ? performance.now() : 0;
  event.preventDefault();
}

addEventListener("keydown", pressed);
setInterval(tick, 1000);
