/** What `tests/netns` shows over one datapath or with less data, over the others and with more. */
import { rekeyTests } from "../netns/_rekey.ts";
import { restartTests, suspendTests } from "../netns/_restart.ts";
import { trafficTests } from "../netns/_traffic.ts";

trafficTests(["afxdp, veth", "afxdp, tun"], { underlay: "ipv4", mib: 1024 });
trafficTests(["afxdp, veth, generic"], { underlay: "ipv6", mib: 1024 });
rekeyTests(["afxdp, tun"]);
restartTests("SIGTERM", ["afxdp, tun"]);
suspendTests(["afxdp, veth"]);
