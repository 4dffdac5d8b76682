/** A kernel that cut what a node sent, and from a moment on refuses to. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Lab, type Node, ok } from "./_lab.ts";

const SOURCE = fileURLToPath(new URL("./_refuse.c", import.meta.url));
const DATA_PORT = 6081;

/** From now on the kernel refuses to cut datagrams that these nodes send from their data port. */
export async function refuseSegments(lab: Lab, nodes: readonly Node[]): Promise<void> {
  const program = join(lab.directory, "refuse");
  await ok(["/bin/sh", "-c", `cc -O2 -Wall -Werror -o "${program}" "${SOURCE}"`]);
  for (const { host, process } of nodes) {
    assert.equal((await host.ok([program, String(process.pid), String(DATA_PORT)])).trim(), "1", "sockets");
  }
}
