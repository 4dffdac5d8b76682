/** The Deno binary that the launcher runs, and the npm packages it needs. */

import path from "node:path";
import process from "node:process";
import { type Checkout, digest, identify } from "./setup_checkout.ts";
import { type Console, run, SetupError } from "./setup_console.ts";

const RUNTIME = "deno";

/** Keeps the running Deno as `native/lib/deno`, so that nothing depends on an npx cache later. */
export async function placeRuntime(checkout: Checkout, out: Console): Promise<void> {
  const target = path.join(checkout.lib, RUNTIME);
  const version = process.versions["deno"] ?? "unknown";
  const stamp = await checkout.stamp();
  if (stamp.runtime !== undefined && stamp.runtime === `${version} ${await identify(target)}`) return;

  await out.step(`place Deno ${version} at native/lib/${RUNTIME}`, async () => {
    // Deno lets no program it may run be written, so the standard tools place it. A hard link costs nothing; another
    // file system or another owner takes a copy. The rename at the end keeps a running one intact.
    const linked = await run("/usr/bin/ln", ["-f", "--", process.execPath, `${target}.new`]);
    const copied = linked.ok ? linked : await run("/usr/bin/cp", ["-f", "--", process.execPath, `${target}.new`]);
    const placed = copied.ok ? await run("/usr/bin/mv", ["-fT", "--", `${target}.new`, target]) : copied;
    if (!placed.ok) {
      throw new SetupError(
        `cannot place ${process.execPath} at ${target}`,
        "free some space or fix the folder's owner",
        {
          output: placed.tail,
        },
      );
    }
  });
  await checkout.updateStamp({ runtime: `${version} ${await identify(target)}` });
}

/** Fetches the npm packages of the lockfile into the checkout, so that every later run works offline. */
export async function provideDependencies(checkout: Checkout, out: Console): Promise<void> {
  const dependencies = await digest(checkout.root, ["deno.json", "deno.lock"], () => true);
  const stamp = await checkout.stamp();
  const present = await identify(checkout.path("node_modules", ".deno")) !== undefined;
  if (stamp.dependencies === dependencies && present) return;

  await out.step("fetch npm packages", async () => {
    const runtime = path.join(checkout.lib, RUNTIME);
    const result = await run(runtime, ["install", "--frozen"], { cwd: checkout.root, env: { NO_COLOR: "1" } });
    if (!result.ok) {
      throw new SetupError(
        `deno install failed with exit code ${result.code}`,
        "check the network and the npm registry setting, then run this again",
        { output: result.tail },
      );
    }
  });
  await checkout.updateStamp({ dependencies });
}
