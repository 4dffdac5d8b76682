/** What takes longer than a test run should: long transfers under constant rekeying, and many starts and ends. */
import assert from "node:assert/strict";
import { drops, Lab, privileged } from "../netns/_lab.ts";

const FLOWS = 8;
const BYTES_PER_FLOW = 1 << 30;

privileged(
  `${FLOWS} GiB through ${FLOWS} TCP flows with a rekey every second: checksums equal, no key refused`,
  async () => {
    await using lab = await Lab.create();
    const [a, b] = await lab.tunnel(["--rekey-interval", "1s", "--log-level", "debug"]);
    const ports = Array.from({ length: FLOWS }, (_, flow) => 5100 + flow);
    const sum = /\b[0-9a-f]{64}\b/;
    await Promise.all(ports.map(async (port) => {
      const sink = lab.spawn(lab.b, [
        ...["bash", "-euo", "pipefail", "-c"],
        `socat -u TCP4-LISTEN:${port},bind=${lab.b.inner4} STDOUT | sha256sum`,
      ]);
      const source = await lab.a.shell(
        `head -c ${BYTES_PER_FLOW} /dev/zero | openssl enc -aes-128-ctr -K ${"5a".repeat(16)} -iv ${
          String(port).padStart(32, "0")
        } | tee >(sha256sum >&2) | socat -u STDIN TCP4:${lab.b.inner4}:${port},retry=50,interval=0.1`,
        900_000,
      );
      assert.equal(source.code, 0, source.stderr);
      const received = await sink.ended;
      assert.match(source.stderr, sum);
      assert.equal(received.stdout.match(sum)?.[0], source.stderr.match(sum)?.[0]);
    }));
    const [atA, atB] = [await a.counters(), await b.counters()];
    assert.deepEqual([drops(atA), drops(atB)], [{}, {}]);
    assert(a.events().filter((event) => event["event"] === "keys").length >= 10);
    await a.stop();
    await b.stop();
  },
);

privileged(
  "20 ends of one node, by SIGINT and SIGKILL in turn: each start works, and nothing is left behind",
  async () => {
    await using lab = await Lab.create();
    const b = lab.start(lab.b);
    for (let round = 0; round < 20; round++) {
      const a = lab.start(lab.a);
      await a.event("up");
      await lab.a.ok(["ping", "-c", "1", "-W", "5", lab.b.inner4]);
      if (round % 2 === 0) await a.stop();
      else await a.crash();
      const links = await lab.a.ok(["ip", "-o", "link"]);
      assert(!links.includes("icx0"), `a device is left after round ${round}:\n${links}`);
      const sockets = await lab.a.ok(["ss", "-Hlun"]);
      assert(!/:608[12]\b/.test(sockets), `a socket is left after round ${round}:\n${sockets}`);
    }
    await b.stop();
  },
);

privileged("one node lives through 100 sessions of its peer without growing", async () => {
  await using lab = await Lab.create();
  const b = lab.start(lab.b);
  const pids = async () => (await lab.b.ok(["ip", "netns", "pids", lab.b.ns])).trim().split("\n");
  const measure = async (): Promise<{ threads: number; files: number; residentKiB: number }> => {
    const pid = (await pids())[0];
    const status = await lab.b.ok(["cat", `/proc/${pid}/status`]);
    const files = (await lab.b.ok(["ls", `/proc/${pid}/fd`])).trim().split("\n").length;
    const field = (name: string) => Number(status.match(new RegExp(`^${name}:\\s+(\\d+)`, "m"))?.[1]);
    return { threads: field("Threads"), files, residentKiB: field("VmRSS") };
  };
  // Traffic is what lets a node notice soon that its peer has restarted.
  lab.spawn(lab.b, ["ping", "-q", "-i", "0.1", lab.a.inner4]);
  let warm: Awaited<ReturnType<typeof measure>> | undefined;
  for (let round = 0; round < 100; round++) {
    const a = lab.start(lab.a);
    await a.event("up");
    await a.crash();
    if (round === 20) warm = await measure();
  }
  const last = await measure();
  assert(warm);
  assert(last.threads <= warm.threads + 1, JSON.stringify({ warm, last }));
  assert(last.files <= warm.files + 1, JSON.stringify({ warm, last }));
  assert(last.residentKiB <= warm.residentKiB + 16 * 1024, JSON.stringify({ warm, last }));
  await b.stop();
});
