//! The decisions of the key plane over the bytes of one stream: what a requester makes of a reply, what a responder
//! replies to a request. No network, no clock.

use std::collections::BTreeSet;
use std::net::IpAddr;

use icx_proto::{Spi, Vni};

use crate::codec::{
    DecodeError, FrameError, KeyGrant, KeyRequest, Message, Refusal, ReleaseAck, Status, VniRelease, is_known_version,
    kind_of, read_frame,
};
use crate::kdf::MasterKeys;
use crate::role::Role;
use crate::sa::{self, PairError, SaKeys};
use crate::spi::{AnnounceError, AnnouncedSpis, MasterIndex, SpiAllocator};
use crate::suite::Suite;

/// What a requester was granted.
#[derive(Debug)]
pub struct Granted {
    pub vni: Vni,
    pub rx_spi: Spi,
    pub keys: SaKeys,
}

/// Why a reply is no grant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrantError {
    #[error("the reply is not readable: {0}")]
    Read(#[from] FrameError),
    #[error("the reply is no grant: {0}")]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Granted, but not usable: `vni` is to be released.
    #[error("the grant of VNI {vni} is not usable: {flaw}")]
    Unusable { vni: u32, flaw: GrantFlaw },
}

/// What is wrong with a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrantFlaw {
    #[error("a granted VNI is a number from 1 to {max}", max = Vni::MAX)]
    VniOutOfRange,
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error(transparent)]
    Announce(#[from] AnnounceError),
}

/// Checks the reply to a request for `suite` that announced `rx_spi`. `reply` is the whole stream; what follows its first
/// frame is ignored. `announced` remembers the SPIs which the responder has granted on the session.
pub fn check_grant(
    masters: &MasterKeys,
    suite: Suite,
    rx_spi: Spi,
    announced: &mut AnnouncedSpis,
    reply: &[u8],
) -> Result<Granted, GrantError> {
    let (payload, _) = read_frame(reply)?;
    let grant = KeyGrant::decode(payload)?;
    if let Some(refusal) = grant.status.refusal() {
        return Err(refusal.into());
    }
    let mut usable = || {
        let vni = Vni::new(grant.vni).ok().filter(|vni| vni.get() != 0).ok_or(GrantFlaw::VniOutOfRange)?;
        let keys = sa::pair(masters, Role::Initiator, suite, rx_spi, grant.suite, grant.rx_spi)?;
        announced.announce(keys.tx_spi)?;
        Ok(Granted { vni, rx_spi, keys })
    };
    usable().map_err(|flaw| GrantError::Unusable { vni: grant.vni, flaw })
}

/// Who decides on the responder's side, and keeps what was decided.
pub trait GrantPolicy {
    /// Allocates a VNI for `addr` and installs the keys under it.
    fn grant(&mut self, addr: IpAddr, rx_spi: Spi, keys: SaKeys) -> Result<Vni, Refusal>;

    /// Takes a VNI back that was granted before. After an error it stays granted.
    fn release(&mut self, vni: Vni) -> Result<(), Refusal>;
}

/// The responder's memory of one session.
#[derive(Debug)]
pub struct ResponderSession {
    masters: MasterKeys,
    spis: SpiAllocator,
    announced: AnnouncedSpis,
    granted: BTreeSet<Vni>,
}

impl ResponderSession {
    pub fn new(masters: MasterKeys, spis: SpiAllocator) -> Self {
        ResponderSession { masters, spis, announced: AnnouncedSpis::default(), granted: BTreeSet::new() }
    }

    /// The reply to the first frame of a stream, as a frame. `None`: the stream ends without one.
    pub fn serve(&mut self, request: &[u8], policy: &mut dyn GrantPolicy) -> Option<Vec<u8>> {
        let (payload, _) = read_frame(request).ok()?;
        let (version, kind) = kind_of(payload)?;
        match kind {
            _ if !is_known_version(version) => None,
            KeyRequest::TYPE => {
                let grant = self.grant(payload, policy).unwrap_or_else(KeyGrant::refused);
                Some(grant.encode_framed())
            }
            VniRelease::TYPE => {
                let status = self.release(payload, policy).err().unwrap_or(Status::OK);
                Some(ReleaseAck { status }.encode_framed())
            }
            _ => None,
        }
    }

    /// The session has ended: everything that is still granted on it is released.
    pub fn end(self, policy: &mut dyn GrantPolicy) {
        for vni in self.granted {
            // Nobody is left to hear of an error, and the session's memory ends here either way.
            let _ = policy.release(vni);
        }
    }

    fn grant(&mut self, payload: &[u8], policy: &mut dyn GrantPolicy) -> Result<KeyGrant, Status> {
        let request = KeyRequest::decode(payload).map_err(|_| Status::REJECTED)?;
        let suite = Suite::try_from(request.suite).map_err(|_| Status::REJECTED)?;
        let rx_spi = self.spis.allocate(MasterIndex::Zero).map_err(|_| Status::SPIS_EXHAUSTED)?;
        let keys = sa::pair(&self.masters, Role::Responder, suite, rx_spi, request.suite, request.rx_spi)
            .map_err(|_| Status::REJECTED)?;
        // A second VNI under the same SPI would share its transmit key, and so its nonces.
        self.announced.announce(keys.tx_spi).map_err(|_| Status::REJECTED)?;
        let vni = policy.grant(request.addr, rx_spi, keys).map_err(Status::from)?;
        self.granted.insert(vni);
        Ok(KeyGrant { status: Status::OK, suite: suite.number(), rx_spi: rx_spi.get(), vni: vni.get() })
    }

    fn release(&mut self, payload: &[u8], policy: &mut dyn GrantPolicy) -> Result<(), Status> {
        let release = VniRelease::decode(payload).map_err(|_| Status::REJECTED)?;
        let vni = Vni::new(release.vni).map_err(|_| Status::REJECTED)?;
        if !self.granted.contains(&vni) {
            return Err(Status::REJECTED);
        }
        policy.release(vni).map_err(|_| Status::REJECTED)?;
        self.granted.remove(&vni);
        Ok(())
    }
}
