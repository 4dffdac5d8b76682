/** What a tunnel's events are to the person who runs it. */

import type { TunnelEvent } from "../control/lifecycle.ts";
import type { ForwarderNotice } from "../datapath/afxdp.ts";
import type { LogFields, LogLevel } from "./log.ts";

/** A line for the log. */
export interface Line {
  readonly level: LogLevel;
  readonly text: string;
  readonly fields: LogFields;
}

/** What a tunnel's lines need to know beside the event. */
export interface TunnelContext {
  /** The peer's data endpoint as it was given. */
  readonly peer: string;
  /** The peer's data port. */
  readonly peerPort: number;
  /** The own data port. */
  readonly port: number;
  /** The network. */
  readonly vni: number;
}

/** Turns events into lines; the first keys are news, later ones are routine. */
export class TunnelNarrator {
  readonly #context: TunnelContext;
  #up = false;
  #lost = false;
  #calling = false;

  constructor(context: TunnelContext) {
    this.#context = context;
  }

  /** The line for an event, `undefined` when it is not worth one. */
  tell(event: TunnelEvent): Line | undefined {
    const { peer, peerPort, port, vni } = this.#context;
    switch (event.type) {
      case "state":
        if (event.state === "listening" && !this.#up) {
          return line("info", `waiting for ${peer} to call`, { event: "waiting" });
        }
        if (event.state === "dialing" && !this.#calling) {
          this.#calling = true;
          return line("info", `calling ${peer}`, { event: "waiting" });
        }
        return line("trace", `tunnel: ${event.previous} -> ${event.state}`, {
          event: "state",
          state: event.state,
          previous: event.previous,
        });
      case "session-up":
        return line(this.#up && !this.#lost ? "debug" : "info", `handshake complete with ${event.remote}`, {
          event: "handshake",
          remote: event.remote,
          sessions: event.sessions,
        });
      case "keys": {
        const first = !this.#up;
        const again = this.#lost;
        this.#up = true;
        this.#lost = false;
        const fields = { rxSpi: event.rxSpi, txSpi: event.txSpi, exchanges: event.exchanges };
        if (first) return line("info", "tunnel is up", { event: "up", ...fields });
        if (again) return line("info", "tunnel is up again, with new keys", { event: "keys", ...fields });
        return line("debug", `new keys (exchange ${event.exchanges})`, { event: "keys", ...fields });
      }
      case "session-lost":
        if (event.superseded) {
          return line("info", "the peer called again: its new session replaces the old one", {
            event: "session-superseded",
            reason: event.reason,
          });
        }
        this.#lost = true;
        return line("warning", `session lost: ${event.reason}; the keys in place go on until they expire`, {
          event: "session-lost",
          reason: event.reason,
        });
      case "unreachable":
        return line(
          "warning",
          `${peer} is not reached after ${event.attempts} ${
            event.attempts === 1 ? "try" : "tries"
          }: ${event.reason}; ` +
            `trying again in ${(event.delayMs / 1000).toFixed(1)} s`,
          { event: "unreachable", reason: event.reason, attempts: event.attempts, delayMs: event.delayMs },
        );
      case "no-return-traffic":
        return line(
          "warning",
          `the handshake worked and packets were sent, but nothing of ${peer} has opened for ` +
            `${Math.round(event.afterMs / 1000)} s. Likely causes: UDP port ${port} here or ${peerPort} there is ` +
            `blocked on the way, or the peer uses another VNI than ${vni}`,
          { event: "no-return-traffic", afterMs: event.afterMs },
        );
    }
  }
}

function line(level: LogLevel, text: string, fields: LogFields): Line {
  return { level, text, fields };
}

/** What happened to the interface, for people. */
const LINK_TEXT: Readonly<Record<string, string>> = {
  up: "is there and up: packets move",
  down: "is down: packets move again once it is up",
  removed: "is gone: packets move again once there is one of that name",
  stopped: "is given back",
};

/** The line for what a forwarder tells. */
export function forwarderLine(notice: ForwarderNotice): Line {
  switch (notice.notice) {
    case "link": {
      const { link, interface: name } = notice;
      const fields = { event: "link", link, interface: name };
      return line(link === "up" ? "info" : "warning", `${name} ${LINK_TEXT[link]}`, fields);
    }
    case "next-hop": {
      const { peer, mac, reason } = notice;
      const fields = { event: "next-hop", peer, mac, reason };
      return mac === null
        ? line("warning", `frames to ${peer} are dropped: ${reason}`, fields)
        : line("debug", `frames to ${peer} go to ${mac}`, fields);
    }
    case "oversize":
      return line("warning", notice.hint, { event: "oversize" });
    case "capture-failed":
      return line("warning", `the capture has ended: ${notice.message}`, { event: "capture-failed" });
  }
}
