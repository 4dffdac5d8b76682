//! Sends a node what an attacker who sees the wire, and may write any source address, could send it.
//!
//! Options: `--to ADDRESS:PORT`; `--from ADDRESS`, the peer's, and `--stranger ADDRESS`, of nobody whom the node knows: both must
//! be the sender's own; `--capture FILE` of tcpdump with frames of both directions, and `--victim ADDRESS`, the node's in it;
//! `--kinds NAME,NAME`, in turn (default: all); `--frames NUMBER` or `--seconds NUMBER`; `--rate NUMBER` per second, 0 (the
//! default) for as many as possible; `--threads NUMBER`; `--seed NUMBER`.
//!
//! Prints one line of JSON: what was sent, of which kinds, what each counter of a node with a UDP socket must have gained by it, and how
//! much of that a node behind a filter for Geneve does not get.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use icx_testkit::args::{Args, ArgsError};
use icx_testkit::capture;
use icx_testkit::frames::{Kind, Material, UnknownKind, is_geneve};
use icx_testkit::pace::Pace;
use icx_testkit::random::Random;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

const OPTIONS: [&str; 11] =
    ["to", "from", "stranger", "capture", "victim", "kinds", "frames", "seconds", "rate", "threads", "seed"];

const BUFFER_BYTES: usize = 1 << 20;
/// Short against any burst that a receiver's buffer must bear.
const NAP: Duration = Duration::from_micros(100);

struct Attack {
    to: SocketAddr,
    from: IpAddr,
    stranger: Option<IpAddr>,
    kinds: Vec<Kind>,
    material: Material,
    /// Of one thread.
    frames: u64,
    rate: u64,
    duration: Duration,
}

#[derive(Default)]
struct Sent {
    kinds: BTreeMap<Kind, u64>,
    /// Of those, what a filter for Geneve leaves to the host.
    left: BTreeMap<Kind, u64>,
    refused: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse(std::env::args().skip(1), &OPTIONS)?;
    let threads: u64 = args.optional("threads")?.unwrap_or(1).max(1);
    let attack = prepare(&args, threads)?;
    let seed: u64 = args.optional("seed")?.unwrap_or(1);

    let start = Instant::now();
    let outcomes: Vec<_> = thread::scope(|scope| {
        let senders: Vec<_> = (0..threads)
            .map(|n| {
                let (attack, random) = (&attack, Random::new(seed + n));
                scope.spawn(move || attack.run(start, random))
            })
            .collect();
        senders.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    let mut sent = Sent::default();
    for outcome in outcomes {
        let Sent { kinds, left, refused } = outcome.map_err(|_| "a sender panicked")??;
        for (total, counts) in [(&mut sent.kinds, kinds), (&mut sent.left, left)] {
            for (kind, count) in counts {
                *total.entry(kind).or_default() += count;
            }
        }
        sent.refused += refused;
    }
    let seconds = start.elapsed().as_secs_f64();

    let total: u64 = sent.kinds.values().sum();
    let kinds: BTreeMap<&str, u64> = sent.kinds.iter().map(|(kind, count)| (kind.name(), *count)).collect();
    println!(
        "{}",
        json!({
            "sent": total,
            "refused": sent.refused,
            "seconds": seconds,
            "pps": (total as f64 / seconds).round(),
            "kinds": kinds,
            "counters": by_counter(&sent.kinds),
            "left": by_counter(&sent.left),
        })
    );
    Ok(())
}

fn by_counter(kinds: &BTreeMap<Kind, u64>) -> BTreeMap<&'static str, u64> {
    let mut counters = BTreeMap::new();
    for (kind, count) in kinds {
        *counters.entry(kind.counter()).or_default() += count;
    }
    counters
}

fn prepare(args: &Args, threads: u64) -> Result<Attack, Box<dyn Error>> {
    let to: SocketAddr = args.required("to")?;
    let stranger = args.optional("stranger")?;
    let kinds = match args.text("kinds") {
        Some(names) => names.split(',').map(str::parse).collect::<Result<Vec<Kind>, UnknownKind>>()?,
        None => Kind::ALL.into_iter().filter(|kind| *kind != Kind::Stranger || stranger.is_some()).collect(),
    };
    if kinds.contains(&Kind::Stranger) && stranger.is_none() {
        return Err(ArgsError::Missing("stranger").into());
    }
    let victim: IpAddr = args.required("victim")?;
    let file: PathBuf = args.required("capture")?;
    let (received, sent): (Vec<_>, Vec<_>) = capture::datagrams(&std::fs::read(&file)?)?
        .into_iter()
        .filter(|datagram| [datagram.source.ip(), datagram.destination.ip()].contains(&victim))
        .partition(|datagram| datagram.destination.ip() == victim);
    let payloads = |datagrams: Vec<capture::Datagram>| datagrams.into_iter().map(|d| d.payload).collect();
    let seconds: Option<u64> = args.optional("seconds")?;
    let frames: Option<u64> = args.optional("frames")?;
    if seconds.is_none() && frames.is_none() {
        return Err("give --frames or --seconds, or this would never end".into());
    }
    Ok(Attack {
        to,
        from: args.required("from")?,
        stranger,
        kinds,
        material: Material::new(payloads(received), payloads(sent))?,
        frames: frames.map_or(u64::MAX, |frames| frames / threads),
        rate: args.optional::<u64>("rate")?.unwrap_or(0).div_ceil(threads),
        duration: seconds.map_or(Duration::MAX, Duration::from_secs),
    })
}

impl Attack {
    fn run(&self, start: Instant, mut random: Random) -> std::io::Result<Sent> {
        let peer = connect(self.from, self.to)?;
        let stranger = self.stranger.map(|stranger| connect(stranger, self.to)).transpose()?;
        let mut sent = Sent::default();
        let mut tried = 0;
        let mut pace = Pace::new(self.rate);
        let mut frame = Vec::with_capacity(2048);
        while tried < self.frames {
            let elapsed = start.elapsed();
            if elapsed >= self.duration {
                break;
            }
            let due = pace.due(elapsed).min(self.frames - tried);
            if due == 0 {
                thread::sleep(NAP);
                continue;
            }
            for _ in 0..due {
                let kind = self.kinds[(tried % self.kinds.len() as u64) as usize];
                kind.write(&self.material, &mut random, &mut frame);
                let socket = if kind == Kind::Stranger { stranger.as_ref().unwrap_or(&peer) } else { &peer };
                // Refused, for instance, because a port answered that nobody listens.
                match socket.send(&frame) {
                    Ok(_) => {
                        *sent.kinds.entry(kind).or_default() += 1;
                        *sent.left.entry(kind).or_default() += u64::from(!is_geneve(&frame));
                    }
                    Err(_) => sent.refused += 1,
                }
                tried += 1;
            }
            pace.sent(due);
        }
        Ok(sent)
    }
}

fn connect(from: IpAddr, to: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_send_buffer_size(BUFFER_BYTES)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}
