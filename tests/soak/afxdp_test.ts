/** Forwarders that start and end hundreds of times, as they should and by force: nothing is left of them. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { DENO, type Host, Lab, ok, privileged } from "../netns/_lab.ts";
import { grownSince, type Usage, usage } from "../netns/_process.ts";
import { median } from "../netns/_restart.ts";
import { belongings } from "./_belongings.ts";
import { figure, progress } from "./_report.ts";

const FORWARDERS = fileURLToPath(new URL("./_forwarders.ts", import.meta.url));
const ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** A lab whose interfaces have something that AF_XDP wants changed. */
async function createLab(): Promise<Lab> {
  const lab = await Lab.create();
  for (const { ns } of [lab.a, lab.b]) {
    await ok(["ip", "netns", "exec", ns, "ethtool", "-K", "phy", "gro", "on", "rx-udp-gro-forwarding", "on"]);
  }
  return lab;
}

/** Maps, programs, and links of programs to interfaces that a process holds: without one of those the kernel has none of them. */
async function bpfFiles(pid: number): Promise<number> {
  const script = 'ls -l "/proc/$1/fd" | grep -Ec "anon_inode:(bpf|btf)" || true';
  return Number(await ok(["/bin/sh", "-c", script, "sh", String(pid)]));
}

/** Frames of a network that nobody has, 50 a second, to the data port of the other host. */
function pester(lab: Lab, from: Host): void {
  const send = String.raw`printf '\0\0\x08\0\0\0\x63\0' >/dev/udp/${lab.other(from).underlay}/6081`;
  lab.spawn(from, ["bash", "-c", `while sleep 0.02; do ${send}; done 2>/dev/null`]);
}

privileged(
  "a process opens, runs and closes 200 forwarders, in every manner: nothing is left, and it does not grow",
  async () => {
    const [rounds, looks] = [200, [0, 50, 100, 150, 200]];
    await using lab = await createLab();
    const before = await belongings(lab.a);
    pester(lab, lab.b);
    const config = {
      mac: (await lab.a.ok(["cat", "/sys/class/net/phy/address"])).trim(),
      address: `${lab.a.underlay}:6081`,
      pcapFile: `${lab.directory}/soak.pcapng`,
    };
    const forwarding = lab.a.start([
      ...[DENO, "run", "--no-prompt", "--cached-only", `--config=${ROOT}deno.json`, "--v8-flags=--expose-gc"],
      ...[`--allow-ffi=${ROOT}native/lib/libicx-afxdp.so`, FORWARDERS],
      ...[JSON.stringify(config), String(rounds), JSON.stringify(looks)],
    ], { stdin: "piped" });
    const lines = () =>
      forwarding.stdout.split("\n").slice(0, -1).map((line) => JSON.parse(line) as Record<string, number>);
    const seen: { usage: Usage; handles: number }[] = [];
    try {
      for (const look of looks) {
        const line = await forwarding.until(
          `round ${look}`,
          600_000,
          () => lines().find(({ round }) => round === look),
        );
        const [now, handles] = [await usage(forwarding.pid), line["handles"] ?? NaN];
        seen.push({ usage: now, handles });
        progress(
          `after ${look} forwarders: ${now.threads} threads, ${now.workers} of the library, ${now.files} descriptors, ` +
            `${handles} handles, ${now.residentKiB} KiB resident, ${now.dataKiB} KiB data`,
        );
        assert.equal(await belongings(lab.a), before, `something is left after round ${look}`);
        assert.equal(await bpfFiles(forwarding.pid), 0, `maps or programs are left after round ${look}`);
        await forwarding.write("");
      }
      const { code, stderr } = await forwarding.ended;
      assert.equal(code, 0, stderr);
    } finally {
      forwarding.kill("SIGKILL");
      await forwarding.ended;
    }
    const [fresh, warm, last] = [seen[0], seen[1], seen.at(-1)];
    assert(fresh !== undefined && warm !== undefined && last !== undefined);
    const grown = grownSince(warm.usage, last.usage);
    const times = lines().slice(1).map(({ tookMs = NaN }) => tookMs);
    figure("200 forwarders in one process", {
      medianMs: { first50: median(times.slice(0, 50)), last50: median(times.slice(-50)) },
      grewAfterRound50: { ...grown, handles: last.handles - warm.handles },
    });
    assert.equal(last.handles, fresh.handles, "handles");
    assert.deepEqual([grown.workers, grown.files], [0, 0], "threads and descriptors");
    assert(grown.residentKiB < 16 * 1024, `it grew by ${grown.residentKiB} KiB`);
  },
);

const AFXDP = ["--datapath", "afxdp"];
const MANNERS = [
  [],
  ["--device", "tun"],
  ["--xdp-attach", "generic"],
  ["--busy-poll", "20", "--cpu-pin"],
  ["--device", "tun", "--xdp-attach", "generic", "--busy-poll", "20"],
].map((options) => [...AFXDP, ...options]);

privileged(
  "50 kill -9 of a node under load: each start works at once, and a stop in the end leaves nothing",
  async () => {
    const kills = 10;
    await using lab = await createLab();
    const b = lab.start(lab.b, AFXDP);
    await b.event("starting");
    const before = await belongings(lab.a);
    // What lets a node notice soon that its peer has restarted, and loads its interface when it dies.
    const load = lab.spawn(lab.b, ["ping", "-q", "-i", "0.002", lab.a.inner4]);
    const upMs: number[] = [];
    let atWarm: Usage | undefined;
    for (const manner of MANNERS) {
      for (let kill = 0; kill <= kills; kill++) {
        const execAt = performance.now();
        const a = lab.start(lab.a, manner);
        await a.event("up");
        upMs.push(performance.now() - execAt);
        await lab.a.ok(["ping", "-q", "-c", "1", "-W", "5", lab.b.inner4]);
        if (kill < kills) {
          await a.crash();
          assert(!/prog\/xdp/.test(await lab.a.ok(["ip", "-d", "link"])), `a program stays: ${manner.join(" ")}`);
        } else {
          await a.stop();
        }
      }
      assert.equal(await belongings(lab.a), before, `something is left: ${manner.join(" ")}`);
      const now = await usage(b.process.pid);
      atWarm ??= now;
      progress(
        `${manner.join(" ")}: up after ${
          median(upMs.slice(-kills)).toFixed(0)
        } ms; the peer has ${now.files} descriptors, ` +
          `${now.residentKiB} KiB`,
      );
    }
    assert(load.running, "the load goes on");
    assert(atWarm !== undefined);
    const grown = grownSince(atWarm, await usage(b.process.pid));
    figure(`${kills * MANNERS.length} kill -9 of nodes over AF_XDP`, {
      medianMsUntilUp: Math.round(median(upMs)),
      leftOnHost: 0,
      peerGrewAfterFirstManner: grown,
    });
    assert.deepEqual([grown.workers, grown.files], [0, 0], "threads and descriptors of the peer");
    assert(grown.residentKiB < 16 * 1024, `the peer grew by ${grown.residentKiB} KiB`);
    await b.stop();
  },
);
