/**
 * `deno task bench:network`: runs `icx bench` and holds its report against the targets. Arguments go to `icx bench`, such as
 * `--contender wireguard-go=PATH` for one that is not on the PATH. Ends with 1 when a target is missed.
 *
 * @module
 */

import { spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs/promises";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { layOut } from "../../cli/bench/table.ts";
import type { Report } from "../../cli/bench/report.ts";
import { judge } from "./targets.ts";

const LAUNCHER = fileURLToPath(new URL("../../cli/icx", import.meta.url));

async function main(args: readonly string[]): Promise<number> {
  const folder = await fs.mkdtemp("/tmp/icx-targets-");
  try {
    const file = `${folder}/report.json`;
    const child = spawn(LAUNCHER, ["bench", ...args, "--json", file], { stdio: "inherit" });
    // Ctrl-C reaches the child too: this one waits for it to clean up.
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => child.kill(signal));
    const [code] = await once(child, "exit") as [number | null];
    if (code !== 0) return code ?? 1;
    const verdicts = judge(JSON.parse(await fs.readFile(file, "utf8")) as Report);
    const word = (met: boolean | undefined) => met === undefined ? "–" : met ? "met" : "MISSED";
    const rows = verdicts.map(({ what, wanted, found, met }) => [what, wanted, found, word(met)]);
    process.stdout.write(`\n${layOut([["target", "wanted", "found", ""], ...rows]).join("\n")}\n`);
    return verdicts.some(({ met }) => met === false) ? 1 : 0;
  } finally {
    await fs.rm(folder, { recursive: true });
  }
}

if (import.meta.main) process.exit(await main(process.argv.slice(2)));
