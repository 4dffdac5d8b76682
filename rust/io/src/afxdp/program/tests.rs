use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aya::TestRunOptions;
use aya::programs::TestRun;
use socket2::{Domain, Socket, Type};

use super::super::{LackKind, probe};
use super::*;
use crate::link;
use crate::test_support::NetNs;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

const ETHERNET: usize = 14;
const IPV4_UDP: usize = ETHERNET + 20;
const IPV6_UDP: usize = ETHERNET + 40;

const OURS_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const MAPPED_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const OURS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, 1);

/// Ports: of the exact addresses, and of the wildcard ones of IPv4 and IPv6.
const EXACT: u16 = 6081;
const ANY_V4: u16 = 7004;
const ANY_V6: u16 = 7006;

/// A Geneve header with protocol type IPv4, and some payload.
const GENEVE: [u8; 24] = [0, 0, 8, 0, 0, 0, 7, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

fn frame(ethertype: u16, ip: &[u8], port: u16) -> Vec<u8> {
    let mut frame = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2].to_vec();
    frame.extend(ethertype.to_be_bytes());
    frame.extend(ip);
    frame.extend(40000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend((8 + GENEVE.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(GENEVE);
    frame
}

fn v4(to: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut ip = [0; 20];
    (ip[0], ip[3], ip[6], ip[8], ip[9]) = (0x45, 20 + 8 + GENEVE.len() as u8, 0x40, 64, 17);
    ip[12..16].copy_from_slice(&[198, 51, 100, 1]);
    ip[16..].copy_from_slice(&to.octets());
    frame(0x0800, &ip, port)
}

fn v6(to: Ipv6Addr, port: u16) -> Vec<u8> {
    let mut ip = [0; 40];
    (ip[0], ip[5], ip[6], ip[7]) = (0x60, 8 + GENEVE.len() as u8, 17, 64);
    ip[24..].copy_from_slice(&to.octets());
    frame(0x86dd, &ip, port)
}

/// The frame with other bytes from an offset on.
fn put(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// The frame with more bytes at an offset.
fn insert(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame.splice(at..at, bytes.iter().copied());
    frame
}

fn bound() -> Vec<SocketAddr> {
    vec![
        (Ipv4Addr::UNSPECIFIED, ANY_V4).into(),
        (Ipv6Addr::UNSPECIFIED, ANY_V6).into(),
        (OURS_V4, EXACT).into(),
        (OURS_V6, EXACT).into(),
        (MAPPED_V4.to_ipv6_mapped(), EXACT).into(),
    ]
}

/// An AF_XDP socket that is bound to nothing: programs redirect to it, and the kernel then drops the frame.
fn xdp_socket() -> Socket {
    Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None).unwrap()
}

/// Runs a program on one frame that comes by queue 0; what it returns and what the frame is then.
fn run(program: &mut LoadedProgram, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; 2048];
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut out);
    let result = program.xdp().unwrap().test_run(options).unwrap();
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

fn counted(redirected: u64, passed: u64, dropped: u64) -> FilterCounters {
    FilterCounters { redirected, passed, dropped }
}

#[test]
fn the_filter_takes_what_is_bound_and_leaves_the_rest() {
    let Some(namespace) = NetNs::new() else { return };
    let ours = || v4(OURS_V4, EXACT);
    let ours6 = || v6(OURS_V6, EXACT);
    let (geneve, to6) = (IPV4_UDP + 8, ETHERNET + 24);
    let (redirect, pass) = (XDP_REDIRECT, XDP_PASS);
    let rows = [
        ("IPv4 to an exact address", ours(), redirect),
        ("IPv4 to another address", v4(OTHER_V4, EXACT), pass),
        ("IPv4 to the exact address on another port", v4(OURS_V4, 6082), pass),
        ("IPv4 to any address on a wildcard's port", v4(OTHER_V4, ANY_V4), redirect),
        ("IPv4 on the port of IPv6's wildcard", v4(OTHER_V4, ANY_V6), pass),
        ("IPv4 to an address bound as IPv4-mapped IPv6", v4(MAPPED_V4, EXACT), redirect),
        ("IPv6 to an exact address", ours6(), redirect),
        ("IPv6 to another address", v6(OTHER_V6, EXACT), pass),
        ("IPv6 to an address with another first word", put(ours6(), to6, &[0x20, 2]), pass),
        ("IPv6 to an address with another second word", put(ours6(), to6 + 7, &[1]), pass),
        ("IPv6 to an address with another third word", put(ours6(), to6 + 8, &[1]), pass),
        ("IPv6 to the exact address on another port", v6(OURS_V6, 6082), pass),
        ("IPv6 to any address on a wildcard's port", v6(OTHER_V6, ANY_V6), redirect),
        ("IPv6 on the port of IPv4's wildcard", v6(OTHER_V6, ANY_V4), pass),
        (
            "IPv6 to an address that starts as a bound IPv4 one",
            v6(Ipv6Addr::new(0xc000, 0x201, 0, 0, 0, 0, 0, 0), EXACT),
            pass,
        ),
        ("IPv4 with options", insert(put(ours(), ETHERNET, &[0x46]), IPV4_UDP, &[1, 1, 1, 0]), pass),
        ("IPv4 with too short a header length", put(ours(), ETHERNET, &[0x44]), pass),
        ("IPv4 of another version", put(ours(), ETHERNET, &[0x65]), pass),
        ("IPv4 that may be fragmented", put(ours(), ETHERNET + 6, &[0, 0]), redirect),
        ("a first fragment", put(ours(), ETHERNET + 6, &[0x20, 0]), pass),
        ("a later fragment", put(ours(), ETHERNET + 6, &[0x20, 1]), pass),
        ("the last fragment", put(ours(), ETHERNET + 6, &[0x00, 1]), pass),
        ("a fragment from far behind", put(ours(), ETHERNET + 6, &[0x10, 0]), pass),
        ("IPv4 with TCP", put(ours(), ETHERNET + 9, &[6]), pass),
        ("IPv4 in a VLAN", insert(ours(), 12, &[0x81, 0, 0, 5]), pass),
        ("IPv4 in a service VLAN", insert(ours(), 12, &[0x88, 0xa8, 0, 5]), pass),
        ("ARP", put(ours(), 12, &[0x08, 0x06]), pass),
        ("IPv6 of another version", put(ours6(), ETHERNET, &[0x40]), pass),
        ("IPv6 with TCP", put(ours6(), ETHERNET + 6, &[6]), pass),
        (
            "IPv6 with a hop-by-hop header",
            insert(put(ours6(), ETHERNET + 6, &[0]), IPV6_UDP, &[17, 0, 1, 4, 0, 0, 0, 0]),
            pass,
        ),
        (
            "IPv6 with a fragment header",
            insert(put(ours6(), ETHERNET + 6, &[44]), IPV6_UDP, &[17, 0, 0, 0, 0, 0, 0, 1]),
            pass,
        ),
        ("IPv6 in a VLAN", insert(ours6(), 12, &[0x81, 0, 0, 5]), pass),
        ("Geneve version 1", put(ours(), geneve, &[0x40]), pass),
        ("Geneve version 2", put(ours(), geneve, &[0x80]), pass),
        ("Geneve with options", put(ours(), geneve, &[0x3f]), redirect),
        ("Geneve control and critical flags", put(ours(), geneve, &[0, 0xc0]), redirect),
        ("Geneve with protocol type IPv6", put(ours(), geneve + 2, &[0x86, 0xdd]), redirect),
        ("Geneve with protocol type 0", put(ours(), geneve + 2, &[0, 0]), redirect),
        ("Geneve with protocol type Ethernet", put(ours(), geneve + 2, &[0x65, 0x58]), pass),
        ("Geneve over IPv6 with protocol type Ethernet", put(ours6(), IPV6_UDP + 8 + 2, &[0x65, 0x58]), pass),
        ("a datagram that ends within the Geneve header, padded", put(ours(), IPV4_UDP + 4, &[0, 15]), pass),
        ("a datagram that ends with the Geneve header", put(ours(), IPV4_UDP + 4, &[0, 16]), redirect),
    ];
    namespace.run(|| {
        let mut program = LoadedProgram::underlay(1, &bound()).unwrap();
        let socket = xdp_socket();
        program.set_socket(0, socket.as_fd()).unwrap();
        let mut expected = FilterCounters::default();
        for (name, frame, action) in rows {
            if action == redirect {
                expected.redirected += 1
            } else {
                expected.passed += 1
            }
            let (returned, after) = run(&mut program, &frame);
            assert_eq!(returned, action, "{name}");
            assert_eq!(after, frame, "{name}: the frame is left alone");
            assert_eq!(program.counters().unwrap(), expected, "{name}");
        }
    });
}

#[test]
fn frames_that_end_within_the_headers_pass_at_every_length() {
    let Some(namespace) = NetNs::new() else { return };
    namespace.run(|| {
        let mut program = LoadedProgram::underlay(1, &bound()).unwrap();
        let socket = xdp_socket();
        program.set_socket(0, socket.as_fd()).unwrap();
        for (frame, headers) in [(v4(OURS_V4, EXACT), IPV4_UDP + 16), (v6(OURS_V6, EXACT), IPV6_UDP + 16)] {
            for length in ETHERNET..frame.len() {
                let expected = if length < headers { XDP_PASS } else { XDP_REDIRECT };
                assert_eq!(run(&mut program, &frame[..length]).0, expected, "{length} bytes");
            }
        }
    });
}

#[test]
fn what_matches_is_dropped_where_its_queue_has_no_socket() {
    let Some(namespace) = NetNs::new() else { return };
    namespace.run(|| {
        let mut program = LoadedProgram::underlay(2, &bound()).unwrap();
        let (ours, other) = (v4(OURS_V4, EXACT), v4(OTHER_V4, EXACT));
        let socket = xdp_socket();
        program.set_socket(1, socket.as_fd()).unwrap();
        assert_eq!(run(&mut program, &ours).0, XDP_DROP, "only another queue has a socket");
        assert_eq!(run(&mut program, &other).0, XDP_PASS);
        let socket = xdp_socket();
        program.set_socket(0, socket.as_fd()).unwrap();
        assert_eq!(run(&mut program, &ours).0, XDP_REDIRECT);
        drop(socket);
        assert_eq!(run(&mut program, &ours).0, XDP_DROP, "the socket is closed");
        assert_eq!(program.counters().unwrap(), counted(1, 1, 2));
        assert!(program.set_socket(2, xdp_socket().as_fd()).is_err(), "there are two queues");
    });
}

#[test]
fn a_filter_takes_one_to_sixteen_addresses() {
    let Some(namespace) = NetNs::new() else { return };
    let addresses = |count: u8| -> Vec<SocketAddr> {
        (0..count).map(|i| (Ipv4Addr::new(203, 0, 113, i), 1000 + u16::from(i)).into()).collect()
    };
    for count in [0, 17] {
        let result = LoadedProgram::underlay(1, &addresses(count));
        let Err(error @ AttachError::Bound { given }) = result else { panic!("{count} addresses are taken") };
        assert_eq!(given, usize::from(count));
        assert!(error.to_string().contains("1 to 16"), "{error}");
    }
    namespace.run(|| {
        for count in [1, 16] {
            let mut program = LoadedProgram::underlay(1, &addresses(count)).unwrap();
            let socket = xdp_socket();
            program.set_socket(0, socket.as_fd()).unwrap();
            for i in 0..17 {
                let expected = if i < count { XDP_REDIRECT } else { XDP_PASS };
                let frame = v4(Ipv4Addr::new(203, 0, 113, i), 1000 + u16::from(i));
                assert_eq!(run(&mut program, &frame).0, expected, "address {i} of {count}");
            }
            // The entries that are not used are all zeros.
            assert_eq!(run(&mut program, &v4(Ipv4Addr::UNSPECIFIED, 0)).0, XDP_PASS);
        }
    });
}

#[test]
fn the_virtual_side_leaves_headroom() {
    let Some(namespace) = NetNs::new() else { return };
    namespace.run(|| {
        let frame = v4(OTHER_V4, 9);
        for headroom in [0, 60, 80] {
            let mut program = LoadedProgram::virtual_side(1, headroom).unwrap();
            assert_eq!(run(&mut program, &frame).0, XDP_DROP, "there is no socket");
            let socket = xdp_socket();
            program.set_socket(0, socket.as_fd()).unwrap();
            let (action, out) = run(&mut program, &frame);
            assert_eq!(action, XDP_REDIRECT);
            assert_eq!(out.len(), headroom as usize + frame.len());
            assert_eq!(out[headroom as usize..], frame);
            assert_eq!(program.counters().unwrap(), counted(1, 0, 1));
        }
        let mut program = LoadedProgram::virtual_side(1, 300).unwrap();
        let socket = xdp_socket();
        program.set_socket(0, socket.as_fd()).unwrap();
        assert_eq!(run(&mut program, &frame).0, XDP_DROP, "drivers leave no more than 256 bytes");
        assert_eq!(program.counters().unwrap(), counted(0, 0, 1));
    });
}

/// Two namespaces with a link between their interfaces `under`, 10.9.0.1 and 10.9.0.2.
fn pair() -> Option<(NetNs, NetNs)> {
    let (near, far) = (NetNs::new()?, NetNs::new()?);
    near.connect(&far, (NEAR.into(), 24), (FAR.into(), 24));
    Some((near, far))
}

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

fn index_of(interface: &str) -> u32 {
    link::by_name(interface).unwrap().index
}

fn attached_to(interface: &str) -> Vec<(u32, AttachedMode)> {
    attached(&mut Netlink::open().unwrap(), index_of(interface)).unwrap()
}

fn attach_underlay(interface: &str, mode: AttachMode) -> Result<UnderlayProgram, AttachError> {
    UnderlayProgram::attach(interface, index_of(interface), 1, &[(NEAR, EXACT).into()], mode)
}

fn error_of<Side>(result: Result<AttachedProgram<Side>, AttachError>) -> AttachError {
    match result {
        Ok(_) => panic!("the program is attached"),
        Err(error) => error,
    }
}

#[test]
fn datagrams_are_filtered_while_attached_in_both_modes() {
    let Some((near, far)) = pair() else { return };
    let sender = far.run(|| UdpSocket::bind((FAR, 0)).unwrap());
    let (ours, others) = near.run(|| (UdpSocket::bind((NEAR, EXACT)).unwrap(), UdpSocket::bind((NEAR, 9)).unwrap()));
    others.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    ours.set_nonblocking(true).unwrap();
    // Says whether the kernel's stack gets the first of two datagrams, of which it must get the second.
    let reaches_stack = || {
        sender.send_to(&GENEVE, (NEAR, EXACT)).unwrap();
        sender.send_to(&GENEVE, (NEAR, 9)).unwrap();
        others.recv(&mut [0; 64]).unwrap();
        ours.recv(&mut [0; 64]).is_ok()
    };
    for (mode, came_to) in [(AttachMode::Native, AttachedMode::Native), (AttachMode::Generic, AttachedMode::Generic)] {
        assert!(reaches_stack());
        near.run(|| {
            let mut program = attach_underlay("under", mode).unwrap();
            assert_eq!(program.mode(), came_to);
            assert_eq!(attached_to("under").iter().map(|(_, mode)| *mode).collect::<Vec<_>>(), [came_to]);
            assert!(!reaches_stack(), "{mode:?}");
            let before = program.counters().unwrap();
            assert_eq!((before.redirected, before.dropped), (0, 1), "{mode:?}");
            assert!(before.passed >= 1, "{mode:?}");

            let socket = xdp_socket();
            program.set_socket(0, socket.as_fd()).unwrap();
            assert!(!reaches_stack(), "{mode:?}");
            let after = program.counters().unwrap();
            assert_eq!((after.redirected, after.dropped), (1, 1), "{mode:?}");
            assert!(after.passed > before.passed, "{mode:?}");
            let error = program.set_socket(1, socket.as_fd()).unwrap_err();
            assert!(error.to_string().contains("queue 1 of interface under"), "{error}");

            drop(program);
            assert_eq!(attached_to("under"), [], "{mode:?}");
        });
    }
    assert!(reaches_stack());
}

#[test]
fn every_frame_of_the_virtual_side_is_taken_in_both_modes() {
    let Some((near, far)) = pair() else { return };
    let sender = far.run(|| UdpSocket::bind((FAR, 0)).unwrap());
    let receiver = near.run(|| UdpSocket::bind((NEAR, 9)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for (mode, came_to) in [(AttachMode::Native, AttachedMode::Native), (AttachMode::Generic, AttachedMode::Generic)] {
        // The neighbours know each other afterwards.
        sender.send_to(&GENEVE, (NEAR, 9)).unwrap();
        receiver.recv(&mut [0; 64]).unwrap();
        near.run(|| {
            let mut program = VirtualProgram::attach("under", index_of("under"), 1, 80, mode).unwrap();
            assert_eq!(program.mode(), came_to);
            let counters_when = |program: &VirtualProgram, is_reached: &dyn Fn(FilterCounters) -> bool| {
                let deadline = Instant::now() + Duration::from_secs(5);
                loop {
                    let counters = program.counters().unwrap();
                    assert_eq!(counters.passed, 0, "{mode:?}");
                    if is_reached(counters) {
                        return counters;
                    }
                    assert!(Instant::now() < deadline, "{mode:?}: {counters:?}");
                    thread::sleep(Duration::from_millis(1));
                }
            };
            sender.send_to(&GENEVE, (NEAR, 9)).unwrap();
            let before = counters_when(&program, &|counters| counters.dropped > 0);
            assert_eq!(before.redirected, 0, "{mode:?}");
            let socket = xdp_socket();
            program.set_socket(0, socket.as_fd()).unwrap();
            let dropped = program.counters().unwrap().dropped;
            sender.send_to(&GENEVE, (NEAR, 9)).unwrap();
            let after = counters_when(&program, &|counters| counters.redirected > 0);
            assert_eq!(after.dropped, dropped, "{mode:?}: there is room for the headers");
            drop(program);
            assert_eq!(attached_to("under"), [], "{mode:?}");
        });
    }
}

#[test]
fn the_mode_is_what_the_driver_can() {
    let Some((near, _far)) = pair() else { return };
    near.run(|| {
        assert_eq!(attach_underlay("under", AttachMode::Auto).unwrap().mode(), AttachedMode::Native);
        // The loopback's driver has no native XDP.
        assert_eq!(attach_underlay("lo", AttachMode::Auto).unwrap().mode(), AttachedMode::Generic);
        let error = error_of(attach_underlay("lo", AttachMode::Native));
        assert!(matches!(&error, AttachError::NoNative { interface, .. } if interface == "lo"), "{error:?}");
        assert_eq!(error.errno(), Some(libc::EOPNOTSUPP));
        for mode in [AttachMode::Auto, AttachMode::Native, AttachMode::Generic] {
            let gone = error_of(VirtualProgram::attach("gone0", 9999, 1, 60, mode));
            assert!(matches!(&gone, AttachError::InterfaceGone(name) if name == "gone0"), "{gone:?}");
        }
        assert_eq!(attached_to("lo"), []);
    });
}

/// A program that is not ours: the one for the virtual side under another name.
fn foreign_program() -> LoadedProgram {
    const NAME: &str = "foreign_xdp";
    let mut object = VIRTUAL_OBJECT.to_vec();
    let (from, to) = (VIRTUAL_NAME.as_bytes(), NAME.as_bytes());
    while let Some(at) = object.windows(from.len()).position(|window| window == from) {
        object[at..at + from.len()].copy_from_slice(to);
    }
    LoadedProgram::load(&mut EbpfLoader::new(), NAME, &object, 1).unwrap()
}

/// Attaches a program as kernels without BPF links do: it stays until somebody detaches it.
fn attach_without_link(program: &mut LoadedProgram, interface: &str, mode: AttachedMode) {
    let fd = program.xdp().unwrap().fd().unwrap().as_fd().as_raw_fd();
    let request = set_program(index_of(interface), vec![LinkXdp::Fd(fd), LinkXdp::Flags(mode.flags())]);
    Netlink::open().unwrap().request(request, 0).unwrap();
}

#[test]
fn a_foreign_program_is_named_and_left_alone() {
    let Some((near, _far)) = pair() else { return };
    near.run(|| {
        for (at, wanted) in [
            (AttachedMode::Native, AttachMode::Auto),
            (AttachedMode::Native, AttachMode::Generic),
            (AttachedMode::Generic, AttachMode::Auto),
            (AttachedMode::Generic, AttachMode::Native),
        ] {
            let refused = || {
                let there = attached_to("under");
                let error = error_of(attach_underlay("under", wanted));
                let AttachError::Occupied { interface, program, id, mode } = &error else { panic!("{error:?}") };
                assert_eq!((interface.as_str(), program.as_deref()), ("under", Some("foreign_xdp")), "{error}");
                assert_eq!([(*id, *mode)][..], there[..], "{error}");
                assert_eq!(*mode, at, "{error}");
                for part in ["foreign_xdp", &id.to_string(), &format!("{at} mode"), "ip link set under xdp"] {
                    assert!(error.to_string().contains(part), "{part}: {error}");
                }
                assert_eq!(attached_to("under"), there);
            };
            let mut foreign = foreign_program();
            let link = foreign.attach_once(index_of("under"), at).unwrap();
            refused();
            drop(link);
            attach_without_link(&mut foreign, "under", at);
            refused();
            let request = set_program(index_of("under"), vec![LinkXdp::Fd(-1), LinkXdp::Flags(at.flags())]);
            Netlink::open().unwrap().request(request, 0).unwrap();
            assert_eq!(attached_to("under"), []);
        }
    });
}

#[test]
fn our_own_program_is_replaced_where_no_link_holds_it() {
    let Some((near, _far)) = pair() else { return };
    near.run(|| {
        for at in [AttachedMode::Native, AttachedMode::Generic] {
            for mut left in [LoadedProgram::underlay(1, &bound()).unwrap(), LoadedProgram::virtual_side(1, 60).unwrap()]
            {
                attach_without_link(&mut left, "under", at);
                drop(left);
                let before = attached_to("under");
                let program = attach_underlay("under", AttachMode::Auto).unwrap();
                let after = attached_to("under");
                assert_eq!((before.len(), after.len()), (1, 1));
                assert_ne!(before[0].0, after[0].0, "another program");
                drop(program);
                assert_eq!(attached_to("under"), []);
            }
        }
        let _held = attach_underlay("under", AttachMode::Auto).unwrap();
        let there = attached_to("under");
        let error = error_of(attach_underlay("under", AttachMode::Auto));
        assert!(
            matches!(&error, AttachError::Occupied { program: Some(name), .. } if name == UNDERLAY_NAME),
            "{error:?}"
        );
        assert_eq!(attached_to("under"), there);
    });
}

/// This program again, to run one test with `variable` set.
fn this_test(name: &str, variable: &str) -> Command {
    // Not by its path, which another user may not be let through.
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", "--nocapture", &format!("{}::{name}", module_path!().split_once("::").unwrap().1)]);
    command.env(variable, "1");
    command
}

#[test]
fn a_killed_process_leaves_nothing() {
    const CHILD: &str = "ICX_TEST_ATTACH_AND_WAIT";
    if std::env::var_os(CHILD).is_some() {
        let _program = attach_underlay("under", AttachMode::Auto).unwrap();
        println!("attached");
        loop {
            thread::park();
        }
    }
    let Some((near, _far)) = pair() else { return };
    near.run(|| {
        let mut child = this_test("a_killed_process_leaves_nothing", CHILD).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("attached")), "the child attaches it");
        assert_eq!(attached_to("under").len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(attached_to("under"), []);
    });
}

#[test]
fn without_the_right_it_is_said_what_is_missing() {
    const CHILD: &str = "ICX_TEST_WITHOUT_RIGHTS";
    const NOBODY: u32 = 65534;
    if std::env::var_os(CHILD).is_some() {
        let error = error_of(attach_underlay("lo", AttachMode::Auto));
        assert!(matches!(error, AttachError::NoPermission { .. }), "{error:?}");
        assert!(error.to_string().contains("CAP_BPF"), "{error}");
        let missing = probe("lo").unwrap().missing;
        for capability in ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"] {
            assert!(missing.iter().any(|lack| lack.what.contains(capability)), "{capability}: {missing:?}");
        }
        assert!(missing.iter().all(|lack| lack.kind == LackKind::Permission), "{missing:?}");
        assert_eq!(missing.len(), 4, "{missing:?}");
        return;
    }
    let Some(namespace) = NetNs::new() else { return };
    namespace.run(|| {
        let status = this_test("without_the_right_it_is_said_what_is_missing", CHILD)
            .uid(NOBODY)
            .gid(NOBODY)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
    });
}
