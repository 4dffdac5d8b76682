/** The signals that ask a command to stop. */

import process from "node:process";
import type { SignalSource } from "../datapath/shutdown_signals.ts";

const EXIT_CODES: Readonly<Record<string, number>> = { SIGINT: 130, SIGTERM: 143 };

/** SIGINT and SIGTERM of this process. */
export const stopSignals: SignalSource = {
  subscribe(listener) {
    const onSignal = (name: string) => listener(name);
    process.on("SIGINT", onSignal);
    process.on("SIGTERM", onSignal);
    return () => {
      process.off("SIGINT", onSignal);
      process.off("SIGTERM", onSignal);
    };
  },
};

/** Ends the process as the signal would have. */
export function exitBySignal(name: string): void {
  process.exit(EXIT_CODES[name] ?? 1);
}
