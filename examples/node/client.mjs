// A worker on the bus in JavaScript: it publishes, subscribes and answers a command. See docs/protocol.md.
// Usage: npm install && node client.mjs /run/treescale/bus
import { randomBytes } from "node:crypto";
import { pathToFileURL } from "node:url";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

const HELLO = 1, WELCOME = 2, BYE = 3, PING = 4, PONG = 5, CREDIT = 6, GAP = 9, SUBSCRIBE = 10, SERVE = 12;
const ACCEPT = 15, ERROR = 17, EVENT = 32, REQUEST = 33, REPLY = 34, GRANT = 37;
const LAST = 1, JSON_CONTENT = 2, OPERATE = 2, OK = 0, FAILED = 1, WINDOW = 1 << 20, CHECK_MS = 20;
const EMPTY = new Uint8Array(0);
// Numbers may have 63 bits (section 3.4): those of more than 32 are BigInt, for the encoder makes floats of others.
export const pack = (value) => encode(value, { useBigInt64: true });
export const unpack = (bytes) => decode(bytes, { useBigInt64: true });
const long = (number) => (number < 2 ** 32 ? number : BigInt(number));
const json = (value) => Buffer.from(JSON.stringify(value));
const parse = (bytes) => JSON.parse(Buffer.from(bytes));

export class Bus {
  subscriptions = []; // [pattern, handler(topic, value, origin)]
  commands = {}; // "name": (value) => answer
  sending = this.publishing = Promise.resolve();
  incarnation = randomBytes(8).readBigUInt64BE() >> 1n;
  seq = 0;
  constructor(path, service) { Object.assign(this, { path, service }); }

  async run(onWelcome) { // for ever: every turn is one connection, with a session of its own (1.1)
    for (;;) {
      this.socket = new Dealer({ immediate: true, linger: 0 }); // section 1.4
      Object.assign(this, { me: null, sent: 0, acked: 0, streams: 0, events: 0, told: 0 });
      this.socket.events.on("disconnect", () => this.socket.close());
      this.socket.connect(`ipc://${this.path}`);
      this.local(HELLO, { versions: [1, 1], name: this.service, incarnation: this.incarnation, window: WINDOW });
      for await (const [frame] of this.socket) {
        const items = unpack(frame);
        for (let i = 0; i < items.length; i += 3) this.handle(unpack(items[i]), items[i + 1], items[i + 2], onWelcome);
        this.acknowledge(unpack(items[0])[0], frame.length);
      }
    }
  }

  handle([type, origin, , , handle, , topic], meta, body, onWelcome) {
    if (type === WELCOME) {
      this.me = unpack(body);
      for (const [pattern] of this.subscriptions) this.local(SUBSCRIBE, { pattern, scope: "all" });
      const roles = Object.fromEntries(Object.keys(this.commands).map((name) => [name, OPERATE]));
      this.local(SERVE, { service: this.service, commands: roles });
      onWelcome?.(this);
    } else if (type === BYE) this.socket.close();
    else if (type === PING) this.send([[PONG], unpack(meta), EMPTY]);
    else if (type === CREDIT) this.acked = Number(unpack(meta)[1]);
    else if (type === ERROR) console.error("the router says", unpack(body));
    else if (type === EVENT)
      for (const [wanted, handler] of this.subscriptions) matches(wanted, topic) && handler(topic, parse(body), origin);
    else if (type === REQUEST) this.answer(origin, handle, topic, unpack(meta)[0], body);
  }

  async answer(origin, handle, topic, call, body) {
    const command = async () => this.commands[topic.slice(this.service.length + 1)](body.length ? parse(body) : null);
    const [status, value] = await command().then((answer) => [OK, answer], (error) => [FAILED, String(error)]);
    this.send([this.route(REPLY, origin, String(handle)), [call, 0, status, LAST, JSON_CONTENT], json(value)]);
  }

  publish(topic, value, to = "*") { // one after the other, for they must not overtake each other while they wait (9.2)
    return (this.publishing = this.publishing.then(async () => {
      while (!this.me || this.sent - this.acked >= this.me.window) await new Promise((go) => setTimeout(go, CHECK_MS));
      const meta = [this.incarnation, this.seq++, long(Date.now()), JSON_CONTENT];
      this.sent += this.send([this.route(EVENT, to, topic), meta, json(value)]);
    }));
  }

  route = (type, target, topic) => [type, this.me.node, this.me.who, this.me.role, this.me.handle, target, topic];
  local = (type, body, meta = []) => this.send([[type], meta, body ? pack(body) : EMPTY]);
  send([route, meta, body]) {
    const frame = pack([pack(route), pack(meta), body]), socket = this.socket;
    this.sending = this.sending.then(() => socket.send(frame)).catch(() => {}); // in order; lost if it was closed
    return frame.length;
  }

  acknowledge(type, size) { // 9.2: tell the total once for every quarter of the window
    if ([GAP, EVENT].includes(type)) this.events += size;
    else if (type >= ACCEPT && ![ERROR, GRANT].includes(type)) this.streams += size;
    if (this.events + this.streams - this.told < WINDOW / 4) return;
    this.told = this.events + this.streams;
    this.local(CREDIT, null, [long(this.streams), long(this.events)]);
  }
}

export function matches(pattern, topic) { // 7.1
  const wanted = pattern.split("."), tokens = topic.split(".", wanted.at(-1) === ">" ? wanted.length : undefined);
  return wanted.length === tokens.length && wanted.every((token, i) => ["*", ">", tokens[i]].includes(token));
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const bus = new Bus(process.argv[2] ?? "/run/treescale/bus", "shout");
  bus.commands.upper = (text) => text.toUpperCase();
  bus.subscriptions.push(["news.>", (topic, value, origin) => bus.publish("shout.heard", { topic, value, origin })]);
  await bus.run(() => bus.publish("shout.ready", { pid: process.pid }));
}
