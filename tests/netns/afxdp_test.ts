/** What is special about the afxdp datapath: it shares its interface with the host, and leaves it as it was. */
import assert from "node:assert/strict";
import fs from "node:fs/promises";
import { eventually, type Host, Lab, type Node, type Outcome, privileged, type Running } from "./_lab.ts";
import { BACK_WITHIN_MS, Pinging, report } from "./_restart.ts";
import { transfer } from "./_transfer.ts";

const MIB = 1 << 20;
const AFXDP = ["--datapath", "afxdp"] as const;
const HYBRID = [...AFXDP, "--device", "tun"] as const;

/** A round trip that takes longer than this is no use to somebody at a terminal. */
const BEARABLE_MS = 1000;

/** Short lines back and forth over one TCP connection, past the tunnel, as of somebody who types. */
class Typing {
  readonly #client: Running;

  private constructor(client: Running) {
    this.#client = client;
  }

  static async start(lab: Lab, from: Host): Promise<Typing> {
    const to = lab.other(from);
    const server = `TCP4-LISTEN:2222,bind=${to.underlay},reuseaddr,nodelay`;
    lab.spawn(to, ["socat", server, "PIPE"]);
    await to.ok(["sh", "-c", "for i in $(seq 100); do ss -Hltn | grep -q :2222 && exit; sleep 0.05; done; exit 1"]);
    // Prints how long each round trip took, in microseconds, and ends with the first that fails.
    const script = `exec 3<>/dev/tcp/${to.underlay}/2222
      while sleep 0.02; do
        at=$EPOCHREALTIME
        echo "line $at" >&3; read -r -t 5 answer <&3; test "$answer" = "line $at"
        now=$EPOCHREALTIME
        echo $(( \${now/./} - \${at/./} ))
      done`;
    const typing = new Typing(lab.spawn(from, ["bash", "-euo", "pipefail", "-c", script]));
    await typing.more(1);
    return typing;
  }

  /** Milliseconds of each round trip so far. */
  roundTripsMs(): number[] {
    return this.#client.stdout.split("\n").slice(0, -1).map((line) => Number(line) / 1000);
  }

  /** Resolves after so many more round trips. */
  async more(count: number): Promise<void> {
    const wanted = this.roundTripsMs().length + count;
    await this.#client.until(`${wanted} round trips`, 10_000, () => this.roundTripsMs().length >= wanted || undefined);
  }
}

/** What the XDP program on the network interface has counted, from the first statistics line that is written after now. */
async function filtered(node: Node): Promise<{ redirected: number; passed: number; dropped: number }> {
  const { forwarder } = await node.event("counters", 10_000, node.events().length);
  const { filterRedirected = NaN, filterPassed = NaN, filterDropped = NaN } = forwarder as Record<string, number>;
  return { redirected: filterRedirected, passed: filterPassed, dropped: filterDropped };
}

/** The longest of them, checked to be bearable. */
function worst(roundTripsMs: readonly number[]): number {
  const longest = Math.max(...roundTripsMs);
  assert(longest < BEARABLE_MS, `a round trip took ${longest} ms`);
  return longest;
}

/** A server for one iperf3 test at host `b`, inside the tunnel. */
async function serve(lab: Lab): Promise<void> {
  const server = lab.spawn(lab.b, ["iperf3", "--forceflush", "-s", "-1", "-B", lab.b.inner4]);
  await server.until("iperf3 listens", 10_000, () => /listening/i.test(server.stdout) || undefined);
}

privileged("a busy interface stays usable: what is not the tunnel's flows under load, and after kill -9", async () => {
  await using lab = await Lab.create();
  const [a, b] = await lab.tunnel(AFXDP);
  const typing = await Typing.start(lab, lab.a);
  const [before, typedBefore] = [await filtered(b), typing.roundTripsMs().length];

  await serve(lab);
  const load = JSON.parse(await lab.a.ok(["iperf3", "-J", "-t", "3", "-P", "2", "-c", lab.b.inner4]));
  const { bytes, bits_per_second: rate } = load.end.sum_received as Record<string, number>;
  assert(bytes !== undefined && rate !== undefined);
  const during = typing.roundTripsMs().slice(typedBefore);
  assert(during.length >= 20, `${during.length} round trips in 3 s`);
  const after = await filtered(b);
  // No packet of the tunnel is larger than its MTU.
  assert(after.redirected - before.redirected >= bytes / 1392, JSON.stringify({ before, after, bytes }));
  assert(after.passed - before.passed >= during.length, JSON.stringify({ before, after, typed: during.length }));
  assert.equal(after.dropped, 0);

  // The tunnel is loaded when the process dies, and its peer does not know for a while.
  await serve(lab);
  const flood = lab.spawn(lab.a, ["iperf3", "-u", "-b", "200M", "-l", "1000", "-t", "30", "-c", lab.b.inner4]);
  await eventually("load", 10_000, async () => (await filtered(b)).redirected > after.redirected + 10_000);
  const typedUntil = typing.roundTripsMs().length;
  await b.crash();
  await typing.more(50);
  assert(flood.running, "the load goes on");
  const killed = typing.roundTripsMs().slice(typedUntil);
  report(
    `${(rate / 1e6).toFixed(0)} Mbit/s through the tunnel; longest round trip beside it ${
      worst(during).toFixed(1)
    } ms, ` +
      `after kill -9 ${worst(killed).toFixed(1)} ms`,
  );
  flood.kill("SIGKILL");
  // Takes back what the killed one has noted.
  const again = lab.start(lab.b, AFXDP);
  await again.event("starting");
  await again.stop();
  await a.stop();
});

/** XDP programs in a namespace, one line each. */
async function programs(host: Host): Promise<string[]> {
  return [...(await host.ok(["ip", "-d", "link"])).matchAll(/prog\/xdp.*? name (\S+)/g)].map(([, name = ""]) => name);
}

async function links(host: Host): Promise<string[]> {
  return [...(await host.ok(["ip", "-o", "link"])).matchAll(/^\d+: ([^:@]+)/gm)].map(([, name = ""]) => name).sort();
}

/** What icx may change on the interface of a host. */
async function settings(host: Host): Promise<string> {
  const script =
    'ethtool -k phy | sed "s/ \\[.*//"; cd /sys/class/net/phy && grep . napi_defer_hard_irqs gro_flush_timeout threaded';
  return await host.ok(["bash", "-euo", "pipefail", "-c", script]);
}

/** Files of a host's claims on interfaces: they carry the number of its namespace. */
async function claims(host: Host): Promise<string> {
  return await host.ok(["sh", "-c", 'ls /run/icx | grep "^$(stat -Lc %i /proc/self/ns/net)-" || true']);
}

/** `tests/soak` does it in every manner of a forwarder, and more often. */
privileged("kill -9: no program stays, the next start works at once, its stop leaves all as it was", async () => {
  await using lab = await Lab.create();
  await lab.a.ok(["ethtool", "-K", "phy", "gro", "on", "rx-udp-gro-forwarding", "on"]);
  const options = [...AFXDP, "--busy-poll", "20"];
  const b = lab.start(lab.b, AFXDP);
  await b.event("starting");
  // What lets it notice soon that its peer has restarted.
  lab.spawn(lab.b, ["ping", "-q", "-i", "0.1", lab.a.inner4]);
  // A veth whose peer has a program cuts segments itself.
  const before = await settings(lab.a);
  for (let round = 0; round < 3; round++) {
    const a = lab.start(lab.a, options);
    await a.event("up");
    await lab.a.ok(["ping", "-q", "-c", "3", "-i", "0.05", "-W", "2", lab.b.inner4]);
    assert((await programs(lab.a)).includes("icx_underlay"));
    assert.notEqual(await settings(lab.a), before, "the interface is set for AF_XDP meanwhile");
    await a.crash();
    assert.deepEqual(await programs(lab.a), []);
  }
  const a = lab.start(lab.a, options);
  await a.event("starting");
  await a.stop();
  assert.deepEqual([await programs(lab.a), await links(lab.a)], [[], ["lo", "phy"]]);
  assert.equal(await settings(lab.a), before);
  assert.equal(await claims(lab.a), "");
  await b.stop();
});

privileged(
  "kill -9 (veth): the next start with a TUN device, of that name or with those addresses, works at once",
  async () => {
    await using lab = await Lab.create();
    const b = lab.start(lab.b, AFXDP);
    await b.event("starting");
    lab.spawn(lab.b, ["ping", "-q", "-i", "0.1", lab.a.inner4]);
    for (const extra of [["--datapath", "tun"], HYBRID, ["--datapath", "tun", "--tun-device", "icx7"]] as const) {
      const killed = lab.start(lab.a, AFXDP);
      await killed.event("up");
      await killed.crash();
      assert.deepEqual(await links(lab.a), ["icx0", "icx0-xdp", "lo", "phy"]);
      const a = lab.start(lab.a, extra);
      await a.event("up");
      await lab.a.ok(["ping", "-q", "-c", "3", "-i", "0.05", "-W", "2", lab.b.inner4]);
      assert.equal((await links(lab.a)).length, 3, "one device, and what there is without a node");
      await a.stop();
      assert.deepEqual(await links(lab.a), ["lo", "phy"]);
      assert.doesNotMatch(await claims(lab.a), /icx/);
    }
    await b.stop();
  },
);

/** Ended with this exit code, and a last line that says all of it. */
function assertFailed({ code, stderr }: Outcome, expected: number, says: readonly RegExp[]): void {
  const last = stderr.trimEnd().split("\n").at(-1) ?? "";
  assert.equal(code, expected, last);
  for (const part of says) assert.match(last, part);
}

/** A program that lets everything pass. */
const FOREIGN = `
__attribute__((section("xdp"), used)) int foreign_pass(void *context) { return 2; }
__attribute__((section("license"), used)) char _license[] = "GPL";
`;

privileged("a program of somebody else on the interface is an error that names it, and stays", async () => {
  await using lab = await Lab.create();
  const object = `${lab.directory}/foreign.o`;
  await fs.writeFile(`${lab.directory}/foreign.c`, FOREIGN);
  const compiled = await lab.a.shell(`clang -target bpf -O2 -g -c ${lab.directory}/foreign.c -o ${object}`);
  if (/clang: (command )?not found/.test(compiled.stderr)) {
    report("skipped: there is no clang to compile the program with");
    return;
  }
  assert.equal(compiled.code, 0, compiled.stderr);
  for (const [mode, extra] of [["xdpdrv", AFXDP], ["xdpgeneric", AFXDP], ["xdpdrv", HYBRID]] as const) {
    await lab.a.ok(["ip", "link", "set", "phy", mode, "obj", object, "sec", "xdp"]);
    const [before, was] = [await lab.a.ok(["ip", "-d", "link", "show", "phy"]), await settings(lab.a)];
    const outcome = await lab.start(lab.a, extra).process.ended;
    assertFailed(outcome, 1, [/phy/, /foreign_pass/, new RegExp(`ip link set phy ${mode} off`)]);
    assert.equal(await lab.a.ok(["ip", "-d", "link", "show", "phy"]), before);
    assert.deepEqual([await links(lab.a), await settings(lab.a), await claims(lab.a)], [["lo", "phy"], was, ""]);
    await lab.a.ok(["ip", "link", "set", "phy", mode, "off"]);
  }
});

/** The states of the network interface that a node has told of, from event `from` on. */
function linkStates(node: Node, from: number): string[] {
  return node.events().slice(from).filter(({ event }) => event === "link").map((event) =>
    `${event["interface"]} ${event["link"]}`
  );
}

async function until(node: Node, state: string, from: number): Promise<void> {
  const told = () => linkStates(node, from).includes(state) || undefined;
  await node.process.until(`"${state}" on ${node.host.ns}`, 10_000, told);
}

async function macOf(host: Host): Promise<string> {
  return (await host.ok(["cat", "/sys/class/net/phy/address"])).trim();
}

for (const [what, extra] of [["veth", AFXDP], ["tun", HYBRID]] as const) {
  privileged(
    `the interface goes down and up, has another name, is removed and made again (${what}): traffic returns`,
    async () => {
      await using lab = await Lab.create();
      const nodes = await lab.tunnel(extra);
      const [a, b] = nodes;
      const pinging = await Pinging.start(lab, lab.a);
      const back = async (after: string): Promise<void> => {
        const since = Date.now();
        const tookMs = await pinging.answerAfter(since, 30_000) - since;
        report(`traffic back ${tookMs.toFixed(0)} ms after ${after}`);
        assert(tookMs < BACK_WITHIN_MS, `back ${tookMs} ms after ${after}`);
      };

      let from = a.events().length;
      await lab.a.ok(["ip", "link", "set", "phy", "down"]);
      await until(a, "phy down", from);
      const passed = (await filtered(a)).passed;
      await lab.a.ok(["ip", "link", "set", "phy", "up"]);
      await until(a, "phy up", from);
      await back("the interface was set up");
      assert.deepEqual(linkStates(a, from), ["phy down", "phy up"]);
      assert((await filtered(a)).passed >= passed, "the counters go on");

      // A name that its user has given changes nothing but what it is called.
      from = a.events().length;
      await lab.a.ok(["ip", "link", "set", "phy", "name", "other"]);
      await until(a, "other up", from);
      await back("it got another name");
      await lab.a.ok(["ip", "link", "set", "other", "name", "phy"]);
      await until(a, "phy up", from);
      await back("it got its name back");
      assert.deepEqual(linkStates(a, from), ["other up", "phy up"]);

      const macs = [await macOf(lab.a), await macOf(lab.b)] as const;
      const starts = nodes.map((node) => node.events().length);
      await lab.a.ok(["ip", "link", "del", "phy"]);
      for (const [index, node] of nodes.entries()) await until(node, "phy removed", starts[index] ?? 0);
      assert.deepEqual(await links(lab.a), what === "veth" ? ["icx0", "icx0-xdp", "lo"] : ["icx0", "lo"]);
      await lab.rewire();
      for (const [index, { host }] of nodes.entries()) {
        await host.ok(["ip", "link", "set", "phy", "address", macs[index] ?? ""]);
      }
      for (const [index, node] of nodes.entries()) await until(node, "phy up", starts[index] ?? 0);
      await back("it was made again");
      for (const [index, node] of nodes.entries()) {
        assert.deepEqual(linkStates(node, starts[index] ?? 0), ["phy removed", "phy up"]);
      }

      await pinging.stop();
      await a.stop();
      await b.stop();
      assert.deepEqual([await programs(lab.a), await links(lab.a), await claims(lab.a)], [[], ["lo", "phy"], ""]);
    },
  );
}

privileged("an interface that comes back with another hardware address is waited for, and then the end", async () => {
  await using lab = await Lab.create();
  const [a, b] = await lab.tunnel(AFXDP, ["--datapath", "tun"]);
  await lab.a.ok(["ip", "link", "del", "phy"]);
  await until(a, "phy removed", 0);
  await lab.rewire();
  const mac = await macOf(lab.a);
  assertFailed(await a.process.ended, 1, [new RegExp(`phy came back with the hardware address ${mac}`)]);
  assert.deepEqual([await programs(lab.a), await links(lab.a), await claims(lab.a)], [[], ["lo", "phy"], ""]);
  await b.stop();
});

for (const [what, extra] of [["veth", AFXDP], ["tun", HYBRID]] as const) {
  privileged(`--pcap-file (${what}): both sides, and why a packet went nowhere`, async () => {
    await using lab = await Lab.create();
    const file = `${lab.directory}/both.pcapng`;
    const route = ["--allowed-route", "10.9.0.1/32=10.9.0.2/32"];
    const [a, b] = await lab.tunnel([...extra, ...route, "--pcap-file", file], AFXDP);
    await lab.a.ok(["ping", "-q", "-c", "3", "-i", "0.05", "-W", "2", lab.b.inner4]);
    // An empty frame of network 99, which nobody has.
    const frame = String.raw`\0\0\x08\0\0\0\x63\0`;
    await lab.b.shell(`printf '${frame}' | socat -u STDIN UDP4:${lab.a.underlay}:6081`);
    await eventually("the frame is dropped", 5000, async () => (await a.counters())["rx_unknown_vni"] === 1);
    const { tx_no_route: before = 0 } = await a.counters();
    await lab.a.shell("echo nowhere | socat -u STDIN UDP4:10.9.0.77:9");
    await eventually("the packet is dropped", 5000, async () => ((await a.counters())["tx_no_route"] ?? 0) > before);
    await a.stop();
    await b.stop();
    assert.equal((await fs.stat(file)).mode & 0o777, 0o600, "plaintext is for its owner");
    const packets = await lab.a.ok(["tcpdump", "-nnr", file]);
    for (
      const expected of [
        /IP 10\.9\.0\.1 > 10\.9\.0\.2: ICMP echo request/,
        /IP 10\.9\.0\.2 > 10\.9\.0\.1: ICMP echo reply/,
        /IP 10\.9\.0\.1\.\d+ > 10\.9\.0\.77\.9: UDP, length 8/,
        /IP 192\.168\.77\.1\.6081 > 192\.168\.77\.2\.6081: Geneve/,
        /IP 192\.168\.77\.2\.6081 > 192\.168\.77\.1\.6081: Geneve/,
        /IP 192\.168\.77\.2\.\d+ > 192\.168\.77\.1\.6081: Geneve.* vni 0x63/,
      ]
    ) assert.match(packets, expected);
    const text = (await fs.readFile(file)).toString("latin1");
    for (const named of ["phy", "icx0", "dropped: rx_unknown_vni", "dropped: tx_no_route"]) {
      assert(text.includes(named), named);
    }
  });
}

privileged("what afxdp cannot do here is told with what to do, and leaves nothing", async () => {
  await using lab = await Lab.create();
  const before = [await settings(lab.a), await links(lab.a), await claims(lab.a)];
  const cases = [
    {
      what: "more queues than the interface has",
      args: [...AFXDP, "--queues", "9"],
      code: 2,
      says: [/9 queues were asked for, and interface phy has 1: take 1 to 1/],
    },
    {
      what: "more queues than the interface has, with a TUN device",
      args: [...HYBRID, "--queues", "9"],
      code: 2,
      says: [/9 queues were asked for, and interface phy has 1: take 1 to 1/],
    },
    {
      what: "zero-copy of a driver without",
      args: [...HYBRID, "--zero-copy", "require"],
      code: 1,
      says: [/driver of phy does not do zero-copy/, /--zero-copy auto or off/],
    },
    {
      what: "zero-copy with a veth pair",
      args: [...AFXDP, "--zero-copy", "require"],
      code: 2,
      says: [/--zero-copy/, /veth pair/],
    },
    {
      what: "a name that is too long for the other end",
      args: [...AFXDP, "--tun-device", "twelve-bytes"],
      code: 2,
      says: [/--tun-device/, /11 bytes/],
    },
    {
      what: "an interface that is in use",
      args: [...AFXDP, "--tun-device", "phy"],
      code: 1,
      says: [/phy/],
    },
  ];
  for (const { what, args, code, says } of cases) {
    assertFailed(await lab.start(lab.a, args).process.ended, code, says);
    assert.deepEqual([await settings(lab.a), await links(lab.a), await claims(lab.a)], before, what);
  }

  // A user who owns the key, and nothing else.
  await fs.chmod(lab.directory, 0o755);
  await lab.a.ok(["chown", "65534:65534", lab.a.keyFile]);
  const through = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
  for (const extra of [AFXDP, HYBRID]) {
    const outcome = await lab.start(lab.a, extra, { through }).process.ended;
    assertFailed(outcome, 4, [/CAP_NET_ADMIN.*CAP_NET_RAW.*CAP_BPF/, /--datapath tun/]);
    assert.deepEqual([await settings(lab.a), await links(lab.a), await claims(lab.a)], before);
  }
});

for (const [what, extra] of [["veth", AFXDP], ["tun", HYBRID]] as const) {
  privileged(`afxdp (${what}) talks with tun: 100 MiB of TCP each way over both families`, async () => {
    await using lab = await Lab.create();
    const [a, b] = await lab.tunnel(extra, ["--datapath", "tun"]);
    assert.deepEqual([(await a.event("starting"))["datapath"], (await b.event("starting"))["datapath"]], [
      "afxdp",
      "tun",
    ]);
    await transfer(lab, { from: lab.a, to: lab.b, address: lab.b.inner4, bytes: 100 * MIB });
    await transfer(lab, { from: lab.b, to: lab.a, address: lab.a.inner6, bytes: 100 * MIB });
    await a.stop();
    await b.stop();
  });
}
