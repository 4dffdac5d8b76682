//! The control plane of ICX: identities, QUIC sessions with pinned keys, and the exchanges that put security
//! associations into an [`icx_proto::Engine`]. Keys go from the session into the engine and nowhere else.
#![forbid(unsafe_code)]

pub mod certificate;
pub mod codec;
pub mod identity;
pub mod kdf;
pub mod key_plane;
pub mod public_key;
pub mod role;
pub mod sa;
pub mod spi;
pub mod suite;

mod dial;
mod endpoint;
mod event;
mod exchange;
mod file_kind;
mod key_file;
mod listen;
mod load;
mod pace;
mod peer;
mod reason;
mod registry;
mod rejections;
mod session;
mod shared;
mod tls;
mod transport;

pub use dial::Patience;
pub use endpoint::{Clock, ControlConfig, ControlEndpoint, EventSink, OpenError};
pub use event::{ControlEvent, ControlEventKind, DialFailure, PeerId, SessionId};
pub use identity::{Identity, IdentityError};
pub use key_file::WriteError;
pub use peer::{CommandError, PeerConfig, PeerPhase, PeerStatus};
pub use public_key::{PublicKey, PublicKeyError};
pub use registry::AddPeerError;
pub use role::{EqualKeysError, Role};
pub use suite::Suite;
pub use tls::TlsError;
