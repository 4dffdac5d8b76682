/**
 * A process that opens, runs and closes forwarders over the interface `phy` of its network namespace, as many as its second
 * argument says, in every manner in turn. After the rounds that the third lists it waits for a line of input, so that it can be
 * looked at. The first has the interface's hardware address and the bound address. What comes for that must be frames of a
 * network that nobody has: each forwarder runs until it has counted one.
 */
import assert from "node:assert/strict";
import process from "node:process";
import { createInterface } from "node:readline";
import { afxdp, DatapathError, Engine, Library, TunDevice } from "../../mod.ts";

const [json = "", rounds = "0", stops = "[]"] = process.argv.slice(2);
const { mac, address, pcapFile } = JSON.parse(json) as Readonly<Record<"mac" | "address" | "pcapFile", string>>;
const pauses = new Set(JSON.parse(stops) as number[]);
const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const { gc } = globalThis as { readonly gc?: () => void };

type Manner = Partial<afxdp.ForwarderOptions> & { readonly tun?: true; readonly ends?: "unopened" | "unstarted" };

const MANNERS: readonly Manner[] = [
  {},
  { attach: "generic" },
  { tun: true },
  { busyPoll: { microseconds: 20, budget: 64 }, cpuPin: true },
  { pcapFile },
  { ends: "unstarted" },
  { tun: true, attach: "generic", busyPoll: { microseconds: 20, budget: 64 } },
  { ends: "unopened", queues: 9 },
  { latency: "low", zeroCopy: "off" },
  { tun: true, ends: "unopened", zeroCopy: "require" },
];

await using library = Library.open({ artifact: "afxdp" });

async function round({ tun, ends, ...options }: Manner): Promise<void> {
  using engine = Engine.create({
    library,
    ...(tun ? {} : { ethernet: { hostMac: "02:00:00:00:00:01", gatewayMac: "02:00:00:00:00:02" } }),
    rawUnderlay: { local: [{ addr: address, mac }] },
  });
  engine.addNetwork({ vni: 1, peer: "192.168.77.2:6081", routes: [{ src: "10.9.0.0/24", dst: "10.9.0.0/24" }] });
  const addresses = ["10.9.0.1/24", "fd09::1/64"];
  const open = () =>
    afxdp.Forwarder.open({
      ...options,
      engine,
      interface: "phy",
      device: tun ? TunDevice.open({ library, name: "icx0", mtuBytes: 1392, addresses }) : { addresses },
      bound: [address],
    });
  if (ends === "unopened") {
    assert.throws(open, DatapathError);
    return;
  }
  await using datapath = afxdp.wrap(open());
  if (ends === "unstarted") return;
  const done = new AbortController();
  const look = setInterval(() => {
    if (datapath.stats().engine.rx_unknown_vni > 0n) done.abort();
  }, 5);
  try {
    await datapath.run({ signal: AbortSignal.any([done.signal, AbortSignal.timeout(10_000)]) });
  } finally {
    clearInterval(look);
  }
  const { engine: counters, forwarder } = datapath.stats();
  assert(counters.rx_unknown_vni > 0n, `nothing came: ${JSON.stringify(forwarder)}`);
}

for (let number = 0; number <= Number(rounds); number++) {
  const startedAt = performance.now();
  if (number > 0) await round(MANNERS[number % MANNERS.length] ?? {});
  const tookMs = Math.round(performance.now() - startedAt);
  const paused = pauses.has(number);
  if (paused) gc?.();
  process.stdout.write(`${JSON.stringify({ round: number, tookMs, handles: library.handleCount() })}\n`);
  if (paused) await input.next();
}
process.exit(0);
