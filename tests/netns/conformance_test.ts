/** The conformance suite over devices, in network namespaces that are made for it. `tests/soak` has more variants. */

import assert from "node:assert/strict";
import process from "node:process";
import { conformsOverAfxdp, passes } from "./_conformance.ts";
import { Namespace, ok, privileged, run } from "./_lab.ts";

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
    await passes(namespace, "_tun_device.ts", { least: 30 });

    // The outer headers are the same whoever sends: the library's threads, or TypeScript in batches.
    capture.kill("SIGINT");
    const headers = [...(await capture.ended).stdout.matchAll(/ IP \(([^)]*(?:\([^)]*\)[^)]*)*)\)$/gm)];
    assert(headers.length > 400, `only ${headers.length} datagrams were seen`);
    for (const [, header = ""] of headers) assert.match(header, /^tos 0x0, ttl 64, .*flags \[DF\], proto UDP/);
  } finally {
    await run(["ip", "netns", "del", namespace.ns]);
  }
});

conformsOverAfxdp({ device: "veth", attach: "native", underlay: "ipv4", queues: 1 });
conformsOverAfxdp({ device: "tun", attach: "generic", underlay: "ipv6", queues: 2 });
