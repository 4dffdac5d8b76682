/** Real traffic through a tunnel between two namespaces. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { type DatapathName, DENO, drops, type Host, Lab, privilegedOver } from "./_lab.ts";
import { transfer } from "./_transfer.ts";

const ECHO = fileURLToPath(new URL("./_datagram_echo.ts", import.meta.url));
const MIB = 1 << 20;

/** Echoes datagrams of many sizes through the tunnel. */
async function echo(lab: Lab, client: Host, server: Host, family: "ipv4" | "ipv6"): Promise<void> {
  const at = (host: Host) => family === "ipv6" ? host.inner6 : host.inner4;
  const command = [DENO, "run", "--no-prompt", "--cached-only", "--allow-net", ECHO];
  const listening = lab.spawn(server, [...command, "server", at(server)]);
  await listening.until("listening", 15_000, () => listening.stdout.includes("listening") || undefined);
  const printed = await client.ok([...command, "client", at(client), at(server), "500"]);
  assert.deepEqual(JSON.parse(printed), { sent: 500, echoed: 500 });
  listening.kill("SIGKILL");
  await listening.ended;
}

/** How traffic is made. */
export interface TrafficOptions {
  readonly underlay: "ipv4" | "ipv6";
  /** What TCP carries each way. */
  readonly mib: number;
}

/** Registers a test over each of these datapaths: every kind of traffic passes, and nothing is dropped. */
export function trafficTests(datapaths: readonly DatapathName[], { underlay, mib }: TrafficOptions): void {
  privilegedOver(datapaths, `${underlay} underlay: ping, ping6, UDP, and ${mib} MiB of TCP each way`, async () => {
    await using lab = await Lab.create({ underlay });
    const [a, b] = await lab.tunnel();

    await lab.a.ok(["ping", "-c", "20", "-i", "0.02", "-W", "2", lab.b.inner4]);
    await lab.b.ok(["ping", "-6", "-c", "20", "-i", "0.02", "-W", "2", lab.a.inner6]);
    await echo(lab, lab.a, lab.b, "ipv4");
    await echo(lab, lab.b, lab.a, "ipv6");
    // Each family of inner address carries the full length with one family of underlay.
    const [forth, back] = underlay === "ipv4" ? [lab.b.inner4, lab.a.inner4] : [lab.b.inner6, lab.a.inner6];
    await transfer(lab, { from: lab.a, to: lab.b, address: forth, bytes: mib * MIB });
    await transfer(lab, { from: lab.b, to: lab.a, address: back, bytes: mib * MIB });

    const [atA, atB] = [await a.counters(), await b.counters()];
    assert.deepEqual([drops(atA), drops(atB)], [{}, {}], "nothing was dropped in either node");
    await a.stop();
    await b.stop();
  });
}
