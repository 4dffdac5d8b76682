/** Tells on standard error how far a run is: one line that changes on a terminal, a line for each step elsewhere. */

import { columns, err, painter } from "../terminal.ts";

/** Told of each step as it begins and ends. */
export interface Progress {
  /** What lies ahead. */
  begin(plan: { readonly steps: number; readonly seconds: number }): void;
  /** A step begins. */
  step(title: string): void;
  /** The step is done, with what came of it. */
  done(result: string): void;
  /** Steps that will not be taken. */
  skip(steps: number): void;
  /** Nothing more comes, whether or not the last step was done. */
  end(): void;
}

/** Time left as people say it. */
export function remaining(seconds: number): string {
  return seconds >= 90 ? `${Math.round(seconds / 60)} min` : `${Math.max(1, Math.round(seconds))} s`;
}

/** Progress on standard error. */
export class StderrProgress implements Progress {
  readonly #paint = painter("stderr");
  readonly #width = columns("stderr");
  readonly #startedAt = performance.now();
  #plan = { steps: 0, seconds: 0 };
  #taken = 0;
  #title = "";
  /** Whether the cursor stands behind a step that is not done. */
  #open = false;

  begin(plan: { readonly steps: number; readonly seconds: number }): void {
    this.#plan = plan;
    err(`${plan.steps} steps, about ${remaining(plan.seconds)}\n`);
  }

  step(title: string): void {
    this.#title = title;
    if (this.#width === undefined) return;
    this.#open = true;
    err(`\r\x1b[K${this.#fit(`${this.#count()} ${title} … ${this.#left()}`)}`);
  }

  done(result: string): void {
    this.#taken++;
    this.#open = false;
    const line = `${this.#count()} ${this.#title}: ${result}`;
    err(
      this.#width === undefined
        ? `${line}\n`
        : `\r\x1b[K${this.#paint("dim", this.#count())} ${this.#title}: ${result}\n`,
    );
  }

  skip(steps: number): void {
    this.#taken += steps;
  }

  end(): void {
    if (this.#open) err("\n");
    this.#open = false;
  }

  #count(): string {
    const total = String(this.#plan.steps);
    return `[${String(this.#taken).padStart(total.length)}/${total}]`;
  }

  /** From the plan at first, then from how it has gone so far. */
  #left(): string {
    const { steps, seconds } = this.#plan;
    const elapsed = (performance.now() - this.#startedAt) / 1000;
    const share = this.#taken / steps;
    const left = share < 0.05 ? seconds - elapsed : elapsed * (1 - share) / share;
    return `(about ${remaining(left)} left)`;
  }

  /** Cut to one line of the terminal, which the next one replaces. */
  #fit(text: string): string {
    const width = this.#width ?? text.length;
    return text.length < width ? text : `${text.slice(0, width - 2)}…`;
  }
}
