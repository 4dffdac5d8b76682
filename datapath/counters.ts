/**
 * The engine's counters by their names, which are the same in every interface.
 *
 * @module
 */

/** Why an inbound packet went no further, in the order of the C interface. */
export const RX_DROP_REASONS = [
  "rx_malformed",
  "rx_unknown_vni",
  "rx_bad_peer",
  "rx_no_key",
  "rx_expired_key",
  "rx_spi_mismatch",
  "rx_rate_limited",
  "rx_auth_failed",
  "rx_replayed",
  "rx_bad_inner",
  "rx_invalid_src",
  "rx_invalid_dst",
  "rx_bad_ecn",
] as const;

/** Counters are appended: those of the reasons from this one on come last. */
const APPENDED_RX: number = RX_DROP_REASONS.indexOf("rx_bad_ecn");

/** Why an outbound packet went no further, in the order of the C interface. */
export const TX_DROP_REASONS = [
  "tx_not_ip",
  "tx_malformed",
  "tx_no_route",
  "tx_no_key",
  "tx_expired_key",
  "tx_exhausted",
  "tx_too_big",
  "tx_no_local",
  "tx_errors",
] as const;

/** What is counted besides drops, and when something last happened. */
export const TRAFFIC_COUNTERS = {
  rx: ["rx_packets", "rx_bytes"],
  tx: ["tx_packets", "tx_bytes"],
  times: ["last_rx", "last_tx", "last_keepalive"],
} as const;

/** Every counter, in the order of the C interface; a test compares it with `icx_counter_names`. */
export const COUNTER_NAMES: readonly CounterName[] = [
  ...TRAFFIC_COUNTERS.rx,
  ...RX_DROP_REASONS.slice(0, APPENDED_RX),
  ...TRAFFIC_COUNTERS.tx,
  ...TX_DROP_REASONS,
  ...TRAFFIC_COUNTERS.times,
  ...RX_DROP_REASONS.slice(APPENDED_RX),
];

/** Why an inbound packet went no further: the name of the counter that went up. */
export type RxDropReason = typeof RX_DROP_REASONS[number];

/** Why an outbound packet went no further: the name of the counter that went up. */
export type TxDropReason = typeof TX_DROP_REASONS[number];

/** The name of a counter: the same in every interface. */
export type CounterName =
  | RxDropReason
  | TxDropReason
  | typeof TRAFFIC_COUNTERS[keyof typeof TRAFFIC_COUNTERS][number];

/**
 * Counters at one moment. `rx_packets` and `tx_packets` count what was opened and sealed, keepalives included, and the
 * `_bytes` their inner bytes; `last_rx`, `last_tx` and `last_keepalive` are times of the engine's clock in nanoseconds,
 * 0 for never; every other one counts packets dropped for that reason.
 */
export type Counters = Readonly<Record<CounterName, bigint>>;
