//! Features of an interface: what its driver and the kernel do to frames on their way, named as `ethtool -k` names it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use crate::sys::{self, Channels, FeatureChange};

/// Asks and sets what belongs to ethtool, in the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Ethtool {
    /// The kernel takes the requests on sockets of any kind.
    socket: UnixDatagram,
}

/// A feature that the kernel knows, as it is on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Feature {
    /// As "rx-gro".
    pub(crate) name: String,
    pub(crate) on: bool,
    /// The driver lets it be switched.
    pub(crate) changeable: bool,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OffloadError {
    #[error("cannot open a socket for ethtool requests: {0}")]
    Socket(io::Error),
    #[error("cannot look at the {what} of interface {interface}: {source}")]
    Look { what: &'static str, interface: String, source: io::Error },
    #[error("cannot switch features of interface {interface}: {source}; this takes CAP_NET_ADMIN")]
    Switch { interface: String, source: io::Error },
    #[error("interface {interface} keeps {features} on: icx takes no frames with unfinished checksums or segments")]
    Remains { interface: String, features: String },
}

impl OffloadError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            OffloadError::Socket(source) | OffloadError::Look { source, .. } | OffloadError::Switch { source, .. } => {
                source.raw_os_error()
            }
            OffloadError::Remains { .. } => None,
        }
    }
}

impl Ethtool {
    pub(crate) fn open() -> Result<Self, OffloadError> {
        Ok(Ethtool { socket: UnixDatagram::unbound().map_err(OffloadError::Socket)? })
    }

    /// The features of an interface. Needs no capability.
    pub(crate) fn features(&self, interface: &str) -> Result<Vec<Feature>, OffloadError> {
        let failed = |source| look_failed("features", interface, source);
        let names = sys::ethtool_feature_names(self.socket.as_fd(), interface).map_err(failed)?;
        let words = sys::ethtool_features(self.socket.as_fd(), interface).map_err(failed)?;
        let bits = words.iter().flat_map(|word| (0..32).map(move |bit| (word, 1 << bit)));
        let features = names.into_iter().zip(bits).map(|(name, (word, bit))| Feature {
            name,
            on: word.active & bit != 0,
            changeable: word.available & !word.never_changed & bit != 0,
        });
        // A bit of which the kernel makes no use has no name.
        Ok(features.filter(|feature| !feature.name.is_empty()).collect())
    }

    /// Switches features on or off, those of `wanted` that this kernel knows. What the driver refuses stays as it is,
    /// without an error. Needs CAP_NET_ADMIN.
    pub(crate) fn switch<S: AsRef<str>>(&self, interface: &str, wanted: &[S], on: bool) -> Result<(), OffloadError> {
        let failed = |source| look_failed("features", interface, source);
        if wanted.is_empty() {
            return Ok(());
        }
        let names = sys::ethtool_feature_names(self.socket.as_fd(), interface).map_err(failed)?;
        let mut changes = vec![FeatureChange::default(); names.len().div_ceil(32)];
        for (at, name) in names.iter().enumerate() {
            if wanted.iter().any(|wanted| wanted.as_ref() == name) {
                let change = &mut changes[at / 32];
                change.valid |= 1 << (at % 32);
                change.requested |= u32::from(on) << (at % 32);
            }
        }
        sys::ethtool_set_features(self.socket.as_fd(), interface, &changes)
            .map_err(|source| OffloadError::Switch { interface: interface.to_owned(), source })
    }

    /// Switches everything off that the interface's driver, or the kernel in its place, does to frames in either
    /// direction: no checksum is left unfinished, nothing is segmented or merged, and a VLAN tag stays in the frame.
    pub(crate) fn switch_all_off(&self, interface: &str) -> Result<(), OffloadError> {
        let on = || -> Result<Vec<String>, OffloadError> {
            let frames =
                |feature: &Feature| feature.on && ["rx-", "tx-"].iter().any(|start| feature.name.starts_with(start));
            let features = self.features(interface)?.into_iter();
            Ok(features.filter(|feature| feature.changeable && frames(feature)).map(|feature| feature.name).collect())
        };
        self.switch(interface, &on()?, false)?;
        match on()? {
            remaining if remaining.is_empty() => Ok(()),
            remaining => Err(OffloadError::Remains { interface: interface.to_owned(), features: remaining.join(", ") }),
        }
    }

    /// How many channels of each kind the interface has. `None` where its driver does not say.
    pub(crate) fn channels(&self, interface: &str) -> Result<Option<Channels>, OffloadError> {
        match sys::ethtool_channels(self.socket.as_fd(), interface) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            answer => answer.map(Some).map_err(|source| look_failed("channels", interface, source)),
        }
    }

    /// The name of the interface's driver, where it has one that says.
    pub(crate) fn driver(&self, interface: &str) -> Option<String> {
        sys::driver_name(self.socket.as_fd(), interface).ok().filter(|name| !name.is_empty())
    }
}

fn look_failed(what: &'static str, interface: &str, source: io::Error) -> OffloadError {
    OffloadError::Look { what, interface: interface.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::{Ethtool, OffloadError};
    use crate::test_support::NetNs;

    #[test]
    fn features_are_read_and_switched_by_name() {
        let Some((near, far)) = NetNs::new().zip(NetNs::new()) else { return };
        near.connect(&far, ("192.0.2.1".parse().unwrap(), 24), ("192.0.2.2".parse().unwrap(), 24));
        near.run(|| {
            let ethtool = Ethtool::open().unwrap();
            let find = |name: &str| {
                let features = ethtool.features("under").unwrap();
                features.into_iter().find(|feature| feature.name == name).unwrap_or_else(|| panic!("no {name}"))
            };
            let gro = find("rx-gro");
            assert!(gro.changeable && !gro.on, "{gro:?}");
            ethtool.switch("under", &["rx-gro", "no-such-feature"], true).unwrap();
            assert!(find("rx-gro").on);
            ethtool.switch("under", &["rx-gro"], false).unwrap();
            assert!(!find("rx-gro").on);
            // The veth driver has no large receive offload, and says nothing about the attempt.
            assert!(!find("rx-lro").changeable);
            ethtool.switch("under", &["rx-lro"], true).unwrap();
            assert!(!find("rx-lro").on);
            assert_eq!(ethtool.driver("under").as_deref(), Some("veth"));
            assert_eq!((ethtool.driver("lo"), ethtool.channels("lo").unwrap()), (None, None));
        });
    }

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let error = Ethtool::open().unwrap().features("no-such-link0").unwrap_err();
        assert!(matches!(&error, OffloadError::Look { .. }) && error.errno() == Some(libc::ENODEV), "{error:?}");
        assert!(error.to_string().contains("no-such-link0"), "{error}");
    }
}
