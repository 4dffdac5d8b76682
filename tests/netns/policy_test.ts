/** What a node lets through: peer filter, allowed routes, rate limit, source ports. */
import assert from "node:assert/strict";
import { gains, settled } from "./_adversary.ts";
import { type DatapathName, DISGUISES, eventually, Lab, privilegedOver } from "./_lab.ts";

const EVERY: readonly DatapathName[] = ["tun", "afxdp, veth"];

/** The source ports of tunnel datagrams for host `b` while `body` runs, as the wire has them. */
async function sourcePorts(lab: Lab, body: () => Promise<void>): Promise<Set<number>> {
  const filter = `udp dst port 6081 and dst host ${lab.b.underlay}`;
  const capture = lab.spawn(lab.intruder, ["tcpdump", "-l", "-n", "-i", "side-b", "-c", "2000", filter]);
  await capture.until("tcpdump listens", 10_000, () => /listening on/.test(capture.stderr) || undefined);
  await body();
  await new Promise((resolve) => setTimeout(resolve, 300));
  capture.kill("SIGINT");
  const { stdout } = await capture.ended;
  return new Set([...stdout.matchAll(/\.(\d+) > [\d.]+\.6081:/g)].map((match) => Number(match[1])));
}

privilegedOver(
  EVERY,
  "source-port hashing: flows leave from their own ephemeral ports, keepalives from the base port",
  async () => {
    await using lab = await Lab.create({ intruder: true });
    const [a, b] = await lab.tunnel(["--source-port-hash"]);
    const ports = await sourcePorts(lab, async () => {
      for (let flow = 0; flow < 8; flow++) {
        await lab.a.shell(`echo hello | socat -t0 - UDP4:${lab.b.inner4}:${9000 + flow},sourceport=${7000 + flow}`);
      }
    });
    const hashed = [...ports].filter((port) => port !== 6081);
    assert(hashed.length >= 4, `eight flows use several ports: ${[...ports]}`);
    assert(hashed.every((port) => port >= 49152), `ports are ephemeral: ${[...ports]}`);
    await lab.b.ok(["ping", "-c", "3", "-i", "0.05", "-W", "2", lab.a.inner4]);
    await a.stop();
    await b.stop();
  },
);

privilegedOver(EVERY, "without source-port hashing everything leaves from the data port", async () => {
  await using lab = await Lab.create({ intruder: true });
  const [a, b] = await lab.tunnel();
  const ports = await sourcePorts(
    lab,
    () => lab.a.ok(["ping", "-c", "3", "-i", "0.05", lab.b.inner4]).then(() => {}),
  );
  assert.deepEqual([...ports], [6081]);
  await a.stop();
  await b.stop();
});

/** What changes on the wire: the peer's data comes from another address, while its control plane and configured endpoint stay. */
const DISGUISE = `table bridge disguise {
  chain pass {
    type filter hook forward priority 0
    ip saddr ${DISGUISES.peer} udp dport 6081 ip saddr set ${DISGUISES.stranger} udp checksum set 0
  }
}`;

privilegedOver(
  EVERY,
  "peer filter: a peer that sends from another address is dropped and counted, unless told otherwise",
  async () => {
    for (const filtered of [true, false]) {
      await using lab = await Lab.create({ intruder: true });
      await lab.intruder.ok(["nft", DISGUISE]);
      const [a, b] = await lab.tunnel([], filtered ? [] : ["--no-peer-ip-filter"]);
      const ping = await lab.a.run(["ping", "-c", "3", "-i", "0.05", "-W", "1", lab.b.inner4]);
      const counters = await b.counters();
      if (filtered) {
        assert.notEqual(ping.code, 0);
        assert((counters["rx_bad_peer"] ?? 0) >= 3, JSON.stringify(counters));
        assert.equal(counters["rx_packets"], 0);
      } else {
        assert.equal(ping.code, 0);
        assert.equal(counters["rx_bad_peer"], 0);
        assert((counters["rx_packets"] ?? 0) >= 3, JSON.stringify(counters));
      }
      await a.stop();
      await b.stop();
    }
  },
);

privilegedOver(
  EVERY,
  "allowed routes: only matching pairs are sent, and only matching pairs are accepted",
  async () => {
    await using strict = await Lab.create();
    const narrow = ["--allowed-route", "10.9.0.0/24=10.9.0.0/24"];
    const [a, b] = await strict.tunnel([], narrow);
    await strict.a.ok(["ping", "-c", "3", "-i", "0.05", "-W", "2", strict.b.inner4]);

    // b accepts and sends IPv4 of the tunnel network only.
    const before = await b.counters();
    assert.notEqual((await strict.a.run(["ping", "-6", "-c", "3", "-i", "0.05", "-W", "1", strict.b.inner6])).code, 0);
    assert.notEqual((await strict.b.run(["ping", "-6", "-c", "2", "-i", "0.05", "-W", "1", strict.a.inner6])).code, 0);
    const after = await b.counters();
    assert((after["rx_invalid_src"] ?? 0) >= (before["rx_invalid_src"] ?? 0) + 3, JSON.stringify(after));
    assert((after["tx_no_route"] ?? 0) >= (before["tx_no_route"] ?? 0) + 2, JSON.stringify(after));

    // A destination outside the pair, from a source inside.
    await strict.b.ok(["ip", "addr", "add", "10.8.0.2/32", "dev", "icx0"]);
    await strict.a.ok(["ip", "route", "add", "10.8.0.2/32", "dev", "icx0", "src", strict.a.inner4]);
    assert.notEqual((await strict.a.run(["ping", "-c", "2", "-i", "0.05", "-W", "1", "10.8.0.2"])).code, 0);
    assert((((await b.counters())["rx_invalid_dst"]) ?? 0) >= 2);
    await a.stop();
    await b.stop();
  },
);

privilegedOver(EVERY, "rate limit: what passes stays under it, and every packet beyond it is counted", async () => {
  await using lab = await Lab.create();
  const [a, b] = await lab.tunnel([], ["--rx-rate-limit", "100"]);
  const [sentBefore, before] = [await a.counters(), await settled(b)];
  const start = Date.now();
  // The first 400 leave at once, the rest in their time.
  await lab.a.run(["ping", "-q", "-c", "1000", "-l", "400", "-i", "0.002", "-W", "1", lab.b.inner4]);
  const after = await settled(b);
  const seconds = (Date.now() - start) / 1000;
  const sent = ((await a.counters())["tx_packets"] ?? 0) - (sentBefore["tx_packets"] ?? 0);
  const { rx_packets: passed = 0, ...refused } = gains(before.counters, after.counters, /^rx_(?!bytes)/);
  // A window before and one after belong to the bound; keepalives are among what passed.
  assert(passed >= 100 && passed <= 100 * (seconds + 1), `${passed} passed in ${seconds} s`);
  assert(sent - passed >= 200, `${passed} of ${sent} passed`);
  // The wire itself may lose some of a burst: a veth with an XDP program has a queue of 256 packets.
  const arrived = (after.ends["underlayReceived"] ?? 0) - (before.ends["underlayReceived"] ?? 0);
  assert(arrived <= sent && arrived >= 0.95 * sent, `${arrived} of ${sent} arrived`);
  assert.deepEqual(refused, { rx_rate_limited: arrived - passed });
  await a.stop();
  await b.stop();
});

privilegedOver(
  EVERY,
  "a peer with another VNI: the handshake works, nothing opens, and the node says why",
  async () => {
    await using lab = await Lab.create();
    const [a, b] = await lab.tunnel(["--vni", "5"], ["--vni", "6"]);
    const ping = lab.spawn(lab.a, ["ping", "-i", "0.2", lab.b.inner4]);
    const event = await a.event("no-return-traffic", 20_000);
    assert.match(JSON.stringify(event), /VNI/);
    await eventually(
      "the other VNI's frames are counted",
      5_000,
      async () => ((await b.counters())["rx_unknown_vni"] ?? 0) > 5,
    );
    ping.kill("SIGKILL");
    await a.stop();
    await b.stop();
  },
);
