/** The WebSocket example between two hosts, with the kernel's own devices and keys from the control plane. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { DENO, type Host, Lab, privileged } from "./_lab.ts";

const EXAMPLE = fileURLToPath(new URL("../examples/websocket_relay.ts", import.meta.url));
const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const PORT = 8080;

privileged("a ping passes a tunnel through a WebSocket, and each side ends cleanly", async () => {
  await using lab = await Lab.create();
  const start = (host: Host, how: Record<string, unknown>) => {
    const other = lab.other(host);
    const config = {
      identityKeyFile: host.keyFile,
      peerKey: other.publicKey,
      peerHost: other.underlay,
      address: host.inner4,
      peerAddress: other.inner4,
      ...how,
    };
    return lab.spawn(host, [
      ...[DENO, "run", "--no-prompt", "--cached-only", `--config=${ROOT}deno.json`, "--allow-net"],
      ...[`--allow-ffi=${ROOT}native/lib/libicx.so`, EXAMPLE, JSON.stringify(config)],
    ]);
  };
  const a = start(lab.a, { listen: { hostname: lab.a.underlay, port: PORT } });
  await lab.a.ok(["sh", "-c", `until ss -Hltn "sport = :${PORT}" | grep -q .; do sleep 0.05; done`], 30_000);
  const b = start(lab.b, { dial: `ws://${lab.a.underlay}:${PORT}` });
  for (const node of [a, b]) {
    await node.until("the tunnel is up", 30_000, () => node.stdout.includes("up") || undefined);
  }

  // Nothing but the WebSocket carries packets: the data port is closed.
  await lab.a.ok(["sh", "-c", `! ss -Hlun "sport = :6081" | grep -q .`]);
  await lab.a.ok(["ping", "-c", "20", "-i", "0.02", "-W", "5", lab.b.inner4]);
  await lab.b.ok(["ping", "-c", "5", "-i", "0.05", "-W", "5", "-s", "1364", "-M", "do", lab.a.inner4]);

  // The first to go closes the WebSocket, which the other one takes for what it is.
  a.kill("SIGTERM");
  const [first, second] = await Promise.all([a.ended, b.ended]);
  assert.equal(first.code, 0, first.stderr);
  assert.notEqual(second.code, 0);
  assert.match(second.stderr, /Cannot receive packets from the underlay as it is closed/);
  for (const host of [lab.a, lab.b]) await host.ok(["sh", "-c", "! ip link show icx0 2>/dev/null"]);
});
