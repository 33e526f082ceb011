// A few named values, kept up by the server: large figures on top of a screen, or a quiet list of facts.

import { element, fill, setClock } from "treescale/cells.js";
import { part } from "treescale/parts.js";

const LONG = 44;

export default {
  mixins: [part],
  template: `<dl class="facts" :class="look" :aria-label="label"></dl>`,
  props: { look: String, label: String },
  created() {
    this.parts = new Map();
  },
  methods: {
    /** `set`: what changed; `drop`: keys of what is there no more; `order`: all keys, when it is another. */
    put({ now, set = [], drop = [], order }) {
      setClock(now);
      for (const { key, label, kind, value, tone, note, href } of set) {
        let part = this.parts.get(key);
        if (!part) {
          part = element("div");
          part.append(element("dt", "", label), element("dd"));
          this.parts.set(key, part);
        }
        const size = (Array.isArray(value) ? value.join(" ") : String(value)).length;
        part.className = `fact ${tone ?? ""}${size > LONG ? " long" : ""}`;
        part.firstChild.textContent = label;
        const shown = element(href ? "a" : "span", kind === "mono" ? "value mono" : "value");
        if (href) shown.href = href;
        fill(shown, kind, value);
        part.lastChild.replaceChildren(shown, ...(note ? [element("small", "", note)] : []));
      }
      for (const key of drop) {
        this.parts.get(key)?.remove();
        this.parts.delete(key);
      }
      if (order) this.$el.append(...order.map((key) => this.parts.get(key)).filter(Boolean));
    },
  },
};
