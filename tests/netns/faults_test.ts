/** Bad networks: what a tunnel keeps carrying, what it accounts for, and that it recovers by itself. */
import assert from "node:assert/strict";
import { overflows } from "./_adversary.ts";
import { move, moveByName, outage, pings, REKEY, rekeyed, seen } from "./_faults.ts";
import { type Counters, drops, eventually, Lab, privileged } from "./_lab.ts";
import { transfer } from "./_transfer.ts";

const MIB = 1 << 20;
privileged(
  "loss, reordering, duplication and corruption: every datagram is accounted for, TCP arrives whole, rekeys go on",
  async () => {
    await using lab = await Lab.create({ relay: true });
    const [a, b] = await lab.tunnel(REKEY);
    const keys = seen(a, "keys");
    await lab.relay.set("loss=1 reorder=5 duplicate=2 corrupt=0.5");
    await transfer(lab, { from: lab.a, to: lab.b, address: lab.b.inner4, bytes: 20 * MIB, seconds: 4 });
    await transfer(lab, { from: lab.b, to: lab.a, address: lab.a.inner6, bytes: 5 * MIB });
    await lab.relay.set("clear");
    assert(seen(a, "keys") >= keys + 2, "keys were exchanged meanwhile");

    for (const [node, lane] of [[b, "a-b:6081"], [a, "b-a:6081"]] as const) {
      let accounts: Counters = {};
      // The last datagrams and the line of statistics are still under way.
      await eventually(`${lane} adds up`, 10_000, async () => {
        const relayed = (await lab.relay.counts())[lane];
        assert(relayed !== undefined);
        const { received = 0, lost = 0, corrupted = 0, duplicated = 0, reordered = 0, forwarded = 0 } = relayed;
        const counters = await node.counters();
        const missed = await overflows(node.host);
        const replayed = counters["rx_replayed"] ?? 0;
        accounts = { ...relayed, ...drops(counters), missed };
        assert(lost > 0 && corrupted > 0 && duplicated > 0 && reordered > 0, JSON.stringify(accounts));
        // What was neither lost nor changed opens once; its copies are replays; what was changed never opens.
        const opened = counters["rx_packets"] ?? 0;
        const refused = Object.entries(drops(counters)).filter(([name]) => name.startsWith("rx_"))
          .reduce((total, [, value]) => total + value, 0);
        return missed === 0
          ? opened === received - lost - corrupted && opened + refused === forwarded && replayed <= duplicated &&
            replayed >= duplicated - corrupted
          : opened + refused >= forwarded - missed && opened + refused <= forwarded;
      }).catch((error: unknown) => assert.fail(`${error}\n${JSON.stringify(accounts)}`));
    }
    await a.stop();
    await b.stop();
  },
);

privileged(
  "a path that swallows large packets: small ones and keys pass, TCP that probes passes, and all does once it is mended",
  async () => {
    await using lab = await Lab.create({ relay: true });
    const [a, b] = await lab.tunnel(REKEY);
    const large = ["-M", "do", "-s", String(1392 - 28)];
    assert(await pings(lab.a, lab.b.inner4, large));

    await lab.relay.set("mtu=1300");
    assert(await pings(lab.a, lab.b.inner4));
    assert(await pings(lab.b, lab.a.inner4, ["-M", "do", "-s", String(1300 - 28 - 32 - 16 - 28)]));
    assert(!await pings(lab.a, lab.b.inner4, large));
    await rekeyed(a);
    const stuck = transfer(lab, { from: lab.a, to: lab.b, address: lab.b.inner4, bytes: 2 * MIB });
    // Awaited below, unless something else fails first.
    stuck.catch(() => {});
    await lab.b.ok(["sysctl", "-qw", "net.ipv4.tcp_mtu_probing=2"]);
    await transfer(lab, { from: lab.b, to: lab.a, address: lab.a.inner4, bytes: 2 * MIB, port: 5002 });
    const counts = await lab.relay.counts();
    assert((counts["a-b:6081"]?.["too_big"] ?? 0) > 0);

    await lab.relay.set("mtu=0");
    assert(await pings(lab.a, lab.b.inner4, large));
    await stuck;
    await a.stop();
    await b.stop();
  },
);

for (const what of ["the network is cut", "the interface is set down"] as const) {
  privileged(`${what} for 5 s: TCP arrives whole, and the same processes exchange keys again`, () => outage(what, 5));
}

privileged(
  "a peer known by its address moves to another: it is dropped until it comes back, and nothing has to be restarted",
  async () => {
    await using lab = await Lab.create();
    const [a, b] = await lab.tunnel(REKEY);
    await move(lab.a, lab.a.underlay, "192.168.77.9");
    assert(!await pings(lab.a, lab.b.inner4, ["-c", "3", "-i", "0.1"]));
    assert(((await b.counters())["rx_bad_peer"] ?? 0) >= 3);

    await move(lab.a, "192.168.77.9", lab.a.underlay);
    await eventually("packets pass", 15_000, () => pings(lab.a, lab.b.inner4));
    await eventually("packets pass", 15_000, () => pings(lab.b, lab.a.inner4));
    await rekeyed(a);
    await a.stop();
    await b.stop();
  },
);

privileged("the initiator, known by its name, moves to another address: the tunnel follows the name", async () => {
  await moveByName("initiator");
});
