/** What takes longer than a test run should: long transfers under constant rekeying, many starts and ends, long absences. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { DENO, drops, Lab, privileged } from "../netns/_lab.ts";
import { grownSince, type Usage, usage } from "../netns/_process.ts";
import { BACK_WITHIN_MS, median, returnAfter, suspendEach } from "../netns/_restart.ts";
import { transfer } from "../netns/_transfer.ts";
import { belongings } from "./_belongings.ts";
import { figure, progress } from "./_report.ts";

const MIB = 1 << 20;
const CYCLES = fileURLToPath(new URL("./_cycles.ts", import.meta.url));
const ROOT = fileURLToPath(new URL("../..", import.meta.url));

privileged("2 GiB through 8 TCP flows with a rekey every second: checksums equal, no key refused", async () => {
  await using lab = await Lab.create();
  const [a, b] = await lab.tunnel(["--rekey-interval", "1s", "--log-level", "debug"]);
  const startedAt = performance.now();
  await Promise.all(Array.from({ length: 8 }, (_, flow) =>
    transfer(lab, {
      from: lab.a,
      to: lab.b,
      address: lab.b.inner4,
      bytes: 256 * MIB,
      port: 5100 + flow,
      timeoutMs: 900_000,
    })));
  const seconds = (performance.now() - startedAt) / 1000;
  const [atA, atB] = [await a.counters(), await b.counters()];
  assert.deepEqual([drops(atA), drops(atB)], [{}, {}]);
  const keys = a.events().filter((event) => event["event"] === "keys").length;
  assert(keys > seconds / 2, `${keys} rekeys in ${seconds} s`);
  figure("2 GiB, 8 flows", { seconds: Math.round(seconds), mbitPerSecond: Math.round(2 * 8589.9 / seconds), keys });
  await a.stop();
  await b.stop();
});

privileged(
  "200 starts and stops and 50 kill -9 of one node: nothing is left on its host, and its peer does not grow",
  async () => {
    const [stops, kills] = [200, 50];
    const rounds = stops + kills;
    const warm = 25;
    await using lab = await Lab.create();
    const b = lab.start(lab.b);
    await b.event("starting");
    // Traffic is what lets a node notice soon that its peer has restarted.
    lab.spawn(lab.b, ["ping", "-q", "-i", "0.1", lab.a.inner4]);
    const before = await belongings(lab.a);
    let atWarm: Usage | undefined;
    const startingMs: number[] = [];
    const upMs: number[] = [];
    const stopMs: number[] = [];
    for (let round = 1; round <= rounds; round++) {
      const execAt = performance.now();
      const a = lab.start(lab.a);
      await a.event("starting");
      startingMs.push(performance.now() - execAt);
      await a.event("up");
      upMs.push(performance.now() - execAt);
      if (round % (rounds / kills) === 0) {
        await a.crash();
      } else {
        const stopAt = performance.now();
        await a.stop();
        stopMs.push(performance.now() - stopAt);
      }
      assert.equal(await belongings(lab.a), before, `something is left after round ${round}`);
      if (round === warm) atWarm = await usage(b.process.pid);
      if (round % 25 === 0) {
        const last = (times: readonly number[]) => median(times.slice(-25)).toFixed(0);
        const { threads, workers, files, residentKiB } = await usage(b.process.pid);
        progress(
          `${round} of ${rounds}: medians of the last 25: ready after ${last(startingMs)} ms, up after ${
            last(upMs)
          } ms, ` +
            `stop takes ${
              last(stopMs)
            } ms; the peer has ${threads} threads, ${workers} of the library, ${files} descriptors, ${residentKiB} KiB`,
        );
      }
    }
    assert(atWarm !== undefined);
    const grown = grownSince(atWarm, await usage(b.process.pid));
    figure(`${stops} starts and stops, ${kills} kill -9`, {
      medianMs: {
        ready: Math.round(median(startingMs)),
        up: Math.round(median(upMs)),
        stop: Math.round(median(stopMs)),
      },
      leftOnHost: 0,
      peerGrewAfterRound25: grown,
    });
    assert.deepEqual([grown.workers, grown.files], [0, 0], "threads and descriptors of the peer");
    assert(grown.residentKiB < 16 * 1024, `the peer grew by ${grown.residentKiB} KiB`);
    await b.stop();
  },
);

privileged("a process that embeds the library opens, runs and closes 200 nodes without growing", async () => {
  const [rounds, looks] = [200, [0, 50, 100, 150, 200]];
  await using lab = await Lab.create();
  const b = lab.start(lab.b);
  const before = await belongings(lab.a);
  const config = {
    identityKeyFile: lab.a.keyFile,
    device: { addresses: [`${lab.a.inner4}/24`] },
    peers: [{
      host: lab.b.underlay,
      publicKey: lab.b.publicKey,
      allowedRoutes: [{ src: "10.9.0.0/24", dst: "10.9.0.0/24" }],
    }],
  };
  lab.spawn(lab.b, ["ping", "-q", "-i", "0.1", lab.a.inner4]);
  const embedding = lab.a.start([
    ...[DENO, "run", "--no-prompt", "--cached-only", `--config=${ROOT}deno.json`, "--v8-flags=--expose-gc"],
    ...[`--allow-ffi=${ROOT}native/lib/libicx.so`, CYCLES],
    ...[JSON.stringify(config), String(rounds), JSON.stringify(looks)],
  ], { stdin: "piped" });
  const seen: { usage: Usage; handles: number }[] = [];
  const lines = () =>
    embedding.stdout.split("\n").slice(0, -1).map((line) => JSON.parse(line) as Record<string, number>);
  try {
    for (const look of looks) {
      const line = await embedding.until(`round ${look}`, 600_000, () => lines().find(({ round }) => round === look));
      const handles = line["handles"] ?? NaN;
      const now = await usage(embedding.pid);
      seen.push({ usage: now, handles });
      const { threads, workers, files, residentKiB, dataKiB } = now;
      progress(
        `after ${look} nodes: ${threads} threads, ${workers} of the library, ${files} descriptors, ${handles} handles, ${residentKiB} KiB resident, ` +
          `${dataKiB} KiB data`,
      );
      if (look > 0) assert.equal(await belongings(lab.a), before, `something is left after round ${look}`);
      await embedding.write("");
    }
    const { code, stderr } = await embedding.ended;
    assert.equal(code, 0, stderr);
  } finally {
    embedding.kill("SIGKILL");
    await embedding.ended;
  }
  const times = lines().slice(1).map((line) => line["upMs"] ?? NaN);
  const [fresh, warm, last] = [seen[0], seen[1], seen.at(-1)];
  assert(fresh !== undefined && warm !== undefined && last !== undefined);
  const grown = grownSince(warm.usage, last.usage);
  figure("200 nodes in one process", {
    medianMsUntilUp: { first50: median(times.slice(0, 50)), last50: median(times.slice(-50)) },
    grewAfterRound50: { ...grown, handles: last.handles - warm.handles },
  });
  assert.equal(last.handles, fresh.handles, "handles");
  assert.deepEqual([grown.workers, grown.files], [0, 0], "threads and descriptors");
  assert(grown.residentKiB < 16 * 1024, `it grew by ${grown.residentKiB} KiB`);
  await b.stop();
});

privileged(
  "SIGSTOP for 40 s and SIGCONT, of either side, under load and rekeying: the same processes carry on",
  async () => {
    await suspendEach(40, { sessionsSurvive: false });
  },
);

privileged("the responder comes back after 60 s, at any moment between two tries of the initiator", async () => {
  const times: number[] = [];
  for (const seconds of [60, 61.1, 62.7]) {
    const { fromExecMs, fromStartingMs } = await returnAfter(seconds, "SIGKILL");
    assert(fromExecMs < BACK_WITHIN_MS, `back after ${fromExecMs} ms`);
    times.push(fromExecMs);
    progress(
      `after ${seconds} s: ${fromExecMs.toFixed(0)} ms after exec, ${fromStartingMs.toFixed(0)} ms after "starting"`,
    );
  }
  figure("back after an outage of 60 s, milliseconds from exec", times.map(Math.round));
});
