/**
 * What moves packets between two ends written in TypeScript.
 *
 * @module
 */

import { setImmediate } from "node:timers";
import { orAbort } from "../native/marshal.ts";
import { type Clock, delay, systemClock } from "./clock.ts";
import type { EndCounters } from "./datapath.ts";
import type { ScriptDevice } from "./device.ts";
import type { EngineXfrm } from "./engine.ts";
import { DatapathError } from "./errors.ts";
import { PacketBatch } from "./packet_batch.ts";
import { NO_END_COUNTERS, type Pump } from "./pump.ts";
import { supervise } from "./supervise.ts";
import { Turns } from "./turns.ts";
import type { ScriptUnderlay } from "./underlay.ts";

/** Packets per batch, in both directions. A batch of this many is all that a direction holds of packets that do not get on. */
export const BATCH_PACKETS = 64;

/** Room for a batch of common packets, and for a single one of any size. */
const BATCH_BYTES = BATCH_PACKETS * 2048;

/** Time between two looks at what is due by the engine's clock: keepalives, expiries, switches of keys. */
const TIMER_MS = 100;

/** How long packets may move without the other work of the process getting its turn. */
const BREATH_MS = 10;

/** What an end is asked for. */
type EndCall = "read" | "write" | "receive" | "send";

const END: Readonly<Record<EndCall, string>> = {
  read: "device",
  write: "device",
  receive: "underlay",
  send: "underlay",
};

/** Failures in a row of one call: how long to wait after each, and when to give up. */
export class FailureStreak {
  /** The failure with this number is the last one. */
  static readonly LIMIT = 16;
  static readonly #STEP_MS = 10;
  static readonly #MAX_MS = 1000;
  readonly #limit: number;
  #failures = 0;

  constructor(limit: number = FailureStreak.LIMIT) {
    this.#limit = limit;
  }

  /** After one more failure: how long to wait until the next try, in milliseconds; `undefined` when there is to be none. */
  fail(): number | undefined {
    this.#failures += 1;
    if (this.#failures >= this.#limit) return undefined;
    return Math.min(FailureStreak.#STEP_MS * this.#failures, FailureStreak.#MAX_MS);
  }

  /** After a success. */
  reset(): void {
    this.#failures = 0;
  }
}

/** What a {@linkcode ScriptPump} is made of. */
export interface ScriptPumpOptions {
  /** The inner side. */
  readonly device: ScriptDevice;
  /** The outer side. */
  readonly underlay: ScriptUnderlay;
  /** What is between them. */
  readonly engine: EngineXfrm;
  /** Time. @default systemClock */
  readonly clock?: Clock | undefined;
}

/**
 * Three tasks between two ends: outbound, inbound, and what is due by the clock. Each direction has one batch under way:
 * it does not ask an end for more before the other one has taken what there is.
 */
export class ScriptPump implements Pump {
  readonly #device: ScriptDevice;
  readonly #underlay: ScriptUnderlay;
  readonly #engine: EngineXfrm;
  readonly #clock: Clock;
  readonly #counters: { -readonly [Name in keyof EndCounters]: EndCounters[Name] } = { ...NO_END_COUNTERS };
  readonly #streaks: Readonly<Record<EndCall, FailureStreak>> = {
    read: new FailureStreak(),
    write: new FailureStreak(),
    receive: new FailureStreak(),
    send: new FailureStreak(),
  };
  readonly #sends = new Turns();
  readonly #writes = new Turns();

  constructor(options: ScriptPumpOptions) {
    this.#device = options.device;
    this.#underlay = options.underlay;
    this.#engine = options.engine;
    this.#clock = options.clock ?? systemClock;
  }

  async run(signal: AbortSignal): Promise<void> {
    await supervise([
      { name: "outbound", run: (signal) => this.#outbound(signal) },
      { name: "inbound", run: (signal) => this.#inbound(signal) },
      { name: "timers", run: (signal) => this.#timers(signal) },
    ], { signal, clock: this.#clock });
  }

  counters(): EndCounters {
    return { ...this.#counters };
  }

  async close(): Promise<void> {
    // An end that cannot close has nobody left to tell: packets no longer move, and the other end closes all the same.
    await Promise.allSettled([this.#device, this.#underlay].map(async (end) => await end.close()));
  }

  async #outbound(signal: AbortSignal): Promise<void> {
    const [packets, results, replies] = [newBatch(), newBatch(), newBatch()];
    const breath = new Breath();
    while (true) {
      await this.#fill("read", packets, signal);
      for (let from = 0; from < packets.length;) {
        const processed = this.#engine.virtToPhy(packets, results, { from });
        from += processed;
        this.#counters.deviceReadPackets += processed;
        replies.clear();
        results.retain((i) => {
          const verdict = results.verdict(i);
          // Both batches have the same size, so that there is room.
          if (verdict === "handled") replies.append(results.packet(i));
          return verdict === "forward";
        });
        await this.#drainToUnderlay(results, signal);
        await this.#drainToDevice(replies, signal);
      }
      await breath.take();
    }
  }

  async #inbound(signal: AbortSignal): Promise<void> {
    const [packets, results] = [newBatch(), newBatch()];
    const breath = new Breath();
    while (true) {
      await this.#fill("receive", packets, signal);
      for (let from = 0; from < packets.length;) {
        const processed = this.#engine.phyToVirt(packets, results, { from });
        from += processed;
        this.#counters.underlayReceived += processed;
        results.retain((i) => {
          if (results.verdict(i) !== "forward") return false;
          if (results.packetBytes(i) <= this.#device.mtuBytes) return true;
          this.#counters.deviceWriteErrors += 1;
          return false;
        });
        await this.#drainToDevice(results, signal);
      }
      await breath.take();
    }
  }

  async #timers(signal: AbortSignal): Promise<void> {
    const results = newBatch();
    while (true) {
      let made: number;
      do {
        made = this.#engine.toPhy(results);
        results.retain((i) => results.verdict(i) === "forward");
        await this.#drainToUnderlay(results, signal);
      } while (made === BATCH_PACKETS);
      await delay(TIMER_MS, { signal, clock: this.#clock });
    }
  }

  /** Waits until `batch`, which is emptied first, has something in it. */
  async #fill(call: "read" | "receive", batch: PacketBatch, signal: AbortSignal): Promise<void> {
    const ask = call === "read"
      ? () => this.#device.read(batch, { signal })
      : () => this.#underlay.receive(batch, { signal });
    batch.clear();
    const count = await this.#try(call, signal, async () => {
      try {
        return await ask();
      } catch (error) {
        // Packets that came before the failure have come; it will come again.
        if (batch.length === 0) throw error;
        return batch.length;
      }
    });
    if (batch.length > 0) return;
    const operation = operationOf(call);
    if (count === 0) {
      throw new DatapathError(`Cannot ${operation} as it is closed: run the datapath with another ${END[call]}`, {
        code: "closed",
        operation,
      });
    }
    throw new DatapathError(
      `Cannot ${operation} as "${call}" must append at least one packet, or return 0 when it is closed: it returned ` +
        `${count} and appended none`,
      { code: "end-failed", operation },
    );
  }

  #drainToDevice(batch: PacketBatch, signal: AbortSignal): Promise<void> {
    return this.#writes.take(async () => {
      const taken = (count: number) => this.#counters.deviceWritePackets += count;
      const left = await this.#drain("write", batch, signal, taken);
      this.#counters.deviceWriteErrors += left.count;
      if (left.count > 0) throw left.reason;
    });
  }

  #drainToUnderlay(batch: PacketBatch, signal: AbortSignal): Promise<void> {
    return this.#sends.take(async () => {
      const taken = (count: number) => this.#counters.underlaySent += count;
      const left = await this.#drain("send", batch, signal, taken);
      this.#counters.underlaySendErrors += left.count;
      for (let i = batch.length - left.count; i < batch.length; i++) this.#engine.countTxErrors(batch.vni(i), 1);
      if (left.count > 0) throw left.reason;
    });
  }

  /** Hands all packets of `batch` over, a part at a time if need be. Gives how many are left, and why if any are. */
  async #drain(
    call: "write" | "send",
    batch: PacketBatch,
    signal: AbortSignal,
    onTaken: (count: number) => void,
  ): Promise<{ readonly count: number; readonly reason?: unknown }> {
    let from = 0;
    while (from < batch.length) {
      const left = batch.length - from;
      try {
        const count = await this.#try(call, signal, async () => {
          const options = { from, signal };
          const count =
            await (call === "write" ? this.#device.write(batch, options) : this.#underlay.send(batch, options));
          if (count === 0) throw new Error(`It took none of ${left} packets`);
          return count;
        });
        if (!(Number.isInteger(count) && count >= 1 && count <= left)) {
          const operation = operationOf(call);
          throw new DatapathError(
            `Cannot ${operation} as "${call}" must return how many packets it took, 1 to ${left}: it returned ${count}`,
            { code: "end-failed", operation },
          );
        }
        from += count;
        onTaken(count);
      } catch (reason) {
        return { count: left, reason };
      }
    }
    return { count: 0 };
  }

  /** Asks an end, again after a failure, until it answers, fails too often in a row, or `signal` aborts. */
  async #try(call: EndCall, signal: AbortSignal, ask: () => Promise<number>): Promise<number> {
    const streak = this.#streaks[call];
    while (true) {
      signal.throwIfAborted();
      try {
        // An end that does not hear the signal is left behind; what it does later reaches batches that nobody reads.
        const count = await orAbort(ask(), signal);
        streak.reset();
        return count;
      } catch (error) {
        if (signal.aborted) throw signal.reason;
        const delayMs = streak.fail();
        if (delayMs === undefined) {
          const operation = operationOf(call);
          const reason = error instanceof Error ? error.message : String(error);
          throw new DatapathError(
            `Cannot ${operation} as it failed ${FailureStreak.LIMIT} times in a row, at last with "${reason}": ` +
              `mend or replace the ${END[call]}`,
            { code: "end-failed", operation, cause: error },
          );
        }
        await delay(delayMs, { signal, clock: this.#clock });
      }
    }
  }
}

function operationOf(call: EndCall): string {
  return `${call} packets ${call === "read" || call === "receive" ? "from" : "to"} the ${END[call]}`;
}

function newBatch(): PacketBatch {
  return new PacketBatch({ capacity: BATCH_PACKETS, bufferBytes: BATCH_BYTES });
}

/** Gives timers and sockets their turn when packets come and go without ever waiting for one. */
class Breath {
  #last = performance.now();

  async take(): Promise<void> {
    if (performance.now() - this.#last < BREATH_MS) return;
    await new Promise<void>((resolve) => setImmediate(resolve));
    this.#last = performance.now();
  }
}
