/** What runs out or is taken away: descriptors, memory, room for logs, rights, devices, addresses, links. */
import assert from "node:assert/strict";
import { ControlGroup } from "./_cgroup.ts";
import { eventually, Lab, type Node, ok, privileged } from "./_lab.ts";
import { load, usage } from "./_process.ts";
import { BACK_WITHIN_MS, byRole, Pinging, report, restart } from "./_restart.ts";
import { transfer } from "./_transfer.ts";

const MIB = 1 << 20;
/** What a node has room in, under load. */
const ENOUGH_MIB = 160;
/** What the launcher asks for. */
const LEAST_FILES = 64;
/** Of one processor, for a node that waits for better times beside 20 packets a second. */
const IDLE_LOAD = 0.5;

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Runs the launcher through a line of shell, in which `"$@"` is the rest of the command. */
const shell = (script: string): { through: string[] } => ({ through: ["/bin/sh", "-c", script, "sh"] });

/** How a node ended; a `code` of undefined when it has started instead. */
function ends(node: Node): Promise<{ readonly code: number | null | undefined; readonly stderr: string }> {
  const started = node.event("starting").then(() => ({ code: undefined, stderr: "" }));
  return Promise.race([
    node.process.ended,
    started.catch((error: unknown) => node.process.running ? Promise.reject(error) : node.process.ended),
  ]);
}

function skipped(what: string): void {
  report(`skipped: there is no ${what} to be had here`);
}

async function answers(lab: Lab, from: Lab["a"]): Promise<boolean> {
  return (await from.run(["ping", "-c", "1", "-W", "1", lab.other(from).inner4])).code === 0;
}

/** The counters of `node` grew by so much since `before`, by name. */
async function grown(node: Node, before: Readonly<Record<string, number>>, name: string): Promise<number> {
  return ((await node.counters())[name] ?? 0) - (before[name] ?? 0);
}

privileged("descriptors run out at the start: the node says so and ends with 1 or tries on, or it runs", async () => {
  await using lab = await Lab.create();
  let told = 0;
  // From "too few for the runtime" to "enough": which step fails depends on how many the runtime has open itself. Those
  // beyond are in use when the launcher asks for the limit.
  for (const files of [...Array.from({ length: 15 }, (_, n) => 16 + n), LEAST_FILES]) {
    const used = `for ((fd = 3; fd < ${3 + LEAST_FILES - files}; fd++)); do eval "exec $fd</dev/null"; done; exec "$@"`;
    const node = lab.start(lab.a, [], { through: ["prlimit", `--nofile=${LEAST_FILES}`, "bash", "-c", used, "bash"] });
    const { process } = node;
    await eventually(
      `a node with ${files} descriptors runs, waits or has ended`,
      30_000,
      () => Promise.resolve(!process.running || /"event":"(starting|locating)"/.test(process.stderr)),
    );
    if (process.running && !process.stderr.includes('"event":"locating"')) {
      await node.stop();
    } else {
      // The look-up of the way to the peer is made again and again: an address may come up later.
      if (process.running) await node.stop();
      else assert.equal((await process.ended).code, 1, process.stderr);
      // The runtime may be the first to miss one, and has words of its own for that.
      assert.match(process.stderr, /Too many open files/);
      if (/(Cannot|cannot) [^"]*Too many open files[^"]*`ulimit -n`/.test(process.stderr)) told += 1;
    }
    assert(!(await lab.a.ok(["ip", "-o", "link"])).includes("icx0"));
  }
  assert(told > 0, "icx itself has missed no descriptor");
});

privileged("descriptors run out in between: flows share the base port, rekeys and redials go on", async () => {
  await using lab = await Lab.create();
  const options = ["--source-port-hash", "--rekey-interval", "1s", "--log-level", "debug"];
  const nodes = await lab.tunnel(options);
  const [initiator, responder] = await byRole("initiator", nodes);
  const { pid } = initiator.process;
  const flows = (count: number) =>
    initiator.host.shell(
      `for port in $(seq 7000 ${6999 + count}); do ` +
        `echo hello | socat -t0 - UDP4:${responder.host.inner4}:9000,sourceport=$port; done`,
    );
  const { files } = await usage(pid);
  await initiator.host.ok(["prlimit", "--pid", String(pid), `--nofile=${files}:`]);
  await flows(20);
  await eventually("flows share the base port", BACK_WITHIN_MS, async () => {
    const { ends } = await initiator.statistics();
    return (ends["portFallbacks"] ?? 0) > 0;
  });
  const keysFrom = initiator.events().length;
  await initiator.event("keys", 10_000, keysFrom);

  // A dial needs a look at the routes and a session, and gets both without a descriptor of its own.
  const pinging = await Pinging.start(lab, initiator.host);
  const [again, { fromExecMs }] = await restart(lab, { victim: responder, how: "SIGKILL", pinging, extra: options });
  assert(fromExecMs < BACK_WITHIN_MS, `back after ${fromExecMs} ms`);

  await initiator.host.ok(["prlimit", "--pid", String(pid), "--nofile=4096:"]);
  // A port that could not be had is tried again after a second.
  await eventually("flows leave from ports of their own", BACK_WITHIN_MS, async () => {
    await flows(20);
    return (await usage(pid)).files > files + 4;
  });
  await pinging.stop();
  await initiator.stop();
  await again.stop();
});

privileged("threads run out in between: traffic, rekeys, redials and the end go on", async () => {
  await using group = await ControlGroup.create("pids");
  if (group === undefined) return skipped("control group of threads");
  await using lab = await Lab.create();
  const options = ["--rekey-interval", "1s", "--log-level", "debug"];
  const [a, b] = await lab.tunnel(options);
  await group.add(a.process.pid);
  await group.limit(1);
  const pinging = await Pinging.start(lab, lab.b);
  const [again, { fromExecMs }] = await restart(lab, { victim: b, how: "SIGKILL", pinging, extra: options });
  assert(fromExecMs < BACK_WITHIN_MS, `back after ${fromExecMs} ms`);
  await a.event("keys", 10_000, a.events().length);
  await pinging.stop();
  await a.stop();
  await again.stop();
});

privileged("threads run out at the start: the node ends with 1 or runs, and nothing is left", async () => {
  await using group = await ControlGroup.create("pids");
  if (group === undefined) return skipped("control group of threads");
  await using lab = await Lab.create();
  for (const threads of [10, 16]) {
    await group.limit(threads);
    const node = lab.start(lab.a, [], { through: group.through });
    const { code } = await ends(node);
    if (code === undefined) await node.stop();
    // The runtime itself needs about as many, and says in words of its own that it has them not.
    else assert.equal(code, 1);
    assert(!(await lab.a.ok(["ip", "-o", "link"])).includes("icx0"));
  }
});

privileged(
  "no memory for another allocation under load: the node goes on or dies at once, and the next start works",
  async () => {
    await using lab = await Lab.create();
    const [a, b] = await lab.tunnel(["--rekey-interval", "1s"]);
    const pinging = await Pinging.start(lab, lab.b);
    const { dataKiB } = await usage(a.process.pid);
    await lab.a.ok(["prlimit", "--pid", String(a.process.pid), `--data=${dataKiB * 1024}`]);
    for (let waited = 0; waited < 2000 && a.process.running; waited += 50) await pause(50);
    report(`without another byte of memory the node ${a.process.running ? "goes on" : "has ended"}`);
    if (a.process.running) {
      await pinging.answerAfter(Date.now(), BACK_WITHIN_MS);
      await a.crash();
    } else {
      assert.notEqual((await a.process.ended).code, 0);
    }
    assert(!(await lab.a.ok(["ip", "-o", "link"])).includes("icx0"));
    const again = lab.start(lab.a);
    await again.event("up");
    await pinging.answerAfter(Date.now(), BACK_WITHIN_MS);
    await pinging.stop();
    await again.stop();
    await b.stop();
  },
);

privileged(
  "memory of the control group: too little ends the start and leaves nothing, enough carries a load",
  async () => {
    await using group = await ControlGroup.create("memory");
    if (group === undefined) return skipped("control group of memory");
    await using lab = await Lab.create();
    await group.limit(32 * MIB);
    const starved = lab.start(lab.a, [], { through: group.through });
    const { code } = await ends(starved);
    assert.equal(code, null, "killed by the kernel");
    assert(!(await lab.a.ok(["ip", "-o", "link"])).includes("icx0"));

    await group.limit(ENOUGH_MIB * MIB);
    const nodes = [lab.start(lab.a, ["--rekey-interval", "1s"], { through: group.through }), lab.start(lab.b)] as const;
    await Promise.all(nodes.map((node) => node.event("up")));
    await transfer(lab, { from: lab.b, to: lab.a, address: lab.a.inner4, bytes: 100 * MIB });
    report(
      `in a group of ${ENOUGH_MIB} MiB, of which ${
        Math.round(await group.current() / MIB)
      } are used after 100 MiB of TCP`,
    );
    for (const node of nodes) await node.stop();
  },
);

/** Where standard error leads, and who reads there, if that matters. */
const SINKS: readonly { readonly name: string; readonly script: (pipe: string) => string; readonly reader?: string }[] =
  [
    { name: "closed", script: () => 'exec "$@" 2>&-' },
    { name: "a full disk", script: () => 'exec "$@" 2>/dev/full' },
    {
      name: "a reader that has gone",
      script: (pipe: string) => `exec "$@" 2>"${pipe}"`,
      reader: 'exec head -c 1 "$1"',
    },
    {
      name: "a reader that is stuck",
      script: (pipe: string) => `exec "$@" 2>"${pipe}"`,
      // Open for both, so that neither opening waits; filled to the last byte.
      reader: 'exec 3<>"$1"; head -c 65536 /dev/zero >"$1"; exec sleep 1000',
    },
  ];

async function withSink({ name, script, reader }: typeof SINKS[number]): Promise<void> {
  await using lab = await Lab.create();
  const pipe = `${lab.directory}/pipe`;
  await lab.a.ok(["mkfifo", pipe]);
  if (reader !== undefined) lab.spawn(lab.a, ["/bin/sh", "-c", reader, "sh", pipe]);
  const chatty = ["--log-level", "trace", "--rekey-interval", "1s"];
  const a = lab.start(lab.a, chatty, shell(script(pipe)));
  const b = lab.start(lab.b, ["--log-level", "debug", "--rekey-interval", "1s"]);
  await b.event("up");
  assert(a.process.running, `${name}: ${a.process.stderr}`);
  await eventually("traffic", BACK_WITHIN_MS, () => answers(lab, lab.b));
  await b.event("keys", 10_000, b.events().length);
  const share = await load(a.process.pid, () => pause(500));
  assert(share < IDLE_LOAD, `${name}: it uses ${share} of a processor`);
  assert(await answers(lab, lab.b), name);
  await endsCleanly(a);
  await b.stop();
}

/** SIGINT ends a node whose log nobody can read. */
async function endsCleanly(node: Node): Promise<void> {
  node.process.kill("SIGINT");
  const killed = setTimeout(() => node.process.kill("SIGKILL"), BACK_WITHIN_MS);
  assert.equal((await node.process.ended).code, 0);
  clearTimeout(killed);
}

privileged(
  "standard error is closed, full, or a pipe that nobody reads: traffic and rekeys go on, and SIGINT ends it",
  async () => {
    await Promise.all(SINKS.map(withSink));
  },
);

privileged(
  "the disk with the log is full for a while: traffic goes on, and the log says how many lines it lacks",
  async () => {
    await using lab = await Lab.create();
    const disk = `${lab.directory}/disk`;
    await lab.a.ok(["mkdir", disk]);
    // A mount that the namespace of this one process has.
    const script =
      `mount -t tmpfs -o size=64k log ${disk}; head -c 57344 /dev/zero >${disk}/filler; exec "$@" 2>>${disk}/log`;
    const options = ["--log-level", "debug", "--rekey-interval", "1s"];
    const [a, b] = [lab.start(lab.a, options, shell(script)), lab.start(lab.b, options)];
    await b.event("up");
    const seen = `/proc/${a.process.pid}/root${disk}`;
    await eventually("the disk is full", 20_000, async () => {
      const [free, size] = (await ok(["/bin/sh", "-c", `stat -f -c %f ${seen}; stat -c %s ${seen}/log`])).split("\n");
      return free === "0" && Number(size) % 4096 === 0;
    });
    await b.event("keys", 10_000, b.events().length);
    await eventually("traffic", BACK_WITHIN_MS, () => answers(lab, lab.b));
    await pause(1000);
    await ok(["/bin/sh", "-c", `rm ${seen}/filler`]);
    let lost = 0;
    await eventually("the log goes on", BACK_WITHIN_MS, async () => {
      const log = await ok(["/bin/sh", "-c", `tr -d "\\000" <${seen}/log`]);
      lost = Number(/"event":"log-lost","lines":(\d+)/.exec(log)?.[1] ?? 0);
      return lost > 0;
    });
    report(`${lost} lines could not be written`);
    await endsCleanly(a);
    await b.stop();
  },
);

privileged("the device is removed: the node ends with 1, says why, and can be started again", async () => {
  await using lab = await Lab.create();
  const [a, b] = await lab.tunnel();
  await lab.a.ok(["ip", "link", "del", "icx0"]);
  const killed = setTimeout(() => a.process.kill("SIGKILL"), BACK_WITHIN_MS);
  const { code, stderr } = await a.process.ended;
  clearTimeout(killed);
  assert.equal(code, 1, stderr);
  assert.match(stderr, /device icx0 was removed.*start again/);
  const again = lab.start(lab.a);
  await again.event("up");
  await eventually("traffic", BACK_WITHIN_MS, () => answers(lab, lab.b));
  await again.stop();
  await b.stop();
});

/** A queue for 100 MB that lets 1 Mbit/s out. */
const SLOW = ["tbf", "rate", "1mbit", "burst", "5kb", "limit", "100mb"];

/** Something that keeps packets from passing, for a while. */
interface Fault {
  readonly name: string;
  readonly begin: readonly string[];
  readonly end: readonly string[] | ((lab: Lab) => Promise<void>);
  /** What counts on this side meanwhile, if something does. */
  readonly counted?: string;
}

const FAULTS: readonly Fault[] = [
  {
    name: "EPERM: a packet filter refuses what is sent",
    begin: [
      "nft add table inet t",
      "nft add chain inet t out '{ type filter hook output priority 0; }'",
      "nft add rule inet t out udp dport '{ 6081, 6082 }' drop",
    ],
    end: ["nft delete table inet t"],
    counted: "tx_errors",
  },
  {
    name: "the underlay's address is taken away",
    begin: ["ip addr del 192.168.77.1/24 dev phy"],
    end: ["ip addr add 192.168.77.1/24 dev phy"],
    counted: "tx_errors",
  },
  { name: "the underlay's link is down", begin: ["ip link set phy down"], end: ["ip link set phy up"] },
  {
    name: "the underlay's interface is removed, and made again",
    begin: ["ip link del phy"],
    end: (lab) => lab.rewire(),
    counted: "tx_errors",
  },
  { name: "the device has another name", begin: ["ip link set icx0 name other"], end: ["ip link set other name icx0"] },
  { name: "the device is down", begin: ["ip link set icx0 down"], end: ["ip link set icx0 up"] },
  {
    name: "the inner address is taken away",
    begin: ["ip addr del 10.9.0.1/24 dev icx0"],
    end: ["ip addr add 10.9.0.1/24 dev icx0"],
  },
];

privileged(
  "what is taken away and given back: nothing spins, what is refused is counted, traffic returns",
  async () => {
    await using lab = await Lab.create();
    const nodes = await lab.tunnel(["--rekey-interval", "1s", "--log-level", "debug"]);
    const [a, b] = nodes;
    const pinging = await Pinging.start(lab, lab.b);
    const own = lab.spawn(lab.a, ["ping", "-n", "-q", "-i", "0.05", lab.b.inner4]);
    for (const { name, begin, end, counted } of FAULTS) {
      const before = await a.counters();
      const execute = (lines: readonly string[]) =>
        lab.a.shell(lines.join("\n")).then(({ code, stderr }) => assert.equal(code, 0, stderr));
      await execute(begin);
      const shares = await Promise.all(nodes.map(({ process }) => load(process.pid, () => pause(500))));
      assert(shares.every((share) => share < IDLE_LOAD), `${name}: ${shares}`);
      if (counted !== undefined) assert(await grown(a, before, counted) > 0, `${name}: ${counted}`);
      await (typeof end === "function" ? end(lab) : execute(end));
      const endedAt = Date.now();
      const tookMs = await pinging.answerAfter(endedAt, 30_000) - endedAt;
      report(`${name}: traffic back ${tookMs.toFixed(0)} ms after its end`);
      assert(tookMs < BACK_WITHIN_MS, `${name}: back after ${tookMs} ms`);
      await b.event("keys", 30_000, b.events().length);
    }
    assert(own.running || (await own.ended).code !== null);
    await pinging.stop();
    await a.stop();
    await b.stop();
  },
);

privileged(
  "the underlay's MTU is lowered: the device's follows, and senders of what is larger are told",
  async () => {
    await using lab = await Lab.create();
    const [a, b] = await lab.tunnel();
    const large = ["ping", "-c", "3", "-i", "0.05", "-W", "1", "-M", "do", "-s", "1364", lab.b.inner4];
    await lab.a.ok(large);
    await lab.a.ok(["ip", "link", "set", "phy", "mtu", "1300"]);
    const before = await a.counters();
    const refused = await lab.a.run(large);
    assert.notEqual(refused.code, 0);
    assert.equal(await grown(a, before, "tx_errors"), 1, "the first, which showed it");
    const { reason, pathMtu, innerMtu } = await a.event("path-mtu");
    assert.deepEqual([reason, pathMtu, innerMtu], ["interface", 1300, 1200]);
    // The device has an IPv6 address, and keeps what IPv6 demands.
    assert.equal((await a.event("device-mtu"))["mtu"], 1280);
    assert.match(refused.stdout + refused.stderr, /mtu ?= ?12[08]0/);
    await lab.a.ok(["ping", "-c", "3", "-i", "0.05", "-W", "2", "-M", "do", "-s", "1172", lab.b.inner4]);
    const tooBig = await lab.a.run([
      "ping",
      "-c",
      "3",
      "-i",
      "0.05",
      "-W",
      "1",
      "-M",
      "do",
      "-s",
      "1180",
      lab.b.inner4,
    ]);
    assert.notEqual(tooBig.code, 0);
    assert.match(tooBig.stdout + tooBig.stderr, /mtu ?= ?1200/);
    await a.stop();
    await b.stop();
  },
);

privileged(
  "a full send buffer: what finds no room is counted, the rest flows, and the node can be stopped",
  async () => {
    await using lab = await Lab.create();
    const [a, b] = await lab.tunnel();
    // A queue that takes all that the socket's buffer holds, and lets next to nothing out.
    const shaped = (change: "add" | "del") =>
      lab.a.ok(["tc", "qdisc", change, "dev", "phy", "root", ...change === "add" ? SLOW : []]);
    const flood = () =>
      lab.spawn(lab.a, ["/bin/sh", "-c", `exec socat -u -b 1300 OPEN:/dev/zero UDP4-SENDTO:${lab.b.inner4}:9`]);
    await shaped("add");
    const before = await a.counters();
    const first = flood();
    await eventually("datagrams find no room", 20_000, async () => await grown(a, before, "tx_errors") > 0);
    const share = await load(a.process.pid, () => pause(1000));
    assert(share < IDLE_LOAD, `it uses ${share} of a processor`);
    assert(a.process.running && b.process.running);
    first.kill("SIGKILL");
    await first.ended;
    await shaped("del");
    await eventually("traffic", BACK_WITHIN_MS, () => answers(lab, lab.a));

    await shaped("add");
    const again = await a.counters();
    flood();
    await eventually("datagrams find no room", 20_000, async () => await grown(a, again, "tx_errors") > 0);
    await a.stop();
    await b.stop();
  },
);
