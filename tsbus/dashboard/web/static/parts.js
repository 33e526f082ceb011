// The way of messages to the parts of a page. They come by a message of their own on NiceGUI's socket, because its
// method calls are program text that the browser would have to compile, hundreds of kilobytes of it a second.

const KEPT = 64;

const parts = new Map();
const early = new Map();

function arrived({ _id, part, message }) {
  if (_id < window.nextMessageId) return; // sent again after a reconnect
  window.nextMessageId = _id + 1;
  if (parts.has(part)) parts.get(part).put(message);
  else {
    early.set(part, [...(early.get(part) ?? []), message]);
    if (early.size > KEPT) early.delete(early.keys().next().value);
  }
}

let listening = false;

/** What every part mixes in: messages that came before it are waiting for it. */
export const part = {
  mounted() {
    this.$nextTick(() => {
      if (!listening) window.socket.on("part", arrived);
      listening = true;
      const id = this.$attrs.id;
      parts.set(id, this);
      for (const message of early.get(id) ?? []) this.put(message);
      early.delete(id);
    });
  },
  beforeUnmount() {
    parts.delete(this.$attrs.id);
  },
};
