/** Namespaces for the conformance suite, over devices that take rights. */
import assert from "node:assert/strict";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { ADDRESSES, type AfxdpBenchOptions, afxdpName, GATE, OUTER } from "../conformance/_afxdp.ts";
import { DENO, Namespace, ok, privileged, run } from "./_lab.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** A line of the test anything protocol that tells of one test. */
const RESULT = /^(not ok|ok) \d+ - (.*)$/gm;

/** Runs a file of `tests/conformance` in a namespace, and expects all of at least `least` tests to pass. */
export async function passes(
  namespace: Namespace,
  name: string,
  { least, args = [] }: { readonly least: number; readonly args?: readonly string[] },
): Promise<void> {
  const libraries = ["libicx.so", "libicx-afxdp.so"].map((name) => `${ROOT}native/lib/${name}`).join(",");
  const { code, stdout, stderr } = await namespace.run([
    ...[DENO, "test", "--no-prompt", "--cached-only", "--quiet", "--reporter=tap", `--config=${ROOT}deno.json`],
    ...[`--allow-ffi=${libraries}`, `--allow-read=${ROOT}`, "--allow-net", "--allow-run=ip"],
    ...[`${ROOT}tests/conformance/${name}`, "--", ...args],
  ], 300_000);
  const results = [...stdout.matchAll(RESULT)].map(([, result, name = ""]) => ({ passed: result === "ok", name }));
  for (const { passed, name } of results) process.stdout.write(`  ${passed ? "ok" : "FAILED"}: ${name}\n`);
  assert.equal(code, 0, `${stdout}${stderr}`);
  assert(results.length >= least && results.every(({ passed }) => passed), `too few tests:\n${stdout}${stderr}`);
}

/** What the peer's host does: it hands datagrams on between the peer's address and whoever plays the peer in the other namespace. */
function handOn(underlay: AfxdpBenchOptions["underlay"]): string {
  const ip = underlay === "ipv4" ? "ip" : "ip6";
  const { local, peer, mailbox, gate } = ADDRESSES[underlay];
  return `table ${ip} gate {
    chain pass {
      type filter hook prerouting priority -300;
      iif ${OUTER.interface} ${ip} daddr ${peer} udp dport ${OUTER.peerPort} notrack ${ip} saddr set ${gate} udp sport set ${GATE.gatePort} ${ip} daddr set ${mailbox} udp dport set ${GATE.mailboxPort}
      iif ${GATE.interface} udp dport ${GATE.gatePort} notrack ${ip} saddr set ${peer} udp sport set ${OUTER.peerPort} ${ip} daddr set ${local} udp dport set ${OUTER.port}
    }
  }`;
}

let serial = 0;

/** Registers the conformance suite over AF_XDP in one variant, as one test. */
export function conformsOverAfxdp(options: AfxdpBenchOptions): void {
  privileged(`the conformance suite passes: ${afxdpName(options)}`, async () => {
    const tag = `icxt-${process.pid}-conf${serial++}`;
    const [near, far] = [new Namespace(`${tag}-near`), new Namespace(`${tag}-far`)];
    try {
      await join(near, far, options);
      await passes(near, "_afxdp_device.ts", { least: 15, args: [JSON.stringify(options)] });
    } finally {
      for (const { ns } of [near, far]) await run(["ip", "netns", "del", ns]);
    }
  });
}

/** Makes the namespace of the datapath and that of its peer, and the wires between them. */
async function join(near: Namespace, far: Namespace, { underlay, queues }: AfxdpBenchOptions): Promise<void> {
  for (const { ns } of [near, far]) {
    await ok(["ip", "netns", "add", ns]);
    await ok(["ip", "-n", ns, "link", "set", "lo", "up"]);
  }
  const { local, peer, mailbox, gate } = ADDRESSES[underlay];
  const [rx, tx] = ["numrxqueues", "numtxqueues"].map((name) => [name, String(queues)]);
  assert(rx !== undefined && tx !== undefined);
  for (const [name, own, other] of [[OUTER.interface, local, peer], [GATE.interface, mailbox, gate]] as const) {
    const peerEnd = ["peer", "name", name, ...rx, ...tx, "netns", far.ns];
    await ok(["ip", "-n", near.ns, "link", "add", name, ...rx, ...tx, "type", "veth", ...peerEnd]);
    for (const [host, address] of [[near, own], [far, other]] as const) {
      // Devices announce themselves over IPv6, which would come among the packets that are counted.
      const disableIpv6 = (device: string, value: "0" | "1") =>
        host.ok(["sh", "-c", `echo ${value} > /proc/sys/net/ipv6/conf/${device}/disable_ipv6`]);
      await disableIpv6("default", "1");
      await disableIpv6(name, underlay === "ipv4" ? "1" : "0");
      const length = underlay === "ipv4" ? [`${address}/24`] : [`${address}/64`, "nodad"];
      await ok(["ip", "-n", host.ns, "addr", "add", ...length, "dev", name]);
      await ok(["ip", "-n", host.ns, "link", "set", name, "up"]);
    }
  }
  const known = async (host: Namespace, address: string, at: Namespace, name: string) => {
    const mac = (await at.ok(["cat", `/sys/class/net/${name}/address`])).trim();
    await host.ok(["ip", "neigh", "replace", address, "lladdr", mac, "dev", name, "nud", "permanent"]);
  };
  // The first datagram counts, too.
  await known(near, peer, far, OUTER.interface);
  await known(far, local, near, OUTER.interface);
  await known(near, gate, far, GATE.interface);
  await known(far, mailbox, near, GATE.interface);
  // What it hands on comes from its own address.
  const { interface: gateName } = GATE;
  for (const name of ["ipv4.ip_forward", "ipv4.conf.all.accept_local", `ipv4.conf.${gateName}.accept_local`]) {
    await far.ok(["sysctl", "-qw", `net.${name}=1`]);
  }
  await far.ok(["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"]);
  for (const name of ["all", gateName, OUTER.interface]) {
    await far.ok(["sysctl", "-qw", `net.ipv4.conf.${name}.rp_filter=0`]);
  }
  await far.ok(["nft", handOn(underlay)]);
}
