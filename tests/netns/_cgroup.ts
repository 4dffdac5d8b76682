/** Control groups: what a process may use, as the kernel enforces it. */
import process from "node:process";
import { ok, run } from "./_lab.ts";

/** Files of version 2 and of version 1, and where version 1 has its tree. */
const FILES = {
  memory: { v2: ["memory.max", "memory.current"], v1: ["memory.limit_in_bytes", "memory.usage_in_bytes"] },
  pids: { v2: ["pids.max", "pids.current"], v1: ["pids.max", "pids.current"] },
} as const;

let serial = 0;

/** One group with one limit; whatever is in it ends with it. */
export class ControlGroup implements AsyncDisposable {
  readonly #folder: string;
  readonly #max: string;
  readonly #current: string;

  private constructor(folder: string, [max, current]: readonly [string, string]) {
    this.#folder = folder;
    this.#max = max;
    this.#current = current;
  }

  /** Makes an empty group without a limit; `undefined` where the kernel, or the container, has no such controller to give. */
  static async create(controller: "memory" | "pids"): Promise<ControlGroup | undefined> {
    const name = `icxt-${process.pid}-${serial++}`;
    const root = "/sys/fs/cgroup";
    const v2 = await run([
      "/bin/sh",
      "-c",
      `echo +${controller} >${root}/cgroup.subtree_control && mkdir ${root}/${name} && test -e ${root}/${name}/${controller}.max`,
    ]);
    if (v2.code === 0) return new ControlGroup(`${root}/${name}`, FILES[controller].v2);
    await run(["/bin/sh", "-c", `rmdir ${root}/${name}`]);
    const v1 = await run(["/bin/sh", "-c", `mkdir ${root}/${controller}/${name}`]);
    return v1.code === 0 ? new ControlGroup(`${root}/${controller}/${name}`, FILES[controller].v1) : undefined;
  }

  /** Runs a command in the group from its first moment on, also in a namespace where the group cannot be seen. */
  get through(): readonly string[] {
    const procs = `/proc/${process.pid}/root${this.#folder}/cgroup.procs`;
    return ["/bin/sh", "-ec", `echo $$ >${procs}; exec "$@"`, "sh"];
  }

  /** Takes a process in, with all of its threads. */
  add(pid: number): Promise<void> {
    return this.#write("cgroup.procs", String(pid));
  }

  /** Bytes, or threads. */
  limit(count: number): Promise<void> {
    return this.#write(this.#max, String(count));
  }

  async current(): Promise<number> {
    return Number(await ok(["/bin/sh", "-c", `cat ${this.#folder}/${this.#current}`]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const kill = 'for pid in $(cat "$1/cgroup.procs"); do kill -KILL "$pid"; done';
    // What was killed leaves the group when it is gone.
    const remove = 'for wait in $(seq 100); do rmdir "$1" && exit; sleep 0.05; done 2>/dev/null; rmdir "$1"';
    await ok(["/bin/sh", "-c", `${kill}; ${remove}`, "sh", this.#folder]);
  }

  async #write(file: string, text: string): Promise<void> {
    await ok(["/bin/sh", "-c", `echo ${text} >${this.#folder}/${file}`]);
  }
}
