// A list of rows that the server keeps up by differences. Only rows in sight are in the page, so two thousand cost what
// forty do. On a narrow page each row has two lines. With `tree`, rows have a depth and can be folded.

import { element, fill, rank, setClock } from "treescale/cells.js";
import { tables } from "treescale/keys.js";
import { part } from "treescale/parts.js";

const NARROW_PX = 640;
const MARGIN = 8;
const RESORT_MS = 3000;
const KEPT = 2000;

export default {
  mixins: [part],
  template: `
    <section v-show="!quiet || total" class="table" :class="{narrow, tree, feed, bare: !headed, hollow: !total && !words}" :aria-label="label">
      <header v-if="title || filter" class="bar">
        <h2 v-if="title">{{ title }}</h2><span class="total" v-if="title">{{ total }}</span>
        <button v-if="feed && held" class="btn small" @click="release">{{ held }} new</button>
        <label v-if="filter" class="filter"><span class="sr">Filter {{ label }}</span>
          <input type="search" v-model="words" :placeholder="filter" spellcheck="false" autocomplete="off"
                 @keydown.esc="words = ''; $event.target.blur()"></label>
        <slot></slot>
      </header>
      <div class="grid" role="table" :aria-label="label" :aria-rowcount="total + 1" :style="{'--cols': tracks}">
        <div role="rowgroup" class="head"><div role="row" class="row">
          <div v-for="(column, index) in columns" role="columnheader" :key="column.id" :class="kindOf(column)"
               :aria-sort="sort === column.id ? (down ? 'descending' : 'ascending') : undefined">
            <button v-if="!tree && !feed && column.title && column.sort !== false" @click="sortBy(column)">
              {{ column.title }}<i aria-hidden="true">{{ sort === column.id ? (down ? "↓" : "↑") : "" }}</i></button>
            <span v-else :class="{sr: column.kind === 'actions'}">{{ column.title }}</span></div>
        </div></div>
        <div role="rowgroup" class="body" ref="body"></div>
      </div>
      <p v-show="!total" class="empty">{{ words ? "Nothing fits “" + words + "”." : empty }}</p>
    </section>`,
  props: {
    columns: Array,
    label: String,
    title: String,
    empty: String,
    filter: String,
    tree: Boolean,
    feed: Boolean,
    quiet: Boolean,
    headed: Boolean,
  },
  data() {
    return { narrow: false, total: 0, words: "", sort: "", down: false, held: 0 };
  },
  computed: {
    tracks() {
      return this.columns.map((column) => column.width ?? "minmax(0, 1fr)").join(" ");
    },
  },
  created() {
    // Not reactive: thousands of rows, changed many times a second.
    this.rows = new Map();
    this.keys = [];
    this.shown = [];
    this.drawn = new Map();
    this.folded = new Set();
    this.waiting = [];
    this.current = null;
    const query = new URLSearchParams(location.search);
    if (this.filter) this.words = query.get("q") ?? "";
    const order = query.get("sort") ?? "";
    this.down = order.startsWith("-");
    this.sort = order.replace(/^-/, "");
  },
  mounted() {
    this.seen = () => this.soon(false);
    addEventListener("scroll", this.seen, { passive: true });
    this.watcher = new ResizeObserver(() => {
      const narrow = this.$el.clientWidth < NARROW_PX;
      if (narrow !== this.narrow) {
        this.narrow = narrow;
        this.clear();
      }
      this.soon(false);
    });
    this.watcher.observe(this.$el);
    this.resort = setInterval(() => this.sort && this.liveSort() && this.soon(true), RESORT_MS);
    const body = this.$refs.body;
    body.addEventListener("click", (event) => this.clicked(event));
    body.addEventListener("pointerenter", () => (this.inside = true));
    body.addEventListener("pointerleave", () => (this.inside = false));
    tables.add(this);
  },
  beforeUnmount() {
    removeEventListener("scroll", this.seen);
    this.watcher.disconnect();
    clearInterval(this.resort);
    tables.delete(this);
  },
  watch: {
    words(words) {
      this.remember("q", words);
      this.soon(true);
    },
  },
  methods: {
    /** Take what is new: `set` rows, `drop` keys, `order` when it is another; of a feed `add` and `paused`. */
    put({ now, set = [], drop = [], order, add, paused }) {
      if (now) setClock(now);
      if (paused !== undefined) this.pause(paused);
      if (add) this.add(add);
      this.take(set);
      for (const key of drop) this.rows.delete(key);
      if (order) this.keys = order;
      this.soon(Boolean(order || drop.length || this.words));
    },
    take(rows) {
      for (const row of rows) this.rows.set(row.key, row);
    },
    /** Of a feed: take rows that came, newest first. While somebody reads further down or has paused it, they wait. */
    add(rows) {
      this.waiting = rows.concat(this.waiting).slice(0, KEPT);
      if (this.paused || this.$refs.body.getBoundingClientRect().top < 0) this.held = this.waiting.length;
      else this.release();
    },
    pause(paused) {
      this.paused = paused;
      if (!paused) this.release();
    },
    release() {
      this.take(this.waiting);
      this.keys = this.waiting.map((row) => row.key).concat(this.keys);
      for (const key of this.keys.splice(KEPT)) this.rows.delete(key);
      if (this.held) scrollTo({ top: 0 });
      this.waiting = [];
      this.held = 0;
      this.soon(true);
    },
    soon(arrange) {
      this.stale ||= arrange;
      if (this.frame) return;
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        if (this.stale) this.arrange();
        this.stale = false;
        this.draw();
      });
    },
    liveSort() {
      return this.sort && !this.tree && !this.feed;
    },
    /** Decide which rows there are, in which order. Rows do not move below a pointer. */
    arrange() {
      const terms = this.words.toLowerCase().split(/\s+/).filter(Boolean);
      const text = (row) => (row.text ??= `${row.hay ?? ""} ${row.cells.flat().join(" ")}`.toLowerCase());
      const fits = (row) => row && terms.every((term) => text(row).includes(term));
      if (this.tree && !terms.length) {
        let hidden = Infinity;
        this.shown = this.keys.filter((key) => {
          const depth = this.rows.get(key)?.depth ?? 0;
          if (depth > hidden) return false;
          hidden = this.folded.has(key) ? depth : Infinity;
          return true;
        });
      } else {
        this.shown = this.keys.filter((key) => fits(this.rows.get(key)));
      }
      this.total = this.shown.length;
      const index = this.columns.findIndex((column) => column.id === this.sort);
      if (this.liveSort() && index >= 0) {
        if (this.inside && this.places) {
          this.shown.sort((a, b) => (this.places.get(a) ?? Infinity) - (this.places.get(b) ?? Infinity));
          return;
        }
        const { kind } = this.columns[index];
        const sign = this.down ? -1 : 1;
        const ranks = new Map(this.shown.map((key) => [key, rank(kind, this.rows.get(key).cells[index])]));
        this.shown.sort((a, b) => {
          const [one, other] = [ranks.get(a), ranks.get(b)];
          if (one === other) return 0;
          if (one === null || one === undefined) return 1;
          if (other === null || other === undefined) return -1;
          return (one < other ? -1 : 1) * sign;
        });
        this.places = new Map(this.shown.map((key, place) => [key, place]));
      }
    },
    rowHeight() {
      return parseFloat(getComputedStyle(this.$el).getPropertyValue("--row"));
    },
    draw() {
      const body = this.$refs.body;
      if (!body) return;
      const height = this.rowHeight();
      body.style.height = `${this.shown.length * height}px`;
      const top = body.getBoundingClientRect().top;
      const first = Math.max(0, Math.floor(-top / height) - MARGIN);
      const last = Math.min(this.shown.length, Math.ceil((innerHeight - top) / height) + MARGIN);
      const wanted = new Set(this.shown.slice(first, last));
      for (const [key, row] of this.drawn) {
        if (!wanted.has(key)) {
          row.remove();
          this.drawn.delete(key);
        }
      }
      let before = null;
      for (let place = first; place < last; place += 1) {
        const key = this.shown[place];
        let made = this.drawn.get(key);
        if (!made) {
          made = this.makeRow(key);
          this.drawn.set(key, made);
          body.insertBefore(made, before ? before.nextSibling : body.firstChild);
        } else if (made.previousSibling !== before) {
          body.insertBefore(made, before ? before.nextSibling : body.firstChild);
        }
        before = made;
        this.fillRow(made, this.rows.get(key));
        const shift = `translateY(${place * height}px)`;
        if (made.style.transform !== shift) made.style.transform = shift;
        made.ariaRowIndex = place + 2;
      }
    },
    clear() {
      for (const row of this.drawn.values()) row.remove();
      this.drawn.clear();
    },
    makeRow(key) {
      const made = element("div", "row");
      made.setAttribute("role", "row");
      made.tabIndex = -1;
      made.dataset.key = key;
      const lines = [element("div", "line"), element("div", "line")];
      lines.forEach((line) => line.setAttribute("role", "none"));
      made.cells = this.columns.map((column, index) => {
        const cell = element("div", this.kindOf(column));
        cell.setAttribute("role", "cell");
        cell.style.order = index;
        if (column.line === 0) cell.classList.add("wide-only");
        const word = column.label ?? (column.line === 2 ? column.title : "");
        if (word) cell.dataset.label = word;
        if (column.after) cell.dataset.after = column.after;
        lines[column.line === 2 ? 1 : 0].append(cell);
        return cell;
      });
      made.append(...lines);
      return made;
    },
    kindOf(column) {
      return `cell k-${column.kind ?? "text"}${column.end ? " end" : ""}${column.dim ? " dim" : ""}`;
    },
    fillRow(made, row) {
      if (made.row === row && made.open === this.folded.has(row.key)) return;
      made.className = `row ${row.tone ?? ""}${row.key === this.current ? " current" : ""}`;
      made.style.setProperty("--depth", row.depth ?? 0);
      row.cells.forEach((value, index) => {
        const cell = made.cells[index];
        const print = JSON.stringify([value, index ? 0 : [row.href, row.kids, this.folded.has(row.key)]]);
        if (cell.print === print) return;
        cell.print = print;
        const { kind } = this.columns[index];
        if (kind === "actions") this.fillActions(cell, value);
        else if (index === 0 && (row.href || this.tree)) this.fillName(cell, row, value);
        else fill(cell, kind, value);
      });
      made.row = row;
      made.open = this.folded.has(row.key);
    },
    fillName(cell, row, value) {
      const parts = [];
      if (this.tree) {
        const fold = element(row.kids ? "button" : "span", "fold", row.kids ? (this.folded.has(row.key) ? "▸" : "▾") : "");
        if (row.kids) {
          fold.ariaLabel = `${this.folded.has(row.key) ? "Unfold" : "Fold"} ${value}`;
          fold.ariaExpanded = String(!this.folded.has(row.key));
          fold.dataset.fold = row.key;
        }
        parts.push(fold);
      }
      const link = element(row.href ? "a" : "span", "name", value);
      if (row.href) link.href = row.href;
      link.title = value;
      parts.push(link);
      if (row.note) parts.push(element("span", "note", row.note));
      cell.replaceChildren(...parts);
    },
    fillActions(cell, actions) {
      cell.replaceChildren(
        ...(actions ?? []).map(([id, label, refused]) => {
          const button = element("button", "btn small", label);
          button.dataset.act = id;
          if (refused) {
            button.ariaDisabled = "true";
            button.title = refused;
          }
          return button;
        }),
      );
    },
    clicked(event) {
      const row = event.target.closest(".row");
      if (!row || getSelection().toString()) return;
      const { key } = row.dataset;
      const button = event.target.closest("button");
      this.choose(key);
      if (button?.dataset.fold !== undefined) this.fold(key);
      else if (button?.dataset.act) {
        if (button.ariaDisabled !== "true") this.$emit("act", { key, action: button.dataset.act });
      } else if (!event.target.closest("a")) this.open(key);
    },
    open(key) {
      const link = this.drawn.get(key)?.querySelector("a.name");
      if (link) link.click();
      else this.$emit("act", { key, action: "open" });
    },
    fold(key, folded = !this.folded.has(key)) {
      if (folded) this.folded.add(key);
      else this.folded.delete(key);
      this.soon(true);
    },
    choose(key) {
      this.drawn.get(this.current)?.classList.remove("current");
      this.current = key;
      this.drawn.get(key)?.classList.add("current");
    },
    /** Move the mark by `step` rows, and keep it in sight. Returns whether there is a row. */
    move(step) {
      if (!this.shown.length) return false;
      const at = this.shown.indexOf(this.current);
      const place = at < 0 ? 0 : Math.min(this.shown.length - 1, Math.max(0, at + step));
      this.choose(this.shown[place]);
      const height = this.rowHeight();
      const top = this.$refs.body.getBoundingClientRect().top + place * height;
      if (top < 120) scrollBy({ top: top - 120 });
      else if (top + height > innerHeight - 20) scrollBy({ top: top + height - innerHeight + 20 });
      this.draw();
      this.drawn.get(this.current)?.focus({ preventScroll: true });
      return true;
    },
    sortBy(column) {
      const numeric = column.end;
      if (this.sort !== column.id) [this.sort, this.down] = [column.id, Boolean(numeric)];
      else if (this.down === Boolean(numeric)) this.down = !this.down;
      else this.sort = "";
      this.places = null;
      this.remember("sort", this.sort && (this.down ? "-" : "") + this.sort);
      this.soon(true);
    },
    /** Keep what is shown in the page's address, so that it can be passed on. */
    remember(name, value) {
      const query = new URLSearchParams(location.search);
      if (value) query.set(name, value);
      else query.delete(name);
      const text = query.toString();
      history.replaceState(history.state, "", location.pathname + (text ? `?${text}` : ""));
    },
  },
};
