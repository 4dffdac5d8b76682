/** Bad networks for minutes. */
import assert from "node:assert/strict";
import process from "node:process";
import { moveByName, outage, pings, REKEY, rekeyed, seen } from "../netns/_faults.ts";
import { Lab, privileged } from "../netns/_lab.ts";
import { transfer } from "../netns/_transfer.ts";

const MIB = 1 << 20;
const FLOWS = 64;
const BYTES_PER_FLOW = 160 * MIB;

for (const what of ["the network is cut", "the interface is set down"] as const) {
  privileged(`${what} for 30 s: TCP arrives whole, and the same processes exchange keys again`, () => outage(what, 30));
}

privileged("the responder, known by its name, moves to another address: the tunnel follows the name", async () => {
  await moveByName("responder");
});

privileged(
  `10 GiB through ${FLOWS} TCP flows with a rekey every second, over a bad network that is cut now and then`,
  async () => {
    await using lab = await Lab.create({ relay: true });
    const [a, b] = await lab.tunnel(REKEY);
    await lab.relay.set("loss=1 reorder=5 duplicate=1 corrupt=0.1");
    const startedAt = performance.now();
    let transferring = true;
    const transfers = Promise.all(Array.from({ length: FLOWS }, (_, flow) => {
      const [from, to] = flow % 2 === 0 ? [lab.a, lab.b] : [lab.b, lab.a];
      const port = 5100 + flow;
      const timeoutMs = 3_600_000;
      return transfer(lab, { from, to, address: to.inner4, bytes: BYTES_PER_FLOW, port, timeoutMs });
    })).finally(() => transferring = false);
    // Awaited below; until then a failure must not end the run as unhandled.
    transfers.catch(() => {});
    for (let second = 1; transferring; second++) {
      await new Promise((resolve) => setTimeout(resolve, 1000));
      // Longer than an exchange may take, so that sessions are lost too.
      if (second % 60 === 20) await lab.relay.set("link=down");
      if (second % 60 === 32) await lab.relay.set("link=up");
    }
    await transfers;
    const seconds = (performance.now() - startedAt) / 1000;
    const counts = await lab.relay.set("clear");
    await rekeyed(a);
    await rekeyed(b);
    assert(await pings(lab.a, lab.b.inner4));
    const figures = { seconds, rekeys: seen(a, "keys"), sessionsLost: seen(a, "session-lost"), relayed: counts };
    process.stdout.write(`${JSON.stringify(figures)}\n`);
    await a.stop();
    await b.stop();
  },
);
