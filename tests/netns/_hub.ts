/** A node with the configuration of its first argument, until SIGTERM; prints what each network carried. */
import process from "node:process";
import { Node, parseNodeConfig } from "../../mod.ts";

const stop = new AbortController();
process.on("SIGTERM", () => stop.abort());

await using node = await Node.open(parseNodeConfig(JSON.parse(process.argv[2] ?? "")), { signal: stop.signal });
await node.run({ signal: stop.signal });

const { datapath, peers } = node.stats();
const carried = [...datapath.networks].map(([vni, counters]) => [
  vni,
  {
    rx: Number(counters.rx_packets),
    tx: Number(counters.tx_packets),
    exchanges: peers.get(vni)?.tunnel.exchanges ?? 0,
  },
]);
process.stdout.write(JSON.stringify(Object.fromEntries(carried)));
