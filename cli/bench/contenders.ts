/** What can be measured: icx by datapath, other tunnels that are installed, and the bare wire between the namespaces. */

import fs from "node:fs/promises";
import process from "node:process";
import { LAUNCHER, makeIdentity, NodeProcess } from "../node_process.ts";
import { type NamespacePair, UNDERLAY, UNDERLAY_DEVICE } from "../namespace_pair.ts";
import { OVERLAY, type Program, type Side, SIDES } from "../program_host.ts";
import { VERSION } from "../version.ts";
import { UsageError } from "../exit.ts";
import { findProgram, shell } from "../shell.ts";
import { NoFigure } from "./readings.ts";

/** A contender at work. */
export interface Started {
  /** Address of each side through the contender. */
  readonly addresses: Readonly<Record<Side, string>>;
  /** Process ids of the nodes; none where the kernel does the work. */
  readonly pids: readonly number[];
  /** Why there are no process ids. */
  readonly noProcess?: string;
}

/** Something to measure. */
export interface Contender {
  readonly id: string;
  readonly title: string;
  readonly version?: string;
  /** How it is started, for the report. */
  readonly commands: readonly string[];
  /** Starts a node on each side; what it starts ends with the pair. */
  start(pair: NamespacePair): Promise<Started>;
}

/** What may follow a contender's name. */
type Extra = "nothing" | "program" | "options";

interface Kind {
  readonly id: string;
  readonly title: string;
  readonly extra: Extra;
  /** Programs it may be installed as, the first choice first. */
  readonly programs: readonly string[];
  /** Other programs it takes. */
  readonly needs: readonly Tool[];
  make(kind: Kind, given: { readonly program: string; readonly extra: string | undefined }): Promise<Contender>;
}

/** A program and the Debian package that has it. */
export interface Tool {
  readonly program: string;
  readonly package: string;
}

const WG: Tool = { program: "wg", package: "wireguard-tools" };

const KINDS: readonly Kind[] = [
  { id: "none", title: "bare wire", extra: "nothing", programs: [], needs: [], make: bareWire },
  { id: "icx-tun", title: "icx (tun)", extra: "options", programs: [], needs: [], make: icxTun },
  {
    id: "wireguard-go",
    title: "wireguard-go",
    extra: "program",
    // `go install golang.zx2c4.com/wireguard@latest` names it after the module.
    programs: ["wireguard-go", "wireguard"],
    needs: [WG],
    make: (kind, { program }) => userspaceWireGuard(kind, program, []),
  },
  {
    id: "boringtun",
    title: "boringtun",
    extra: "program",
    programs: ["boringtun-cli", "boringtun"],
    needs: [WG],
    make: (kind, { program }) => userspaceWireGuard(kind, program, ["--disable-drop-privileges"]),
  },
  { id: "wireguard", title: "WireGuard (kernel)", extra: "nothing", programs: [], needs: [WG], make: kernelWireGuard },
  { id: "nebula", title: "nebula", extra: "program", programs: ["nebula"], needs: [], make: nebula },
];

/** Names that `--contender` takes. */
export const CONTENDER_NAMES: readonly string[] = KINDS.map(({ id }) => id);

/** Whom ratios are taken to, the first choice first. */
const REFERENCES = ["wireguard-go", "wireguard", "none"] as const;

/** The contender that the others are compared with; none when it would be alone. */
export function referenceOf(contenders: readonly { readonly id: string }[]): string | undefined {
  const ids = contenders.map(({ id }) => id);
  return ids.length < 2 ? undefined : REFERENCES.find((id) => ids.includes(id));
}

/**
 * Makes the contenders that are asked for, as `NAME` or `NAME=PROGRAM` (for icx: `NAME=OPTIONS` of `icx up`), or without any
 * the bare wire, icx, and whatever else is installed.
 *
 * @throws {UsageError} When one is not known, or not installed.
 */
export async function contendersOf(asked: readonly string[]): Promise<readonly Contender[]> {
  if (asked.length > 0) {
    const contenders: Contender[] = [];
    for (const text of asked) {
      const contender = await oneContender(text);
      if (contenders.some(({ id }) => id === contender.id)) {
        throw new UsageError(`--contender ${contender.id} is given twice: name each one once`);
      }
      contenders.push(contender);
    }
    return contenders;
  }
  const found: Contender[] = [];
  for (const kind of KINDS) {
    const program = await installed(kind);
    if (program === undefined) continue;
    if ((await missingTools(kind.needs)).length > 0) continue;
    found.push(await kind.make(kind, { program, extra: undefined }));
  }
  return found;
}

async function oneContender(text: string): Promise<Contender> {
  const [name = "", ...rest] = text.split("=");
  const extra = rest.length === 0 ? undefined : rest.join("=");
  const kind = KINDS.find(({ id }) => id === name);
  if (kind === undefined) {
    throw new UsageError(`--contender ${JSON.stringify(name)} is not known: use one of ${CONTENDER_NAMES.join(", ")}`);
  }
  if (extra !== undefined && kind.extra === "nothing") {
    throw new UsageError(`--contender ${name} takes nothing after its name, but got ${JSON.stringify(extra)}`);
  }
  const missing = await missingTools(kind.needs);
  if (missing.length > 0) throw new UsageError(`--contender ${name} needs ${missingText(missing)}`);
  if (kind.extra === "program" && extra !== undefined) {
    const program = await findProgram(extra);
    if (program === undefined) {
      throw new UsageError(`--contender ${text}: there is no program ${extra}: give the path of ${kind.programs[0]}`);
    }
    return await kind.make(kind, { program, extra });
  }
  const program = await installed(kind);
  if (program === undefined) {
    throw new UsageError(
      kind.programs.length === 0
        ? `--contender ${name}: this kernel has no WireGuard: leave it out`
        : `--contender ${name}: there is no ${
          kind.programs.join(" or ")
        } on the PATH: install it, or give its path as ${name}=PATH`,
    );
  }
  return await kind.make(kind, { program, extra });
}

/** The program of a kind as found, `""` where it needs none, `undefined` where it is not there. */
async function installed(kind: Kind): Promise<string | undefined> {
  if (kind.id === "wireguard") return await hasKernelWireGuard() ? "" : undefined;
  if (kind.programs.length === 0) return "";
  for (const name of kind.programs) {
    const program = await findProgram(name);
    if (program !== undefined) return program;
  }
  return undefined;
}

/** Those of some tools that are not installed. */
export async function missingTools(tools: readonly Tool[]): Promise<readonly Tool[]> {
  const found = await Promise.all(tools.map(({ program }) => findProgram(program)));
  return tools.filter((_, index) => found[index] === undefined);
}

/** Says which tools are missing and how to get them. */
export function missingText(tools: readonly Tool[]): string {
  const names = [...new Set(tools.map((tool) => tool.package))].join(" ");
  return `${tools.map(({ program }) => program).join(", ")}, which is not installed: apt-get install ${names}`;
}

async function hasKernelWireGuard(): Promise<boolean> {
  return (await shell("[ -d /sys/module/wireguard ] || modinfo wireguard >/dev/null 2>&1")).code === 0;
}

function both<T>(of: (side: Side) => T): Readonly<Record<Side, T>> {
  return { a: of("a"), b: of("b") };
}

function other(side: Side): Side {
  return side === "a" ? "b" : "a";
}

function bareWire(kind: Kind): Promise<Contender> {
  return Promise.resolve({
    ...facts(kind),
    commands: [`# the wire itself: ${UNDERLAY.a} and ${UNDERLAY.b}`],
    start: () => Promise.resolve({ addresses: UNDERLAY, pids: [], noProcess: "there is no tunnel" }),
  });
}

function facts({ id, title }: Kind): { readonly id: string; readonly title: string } {
  return { id, title };
}

function icxTun(kind: Kind, { extra }: { readonly extra: string | undefined }): Promise<Contender> {
  const options = extra?.split(/\s+/).filter((word) => word !== "") ?? [];
  const args = (side: Side) => [
    ...["--address", `${OVERLAY[side]}/24`, "--allowed-route", "10.9.0.0/24", "--datapath", "tun"],
    ...options,
    `${UNDERLAY[other(side)]}:6081`,
  ];
  return Promise.resolve({
    id: [kind.id, ...options].join(" "),
    title: [kind.title, ...options].join(" "),
    version: VERSION,
    commands: SIDES.map((side) => `icx up --identity-key ${side}.key --peer-key KEY ${args(side).join(" ")}`),
    start: async (pair: NamespacePair) => {
      const keys = { a: await makeIdentity(pair, "a"), b: await makeIdentity(pair, "b") };
      const nodes = SIDES.map((side) =>
        NodeProcess.start(pair, side, LAUNCHER, [
          ...["up", "--identity-key", `${pair.folder}/${side}.key`, "--peer-key", keys[other(side)]],
          ...["--log-format", "json"],
          ...args(side),
        ])
      );
      await Promise.all(nodes.map((node) => node.seen("up", 20_000)));
      return { addresses: OVERLAY, pids: nodes.map(({ pid }) => pid) };
    },
  });
}

/** Device name of a WireGuard node: unique on the host, for the sockets that userspace ones make outside the namespaces. */
function wireGuardDevice(side: Side): string {
  return `icxb${process.pid}${side}`;
}

/** Makes a key that stays in a file, and returns the public one. */
async function wireGuardKey(pair: NamespacePair, side: Side): Promise<string> {
  const file = `${pair.folder}/${side}.wg`;
  return (await pair.run(side, "/bin/sh", "-c", 'umask 077; wg genkey >"$1" && wg pubkey <"$1"', "sh", file)).trim();
}

/** The commands that make a device a WireGuard node, with `key` and `publicKey` as they are given. */
function wireGuardSetup(side: Side, key: string, publicKey: string): readonly (readonly string[])[] {
  const [device, peer] = [wireGuardDevice(side), other(side)];
  return [
    [
      ...["wg", "set", device, "private-key", key, "listen-port", "51820", "peer", publicKey],
      ...["allowed-ips", `${OVERLAY[peer]}/32`, "endpoint", `${UNDERLAY[peer]}:51820`],
    ],
    ["ip", "address", "add", `${OVERLAY[side]}/24`, "dev", device],
    ["ip", "link", "set", device, "mtu", "1420", "up"],
  ];
}

async function setUpWireGuard(pair: NamespacePair): Promise<void> {
  const keys = { a: await wireGuardKey(pair, "a"), b: await wireGuardKey(pair, "b") };
  for (const side of SIDES) {
    for (const [program = "", ...args] of wireGuardSetup(side, `${pair.folder}/${side}.wg`, keys[other(side)])) {
      await pair.run(side, program, ...args);
    }
  }
}

function wireGuardCommands(first: (side: Side) => string): readonly string[] {
  return SIDES.flatMap((
    side,
  ) => [first(side), ...wireGuardSetup(side, `${side}.key`, "KEY").map((line) => line.join(" "))]);
}

async function userspaceWireGuard(kind: Kind, program: string, options: readonly string[]): Promise<Contender> {
  const args = (side: Side) => ["-f", ...options, wireGuardDevice(side)];
  return {
    ...facts(kind),
    ...await versionOf(program),
    commands: wireGuardCommands((side) => [program, ...args(side)].join(" ")),
    start: async (pair) => {
      const nodes = both((side) => pair.start(side, "stderr", program, ...args(side)));
      const said = both((side) => new Tail(nodes[side]));
      for (const side of SIDES) await waitForDevice(pair, side, said[side]);
      await setUpWireGuard(pair);
      return { addresses: OVERLAY, pids: SIDES.map((side) => nodes[side].pid) };
    },
  };
}

function kernelWireGuard(kind: Kind): Promise<Contender> {
  const add = (side: Side) => ["link", "add", wireGuardDevice(side), "type", "wireguard"];
  return Promise.resolve({
    ...facts(kind),
    commands: wireGuardCommands((side) => `ip ${add(side).join(" ")}`),
    start: async (pair) => {
      for (const side of SIDES) await pair.ip(side, ...add(side));
      await setUpWireGuard(pair);
      return { addresses: OVERLAY, pids: [], noProcess: "the kernel does the work, there is no process" };
    },
  });
}

const NEBULA_MTU = 1400;

async function nebula(kind: Kind, { program }: { readonly program: string }): Promise<Contender> {
  const cert = await findProgram(`${program}-cert`);
  if (cert === undefined) {
    throw new UsageError(`--contender nebula: there is no ${program}-cert: it comes with nebula, put it beside it`);
  }
  return {
    ...facts(kind),
    ...await versionOf(program),
    commands: SIDES.map((side) => `${program} -config ${side}.yml  # cipher aes, batch 64, MTU ${NEBULA_MTU}`),
    start: async (pair) => {
      const { folder } = pair;
      const script = 'cd "$1" && "$2" ca -name bench && "$2" sign -name a -ip "$3" && "$2" sign -name b -ip "$4"';
      await pair.run("a", "/bin/sh", "-c", script, "sh", folder, cert, `${OVERLAY.a}/24`, `${OVERLAY.b}/24`);
      for (const side of SIDES) await fs.writeFile(`${folder}/${side}.yml`, nebulaConfig(folder, side));
      const nodes = both((side) => pair.start(side, "stderr", program, "-config", `${folder}/${side}.yml`));
      for (const side of SIDES) new Tail(nodes[side]);
      return { addresses: OVERLAY, pids: SIDES.map((side) => nodes[side].pid) };
    },
  };
}

function nebulaConfig(folder: string, side: Side): string {
  const everyone = "[{port: any, proto: any, host: any}]";
  const peer = other(side);
  return `pki: {ca: ${folder}/ca.crt, cert: ${folder}/${side}.crt, key: ${folder}/${side}.key}
static_host_map: {"${OVERLAY[peer]}": ["${UNDERLAY[peer]}:4242"]}
lighthouse: {am_lighthouse: false, hosts: []}
listen: {host: 0.0.0.0, port: 4242, batch: 64, read_buffer: 10485760, write_buffer: 10485760}
cipher: aes
tun: {dev: nebula-${side}, mtu: ${NEBULA_MTU}}
firewall: {outbound: ${everyone}, inbound: ${everyone}}
`;
}

async function versionOf(program: string): Promise<{ readonly version?: string }> {
  const { stdout } = await shell('"$1" --version 2>/dev/null || "$1" -version 2>/dev/null', program);
  const version = /v?[0-9]+\.[0-9]+[0-9A-Za-z.+-]*/.exec(stdout)?.[0];
  return version === undefined ? {} : { version };
}

/** Reads a program's lines so that it never waits for a reader, and keeps the last ones for what went wrong. */
class Tail {
  readonly #lines: string[] = [];
  ended = false;

  constructor(program: Program) {
    void this.#follow(program);
  }

  async #follow(program: Program): Promise<void> {
    try {
      for await (const line of program.lines) {
        if (line.trim() === "") continue;
        this.#lines.push(line);
        if (this.#lines.length > 5) this.#lines.shift();
      }
    } finally {
      this.ended = true;
    }
  }

  toString(): string {
    return this.#lines.join(" / ");
  }
}

async function waitForDevice(pair: NamespacePair, side: Side, said: Tail): Promise<void> {
  for (const deadline = performance.now() + 10_000; performance.now() < deadline;) {
    if ((await pair.ip(side, "-brief", "link", "show")).includes(wireGuardDevice(side))) return;
    if (said.ended) throw new NoFigure(`it ended at once${`${said}` === "" ? "" : `: ${said}`}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new NoFigure(`its device did not appear within 10 s${`${said}` === "" ? "" : `: ${said}`}`);
}

/** Has the kernel treat large sends on the wire as the network asks. */
export async function shapeWire(pair: NamespacePair, network: "veth" | "segmented"): Promise<void> {
  if (network === "veth") return;
  for (const side of SIDES) {
    await pair.run(
      side,
      "ethtool",
      ...["-K", UNDERLAY_DEVICE, "tx-udp-segmentation", "off", "gro", "on", "rx-udp-gro-forwarding", "on"],
    );
  }
}
