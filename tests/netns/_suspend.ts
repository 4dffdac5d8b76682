/**
 * The clocks of a node in the hands of a test, as a suspend of the machine or a step of its wall clock moves them.
 *
 * @module
 */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Node, ok } from "./_lab.ts";

const SOURCE = fileURLToPath(new URL("./_suspend.c", import.meta.url));

/** Clocks that follow the machine's until they are moved. */
export class Clocks implements AsyncDisposable {
  readonly #folder: string;
  #bootMs = 0;
  #wallMs = 0;

  private constructor(folder: string) {
    this.#folder = folder;
  }

  static async create(): Promise<Clocks> {
    const clocks = new Clocks(await mkdtemp(join(tmpdir(), "icx-clocks-")));
    await clocks.#write();
    await ok(["/bin/sh", "-c", `cc -shared -fPIC -O2 -Wall -Werror -o "${clocks.#library}" "${SOURCE}"`]);
    return clocks;
  }

  /** The command through which to start a node that has these clocks. */
  get through(): readonly string[] {
    return ["env", `LD_PRELOAD=${this.#library}`, `ICX_TEST_CLOCK_OFFSETS=${this.#offsets}`];
  }

  /** The nodes sleep for so long, as far as their clocks tell. */
  async suspend(ms: number, nodes: readonly Node[]): Promise<void> {
    for (const node of nodes) node.process.kill("SIGSTOP");
    this.#bootMs += ms;
    this.#wallMs += ms;
    await this.#write();
    for (const node of nodes) node.process.kill("SIGCONT");
  }

  /** Sets the wall clock forward, or back. */
  async step(ms: number): Promise<void> {
    this.#wallMs += ms;
    await this.#write();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#folder, { recursive: true, force: true });
  }

  get #library(): string {
    return join(this.#folder, "clocks.so");
  }

  get #offsets(): string {
    return join(this.#folder, "offsets");
  }

  /** In place: the nodes have the file mapped. */
  async #write(): Promise<void> {
    await writeFile(
      this.#offsets,
      new BigInt64Array([this.#bootMs, this.#wallMs].map((ms) => BigInt(ms) * 1_000_000n)),
      {
        flag: this.#bootMs === 0 && this.#wallMs === 0 ? "w" : "r+",
      },
    );
  }
}
