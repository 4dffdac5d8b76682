/** Faults of the network under a tunnel, for tests of seconds and of minutes. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { eventually, type Host, Lab, type Node } from "./_lab.ts";
import { transfer } from "./_transfer.ts";

const MIB = 1 << 20;
/** So often that every fault meets some. */
export const REKEY: readonly string[] = ["--rekey-interval", "1s", "--log-level", "debug"];

/** How often a node has told of something. */
export function seen(node: Node, name: string): number {
  return node.events().filter((event) => event["event"] === name).length;
}

/** Whether a ping comes back within a second. */
export async function pings(host: Host, address: string, options: readonly string[] = []): Promise<boolean> {
  return (await host.run(["ping", "-q", "-c", "1", "-W", "1", ...options, address])).code === 0;
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Gives the underlay interface of a host another address. */
export async function move(host: Host, from: string, to: string): Promise<void> {
  await host.ok(["ip", "addr", "del", `${from}/24`, "dev", "phy"]);
  await host.ok(["ip", "addr", "add", `${to}/24`, "dev", "phy"]);
}

/** Waits until keys were exchanged after now. */
export function rekeyed(node: Node): Promise<unknown> {
  return node.event("keys", 30_000, node.events().length);
}

/** A link that is gone for a while under a transfer: it must end well, and the same processes exchange keys afterwards. */
export async function outage(what: "the network is cut" | "the interface is set down", seconds: number): Promise<void> {
  await using lab = await Lab.create({ relay: true });
  const [a, b] = await lab.tunnel(REKEY);
  const transferred = transfer(lab, { from: lab.a, to: lab.b, address: lab.b.inner4, bytes: 20 * MIB, seconds: 4 });
  // Awaited below, unless something else fails first.
  transferred.catch(() => {});
  await pause(1500);
  const device = (state: "down" | "up") => lab.a.ok(["ip", "link", "set", "phy", state]);
  if (what === "the network is cut") await lab.relay.set("link=down");
  else await device("down");
  await pause(seconds * 1000);
  if (what === "the network is cut") await lab.relay.set("link=up");
  else await device("up");

  const tookMs = await eventually("packets pass", 15_000, () => pings(lab.b, lab.a.inner4));
  // A second is what one ping waits; keys in place need no handshake.
  assert(tookMs < 5000, `packets passed after ${tookMs} ms`);
  await rekeyed(a);
  await rekeyed(b);
  await transferred;
  await a.stop();
  await b.stop();
}

/** A node that its peer knows by a name gets another address under a running tunnel, and so does the name. */
export async function moveByName(which: "initiator" | "responder"): Promise<void> {
  await using lab = await Lab.create();
  const hosts = join(lab.directory, "hosts");
  const name = (address: string) => writeFile(hosts, `127.0.0.1 localhost\n${address} mover.test\n`);
  await name(lab.a.underlay);
  // Who of the two keys is the initiator is theirs to decide: exchange them where it is the other one.
  const probe = lab.start(lab.a);
  const isInitiator = (await probe.event("starting"))["role"] === "initiator";
  await probe.stop();
  const [mover, other] = isInitiator === (which === "initiator") ? [lab.a, lab.b] : [lab.b, lab.a];
  await name(mover.underlay);
  const moving = lab.start(mover, REKEY);
  const following = lab.start(other, REKEY, {
    through: ["sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts],
    peerHost: "mover.test",
  });
  await Promise.all([moving.event("up"), following.event("up")]);
  assert(await pings(mover, other.inner4));

  lab.spawn(mover, ["ping", "-q", "-i", "0.2", other.inner4]);
  await move(mover, mover.underlay, "192.168.77.9");
  await name("192.168.77.9");
  // A responder that is gone is noticed when the next exchange fails, after 10 s.
  await eventually("packets pass", 45_000, () => pings(other, mover.inner4));
  assert.equal((await following.event("moved"))["endpoint"], "192.168.77.9:6081");
  await moving.stop();
  await following.stop();
}
