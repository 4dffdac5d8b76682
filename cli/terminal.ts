/** Writing to the two streams: data to standard output, everything for people to standard error. */

import process from "node:process";
import { styleText } from "node:util";

/** Whether a stream takes colours. */
export function takesColour(stream: "stdout" | "stderr"): boolean {
  return process[stream].isTTY === true && !Deno.noColor;
}

/** Characters in a line of the terminal behind a stream, `undefined` when there is none. */
export function columns(stream: "stdout" | "stderr"): number | undefined {
  return process[stream].isTTY === true ? process[stream].columns : undefined;
}

/** Writes text to standard output as it is. */
export function out(text: string): void {
  process.stdout.write(text);
}

/** Writes text to standard error as it is. */
export function err(text: string): void {
  process.stderr.write(text);
}

/** Styles of {@linkcode paint}. */
export type Style = Parameters<typeof styleText>[0];

/** Styles text, or leaves it plain where no colours are wanted. */
export type Paint = (style: Style, text: string) => string;

/** Makes the function that styles text for a stream. */
export function painter(stream: "stdout" | "stderr"): Paint {
  return takesColour(stream) ? (style, text) => styleText(style, text, { validateStream: false }) : (_, text) => text;
}
