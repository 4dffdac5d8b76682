/** Segmentation offload for minutes: each kind off, all off, refused while it runs; and memory under full load. */
import assert from "node:assert/strict";
import { measureEmptyRuntime } from "../../cli/bench/machine.ts";
import { REKEY, rekeyed, seen } from "../netns/_faults.ts";
import { drops, Lab, privileged } from "../netns/_lab.ts";
import { grownSince, usage } from "../netns/_process.ts";
import { refuseSegments } from "../netns/_refuse.ts";
import { transfer } from "../netns/_transfer.ts";
import { figure, progress } from "./_report.ts";

const MIB = 1 << 20;
const FLOWS = 16;
const BYTES_PER_FLOW = 64 * MIB;
const FAULTS = "loss=1 reorder=5 duplicate=2 corrupt=0.5";

interface Row {
  readonly name: string;
  readonly options: readonly string[];
  /** The kernel refuses to cut from the middle on. */
  readonly refused?: boolean;
}

const ROWS: readonly Row[] = [
  ...["tso", "uso", "gro", "udp-gso", "udp-gro", "all"].map((name): Row => ({
    name: `${name} off`,
    options: ["--offload", `${name}=off`],
  })),
  { name: "udp-gso refused while it runs", options: [], refused: true },
  { name: "two queues", options: ["--queues", "2"] },
];

for (const { name, options, refused = false } of ROWS) {
  privileged(
    `${name}: 1 GiB through ${FLOWS} TCP flows with a rekey every second and every fault arrives whole`,
    async () => {
      await using lab = await Lab.create({ relay: true });
      const nodes = await lab.tunnel([...REKEY, ...options]);
      const [a, b] = nodes;
      await lab.relay.set(FAULTS);
      const before = await Promise.all(nodes.map(({ process }) => usage(process.pid)));
      const startedAt = performance.now();
      const transfers = Promise.all(Array.from({ length: FLOWS }, (_, flow) => {
        const [from, to] = flow % 2 === 0 ? [lab.a, lab.b] : [lab.b, lab.a];
        const address = flow % 4 < 2 ? to.inner4 : to.inner6;
        return transfer(lab, { from, to, address, bytes: BYTES_PER_FLOW, port: 5100 + flow, timeoutMs: 600_000 });
      }));
      // Awaited below, unless something else fails first.
      transfers.catch(() => {});
      if (refused) {
        await Promise.all(nodes.map(rekeyed));
        await refuseSegments(lab, nodes);
      }
      await transfers;
      const seconds = (performance.now() - startedAt) / 1000;
      await lab.relay.set("clear");
      await Promise.all(nodes.map(rekeyed));
      const after = await Promise.all(nodes.map(({ process }) => usage(process.pid)));
      if (refused) { for (const node of nodes) assert.equal(seen(node, "offload-refused"), 1); }
      for (const [index, { workers, files }] of after.entries()) {
        assert.deepEqual([workers, files], [before[index]?.workers, before[index]?.files], "threads and descriptors");
      }
      figure(`1 GiB, ${name}, every checksum equal`, {
        seconds: Math.round(seconds),
        mbitPerSecond: Math.round(FLOWS * BYTES_PER_FLOW * 8 / seconds / 1e6),
        rekeys: seen(a, "keys"),
        dropped: await Promise.all(nodes.map(async (node) => drops(await node.counters()))),
      });
      await a.stop();
      await b.stop();
    },
  );
}

privileged(
  "ten minutes of full load in both directions: a node's memory stays what it was after the first",
  async () => {
    const [minutes, flows, mostBeyondEmptyKiB, mostGrowthKiB] = [10, 4, 64 << 10, 4 << 10];
    const empty = await measureEmptyRuntime();
    assert(empty !== undefined);
    await using lab = await Lab.create();
    // Lines that are logged all the time are garbage of the runtime, which collects it when it likes.
    const nodes = [lab.a, lab.b].map((host) => lab.start(host, [], { statsInterval: "1h" }));
    await Promise.all(nodes.map((node) => node.event("up")));
    lab.spawn(lab.b, ["iperf3", "-s", "-B", lab.b.inner4]);
    await lab.b.ok([
      "/bin/sh",
      "-c",
      "for i in $(seq 50); do ss -Hltn | grep -q :5201 && exit; sleep 0.1; done; exit 1",
    ]);
    const client = ["iperf3", "-c", lab.b.inner4, "-P", String(flows), "--bidir", "-t", String(minutes * 60), "-J"];
    const load = lab.a.run(client, (minutes + 2) * 60_000);
    const looks: Awaited<ReturnType<typeof usage>>[][] = [];
    for (let minute = 1; minute < minutes; minute++) {
      await new Promise((resolve) => setTimeout(resolve, 60_000));
      const look = await Promise.all(nodes.map(({ process }) => usage(process.pid)));
      looks.push(look);
      progress(`minute ${minute}: ${look.map(({ residentKiB, cpuSeconds }) => `${residentKiB} KiB, ${cpuSeconds} s`)}`);
    }
    const { code, stdout, stderr } = await load;
    assert.equal(code, 0, stderr);
    const { end } = JSON.parse(stdout) as Record<string, Record<string, { bits_per_second: number }>>;
    const [first, last] = [looks[0] ?? [], looks.at(-1) ?? []];
    const grown = first.map((usage, index) => grownSince(usage, last[index] ?? usage));
    const beyondEmptyKiB = last.map(({ residentKiB }) => residentKiB - Math.round(empty / 1024));
    figure(`${minutes} minutes of full load`, {
      gbitPerSecond: ["sum_received", "sum_received_bidir_reverse"].map((sum) =>
        Number(((end?.[sum]?.bits_per_second ?? 0) / 1e9).toFixed(2))
      ),
      grownAfterFirstMinute: grown,
      beyondEmptyKiB,
    });
    for (const { workers, files, residentKiB } of grown) {
      assert.deepEqual([workers, files], [0, 0], "threads and descriptors");
      assert(residentKiB < mostGrowthKiB, `grew by ${residentKiB} KiB`);
    }
    for (const beyond of beyondEmptyKiB) assert(beyond < mostBeyondEmptyKiB, `${beyond} KiB beyond the empty runtime`);
    for (const node of nodes) await node.stop();
  },
);
