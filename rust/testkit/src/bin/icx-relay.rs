//! The network between two nodes, as bad as it is told to be.
//!
//! It owns, in a namespace of its own, an address towards each node, and each node takes that address for its peer:
//! what arrives on the one leaves from the other, on the same port. So a node sees its peer's address as the source of
//! everything, as its peer filter demands.
//!
//! Options: `--a ADDRESS --a-side ADDRESS --b ADDRESS --b-side ADDRESS`: the nodes, and the relay's own addresses towards
//! them; `--ports PORT,PORT`, `--seed NUMBER`.
//!
//! Each line on standard input changes the impairments (see `Impairments::changed`), says where a node is from now on (`a-at` or
//! `b-at` and its address), or, if it is `counts`, changes nothing; each is answered with a line of JSON. The end of the input
//! ends the relay.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::Instant;

use icx_testkit::args::Args;
use icx_testkit::impairment::{Fate, Impairments};
use icx_testkit::random::Random;
use serde_json::{Map, Value, json};
use socket2::{Domain, Protocol, Socket, Type};

const MAX_DATAGRAM_BYTES: usize = 65_535;
const BUFFER_BYTES: usize = 4 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse(std::env::args().skip(1), &["a", "a-side", "b", "b-side", "ports", "seed"])?;
    let [a, a_side, b, b_side]: [IpAddr; 4] =
        [args.required("a")?, args.required("a-side")?, args.required("b")?, args.required("b-side")?];
    let mut seed: u64 = args.optional("seed")?.unwrap_or(1);
    let network = Arc::new(Mutex::new(Impairments::default()));
    let [a, b] = [a, b].map(Place::new);
    let mut lanes = Vec::new();
    for port in args.text("ports").unwrap_or("6081,6082").split(',') {
        let port: u16 = port.parse().map_err(|error| format!("--ports cannot have {port:?}: {error}"))?;
        let sides = [bind(SocketAddr::new(a_side, port))?, bind(SocketAddr::new(b_side, port))?];
        let [on_a_side, on_b_side] = sides.map(Arc::new);
        for (name, from, input, output, to) in
            [("a-b", &a, &on_a_side, &on_b_side, &b), ("b-a", &b, &on_b_side, &on_a_side, &a)]
        {
            seed += 1;
            let lane = Arc::new(Lane {
                name: format!("{name}:{port}"),
                from: from.clone(),
                input: Arc::clone(input),
                output: Arc::clone(output),
                to: to.clone(),
                port,
                network: Arc::clone(&network),
                late: Mutex::new(BinaryHeap::new()),
                earlier: Condvar::new(),
                counts: Counts::default(),
            });
            let (receiver, sender, random) = (Arc::clone(&lane), Arc::clone(&lane), Random::new(seed));
            thread::spawn(move || receiver.receive(random));
            thread::spawn(move || sender.send_late());
            lanes.push(lane);
        }
    }
    answer(&json!({ "event": "ready" }))?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let obeyed = match line.trim().split_once(' ') {
            Some(("a-at", address)) => a.set(address),
            Some(("b-at", address)) => b.set(address),
            None if line.trim() == "counts" => Ok(()),
            _ => {
                let mut network = lock(&network);
                network.changed(&line).map(|changed| *network = changed).map_err(|error| error.to_string())
            }
        };
        if let Err(reason) = obeyed {
            answer(&json!({ "event": "refused", "reason": reason }))?;
            continue;
        }
        let counts: Map<String, Value> = lanes.iter().map(|lane| (lane.name.clone(), lane.counts.json())).collect();
        answer(&json!({ "event": "ok", "counts": counts }))?;
    }
    // The threads wait in receive calls and for datagrams that nobody misses any more.
    std::process::exit(0)
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(BUFFER_BYTES)?;
    socket.set_send_buffer_size(BUFFER_BYTES)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn answer(value: &Value) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{value}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a node is.
#[derive(Clone)]
struct Place(Arc<RwLock<IpAddr>>);

impl Place {
    fn new(address: IpAddr) -> Self {
        Place(Arc::new(RwLock::new(address)))
    }

    fn get(&self) -> IpAddr {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, address: &str) -> Result<(), String> {
        let address = address.parse().map_err(|error| format!("{address:?} is no address: {error}"))?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = address;
        Ok(())
    }
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// What became of the datagrams of one lane.
        #[derive(Debug, Default)]
        struct Counts {
            $($(#[$doc])* $name: AtomicU64,)+
        }

        impl Counts {
            fn json(&self) -> Value {
                json!({ $(stringify!($name): self.$name.load(Ordering::Relaxed)),+ })
            }
        }
    };
}

counts! {
    received,
    /// Not from the node on this side.
    foreign,
    link_down,
    too_big,
    lost,
    corrupted,
    duplicated,
    reordered,
    /// Sent on, second copies included.
    forwarded,
    /// Refused by the kernel.
    failed,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A datagram that is under way. The next one is the least; of those that are due together the older.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Late {
    due: Instant,
    number: u64,
    datagram: Vec<u8>,
}

/// One direction of one port.
struct Lane {
    name: String,
    from: Place,
    input: Arc<UdpSocket>,
    output: Arc<UdpSocket>,
    to: Place,
    port: u16,
    network: Arc<Mutex<Impairments>>,
    late: Mutex<BinaryHeap<Reverse<Late>>>,
    /// Told when there is another next one.
    earlier: Condvar,
    counts: Counts,
}

impl Lane {
    fn receive(&self, mut random: Random) {
        let counts = &self.counts;
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
        for number in 0.. {
            // An error is that of an earlier datagram in the other direction, told by ICMP.
            let Ok((length, source)) = self.input.recv_from(&mut buffer) else { continue };
            let from = self.from.get();
            if source.ip() != from {
                count(&counts.foreign);
                continue;
            }
            count(&counts.received);
            let network = *lock(&self.network);
            let datagram = &mut buffer[..length];
            match network.fate(&mut random, length, from) {
                Fate::LinkDown => count(&counts.link_down),
                Fate::TooBig => count(&counts.too_big),
                Fate::Lost => count(&counts.lost),
                Fate::Passed { corrupt, duplicate, reorder, delay } => {
                    if let Some(bit) = corrupt {
                        datagram[bit / 8] ^= 1 << (bit % 8);
                        count(&counts.corrupted);
                    }
                    if reorder {
                        count(&counts.reordered);
                    }
                    if duplicate {
                        count(&counts.duplicated);
                    }
                    for _ in 0..1 + usize::from(duplicate) {
                        if delay.is_zero() {
                            self.forward(datagram);
                        } else {
                            let due = Instant::now() + delay;
                            lock(&self.late).push(Reverse(Late { due, number, datagram: datagram.to_vec() }));
                            self.earlier.notify_one();
                        }
                    }
                }
            }
        }
    }

    /// Sends what was held back, each when its time has come.
    fn send_late(&self) {
        let mut late = lock(&self.late);
        loop {
            late = match late.peek().map(|Reverse(next)| next.due.saturating_duration_since(Instant::now())) {
                None => self.earlier.wait(late).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => {
                    let next = late.pop();
                    drop(late);
                    if let Some(Reverse(next)) = next {
                        self.forward(&next.datagram);
                    }
                    lock(&self.late)
                }
                Some(left) => self.earlier.wait_timeout(late, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn forward(&self, datagram: &[u8]) {
        match self.output.send_to(datagram, SocketAddr::new(self.to.get(), self.port)) {
            Ok(_) => count(&self.counts.forwarded),
            Err(_) => count(&self.counts.failed),
        }
    }
}
