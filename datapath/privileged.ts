/**
 * Tests that need the right to administer the network.
 *
 * @module
 */

import process from "node:process";
import { Library } from "../native/library.ts";
import { DatapathError } from "./errors.ts";
import { TunDevice } from "./tun_device.ts";

/** A device name that no other process uses. */
export const DEVICE_NAME: string = `icxt${process.pid}`;

/** Why there can be no TUN device here; `undefined` when there can. */
async function obstacle(): Promise<string | undefined> {
  await using library = Library.open();
  try {
    await using _device = TunDevice.open({ library, name: DEVICE_NAME });
    return undefined;
  } catch (error) {
    if (error instanceof DatapathError && (error.code === "permission-denied" || error.code === "unsupported")) {
      return error.code;
    }
    throw error;
  }
}

// `ICX_TEST_PRIVILEGED=1` promises the right: what needs it then fails without.
const reason = process.env.ICX_TEST_PRIVILEGED === "1" ? undefined : await obstacle();

/** Registers a test that needs a TUN device. Where there can be none it is skipped, and its name says why. */
export function privilegedTest(name: string, run: () => Promise<void>): void {
  if (reason === undefined) Deno.test(name, run);
  else Deno.test({ name: `${name} (skipped: TUN device ${reason})`, ignore: true, fn: run });
}
