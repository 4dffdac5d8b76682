//! The control plane against peers, strangers and responders that do what the protocol does not say.
//!
//! The traps that were found in a trial of this control plane, and the tests that guard against each; `sessions`,
//! `identity` and `lifecycle` are the test files beside this one.
//!
//! | trap | tests |
//! | --- | --- |
//! | 1. a peer that never sends or reads the end of a stream wedges the session | `insiders::a_responder_that_never_ends_its_streams_does_not_wedge_the_session`, `insiders::a_peer_that_neither_ends_nor_resets_streams_wedges_its_own_session_only`, `sessions::a_responder_that_never_reads_the_end_of_a_stream_does_not_wedge_the_session`, `sessions::an_initiator_that_never_ends_its_streams_does_not_wedge_the_session`, `sessions::an_offer_in_pieces_is_answered_as_soon_as_it_is_complete` |
//! | 2. a ClientHello that is refused at once ends the listener | `strangers::no_client_hello_ends_the_listener`, `sessions::strangers_and_noise_are_turned_away_and_the_peer_still_comes_in` |
//! | 3. a close that does not reach the wire leaves the other side on a dead session | `responders::an_attempt_that_is_given_up_is_closed_on_the_wire`, `sessions::closing_an_endpoint_tells_its_peers`, `sessions::a_session_closed_by_one_side_is_over_for_the_other_at_once_and_dialled_again` |
//! | 4. after a crash the old session stands in the way of the new one | `insiders::an_offer_that_was_left_in_a_superseded_session_changes_no_keys`, `greed::two_holders_of_one_key_are_slowed_down_and_the_newest_still_gets_in`, `greed::a_storm_of_reconnects_is_slowed_down_and_the_last_one_gets_in`, `sessions::the_newest_session_of_a_peer_supersedes_the_older_one`, `sessions::an_initiator_that_probes_learns_of_a_crashed_and_restarted_responder_within_a_second` |
//! | 5. nothing in QUIC ends a handshake that stalls | `stalls::handshakes_that_stall_give_their_places_back_after_ten_seconds`, `answers::no_answer_of_a_responder_makes_a_dial_hang_or_grow`, `stalls::a_stream_that_stalls_is_cut_ten_seconds_after_it_began`, `slow::soak_a_session_of_a_peer_that_vanished_ends_after_its_idle_timeout`, `slow::soak_a_session_without_exchanges_stays` |
//! | 6. TLS puts error texts on the wire | `strangers::what_a_stranger_is_told_says_nothing_of_this_node` |
//! | 7. the runtime thread outlives its library | `lifecycle::sixty_rounds_leave_no_thread_and_no_descriptor` |
//! | 8. keys of other kinds and in other forms | `identity::only_p256_as_pkcs8_is_accepted_and_the_message_says_so`, `strangers::no_client_hello_ends_the_listener` |
//! | 9. impatient redialling never gets a turn at a peer that serves one session at a time | `slow::patience_gets_its_turn_at_a_peer_that_serves_one_session_at_a_time`, `slow::soak_the_turn_comes_within_45_seconds_with_real_timeouts` |
//!
//! While an attack runs, a bystander keeps exchanging keys on the same endpoint. The bounds on times are generous: they
//! tell a machine that is busy from a session that is stuck.

#[path = "../node/mod.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod node;
#[path = "../raw/mod.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod raw;
#[path = "../raw/slow_peer.rs"]
mod slow_peer;

mod memory;
mod site;

mod answers;
mod floods;
mod greed;
mod insiders;
mod responders;
mod slow;
mod stalls;
mod strangers;
