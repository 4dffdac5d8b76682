/** The conformance suite over TUN devices, in a network namespace that is made for it. */

import assert from "node:assert/strict";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { GATE, OUTER } from "../conformance/_afxdp.ts";
import { DENO, Namespace, ok, privileged, run } from "./_lab.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const suite = (name: string): string => fileURLToPath(new URL(`../conformance/${name}`, import.meta.url));

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
    await passes(namespace, suite("_tun_device.ts"), 30);

    // The outer headers are the same whoever sends: the library's threads, or TypeScript in batches.
    capture.kill("SIGINT");
    const headers = [...(await capture.ended).stdout.matchAll(/ IP \(([^)]*(?:\([^)]*\)[^)]*)*)\)$/gm)];
    assert(headers.length > 400, `only ${headers.length} datagrams were seen`);
    for (const [, header = ""] of headers) assert.match(header, /^tos 0x0, ttl 64, .*flags \[DF\], proto UDP/);
  } finally {
    await run(["ip", "netns", "del", namespace.ns]);
  }
});

/** Runs a suite in a namespace, and expects all of at least `least` tests to pass. */
async function passes(namespace: Namespace, file: string, least: number): Promise<void> {
  const libraries = ["libicx.so", "libicx-afxdp.so"].map((name) => `${ROOT}native/lib/${name}`).join(",");
  const { code, stdout, stderr } = await namespace.run([
    ...[DENO, "test", "--no-prompt", "--cached-only", "--quiet", "--reporter=tap", `--config=${ROOT}deno.json`],
    ...[`--allow-ffi=${libraries}`, `--allow-read=${ROOT}`, "--allow-net", "--allow-run=ip", file],
  ], 300_000);
  const results = [...stdout.matchAll(RESULT)].map(([, result, name = ""]) => ({ passed: result === "ok", name }));
  for (const { passed, name } of results) process.stdout.write(`  ${passed ? "ok" : "FAILED"}: ${name}\n`);
  assert.equal(code, 0, `${stdout}${stderr}`);
  assert(results.length >= least && results.every(({ passed }) => passed), `too few tests:\n${stdout}${stderr}`);
}

/** What the peer's host does: it hands datagrams on between the peer's address and whoever plays the peer in the other namespace. */
const HAND_ON = `table ip gate {
  chain pass {
    type filter hook prerouting priority -300;
    iif phy ip daddr ${OUTER.peer} udp dport ${OUTER.peerPort} notrack ip saddr set ${GATE.gate} udp sport set ${GATE.gatePort} ip daddr set ${GATE.mailbox} udp dport set ${GATE.mailboxPort}
    iif gate udp dport ${GATE.gatePort} notrack ip saddr set ${OUTER.peer} udp sport set ${OUTER.peerPort} ip daddr set ${OUTER.local} udp dport set ${OUTER.port}
  }
}`;

privileged("the conformance suite passes over AF_XDP, with a veth pair and with a TUN device", async () => {
  const [near, far] = ["near", "far"].map((name) => new Namespace(`icxt-${process.pid}-conf-${name}`));
  assert(near !== undefined && far !== undefined);
  try {
    for (const { ns } of [near, far]) {
      await ok(["ip", "netns", "add", ns]);
      await ok(["ip", "-n", ns, "link", "set", "lo", "up"]);
    }
    const wires = [["phy", OUTER.local, OUTER.peer], ["gate", GATE.mailbox, GATE.gate]] as const;
    for (const [name, own, other] of wires) {
      await ok(["ip", "-n", near.ns, "link", "add", name, "type", "veth", "peer", "name", name, "netns", far.ns]);
      for (const [host, address] of [[near, own], [far, other]] as const) {
        // Devices announce themselves over IPv6, which would come among the packets that are counted.
        await host.ok(["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"]);
        await host.ok(["sh", "-c", `echo 1 > /proc/sys/net/ipv6/conf/${name}/disable_ipv6`]);
        await ok(["ip", "-n", host.ns, "addr", "add", `${address}/24`, "dev", name]);
        await ok(["ip", "-n", host.ns, "link", "set", name, "up"]);
      }
    }
    const known = async (host: Namespace, address: string, at: Namespace, name: string) => {
      const mac = (await at.ok(["cat", `/sys/class/net/${name}/address`])).trim();
      await host.ok(["ip", "neigh", "replace", address, "lladdr", mac, "dev", name, "nud", "permanent"]);
    };
    // The first datagram counts, too.
    await known(near, OUTER.peer, far, "phy");
    await known(near, GATE.gate, far, "gate");
    await known(far, GATE.mailbox, near, "gate");
    // What it hands on comes from its own address.
    for (const name of ["ip_forward", "conf.all.accept_local", "conf.gate.accept_local"]) {
      await far.ok(["sysctl", "-qw", `net.ipv4.${name}=1`]);
    }
    for (const name of ["all", "gate", "phy"]) await far.ok(["sysctl", "-qw", `net.ipv4.conf.${name}.rp_filter=0`]);
    await far.ok(["nft", HAND_ON]);
    await passes(near, suite("_afxdp_device.ts"), 30);
  } finally {
    for (const { ns } of [near, far]) await run(["ip", "netns", "del", ns]);
  }
});
