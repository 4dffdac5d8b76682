//! The forwarder as a whole: what it is opened with, and the thread that watches over it.
//!
//! Everything that hangs on the network interface, i.e. programs, sockets and workers, is a [`Session`]. When the interface goes, so
//! does its session; when one of that name comes, there is a new one. The veth pair or the TUN device stays meanwhile.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use icx_proto::engine::{Engine, Mode, Underlay};
use icx_proto::wire::{ethernet, geneve, outer};
use icx_proto::{Instant, MacAddr};

use super::capture::{Capture, CaptureConfig, DeviceLayer};
use super::config::{
    BusyPoll, DeviceConfig, DeviceInfo, ForwarderConfig, ForwarderError, ForwarderInfo, ForwarderNotice,
    ForwarderState, LinkStatus, NextHopState, ZeroCopy,
};
use super::next_hop::{LinkMonitor, LinkState, NextHop, NextHops, link_by_name, link_state};
use super::nic::{Nic, NicConfig};
use super::program::{AttachError, AttachMode, FilterCounters, MAX_BOUND, UnderlayProgram, VirtualProgram};
use super::transform::Transform;
use super::umem::{Pool, Port, RING, frame_bytes_for, frames_for, max_mtu};
use super::veth::{VethConfig, VethPair};
use super::worker::{ForwarderCounters, Inner, Shared, Tally, WorkerParts, work};
use crate::clock;
use crate::pump::{Latency, PumpCounters, PumpError};
use crate::sys::{self, Interest, Umem, Xsk, XskConfig};
use crate::workers::{self, Stop, Workers, lock};

/// How often the state of things is looked at besides what the kernel tells.
const TICK: Duration = Duration::from_millis(250);

/// How often all next hops are asked for again, so that the kernel keeps them.
const REFRESH: Duration = Duration::from_secs(5);

/// How many times in a row it is tried to begin anew on an interface that is there, a [`TICK`] apart.
const ATTEMPTS: u32 = 40;

/// A forwarder. Dropping it ends it and gives everything back.
pub struct Forwarder {
    info: ForwarderInfo,
    tally: Arc<Tally>,
    watch: Arc<Watch>,
    stop: Arc<Stop>,
    /// Until the start.
    ready: Mutex<Option<Supervisor>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("info", &self.info).field("state", &self.state()).finish_non_exhaustive()
    }
}

/// What is seen of a forwarder from outside.
#[derive(Default)]
struct Watch {
    state: Mutex<Option<ForwarderState>>,
    /// Of the session under way.
    programs: Mutex<Option<Programs>>,
    /// What the programs of former sessions have counted.
    filtered: Mutex<FilterCounters>,
    capture: Mutex<Option<Capture>>,
}

impl Watch {
    fn set_link(&self, interface: &str, link: LinkStatus) -> bool {
        let mut state = lock(&self.state);
        let next_hops = state.as_mut().map(|state| std::mem::take(&mut state.next_hops)).unwrap_or_default();
        let next = ForwarderState { link, interface: interface.to_owned(), next_hops };
        let changed =
            state.as_ref().is_none_or(|state| (&state.link, &state.interface) != (&next.link, &next.interface));
        *state = Some(next);
        changed
    }

    fn set_next_hops(&self, next_hops: Vec<NextHopState>) {
        if let Some(state) = lock(&self.state).as_mut() {
            state.next_hops = next_hops;
        }
    }

    /// Takes the programs off their interfaces.
    fn detach(&self) {
        let programs = lock(&self.programs).take();
        if let Some(counters) = programs.as_ref().and_then(|programs| programs.underlay.counters().ok()) {
            let mut sum = lock(&self.filtered);
            *sum = added(*sum, counters);
        }
    }

    fn filtered(&self) -> FilterCounters {
        let current = lock(&self.programs).as_ref().and_then(|programs| programs.underlay.counters().ok());
        added(*lock(&self.filtered), current.unwrap_or_default())
    }
}

fn added(a: FilterCounters, b: FilterCounters) -> FilterCounters {
    FilterCounters {
        redirected: a.redirected + b.redirected,
        passed: a.passed + b.passed,
        dropped: a.dropped + b.dropped,
    }
}

struct Programs {
    underlay: UnderlayProgram,
    /// Of the veth pair.
    _device: Option<VirtualProgram>,
}

/// What every session is made from.
struct Plan {
    /// As it was called at the start.
    interface: String,
    bound: Vec<SocketAddr>,
    attach: AttachMode,
    zero_copy: ZeroCopy,
    busy_poll: Option<BusyPoll>,
    napi_threads: bool,
    mac: MacAddr,
    queues: u32,
    frame_bytes: u32,
    headroom: u32,
    /// Processors to pin workers to, in turn.
    cpus: Vec<usize>,
}

/// Programs and bound sockets, before anything moves.
struct Session {
    programs: Programs,
    parts: Vec<WorkerParts>,
    zero_copy: bool,
}

/// Workers at work.
struct Running {
    workers: Workers,
    stop: Arc<Stop>,
    ended: mpsc::Receiver<Result<(), PumpError>>,
}

impl Forwarder {
    /// Acquires everything, or changes nothing. The interface's traffic for the bound addresses is dropped until the start.
    pub fn open(engine: Arc<Engine>, config: ForwarderConfig) -> Result<Forwarder, ForwarderError> {
        let transform = Arc::clone(&engine) as Arc<dyn Transform>;
        Self::open_with(engine, transform, config)
    }

    /// The same with something else in the place of the engine between veth pair and interface. Timers and keepalives stay the
    /// engine's.
    pub fn open_with(
        engine: Arc<Engine>,
        transform: Arc<dyn Transform>,
        config: ForwarderConfig,
    ) -> Result<Forwarder, ForwarderError> {
        let ForwarderConfig { interface, device, bound, attach, zero_copy, queues, busy_poll, .. } = config;
        if bound.is_empty() || bound.len() > MAX_BOUND {
            return Err(ForwarderError::Bound { given: bound.len(), most: MAX_BOUND });
        }
        let host_mac = check_mode(&engine, &device)?;
        let local = match engine.underlay() {
            Underlay::Raw { local, .. } => local.iter().map(|local| local.mac).collect::<Vec<_>>(),
            Underlay::Udp => return Err(ForwarderError::Underlay { interface }),
        };
        // A thread to wake costs some microseconds each time. With a veth pair inside, or one processor only, it brings nothing.
        let is_tun = matches!(device, DeviceConfig::Tun(_));
        let has_processors = thread::available_parallelism().is_ok_and(|processors| processors.get() > 1);
        let napi_threads = is_tun && has_processors && busy_poll.is_none() && config.latency != Latency::Low;
        let nic = Nic::claim(NicConfig { name: &interface, busy_poll: busy_poll.is_some(), napi_threads })
            .map_err(|error| ForwarderError::of(error.errno(), error))?;
        let link = nic.link().clone();
        if !link.up {
            return Err(ForwarderError::LinkDown(interface));
        }
        let mac = link.mac.unwrap_or(MacAddr([0; 6]));
        if !local.contains(&mac) {
            return Err(ForwarderError::ForeignMac { interface, mac });
        }
        let frame_bytes = frame_bytes_for(link.mtu);
        if link.mtu > max_mtu(frame_bytes) {
            let (mtu, most) = (link.mtu, max_mtu(frame_bytes));
            return Err(ForwarderError::MtuTooLarge { interface, mtu, frame: frame_bytes, most });
        }
        let queues = match queues {
            None => nic.queues(),
            Some(given) if (1..=nic.queues()).contains(&given) => given,
            Some(given) => {
                return Err(ForwarderError::Queues { interface, given, there: nic.queues() });
            }
        };

        let (pair, device, inner) = open_device(device, host_mac, queues)?;
        let cpus = match config.cpu_pin {
            true => sys::current_affinity().map_err(|source| ForwarderError::System {
                action: "see which processors this process may use".to_owned(),
                source,
            })?,
            false => Vec::new(),
        };
        let ipv6 = bound.iter().any(SocketAddr::is_ipv6);
        let headroom = outer::header_len(ipv6) + geneve::HEADER_LEN - ethernet::HEADER_LEN;
        let inner = match inner {
            Some(tun) => Inner::Tun(tun),
            None => Inner::Veth { headroom, mtu: device.mtu },
        };
        let watch = Arc::new(Watch::default());
        if let Some(path) = config.capture {
            let mut capture = CaptureConfig::new(path, interface.clone(), device.name.clone());
            if matches!(inner, Inner::Tun(_)) {
                capture.device_layer = DeviceLayer::Ip;
            }
            *lock(&watch.capture) =
                Some(Capture::open(capture).map_err(|error| ForwarderError::of(error.errno(), error))?);
        }
        let tally = Arc::new(Tally::new(queues as usize));
        let shared = Arc::new(Shared {
            engine,
            transform,
            inner,
            clamp_mss: config.clamp_mss,
            latency: config.latency,
            idle_wake: config.idle_wake,
            busy_poll: busy_poll.is_some(),
            tally: Arc::clone(&tally),
            mtu: AtomicU32::new(link.mtu),
            next_hop_wanted: AtomicBool::new(false),
        });
        let plan = Plan {
            interface,
            bound,
            attach,
            zero_copy,
            busy_poll,
            napi_threads,
            mac,
            queues,
            frame_bytes,
            headroom: headroom as u32,
            cpus,
        };
        let session = Session::bind(&plan, &link.name, link.index, pair.as_ref(), &watch)?;
        let info = ForwarderInfo {
            interface: link.name.clone(),
            interface_index: link.index,
            mac,
            driver: nic.driver().map(str::to_owned),
            queues,
            attached: session.programs.underlay.mode(),
            zero_copy: session.zero_copy,
            device,
            frame_bytes,
            max_path_mtu: max_mtu(frame_bytes),
            settings: nic.settings().to_vec(),
        };
        let stop = Arc::new(Stop::new()?);
        let supervisor = Supervisor {
            plan,
            shared,
            watch: Arc::clone(&watch),
            stop: Arc::clone(&stop),
            monitor: LinkMonitor::open().map_err(netlink_error)?,
            hops: NextHops::open(link.index).map_err(netlink_error)?,
            index: link.index,
            interface: link.name,
            session: Some(session),
            pair,
            nic: Some(nic),
            known: HashMap::new(),
            refresh_at: clock::now(),
            told_oversize: false,
        };
        let (ready, thread) = (Mutex::new(Some(supervisor)), Mutex::new(None));
        Ok(Forwarder { info, tally, watch, stop, ready, thread })
    }

    /// Starts moving packets. Once only.
    ///
    /// `on_notice` is called from the thread that watches over it, and must not wait. `on_end` is called exactly once when everything
    /// has ended and been given back: with `Ok` after [`Forwarder::stop`], with the first failure otherwise. Neither may stop or drop
    /// the forwarder.
    pub fn start(
        &self,
        on_notice: Box<dyn Fn(ForwarderNotice) + Send + Sync>,
        on_end: Box<dyn FnOnce(Result<(), ForwarderError>) + Send>,
    ) -> Result<(), ForwarderError> {
        let Some(mut supervisor) = lock(&self.ready).take() else { return Err(ForwarderError::Started) };
        supervisor.watch.set_link(&supervisor.interface, LinkStatus::Up);
        // Before the first frame, where the kernel knows them already.
        supervisor.ask_next_hops(&*on_notice);
        let running = supervisor.begin().inspect_err(|_| {
            supervisor.watch.set_link(&supervisor.interface, LinkStatus::Stopped);
        })?;
        let body = move || {
            let result = supervisor.watch_over(running, &*on_notice);
            supervisor.watch.set_link(&supervisor.interface, LinkStatus::Stopped);
            drop(supervisor);
            on_end(result);
        };
        let thread = thread::Builder::new()
            .name("icx-afxdp".to_owned())
            .spawn(body)
            .map_err(|source| ForwarderError::Worker(PumpError::Spawn { worker: "icx-afxdp".to_owned(), source }))?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Ends it, waits until it has ended, and gives everything back. Again is as good.
    pub fn stop(&self) {
        self.stop.stop();
        drop(lock(&self.ready).take());
        if let Some(thread) = lock(&self.thread).take() {
            // A panic there has nobody to be told any more.
            let _ = thread.join();
        }
        // Without a start nobody else has done this.
        self.watch.detach();
        drop(lock(&self.watch.capture).take());
    }

    pub fn info(&self) -> &ForwarderInfo {
        &self.info
    }

    pub fn state(&self) -> ForwarderState {
        lock(&self.watch.state).clone().unwrap_or_else(|| ForwarderState {
            link: LinkStatus::Stopped,
            interface: self.info.interface.clone(),
            next_hops: Vec::new(),
        })
    }

    /// What both kinds of datapaths count, and what this one counts besides. As they stand, also after the end.
    pub fn counters(&self) -> (PumpCounters, ForwarderCounters) {
        let (mut sum, mut own) = (PumpCounters::default(), ForwarderCounters::default());
        self.tally.counters.iter().for_each(|worker| worker.add_to(&mut sum));
        self.tally.own.iter().for_each(|worker| worker.add_to(&mut own));
        let filtered = self.watch.filtered();
        own.filter_redirected = filtered.redirected;
        own.filter_passed = filtered.passed;
        own.filter_dropped = filtered.dropped;
        own.capture_missed = lock(&self.watch.capture).as_ref().map_or(0, Capture::missed);
        (sum, own)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether engine and device go together; the host's hardware address where there is one.
fn check_mode(engine: &Engine, device: &DeviceConfig) -> Result<Option<MacAddr>, ForwarderError> {
    match (engine.mode(), device) {
        (Mode::L2 { host_mac, .. }, DeviceConfig::Veth(_)) => Ok(Some(host_mac)),
        (Mode::L3, DeviceConfig::Tun(_)) => Ok(None),
        (Mode::L3, DeviceConfig::Veth(_)) => Err(ForwarderError::Mode {
            device: "veth",
            carries: "Ethernet frames",
            made: "bare IP packets",
            mode: "L2",
        }),
        (Mode::L2 { .. }, DeviceConfig::Tun(_)) => {
            Err(ForwarderError::Mode { device: "TUN", carries: "bare IP packets", made: "Ethernet frames", mode: "L3" })
        }
    }
}

/// Makes or takes the device: a veth pair, or the TUN device that was handed in.
fn open_device(
    device: DeviceConfig,
    host_mac: Option<MacAddr>,
    queues: u32,
) -> Result<(Option<VethPair>, DeviceInfo, Option<crate::Tun>), ForwarderError> {
    match device {
        DeviceConfig::Tun(tun) => {
            if tun.queues() != queues as usize {
                return Err(ForwarderError::TunQueues { queues: tun.queues(), needed: queues });
            }
            sys::use_wide_checksums();
            tun.start_offload().map_err(|source| PumpError::Device {
                device: tun.name().to_owned(),
                call: "ioctl",
                source,
            })?;
            let (name, index, mtu) = (tun.name().to_owned(), tun.index(), tun.mtu());
            Ok((None, DeviceInfo { kind: "tun", name, index, mtu, queues }, Some(tun)))
        }
        DeviceConfig::Veth(device) => {
            let (name, mtu, addresses) = (device.name, device.mtu, device.addresses);
            let mac = host_mac.unwrap_or_default();
            let pair = VethPair::open(VethConfig { name, mtu, mac, addresses, queues })
                .map_err(|error| ForwarderError::of(error.errno(), error))?;
            let (name, index) = (pair.name().to_owned(), pair.index());
            let info = DeviceInfo { kind: "veth", name, index, mtu, queues };
            Ok((Some(pair), info, None))
        }
    }
}

impl Session {
    fn bind(
        plan: &Plan,
        interface: &str,
        index: u32,
        pair: Option<&VethPair>,
        watch: &Watch,
    ) -> Result<Session, ForwarderError> {
        let Plan { queues, frame_bytes, .. } = plan;
        let attach_error = |error: AttachError| ForwarderError::of(error.errno(), error);
        let mut underlay =
            UnderlayProgram::attach(interface, index, *queues, &plan.bound, plan.attach).map_err(attach_error)?;
        let mut device = match pair {
            Some(pair) => Some(
                VirtualProgram::attach(pair.inner_name(), pair.inner_index(), *queues, plan.headroom, plan.attach)
                    .map_err(attach_error)?,
            ),
            None => None,
        };
        // A veth has no zero-copy, and who shares a UMEM with it has none either.
        let zero_copy = match (plan.zero_copy, &pair) {
            (ZeroCopy::Off, _) | (ZeroCopy::Auto, Some(_)) => Some(false),
            (ZeroCopy::Auto, None) => None,
            (ZeroCopy::Require, _) => Some(true),
        };
        let sockets = 1 + u32::from(pair.is_some());
        let mut parts = Vec::with_capacity(*queues as usize);
        let mut is_zero_copy = true;
        for queue in 0..*queues {
            let failed = |action: &str| {
                let action = format!("{action} queue {queue} of {interface}");
                move |source| ForwarderError::System { action, source }
            };
            let frames = frames_for(sockets);
            let (umem, free) = Umem::new(frames, *frame_bytes, RING).map_err(|source| match source.raw_os_error() {
                Some(libc::ENOBUFS) => {
                    let bytes = u64::from(frames.get()) * u64::from(*frame_bytes) * u64::from(*queues);
                    ForwarderError::LockedMemory { bytes, source }
                }
                _ => failed("set memory aside for")(source),
            })?;
            let mut pool = Pool { umem, free };
            let nic = XskConfig { interface, queue, ring: RING, zero_copy };
            let nic = Xsk::bind(&pool.umem, nic).map_err(|source| match source.raw_os_error() {
                Some(libc::EOPNOTSUPP) if plan.zero_copy == ZeroCopy::Require => {
                    ForwarderError::NoZeroCopy { interface: interface.to_owned(), source }
                }
                _ => failed("bind an AF_XDP socket to")(source),
            })?;
            is_zero_copy &= nic.is_zero_copy().unwrap_or(false);
            if let Some(busy_poll) = plan.busy_poll {
                sys::set_busy_poll(nic.fd(), busy_poll.microseconds, busy_poll.budget)
                    .map_err(failed("set up busy polling of"))?;
            }
            let mut nic = Port::new(nic);
            nic.refill(&mut pool, false);
            underlay.set_socket(queue, nic.fd()).map_err(attach_error)?;
            let device = match (&mut device, pair) {
                (Some(program), Some(pair)) => {
                    let interface = pair.inner_name();
                    let socket = XskConfig { interface, queue, ring: RING, zero_copy: Some(false) };
                    let socket = Xsk::bind(&pool.umem, socket).map_err(|source| ForwarderError::System {
                        action: format!("bind an AF_XDP socket to queue {queue} of {interface}"),
                        source,
                    })?;
                    let mut port = Port::new(socket);
                    port.refill(&mut pool, false);
                    program.set_socket(queue, port.fd()).map_err(attach_error)?;
                    Some(port)
                }
                _ => None,
            };
            let tap = lock(&watch.capture).as_ref().map(Capture::tap);
            parts.push(WorkerParts { pool, nic, device, tap });
        }
        Ok(Session { programs: Programs { underlay, _device: device }, parts, zero_copy: is_zero_copy })
    }
}

/// Watches over sessions, one after the other.
struct Supervisor {
    plan: Plan,
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    stop: Arc<Stop>,
    monitor: LinkMonitor,
    hops: NextHops,
    /// The interface, as last seen.
    index: u32,
    interface: String,
    /// Until it runs.
    session: Option<Session>,
    pair: Option<VethPair>,
    /// Gives the interface's settings back.
    nic: Option<Nic>,
    known: HashMap<IpAddr, NextHopState>,
    refresh_at: Instant,
    told_oversize: bool,
}

impl Supervisor {
    /// Sets the workers of the session that waits going.
    fn begin(&mut self) -> Result<Running, ForwarderError> {
        let Some(session) = self.session.take() else { return Err(ForwarderError::Started) };
        let stop = Arc::new(Stop::new()?);
        let (tell, ended) = mpsc::channel();
        let mut works = Vec::with_capacity(session.parts.len());
        for (number, parts) in session.parts.into_iter().enumerate() {
            let (shared, stop) = (Arc::clone(&self.shared), Arc::clone(&stop));
            let cpu = self.plan.cpus.get(number % self.plan.cpus.len().max(1)).copied();
            works.push(Box::new(move || {
                if let Some(cpu) = cpu {
                    // It is one of those that the process may use, unless that has changed since: then it stays unpinned.
                    let _ = sys::pin_to(cpu);
                }
                work(&shared, parts, &stop, number)
            }) as workers::Work);
        }
        // Only who waits for it would hear of a failure to send.
        let on_end = Box::new(move |result| drop(tell.send(result)));
        let workers = Workers::start("icx-xdp", works, Arc::clone(&stop), on_end)?;
        *lock(&self.watch.programs) = Some(session.programs);
        Ok(Running { workers, stop, ended })
    }

    fn watch_over(&mut self, first: Running, notice: &dyn Fn(ForwarderNotice)) -> Result<(), ForwarderError> {
        let mut running = Some(first);
        let mut attempts = 0;
        loop {
            let has_ended = {
                let monitor = Interest::readable(self.monitor.fd());
                match &running {
                    Some(running) => {
                        let workers = Interest::readable(running.stop.fd());
                        self.stop.wait([monitor, workers], Some(TICK))?[1].is_ready()
                    }
                    None => {
                        self.stop.wait([monitor], Some(TICK))?;
                        false
                    }
                }
            };
            if self.stop.is_stopped() {
                self.end(running);
                return Ok(());
            }
            let changes = self.monitor.drain();
            if changes.link || changes.lost || has_ended || running.is_none() {
                match self.look_at_link(running.is_some())? {
                    Seen::Same => {}
                    Seen::Gone => {
                        self.end(running.take());
                        self.nic = None;
                        self.tell_link(LinkStatus::Removed, notice);
                    }
                    Seen::State(link) => {
                        self.shared.mtu.store(link.mtu, Ordering::Relaxed);
                        self.interface.clone_from(&link.name);
                        let is_up = link.up && link.carrier;
                        self.tell_link(if is_up { LinkStatus::Up } else { LinkStatus::Down }, notice);
                    }
                    Seen::Back(link) => match self.begin_anew(&link) {
                        Ok(session) => {
                            attempts = 0;
                            running = Some(session);
                            self.ask_next_hops(notice);
                            self.tell_link(LinkStatus::Up, notice);
                        }
                        Err(_) if attempts < ATTEMPTS => attempts += 1,
                        Err(error) => return Err(error),
                    },
                }
                if has_ended && let Some(ended) = running.take() {
                    // Its interface is there, so this is what ended it.
                    self.watch.detach();
                    drop(ended.workers);
                    ended.ended.recv().unwrap_or(Ok(()))?;
                }
            }
            if (changes.link || changes.lost) && self.is_device_gone()? {
                self.end(running.take());
                return Err(ForwarderError::DeviceRemoved(self.pair.as_ref().map_or("", VethPair::name).to_owned()));
            }
            let wanted = self.shared.next_hop_wanted.swap(false, Ordering::Relaxed);
            if running.is_some()
                && (wanted || changes.next_hops || changes.link || changes.lost || self.refresh_at <= clock::now())
            {
                self.ask_next_hops(notice);
            }
            self.tell_troubles(notice);
        }
    }

    /// Stops the workers, and takes the programs off.
    fn end(&self, running: Option<Running>) {
        if let Some(running) = running {
            running.stop.stop();
            running.workers.join();
        }
        self.watch.detach();
    }

    fn tell_link(&self, status: LinkStatus, notice: &dyn Fn(ForwarderNotice)) {
        if self.watch.set_link(&self.interface, status.clone()) {
            notice(ForwarderNotice::Link { status, interface: self.interface.clone() });
        }
    }

    /// Whether somebody has removed the veth pair.
    fn is_device_gone(&self) -> Result<bool, ForwarderError> {
        let Some(pair) = &self.pair else { return Ok(false) };
        Ok(link_state(pair.index()).map_err(netlink_error)?.is_none())
    }

    fn look_at_link(&self, is_running: bool) -> Result<Seen, ForwarderError> {
        if is_running {
            let seen = link_state(self.index).map_err(netlink_error)?;
            return Ok(seen.map_or(Seen::Gone, Seen::State));
        }
        // One that has come, under the name that was asked for.
        let seen = link_by_name(&self.plan.interface).map_err(netlink_error)?;
        Ok(seen.filter(|link| link.up).map_or(Seen::Same, Seen::Back))
    }

    fn begin_anew(&mut self, link: &LinkState) -> Result<Running, ForwarderError> {
        let expected = self.plan.mac;
        let mac = link.mac.unwrap_or(MacAddr([0; 6]));
        if mac != expected {
            return Err(ForwarderError::MacChanged { interface: link.name.clone(), mac, expected });
        }
        if link.mtu > max_mtu(self.plan.frame_bytes) {
            let (mtu, frame, most) = (link.mtu, self.plan.frame_bytes, max_mtu(self.plan.frame_bytes));
            return Err(ForwarderError::MtuTooLarge { interface: link.name.clone(), mtu, frame, most });
        }
        self.nic = None;
        let (busy_poll, napi_threads) = (self.plan.busy_poll.is_some(), self.plan.napi_threads);
        let nic = Nic::claim(NicConfig { name: &link.name, busy_poll, napi_threads })
            .map_err(|error| ForwarderError::of(error.errno(), error))?;
        if nic.queues() < self.plan.queues {
            let (given, there) = (self.plan.queues, nic.queues());
            return Err(ForwarderError::Queues { interface: link.name.clone(), given, there });
        }
        self.session = Some(Session::bind(&self.plan, &link.name, nic.link().index, self.pair.as_ref(), &self.watch)?);
        self.hops = NextHops::open(nic.link().index).map_err(netlink_error)?;
        (self.index, self.interface) = (nic.link().index, link.name.clone());
        self.shared.mtu.store(link.mtu, Ordering::Relaxed);
        self.nic = Some(nic);
        self.begin()
    }

    /// Finds out where frames to each peer go, and lets the engine know.
    fn ask_next_hops(&mut self, notice: &dyn Fn(ForwarderNotice)) {
        self.refresh_at = clock::now().saturating_add(REFRESH);
        let Underlay::Raw { local, .. } = self.shared.engine.underlay() else { return };
        let mut states = HashMap::new();
        for network in self.shared.engine.networks() {
            let peer = network.peer.ip().to_canonical();
            if states.contains_key(&peer) {
                continue;
            }
            let source = local
                .iter()
                .map(|local| local.addr.ip())
                .find(|addr| addr.is_ipv4() == peer.is_ipv4() && !addr.is_unspecified());
            let mac = match self.hops.resolve(peer, source) {
                NextHop::Resolved(mac) => Ok(mac),
                NextHop::Unresolved(reason) => Err(reason),
            };
            let state = NextHopState { peer, mac };
            if let Ok(mac) = &state.mac {
                self.shared.engine.set_next_hop(peer, *mac);
            }
            if self.known.get(&peer) != Some(&state) {
                notice(ForwarderNotice::NextHop(state.clone()));
            }
            states.insert(peer, state);
        }
        self.known = states;
        let mut next_hops: Vec<_> = self.known.values().cloned().collect();
        next_hops.sort_by_key(|state| state.peer);
        self.watch.set_next_hops(next_hops);
    }

    fn tell_troubles(&mut self, notice: &dyn Fn(ForwarderNotice)) {
        if !self.told_oversize && self.shared.tally.own.iter().any(|own| own.rx_oversize.load(Ordering::Relaxed) > 0) {
            self.told_oversize = true;
            let interface = &self.interface;
            let hint = format!(
                "frames larger than the MTU of {interface} came and were dropped: whoever sends them does not cut them; switch that \
                 off there (`ethtool -K DEVICE tx-udp-segmentation off`), or use --xdp-attach native"
            );
            notice(ForwarderNotice::Oversize { hint });
        }
        if let Some(capture) = lock(&self.watch.capture).as_ref()
            && let Some(message) = capture.error()
        {
            notice(ForwarderNotice::CaptureFailed { message });
        }
    }
}

/// What has become of the interface.
enum Seen {
    Same,
    Gone,
    State(LinkState),
    /// One that a session can begin on.
    Back(LinkState),
}

fn netlink_error(source: crate::NetlinkError) -> ForwarderError {
    ForwarderError::of(source.errno(), source)
}
