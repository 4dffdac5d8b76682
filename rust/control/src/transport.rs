//! QUIC parameters, and the keys that let a restarted node tell its peers of the restart.

use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::hmac;
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use quinn_proto::InvalidCid;

use crate::identity::{Identity, IdentityError};
use crate::role::Role;

/// RFC 9000.
const QUIC_V1: u32 = 1;
/// Milliseconds.
const IDLE_TIMEOUT: u32 = 30_000;
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// The first retransmission of a handshake follows after three times this.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Streams that a peer may have open towards a responder at a time. Nobody opens any towards an initiator.
pub(crate) const MAX_STREAMS: u32 = 4;
/// Bytes that a peer may send ahead on one stream: more than the largest frame.
const STREAM_WINDOW: u32 = 8 * 1024;
/// Bytes that a peer may send ahead on all streams.
pub(crate) const RECEIVE_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;

const RESET_KEY_INFO: &[u8] = b"icx quic stateless reset key v1";
const CONNECTION_ID_KEY_INFO: &[u8] = b"icx quic connection id key v1";

/// The transport parameters of connections in which this node has `role`.
pub(crate) fn transport_config(role: Role) -> Arc<TransportConfig> {
    let streams = match role {
        Role::Initiator => 0,
        Role::Responder => MAX_STREAMS,
    };
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        // Nothing here fills a packet, so nothing is to be gained from larger ones.
        .mtu_discovery_config(None);
    Arc::new(config)
}

/// The endpoint's reset tokens and connection IDs follow from the identity, so that the next process with the same
/// identity recognises the connections of this one and resets them (RFC 9000 section 10.3).
pub(crate) fn endpoint_config(identity: &Identity) -> Result<EndpointConfig, IdentityError> {
    let reset_key = identity.derive_secret(RESET_KEY_INFO)?;
    let id_key = identity.derive_secret(CONNECTION_ID_KEY_INFO)?;
    let generator = KeyedConnectionIds { key: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &id_key[..])) };

    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset_key[..])));
    config.supported_versions(vec![QUIC_V1]);
    config.cid_generator(move || Box::new(generator.clone()));
    Ok(config)
}

const NONCE_LEN: usize = 8;
const TAG_LEN: usize = 4;

/// Connection IDs of a random number and a tag over it. A packet for one that this identity never gave out is ignored
/// instead of answered with a reset. The number is large enough never to repeat: a reset token, which depends on the ID
/// alone, is public once it was used.
#[derive(Clone)]
struct KeyedConnectionIds {
    key: Arc<hmac::Key>,
}

impl KeyedConnectionIds {
    fn tag(&self, nonce: &[u8]) -> [u8; TAG_LEN] {
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&hmac::sign(&self.key, nonce).as_ref()[..TAG_LEN]);
        tag
    }
}

impl ConnectionIdGenerator for KeyedConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; NONCE_LEN + TAG_LEN];
        // Without random numbers the handshake fails, too; until then an ID of zeros harms nobody.
        let _ = aws_lc_rs::rand::fill(&mut id[..NONCE_LEN]);
        let tag = self.tag(&id[..NONCE_LEN]);
        id[NONCE_LEN..].copy_from_slice(&tag);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.split_at_checked(NONCE_LEN) {
            Some((nonce, tag)) if self.tag(nonce) == tag => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        NONCE_LEN + TAG_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
