/**
 * Makes a checkout ready to run: Debian packages, the Rust library, the Deno binary that the launcher uses, npm packages.
 *
 * Every step looks first and does nothing when nothing changed, so tasks run this before anything else. It imports
 * nothing from npm: it is what fetches those packages. Everything it makes lies in `native/lib/`.
 *
 * Flags: `--tests` also provides the programs the privileged tests drive, `--build-only` builds the library and stops.
 *
 * @module
 */

import process from "node:process";
import { checkPackages } from "./setup_packages.ts";
import { placeRuntime, provideDependencies } from "./setup_runtime.ts";
import { buildLibrary, buildTestKit } from "./setup_library.ts";
import { checkPlatform } from "./setup_platform.ts";
import { Console, SetupError, stopChildren } from "./setup_console.ts";
import { Checkout, lockCheckout } from "./setup_checkout.ts";

async function setup(args: readonly string[], out: Console): Promise<void> {
  for (const arg of args) {
    if (arg !== "--tests" && arg !== "--build-only") {
      throw new SetupError(`unknown flag ${JSON.stringify(arg)}`, "use --tests or --build-only, or no flag at all");
    }
  }
  const buildOnly = args.includes("--build-only");
  checkPlatform(out);
  const checkout = new Checkout(new URL("../", import.meta.url));
  using _lock = await lockCheckout(checkout, out);
  if (!buildOnly) await checkPackages({ tests: args.includes("--tests") }, out);
  if (!buildOnly) {
    await placeRuntime(checkout, out);
    await provideDependencies(checkout, out);
  }
  await buildLibrary(checkout, out);
  if (args.includes("--tests")) await buildTestKit(checkout, out);
}

async function main(): Promise<number> {
  const out = new Console();
  for (const [signal, code] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
    process.once(signal, () => {
      stopChildren();
      out.line(`stopped by ${signal}; what was finished stays, run it again to go on`);
      process.exit(code);
    });
  }
  try {
    await setup(process.argv.slice(2), out);
    out.finish();
    return 0;
  } catch (error) {
    const code = (error as { readonly code?: unknown }).code;
    if (error instanceof SetupError) {
      out.failure(error);
    } else if (error instanceof Error && (code === "EACCES" || code === "EROFS" || code === "ENOSPC")) {
      out.failure(new SetupError(error.message, "make the checkout writable for this user, or run as its owner"));
    } else {
      throw error;
    }
    return 1;
  }
}

process.exit(await main());
