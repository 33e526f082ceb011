// Lines as they come: of a container, of a command on many nodes. Bounded; it follows its end until somebody scrolls up.

import { element } from "treescale/cells.js";
import { part } from "treescale/parts.js";

const KEPT = 5000;

export default {
  mixins: [part],
  template: `
    <section class="log" :aria-label="label">
      <header class="bar">
        <h2>{{ label }}</h2><span class="total">{{ note }}</span>
        <label class="filter"><span class="sr">Filter {{ label }}</span>
          <input type="search" v-model="words" placeholder="Filter lines" spellcheck="false" autocomplete="off"
                 @keydown.esc="words = ''; $event.target.blur()"></label>
        <button class="btn small" :aria-pressed="String(!follows)" @click="toggle">{{ follows ? "Pause" : "Follow" }}</button>
        <slot></slot>
      </header>
      <div class="box">
        <div class="lines" :class="{grows}" ref="lines" role="log" :aria-label="label" tabindex="0"
             @scroll.passive="scrolled"></div>
        <p v-show="!total" class="empty">{{ empty }}</p>
      </div>
    </section>`,
  props: { label: String, empty: String, grows: Boolean },
  data() {
    return { words: "", follows: true, total: 0, lost: 0 };
  },
  computed: {
    note() {
      return this.lost ? `the last ${KEPT} of ${this.total + this.lost} lines` : this.total ? `${this.total} line${this.total > 1 ? "s" : ""}` : "";
    },
  },
  watch: {
    words(words) {
      const wanted = words.toLowerCase();
      for (const line of this.$refs.lines.children) line.hidden = !line.textContent.toLowerCase().includes(wanted);
    },
  },
  methods: {
    /** Append `lines`: [source, text, tone]; the source may be empty. With `wipe` they are the first. */
    put({ lines, wipe }) {
      const box = this.$refs.lines;
      if (wipe) {
        box.replaceChildren();
        this.total = this.lost = 0;
      }
      const wanted = this.words.toLowerCase();
      const made = lines.slice(-KEPT).map(([source, text, tone]) => {
        const line = element("div", tone);
        if (source) line.append(element("b", "", source), " ");
        line.append(text);
        line.hidden = wanted !== "" && !line.textContent.toLowerCase().includes(wanted);
        return line;
      });
      box.append(...made);
      this.lost += lines.length - made.length;
      this.total += made.length;
      while (this.total > KEPT) {
        box.firstChild.remove();
        this.total -= 1;
        this.lost += 1;
      }
      if (this.follows) box.scrollTop = box.scrollHeight;
    },
    toggle() {
      this.follows = !this.follows;
      if (this.follows) this.$refs.lines.scrollTop = this.$refs.lines.scrollHeight;
    },
    scrolled() {
      const box = this.$refs.lines;
      this.follows = box.scrollTop + box.clientHeight > box.scrollHeight - 30;
    },
  },
};
