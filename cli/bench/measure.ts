/** Takes one measurement of a contender at work between two namespaces. */

import { fileURLToPath } from "node:url";
import type { NamespacePair, ProgramOutcome } from "../namespace_pair.ts";
import type { Side } from "../program_host.ts";
import { readKernelFiles } from "../shell.ts";
import type { Started } from "./contenders.ts";
import { type Measurement, PROBE_SECONDS, RATE_STEPS, type Step, TOLERABLE_LOSS } from "./plan.ts";
import {
  NoFigure,
  readBusySeconds,
  readKibibytes,
  readPing,
  readProcessSeconds,
  readTcp,
  readUdp,
  type UdpReading,
} from "./readings.ts";
import { findCleanRate } from "./statistics.ts";

const PORT = 5201;
const REQUEST_RESPONSE = fileURLToPath(new URL("./request_response.pl", import.meta.url));
/** What a program may take beyond the time it was told to run. */
const GRACE_MS = 20_000;
/** For how long the load is there before the first ping. */
const LOAD_FIRST_MS = 500;
/** How often iperf3 looks whether datagrams are due, in microseconds. */
const PACING_US = 250;
const PING_INTERVAL_SECONDS = 0.01;

/** Where and for how long to measure. */
export interface Bench {
  readonly pair: NamespacePair;
  readonly started: Started;
  /** Seconds of each measurement of a rate. */
  readonly seconds: number;
  /** The largest socket buffer that a program may ask for, in bytes. */
  readonly socketBytes: number;
  /** Seconds before that in which TCP finds its speed. */
  readonly warmUpSeconds: number;
}

/** What a step found. */
export interface Taken {
  /** Figures by the id of their metric. */
  readonly values: Readonly<Record<string, number>>;
  /** Why figures are missing, by the id of their metric. */
  readonly missing?: Readonly<Record<string, string>>;
  /** The command on side a, as it was run. */
  readonly command?: string;
}

/**
 * Takes a measurement.
 *
 * @throws {NoFigure} When it cannot be taken.
 */
export async function measure({ id, measurement }: Step, bench: Bench): Promise<Taken> {
  switch (measurement.kind) {
    case "tcp":
      return await measureTcp(id, measurement, bench);
    case "udp-flood": {
      const { reading, command } = await udp(bench, { payloadBytes: measurement.payloadBytes, seconds: bench.seconds });
      return { values: { [id]: reading.deliveredPps }, command };
    }
    case "udp-clean":
      return await measureCleanRate(id, measurement, bench);
    case "ping":
      return await measurePing(id, measurement, bench);
    case "request-response":
      return await measureRequestResponse(id, bench);
    case "memory":
      return await measureMemory(id, bench);
  }
}

/** Runs a server on side b for as long as `client` takes. */
async function withServer<T>(
  { pair }: Bench,
  server: readonly [program: string, ...args: readonly string[]],
  client: () => Promise<T>,
): Promise<T> {
  // What it says of its errors comes with the rest.
  const program = pair.start("b", "stdout", "/bin/sh", "-c", 'exec "$@" 2>&1', "sh", ...server);
  const lines = program.lines[Symbol.asyncIterator]();
  try {
    await listening(lines, server[0]);
    return await client();
  } finally {
    program.stop();
    while (!(await lines.next()).done);
    await program.ended;
  }
}

async function listening(lines: AsyncIterator<string>, program: string): Promise<void> {
  for (let said = "";;) {
    const { value, done } = await lines.next();
    if (done) throw new NoFigure(`the ${program} that was to listen ended${said === "" ? "" : `: ${said}`}`);
    if (/listening/i.test(value)) return;
    if (value.trim() !== "") said = value.trim();
  }
}

function iperfServer({ started }: Bench): readonly [string, ...string[]] {
  return ["iperf3", "--server", "--one-off", "--forceflush", "--bind", started.addresses.b, "--port", String(PORT)];
}

function tcpClient(
  { started, warmUpSeconds }: Bench,
  tcp: Extract<Measurement, { kind: "tcp" }>,
  seconds: number,
): readonly string[] {
  return [
    ...["iperf3", "--client", started.addresses.b, "--port", String(PORT), "--json"],
    ...["--time", String(seconds), "--omit", String(warmUpSeconds), "--parallel", String(tcp.flows)],
    ...["--set-mss", String(tcp.mssBytes), "--congestion", "cubic"],
    ...(tcp.direction === "down" ? ["--reverse"] : []),
  ];
}

async function attempt(pair: NamespacePair, side: Side, command: readonly string[], seconds: number): Promise<string> {
  const outcome = await pair.attempt(side, command, { timeoutMs: seconds * 1000 + GRACE_MS });
  if (outcome.timedOut) throw new NoFigure(`${command[0]} did not end ${GRACE_MS / 1000} s after it should have`);
  // iperf3 tells its errors in its JSON, and ping ends with 1 when an answer is missing: the readers judge these.
  if (outcome.code !== 0 && outcome.stdout.trim() === "") throw new NoFigure(failure(command, outcome));
  return outcome.stdout;
}

function failure(command: readonly string[], { code, stderr }: ProgramOutcome): string {
  const said = stderr.trim().split("\n").at(-1) ?? "";
  return `${command[0]} ended with ${code === null ? "a signal" : `exit code ${code}`}${
    said === "" ? "" : `: ${said}`
  }`;
}

async function measureTcp(
  id: string,
  tcp: Extract<Measurement, { kind: "tcp" }>,
  bench: Bench,
): Promise<Taken> {
  const command = tcpClient(bench, tcp, bench.seconds);
  return await withServer(bench, iperfServer(bench), async () => {
    const before = tcp.cpu ? await processorTime(bench) : undefined;
    const reading = readTcp(await attempt(bench.pair, "a", command, bench.seconds + bench.warmUpSeconds));
    const values: Record<string, number> = { [id]: reading.receivedBps };
    const missing: Record<string, string> = {};
    if (before !== undefined) {
      const after = await processorTime(bench);
      const gigabits = reading.totalBits / 1e9;
      values["cpu-machine"] = (after.machine - before.machine) / gigabits;
      if (bench.started.noProcess === undefined) values["cpu-nodes"] = (after.nodes - before.nodes) / gigabits;
      else missing["cpu-nodes"] = bench.started.noProcess;
    }
    return { values, missing, command: command.join(" ") };
  });
}

async function processorTime({ started }: Bench): Promise<{ readonly nodes: number; readonly machine: number }> {
  const [machine = "", ...nodes] = await ofKernel("/proc/stat", ...started.pids.map((pid) => `/proc/${pid}/stat`));
  return {
    nodes: nodes.reduce((sum, stat) => sum + readProcessSeconds(stat), 0),
    machine: readBusySeconds(machine),
  };
}

async function ofKernel(...paths: readonly string[]): Promise<readonly string[]> {
  const texts = await readKernelFiles(...paths);
  if (texts === undefined) throw new NoFigure("a node has ended meanwhile");
  return texts;
}

async function udp(
  bench: Bench,
  options: { readonly payloadBytes: number; readonly seconds: number; readonly rateBps?: number | undefined },
): Promise<{ readonly reading: UdpReading; readonly command: string }> {
  const { payloadBytes, seconds, rateBps } = options;
  const command = [
    ...["iperf3", "--client", bench.started.addresses.b, "--port", String(PORT), "--json", "--udp"],
    ...["--time", String(seconds), "--length", String(payloadBytes), "--bitrate", String(Math.round(rateBps ?? 0))],
    // What the defaults send at once fills what they receive into.
    ...["--pacing-timer", String(PACING_US), "--window", String(bench.socketBytes)],
  ];
  return await withServer(bench, iperfServer(bench), async () => ({
    reading: readUdp(await attempt(bench.pair, "a", command, seconds), payloadBytes),
    command: command.join(" "),
  }));
}

async function measureCleanRate(
  id: string,
  { payloadBytes, unit }: Extract<Measurement, { kind: "udp-clean" }>,
  bench: Bench,
): Promise<Taken> {
  let command = "";
  const clean = await findCleanRate(async (rateBps) => {
    const taken = await udp(bench, { payloadBytes, seconds: PROBE_SECONDS, rateBps });
    command = taken.command;
    return taken.reading;
  }, { tolerableLoss: TOLERABLE_LOSS, steps: RATE_STEPS });
  if (clean === undefined) {
    throw new NoFigure(`each of ${RATE_STEPS + 1} rates lost ${TOLERABLE_LOSS * 100} % or more`);
  }
  const figure = unit === "bit/s" ? clean.deliveredBps : clean.deliveredBps / (payloadBytes * 8);
  return { values: { [id]: figure }, command };
}

async function measurePing(
  id: string,
  { load }: { readonly load: "idle" | "loaded" },
  bench: Bench,
): Promise<Taken> {
  const { pair, started, seconds } = bench;
  const command = [
    ...["ping", "-n", "-i", String(PING_INTERVAL_SECONDS), "-c", String(Math.round(seconds / PING_INTERVAL_SECONDS))],
    ...["-W", "2", started.addresses.b],
  ];
  const pings = () => attempt(pair, "a", command, seconds);
  let text: string;
  if (load === "idle") {
    text = await pings();
  } else {
    // The load begins before the first ping and ends after the last.
    const tcp = { kind: "tcp", flows: 1, direction: "up", mssBytes: 1280, cpu: false } as const;
    const flow = tcpClient(bench, tcp, seconds + 1);
    text = await withServer(bench, iperfServer(bench), async () => {
      const loading = attempt(pair, "a", flow, seconds + 1 + bench.warmUpSeconds);
      loading.catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, LOAD_FIRST_MS));
      const answers = await pings();
      readTcp(await loading);
      return answers;
    });
  }
  const byPercentile = Object.entries(readPing(text)).map(([name, value]) => [`${id}-${name}`, value] as const);
  return { values: Object.fromEntries(byPercentile), command: command.join(" ") };
}

async function measureRequestResponse(id: string, bench: Bench): Promise<Taken> {
  const { pair, started, seconds } = bench;
  const where = [started.addresses.b, String(PORT)];
  const command = ["perl", REQUEST_RESPONSE, "call", ...where, String(seconds)];
  return await withServer(bench, ["perl", REQUEST_RESPONSE, "serve", ...where], async () => {
    const [count = NaN, took = NaN] = (await attempt(pair, "a", command, seconds)).split(" ").map(Number);
    if (!(count > 0)) throw new NoFigure("not one request was answered");
    return { values: { [id]: count / took }, command: `perl request_response.pl ${command.slice(2).join(" ")}` };
  });
}

async function measureMemory(id: string, { started }: Bench): Promise<Taken> {
  if (started.noProcess !== undefined) throw new NoFigure(started.noProcess);
  const peaks = (await ofKernel(...started.pids.map((pid) => `/proc/${pid}/status`))).map((status) => {
    const peak = readKibibytes(status, "VmHWM");
    if (peak === undefined) throw new NoFigure("a node has ended meanwhile");
    return peak;
  });
  return { values: { [id]: Math.max(...peaks) } };
}
