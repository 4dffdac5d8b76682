/**
 * Checks of arguments where types alone do not hold: every message says what was given and what is allowed.
 *
 * @module
 */

/** What an argument is for: `Cannot <operation> as "<name>" must be …`. */
export interface Argument {
  /** What the caller asked for, such as `make a batch`. */
  readonly operation: string;
  /** The argument or option. */
  readonly name: string;
}

/** A range, both ends included. */
export interface Range {
  /** The least value. */
  readonly min: number;
  /** The greatest value. */
  readonly max: number;
}

const MOST_CHARACTERS = 80;

/** A value as messages show it: texts and numbers as they are, of everything else only what kind it is. */
export function shown(value: unknown): string {
  switch (typeof value) {
    case "string":
      return JSON.stringify(value.length > MOST_CHARACTERS ? `${value.slice(0, MOST_CHARACTERS)}…` : value);
    case "bigint":
      return `${value}n`;
    case "function":
      return "a function";
    case "object":
      return value === null ? "null" : Array.isArray(value) ? `a list of ${value.length}` : objectKind(value);
    default:
      return String(value);
  }
}

function objectKind({ constructor }: object): string {
  const named = typeof constructor === "function" && constructor !== Object && constructor.name !== "";
  return named ? `an object of the class ${constructor.name}` : "an object";
}

function text({ operation, name }: Argument, allowed: string, value: unknown): string {
  return `Cannot ${operation} as "${name}" must be ${allowed}: current value is ${shown(value)}`;
}

/** Makes sure that an argument is what `holds` says. @throws {TypeError} */
export function requireType(holds: boolean, value: unknown, argument: Argument & { readonly allowed: string }): void {
  if (!holds) throw new TypeError(text(argument, argument.allowed, value));
}

/** Makes sure that an argument is an object, such as options are. @throws {TypeError} */
export function requireObject(value: unknown, argument: Argument): void {
  requireType(typeof value === "object" && value !== null, value, { ...argument, allowed: "an object" });
}

/** Makes sure that an argument is a text. @throws {TypeError} */
export function requireText(value: unknown, argument: Argument): void {
  requireType(typeof value === "string", value, { ...argument, allowed: "text" });
}

/** Makes sure that an argument is a function. @throws {TypeError} */
export function requireFunction(value: unknown, argument: Argument): void {
  requireType(typeof value === "function", value, { ...argument, allowed: "a function" });
}

/** Makes sure that an argument is a whole number in a range. @throws {TypeError} @throws {RangeError} */
export function requireInteger(value: unknown, argument: Argument & Range): void {
  const { min, max } = argument;
  const allowed = `a whole number from ${min} to ${max}`;
  requireThat(value, (number) => Number.isInteger(number) && number >= min && number <= max, { ...argument, allowed });
}

/** Makes sure that an argument is a number in a range. @throws {TypeError} @throws {RangeError} */
export function requireNumber(value: unknown, argument: Argument & Range): void {
  const { min, max } = argument;
  const allowed = `a number from ${min} to ${max}`;
  requireThat(value, (number) => number >= min && number <= max, { ...argument, allowed });
}

/** Makes sure that an argument is a number above 0, at most `max`. @throws {TypeError} @throws {RangeError} */
export function requirePositive(value: unknown, argument: Argument & { readonly max: number }): void {
  const { max } = argument;
  const allowed = `a number above 0, at most ${max}`;
  requireThat(value, (number) => number > 0 && number <= max, { ...argument, allowed });
}

function requireThat(
  value: unknown,
  holds: (number: number) => boolean,
  argument: Argument & { readonly allowed: string },
): void {
  if (typeof value !== "number") throw new TypeError(text(argument, argument.allowed, value));
  if (!holds(value)) throw new RangeError(text(argument, argument.allowed, value));
}

/** How many packets something that keeps them in memory may take. */
export const CAPACITY_RANGE: Range = { min: 1, max: 2 ** 31 - 1 };

/** A network's number: 0 to 16777215. */
export const VNI_RANGE: Range = { min: 0, max: 2 ** 24 - 1 };
