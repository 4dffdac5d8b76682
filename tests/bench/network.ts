/**
 * `deno task bench:network`: runs `icx bench` and holds its report against the targets. Arguments go to `icx bench`, such as
 * `--contender wireguard-go=PATH` for one that is not on the PATH. Ends with 1 when a target is missed.
 *
 * @module
 */

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
    const child = new Deno.Command(LAUNCHER, { args: ["bench", ...args, "--json", file], stdin: "null" }).spawn();
    // Ctrl-C reaches the child by itself. Either way it cleans up, and this one waits for that.
    process.on("SIGINT", () => {});
    process.on("SIGTERM", () => child.kill("SIGTERM"));
    const { code } = await child.status;
    if (code !== 0) return code;
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
