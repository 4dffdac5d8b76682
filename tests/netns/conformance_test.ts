/** The conformance suite over TUN devices, in a network namespace that is made for it. */

import assert from "node:assert/strict";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { DENO, Namespace, ok, privileged, run } from "./_lab.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const SUITE = fileURLToPath(new URL("../conformance/_tun_device.ts", import.meta.url));

/** A line of the test anything protocol that tells of one test. */
const RESULT = /^(not ok|ok) \d+ - (.*)$/gm;

privileged("the conformance suite passes over a TUN device", async () => {
  const namespace = new Namespace(`icxt-${process.pid}-conf`);
  await ok(["ip", "netns", "add", namespace.ns]);
  try {
    await namespace.ok(["ip", "link", "set", "lo", "up"]);
    // Devices announce themselves over IPv6, which would come among the packets that are counted.
    await namespace.ok(["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"]);
    // Every datagram is to be seen by itself.
    await namespace.ok(["ethtool", "-K", "lo", "tx-udp-segmentation", "off"]);
    const capture = namespace.start(["tcpdump", "-i", "lo", "-nn", "-v", "-l", "udp src port 6081"]);
    await capture.until("tcpdump listens", 30_000, () => capture.stderr.includes("listening on") || undefined);
    const { code, stdout, stderr } = await namespace.run([
      ...[DENO, "test", "--no-prompt", "--cached-only", "--quiet", "--reporter=tap", `--config=${ROOT}deno.json`],
      ...[`--allow-ffi=${ROOT}native/lib/libicx.so`, `--allow-read=${ROOT}`, "--allow-net", "--allow-run=ip", SUITE],
    ], 300_000);
    const results = [...stdout.matchAll(RESULT)].map(([, result, name = ""]) => ({ passed: result === "ok", name }));
    for (const { passed, name } of results) process.stdout.write(`  ${passed ? "ok" : "FAILED"}: ${name}\n`);
    assert.equal(code, 0, `${stdout}${stderr}`);
    assert(results.length >= 30 && results.every(({ passed }) => passed), `too few tests:\n${stdout}${stderr}`);

    // The outer headers are the same whoever sends: the library's threads, or TypeScript in batches.
    capture.kill("SIGINT");
    const headers = [...(await capture.ended).stdout.matchAll(/ IP \(([^)]*(?:\([^)]*\)[^)]*)*)\)$/gm)];
    assert(headers.length > 400, `only ${headers.length} datagrams were seen`);
    for (const [, header = ""] of headers) assert.match(header, /^tos 0x0, ttl 64, .*flags \[DF\], proto UDP/);
  } finally {
    await run(["ip", "netns", "del", namespace.ns]);
  }
});
