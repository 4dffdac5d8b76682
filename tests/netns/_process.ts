/** What a process holds and uses, as the kernel tells. */
import assert from "node:assert/strict";
import { ok } from "./_lab.ts";

/** Ticks of `/proc/<pid>/stat` in a second: `sysconf(_SC_CLK_TCK)` is 100 everywhere. */
const TICKS_PER_SECOND = 100;

/** One process at one moment. */
export interface Usage {
  /** All of them. The runtime keeps some for a while: it makes up to 32 for calls that wait. */
  readonly threads: number;
  /** Threads of the library. */
  readonly workers: number;
  readonly files: number;
  readonly residentKiB: number;
  /** Private memory that can be written, as RLIMIT_DATA counts it. */
  readonly dataKiB: number;
  /** Processor time since its start. */
  readonly cpuSeconds: number;
}

/** Looks at the process `pid`. */
export async function usage(pid: number): Promise<Usage> {
  const script =
    'cat "/proc/$1/status" "/proc/$1/stat"; grep -h "^icx-" /proc/$1/task/*/comm | wc -l; ls "/proc/$1/fd" | wc -l';
  const lines = (await ok(["/bin/sh", "-c", script, "sh", String(pid)])).trimEnd().split("\n");
  const [workers, files] = lines.splice(-2).map(Number);
  assert(workers !== undefined && files !== undefined);
  // What follows the name in parentheses begins with the third field of proc(5).
  const stat = lines.pop() ?? "";
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const number = (name: string) => Number(lines.find((line) => line.startsWith(`${name}:`))?.match(/\d+/)?.[0]);
  return {
    threads: number("Threads"),
    workers,
    files,
    residentKiB: number("VmRSS"),
    dataKiB: number("VmData"),
    cpuSeconds: (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND,
  };
}

/** Processor time that `pid` uses during `body`, as a share of one processor. */
export async function load(pid: number, body: () => Promise<unknown>): Promise<number> {
  const [before, startedAt] = [(await usage(pid)).cpuSeconds, performance.now()];
  await body();
  return ((await usage(pid)).cpuSeconds - before) / ((performance.now() - startedAt) / 1000);
}

/** What a process has more of than before. */
export function grownSince(before: Usage, after: Usage): Omit<Usage, "cpuSeconds"> {
  return {
    threads: after.threads - before.threads,
    workers: after.workers - before.workers,
    files: after.files - before.files,
    residentKiB: after.residentKiB - before.residentKiB,
    dataKiB: after.dataKiB - before.dataKiB,
  };
}
