/** Nodes built on the library: one node with two peers in two networks over one socket. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { DENO, ICX, Lab, ok, privileged } from "./_lab.ts";

const HUB = fileURLToPath(new URL("./_hub.ts", import.meta.url));
const ROOT = fileURLToPath(new URL("../..", import.meta.url));

privileged("one node serves two peers in two networks over one data socket and one control socket", async () => {
  await using lab = await Lab.create();
  // Host b carries two nodes with addresses, keys, devices and networks of their own; host a one node for both.
  const second = {
    underlay: "192.168.77.12",
    inner: "10.8.0.12",
    hubInner: "10.8.0.1",
    keyFile: `${lab.directory}/second.key`,
  };
  await lab.b.ok(["ip", "addr", "add", `${second.underlay}/24`, "dev", "phy"]);
  await ok([ICX, "genkey", second.keyFile]);
  const secondKey = (await ok([ICX, "pubkey", second.keyFile])).trim();

  const config = {
    identityKeyFile: lab.a.keyFile,
    device: { addresses: [`${lab.a.inner4}/24`, `${second.hubInner}/24`] },
    peers: [
      { host: lab.b.underlay, publicKey: lab.b.publicKey, vni: 100, src: lab.a.inner4, dst: lab.b.inner4 },
      { host: second.underlay, publicKey: secondKey, vni: 200, src: second.hubInner, dst: second.inner },
    ].map(({ src, dst, ...peer }) => ({ ...peer, allowedRoutes: [{ src: `${src}/32`, dst: `${dst}/32` }] })),
  };
  const hub = lab.spawn(lab.a, [
    DENO,
    "run",
    "--no-prompt",
    "--cached-only",
    `--config=${ROOT}deno.json`,
    `--allow-ffi=${ROOT}native/lib/libicx.so`,
    HUB,
    JSON.stringify(config),
  ]);
  const b1 = lab.start(lab.b, ["--vni", "100", "--local-address", lab.b.underlay]);
  const b2 = lab.spawn(lab.b, [
    ...[ICX, "up", "--identity-key", second.keyFile, "--peer-key", lab.a.publicKey, "--vni", "200"],
    ...["--tun-device", "icx1", "--address", `${second.inner}/24`, "--local-address", second.underlay],
    ...["--log-format", "json", `${lab.a.underlay}:6081`],
  ]);
  await b1.event("up");
  await b2.until("the second peer's tunnel", 30_000, () => b2.stderr.includes('"event":"up"') || undefined);

  // From the hub, each inner address is reached through its own network.
  for (const address of [lab.b.inner4, second.inner]) {
    await lab.a.ok(["ping", "-c", "5", "-i", "0.05", "-W", "2", address]);
  }
  hub.kill("SIGTERM");
  const { code, stdout, stderr } = await hub.ended;
  assert.equal(code, 0, stderr);
  const networks = JSON.parse(stdout) as Record<string, { rx: number; tx: number; exchanges: number }>;
  assert.deepEqual(Object.keys(networks), ["100", "200"]);
  for (const { rx, tx, exchanges } of Object.values(networks)) {
    assert(rx >= 5 && tx >= 5 && exchanges >= 1, stdout);
  }
  await b1.stop();
});
