/** `icx ping`: echo requests through a tunnel, without a device or rights. */

import { delay, systemClock } from "../datapath/clock.ts";
import type { Netstack } from "../datapath/netstack_device.ts";
import { EXIT, type ExitCode } from "./exit.ts";
import { type PingArguments, withoutDevice, withoutServices } from "./options.ts";
import { out } from "./terminal.ts";
import { runTunnel } from "./tunnel.ts";
import { formatEndpoint } from "./values.ts";

/** What came of the requests. */
interface Tally {
  sent: number;
  readonly rtts: number[];
}

/** Sends the requests; resolves with the exit code. */
export async function ping(args: PingArguments): Promise<ExitCode> {
  // What the tunnel says about itself is beside the point until it goes wrong.
  const logLevel = args.logLevel === "info" ? "warning" : args.logLevel;
  const quiet = { ...withoutDevice, ...withoutServices, ...args, logLevel };
  return await runTunnel(quiet, async ({ node, forwarding, signal }) => {
    const { stack } = node;
    if (stack === undefined) throw new Error("A node of the netstack datapath has no stack");
    const ended = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
    await Promise.race([forwarding, ended]);
    if (!signal.aborted) {
      out(`PING ${args.destination} through ${formatEndpoint(args.peer)}: ${args.payloadBytes} bytes of payload\n`);
    }
    const tally: Tally = { sent: 0, rtts: [] };
    while (!signal.aborted && tally.sent < (args.count ?? Infinity)) {
      await once(stack, { args, tally, signal });
      if (tally.sent < (args.count ?? Infinity)) {
        await delay(args.intervalMs, { clock: systemClock, signal }).catch(() => {});
      }
    }
    out(summary(args.destination, tally));
    return tally.rtts.length > 0 ? EXIT.ok : EXIT.failure;
  });
}

async function once(
  stack: Netstack,
  options: { readonly args: PingArguments; readonly tally: Tally; readonly signal: AbortSignal },
): Promise<void> {
  const { args: { destination, payloadBytes, timeoutMs }, tally, signal } = options;
  tally.sent++;
  const sequence = tally.sent;
  try {
    const { rttMs } = await stack.ping(destination, { payloadBytes, timeoutMs, signal });
    tally.rtts.push(rttMs);
    out(`${payloadBytes} bytes from ${destination}: seq=${sequence} time=${rttMs.toFixed(2)} ms\n`);
  } catch (error) {
    if (signal.aborted) {
      // It was not waited for.
      tally.sent--;
      return;
    }
    if (!(error instanceof Deno.errors.TimedOut)) throw error;
    out(`no answer from ${destination}: seq=${sequence}\n`);
  }
}

function summary(destination: string, { sent, rtts }: Tally): string {
  const lost = sent === 0 ? 0 : Math.round(100 * (sent - rtts.length) / sent);
  const counts = `${sent} sent, ${rtts.length} answered, ${lost} % lost`;
  const sum = rtts.reduce((total, rtt) => total + rtt, 0);
  const times = rtts.length === 0
    ? ""
    : `; least/mean/most ${
      [Math.min(...rtts), sum / rtts.length, Math.max(...rtts)].map((ms) => ms.toFixed(2)).join("/")
    } ms`;
  return `${destination}: ${counts}${times}\n`;
}
