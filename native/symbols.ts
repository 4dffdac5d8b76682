/**
 * The C functions of libicx, as `Deno.dlopen` wants them. A test compares this table with the Rust exports.
 *
 * Only calls that may wait are `nonblocking`: each costs a thread of a small pool.
 *
 * @module
 */

/** The C interface that this table describes; `icx_abi_version` of the library must give the same number. */
export const ABI_VERSION = 1;

/** Every exported function; those that are `optional` are missing in the core artifact. */
export const SYMBOLS = {
  icx_abi_version: { parameters: [], result: "u32" },
  icx_version: {
    parameters: ["buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_strerror: {
    parameters: ["i32", /* code */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_close: { parameters: ["u32" /* handle */], result: "i32" },
  icx_close_wait: { parameters: ["u32" /* handle */], result: "i32", nonblocking: true },
  icx_handle_count: { parameters: [], result: "u32" },
  icx_clock_now: {
    parameters: ["buffer", /* out, u64 */ "u32" /* count */],
    result: "i32", // numbers
  },
  icx_events_wait: {
    parameters: ["buffer", /* out */ "u32", /* out_cap, bytes */ "u32" /* timeout_ms */],
    result: "i32", // bytes
    nonblocking: true,
  },
  icx_events_wake: { parameters: [], result: "i32" },
  icx_danger_panic: {
    parameters: ["u32", /* handle */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32",
  },
  icx_process_set_parent_death_signal: {
    parameters: ["u32", /* signal */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32",
  },

  icx_identity_generate: {
    parameters: ["buffer", /* json */ "u32", /* json_len, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
  },
  icx_identity_load: {
    parameters: ["buffer", /* json */ "u32", /* json_len, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
  },
  icx_identity_info: {
    parameters: ["u32", /* identity */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_peer_key_parse: {
    parameters: [
      "buffer", /* json */
      "u32", /* json_len, bytes */
      "buffer", /* out */
      "u32", /* out_cap, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // length
  },
  icx_role: {
    parameters: ["buffer", /* json */ "u32", /* json_len, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // 1 initiator, 0 responder
  },

  icx_engine_create: {
    parameters: ["buffer", /* json */ "u32", /* json_len, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
  },
  icx_engine_set_clock: {
    parameters: ["u32", /* engine */ "u32", /* lo, ns */ "u32" /* hi, 2^32 ns */],
    result: "i32",
  },
  icx_engine_add_network: {
    parameters: [
      "u32", /* engine */
      "buffer", /* json */
      "u32", /* json_len, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32",
  },
  icx_engine_update_network: {
    parameters: [
      "u32", /* engine */
      "buffer", /* json */
      "u32", /* json_len, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32",
  },
  icx_engine_remove_network: {
    parameters: ["u32", /* engine */ "u32", /* vni */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32",
  },
  icx_engine_set_inner_mtu: { parameters: ["u32", /* engine */ "u32" /* mtu, bytes */], result: "i32" },
  icx_engine_danger_install: {
    parameters: [
      "u32", /* engine */
      "buffer", /* json */
      "u32", /* json_len, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32",
  },
  icx_engine_danger_install_epoch: {
    parameters: [
      "u32", /* engine */
      "buffer", /* json */
      "u32", /* json_len, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32",
  },
  icx_engine_skip_tx_counter: {
    parameters: [
      "u32", /* engine */
      "buffer", /* json */
      "u32", /* json_len, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // 1 moved, 0 not
  },
  icx_engine_sa_status: {
    parameters: ["u32", /* engine */ "u32", /* vni */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_engine_counters: {
    parameters: ["u32", /* engine */ "u32", /* vni */ "buffer", /* out, u64 */ "u32" /* count */],
    result: "i32", // how many
  },
  icx_engine_count_tx_errors: {
    parameters: ["u32", /* engine */ "u32", /* vni */ "u32" /* packets */],
    result: "i32",
  },
  icx_counter_names: {
    parameters: ["buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_engine_virt_to_phy: {
    parameters: [
      "u32", /* engine */
      "buffer", /* input */
      "u32", /* input_len, bytes */
      "buffer", /* packets, IcxPacket */
      "u32", /* count */
      "buffer", /* output */
      "u32", /* output_len, bytes */
    ],
    result: "i32", // packets processed
  },
  icx_engine_phy_to_virt: {
    parameters: [
      "u32", /* engine */
      "buffer", /* input */
      "u32", /* input_len, bytes */
      "buffer", /* packets, IcxPacket */
      "u32", /* count */
      "buffer", /* output */
      "u32", /* output_len, bytes */
    ],
    result: "i32", // packets processed
  },
  icx_engine_to_phy: {
    parameters: [
      "u32", /* engine */
      "buffer", /* packets, IcxPacket */
      "u32", /* capacity */
      "buffer", /* output */
      "u32", /* output_len, bytes */
    ],
    result: "i32", // packets produced
  },
  icx_inner_mtu: {
    parameters: ["u32" /* path_mtu, bytes */],
    result: "i32", // bytes
  },

  icx_tun_open: {
    parameters: ["buffer", /* json */ "u32", /* json_len, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
  },
  icx_tun_info: {
    parameters: ["u32", /* tun */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_device_read: {
    parameters: [
      "u32", /* device */
      "buffer", /* packets, IcxPacket */
      "u32", /* capacity */
      "buffer", /* output */
      "u32", /* output_len, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // packets
  },
  icx_device_write: {
    parameters: [
      "u32", /* device */
      "buffer", /* input */
      "u32", /* input_len, bytes */
      "buffer", /* packets, IcxPacket */
      "u32", /* count */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // packets dealt with
  },
  icx_udp_open: {
    parameters: ["buffer", /* json */ "u32", /* json_len, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
  },
  icx_udp_info: {
    parameters: ["u32", /* udp */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_udp_receive: {
    parameters: [
      "u32", /* udp */
      "buffer", /* packets, IcxPacket */
      "u32", /* capacity */
      "buffer", /* output */
      "u32", /* output_len, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // packets
  },
  icx_udp_send: {
    parameters: [
      "u32", /* udp */
      "buffer", /* input */
      "u32", /* input_len, bytes */
      "buffer", /* packets, IcxPacket */
      "u32", /* count */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // packets dealt with
  },
  icx_pump_start: {
    parameters: ["buffer", /* json */ "u32", /* json_len, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
  },
  icx_pump_set_device_mtu: {
    parameters: ["u32", /* pump */ "u32", /* mtu, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32",
  },
  icx_pump_stop: { parameters: ["u32" /* pump */], result: "i32", nonblocking: true },
  icx_pump_counters: {
    parameters: ["u32", /* pump */ "buffer", /* out, u64 */ "u32" /* count */],
    result: "i32", // how many
  },
  icx_pump_counter_names: {
    parameters: ["buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  // Only the artifact for AF_XDP has these.
  icx_forwarder_open: {
    parameters: ["buffer", /* json */ "u32", /* json_len, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
    optional: true,
  },
  icx_forwarder_info: {
    parameters: ["u32", /* forwarder */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
    optional: true,
  },
  icx_forwarder_start: {
    parameters: ["u32", /* forwarder */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32",
    optional: true,
  },
  icx_forwarder_stop: { parameters: ["u32" /* forwarder */], result: "i32", nonblocking: true, optional: true },
  icx_forwarder_state: {
    parameters: ["u32", /* forwarder */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
    optional: true,
  },
  icx_forwarder_counters: {
    parameters: ["u32", /* forwarder */ "buffer", /* out, u64 */ "u32" /* count */],
    result: "i32", // how many
    optional: true,
  },
  icx_forwarder_counter_names: {
    parameters: ["buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
    optional: true,
  },
  icx_afxdp_support: {
    parameters: [
      "buffer", /* json */
      "u32", /* json_len, bytes */
      "buffer", /* out */
      "u32", /* out_cap, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // length
    optional: true,
  },
  icx_route_lookup: {
    parameters: [
      "buffer", /* json */
      "u32", /* json_len, bytes */
      "buffer", /* out */
      "u32", /* out_cap, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // length
    nonblocking: true,
  },
  icx_interface_lookup: {
    parameters: [
      "buffer", /* json */
      "u32", /* json_len, bytes */
      "buffer", /* out */
      "u32", /* out_cap, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // length
  },
  icx_resolve: {
    parameters: [
      "buffer", /* json */
      "u32", /* json_len, bytes */
      "buffer", /* out */
      "u32", /* out_cap, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // length
    nonblocking: true,
  },

  icx_netstack_open: {
    parameters: ["buffer", /* json */ "u32", /* json_len, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
  },
  icx_netstack_info: {
    parameters: ["u32", /* stack */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_netstack_counters: {
    parameters: ["u32", /* stack */ "buffer", /* out, u64 */ "u32" /* count */],
    result: "i32", // how many
  },
  icx_netstack_counter_names: {
    parameters: ["buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_netstack_connect: {
    parameters: [
      "u32",
      /* stack */ "buffer",
      /* json */ "u32",
      /* json_len, bytes */ "buffer",
      /* err */ "u32", /* err_cap, bytes */
    ],
    result: "i32", // handle
  },
  icx_netstack_listen: {
    parameters: [
      "u32",
      /* stack */ "buffer",
      /* json */ "u32",
      /* json_len, bytes */ "buffer",
      /* err */ "u32", /* err_cap, bytes */
    ],
    result: "i32", // handle
  },
  icx_netstack_datagram: {
    parameters: [
      "u32",
      /* stack */ "buffer",
      /* json */ "u32",
      /* json_len, bytes */ "buffer",
      /* err */ "u32", /* err_cap, bytes */
    ],
    result: "i32", // handle
  },
  icx_netstack_resolve: {
    parameters: [
      "u32",
      /* stack */ "buffer",
      /* json */ "u32",
      /* json_len, bytes */ "buffer",
      /* err */ "u32", /* err_cap, bytes */
    ],
    result: "i32", // handle
  },
  icx_netstack_echo: {
    parameters: ["u32", /* stack */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
  },
  icx_listener_info: {
    parameters: ["u32", /* listener */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_listener_accept: {
    parameters: ["u32", /* listener */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
  },
  icx_stream_info: {
    parameters: ["u32", /* stream */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_stream_connected: {
    parameters: ["u32", /* stream */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32",
  },
  icx_stream_read: {
    parameters: [
      "u32", /* stream */
      "buffer", /* out */
      "u32", /* out_cap, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // bytes
  },
  icx_stream_write: {
    parameters: [
      "u32", /* stream */
      "buffer", /* input */
      "u32", /* input_len, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // bytes
  },
  icx_stream_close_send: {
    parameters: ["u32", /* stream */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32",
  },
  icx_stream_abort: { parameters: ["u32" /* stream */], result: "i32" },
  icx_datagram_info: {
    parameters: ["u32", /* socket */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_datagram_receive: {
    parameters: [
      "u32", /* socket */
      "buffer", /* packets, IcxPacket */
      "u32", /* capacity */
      "buffer", /* output */
      "u32", /* output_len, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // packets
  },
  icx_datagram_send: {
    parameters: [
      "u32", /* socket */
      "buffer", /* input */
      "u32", /* input_len, bytes */
      "buffer", /* packets, IcxPacket */
      "u32", /* count */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // packets dealt with
  },
  icx_echo_send: {
    parameters: [
      "u32",
      /* echo */ "buffer",
      /* json */ "u32",
      /* json_len, bytes */ "buffer",
      /* err */ "u32", /* err_cap, bytes */
    ],
    result: "i32",
  },
  icx_echo_receive: {
    parameters: [
      "u32", /* echo */
      "buffer", /* out */
      "u32", /* out_cap, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // length
  },
  icx_resolution_answer: {
    parameters: [
      "u32", /* resolution */
      "buffer", /* out */
      "u32", /* out_cap, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32", // length
  },

  icx_proxy_start: {
    parameters: ["buffer", /* json */ "u32", /* json_len, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
  },
  icx_proxy_info: {
    parameters: ["u32", /* proxy */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_proxy_stop: { parameters: ["u32" /* proxy */], result: "i32", nonblocking: true },
  icx_proxy_counters: {
    parameters: ["u32", /* proxy */ "buffer", /* out, u64 */ "u32" /* count */],
    result: "i32", // how many
  },
  icx_proxy_counter_names: {
    parameters: ["buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },

  icx_control_open: {
    parameters: ["buffer", /* json */ "u32", /* json_len, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
  },
  icx_control_info: {
    parameters: ["u32", /* control */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_control_add_peer: {
    parameters: ["buffer", /* json */ "u32", /* json_len, bytes */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32", // handle
  },
  icx_peer_info: {
    parameters: ["u32", /* peer */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
  icx_peer_dial: {
    parameters: [
      "u32", /* peer */
      "buffer", /* json */
      "u32", /* json_len, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32",
  },
  icx_peer_exchange: {
    parameters: [
      "u32", /* peer */
      "buffer", /* json */
      "u32", /* json_len, bytes */
      "buffer", /* err */
      "u32", /* err_cap, bytes */
    ],
    result: "i32",
  },
  icx_peer_probe: {
    parameters: ["u32", /* peer */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32",
  },
  icx_peer_disconnect: {
    parameters: ["u32", /* peer */ "buffer", /* err */ "u32" /* err_cap, bytes */],
    result: "i32",
  },
  icx_peer_status: {
    parameters: ["u32", /* peer */ "buffer", /* out */ "u32" /* out_cap, bytes */],
    result: "i32", // length
  },
} as const;

/** The functions of an open library. It also makes the compiler check that the table is one. */
export type Symbols = Deno.StaticForeignLibraryInterface<typeof SYMBOLS>;
