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
