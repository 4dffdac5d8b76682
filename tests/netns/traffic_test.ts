/** Real traffic through a tunnel between two namespaces, over both families of underlay. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { type DatapathName, DENO, drops, type Host, Lab, privilegedOver } from "./_lab.ts";
import { transfer } from "./_transfer.ts";

const ECHO = fileURLToPath(new URL("./_datagram_echo.ts", import.meta.url));
const GIB = 1 << 30;

const UNDERLAYS: Readonly<Record<"ipv4" | "ipv6", readonly DatapathName[]>> = {
  ipv4: ["tun", "afxdp, veth", "afxdp, tun"],
  ipv6: ["tun", "afxdp, veth, generic"],
};

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

for (const underlay of ["ipv4", "ipv6"] as const) {
  privilegedOver(UNDERLAYS[underlay], `${underlay} underlay: ping, ping6, UDP, and 1 GiB of TCP each way`, async () => {
    await using lab = await Lab.create({ underlay });
    const [a, b] = await lab.tunnel();

    await lab.a.ok(["ping", "-c", "20", "-i", "0.02", "-W", "2", lab.b.inner4]);
    await lab.b.ok(["ping", "-6", "-c", "20", "-i", "0.02", "-W", "2", lab.a.inner6]);
    await echo(lab, lab.a, lab.b, "ipv4");
    await echo(lab, lab.b, lab.a, "ipv6");
    // Each family of inner address carries the full length once over this suite.
    const [forth, back] = underlay === "ipv4" ? [lab.b.inner4, lab.a.inner4] : [lab.b.inner6, lab.a.inner6];
    await transfer(lab, { from: lab.a, to: lab.b, address: forth, bytes: GIB });
    await transfer(lab, { from: lab.b, to: lab.a, address: back, bytes: GIB });

    const [atA, atB] = [await a.counters(), await b.counters()];
    assert.deepEqual([drops(atA), drops(atB)], [{}, {}], "nothing was dropped in either node");
    await a.stop();
    await b.stop();
  });
}

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
