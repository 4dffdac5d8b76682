/**
 * A process that embeds the library: opens, runs and closes a node with the configuration of its first argument, as many
 * times as the second says. After the rounds that the third lists it waits for a line of input, so that it can be looked at.
 */
import process from "node:process";
import { createInterface } from "node:readline";
import { Library, Node, parseNodeConfig } from "../../mod.ts";

const [json = "", rounds = "0", stops = "[]"] = process.argv.slice(2);
const config = parseNodeConfig(JSON.parse(json));
const pauses = new Set(JSON.parse(stops) as number[]);
const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const { gc } = globalThis as { readonly gc?: () => void };

// One that is open all the time, so that it can say what is left of those that came and went.
await using library = Library.open();
for (let round = 0; round <= Number(rounds); round++) {
  const startedAt = performance.now();
  let upMs = 0;
  if (round > 0) {
    const done = new AbortController();
    await using node = await Node.open(config, {
      library,
      onEvent: (event) => {
        if (event.type !== "tunnel" || event.event.type !== "keys") return;
        upMs = performance.now() - startedAt;
        done.abort();
      },
    });
    await node.run({ signal: done.signal });
  }
  const paused = pauses.has(round);
  if (paused) gc?.();
  process.stdout.write(
    `${JSON.stringify({ round, upMs: Math.round(upMs), handles: library.handleCount(), paused })}\n`,
  );
  if (paused) await input.next();
}
process.exit(0);
