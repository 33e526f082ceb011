// Checks the byte vectors of the protocol against the MessagePack functions of client.mjs. Usage: node vectors.mjs FOLDER
import { readFileSync } from "node:fs";
import { deepStrictEqual } from "node:assert";
import { pack, unpack } from "./client.mjs";

// JSON programs cannot hold numbers of 2^53 and more, so the vectors write them as text.
const text = (_, item) => (typeof item !== "bigint" ? item : item < 2n ** 53n ? Number(item) : String(item));
const plain = (value) => JSON.parse(JSON.stringify(value, text));
const vectors = JSON.parse(readFileSync(`${process.argv[2]}/frames.json`, "utf8"));
for (const { name, frame, envelopes } of vectors) {
  const items = unpack(Buffer.from(frame, "hex"));
  const found = envelopes.map(({ type, body_hex }, i) => {
    const [route, meta, body] = items.slice(3 * i, 3 * i + 3);
    const shown = { type, route: unpack(route), meta: plain(unpack(meta)) };
    const hex = Buffer.from(body).toString("hex");
    return body_hex === undefined ? { ...shown, body: plain(unpack(body)) } : { ...shown, body_hex: hex };
  });
  deepStrictEqual(found, envelopes, name);
  const again = items.map((item, i) => (i % 3 === 0 ? pack(unpack(item)) : item));
  deepStrictEqual(Buffer.from(pack(again)).toString("hex"), frame, name);
}
console.log(`${vectors.length} frames agree`);
