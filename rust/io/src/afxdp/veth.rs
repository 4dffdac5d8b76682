//! The veth pair of the inner side: one end is the host's, the other end's frames come from and go to AF_XDP sockets.

use std::net::IpAddr;

use icx_proto::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};

use crate::link::{self, is_valid_name};
use crate::netlink::Netlink;
use crate::tun::address_request;
use crate::{LinkError, NetlinkError, sys};

use super::claim::{Claim, ClaimError};

/// What the other end's name has in addition.
const SUFFIX: &str = "-xdp";

/// The interface alias by which the ends of a pair are known for ours.
const MARK: &str = "icx afxdp";

/// As other network devices have it.
const TX_QUEUE_PACKETS: u32 = 1000;

/// What to switch off: each of these is part of the names of features that cut, merge or put off checksums.
const OFFLOADS: [&str; 5] = ["checksum", "segmentation", "scatter-gather", "gro", "lro"];

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VethError {
    #[error(
        "{name:?} cannot be the name of a veth device: it has 1 to {most} bytes, as its other end is called \"{name}{SUFFIX}\", and \
         neither '/', ':', '%' nor white space; choose another --tun-device"
    )]
    BadName { name: String, most: usize },
    #[error("there is an interface {0} already, and it is not icx's: choose another --tun-device, or remove it")]
    Occupied(String),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error("making device {name} takes CAP_NET_ADMIN: run as root, or grant the capability ({source})")]
    NoPermission { name: String, source: NetlinkError },
    #[error("cannot {action} of device {name}: {source}")]
    Configure { name: String, action: String, source: NetlinkError },
}

impl VethError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            VethError::BadName { .. } => Some(libc::EINVAL),
            VethError::Occupied(_) => Some(libc::EEXIST),
            VethError::Claim(error) => error.errno(),
            VethError::NoPermission { source, .. } | VethError::Configure { source, .. } => source.errno(),
        }
    }
}

#[derive(Debug)]
pub(super) struct VethConfig {
    pub(super) name: String,
    /// The largest IP packet, in bytes.
    pub(super) mtu: u32,
    /// Of the host's end.
    pub(super) mac: MacAddr,
    pub(super) addresses: Vec<(IpAddr, u8)>,
    pub(super) queues: u32,
}

/// A veth pair, set up. Dropping it removes it.
#[derive(Debug)]
pub(super) struct VethPair {
    name: String,
    inner_name: String,
    index: u32,
    inner_index: u32,
    /// Goes last.
    _claim: Claim,
}

impl VethPair {
    /// Makes the pair, in the place of what a killed owner left.
    pub(super) fn open(config: VethConfig) -> Result<VethPair, VethError> {
        let name = config.name.clone();
        let inner_name = format!("{name}{SUFFIX}");
        if !is_valid_name(&name) || !is_valid_name(&inner_name) {
            return Err(VethError::BadName { name, most: libc::IFNAMSIZ - 1 - SUFFIX.len() });
        }
        let failed = |action: &str, source: NetlinkError| match source.errno() {
            Some(libc::EPERM) => VethError::NoPermission { name: name.clone(), source },
            _ => VethError::Configure { name: name.clone(), action: action.to_owned(), source },
        };
        let (mut claim, left) = Claim::take(&name)?;
        let mut netlink = Netlink::open().map_err(|source| failed("ask about the state", source))?;
        let was_ours = left.contains(MARK);
        for there in [&name, &inner_name] {
            match alias_of(&mut netlink, there).map_err(|source| failed("look at the state", source))? {
                None => {}
                Some(alias) if was_ours || alias == MARK => {
                    let gone = netlink.request(RouteNetlinkMessage::DelLink(named(there)), 0);
                    gone.map_err(|source| failed("remove what was left", source))?;
                }
                Some(_) => return Err(VethError::Occupied(there.clone())),
            }
        }
        // Before there is a pair: one that has no mark yet is known by this.
        claim.note(MARK)?;

        let queues = [LinkAttribute::NumTxQueues(config.queues), LinkAttribute::NumRxQueues(config.queues)];
        let end = |name: &str| {
            let mut end = LinkMessage::default();
            end.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Mtu(config.mtu)];
            end.attributes.extend(queues.clone());
            end
        };
        let mut message = end(&name);
        message.attributes.push(LinkAttribute::Address(config.mac.0.to_vec()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end(&inner_name)))),
        ]));
        netlink
            .request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|source| failed("make the pair", source))?;
        // From here on a failure removes it.
        let mut pair = VethPair { index: 0, inner_index: 0, name: name.clone(), inner_name, _claim: claim };
        for (at, end) in [(0, pair.name.clone()), (1, pair.inner_name.clone())] {
            let link = link::by_name(&end).map_err(|error| match error {
                LinkError::Lookup { source, .. } => failed("look up the index", source),
                error => failed("look up the index", NetlinkError::Malformed(error.to_string())),
            })?;
            *(if at == 0 { &mut pair.index } else { &mut pair.inner_index }) = link.index;
            set_up(&mut netlink, &end, link.index).map_err(|(action, source)| failed(action, source))?;
            if at == 0 {
                for &(address, prefix) in &config.addresses {
                    let request = address_request(link.index, address, prefix);
                    netlink
                        .request(request, NLM_F_CREATE | NLM_F_EXCL)
                        .map_err(|source| failed(&format!("add the address {address}/{prefix}"), source))?;
                }
            }
            let mut request = LinkMessage::default();
            request.header.index = link.index;
            request.header.flags = LinkFlags::Up;
            request.header.change_mask = LinkFlags::Up;
            netlink
                .request(RouteNetlinkMessage::SetLink(request), 0)
                .map_err(|source| failed("switch on the link", source))?;
        }
        Ok(pair)
    }

    /// Of the host's end.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Of the other end.
    pub(super) fn inner_name(&self) -> &str {
        &self.inner_name
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn inner_index(&self) -> u32 {
        self.inner_index
    }
}

impl Drop for VethPair {
    fn drop(&mut self) {
        // Its other end goes with it. By its index: it may have another name by now.
        let mut message = named(&self.name);
        if self.index != 0 {
            message = LinkMessage::default();
            message.header.index = self.index;
        }
        let _ = Netlink::open().and_then(|mut netlink| netlink.request(RouteNetlinkMessage::DelLink(message), 0));
    }
}

/// Marks an end, and makes it say and do nothing of its own.
fn set_up(netlink: &mut Netlink, name: &str, index: u32) -> Result<(), (&'static str, NetlinkError)> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes = vec![LinkAttribute::IfAlias(MARK.to_owned()), LinkAttribute::TxQueueLen(TX_QUEUE_PACKETS)];
    netlink.request(RouteNetlinkMessage::SetLink(request), 0).map_err(|source| ("mark an end", source))?;

    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
        In6AddrGenMode::None,
    )])]));
    match netlink.request(RouteNetlinkMessage::SetLink(request), 0) {
        // Without IPv6 in the kernel, or on this device, there is nothing to switch off.
        Err(NetlinkError::Refused(_)) | Ok(_) => {}
        Err(source) => return Err(("switch off the link-local address", source)),
    }

    let system = |source| ("switch off the offloads", NetlinkError::Socket { call: "ethtool", source });
    let features = sys::features(name).map_err(system)?;
    let is_offload = |name: &str| OFFLOADS.iter().any(|part| name.contains(part));
    let off: Vec<_> = features
        .iter()
        .filter(|feature| feature.is_on && feature.is_free && is_offload(&feature.name))
        .map(|feature| (feature.name.as_str(), false))
        .collect();
    sys::set_features(name, &off).map_err(system)
}

/// The alias of an interface; `None` where there is none of that name.
fn alias_of(netlink: &mut Netlink, name: &str) -> Result<Option<String>, NetlinkError> {
    let answers = match netlink.request(RouteNetlinkMessage::GetLink(named(name)), 0) {
        Err(error) if error.errno() == Some(libc::ENODEV) => return Ok(None),
        answers => answers?,
    };
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => {
            let alias = message.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfAlias(alias) => Some(alias),
                _ => None,
            });
            Some(alias.unwrap_or_default())
        }
        _ => None,
    }))
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}
