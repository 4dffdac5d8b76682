//! What connects to proxies, and what waits behind them.

use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use icx_netstack::proxy::{Protocol, Service};

use crate::nodes::{LIVENESS, Served, loopback};

/// Connects with a limit on how long anything may take.
pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    limited(TcpStream::connect(to).unwrap())
}

pub(crate) fn limited(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(LIVENESS)).unwrap();
    stream.set_write_timeout(Some(LIVENESS)).unwrap();
    stream
}

pub(crate) fn datagrams() -> UdpSocket {
    let socket = UdpSocket::bind(loopback()).unwrap();
    socket.set_read_timeout(Some(LIVENESS)).unwrap();
    socket
}

/// A server on this host that does the same with every connection, each on a thread.
pub(crate) fn server(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (limited(stream.unwrap()), serve.clone());
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Sends back what comes, and then ends.
pub(crate) fn echo(stream: TcpStream) {
    let (mut reader, mut writer) = (&stream, &stream);
    if io::copy(&mut reader, &mut writer).is_ok() {
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// Sends datagrams back.
pub(crate) fn datagram_echo() -> SocketAddr {
    let socket = UdpSocket::bind(loopback()).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 65_535];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..len], from).unwrap();
        }
    });
    address
}

/// Has the far end of a tunnel lead to servers on this host.
pub(crate) fn reverse(protocol: Protocol, target: SocketAddr) -> Service {
    Service::Reverse { protocol, listen_port: 0, target: target.into() }
}

/// Whether what comes back is what was sent.
pub(crate) fn assert_echoes(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}

/// Whether a connection was reset, and not just ended.
pub(crate) fn assert_reset(stream: &mut TcpStream) {
    let mut buffer = [0; 65_536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("ended, and was not reset"),
            Ok(_) => {}
            Err(error) => return assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
        }
    }
}

/// The rest of what comes; a reset is an end as well.
pub(crate) fn read_rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("never ended: {error}"),
        _ => bytes,
    }
}

/// Sends until nothing is taken any more: all buffers on the way are full.
pub(crate) fn fill(stream: &mut TcpStream) {
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    while stream.write_all(&[0; 65_536]).is_ok() {}
}

pub(crate) fn reset(stream: TcpStream) {
    let socket = socket2::Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

/// Sends `len` bytes that no shift or loss leaves the same, and returns their sum.
pub(crate) fn send_pattern(stream: &mut TcpStream, len: usize) -> u64 {
    let mut sum = DefaultHasher::new();
    let mut state = 1u64;
    let mut chunk = vec![0; 64 << 10];
    let mut left = len;
    while left > 0 {
        for word in chunk.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&state.to_le_bytes());
        }
        let part = &chunk[..left.min(chunk.len())];
        stream.write_all(part).unwrap();
        sum.write(part);
        left -= part.len();
    }
    sum.finish()
}

/// The sum of what comes until the end, and its length.
pub(crate) fn receive_pattern(stream: &mut TcpStream) -> (usize, u64) {
    let mut sum = DefaultHasher::new();
    let mut chunk = vec![0; 64 << 10];
    let mut received = 0;
    loop {
        // In whole pieces, as the sum depends on them.
        let mut filled = 0;
        while filled < chunk.len() {
            match stream.read(&mut chunk[filled..]).unwrap() {
                0 => break,
                len => filled += len,
            }
        }
        if filled == 0 {
            return (received, sum.finish());
        }
        sum.write(&chunk[..filled]);
        received += filled;
    }
}

/// What a SOCKS5 client does with the first service.
pub(crate) struct Socks<'a> {
    pub(crate) served: &'a Served,
    pub(crate) user: Option<(&'a str, &'a str)>,
}

impl Socks<'_> {
    /// Sends a request and reads the reply: its code, and the address in it.
    pub(crate) fn request(&self, command: u8, address: &[u8]) -> (TcpStream, u8, SocketAddr) {
        let mut stream = connect(self.served.host(0));
        let method = if self.user.is_some() { 2 } else { 0 };
        stream.write_all(&[5, 1, method]).unwrap();
        assert_eq!(read::<2>(&mut stream), [5, method]);
        if let Some((user, password)) = self.user {
            let mut message = vec![1, user.len() as u8];
            message.extend(user.bytes());
            message.push(password.len() as u8);
            message.extend(password.bytes());
            stream.write_all(&message).unwrap();
            assert_eq!(read::<2>(&mut stream), [1, 0]);
        }
        stream.write_all(&[5, command, 0]).unwrap();
        stream.write_all(address).unwrap();
        let [version, code, reserved] = read(&mut stream);
        assert_eq!([version, reserved], [5, 0]);
        let bound = read_address(&mut stream);
        (stream, code, bound)
    }

    pub(crate) fn connect(&self, address: &[u8]) -> TcpStream {
        let (stream, code, _) = self.request(1, address);
        assert_eq!(code, 0);
        stream
    }
}

/// An address as SOCKS5 writes it. What is none is a name.
pub(crate) fn socks_address(host: &str, port: u16) -> Vec<u8> {
    let mut bytes = match host.parse() {
        Ok(std::net::IpAddr::V4(ip)) => [&[1], &ip.octets()[..]].concat(),
        Ok(std::net::IpAddr::V6(ip)) => [&[4], &ip.octets()[..]].concat(),
        Err(_) => [&[3, host.len() as u8], host.as_bytes()].concat(),
    };
    bytes.extend(port.to_be_bytes());
    bytes
}

pub(crate) fn read_address(from: &mut impl Read) -> SocketAddr {
    let ip = match read(from) {
        [1] => read::<4>(from).into(),
        [4] => std::net::IpAddr::from(read::<16>(from)),
        [kind] => panic!("an address of kind {kind}"),
    };
    SocketAddr::new(ip, u16::from_be_bytes(read(from)))
}

pub(crate) fn read<const N: usize>(from: &mut impl Read) -> [u8; N] {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).unwrap();
    bytes
}
