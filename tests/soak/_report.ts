/** What the long tests say while they run and at their end. */
import process from "node:process";

/** How far it is. */
export function progress(line: string): void {
  process.stderr.write(`    ${line}\n`);
}

/** One line of what was measured. */
export function figure(what: string, values: unknown): void {
  process.stdout.write(`FIGURE ${what}: ${JSON.stringify(values)}\n`);
}
