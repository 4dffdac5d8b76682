/** Nodes that are killed, stopped, suspended and started again: traffic comes back, and nothing is in the way. */
import assert from "node:assert/strict";
import { eventually, ICX, Lab, ok, privileged, run } from "./_lab.ts";
import { BACK_WITHIN_MS, byRole, Pinging, report, restartTests, returnAfter, suspendTests } from "./_restart.ts";
import { Clocks } from "./_suspend.ts";

const HOUR_MS = 3_600_000;

restartTests("SIGTERM", ["tun"]);
restartTests("SIGKILL", ["tun", "afxdp, veth"]);

privileged(
  "the responder comes back after 10 s, under load: the initiator finds it, and nobody was turned away",
  async () => {
    const { fromExecMs, fromStartingMs } = await returnAfter(10, "SIGTERM");
    report(`traffic back ${fromExecMs.toFixed(0)} ms after exec, ${fromStartingMs.toFixed(0)} ms after "starting"`);
    assert(fromExecMs < BACK_WITHIN_MS, `back after ${fromExecMs} ms`);
  },
);

suspendTests(["tun"]);

privileged("a suspend beyond the life of the keys: they are not used again, and new ones come at once", async () => {
  await using lab = await Lab.create();
  await using clocks = await Clocks.create();
  const nodes = [lab.start(lab.a, [], clocks), lab.start(lab.b, [], clocks)] as const;
  await Promise.all(nodes.map((node) => node.event("up")));
  const [initiator, responder] = await byRole("initiator", nodes);
  const pinging = await Pinging.start(lab, responder.host);
  const before = await responder.counters();

  await clocks.suspend(2 * HOUR_MS, nodes);
  const awakeAt = Date.now();
  const tookMs = await pinging.answerAfter(awakeAt, 30_000) - awakeAt;
  report(`traffic back ${tookMs.toFixed(0)} ms after both sides slept 2 h`);
  assert(tookMs < BACK_WITHIN_MS, `back after ${tookMs} ms`);
  const after = await responder.counters();
  assert((after["tx_expired_key"] ?? 0) > (before["tx_expired_key"] ?? 0), JSON.stringify(after));

  // Shorter than the life of the keys, longer than the rekey interval.
  await clocks.suspend(HOUR_MS / 4, nodes);
  const answeredAt = await pinging.answerAfter(Date.now(), 30_000);
  assert(answeredAt > 0);
  await pinging.stop();
  await initiator.stop();
  await responder.stop();
});

privileged("a step of the wall clock, forward or back, is not noticed", async () => {
  await using lab = await Lab.create();
  await using clocks = await Clocks.create();
  const through = { through: clocks.through };
  const nodes = [lab.start(lab.a, ["--rekey-interval", "1s"], through), lab.start(lab.b, [], through)] as const;
  await Promise.all(nodes.map((node) => node.event("up")));
  for (const days of [400, -800]) {
    await clocks.step(days * 24 * HOUR_MS);
    // Rekeys in between: 1.5 s of traffic.
    await lab.a.ok(["ping", "-q", "-c", "30", "-i", "0.05", "-W", "2", lab.b.inner4]);
  }
  for (const node of nodes) {
    assert(!node.events().some((event) => event["event"] === "session-lost"), "no session was lost");
  }
  for (const node of nodes) {
    const counters = await node.stop();
    const refused = Object.entries(counters).filter(([name, count]) => name.endsWith("expired_key") && count > 0);
    assert.deepEqual(refused, []);
  }
});

privileged("a second start while the first one runs names the device or the port, and does no harm", async () => {
  await using lab = await Lab.create();
  const [a, b] = await lab.tunnel();
  const cases = [
    { what: "everything the same", args: [], named: /port 6081.*--port/s },
    { what: "the same device", args: ["--port", "7081"], named: /icx0.*--tun-device/s },
    { what: "the same data port", args: ["--tun-device", "icx1"], named: /port 6081.*--port/s },
    {
      what: "the same control port",
      args: ["--tun-device", "icx1", "--port", "7081"],
      named: /6082.*in use.*--control-port/s,
    },
  ];
  for (const { what, args, named } of cases) {
    const second = await lab.start(lab.a, args).process.ended;
    assert.equal(second.code, 1, `${what}: ${second.stderr}`);
    assert.match(second.stderr, named, what);
    assert(!(await lab.a.ok(["ip", "-o", "link"])).includes("icx1"), what);
  }
  await lab.a.ok(["ping", "-c", "3", "-i", "0.05", "-W", "2", lab.b.inner4]);
  await a.stop();
  await b.stop();
});

privileged("two instances on one host with devices and ports of their own live side by side", async () => {
  await using lab = await Lab.create();
  const [a1, b1] = await lab.tunnel();
  // Other identities, networks, devices and ports on both hosts.
  const key = async (name: string): Promise<{ file: string; text: string }> => {
    const file = `${lab.directory}/${name}.key`;
    await ok([ICX, "genkey", file]);
    return { file, text: (await ok([ICX, "pubkey", file])).trim() };
  };
  const [keyA, keyB] = [await key("a2"), await key("b2")];
  const inner = (n: number) => `10.8.0.${n}`;
  const second = (host: Lab["a"], own: string, peer: string, n: number) =>
    lab.spawn(host, [
      ...[ICX, "up", "--identity-key", own, "--peer-key", peer, "--address", `${inner(n)}/24`],
      ...["--tun-device", "icx1", "--port", "7081", "--control-port", "7082"],
      ...["--log-format", "json", `${lab.other(host).underlay}:7081`],
    ]);
  const a2 = second(lab.a, keyA.file, keyB.text, 1);
  const b2 = second(lab.b, keyB.file, keyA.text, 2);
  for (const node of [a2, b2]) {
    await node.until("the second tunnel", 30_000, () => node.stderr.includes('"event":"up"') || undefined);
  }
  const both = async () => {
    await lab.a.ok(["ping", "-c", "5", "-i", "0.05", "-W", "2", lab.b.inner4]);
    await lab.a.ok(["ping", "-c", "5", "-i", "0.05", "-W", "2", inner(2)]);
  };
  await both();
  // The end of one, even a violent one, is nothing to the other.
  a2.kill("SIGKILL");
  await a2.ended;
  await lab.a.ok(["ping", "-c", "5", "-i", "0.05", "-W", "2", lab.b.inner4]);
  const again = second(lab.a, keyA.file, keyB.text, 1);
  await again.until("the second tunnel", 30_000, () => again.stderr.includes('"event":"up"') || undefined);
  await eventually("both tunnels", 10_000, () => both().then(() => true, () => false));
  for (const node of [again, b2]) {
    node.kill("SIGTERM");
    assert.equal((await node.ended).code, 0, node.stderr);
  }
  await a1.stop();
  await b1.stop();
  const left = await run(["ip", "-n", lab.a.ns, "-o", "link"]);
  assert(!/ icx\d/.test(left.stdout), left.stdout);
});
