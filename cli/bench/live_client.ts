/** Measures a tunnel that is up, against `icx bench --listen` at its other end, with nothing else installed. */

import dgram from "node:dgram";
import { once } from "node:events";
import net from "node:net";
import { orAborted } from "../stoppable.ts";
import { type Endpoint, formatEndpoint } from "../values.ts";
import { VERSION } from "../version.ts";
import { type Ask, askFor, line, type Opened, readLine, type Received, TOKEN_BYTES } from "./live_protocol.ts";
import { begun, stream } from "./live_server.ts";
import { describeHost } from "./machine.ts";
import { PERCENTILES, PROBE_SECONDS, TOLERABLE_LOSS } from "./plan.ts";
import type { Progress } from "./progress.ts";
import { figure, type Metric, type Report, type Result, SCHEMA } from "./report.ts";
import { findCleanRate, percentile, type Probe, summarise } from "./statistics.ts";

const CONNECT_MS = 5000;
/** How long nothing may move on a connection. */
const SILENCE_MS = 15_000;
const ROUND_TRIP_EVERY_MS = 10;
const DATAGRAM_BYTES = 1200;
/** Datagrams that are handed over before the sender waits for the system to have taken them. */
const BURST = 32;
/** How many rates the search for a clean one tries. */
const RATE_STEPS = 4;

/** Options of {@linkcode measureLive}. */
export interface LiveSettings {
  readonly seconds: number;
  readonly rounds: number;
  /** Leave out what takes long. */
  readonly quick: boolean;
  /** The command line, for the report. */
  readonly arguments: readonly string[];
  readonly signal: AbortSignal;
  readonly progress: Progress;
}

interface LiveStep {
  readonly title: string;
  readonly metrics: readonly Metric[];
  /** Whether a quick run leaves it out. @default false */
  readonly long?: boolean;
  /** Takes the figures, in the order of the metrics. */
  take(end: Endpoint, seconds: number): Promise<readonly number[]>;
}

function roundTripMetrics(id: string, title: string, how: string): readonly Metric[] {
  return Object.keys(PERCENTILES).map((part): Metric => ({
    id: `${id}-${part}`,
    group: "latency",
    title: `${title}, ${part}`,
    how,
    unit: "s",
    better: "lower",
    chart: { title, part },
  }));
}

const ECHO = "A byte there and back over a TCP connection every 10 ms, the time of both programs included";

const STEPS: readonly LiveStep[] = [
  {
    title: "round trips, idle",
    metrics: roundTripMetrics("rtt-idle", "Round trip, idle", `${ECHO}.`),
    take: async (end, seconds) => percentiles(await roundTrips(end, seconds * 1000)),
  },
  {
    title: "requests and responses",
    metrics: [{
      id: "request-response",
      group: "latency",
      title: "TCP requests and responses",
      how: "One byte there and one back over one connection, as often as it goes, the time of both programs included.",
      unit: "1/s",
      better: "higher",
    }],
    take: async (end, seconds) => {
      const { length } = await roundTrips(end, seconds * 1000, { everyMs: 0 });
      return [length / seconds];
    },
  },
  {
    title: "TCP from here",
    metrics: [streamMetric("tcp-1-up", "TCP, 1 flow, to the other end")],
    take: async (end, seconds) => [rateOf(await upload(end, seconds * 1000))],
  },
  {
    title: "TCP to here",
    metrics: [streamMetric("tcp-1-down", "TCP, 1 flow, from the other end")],
    take: async (end, seconds) => [rateOf(await download(end, seconds * 1000))],
  },
  {
    title: "datagrams as fast as they go",
    metrics: [{
      id: "udp-1200-flood",
      group: "datagrams",
      title: `UDP, ${DATAGRAM_BYTES} B, packets delivered to the other end`,
      how: "As fast as this program can send, which may be less than the tunnel carries; what arrived counts.",
      unit: "1/s",
      better: "higher",
    }],
    take: async (end, seconds) => {
      const { deliveredBps } = await datagrams(end, { forMs: seconds * 1000, rateBps: undefined });
      return [deliveredBps / (DATAGRAM_BYTES * 8)];
    },
  },
  {
    title: "datagrams without loss",
    long: true,
    metrics: [{
      id: "udp-1200-clean",
      group: "datagrams",
      title: `UDP, ${DATAGRAM_BYTES} B, clean rate, to the other end`,
      how: `The highest rate that the two programs keep up with at less than ${
        TOLERABLE_LOSS * 100
      } % loss, found by halving.`,
      unit: "bit/s",
      better: "higher",
    }],
    take: async (end) => {
      const clean = await findCleanRate((rateBps) => datagrams(end, { forMs: PROBE_SECONDS * 1000, rateBps }), {
        tolerableLoss: TOLERABLE_LOSS,
        steps: RATE_STEPS,
      });
      if (clean === undefined) {
        throw new Error(`each of ${RATE_STEPS + 1} rates lost ${TOLERABLE_LOSS * 100} % or more`);
      }
      return [clean.deliveredBps];
    },
  },
  {
    title: "round trips under load",
    metrics: roundTripMetrics(
      "rtt-loaded",
      "Round trip under load",
      `${ECHO}, with one TCP flow beside it in the same programs.`,
    ),
    take: async (end, seconds) => {
      const loading = upload(end, seconds * 1000 + 500);
      loading.catch(() => {});
      await pause(250);
      const figures = percentiles(await roundTrips(end, seconds * 1000));
      await loading;
      return figures;
    },
  },
];

function streamMetric(id: string, title: string): Metric {
  const how = "Zeros as fast as they go; what the receiver got, from its first byte to its last.";
  return { id, group: "throughput", title, how, unit: "bit/s", better: "higher" };
}

const NETWORK = "live";
const TUNNEL = "icx";

/**
 * Measures what lies between here and `end`.
 *
 * @throws When nobody listens there, or the signal aborts.
 */
export async function measureLive(end: Endpoint, settings: LiveSettings): Promise<Report> {
  const { seconds, rounds, quick, signal, progress } = settings;
  const steps = STEPS.filter(({ long = false }) => !(quick && long));
  const startedAt = new Date();
  const machine = { ...describeHost(), tools: { deno: Deno.version.deno } };
  await orAborted(checkReachable(end), signal);
  progress.begin({ steps: rounds * steps.length, seconds: rounds * (seconds * 6 + (quick ? 1 : 8)) });
  const found = new Map<string, { values: (number | null)[]; missing?: string }>();
  for (let round = 0; round < rounds; round++) {
    for (const step of steps) {
      progress.step(rounds > 1 ? `round ${round + 1} of ${rounds}, ${step.title}` : step.title);
      let figures: readonly number[] = [];
      let missing: string | undefined;
      try {
        figures = await orAborted(step.take(end, seconds), signal);
        progress.done(step.metrics.map(({ unit }, index) => figure(figures[index] ?? NaN, unit)).join(", "));
      } catch (error) {
        signal.throwIfAborted();
        missing = error instanceof Error ? error.message : String(error);
        progress.done(`no figure: ${missing}`);
      }
      for (const [index, { id }] of step.metrics.entries()) {
        const cell = found.get(id) ?? { values: [] };
        cell.values[round] = figures[index] ?? null;
        if (missing !== undefined) cell.missing = missing;
        found.set(id, cell);
      }
    }
  }
  const results = [...found].map(([metric, cell]): Result => {
    const summary = summarise(cell.values.filter((value) => value !== null));
    return { network: NETWORK, contender: TUNNEL, metric, ...cell, ...(summary === undefined ? {} : { summary }) };
  });
  return {
    schema: SCHEMA,
    kind: "live",
    icx: VERSION,
    startedAt: startedAt.toISOString(),
    elapsedSeconds: (Date.now() - startedAt.getTime()) / 1000,
    machine,
    settings: { rounds, seconds, arguments: settings.arguments },
    networks: [{ id: NETWORK, about: `To ${formatEndpoint(end)} and back, through whatever lies between.` }],
    contenders: [{
      id: TUNNEL,
      title: "this path",
      commands: [`icx bench --listen ${formatEndpoint(end)}  # at the other end`],
    }],
    metrics: steps.flatMap(({ metrics }) => metrics),
    results,
  };
}

async function checkReachable(end: Endpoint): Promise<void> {
  try {
    const trips = await roundTrips(end, 0);
    if (trips.length === 0) throw new Error("it did not answer");
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(
      `cannot measure to ${formatEndpoint(end)}: ${reason}: at the other end run icx bench --listen ${
        formatEndpoint(end)
      }, and name an address that leads through the tunnel`,
      { cause },
    );
  }
}

function rateOf({ bytes, elapsedMs }: Received): number {
  return elapsedMs === 0 ? 0 : bytes * 8000 / elapsedMs;
}

function percentiles(secondsEach: readonly number[]): readonly number[] {
  return Object.values(PERCENTILES).map((share) => percentile(secondsEach, share));
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Opens a connection, asks, and gives it to `body`; it is gone afterwards. */
async function calling<T>(end: Endpoint, ask: Ask, body: (socket: net.Socket) => Promise<T>): Promise<T> {
  const socket = net.connect({ host: end.host, port: end.port, allowHalfOpen: true });
  const failed = new Promise<never>((_, reject) => socket.on("error", reject));
  failed.catch(() => {});
  const timer = setTimeout(
    () => socket.destroy(new Error(`no connection within ${CONNECT_MS / 1000} s`)),
    CONNECT_MS,
  );
  try {
    await Promise.race([once(socket, "connect"), failed]);
    clearTimeout(timer);
    socket.setNoDelay();
    socket.setTimeout(SILENCE_MS, () => socket.destroy(new Error("the other end has fallen silent")));
    socket.write(line(ask));
    return await Promise.race([body(socket), failed]);
  } finally {
    clearTimeout(timer);
    socket.destroy();
  }
}

/** Reads the answer that ends what was asked for. */
async function answerOf<T>(socket: net.Socket): Promise<T> {
  const answer = JSON.parse(await readLine(socket)) as T & { readonly error?: string };
  if (answer.error !== undefined) throw new Error(`the other end refused: ${answer.error}`);
  return answer;
}

async function upload(end: Endpoint, forMs: number): Promise<Received> {
  return await calling(end, askFor("receive"), async (socket) => {
    const answer = answerOf<Received>(socket);
    await Promise.race([stream(socket, forMs), answer]);
    return await answer;
  });
}

async function download(end: Endpoint, forMs: number): Promise<Received> {
  return await calling(end, askFor("send", forMs), async (socket) => {
    let [bytes, startedAt, endedAt] = [0, 0, 0];
    socket.on("data", (chunk: Uint8Array) => {
      endedAt = performance.now();
      if (bytes === 0) startedAt = endedAt;
      bytes += chunk.length;
    });
    await once(socket, "end");
    return { bytes, datagrams: 0, elapsedMs: endedAt - startedAt };
  });
}

/** Round trips of a byte, in seconds each: at least one, and as many as there is time for. */
async function roundTrips(
  end: Endpoint,
  forMs: number,
  { everyMs = ROUND_TRIP_EVERY_MS }: { readonly everyMs?: number } = {},
): Promise<readonly number[]> {
  return await calling(end, askFor("echo"), async (socket) => {
    const taken: number[] = [];
    const byte = new Uint8Array(1);
    const until = performance.now() + forMs;
    do {
      const sentAt = performance.now();
      socket.write(byte);
      await once(socket, "data");
      const took = performance.now() - sentAt;
      taken.push(took / 1000);
      if (everyMs > took) await pause(everyMs - took);
    } while (performance.now() < until);
    return taken;
  });
}

/** Sends datagrams, at a rate or as fast as it goes, and asks what arrived. */
async function datagrams(
  end: Endpoint,
  { forMs, rateBps }: { readonly forMs: number; readonly rateBps: number | undefined },
): Promise<Probe> {
  return await calling(end, askFor("datagrams"), async (socket) => {
    const { token } = await answerOf<Opened>(socket);
    const udp = dgram.createSocket(end.host.includes(":") ? "udp6" : "udp4");
    // What cannot be sent is told to the sender of it; what cannot be had at all, here.
    const failed = once(udp, "error").then(([error]) => Promise.reject(error));
    failed.catch(() => {});
    try {
      await Promise.race([begun(udp, () => udp.bind(0)), failed]);
      const datagram = new Uint8Array(DATAGRAM_BYTES);
      datagram.set(Uint8Array.fromHex(token).subarray(0, TOKEN_BYTES));
      const send = () =>
        new Promise<void>((resolve, reject) =>
          udp.send(datagram, end.port, end.host, (error) => error === null ? resolve() : reject(error))
        );
      const startedAt = performance.now();
      let sent = 0;
      for (let elapsed = 0; elapsed < forMs; elapsed = performance.now() - startedAt) {
        const due = rateBps === undefined ? sent + BURST : Math.floor(elapsed * rateBps / 8000 / DATAGRAM_BYTES);
        if (due <= sent) {
          await pause(1);
          continue;
        }
        const burst = Math.min(BURST, due - sent);
        await Promise.all(Array.from({ length: burst }, send));
        sent += burst;
      }
      const tookMs = performance.now() - startedAt;
      socket.end();
      const received = await answerOf<Received>(socket);
      return {
        offeredBps: sent * DATAGRAM_BYTES * 8000 / tookMs,
        deliveredBps: rateOf(received),
        loss: sent === 0 ? 1 : Math.max(0, 1 - received.datagrams / sent),
      };
    } finally {
      udp.close();
    }
  });
}
