//! A node with two peers: one that attacks, and one whose life goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use icx_control::{
    ControlConfig, ControlEndpoint, ControlEvent, ControlEventKind, EventSink, Identity, PeerConfig, PeerId,
};
use icx_proto::Engine;

use crate::node::{self, LIFETIME, Node, SOON, passes, vni};

/// An exchange of the bystander takes milliseconds; this long at most while somebody attacks.
const BYSTANDER_PATIENCE: Duration = Duration::from_secs(4);

pub(crate) struct Site {
    pub(crate) endpoint: Arc<ControlEndpoint>,
    pub(crate) identity: Arc<Identity>,
    /// Whoever has this key may dial the node. The keys go to `engine`.
    pub(crate) insider: Arc<Identity>,
    pub(crate) engine: Arc<Engine>,
    events: Receiver<ControlEvent>,
    started: Instant,
    bystander: Bystander,
}

struct Bystander {
    peer: PeerId,
    exchanges: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    /// The slowest exchange.
    thread: JoinHandle<Duration>,
}

/// Three identities: the first two may dial the third.
pub(crate) fn three_identities() -> [Arc<Identity>; 3] {
    let mut all = [(); 3].map(|()| Arc::new(Identity::generate().unwrap()));
    all.sort_by(|a, b| a.public_key().cmp(b.public_key()));
    all
}

impl Site {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// `watch` sees each event first, on the endpoint's thread.
    pub(crate) fn start_with(watch: impl Fn(&ControlEvent) + Send + Sync + 'static) -> Self {
        let [insider, bystander, identity] = three_identities();
        let (sender, events) = channel();
        let sink: EventSink = Arc::new(move |event| {
            watch(&event);
            drop(sender.send(event));
        });
        let bind = "127.0.0.1:0".parse().unwrap();
        let config = ControlConfig { identity: Arc::clone(&identity), bind, clock: node::clock() };
        let endpoint = Arc::new(ControlEndpoint::open(config, sink).unwrap());
        let add = |key: &Identity| {
            let engine = node::engine();
            let config = PeerConfig {
                key: key.public_key().clone(),
                engine: Arc::clone(&engine),
                vni: vni(),
                key_lifetime: LIFETIME,
            };
            (endpoint.add_peer(config).unwrap(), engine)
        };
        let (_, engine) = add(&insider);
        let (bystander_peer, bystander_engine) = add(&bystander);

        let node = Node::start(&bystander, &identity);
        node.dial(endpoint.local_addr());
        let (stop, exchanges) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let thread = std::thread::spawn({
            let (stop, exchanges) = (Arc::clone(&stop), Arc::clone(&exchanges));
            move || {
                let mut slowest = Duration::ZERO;
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    node.exchange();
                    slowest = slowest.max(start.elapsed());
                    assert!(passes(&node.engine, &bystander_engine), "to the site");
                    assert!(passes(&bystander_engine, &node.engine), "from the site");
                    exchanges.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
                assert_eq!(node.endpoint.status(node.peer).unwrap().sessions, 1, "one session all along");
                slowest
            }
        });
        let bystander = Bystander { peer: bystander_peer, exchanges, stop, thread };
        Site { endpoint, identity, insider, engine, events, started: Instant::now(), bystander }
    }

    /// What has happened so far, but for the bystander's part.
    pub(crate) fn events(&self) -> Vec<ControlEventKind> {
        self.events.try_iter().filter(|event| self.is_of_interest(event)).map(|event| event.kind).collect()
    }

    /// The next event, within `patience`, but for the bystander's part.
    pub(crate) fn next_within(&self, patience: Duration) -> ControlEventKind {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).expect("an event was due");
            if self.is_of_interest(&event) {
                return event.kind;
            }
        }
    }

    fn is_of_interest(&self, event: &ControlEvent) -> bool {
        event.peer != Some(self.bystander.peer)
    }

    /// An honest node with the insider's key comes in and exchanges keys, soon.
    pub(crate) fn lets_the_peer_in(&self) {
        let node = Node::start(&self.insider, &self.identity);
        node.dial(self.endpoint.local_addr());
        node.exchange();
        assert!(passes(&node.engine, &self.engine));
    }

    /// Ends the bystander's life, which must have gone on undisturbed.
    pub(crate) fn bystander_was_undisturbed(self) {
        let Bystander { exchanges, stop, thread, .. } = self.bystander;
        let exchanges = || exchanges.load(Ordering::Relaxed);
        let so_far = exchanges();
        wait_until("the bystander goes on after the attack", || exchanges() >= so_far + 2 || thread.is_finished());
        stop.store(true, Ordering::Relaxed);
        let slowest = thread.join().expect("the bystander's exchanges work");
        println!("bystander: {} exchanges in {:?}, the slowest took {slowest:?}", exchanges(), self.started.elapsed());
        assert!(slowest < BYSTANDER_PATIENCE, "an exchange of the bystander took {slowest:?}");
    }
}

/// How many rejections these events tell of, and of how many reports.
pub(crate) fn rejections(events: &[ControlEventKind]) -> (u64, usize) {
    let counts = events.iter().filter_map(|event| match event {
        ControlEventKind::PeerRejected { count, .. } => Some(*count),
        _ => None,
    });
    (counts.clone().sum(), counts.count())
}

/// Waits until `done`, soon.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
