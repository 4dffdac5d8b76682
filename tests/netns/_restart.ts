/** Traffic that goes on through a node's restart, and how long it was away. */
import assert from "node:assert/strict";
import process from "node:process";
import { type DatapathName, type Host, Lab, type Node, privilegedOver, type Running } from "./_lab.ts";

/** What is promised is 2 s; other processes compete for the processors of a test machine. */
export const BACK_WITHIN_MS = 10_000;

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Echo requests 20 times a second; the replies say when they came. */
export class Pinging {
  readonly #process: Running;

  private constructor(process: Running) {
    this.#process = process;
  }

  /** Starts, and waits for the first replies. */
  static async start(lab: Lab, from: Host): Promise<Pinging> {
    const ping = lab.spawn(from, ["ping", "-D", "-n", "-i", "0.05", lab.other(from).inner4]);
    const pinging = new Pinging(ping);
    await pinging.answerAfter(0, 10_000);
    return pinging;
  }

  /** When the first reply after `since` came, both in milliseconds of the wall clock. */
  answerAfter(since: number, timeoutMs: number): Promise<number> {
    return this.#process.until(`a reply after ${since}`, timeoutMs, () => this.#replies().find((at) => at > since));
  }

  async stop(): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.ended;
  }

  #replies(): number[] {
    return [...this.#process.stdout.matchAll(/^\[(\d+\.\d+)\] .*icmp_seq=/gm)].map((match) => Number(match[1]) * 1000);
  }
}

/** A TCP transfer from `from` to the other host, at a rate that leaves the machine room for everything else. */
export class Transfer {
  readonly #sender: Running;

  private constructor(sender: Running) {
    this.#sender = sender;
  }

  static async start(lab: Lab, from: Host, seconds: number): Promise<Transfer> {
    const to = lab.other(from);
    const server = lab.spawn(to, ["iperf3", "--forceflush", "-s", "-1", "-B", to.inner4]);
    await server.until("iperf3 listens", 10_000, () => /listening/i.test(server.stdout) || undefined);
    const sender = lab.spawn(from, [
      ...["iperf3", "--forceflush", "-c", to.inner4, "-b", "50M", "-t", String(seconds), "-i", "0.2"],
    ]);
    await sender.until("the transfer moves", 10_000, () => / sec /.test(sender.stdout) || undefined);
    return new Transfer(sender);
  }

  /** Expects that the same connection carried on to its end. */
  async finished(timeoutMs: number): Promise<void> {
    await this.#sender.until("the end of the transfer", timeoutMs, () => this.#sender.running ? undefined : true)
      .catch((error) => {
        if (this.#sender.running) throw error;
      });
    const { code, stdout, stderr } = await this.#sender.ended;
    assert.equal(code, 0, `${stdout.slice(-2000)}\n${stderr}`);
  }
}

/** Which of the two nodes has the role. */
export async function byRole(role: "initiator" | "responder", [a, b]: readonly [Node, Node]): Promise<[Node, Node]> {
  return (await a.event("starting"))["role"] === role ? [a, b] : [b, a];
}

/** What a restart took, in milliseconds. */
export interface Recovery {
  /** From the start of the new process to the first reply. */
  readonly fromExecMs: number;
  /** From the new node's readiness to talk to its peer to the first reply. */
  readonly fromStartingMs: number;
}

/** Ends `victim` by `how`, starts it again at once, and waits for the first reply to `pinging`. */
export async function restart(
  lab: Lab,
  options: { victim: Node; how: "SIGTERM" | "SIGKILL"; pinging: Pinging; extra?: readonly string[] },
): Promise<[Node, Recovery]> {
  const { victim, how, pinging, extra = [] } = options;
  victim.process.kill(how);
  await victim.process.ended;
  const execAt = Date.now();
  const again = lab.start(victim.host, extra);
  const startingAt = Date.parse(String((await again.event("starting"))["timestamp"]));
  const answeredAt = await pinging.answerAfter(execAt, 30_000);
  return [again, { fromExecMs: answeredAt - execAt, fromStartingMs: answeredAt - startingAt }];
}

/**
 * The responder ends under load by `how` and starts again `seconds` later: the initiator has been dialling in vain, and must not
 * be found in a pause between two packets.
 */
export async function returnAfter(seconds: number, how: "SIGTERM" | "SIGKILL"): Promise<Recovery> {
  await using lab = await Lab.create();
  const [responder, initiator] = await byRole("responder", await lab.tunnel());
  const pinging = await Pinging.start(lab, initiator.host);
  responder.process.kill(how);
  await responder.process.ended;
  await pause(seconds * 1000);
  // What does not say goodbye is missed when the session's idle timeout has passed.
  await initiator.event("session-lost", 60_000);
  const execAt = Date.now();
  const again = lab.start(responder.host);
  const startingAt = Date.parse(String((await again.event("starting"))["timestamp"]));
  const answeredAt = await pinging.answerAfter(execAt, 30_000);
  const refused = again.events().filter(({ event }) => event === "rejected");
  assert.deepEqual(refused, [], "handshakes that the initiator gave up are nothing to tell of");
  await pinging.stop();
  await again.stop();
  await initiator.stop();
  return { fromExecMs: answeredAt - execAt, fromStartingMs: answeredAt - startingAt };
}

/** Each side in turn is suspended for so long under load and a rekey every second; both go on with the same processes. */
export async function suspendEach(seconds: number, options: { readonly sessionsSurvive: boolean }): Promise<void> {
  await using lab = await Lab.create();
  const nodes = await lab.tunnel(["--rekey-interval", "1s", "--log-level", "debug"]);
  for (const role of ["initiator", "responder"] as const) {
    const [victim, survivor] = await byRole(role, nodes);
    const pinging = await Pinging.start(lab, survivor.host);
    const transfer = await Transfer.start(lab, survivor.host, 2);
    victim.process.kill("SIGSTOP");
    await pause(seconds * 1000);
    const from = survivor.events().length;
    victim.process.kill("SIGCONT");
    const continuedAt = Date.now();
    const tookMs = await pinging.answerAfter(continuedAt, 30_000) - continuedAt;
    report(`traffic back ${tookMs.toFixed(0)} ms after ${seconds} s of SIGSTOP of the ${role}`);
    assert(tookMs < BACK_WITHIN_MS, `back after ${tookMs} ms`);
    await survivor.event("keys", 15_000, from);
    await transfer.finished(2 * seconds * 1000 + 30_000);
    await pinging.stop();
  }
  if (options.sessionsSurvive) {
    for (const node of nodes) {
      assert(!node.events().some((event) => event["event"] === "session-lost"), "no session was lost");
    }
  }
  for (const node of nodes) await node.stop();
}

/** A line of figures among the output of the tests. */
export function report(line: string): void {
  process.stderr.write(`    ${line}\n`);
}

/** The middle one. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? NaN;
}

/** Registers a test of each role over each of these datapaths: a node that ends by `how` under load, and starts again. */
export function restartTests(how: "SIGTERM" | "SIGKILL", datapaths: readonly DatapathName[]): void {
  for (const which of ["initiator", "responder"] as const) {
    privilegedOver(
      datapaths,
      `${how} and restart of the ${which} under load: traffic is back, and a transfer carries on`,
      async () => {
        await using lab = await Lab.create();
        const [victim, survivor] = await byRole(which, await lab.tunnel());
        const pinging = await Pinging.start(lab, survivor.host);
        const transfer = await Transfer.start(lab, survivor.host, 2);
        const [again, { fromExecMs, fromStartingMs }] = await restart(lab, { victim, how, pinging });
        report(
          `traffic back ${fromExecMs.toFixed(0)} ms after exec, ${fromStartingMs.toFixed(0)} ms after "starting"`,
        );
        assert(fromExecMs < BACK_WITHIN_MS, `back after ${fromExecMs} ms`);
        await transfer.finished(30_000);
        await pinging.stop();
        await again.stop();
        await survivor.stop();
      },
    );
  }
}

/** Registers the test over each of these datapaths: nodes that are suspended for less than a session lives. */
export function suspendTests(datapaths: readonly DatapathName[]): void {
  privilegedOver(
    datapaths,
    "SIGSTOP for 5 s and SIGCONT, of either side, under load and rekeying: the session survives",
    async () => {
      await suspendEach(5, { sessionsSurvive: true });
    },
  );
}
