/** Where things lie in the checkout, and what the last set-up left there. */

import { createHash, type Hash } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import type { Console } from "./setup_console.ts";

/** What the last successful set-up did; a step whose input has another digest runs again. */
interface Stamp {
  /** Digest of everything the library is built from. */
  readonly sources?: string;
  /** Size and modification time of the library as it was placed. */
  readonly library?: string;
  /** The same of the artifact for AF_XDP; empty when it is older than the sources, `absent` where it cannot be built. */
  readonly afxdp?: string;
  /** Digest of everything the test kit is built from. */
  readonly testKit?: string;
  /** Version and size of the Deno binary as it was placed. */
  readonly runtime?: string;
  /** Digest of the lockfile whose packages were fetched. */
  readonly dependencies?: string;
}

/** The folders of one checkout. */
export class Checkout {
  /** The root of the checkout, absolute. */
  readonly root: string;
  /** Where the set-up puts what it makes, absolute. */
  readonly lib: string;

  constructor(root: URL) {
    this.root = fileURLToPath(root);
    this.lib = path.join(this.root, "native", "lib");
  }

  /** Absolute path of something under the root. */
  path(...parts: string[]): string {
    return path.join(this.root, ...parts);
  }

  /** Reads the stamp; an unreadable one counts as absent. */
  async stamp(): Promise<Stamp> {
    try {
      return JSON.parse(await fs.readFile(path.join(this.lib, "setup.json"), "utf8")) as Stamp;
    } catch {
      return {};
    }
  }

  /** Adds to the stamp, atomically. */
  async updateStamp(change: Stamp): Promise<void> {
    const stamp = { ...await this.stamp(), ...change };
    const target = path.join(this.lib, "setup.json");
    await fs.writeFile(`${target}.new`, `${JSON.stringify(stamp, null, 2)}\n`);
    await fs.rename(`${target}.new`, target);
  }
}

/** Identifies a file by size and modification time; `undefined` when there is none. */
export async function identify(file: string): Promise<string | undefined> {
  try {
    const { size, mtimeMs } = await fs.stat(file);
    return `${size}:${Math.trunc(mtimeMs)}`;
  } catch {
    return undefined;
  }
}

/** SHA-256 over the names and contents of `files` and of every file below the folders among them that `keep` accepts. */
export async function digest(
  root: string,
  entries: readonly string[],
  keep: (name: string) => boolean,
): Promise<string> {
  const hash = createHash("sha256");
  for (const entry of entries) await addToDigest(hash, root, entry, keep);
  return hash.digest("hex");
}

async function addToDigest(hash: Hash, root: string, entry: string, keep: (name: string) => boolean): Promise<void> {
  const absolute = path.join(root, entry);
  if ((await fs.stat(absolute)).isDirectory()) {
    for (const name of (await fs.readdir(absolute)).sort()) {
      if (keep(name)) await addToDigest(hash, root, path.join(entry, name), keep);
    }
    return;
  }
  const content = await fs.readFile(absolute);
  hash.update(`${entry}\0${content.length}\0`);
  hash.update(content);
}

/** Holds the checkout's lock until disposed, so that two set-ups never build into each other. The kernel frees a dead holder's. */
export async function lockCheckout(checkout: Checkout, out: Console): Promise<Disposable> {
  await fs.mkdir(checkout.lib, { recursive: true });
  const file = await Deno.open(path.join(checkout.lib, "setup.lock"), { write: true, create: true });
  const exclusive = true;
  const locked = file.lock(exclusive);
  const notice = setTimeout(() => out.line("waiting for another set-up of this checkout to finish"), 300);
  try {
    await locked;
  } finally {
    clearTimeout(notice);
  }
  return { [Symbol.dispose]: () => file.close() };
}
