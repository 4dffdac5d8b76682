//! One TCP connection between two stacks, each behind an engine and a pump of its own, over UDP on loopback: `cargo bench -p icx-netstack`.
//!
//! It says how much the stacks, the engines and the sockets carry; there are neither proxies nor programs beside them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant as Time};

use icx_netstack::TcpStream;

#[path = "../tests/tunnel/mod.rs"]
mod tunnel;

use tunnel::{FAR_V4, FAR_V6, Pair};

const SECONDS: u64 = 4;

fn main() {
    let v6 = std::env::args().any(|argument| argument == "v6");
    let Pair { near: near_stack, far: far_stack, .. } = &Pair::new();
    let listener = far_stack.listen(80).unwrap();
    let remote: IpAddr = if v6 { FAR_V6 } else { FAR_V4 }.parse().unwrap();
    let near = near_stack.connect(SocketAddr::new(remote, 80)).unwrap();
    wait(|waker| near.poll_connected(waker)).unwrap();
    let far = wait(|waker| listener.poll_accept(waker)).unwrap();
    let before = processor_time();
    let sender = thread::spawn(move || send(&near));
    let (received, took) = receive(&far);
    let processor = processor_time() - before;
    sender.join().unwrap();
    let gigabits = received as f64 * 8e-9;
    println!(
        "{} {:.2} Gbit/s, {:.2} s of processor for each Gbit",
        if v6 { "IPv6" } else { "IPv4" },
        gigabits / took.as_secs_f64(),
        processor.as_secs_f64() / gigabits
    );
}

fn send(stream: &TcpStream) {
    let bytes = vec![0x5a; 256 << 10];
    let end = Time::now() + Duration::from_secs(SECONDS);
    while Time::now() < end {
        wait(|waker| stream.poll_send(&bytes, waker)).unwrap();
    }
    stream.close_send().unwrap();
}

fn receive(stream: &TcpStream) -> (u64, Duration) {
    let mut bytes = vec![0; 256 << 10];
    let start = Time::now();
    let mut received = 0;
    loop {
        match wait(|waker| stream.poll_recv(&mut bytes, waker)).unwrap() {
            0 => return (received, start.elapsed()),
            more => received += more as u64,
        }
    }
}

/// Polls until it is ready, asleep between.
fn wait<T>(mut poll: impl FnMut(&Waker) -> Poll<T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let context = Context::from_waker(&waker);
    loop {
        match poll(context.waker()) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// User and system time of this process so far (`/proc/self/stat`).
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime, in ticks of 10 ms.
    Duration::from_millis(10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()))
}
