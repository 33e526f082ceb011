// The field in the header: the server answers with what fits, arrows choose, Enter goes there.

import { element, fill } from "treescale/cells.js";
import { part } from "treescale/parts.js";

const PAUSE_MS = 80;

export default {
  mixins: [part],
  template: `
    <div class="search" role="search">
      <input id="search" type="text" role="combobox" aria-label="Search the tree" aria-autocomplete="list"
             aria-controls="found" :aria-expanded="String(open)" :aria-activedescendant="open && at >= 0 ? 'found-' + at : undefined"
             placeholder="Search" autocomplete="off" spellcheck="false" v-model="words" @focus="ask" @blur="leave" @keydown="pressed">
      <kbd aria-hidden="true">/</kbd>
      <div v-show="open" id="found" class="found" role="listbox" aria-label="What was found" ref="list"></div>
    </div>`,
  data() {
    return { words: "", open: false, at: -1 };
  },
  created() {
    this.asked = 0;
    this.hits = [];
  },
  watch: {
    words() {
      clearTimeout(this.timer);
      this.timer = setTimeout(this.ask, PAUSE_MS);
    },
  },
  methods: {
    ask() {
      if (!this.words.trim()) {
        this.open = false;
        return;
      }
      this.asked += 1;
      this.$emit("ask", { number: this.asked, words: this.words });
    },
    /** The server's answer: hits are [what, title, note, href, state]. */
    put({ number, hits, more }) {
      if (number !== this.asked || document.activeElement?.id !== "search") return;
      this.hits = hits;
      this.at = hits.length ? 0 : -1;
      const rows = hits.map(([what, title, note, href, state], index) => {
        const row = element("a", "hit");
        Object.assign(row, { href, id: `found-${index}`, tabIndex: -1 });
        row.setAttribute("role", "option");
        const mark = element("span", "what");
        if (state) fill(mark, "state", state);
        else mark.textContent = what;
        row.append(element("b", "", title), element("span", "note", note), mark);
        row.addEventListener("pointerdown", (event) => event.preventDefault());
        row.addEventListener("click", () => this.close());
        return row;
      });
      if (more || !hits.length) {
        const rest = element("div", "rest", hits.length ? `${more} more: go on typing` : `Nothing is called “${this.words}”`);
        rest.setAttribute("role", "option");
        rest.ariaDisabled = "true";
        rows.push(rest);
      }
      this.$refs.list.replaceChildren(...rows);
      this.open = true;
      this.mark();
    },
    mark() {
      [...this.$refs.list.children].forEach((row, index) => {
        row.ariaSelected = String(index === this.at);
        if (index === this.at) row.scrollIntoView({ block: "nearest" });
      });
    },
    pressed(event) {
      if (event.key === "Escape") this.close();
      else if (!this.open) return;
      else if (event.key === "ArrowDown") this.at = Math.min(this.hits.length - 1, this.at + 1);
      else if (event.key === "ArrowUp") this.at = Math.max(0, this.at - 1);
      else if (event.key === "Enter") this.$refs.list.children[this.at]?.click();
      else return;
      this.mark();
      event.preventDefault();
    },
    leave() {
      this.open = false;
    },
    close() {
      this.words = "";
      this.open = false;
      document.querySelector("#search").blur();
    },
  },
};
