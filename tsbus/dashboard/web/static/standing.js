// How fresh the page is: a word in the header, and a banner when the bus or the dashboard itself is away.

import { age, now, setClock } from "treescale/cells.js";
import "treescale/keys.js";
import { part } from "treescale/parts.js";

const QUIET_MS = 4000;
const ASK_MS = 2000;

export default {
  mixins: [part],
  template: `
    <span class="standing" role="status"><span class="state" :class="tone"><i aria-hidden="true"></i>{{ word }}</span></span>
    <teleport to="body"><div v-if="text" class="banner" role="alert">
      <span class="state bad"><i aria-hidden="true"></i>{{ text }}</span></div></teleport>`,
  inheritAttrs: false,
  data() {
    return { said: null, heard: Date.now(), at: Date.now() };
  },
  computed: {
    away() {
      return this.at - this.heard > QUIET_MS;
    },
    tone() {
      return this.away || this.said?.lost_ms ? "bad" : "ok";
    },
    word() {
      if (this.away) return "no answer";
      return this.said?.lost_ms ? "bus lost" : "live";
    },
    text() {
      if (this.away) {
        const words = `The dashboard has not answered for ${age(this.at - this.heard)}. Figures are from before.`;
        return `${words} If it lasts: can its server be reached, and what does supervisorctl status dashboard say there?`;
      }
      if (!this.said?.lost_ms) return "";
      const span = age(this.at + (now() - Date.now()) - this.said.lost_ms);
      return `The bus has been away for ${span}: ${this.said.why} Figures are from before; they go on by themselves.`;
    },
  },
  watch: {
    text(text) {
      document.body.classList.toggle("stale", Boolean(text));
    },
  },
  mounted() {
    this.timer = setInterval(() => (this.at = Date.now()), 1000);
    addEventListener("resize", this.show);
    const nav = document.querySelector(".nav");
    new MutationObserver(this.show).observe(nav, { subtree: true, attributeFilter: ["aria-current"] });
    this.show();
    this.$nextTick(() => window.socket.on("disconnect", this.ask));
  },
  unmounted() {
    clearInterval(this.timer);
    removeEventListener("resize", this.show);
  },
  methods: {
    /** Keep the name of the screen in sight, where the navigation is wider than the page. */
    show() {
      document.querySelector(".nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
    },
    /** The server is away, or it does not let us in any more: then it is time to sign in. */
    async ask() {
      while (!window.socket.connected) {
        const answer = await fetch(location.href).catch(() => null);
        if (answer?.status === 401) location.reload();
        await new Promise((done) => setTimeout(done, ASK_MS));
      }
    },
    /** Said at least every two seconds: that it is said is the news. */
    put({ now: server_ms, lost_ms, why }) {
      setClock(server_ms);
      this.heard = this.at = Date.now();
      this.said = { lost_ms, why };
    },
  },
};
