/** `icx proxy`: proxies and forwards into a tunnel, without a device or rights. */

import type { ExitCode } from "./exit.ts";
import { type ProxyArguments, withoutDevice } from "./options.ts";
import { runTunnel } from "./tunnel.ts";
import { DEFAULT_PROXY_PORTS } from "./tunnel_options.ts";

/** Runs the tunnel; resolves with the exit code once it has stopped. */
export async function proxy(args: ProxyArguments): Promise<ExitCode> {
  const { socks5, httpConnect, forwards, reverses } = args;
  const isBare = [socks5, httpConnect, forwards, reverses].every((services) => services.length === 0);
  const port = DEFAULT_PROXY_PORTS["--socks5"] ?? 0;
  const usual = [{ listen: { host: "127.0.0.1", port }, usersFile: undefined }];
  return await runTunnel({ ...withoutDevice, ...args, socks5: isBare ? usual : socks5 });
}
