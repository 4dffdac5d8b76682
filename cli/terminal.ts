/** Writing to the two streams: data to standard output, everything for people to standard error. */

import fs from "node:fs";
import process from "node:process";
import { styleText } from "node:util";
import { writeStderr } from "../native/stderr.ts";
import { OutputQueue } from "./output_queue.ts";

/** Whether a stream takes colours. */
export function takesColour(stream: "stdout" | "stderr"): boolean {
  return process[stream].isTTY === true && !Deno.noColor;
}

/** Characters in a line of the terminal behind a stream, `undefined` when there is none. */
export function columns(stream: "stdout" | "stderr"): number | undefined {
  return process[stream].isTTY === true ? process[stream].columns : undefined;
}

/**
 * Writes text to standard output as it is.
 *
 * @throws {Error} When that cannot be done: what was asked for is lost then.
 */
export function out(text: string): void {
  try {
    for (let rest = new TextEncoder().encode(text); rest.length > 0;) rest = rest.subarray(fs.writeSync(1, rest));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`cannot write to standard output: ${reason}; free some space, or send it elsewhere`, { cause });
  }
}

let describeLoss = (lines: number): string => `icx: ${lines} lines before this one could not be written\n`;

const errQueue = new OutputQueue({ write: writeStderr, describeLoss: (lines) => describeLoss(lines) });

/**
 * Writes lines to standard error, and does not wait: a reader that is stuck, a full disk and a closed pipe cost lines, never
 * the tunnel.
 */
export function err(text: string): void {
  errQueue.push(text);
}

/** Says how the loss of lines is told once standard error takes some again. */
export function tellLostLines(describe: (lines: number) => string): void {
  describeLoss = describe;
}

/** How long the end of a command waits for whoever reads standard error, in milliseconds. */
const FLUSH_MS = 1000;

/** Resolves when standard error has taken everything, or does not within a second. */
export function flushErr(): Promise<void> {
  return errQueue.flush(FLUSH_MS);
}

/** Styles of {@linkcode paint}. */
export type Style = Parameters<typeof styleText>[0];

/** Styles text, or leaves it plain where no colours are wanted. */
export type Paint = (style: Style, text: string) => string;

/** Makes the function that styles text for a stream. */
export function painter(stream: "stdout" | "stderr"): Paint {
  return takesColour(stream) ? (style, text) => styleText(style, text, { validateStream: false }) : (_, text) => text;
}
