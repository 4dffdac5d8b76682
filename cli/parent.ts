/** Ending with the process that started this one. */

import process from "node:process";
import { Library } from "../native/library.ts";
import { setParentDeathSignal } from "../native/process.ts";

const SIGTERM = 15;

/** Has the kernel send SIGTERM to this process when its parent dies; at once if it is dead already. */
export async function followParent(): Promise<void> {
  const parent = process.ppid;
  await using library = await Library.open();
  setParentDeathSignal(library, SIGTERM);
  // A parent that died before that call is never told of: the process belongs to another one by now.
  if (process.ppid !== parent) process.emit("SIGTERM");
}
