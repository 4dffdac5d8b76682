/** A link on the way carries less than it did: the nodes learn it, tell senders and devices, and believe nobody else. */
import assert from "node:assert/strict";
import { type Host, Lab, privileged } from "./_lab.ts";
import { report } from "./_restart.ts";
import { transfer } from "./_transfer.ts";

const MIB = 1 << 20;
/** The far link's MTU, and what it leaves inside. */
const NARROW = 1400;
const NARROW_INNER = 1296;
const WIDE_INNER = 1392;
/** IP and ICMP headers of an echo request. */
const ECHO_HEADERS = 28;

/** Makes the link between the router and host `b` carry so much. */
async function setFarLink(lab: Lab, mtuBytes: number): Promise<void> {
  await lab.router.ok(["ip", "link", "set", "side-b", "mtu", String(mtuBytes)]);
  await lab.b.ok(["ip", "link", "set", "phy", "mtu", String(mtuBytes)]);
}

/** One echo request of so many bytes of IP packet that must not be fragmented. */
function ping(lab: Lab, from: Host, packetBytes: number) {
  const size = String(packetBytes - ECHO_HEADERS);
  return from.run(["ping", "-c", "1", "-W", "1", "-M", "do", "-s", size, lab.other(from).inner4]);
}

async function deviceMtu(host: Host): Promise<number> {
  return Number(/ mtu (\d+) /.exec(await host.ok(["ip", "-o", "link", "show", "icx0"]))?.[1]);
}

for (const underlay of ["ipv4", "ipv6"] as const) {
  privileged(
    `a link behind a router is narrowed, ${underlay}: transfers go on, senders are told, the devices follow`,
    async () => {
      await using lab = await Lab.create({ underlay, router: true });
      const [a, b] = await lab.tunnel();
      assert.equal((await ping(lab, lab.a, WIDE_INNER)).code, 0);
      const moving = transfer(lab, { from: lab.a, to: lab.b, address: lab.b.inner4, bytes: 400 * MIB });
      await new Promise((resolve) => setTimeout(resolve, 200));
      await setFarLink(lab, NARROW);
      const changedAt = Date.now();
      const learned = await a.event("path-mtu");
      report(`${underlay}: learned from the router after ${Date.now() - changedAt} ms`);
      assert.deepEqual(
        [learned["pathMtu"], learned["innerMtu"], learned["reason"]],
        [NARROW, NARROW_INNER, "router"],
      );
      await moving;
      // What TCP sends from there has shrunk by what the other side announces.
      assert.notEqual((await ping(lab, lab.b, WIDE_INNER)).code, 0);
      assert.equal((await b.event("path-mtu"))["reason"], "interface");
      for (const node of [a, b]) {
        assert.equal((await node.event("device-mtu"))["mtu"], NARROW_INNER);
        assert.equal(await deviceMtu(node.host), NARROW_INNER);
      }
      const large = await ping(lab, lab.a, WIDE_INNER);
      assert.notEqual(large.code, 0);
      assert.match(large.stdout + large.stderr, new RegExp(`mtu ?= ?${NARROW_INNER}`));
      for (const host of [lab.a, lab.b]) assert.equal((await ping(lab, host, NARROW_INNER)).code, 0);
      await transfer(lab, { from: lab.b, to: lab.a, address: lab.a.inner6, bytes: 10 * MIB });
      await a.stop();
      await b.stop();
    },
  );
}

/** Segment sizes that SYN and SYN-ACK announce on a device while `connect` runs. */
async function announced(lab: Lab, host: Host, connect: () => Promise<void>): Promise<number[]> {
  // Flags of IPv4; tcpdump does not look behind the header of IPv6.
  const filter = "tcp[tcpflags] & tcp-syn != 0 or (ip6 and ip6[6] = 6 and ip6[53] & 2 != 0)";
  const dump = lab.spawn(host, ["tcpdump", "-l", "-n", "-i", "icx0", filter]);
  await dump.until("tcpdump listens", 10_000, () => /listening on/.test(dump.stderr) || undefined);
  // Attempts from before the other end listened have no answer.
  const sizes = (flags: string) =>
    [...dump.stdout.matchAll(/Flags \[(S\.?)\].* \[mss (\d+)/g)].filter(([, found]) => found === flags).map((row) =>
      Number(row[2])
    );
  await connect();
  await dump.until("both ends open", 10_000, () => sizes("S.").length > 0 || undefined);
  dump.kill("SIGTERM");
  await dump.ended;
  return [...new Set(sizes("S")), ...new Set(sizes("S."))];
}

privileged("--clamp-mss: SYN and SYN-ACK announce what fits, whatever the ends' own devices would carry", async () => {
  await using lab = await Lab.create({ router: true });
  // Larger devices than the path allows: TCP on both ends would announce 1460 and 1440.
  const [a, b] = await lab.tunnel(["--clamp-mss"]);
  for (const host of [lab.a, lab.b]) await host.ok(["ip", "link", "set", "icx0", "mtu", "1500"]);
  for (
    const [address, sent, clamped] of [
      [lab.b.inner4, 1460, WIDE_INNER - 40],
      [lab.b.inner6, 1440, WIDE_INNER - 60],
    ] as const
  ) {
    const connect = () => transfer(lab, { from: lab.a, to: lab.b, address, bytes: MIB });
    // As it came from the own stack, and as it came through the tunnel.
    assert.deepEqual(await announced(lab, lab.a, connect), [sent, clamped]);
    assert.deepEqual(await announced(lab, lab.b, connect), [clamped, sent]);
  }
  await setFarLink(lab, NARROW);
  assert.notEqual((await ping(lab, lab.a, WIDE_INNER)).code, 0);
  await a.event("path-mtu");
  const connect = () => transfer(lab, { from: lab.a, to: lab.b, address: lab.b.inner4, bytes: MIB });
  const [, answer] = await announced(lab, lab.a, connect);
  assert.equal(answer, NARROW_INNER - 40);
  await a.stop();
  await b.stop();
});

privileged("--tun-mtu with a number stays, and the path is learned nonetheless", async () => {
  await using lab = await Lab.create({ router: true });
  const [a, b] = await lab.tunnel(["--tun-mtu", "1392"]);
  await setFarLink(lab, NARROW);
  assert.notEqual((await ping(lab, lab.a, WIDE_INNER)).code, 0);
  await a.event("path-mtu");
  const told = await ping(lab, lab.a, WIDE_INNER);
  assert.match(told.stdout + told.stderr, new RegExp(`mtu ?= ?${NARROW_INNER}`));
  assert.equal(await deviceMtu(lab.a), WIDE_INNER);
  assert.equal((await ping(lab, lab.a, NARROW_INNER)).code, 0);
  await a.stop();
  await b.stop();
});
