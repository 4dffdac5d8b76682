/**
 * What moves packets between two ends of which at least one is written in TypeScript.
 *
 * @module
 */

import { setImmediate } from "node:timers";
import { orAbort } from "../native/marshal.ts";
import { type Clock, delay, systemClock } from "./clock.ts";
import type { EndCounters } from "./datapath.ts";
import type { Device } from "./device.ts";
import type { EngineXfrm } from "./engine.ts";
import { DatapathError } from "./errors.ts";
import { PacketBatch } from "./packet_batch.ts";
import { NO_END_COUNTERS, type Pump } from "./pump.ts";
import { brokenEnd, deviceEnd, type Given, type PumpEnd, underlayEnd } from "./pump_ends.ts";
import { supervise } from "./supervise.ts";
import { Turns } from "./turns.ts";
import type { Underlay } from "./underlay.ts";

/** Packets per batch, in both directions. A batch of this many is all that a direction holds of packets that do not get on. */
export const BATCH_PACKETS = 64;

/** Room for a batch of common packets, and for a single one of any size. */
const BATCH_BYTES = BATCH_PACKETS * 2048;

/** Time between two looks at what is due by the engine's clock: keepalives, expiries, switches of keys. */
const TIMER_MS = 100;

/** How long packets may move without the other work of the process getting its turn. */
const BREATH_MS = 10;

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
  readonly device: Device;
  /** The outer side. */
  readonly underlay: Underlay;
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
  readonly #device: PumpEnd;
  readonly #underlay: PumpEnd;
  readonly #engine: EngineXfrm;
  readonly #clock: Clock;
  readonly #counters: { -readonly [Name in keyof EndCounters]: EndCounters[Name] } = { ...NO_END_COUNTERS };
  readonly #streaks = {
    device: { take: new FailureStreak(), give: new FailureStreak() },
    underlay: { take: new FailureStreak(), give: new FailureStreak() },
  };
  readonly #sends = new Turns();
  readonly #writes = new Turns();

  constructor(options: ScriptPumpOptions) {
    this.#engine = options.engine;
    this.#clock = options.clock ?? systemClock;
    this.#device = deviceEnd(options.device, this.#clock);
    this.#underlay = underlayEnd(options.underlay, this.#clock);
  }

  async run(signal: AbortSignal): Promise<void> {
    await supervise([
      { name: "outbound", run: (signal) => this.#outbound(signal) },
      { name: "inbound", run: (signal) => this.#inbound(signal) },
      { name: "timers", run: (signal) => this.#timers(signal) },
    ], { signal, clock: this.#clock });
  }

  counters(): EndCounters {
    const counters = this.#counters;
    const { truncated, portFallbacks } = this.#underlay;
    const underlayReceived = counters.underlayReceived + truncated;
    // Every packet is a piece of its own.
    return {
      ...counters,
      underlayReceived,
      underlayTruncated: truncated,
      portFallbacks,
      deviceReads: counters.deviceReadPackets,
      deviceWrites: counters.deviceWritePackets + counters.deviceWriteErrors,
      underlaySends: counters.underlaySent,
      underlayReceives: underlayReceived,
    };
  }

  async close(): Promise<void> {
    // An end that cannot close has nobody left to tell: packets no longer move, and the other end closes all the same.
    await Promise.allSettled([this.#device, this.#underlay].map((end) => end.close()));
  }

  async #outbound(signal: AbortSignal): Promise<void> {
    const [packets, results, replies] = [newBatch(), newBatch(), newBatch()];
    const breath = new Breath();
    while (true) {
      await this.#fill(this.#device, packets, signal);
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
      await this.#fill(this.#underlay, packets, signal);
      for (let from = 0; from < packets.length;) {
        const processed = this.#engine.phyToVirt(packets, results, { from });
        from += processed;
        this.#counters.underlayReceived += processed;
        results.retain((i) => {
          if (results.verdict(i) !== "forward") return false;
          if (results.packetBytes(i) <= this.#device.largestBytes) return true;
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
  async #fill(end: PumpEnd, batch: PacketBatch, signal: AbortSignal): Promise<void> {
    batch.clear();
    const count = await this.#try(end, "take", signal, async () => {
      try {
        return await end.take(batch, signal);
      } catch (error) {
        // Packets that came before the failure have come; it will come again.
        if (batch.length === 0) throw error;
        return batch.length;
      }
    });
    if (batch.length > 0) return;
    const operation = operationOf(end, "take");
    if (count === 0) {
      throw new DatapathError(`Cannot ${operation} as it is closed: run the datapath with another ${end.name}`, {
        code: "closed",
        operation,
      });
    }
    throw brokenEnd(
      operation,
      `"${end.calls.take}" must append at least one packet, or return 0 when it is closed: it returned ${count} and ` +
        `appended none`,
    );
  }

  #drainToDevice(batch: PacketBatch, signal: AbortSignal): Promise<void> {
    return this.#writes.take(async () => {
      const { reason } = await this.#drain(this.#device, batch, signal, (_index, outcome) => {
        if (outcome === "taken") this.#counters.deviceWritePackets += 1;
        else this.#counters.deviceWriteErrors += 1;
      });
      if (reason !== undefined) throw reason.error;
    });
  }

  #drainToUnderlay(batch: PacketBatch, signal: AbortSignal): Promise<void> {
    return this.#sends.take(async () => {
      const { reason } = await this.#drain(this.#underlay, batch, signal, (index, outcome) => {
        if (outcome === "taken") {
          this.#counters.underlaySent += 1;
          return;
        }
        this.#counters.underlaySendErrors += 1;
        this.#engine.countTxErrors(batch.vni(index), 1);
      });
      if (reason !== undefined) throw reason.error;
    });
  }

  /** Hands all packets of `batch` over, a part at a time if need be. Tells of each what became of it, and why if some are left. */
  async #drain(
    end: PumpEnd,
    batch: PacketBatch,
    signal: AbortSignal,
    onDone: (index: number, outcome: "taken" | "refused") => void,
  ): Promise<{ readonly reason?: { readonly error: unknown } }> {
    let from = 0;
    while (from < batch.length) {
      const left = batch.length - from;
      let given: Given;
      try {
        given = await this.#try(end, "give", signal, () => end.give(batch, from, signal));
        const { count } = given;
        if (!(Number.isInteger(count) && count >= 1 && count <= left)) {
          throw brokenEnd(
            operationOf(end, "give"),
            `"${end.calls.give}" must return how many packets it took, 1 to ${left}: it returned ${count}`,
          );
        }
      } catch (error) {
        for (; from < batch.length; from++) onDone(from, "refused");
        return { reason: { error } };
      }
      const refused = new Set(given.refused);
      for (let i = 0; i < given.count; i++) onDone(from + i, refused.has(i) ? "refused" : "taken");
      from += given.count;
    }
    return {};
  }

  /** Asks an end, again after a failure, until it answers, fails too often in a row, or `signal` aborts. */
  async #try<T>(end: PumpEnd, call: "take" | "give", signal: AbortSignal, ask: () => Promise<T>): Promise<T> {
    const streak = this.#streaks[end.name][call];
    while (true) {
      signal.throwIfAborted();
      try {
        // An end that does not hear the signal is left behind; what it does later reaches batches that nobody reads.
        const answer = await orAbort(ask(), signal);
        streak.reset();
        return answer;
      } catch (error) {
        if (signal.aborted) throw signal.reason;
        if (!end.mayRecover) throw error;
        const delayMs = streak.fail();
        if (delayMs === undefined) {
          const operation = operationOf(end, call);
          const reason = error instanceof Error ? error.message : String(error);
          throw new DatapathError(
            `Cannot ${operation} as it failed ${FailureStreak.LIMIT} times in a row, at last with "${reason}": ` +
              `mend or replace the ${end.name}`,
            { code: "end-failed", operation, cause: error },
          );
        }
        await delay(delayMs, { signal, clock: this.#clock });
      }
    }
  }
}

function operationOf(end: PumpEnd, call: "take" | "give"): string {
  return `${end.calls[call]} packets ${call === "take" ? "from" : "to"} the ${end.name}`;
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
