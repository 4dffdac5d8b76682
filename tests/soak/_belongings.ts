/** What there is on a host besides the programs that run there. */
import { eventually, type Host, ok } from "../netns/_lab.ts";

/** Everything that a process could leave behind, where the interface `phy` leads to the other host. */
const LOOK = `
ip -d -o link; ip -o address; ip route show table all; ip rule; ss -Hlnuptw; ls /proc/sys/net/ipv4/conf | tr "\\n" " "
sed 1d /proc/net/udp /proc/net/udp6 /proc/net/raw /proc/net/packet /proc/net/netlink | wc -l
grep "^XDP " /proc/net/protocols
sysctl -a 2>/dev/null | grep -E "^net\\.(core|ipv4|ipv6)\\." | sort
ethtool -k phy
grep . /sys/class/net/phy/napi_defer_hard_irqs /sys/class/net/phy/gro_flush_timeout /sys/class/net/phy/threaded
ls /run/icx 2>/dev/null | grep "^$(stat -Lc %i /proc/self/ns/net)-"
true
`;

/** What a host has that a process could leave behind: devices, addresses, routes, rules, sockets, settings, programs, files. */
export async function belongings(host: Host): Promise<string> {
  // Addresses of a link that has just come up are still being tried.
  await eventually(
    "settled addresses",
    10_000,
    async () => !/ tentative /.test(await host.ok(["ip", "-o", "address"])),
  );
  // A namespace shows the pins of none.
  return await host.ok(["/bin/sh", "-c", LOOK]) + await ok(["/bin/sh", "-c", "find /sys/fs/bpf"]);
}
