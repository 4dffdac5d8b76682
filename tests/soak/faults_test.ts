/** Bad networks for minutes. */
import assert from "node:assert/strict";
import { move, moveByName, outage, pings, REKEY, rekeyed, seen } from "../netns/_faults.ts";
import { drops, Lab, type Node, privileged } from "../netns/_lab.ts";
import { grownSince, usage } from "../netns/_process.ts";
import { BACK_WITHIN_MS, Pinging } from "../netns/_restart.ts";
import { transfer } from "../netns/_transfer.ts";
import { figure, progress } from "./_report.ts";

const MIB = 1 << 20;
const GIB = 1 << 30;
const FLOWS = 64;
const BYTES_PER_FLOW = 160 * MIB;
const LIMIT_MS = 40 * 60_000;
const PROGRESS_MS = 10_000;

for (const what of ["the network is cut", "the interface is set down"] as const) {
  privileged(`${what} for 30 s: TCP arrives whole, and the same processes exchange keys again`, () => outage(what, 30));
}

privileged("the responder, known by its name, moves to another address: the tunnel follows the name", async () => {
  await moveByName("responder");
});

/** One state of the network, which lasts until so much has come through, or for so long. */
interface Phase {
  readonly name: string;
  readonly begin: (lab: Lab) => Promise<unknown>;
  /** @default the next phase only adds to this one */
  readonly end?: (lab: Lab) => Promise<unknown>;
  readonly gib?: number;
  readonly seconds?: number;
}

const set = (change: string) => (lab: Lab): Promise<unknown> => lab.relay.set(change);
/** Host a has another address, which its peer does not see: the relay stands between. */
const moveA = (from: string, to: string) => async (lab: Lab): Promise<void> => {
  await move(lab.a, from, to);
  await lab.relay.set(`a-at ${to}`);
};
const link = (state: "up" | "down") => (lab: Lab): Promise<unknown> =>
  lab.a.ok(["ip", "link", "set", "dev", "phy", state]);

const PHASES: readonly Phase[] = [
  { name: "clean", begin: set("clear"), gib: 2 },
  { name: "loss 1 %", begin: set("loss=1"), end: set("clear"), gib: 1.5 },
  { name: "reorder 5 %", begin: set("reorder=5"), end: set("clear"), gib: 1.5 },
  { name: "duplicate 2 %", begin: set("duplicate=2"), end: set("clear"), gib: 1 },
  { name: "corrupt 0.5 %", begin: set("corrupt=0.5"), end: set("clear"), gib: 1 },
  { name: "path MTU 1300", begin: set("mtu=1300"), end: set("mtu=0"), seconds: 20 },
  {
    name: "another address",
    begin: moveA("192.168.77.1", "192.168.77.9"),
    end: moveA("192.168.77.9", "192.168.77.1"),
    gib: 0.5,
  },
  { name: "cut for 30 s", begin: set("link=down"), end: set("link=up"), seconds: 30 },
  { name: "interface down for 30 s", begin: link("down"), end: link("up"), seconds: 30 },
  { name: "all at once", begin: set("loss=1 reorder=5 duplicate=2 corrupt=0.5") },
];

/** Inner bytes that have come through, of both directions. */
async function arrived(nodes: readonly Node[]): Promise<number> {
  const counters = await Promise.all(nodes.map((node) => node.counters()));
  return counters.reduce((sum, { rx_bytes = 0 }) => sum + rx_bytes, 0);
}

privileged(
  `10 GiB through ${FLOWS} TCP flows with a rekey every second, over a network that fails in every way`,
  async () => {
    await using lab = await Lab.create({ relay: true });
    for (const host of [lab.a, lab.b]) {
      // A path that swallows large packets is found out by TCP alone: DF is set, and nobody answers with ICMP.
      await host.ok(["sysctl", "-qw", "net.ipv4.tcp_mtu_probing=1"]);
    }
    const nodes = await lab.tunnel(REKEY);
    const [a, b] = nodes;
    const pinging = await Pinging.start(lab, lab.b);
    // Packets move: every thread is there.
    const before = await Promise.all(nodes.map(({ process }) => usage(process.pid)));
    const startedAt = performance.now();
    let arrivedFlows = 0;
    const transfers = Promise.all(Array.from({ length: FLOWS }, async (_, flow) => {
      const [from, to] = flow % 2 === 0 ? [lab.a, lab.b] : [lab.b, lab.a];
      const port = 5100 + flow;
      await transfer(lab, { from, to, address: to.inner4, bytes: BYTES_PER_FLOW, port, timeoutMs: LIMIT_MS });
      arrivedFlows += 1;
    }));
    // Awaited below; until then a failure must not end the run as unhandled.
    let failed = false;
    transfers.catch(() => failed = true);
    const going = () => arrivedFlows < FLOWS && !failed;

    for (const [index, { name, begin, end, gib = Infinity, seconds = Infinity }] of PHASES.entries()) {
      assert(failed || arrivedFlows < FLOWS, `everything has arrived before the phase "${name}" began`);
      await begin(lab);
      const [beganAt, from] = [performance.now(), await arrived(nodes)];
      let [toldAt, now] = [beganAt, from];
      while (going() && now - from < gib * GIB && performance.now() - beganAt < seconds * 1000) {
        await new Promise((resolve) => setTimeout(resolve, 500));
        now = await arrived(nodes);
        if (performance.now() - toldAt < PROGRESS_MS) continue;
        toldAt = performance.now();
        progress(`${name}: ${(now / GIB).toFixed(2)} GiB, ${arrivedFlows} of ${FLOWS} flows done`);
      }
      const took = (performance.now() - beganAt) / 1000;
      await end?.(lab);
      const endedAt = Date.now();
      let back = "";
      if (index < PHASES.length - 1) {
        const backMs = await pinging.answerAfter(endedAt, 60_000) - endedAt;
        assert(backMs < BACK_WITHIN_MS, `${name}: packets pass ${backMs} ms after its end`);
        // Also keys: the session may have been lost with the network.
        await Promise.all(nodes.map(rekeyed));
        const keysMs = Date.now() - endedAt;
        back = `; after its end packets pass in ${backMs.toFixed(0)} ms, new keys in ${keysMs} ms`;
      }
      const rate = ((now - from) * 8 / took / 1e6).toFixed(0);
      progress(
        `${name}: ${((now - from) / GIB).toFixed(2)} GiB in ${took.toFixed(0)} s, ${rate} Mbit/s${back}`,
      );
    }
    await transfers;
    const tookSeconds = (performance.now() - startedAt) / 1000;
    const relayed = await lab.relay.set("clear");
    await rekeyed(a);
    await rekeyed(b);
    assert(await pings(lab.a, lab.b.inner4));
    await pinging.stop();
    const after = await Promise.all(nodes.map(({ process }) => usage(process.pid)));
    figure("10 GiB, every checksum equal", {
      seconds: Math.round(tookSeconds),
      mbitPerSecond: Math.round(FLOWS * BYTES_PER_FLOW * 8 / tookSeconds / 1e6),
      rekeys: seen(a, "keys"),
      sessionsLost: seen(a, "session-lost"),
      dropped: await Promise.all(nodes.map(async (node) => drops(await node.counters()))),
      relayed,
      grown: before.map((usage, index) => grownSince(usage, after[index] ?? usage)),
    });
    // One exchange a second, but for those that were lost with the network.
    assert(seen(a, "keys") > tookSeconds / 3, `${seen(a, "keys")} rekeys in ${tookSeconds} s`);
    for (const [index, { workers, files }] of after.entries()) {
      assert.deepEqual([workers, files], [before[index]?.workers, before[index]?.files], "threads and descriptors");
    }
    await a.stop();
    await b.stop();
  },
);
