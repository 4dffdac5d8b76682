/** What kind of machine the figures come from. */

import os from "node:os";
import { fileURLToPath } from "node:url";
import type { Machine } from "./report.ts";
import { readKernelFiles, shell } from "../shell.ts";
import { readKibibytes } from "./readings.ts";

const RUNTIME = fileURLToPath(new URL("../../native/lib/deno", import.meta.url));

/** Describes this machine, with the programs that measure on it. */
export async function describeMachine(): Promise<Machine> {
  const host = describeHost();
  const emptyRuntimeBytes = await measureEmptyRuntime();
  return {
    ...host,
    ...(emptyRuntimeBytes === undefined ? {} : { emptyRuntimeBytes }),
    tools: {
      iperf3: await versionFrom("iperf3 --version"),
      ping: await versionFrom("ping -V"),
      deno: Deno.version.deno,
    },
  };
}

/** What the system says of this machine. */
export function describeHost(): Omit<Machine, "emptyRuntimeBytes" | "tools"> {
  const cpus = os.cpus();
  return {
    cpu: cpus[0]?.model.trim() ?? "unknown",
    cpus: cpus.length,
    memoryBytes: os.totalmem(),
    kernel: os.release(),
    loadAverage: os.loadavg()[0] ?? 0,
  };
}

async function versionFrom(line: string): Promise<string> {
  return /[0-9]+(?:\.[0-9]+)*[0-9A-Za-z.-]*/.exec((await shell(line)).stdout.split("\n", 1)[0] ?? "")?.[0] ?? "unknown";
}

/** Memory of the runtime that does nothing, in bytes; `undefined` when it cannot be had. */
export async function measureEmptyRuntime(): Promise<number | undefined> {
  const script = `"$1" eval --no-lock 'setTimeout(() => {}, 1e9)' >/dev/null 2>&1 & sleep 1
    cat /proc/$!/status; kill $!`;
  return readKibibytes((await shell(script, RUNTIME)).stdout, "VmHWM");
}

/** The most that a program may ask for as a socket's buffer, in either direction, in bytes. */
export async function largestSocketBuffer(): Promise<number> {
  const limits = await readKernelFiles("/proc/sys/net/core/rmem_max", "/proc/sys/net/core/wmem_max");
  if (limits === undefined) throw new Error("cannot read the limits of socket buffers under /proc/sys/net/core");
  return Math.min(...limits.map(Number));
}
