/** Traffic with each offload on and off, with several queues, and over devices that cut and merge in their own ways. */
import assert from "node:assert/strict";
import { type Counters, drops, type Host, Lab, type Node, privileged } from "./_lab.ts";
import { refuseSegments } from "./_refuse.ts";
import { transfer } from "./_transfer.ts";

const BYTES = 32 << 20;
/** Far from all packets of a transfer, and far more than what is not bulk. */
const MANY = BYTES / 1392 / 4;

interface Row {
  readonly name: string;
  readonly options: readonly string[];
  /** What of `tso`, `uso`, `gro`, `udpGso` and `udpGro` is off. */
  readonly off?: readonly string[];
  /** What is done to both ends of the wire first. */
  readonly wire?: readonly string[];
}

const rows: readonly Row[] = [
  { name: "everything on", options: [] },
  { name: "tso off", options: ["--offload", "tso=off"], off: ["tso"] },
  { name: "uso off", options: ["--offload", "uso=off"], off: ["uso"] },
  { name: "gro off", options: ["--offload", "gro=off"], off: ["gro"] },
  { name: "udp-gso off", options: ["--offload", "udp-gso=off"], off: ["udpGso"] },
  { name: "udp-gro off", options: ["--offload", "udp-gro=off"], off: ["udpGro"] },
  { name: "all off", options: ["--offload", "all=off"], off: ["tso", "uso", "gro", "udpGso", "udpGro"] },
  { name: "four queues", options: ["--queues", "4", "--source-port-hash"] },
  { name: "two queues that never spin", options: ["--queues", "2", "--latency", "idle"] },
  { name: "one that spins long", options: ["--latency", "low"] },
  {
    name: "a wire that cuts and merges in software",
    options: [],
    wire: ["ethtool", "-K", "phy", "tx-udp-segmentation", "off", "gro", "on", "rx-udp-gro-forwarding", "on"],
  },
  { name: "a wire without checksums", options: [], wire: ["ethtool", "-K", "phy", "tx", "off"] },
  { name: "a wire of short pieces", options: [], wire: ["ip", "link", "set", "phy", "gso_max_size", "8000"] },
];

function reached(ends: Counters, name: string): number {
  const value = ends[name];
  assert(value !== undefined, `no counter ${name}`);
  return value;
}

/** Whether packets passed an end in fewer pieces: by far, or not at all. */
function passedWhole(ends: Counters, pieces: string, packets: string): boolean {
  const saved = reached(ends, packets) - reached(ends, pieces);
  assert(saved === 0 || saved > MANY, `${pieces} and ${packets}: ${JSON.stringify(ends)}`);
  return saved > 0;
}

async function offloadOf(node: Node): Promise<Record<string, boolean>> {
  return (await node.event("starting"))["offload"] as Record<string, boolean>;
}

privileged("a kernel that refuses to cut while a transfer runs: nothing is lost, and it is told once", async () => {
  await using lab = await Lab.create();
  const nodes = await lab.tunnel();
  const [a] = nodes;
  const send = (seconds: number) =>
    transfer(lab, { from: lab.a, to: lab.b, address: lab.b.inner4, bytes: BYTES, seconds });
  const cut = async () => {
    const { ends } = await a.statistics();
    return reached(ends, "underlaySent") - reached(ends, "underlaySends");
  };
  await send(0);
  assert(await cut() > MANY, "cut by the kernel");
  const sending = send(2);
  await new Promise((resolve) => setTimeout(resolve, 500));
  await refuseSegments(lab, nodes);
  assert.equal((await a.event("offload-refused"))["offload"], "udp-gso");
  const atRefusal = await cut();
  await sending;
  assert.equal(await cut(), atRefusal, "not asked for again");
  for (const node of nodes) {
    const { counters, ends } = await node.statistics();
    assert.deepEqual(drops(counters), {});
    assert.equal(ends["underlaySendErrors"], 0);
    // The other node sends acknowledgements only, of which there may never be two at once.
    const told = node.events().filter((event) => event["event"] === "offload-refused").length;
    assert(told === 1 || (told === 0 && node !== a), `told ${told} times`);
    await node.stop();
  }
});

for (const { name, options, off = [], wire } of rows) {
  privileged(`${name}: TCP arrives whole each way, and in pieces as large as may be`, async () => {
    await using lab = await Lab.create();
    if (wire !== undefined) { for (const host of [lab.a, lab.b]) await host.ok(wire); }
    const nodes = await lab.tunnel(options);
    for (const node of nodes) {
      for (const [offload, on] of Object.entries(await offloadOf(node))) {
        assert.equal(on, !off.includes(offload), `${offload} of a kernel that has all`);
      }
    }
    const send = (from: Host, to: Host, address: string) => transfer(lab, { from, to, address, bytes: BYTES });
    await send(lab.a, lab.b, lab.b.inner4);
    await send(lab.b, lab.a, lab.a.inner6);

    for (const node of nodes) {
      const { counters, ends } = await node.statistics();
      assert.deepEqual(drops(counters), {});
      assert.equal(ends["deviceWriteErrors"], 0);
      assert.equal(passedWhole(ends, "deviceReads", "deviceReadPackets"), !off.includes("tso"));
      assert.equal(passedWhole(ends, "underlaySends", "underlaySent"), !off.includes("udpGso"));
      if (off.includes("gro")) assert(!passedWhole(ends, "deviceWrites", "deviceWritePackets"));
      if (off.includes("udpGro")) assert(!passedWhole(ends, "underlayReceives", "underlayReceived"));
      assert(!node.events().some((event) => event["event"] === "offload-refused"), "nothing was refused");
      await node.stop();
    }
  });
}
