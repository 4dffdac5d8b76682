/** Real traffic through a tunnel between two namespaces, over both families of underlay. */
import assert from "node:assert/strict";
import { Lab, privilegedOver } from "./_lab.ts";
import { trafficTests } from "./_traffic.ts";

for (const underlay of ["ipv4", "ipv6"] as const) trafficTests(["tun"], { underlay, mib: 1024 });
trafficTests(["afxdp, veth", "afxdp, tun"], { underlay: "ipv4", mib: 128 });
trafficTests(["afxdp, veth, generic"], { underlay: "ipv6", mib: 128 });

privilegedOver(
  ["tun", "afxdp, veth", "afxdp, tun"],
  "MTU: 1392 inner bytes pass, 1393 bring back 'too big' with the right size",
  async () => {
    await using lab = await Lab.create();
    const [a, b] = await lab.tunnel();

    // 28 and 48 bytes of IP and ICMP header belong to the inner packet.
    await lab.a.ok(["ping", "-M", "do", "-c", "1", "-W", "2", "-s", String(1392 - 28), lab.b.inner4]);
    await lab.a.ok(["ping", "-6", "-M", "do", "-c", "1", "-W", "2", "-s", String(1392 - 48), lab.b.inner6]);
    for (const [flag, size, address] of [["-4", 1393 - 28, lab.b.inner4], ["-6", 1393 - 48, lab.b.inner6]] as const) {
      const refused = await lab.a.run(["ping", flag, "-M", "do", "-c", "1", "-W", "1", "-s", String(size), address]);
      assert.notEqual(refused.code, 0);
      assert.match(refused.stdout + refused.stderr, /mtu[ =:]*1392/i);
    }

    // A device that lets larger packets in than the tunnel carries: the node itself answers.
    await lab.a.ok(["ip", "link", "set", "icx0", "mtu", "1500"]);
    for (const [flag, size, address] of [["-4", 1393 - 28, lab.b.inner4], ["-6", 1393 - 48, lab.b.inner6]] as const) {
      const before = (await a.counters())["tx_too_big"] ?? 0;
      const answered = await lab.a.run(["ping", flag, "-M", "do", "-c", "1", "-W", "1", "-s", String(size), address]);
      assert.match(answered.stdout + answered.stderr, /mtu ?= ?1392|Packet too big: mtu=1392/);
      assert.equal((await a.counters())["tx_too_big"], before + 1);
    }
    await a.stop();
    await b.stop();
  },
);
