//! What drivers tell and let be set through the ethtool ioctl (linux/ethtool.h).

use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

/// Commands of `SIOCETHTOOL`.
const GDRVINFO: u32 = 0x03;
const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const SFEATURES: u32 = 0x3b;
const GCHANNELS: u32 = 0x3c;

/// `ETH_SS_FEATURES`.
const FEATURE_STRINGS: u32 = 4;

/// `ETH_GSTRING_LEN`.
const NAME_BYTES: usize = 32;

/// `struct ethtool_drvinfo`: 196 bytes, the driver's name first.
const DRIVER_WORDS: usize = 49;

/// The name of an interface's driver.
pub(crate) fn driver_name(interface: &str) -> io::Result<String> {
    let mut words = vec![0; DRIVER_WORDS];
    words[0] = GDRVINFO;
    ethtool(interface, &mut words)?;
    Ok(text(&words[1..=NAME_BYTES / 4]))
}

/// How many queues an interface receives on.
pub(crate) fn receive_queues(interface: &str) -> io::Result<u32> {
    // `struct ethtool_channels`: command, four maxima, then rx, tx, other and combined.
    let mut words = [0; 9];
    words[0] = GCHANNELS;
    ethtool(interface, &mut words)?;
    Ok(words[5] + words[8])
}

/// A feature of an interface, such as an offload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Feature {
    pub(crate) name: String,
    pub(crate) is_on: bool,
    /// It can be set.
    pub(crate) is_free: bool,
}

/// All features of an interface.
pub(crate) fn features(interface: &str) -> io::Result<Vec<Feature>> {
    // `struct ethtool_sset_info`: command, reserved, a mask of 64 bits, and a length for each of its bits.
    let mut words = [0; 5];
    (words[0], words[2 + usize::from(cfg!(target_endian = "big"))]) = (GSSET_INFO, 1 << FEATURE_STRINGS);
    ethtool(interface, &mut words)?;
    let count = words[4] as usize;

    // `struct ethtool_gstrings`: command, set, length, strings.
    let mut names = vec![0; 3 + count * NAME_BYTES / 4];
    (names[0], names[1], names[2]) = (GSTRINGS, FEATURE_STRINGS, count as u32);
    ethtool(interface, &mut names)?;

    // `struct ethtool_gfeatures`: command, blocks, and of each block of 32 bits: available, requested, active, never changed.
    let blocks = count.div_ceil(32);
    let mut states = vec![0; 2 + 4 * blocks];
    (states[0], states[1]) = (GFEATURES, blocks as u32);
    ethtool(interface, &mut states)?;

    let names = names[3..].chunks_exact(NAME_BYTES / 4).enumerate();
    let feature = |(at, name): (usize, &[u32])| {
        let (block, bit) = (2 + 4 * (at / 32), 1 << (at % 32));
        let [available, active, never] = [0, 2, 3].map(|word| states[block + word] & bit != 0);
        Feature { name: text(name), is_on: active, is_free: available && !never }
    };
    Ok(names.map(feature).collect())
}

/// Sets features by their names. Those that are not there, or cannot be set, stay as they are.
///
/// Needs CAP_NET_ADMIN: EPERM.
pub(crate) fn set_features(interface: &str, wanted: &[(&str, bool)]) -> io::Result<()> {
    let there = features(interface)?;
    let blocks = there.len().div_ceil(32);
    // `struct ethtool_sfeatures`: command, blocks, and of each block: valid, requested.
    let mut words = vec![0; 2 + 2 * blocks];
    (words[0], words[1]) = (SFEATURES, blocks as u32);
    for (at, feature) in there.iter().enumerate().filter(|(_, feature)| feature.is_free) {
        if let Some((_, on)) = wanted.iter().find(|(name, _)| *name == feature.name) {
            let (block, bit) = (2 + 2 * (at / 32), 1 << (at % 32));
            words[block] |= bit;
            words[block + 1] |= if *on { bit } else { 0 };
        }
    }
    ethtool(interface, &mut words)
}

/// The text in words that hold a C string.
fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One command. `words` begins with it, and is as large as the structure that belongs to it, what follows the fixed part included.
fn ethtool(interface: &str, words: &mut [u32]) -> io::Result<()> {
    let mut name = [0 as libc::c_char; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let data = words.as_mut_ptr().cast();
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data } };
    // SAFETY: SIOCETHTOOL reads one `ifreq`, and reads and writes what it points to, whose size the command and the lengths in
    // it say; every caller makes `words` that large.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
