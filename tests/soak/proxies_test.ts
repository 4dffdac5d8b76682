/** Proxies into a tunnel for minutes: many bytes, many connections, a bad network, and clients that mean no good. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { eventually, Lab, type Node, privileged, privilegedOver } from "../netns/_lab.ts";
import { grownSince, type Usage, usage } from "../netns/_process.ts";
import {
  BEHIND,
  BOTH_PROXIES,
  echoThroughSocks,
  exchange,
  type ExchangeSeconds,
  helper,
  proxied,
  PROXIES,
  serveBehind,
} from "../netns/_proxied.ts";
import { transfer } from "../netns/_transfer.ts";
import { figure, progress } from "./_report.ts";

const MIB = 1 << 20;
const GIB = 1 << 30;
const HOSTILE_CLIENTS = fileURLToPath(new URL("./_hostile_clients.ts", import.meta.url));
/** By how much more a process may keep for reuse after it has been as busy as before. */
const SPARE_KIB = 96 << 10;
const LIMIT_MS = 30 * 60_000;

function mbitPerSecond(bytes: number, seconds: number): number {
  return Number((bytes * 8 / seconds / 1e6).toFixed(1));
}

function rates(bytes: number, { down, up }: ExchangeSeconds): Readonly<Record<string, number>> {
  return { downMbitPerSecond: mbitPerSecond(bytes, down), upMbitPerSecond: mbitPerSecond(bytes, up) };
}

/** What a proxy's process uses when no client is left. */
async function settled(proxy: Node): Promise<Usage> {
  await eventually("every client has left", 60_000, async () => {
    const { services } = await proxy.event("counters", 10_000, proxy.events().length);
    return (services as Record<string, number>)["clients"] === 0;
  });
  return await usage(proxy.process.pid);
}

/** Its descriptors are as many as before, and what it keeps for reuse is bounded. */
function assertBounded(before: Usage, after: Usage): void {
  assert.equal(after.files, before.files, "open files");
  const { residentKiB } = grownSince(before, after);
  assert(residentKiB < SPARE_KIB, `${residentKiB} KiB more than before`);
}

privilegedOver(["tun", "afxdp, tun"], "1 GiB each way through SOCKS5 and through HTTP CONNECT", async () => {
  await using lab = await Lab.create();
  await serveBehind(lab);
  const [proxy, far] = await proxied(lab, BOTH_PROXIES);
  const { datapath } = await far.event("starting");
  for (const [name, options] of Object.entries(PROXIES)) {
    const seconds = await exchange(lab, { proxy: options, bytes: GIB, timeoutMs: LIMIT_MS });
    figure(`1 GiB through ${name}, ${datapath} behind it`, rates(GIB, seconds));
  }
  await proxy.stop();
  await far.stop();
});

privileged(
  "10 000 connections through SOCKS5 one after the other leave neither descriptor nor memory behind",
  async () => {
    await using lab = await Lab.create();
    await serveBehind(lab);
    const [proxy, far] = await proxied(lab, BOTH_PROXIES);
    await echoThroughSocks(lab, { how: "in-turn", count: 2000, timeoutMs: LIMIT_MS });
    const before = await settled(proxy);
    const startMs = performance.now();
    for (let count = 2000; count < 10_000; count += 2000) {
      progress(`${count} connections`);
      await echoThroughSocks(lab, { how: "in-turn", count: 2000, timeoutMs: LIMIT_MS });
    }
    const seconds = (performance.now() - startMs) / 1000;
    const after = await settled(proxy);
    figure("connections through SOCKS5 in sequence", {
      perSecond: Math.round(8000 / seconds),
      grown: grownSince(before, after),
    });
    assertBounded(before, after);
    await proxy.stop();
    await far.stop();
  },
);

privileged(
  "1 % loss and 20 ms delay: 8 MiB each way arrive whole through SOCKS5, beside a tunnel of devices",
  async () => {
    const bytes = 8 * MIB;
    await using lab = await Lab.create({ relay: true });
    // Others may take losses for chance, and are not to be compared with a stack that takes them for congestion.
    for (const host of [lab.a, lab.b]) await host.ok(["sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno"]);
    await serveBehind(lab);
    const [proxy, far] = await proxied(lab, BOTH_PROXIES);
    await lab.relay.set("loss=1 delay=20");
    const seconds = await exchange(lab, { proxy: PROXIES["SOCKS5"], bytes, timeoutMs: LIMIT_MS });
    await proxy.stop();
    await far.stop();

    await lab.relay.set("clear");
    const nodes = await lab.tunnel();
    await lab.relay.set("loss=1 delay=20");
    const took = async (from: "a" | "b"): Promise<number> => {
      const to = lab.other(lab[from]);
      const startMs = performance.now();
      await transfer(lab, { from: lab[from], to, address: to.inner4, bytes, timeoutMs: LIMIT_MS });
      return (performance.now() - startMs) / 1000;
    };
    figure("1 % loss and 20 ms delay, 8 MiB", {
      socks5: rates(bytes, seconds),
      tun: rates(bytes, { down: await took("b"), up: await took("a") }),
    });
    for (const node of nodes) await node.stop();
  },
);

privileged("hostile clients of both proxies take bounded memory, and others are served meanwhile", async () => {
  await using lab = await Lab.create();
  await serveBehind(lab);
  const [proxy, far] = await proxied(lab, BOTH_PROXIES);
  let [clients, served] = [0, 0];
  const attack = async (): Promise<void> => {
    let isOver = false;
    const attacking = lab.a.ok(helper(HOSTILE_CLIENTS, BEHIND, "100"), LIMIT_MS).finally(() => isOver = true);
    // Awaited below, unless something else fails first.
    attacking.catch(() => {});
    while (!isOver) {
      for (const options of Object.values(PROXIES)) {
        await exchange(lab, { proxy: options, bytes: MIB, timeoutMs: LIMIT_MS });
        served++;
      }
    }
    clients += (JSON.parse(await attacking) as { readonly clients: number }).clients;
  };
  await attack();
  const before = await settled(proxy);
  progress(`${clients} hostile clients`);
  await attack();
  const after = await settled(proxy);
  const { services } = await proxy.event("counters", 10_000, proxy.events().length);
  figure("hostile clients", { clients, servedMeanwhile: served, services, grown: grownSince(before, after) });
  assertBounded(before, after);
  await proxy.stop();
  await far.stop();
});
