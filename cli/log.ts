/** Logging of the commands: lines for people on a terminal, JSON lines for programs, both on standard error. */

import { configureSync, getJsonLinesFormatter, getLogger, type LogRecord } from "@logtape/logtape";
import { err, type Paint, painter, type Style, tellLostLines } from "./terminal.ts";

/** How much to say, from least to most. */
export type LogLevel = "error" | "warning" | "info" | "debug" | "trace";

/** Options of {@linkcode openLog}. */
export interface LogOptions {
  /** The least important level that is still shown. */
  readonly level: LogLevel;
  /** Text for people, or one JSON object a line. */
  readonly format: "text" | "json";
}

/** Values that go with a line: `event` names what happened, the rest is its data. */
export type LogFields = Readonly<Record<string, unknown>> & { readonly event: string };

/** Writes lines with their data. */
export type Log = (level: LogLevel, text: string, fields: LogFields) => void;

const STYLES: Readonly<Record<string, Style>> = {
  error: "red",
  fatal: "red",
  warning: "yellow",
  debug: "dim",
  trace: "dim",
};

/** Sets the process's logging up and returns the function that writes to it. */
export function openLog(options: LogOptions): Log {
  const json = getJsonLinesFormatter();
  const paint = painter("stderr");
  const format = options.format === "json" ? json : (record: LogRecord) => line(record, paint);
  const sink = (record: LogRecord) => err(format(record));
  tellLostLines((lines) => format(lossRecord(lines)));
  configureSync({
    reset: true,
    sinks: { stderr: sink },
    loggers: [
      { category: ["icx"], lowestLevel: options.level, sinks: ["stderr"] },
      { category: ["logtape", "meta"], lowestLevel: "error", sinks: ["stderr"] },
    ],
  });
  const logger = getLogger(["icx"]);
  return (level, text, fields) => {
    // A program that reads JSON has the fields; the lines below the first are for people.
    const shown = options.format === "json" ? text.split("\n", 1)[0] ?? "" : text;
    logger[level](shown.replaceAll("{", "{{").replaceAll("}", "}}"), { ...fields });
  };
}

/** What stands where lines are missing. */
function lossRecord(lines: number): LogRecord {
  const text = `${lines} lines of this log could not be written: its reader was stuck or gone, or the disk full`;
  return {
    category: ["icx"],
    level: "warning",
    message: [text],
    rawMessage: text,
    timestamp: Date.now(),
    properties: { event: "log-lost", lines },
  };
}

function line(record: LogRecord, paint: Paint): string {
  const time = new Date(record.timestamp).toTimeString().slice(0, 8);
  const text = record.message.map(String).join("");
  const style = STYLES[record.level];
  const label = record.level === "warning" || record.level === "error" ? `${record.level}: ` : "";
  return `${paint("dim", time)} ${style === undefined ? text : paint(style, label + text)}\n`;
}
