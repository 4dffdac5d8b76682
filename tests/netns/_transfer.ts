/** TCP transfers with checksums of both ends. */
import assert from "node:assert/strict";
import { bracketed, type Host, type Lab } from "./_lab.ts";

/** Options of {@linkcode transfer}. */
export interface TransferOptions {
  readonly from: Host;
  readonly to: Host;
  /** The receiver's address inside the tunnel. */
  readonly address: string;
  readonly bytes: number;
  /** @default 5001 */
  readonly port?: number;
  /** The least time that it takes, in tenths of which a tenth of the data is sent. @default as fast as it goes */
  readonly seconds?: number;
  /** @default 180000 */
  readonly timeoutMs?: number;
}

/** Sends pseudorandom data over TCP and compares SHA-256 on both ends. */
export async function transfer(lab: Lab, options: TransferOptions): Promise<void> {
  const { from, to, address, bytes, port = 5001, seconds = 0, timeoutMs = 180_000 } = options;
  const family = address.includes(":") ? "6" : "4";
  const sink = lab.spawn(to, [
    ...["bash", "-euo", "pipefail", "-c"],
    `socat -u TCP${family}-LISTEN:${port},bind=${bracketed(address)},reuseaddr STDOUT | openssl dgst -sha256 -r`,
  ]);
  const parts = seconds * 10;
  const pace = parts === 0
    ? "cat"
    : `for part in $(seq ${parts}); do head -c ${Math.ceil(bytes / parts)}; sleep 0.1; done`;
  const source = await from.shell(
    `head -c ${bytes} /dev/zero | openssl enc -aes-128-ctr -K ${"5a".repeat(16)} -iv ${String(port).padStart(32, "0")} |
     (${pace}) | tee >(openssl dgst -sha256 -r >&2) | socat -u STDIN TCP${family}:${
      bracketed(address)
    }:${port},retry=50,interval=0.1`,
    timeoutMs,
  );
  assert.equal(source.code, 0, source.stderr);
  const received = await sink.ended;
  const sum = /\b[0-9a-f]{64}\b/;
  assert.match(source.stderr, sum);
  assert.equal(received.stdout.match(sum)?.[0], source.stderr.match(sum)?.[0], "checksums of both ends");
}
