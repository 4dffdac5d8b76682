/** Builds the Rust library and puts it where the loader looks; builds the programs of the test kit beside it. */

import fs from "node:fs/promises";
import path from "node:path";
import { type Checkout, digest, identify } from "./setup_checkout.ts";
import { type Console, run, SetupError } from "./setup_console.ts";
import { isOlder } from "./setup_platform.ts";

const LIBRARY = "libicx.so";
const AFXDP_LIBRARY = "libicx-afxdp.so";
const TEST_KIT = ["icx-relay", "icx-adversary"] as const;
const BUILD_ENV = { AWS_LC_SYS_USE_SYSTEM: "0" };

/**
 * Builds the artifacts of the library unless those in place were built from these very sources: the core, and the one with AF_XDP
 * besides, where there is a clang for that.
 */
export async function buildLibrary(checkout: Checkout, out: Console): Promise<void> {
  const sources = await digest(checkout.root, ["rust"], isBuildInput);
  const stamp = await checkout.stamp();
  const isPlaced = async (name: string, placed: string | undefined) =>
    stamp.sources === sources && placed !== undefined && placed === await identify(path.join(checkout.lib, name));
  if (!await isPlaced(LIBRARY, stamp.library)) {
    await checkCargo(checkout);
    const title = "build the Rust library (minutes the first time, seconds later)";
    const artifacts = await out.step(title, () => compile(checkout, "icx-ffi"), { ticks: false });
    await place(artifacts, LIBRARY, path.join(checkout.lib, LIBRARY));
    const library = await identify(path.join(checkout.lib, LIBRARY));
    await checkout.updateStamp({ sources, ...(library === undefined ? {} : { library }), afxdp: "" });
  }
  if (await isPlaced(AFXDP_LIBRARY, (await checkout.stamp()).afxdp)) return;
  // What cargo would only say in the middle of a build script. By its path: a permission for a name is one for the program that had it
  // when this process began, and clang may have been installed since.
  if (!(await run("/usr/bin/clang", ["--version"])).ok) {
    const absent = { afxdp: "absent" };
    if ((await checkout.stamp()).afxdp === absent.afxdp) return;
    out.line("there is no clang, so the library for the AF_XDP datapath is left out");
    await checkout.updateStamp(absent);
    return;
  }
  const artifacts = await out.step(
    "build the library for AF_XDP",
    () => compile(checkout, "icx-ffi", ["--features", "afxdp"]),
    { ticks: false },
  );
  await place(artifacts, LIBRARY, path.join(checkout.lib, AFXDP_LIBRARY));
  const afxdp = await identify(path.join(checkout.lib, AFXDP_LIBRARY));
  await checkout.updateStamp(afxdp === undefined ? {} : { afxdp });
}

/** Builds the programs that the privileged tests put between and beside nodes, unless they are built from these sources. */
export async function buildTestKit(checkout: Checkout, out: Console): Promise<void> {
  const targets = TEST_KIT.map((name) => [name, path.join(checkout.lib, name)] as const);
  const sources = await digest(checkout.root, ["rust/testkit", "rust/Cargo.toml", "rust/Cargo.lock"], isBuildInput);
  const placed = await Promise.all(targets.map(([, target]) => identify(target)));
  if ((await checkout.stamp()).testKit === sources && placed.every((id) => id !== undefined)) return;

  await checkCargo(checkout);
  const artifacts = await out.step("build the test kit", () => compile(checkout, "icx-testkit"), { ticks: false });
  for (const [name, target] of targets) await place(artifacts, name, target);
  await checkout.updateStamp({ testKit: sources });
}

/** Puts the artifact of that name at `target`. */
async function place(artifacts: readonly string[], name: string, target: string): Promise<void> {
  const artifact = artifacts.find((file) => path.basename(file) === name);
  if (artifact === undefined) throw new SetupError(`cargo built no ${name}`, "check the manifests below rust/");
  // A copy in the target's own folder, then a rename: a process that has the old file open keeps it, none sees half a file.
  const copied = await run("/usr/bin/cp", ["--", artifact, `${target}.new`]);
  if (!copied.ok) {
    throw new SetupError(`cannot copy ${name} to ${target}`, "free some space or fix the folder's owner", {
      output: copied.tail,
    });
  }
  await fs.rename(`${target}.new`, target);
}

function isBuildInput(name: string): boolean {
  if (["target", "tests", "benches", "fuzz", "testkit"].includes(name) || name.startsWith(".")) return false;
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

/** Runs cargo and returns the paths of what it made of the package and of what that is made of. */
async function compile(checkout: Checkout, name: string, more: readonly string[] = []): Promise<string[]> {
  const args = ["build", "--release", "--locked", "-p", name, ...more, "--message-format=json-render-diagnostics"];
  const result = await run("cargo", args, { cwd: checkout.path("rust"), env: BUILD_ENV, liveStderr: true });
  if (!result.ok) {
    throw new SetupError(
      `cargo build failed with exit code ${result.code}; its messages are above`,
      "the first `error` above is the cause; when crates could not be fetched, check the network and run this again",
    );
  }
  return result.stdout.split("\n").filter((line) => line.startsWith("{")).flatMap((line) => {
    const message = JSON.parse(line) as { readonly reason?: string; readonly filenames?: readonly string[] };
    return message.reason === "compiler-artifact" ? message.filenames ?? [] : [];
  });
}
