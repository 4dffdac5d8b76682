/** The Debian packages, each with the reason it is needed. */

import fs from "node:fs/promises";
import process from "node:process";
import { type Console, run, SetupError } from "./setup_console.ts";

interface Package {
  readonly name: string;
  readonly why: string;
}

const BUILD: readonly Package[] = [
  { name: "gcc", why: "compiles the cryptography library and links" },
  { name: "libc6-dev", why: "C headers for the same" },
  { name: "ca-certificates", why: "cargo fetches crates over TLS" },
];

/** Without these the core library is built alone. */
const AFXDP: readonly Package[] = [
  { name: "clang", why: "compiles the XDP programs" },
  { name: "libclang-dev", why: "reads the C headers of the AF_XDP library" },
  { name: "libbpf-dev", why: "headers for the XDP programs" },
  { name: "libelf-dev", why: "the AF_XDP library reads object files" },
  { name: "zlib1g-dev", why: "the same, where they are compressed" },
  { name: "m4", why: "the AF_XDP library makes a source with it" },
  { name: "make", why: "builds the AF_XDP library" },
  { name: "pkg-config", why: "finds libraries for the same" },
];

const DEMO: readonly Package[] = [
  { name: "iproute2", why: "the demo makes network namespaces" },
  { name: "iputils-ping", why: "the demo pings through the tunnel" },
];

const TESTS: readonly Package[] = [
  { name: "curl", why: "tests fetch through proxies" },
  { name: "ethtool", why: "tests switch device offloads" },
  { name: "iperf3", why: "tests measure and load the tunnel" },
  { name: "nftables", why: "tests block and drop traffic" },
  { name: "openssl", why: "tests make long reproducible streams" },
  { name: "socat", why: "tests move data over TCP and UDP" },
  { name: "tcpdump", why: "tests look at what is on the wire" },
];

/** Which sets of packages are wanted. */
export interface PackageOptions {
  /** Also what the privileged tests drive. */
  readonly tests: boolean;
}

/** Installs what is missing when root on Debian; otherwise says what to install by hand. */
export async function checkPackages(options: PackageOptions, out: Console): Promise<void> {
  const needed = [...BUILD, ...DEMO, ...(options.tests ? TESTS : [])];
  const wanted = [...needed, ...AFXDP];
  if (!await isDebian()) {
    out.line(
      `this is not Debian, so packages are not checked; it takes the equivalents of ${
        wanted.map((p) => p.name).join(", ")
      }`,
    );
    return;
  }
  const missing = await missingPackages(wanted);
  if (missing.length === 0) return;

  out.line(`${missing.length} Debian ${missing.length === 1 ? "package is" : "packages are"} missing:`);
  for (const { name, why } of missing) out.line(`  ${name.padEnd(16)} ${why}`);
  const names = missing.map(({ name }) => name);
  const byHand = `apt-get update && apt-get install -y --no-install-recommends ${names.join(" ")}`;
  if (process.getuid?.() !== 0) {
    if (!missing.some((lacking) => needed.includes(lacking))) {
      out.line(`without them there is no AF_XDP datapath; to have it: sudo sh -c '${byHand}', and run this again`);
      return;
    }
    throw new SetupError("installing packages needs root, and this is not root", `sudo sh -c '${byHand}'`);
  }
  await apt(["update"], "refresh the package lists", byHand, out);
  await apt(["install", "-y", "--no-install-recommends", ...names], `install ${names.join(" ")}`, byHand, out);

  const still = await missingPackages(wanted);
  if (still.length > 0) {
    throw new SetupError(`apt-get ended well, yet ${still.map((p) => p.name).join(", ")} is not installed`, byHand);
  }
}

async function apt(args: readonly string[], title: string, byHand: string, out: Console): Promise<void> {
  const env = { DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C" };
  const result = await out.step(title, () => run("/usr/bin/apt-get", ["-q", ...args], { env }));
  if (!result.ok) {
    throw new SetupError(`apt-get ${args[0]} failed with exit code ${result.code}`, `look into it, then: ${byHand}`, {
      output: result.tail,
    });
  }
}

async function isDebian(): Promise<boolean> {
  try {
    const release = await fs.readFile("/etc/os-release", "utf8");
    return /^(ID|ID_LIKE)=.*\bdebian\b/m.test(release);
  } catch {
    return false;
  }
}

async function missingPackages(wanted: readonly Package[]): Promise<Package[]> {
  const format = "${Package} ${db:Status-Status}\\n";
  const args = ["-W", "-f", format, ...wanted.map(({ name }) => name)];
  // Exit code 1 means that some names are unknown to dpkg: those are simply not in its output.
  const { stdout, code, tail } = await run("/usr/bin/dpkg-query", args, { env: { LC_ALL: "C" } });
  if (code !== 0 && code !== 1) {
    throw new SetupError("dpkg-query cannot tell which packages are installed", "repair dpkg first", { output: tail });
  }
  const installed = new Set(
    stdout.split("\n").map((line) => line.split(" ")).filter(([, status]) => status === "installed").map(([name]) =>
      name
    ),
  );
  return wanted.filter(({ name }) => !installed.has(name));
}
