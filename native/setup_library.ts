/** Builds the Rust library and puts it where the loader looks. */

import fs from "node:fs/promises";
import path from "node:path";
import { type Checkout, digest, identify } from "./setup_checkout.ts";
import { type Console, run, SetupError } from "./setup_console.ts";
import { isOlder } from "./setup_platform.ts";

const LIBRARY = "libicx.so";
const BUILD_ENV = { AWS_LC_SYS_USE_SYSTEM: "0" };

/** Builds the library unless the one in place was built from these very sources. */
export async function buildLibrary(checkout: Checkout, out: Console): Promise<void> {
  const target = path.join(checkout.lib, LIBRARY);
  const stamp = await checkout.stamp();
  const sources = await digest(checkout.root, ["rust"], isBuildInput);
  if (stamp.sources === sources && stamp.library !== undefined && stamp.library === await identify(target)) return;

  await checkCargo(checkout);
  const title = "build the Rust library (minutes the first time, seconds later)";
  const artifact = await out.step(title, () => compile(checkout), { ticks: false });
  // A copy in the target's own folder, then a rename: a process that has the old file open keeps it, none sees half a file.
  const copied = await run("/usr/bin/cp", ["--", artifact, `${target}.new`]);
  if (!copied.ok) {
    throw new SetupError(`cannot copy the library to ${target}`, "free some space or fix the folder's owner", {
      output: copied.tail,
    });
  }
  await fs.rename(`${target}.new`, target);
  const library = await identify(target);
  await checkout.updateStamp({ sources, ...(library === undefined ? {} : { library }) });
}

function isBuildInput(name: string): boolean {
  if (["target", "tests", "benches", "fuzz"].includes(name) || name.startsWith(".")) return false;
  return !name.includes(".") || /\.(rs|toml|lock|c|h)$/.test(name);
}

async function checkCargo(checkout: Checkout): Promise<void> {
  const manifest = await fs.readFile(checkout.path("rust", "Cargo.toml"), "utf8");
  const minimum = /^rust-version = "([0-9.]+)"/m.exec(manifest)?.[1];
  if (minimum === undefined) {
    throw new SetupError("rust/Cargo.toml names no rust-version", "restore the file: git checkout rust/Cargo.toml");
  }
  const found = await run("cargo", ["--version"], { cwd: checkout.path("rust") });
  if (found.code === undefined) {
    throw new SetupError(
      `there is no cargo on the PATH, and the library needs Rust ${minimum} or newer`,
      "install Rust with rustup (https://rustup.rs), open a new shell, and run this again",
    );
  }
  const version = /^cargo ([0-9.]+)/.exec(found.stdout)?.[1];
  if (!found.ok || version === undefined) {
    throw new SetupError("cargo does not tell its version", "repair it: rustup update stable", { output: found.tail });
  }
  if (isOlder(version, minimum.split(".").map(Number))) {
    throw new SetupError(
      `this is cargo ${version}, and the library needs ${minimum} or newer`,
      "rustup update stable (or, with a distribution's cargo: install rustup from https://rustup.rs first)",
    );
  }
}

/** Runs cargo and returns the path of the shared object it made. */
async function compile(checkout: Checkout): Promise<string> {
  const args = ["build", "--release", "--locked", "-p", "icx-ffi", "--message-format=json-render-diagnostics"];
  const result = await run("cargo", args, { cwd: checkout.path("rust"), env: BUILD_ENV, liveStderr: true });
  if (!result.ok) {
    throw new SetupError(
      `cargo build failed with exit code ${result.code}; its messages are above`,
      "the first `error` above is the cause; when crates could not be fetched, check the network and run this again",
    );
  }
  for (const line of result.stdout.split("\n")) {
    if (!line.startsWith("{")) continue;
    const message = JSON.parse(line) as { readonly reason?: string; readonly filenames?: readonly string[] };
    if (message.reason !== "compiler-artifact") continue;
    const artifact = message.filenames?.find((name) => path.basename(name) === LIBRARY);
    if (artifact !== undefined) return artifact;
  }
  throw new SetupError(`cargo built no ${LIBRARY}`, "check the [lib] section of rust/ffi/Cargo.toml");
}
