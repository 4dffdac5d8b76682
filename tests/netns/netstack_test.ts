/** Proxies and forwards of a node without a device, beside nodes that have one. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { eventually, ICX, Lab, privileged, privilegedOver } from "./_lab.ts";
import {
  BEHIND,
  BOTH_PROXIES,
  curl,
  echoThroughSocks,
  exchange,
  helper,
  NAME_BEHIND,
  proxied,
  PROXIES,
  serveBehind,
} from "./_proxied.ts";

const MIB = 1 << 20;
const DATAGRAM_ECHO = fileURLToPath(new URL("./_datagram_echo.ts", import.meta.url));
/** Where the datagram echo is, and so both ends of forwards to it. */
const ECHO_PORT = 5005;
/** Loopback addresses of host `a`: of the forward there, and of what the reverse one leads to. */
const [FORWARD, REVERSE] = ["127.0.0.1", "127.0.0.2"];

privilegedOver(
  ["tun", "afxdp, veth", "afxdp, tun"],
  "curl through SOCKS5 and HTTP CONNECT gets and puts 64 MiB; 500 connections echo at once; the inner addresses answer ping",
  async () => {
    await using lab = await Lab.create();
    await serveBehind(lab);
    const [proxy, far] = await proxied(lab, BOTH_PROXIES);
    for (const options of Object.values(PROXIES)) await exchange(lab, { proxy: options, bytes: 64 * MIB });
    assert.equal(
      await curl(lab.a, [...PROXIES["SOCKS5"], `http://[${lab.b.inner6}]/bytes/0`]),
      "",
      "IPv6 inside, and an answer without a body",
    );
    await echoThroughSocks(lab, { how: "at-once", count: 500 });

    await lab.b.ok(["ping", "-c", "20", "-i", "0.02", "-W", "2", lab.a.inner4]);
    await lab.b.ok(["ping", "-6", "-c", "20", "-i", "0.02", "-W", "2", lab.a.inner6]);
    // Longer than a packet of the tunnel.
    await lab.b.ok(["ping", "-c", "3", "-i", "0.1", "-W", "2", "-s", "4000", lab.a.inner4]);
    const { services } = await proxy.event("counters", 10_000, proxy.events().length);
    const { clients, clients_total } = services as Record<string, number>;
    assert.deepEqual({ clients, clients_total }, { clients: 0, clients_total: 2 * 3 + 1 + 500 });
    await proxy.stop();

    const how = ["--count", "5", "--interval", "50ms", "--timeout", "20s"];
    const asked = [...lab.ends(lab.a), ...how, `${lab.a.peerUnderlay}:6081`];
    for (const address of [lab.b.inner4, lab.b.inner6]) {
      assert.match(await lab.a.ok([ICX, "ping", ...asked, address]), /5 sent, 5 answered, 0 % lost/);
    }
    await far.stop();
  },
);

privilegedOver(
  ["tun", "afxdp, tun"],
  "forwards and their reverse carry connections and datagrams, and names are asked for through the tunnel",
  async () => {
    await using lab = await Lab.create();
    await serveBehind(lab);
    // On host a nobody could tell where the name leads.
    const [proxy, far] = await proxied(lab, [
      ...["--name-server", BEHIND, "--http-connect"],
      ...["--forward", `8080=${NAME_BEHIND}:80`, "--forward", `udp:${FORWARD}:${ECHO_PORT}=${BEHIND}:${ECHO_PORT}`],
      ...["--reverse", "8081=127.0.0.1:8080", "--reverse", `udp:${ECHO_PORT}=${REVERSE}:${ECHO_PORT}`],
    ]);
    const digest = (await curl(lab.b, [`http://${BEHIND}/digest/${MIB}`])).trim();
    const path = `/digest/${MIB}`;
    assert.equal((await curl(lab.a, [`http://127.0.0.1:8080${path}`])).trim(), digest, "forward");
    const { "HTTP CONNECT": through } = PROXIES;
    assert.equal((await curl(lab.a, [...through, `http://${NAME_BEHIND}${path}`])).trim(), digest, "by name");
    // There and back again: through the reverse forward to the forward of the same node.
    assert.equal((await curl(lab.b, [`http://${lab.a.inner4}:8081${path}`])).trim(), digest, "reverse");
    const unknown = await lab.a.run(["curl", "-sS", ...through, "http://nosuch.inner.test/"]);
    assert.notEqual(unknown.code, 0);
    assert.match(unknown.stderr, /502/);

    for (
      const [client, server, at, reachedAt] of [
        [lab.a, lab.b, BEHIND, FORWARD],
        [lab.b, lab.a, REVERSE, lab.a.inner4],
      ] as const
    ) {
      const listening = lab.spawn(server, helper(DATAGRAM_ECHO, "server", at));
      await listening.until("listening", 15_000, () => listening.stdout.includes("listening") || undefined);
      const local = client === lab.a ? FORWARD : lab.b.inner4;
      const printed = await client.ok(helper(DATAGRAM_ECHO, "client", local, reachedAt, "300"));
      assert.deepEqual(JSON.parse(printed), { sent: 300, echoed: 300 });
    }
    await proxy.stop();
    await far.stop();
  },
);

privilegedOver(
  ["tun", "afxdp, veth"],
  "kill -9 of the other node and its return: the same proxy works again, and then it ends by SIGTERM with 0",
  async () => {
    await using lab = await Lab.create();
    await serveBehind(lab);
    const [proxy, far] = await proxied(lab, BOTH_PROXIES);
    await exchange(lab, { proxy: PROXIES["SOCKS5"], bytes: MIB });
    await far.crash();
    const again = lab.start(lab.b);
    await again.event("up");
    const get = ["curl", "-sS", "--fail", "-m", "2", `http://${BEHIND}/digest/1`];
    await eventually(
      "an answer through the proxy",
      60_000,
      async () => (await lab.a.run([...get, ...PROXIES["SOCKS5"]])).code === 0,
    );
    for (const options of Object.values(PROXIES)) await exchange(lab, { proxy: options, bytes: MIB });

    // What is under way does not keep it.
    const busy = lab.spawn(lab.a, [
      "curl",
      "-sS",
      ...PROXIES["SOCKS5"],
      "-o",
      "/dev/null",
      `http://${BEHIND}/bytes/1e12`,
    ]);
    await eventually("a transfer under way", 20_000, async () => ((await proxy.counters())["rx_bytes"] ?? 0) > 8 * MIB);
    proxy.process.kill("SIGTERM");
    const { code, stderr } = await proxy.process.ended;
    assert.equal(code, 0, stderr);
    assert.notEqual((await busy.ended).code, 0, "the transfer is cut");
    await again.stop();
  },
);

privileged("beyond loopback a proxy serves the users in its file, and nobody else", async () => {
  await using lab = await Lab.create();
  await serveBehind(lab);
  const users = `${lab.directory}/users`;
  await writeFile(users, "ann:se:cret\nbob:word\n", { mode: 0o600 });
  const [proxy, far] = await proxied(lab, [
    ...["--socks5", `${lab.a.underlay}:1080,${users}`, "--http-connect", `${lab.a.underlay}:8118,${users}`],
  ]);
  const ways = [
    // It could not come to terms with the proxy.
    { at: `socks5h://${lab.a.underlay}:1080`, refusal: /^curl: \(97\)/m },
    { at: `http://${lab.a.underlay}:8118`, refusal: /^CONNECT 407$/m },
  ];
  for (const { at, refusal } of ways) {
    const asked = ["curl", "-sS", "--fail", "--proxytunnel", "--proxy", at, "-w", "\nCONNECT %{http_connect}\n"];
    const url = `http://${BEHIND}/digest/1`;
    for (const user of ["ann:se:cret", "bob:word"]) await lab.b.ok([...asked, "--proxy-user", user, url]);
    for (
      const who of [["--proxy-user", "bob:wor"], ["--proxy-user", "bob:se:cret"], ["--proxy-user", "eve:word"], []]
    ) {
      const { code, stdout, stderr } = await lab.b.run([...asked, ...who, url]);
      assert.notEqual(code, 0, `${at} lets ${who} in`);
      assert.match(stdout + stderr, refusal);
    }
  }
  const { message } = await proxy.event("service");
  assert.match(String(message), /refused 192\.168\.77\.2:\d+ on 192\.168\.77\.1:\d+: user or password/);
  assert(!proxy.process.stderr.includes("se:cret"), "a password is in the log");
  await proxy.stop();
  await far.stop();
});
