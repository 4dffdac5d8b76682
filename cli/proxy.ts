/** `icx proxy`: proxies and forwards into a tunnel, without a device or rights. */

import type { ExitCode } from "./exit.ts";
import { type ProxyArguments, withoutDevice } from "./options.ts";
import { LOOPBACK } from "./service_values.ts";
import { runTunnel } from "./tunnel.ts";
import { SOCKS_PORT } from "./tunnel_options.ts";

/** Runs the tunnel; resolves with the exit code once it has stopped. */
export async function proxy(args: ProxyArguments): Promise<ExitCode> {
  const { socks5, httpConnect, forwards, reverses } = args;
  const isBare = [socks5, httpConnect, forwards, reverses].every((services) => services.length === 0);
  const usual = [{ listen: { host: LOOPBACK, port: SOCKS_PORT }, usersFile: undefined }];
  return await runTunnel({ ...withoutDevice, ...args, socks5: isBare ? usual : socks5 });
}
