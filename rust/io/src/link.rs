//! Network interfaces by name.

use icx_proto::MacAddr;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use crate::netlink::{Netlink, NetlinkError};

/// A network interface of the calling thread's network namespace, as it was when asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub index: u32,
    /// In bytes of what the link carries, its own header left out.
    pub mtu: u32,
    /// `None` where the link has no 6-byte hardware address, as TUN devices.
    pub mac: Option<MacAddr>,
    /// Set up by its administrator; says nothing about the carrier.
    pub up: bool,
    /// It has a peer, as far as its driver knows: something is plugged in and answers. False while it is not set up.
    pub carrier: bool,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    #[error("there is no network interface \"{0}\" here: `ip link` lists those there are")]
    NotFound(String),
    #[error("{0:?} is no interface name: it has 1 to 15 bytes, and neither '/', ':', '%' nor white space")]
    BadName(String),
    #[error("cannot look up interface \"{name}\": {source}")]
    Lookup { name: String, source: NetlinkError },
}

/// Looks an interface up by its name. Needs no capability.
pub fn by_name(name: &str) -> Result<Link, LinkError> {
    if !is_valid_name(name) {
        return Err(LinkError::BadName(name.to_owned()));
    }
    let mut netlink = Netlink::open().map_err(|source| LinkError::Lookup { name: name.to_owned(), source })?;
    match find(&mut netlink, name) {
        Ok(Some(link)) => Ok(link),
        Ok(None) => Err(LinkError::NotFound(name.to_owned())),
        Err(source) => Err(LinkError::Lookup { name: name.to_owned(), source }),
    }
}

/// The interface with a name that is valid.
pub(crate) fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Ok(get(netlink, request)?.map(parse))
}

/// The interface with an index.
pub(crate) fn by_index(netlink: &mut Netlink, index: u32) -> Result<Option<Link>, NetlinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    Ok(get(netlink, request)?.map(parse))
}

/// All that the kernel tells about the interface that is asked for.
pub(crate) fn get(netlink: &mut Netlink, request: LinkMessage) -> Result<Option<LinkMessage>, NetlinkError> {
    let answers = match netlink.request(RouteNetlinkMessage::GetLink(request), 0) {
        Err(error) if error.errno() == Some(libc::ENODEV) => return Ok(None),
        answers => answers?,
    };
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(message),
        _ => None,
    }))
}

/// Changes attributes of the interface with an index.
pub(crate) fn set(netlink: &mut Netlink, index: u32, attributes: Vec<LinkAttribute>) -> Result<(), NetlinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes = attributes;
    netlink.request(RouteNetlinkMessage::SetLink(request), 0).map(drop)
}

/// Sets the interface with an index up.
pub(crate) fn set_up(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.header.flags = LinkFlags::Up;
    request.header.change_mask = LinkFlags::Up;
    netlink.request(RouteNetlinkMessage::SetLink(request), 0).map(drop)
}

/// Removes the interface with an index.
pub(crate) fn delete(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    netlink.request(RouteNetlinkMessage::DelLink(request), 0).map(drop)
}

fn parse(message: LinkMessage) -> Link {
    let mut link = Link {
        name: String::new(),
        index: message.header.index,
        mtu: 0,
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(MacAddr),
            _ => {}
        }
    }
    link
}

/// What the kernel takes as a literal interface name (`dev_valid_name` in net/core/dev.c), and '%', which would make
/// it a pattern.
pub(crate) fn is_valid_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..libc::IFNAMSIZ).contains(&bytes.len())
        && name != "."
        && name != ".."
        && !bytes.iter().any(|byte| byte.is_ascii_whitespace() || matches!(byte, 0 | 0x0b | b'/' | b':' | b'%'))
}

#[cfg(test)]
mod tests {
    use super::{LinkError, by_name, is_valid_name};

    #[test]
    fn names() {
        for good in ["icx0", "a", "exactly15bytes0", "eth0.100", "ünï"] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", "exactly16bytes01", "a b", "a/b", "a:b", "icx%d", ".", "..", "a\tb", "a\nb", "a\0b"] {
            assert!(!is_valid_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn loopback_is_found() {
        let link = by_name("lo").unwrap();
        assert_eq!((link.name.as_str(), link.index), ("lo", 1));
        assert!(link.mtu >= 1280, "{link:?}");
    }

    #[test]
    fn a_missing_interface_and_a_bad_name_are_told_apart() {
        let missing = by_name("no-such-link0").unwrap_err();
        assert!(matches!(missing, LinkError::NotFound(_)), "{missing:?}");
        assert!(missing.to_string().contains("no-such-link0"), "{missing}");
        assert!(matches!(by_name("a b"), Err(LinkError::BadName(_))));
    }
}
