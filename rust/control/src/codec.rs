//! Frames and messages of the control plane. Integers are big-endian; numbers are carried as they came, unchecked.

use std::net::{IpAddr, Ipv6Addr};

/// The largest payload of a frame.
pub const MAX_PAYLOAD: usize = 4096;
/// Bytes of the length in front of a payload.
pub const FRAME_HEADER_LEN: usize = 2;
const PROTOCOL_VERSION: u8 = 1;

/// A payload or length is larger than [`MAX_PAYLOAD`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame carries at most {MAX_PAYLOAD} bytes, got {0}")]
pub struct FrameTooLarge(pub usize);

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    #[error(transparent)]
    TooLarge(#[from] FrameTooLarge),
    #[error("the stream ended inside a frame")]
    UnexpectedEof,
}

/// Why a payload is not the message it was taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    #[error("the message has {given} bytes where {expected} were expected")]
    WrongSize { given: usize, expected: usize },
    #[error("the message has protocol version {0}, this node speaks {PROTOCOL_VERSION}")]
    ProtocolVersion(u8),
    #[error("the message has type {given} where {expected} was expected")]
    WrongType { given: u8, expected: u8 },
}

/// The payload length that a frame announces.
pub fn frame_len(header: [u8; FRAME_HEADER_LEN]) -> Result<usize, FrameTooLarge> {
    let len = usize::from(u16::from_be_bytes(header));
    if len > MAX_PAYLOAD { Err(FrameTooLarge(len)) } else { Ok(len) }
}

/// Appends `payload` as a frame.
pub fn write_frame(out: &mut Vec<u8>, payload: &[u8]) -> Result<(), FrameTooLarge> {
    let len = u16::try_from(payload.len()).map_err(|_| FrameTooLarge(payload.len()))?;
    frame_len(len.to_be_bytes())?;
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// Splits the first frame off a finished stream: its payload, and what follows.
pub fn read_frame(input: &[u8]) -> Result<(&[u8], &[u8]), FrameError> {
    let (header, rest) = input.split_first_chunk().ok_or(FrameError::UnexpectedEof)?;
    rest.split_at_checked(frame_len(*header)?).ok_or(FrameError::UnexpectedEof)
}

/// A message with a fixed size: version 1, a type, then fields.
pub trait Message: Sized {
    const TYPE: u8;
    /// Bytes of payload, version and type included.
    const LEN: usize;

    /// Appends the fields behind version and type.
    fn write_fields(&self, out: &mut Vec<u8>);

    /// `fields` has exactly `LEN - 2` bytes.
    fn read_fields(fields: &mut Fields<'_>) -> Self;

    fn encode(&self) -> Vec<u8> {
        let mut payload = vec![PROTOCOL_VERSION, Self::TYPE];
        self.write_fields(&mut payload);
        debug_assert_eq!(payload.len(), Self::LEN);
        payload
    }

    /// The message as a frame.
    fn encode_framed(&self) -> Vec<u8> {
        let payload = self.encode();
        let mut frame = Vec::with_capacity(FRAME_HEADER_LEN + payload.len());
        frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        frame.extend_from_slice(&payload);
        frame
    }

    /// Checks size, then version, then type.
    fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let [version, kind, fields @ ..] = payload else {
            return Err(DecodeError::WrongSize { given: payload.len(), expected: Self::LEN });
        };
        if payload.len() != Self::LEN {
            return Err(DecodeError::WrongSize { given: payload.len(), expected: Self::LEN });
        }
        if *version != PROTOCOL_VERSION {
            return Err(DecodeError::ProtocolVersion(*version));
        }
        if *kind != Self::TYPE {
            return Err(DecodeError::WrongType { given: *kind, expected: Self::TYPE });
        }
        Ok(Self::read_fields(&mut Fields(fields)))
    }
}

/// Version and type of a payload, when it is long enough to have them.
pub fn kind_of(payload: &[u8]) -> Option<(u8, u8)> {
    match payload {
        [version, kind, ..] => Some((*version, *kind)),
        _ => None,
    }
}

/// Whether `version` is the one this node speaks.
pub fn is_known_version(version: u8) -> bool {
    version == PROTOCOL_VERSION
}

/// Takes fields off the front of a message whose size was checked.
pub struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// Zeros once the bytes have run out, which the size check rules out.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((head, rest)) => {
                self.0 = rest;
                *head
            }
            None => [0; N],
        }
    }

    fn u8(&mut self) -> u8 {
        u8::from_be_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }
}

/// Type 1: either half of a point-to-point SA exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaOffer {
    pub suite: u8,
    /// The SPI on which the sender will receive.
    pub rx_spi: u32,
}

impl Message for SaOffer {
    const TYPE: u8 = 1;
    const LEN: usize = 7;

    fn write_fields(&self, out: &mut Vec<u8>) {
        out.push(self.suite);
        out.extend_from_slice(&self.rx_spi.to_be_bytes());
    }

    fn read_fields(fields: &mut Fields<'_>) -> Self {
        SaOffer { suite: fields.u8(), rx_spi: fields.u32() }
    }
}

/// Type 2: asks a key-plane responder for a VNI and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRequest {
    pub suite: u8,
    pub rx_spi: u32,
    /// The sender's overlay address. IPv4 travels as IPv4-mapped IPv6, and such an address is read as IPv4.
    pub addr: IpAddr,
}

impl Message for KeyRequest {
    const TYPE: u8 = 2;
    const LEN: usize = 23;

    fn write_fields(&self, out: &mut Vec<u8>) {
        out.push(self.suite);
        out.extend_from_slice(&self.rx_spi.to_be_bytes());
        let addr = match self.addr {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        out.extend_from_slice(&addr.octets());
    }

    fn read_fields(fields: &mut Fields<'_>) -> Self {
        KeyRequest {
            suite: fields.u8(),
            rx_spi: fields.u32(),
            addr: IpAddr::V6(Ipv6Addr::from(fields.take::<16>())).to_canonical(),
        }
    }
}

/// Type 3: the answer to a [`KeyRequest`]. Fields other than the status are 0 unless the status is OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyGrant {
    pub status: Status,
    pub suite: u8,
    pub rx_spi: u32,
    pub vni: u32,
}

impl KeyGrant {
    pub const fn refused(status: Status) -> Self {
        KeyGrant { status, suite: 0, rx_spi: 0, vni: 0 }
    }
}

impl Message for KeyGrant {
    const TYPE: u8 = 3;
    const LEN: usize = 12;

    fn write_fields(&self, out: &mut Vec<u8>) {
        out.push(self.status.0);
        out.push(self.suite);
        out.extend_from_slice(&self.rx_spi.to_be_bytes());
        out.extend_from_slice(&self.vni.to_be_bytes());
    }

    fn read_fields(fields: &mut Fields<'_>) -> Self {
        KeyGrant { status: Status(fields.u8()), suite: fields.u8(), rx_spi: fields.u32(), vni: fields.u32() }
    }
}

/// Type 4: gives a VNI back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VniRelease {
    pub vni: u32,
}

impl Message for VniRelease {
    const TYPE: u8 = 4;
    const LEN: usize = 6;

    fn write_fields(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.vni.to_be_bytes());
    }

    fn read_fields(fields: &mut Fields<'_>) -> Self {
        VniRelease { vni: fields.u32() }
    }
}

/// Type 5: the answer to a [`VniRelease`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseAck {
    pub status: Status,
}

impl Message for ReleaseAck {
    const TYPE: u8 = 5;
    const LEN: usize = 3;

    fn write_fields(&self, out: &mut Vec<u8>) {
        out.push(self.status.0);
    }

    fn read_fields(fields: &mut Fields<'_>) -> Self {
        ReleaseAck { status: Status(fields.u8()) }
    }
}

/// The status byte of a key-plane answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u8);

impl Status {
    pub const OK: Status = Status(0);
    pub const REJECTED: Status = Status(1);
    pub const VNIS_EXHAUSTED: Status = Status(2);
    pub const SPIS_EXHAUSTED: Status = Status(3);

    /// What the status means to a requester; `None` for OK. One it does not know is a rejection.
    pub const fn refusal(self) -> Option<Refusal> {
        match self {
            Status::OK => None,
            Status::VNIS_EXHAUSTED => Some(Refusal::VnisExhausted),
            Status::SPIS_EXHAUSTED => Some(Refusal::SpisExhausted),
            _ => Some(Refusal::Rejected),
        }
    }
}

/// Why a responder did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    #[error("the responder rejected it")]
    Rejected,
    #[error("the responder has no VNIs left: retry later")]
    VnisExhausted,
    #[error("the session has no SPIs left: start a new one")]
    SpisExhausted,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Rejected => Status::REJECTED,
            Refusal::VnisExhausted => Status::VNIS_EXHAUSTED,
            Refusal::SpisExhausted => Status::SPIS_EXHAUSTED,
        }
    }
}
