//! Packets of connections and datagrams that are there allocate nothing.

#[path = "../../proto/tests/counting/mod.rs"]
mod counting;

use std::net::{IpAddr, SocketAddr};
use std::task::{Poll, Waker};

use counting::allocations;
use icx_io::PacketDevice;
use icx_netstack::{Stack, StackDevice, StackOptions, TcpStream, UdpSocket};

fn open(address: &str) -> (Stack, StackDevice) {
    Stack::open(StackOptions::new(vec![(address.parse().unwrap(), 24)], 1400)).unwrap()
}

/// Carries packets between the two until neither has one.
fn settle(devices: [&StackDevice; 2], buffer: &mut [u8]) -> usize {
    let mut carried = 0;
    loop {
        let before = carried;
        for (from, to) in [(devices[0], devices[1]), (devices[1], devices[0])] {
            while let Some(len) = from.next_packet(0, buffer).unwrap() {
                to.deliver_packet(0, &buffer[..len]).unwrap();
                carried += 1;
            }
        }
        if carried == before {
            return carried;
        }
    }
}

#[test]
fn no_packet_allocates_once_the_connection_is_there() {
    let ((near, near_device), (far, far_device)) = (open("10.9.0.1"), open("10.9.0.2"));
    let devices = [&near_device, &far_device];
    let (mut buffer, mut bytes) = (vec![0; 70_000], vec![0; 200_000]);
    let waker = Waker::noop();
    let listener = far.listen(80).unwrap();
    let remote: IpAddr = "10.9.0.2".parse().unwrap();
    let client = near.connect(SocketAddr::new(remote, 80)).unwrap();
    settle(devices, &mut buffer);
    let Poll::Ready(Ok(server)) = listener.poll_accept(waker) else { panic!("nobody came") };
    let (sender, receiver) = (near.bind_datagram(0).unwrap(), far.bind_datagram(53).unwrap());

    let mut round = |client: &TcpStream, server: &TcpStream, sender: &UdpSocket, receiver: &UdpSocket| {
        assert!(client.poll_send(&bytes, waker).is_ready());
        assert!(sender.poll_send_to(&bytes[..500], SocketAddr::new(remote, 53), waker).is_ready());
        let carried = settle(devices, &mut buffer);
        while server.poll_recv(&mut bytes, waker).is_ready() {}
        assert!(receiver.poll_recv_from(&mut bytes, waker).is_ready());
        carried + settle(devices, &mut buffer)
    };
    // What grows by need has grown then.
    for _ in 0..20 {
        round(&client, &server, &sender, &receiver);
    }
    let mut carried = 0;
    let count = allocations(|| carried = (0..100).map(|_| round(&client, &server, &sender, &receiver)).sum());
    assert!(carried > 10_000, "{carried}");
    assert_eq!(count, 0, "for {carried} packets");
}
