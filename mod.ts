/**
 * icx: an encrypted overlay tunnel for Linux hosts and containers.
 *
 * A {@linkcode Node} is a whole tunnel endpoint, made of parts that also work on their own: an {@linkcode Identity}, a
 * {@linkcode ControlEndpoint} with a {@linkcode Tunnel} for each peer, an {@linkcode Engine} that seals and opens packets,
 * and a {@linkcode Datapath} that moves them.
 *
 * @example Seal a packet in one engine, open it in another
 * ```ts
 * import { addressBytes, Engine, Library, PacketBatch } from "@icx/icx";
 * import { deepStrictEqual, strictEqual } from "node:assert";
 *
 * await using library = Library.open();
 * const options = { library, dangerManualClock: true, dangerIsolatedKeyHistory: true };
 * using left = Engine.create(options);
 * using right = Engine.create(options);
 * left.addNetwork({ vni: 7, peer: "192.0.2.2:6081", routes: [{ src: "10.1.0.0/16", dst: "10.2.0.0/16" }] });
 * right.addNetwork({ vni: 7, peer: "192.0.2.1:6081", routes: [{ src: "10.2.0.0/16", dst: "10.1.0.0/16" }] });
 *
 * // Real keys come from the control plane and never enter JavaScript; these are for the example.
 * const [a, b] = ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"];
 * left.dangerInstall({ vni: 7, rxSpi: 1, txSpi: 2, rxKey: a, txKey: b, expiresAtNs: 1_000_000_000n });
 * right.dangerInstall({ vni: 7, rxSpi: 2, txSpi: 1, rxKey: b, txKey: a, expiresAtNs: 1_000_000_000n });
 *
 * const header = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0];
 * const inner = new Uint8Array([...header, ...addressBytes("10.1.0.1"), ...addressBytes("10.2.0.1")]);
 * const [sent, sealed, received, opened] = [new PacketBatch(), new PacketBatch(), new PacketBatch(), new PacketBatch()];
 * sent.append(inner);
 * left.virtToPhy(sent, sealed);
 * strictEqual(sealed.verdict(0), "forward");
 *
 * received.append(sealed.packet(0), { address: addressBytes("192.0.2.1"), port: 40000 });
 * right.phyToVirt(received, opened);
 * deepStrictEqual(opened.packet(0), inner);
 * strictEqual(right.counters(7).rx_packets, 1n);
 * ```
 *
 * @module
 */

export * from "./control/endpoint.ts";
export * from "./control/identity.ts";
export * from "./control/lifecycle.ts";
export * from "./control/node.ts";
export * from "./control/node_config.ts";
export * from "./control/prefix.ts";
export * from "./control/tunnel.ts";
export * as afxdp from "./datapath/afxdp.ts";
export * from "./datapath/backoff.ts";
export * from "./datapath/clock.ts";
export * from "./datapath/counters.ts";
export * from "./datapath/datapath.ts";
export * from "./datapath/device.ts";
export * from "./datapath/device_datapath.ts";
export * from "./datapath/engine.ts";
export * from "./datapath/errors.ts";
export * from "./datapath/impaired_underlay.ts";
export * from "./datapath/memory_device.ts";
export * from "./datapath/memory_underlay.ts";
export * from "./datapath/mtu.ts";
export * from "./datapath/netstack.ts";
export * from "./datapath/netstack_address.ts";
export * from "./datapath/netstack_conn.ts";
export * from "./datapath/netstack_datagram.ts";
export * from "./datapath/netstack_device.ts";
export * from "./datapath/netstack_listener.ts";
export * from "./datapath/proxies.ts";
export * from "./datapath/packet_batch.ts";
export * from "./datapath/recording_device.ts";
export * from "./datapath/shutdown_signals.ts";
export * from "./datapath/supervise.ts";
export * from "./datapath/tun.ts";
export * from "./datapath/tun_device.ts";
export * from "./datapath/udp_underlay.ts";
export * from "./datapath/underlay.ts";
export * from "./native/errors.ts";
export * from "./native/library.ts";
