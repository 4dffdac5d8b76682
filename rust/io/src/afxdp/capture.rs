//! Captures of the frames that a forwarder moves, in pcapng (draft-ietf-opsawg-pcapng).
//!
//! Each worker copies frames into a buffer of its own, and one thread takes them from there to the file every few
//! milliseconds. Where that is too slow, or the file would grow faster than is allowed, frames are missing in the file
//! and are counted; a worker waits for nothing and allocates nothing.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{self, Duration, SystemTime, UNIX_EPOCH};

use icx_proto::Instant;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};

use crate::clock;

/// How often frames are taken to the file.
const ROUND: Duration = Duration::from_millis(10);

/// What one buffer holds: some 25 ms at the default rate, of small frames and of large ones. A worker has two of them.
const BUFFER_FRAMES: usize = 4096;
const BUFFER_BYTES: usize = 512 << 10;

/// The file may be this far ahead of its rate.
const BURST_NANOS: u64 = 50_000_000;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// `if_tsresol`: timestamps count 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// Of an enhanced packet block without frame and comment: block type, length twice, the fixed fields, `epb_flags` and
/// the end of the options.
const BLOCK_BYTES: usize = 12 + 20 + 8 + 4;

/// Permissions of the file: it has what goes through the tunnel in clear.
const OWNER_ONLY: u32 = 0o600;

/// What the comment of a dropped frame begins with.
const DROPPED: &str = "dropped: ";

/// An Ethernet header with addresses of zero for IP packets, from no one to no one. libpcap reads files only whose
/// interfaces all have the same link type (`pcap_ng_next_packet` in sf-pcapng.c), so both ends have Ethernet.
const IPV4_HEADER: [u8; 14] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0x00];
const IPV6_HEADER: [u8; 14] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x86, 0xdd];

/// What the virtual device carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum DeviceLayer {
    /// Ethernet frames, as a veth pair does.
    #[default]
    Ethernet,
    /// IP packets, as a TUN device does. The file has them with an Ethernet header whose addresses are zero.
    Ip,
}

/// What a capture is made from.
#[derive(Clone, Debug)]
pub(super) struct CaptureConfig {
    /// Of the file to make or to empty.
    pub(super) path: PathBuf,
    /// Name of the network interface.
    pub(super) underlay: String,
    /// Name of the virtual device.
    pub(super) device: String,
    pub(super) device_layer: DeviceLayer,
    /// How fast the file grows at most, 50 ms ahead or by a frame of `snap_len`; with 0 it has no frames.
    pub(super) bytes_per_second: u64,
    /// How many bytes of a frame are kept at most, its Ethernet header included.
    pub(super) snap_len: u32,
}

impl CaptureConfig {
    /// With 16 MiB a second and 256 bytes of each frame, which the device carries as Ethernet.
    pub(super) fn new(path: PathBuf, underlay: String, device: String) -> Self {
        let device_layer = DeviceLayer::default();
        CaptureConfig { path, underlay, device, device_layer, bytes_per_second: 16 << 20, snap_len: 256 }
    }
}

/// Where a frame was captured; the number of the interface in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CaptureEnd {
    Underlay = 0,
    Device = 1,
}

/// Which way a frame went, as the forwarder sees it; `epb_flags`, bits 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CaptureDirection {
    /// From that end to the forwarder.
    Inbound = 0b01,
    /// From the forwarder to that end.
    Outbound = 0b10,
}

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum CaptureError {
    #[error("cannot capture to {0:?}, which is neither a regular file nor a character device: give another path")]
    NotAFile(PathBuf),
    #[error(
        "cannot {action} the capture file {path:?}: {source}; give a path in a directory that is writable and has space"
    )]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot start the thread that writes the capture file {path:?}: {source}; try again with fewer processes")]
    Thread { path: PathBuf, source: io::Error },
}

impl CaptureError {
    /// The error number of the system call that failed.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            CaptureError::NotAFile(_) => None,
            CaptureError::File { source, .. } | CaptureError::Thread { source, .. } => source.raw_os_error(),
        }
    }
}

/// A capture file that is being written. Dropping it takes what its taps have got so far to the file, and closes that.
/// An error ends the capture early, and nothing else.
#[derive(Debug)]
pub(super) struct Capture {
    shared: Arc<Shared>,
    /// Brings taps to the thread; closing it ends that.
    taps: Option<Sender<Arc<Tap>>>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Makes the file, or empties the one there is, and lets nobody read it but its owner.
    pub(super) fn open(config: CaptureConfig) -> Result<Capture, CaptureError> {
        let mut file = create(&config.path)?;
        let failed = |source| CaptureError::File { action: "write", path: config.path.clone(), source };
        let encoder = describe(&config).map_err(into_io).map_err(failed)?;
        file.write_all(encoder.get_ref()).map_err(failed)?;
        Capture::start(config, file, encoder)
    }

    /// Starts to write to `file`, which has what is in `encoder`.
    fn start(config: CaptureConfig, file: File, encoder: Encoder) -> Result<Capture, CaptureError> {
        let shared = Arc::new(Shared::new(&config));
        let (taps, new_taps) = channel();
        let writer = Writer {
            path: config.path.clone(),
            file,
            length: encoder.get_ref().len() as u64,
            encoder,
            wall_offset: wall_offset(),
            shared: Arc::clone(&shared),
            drains: Vec::new(),
            order: Vec::new(),
        };
        let thread = thread::Builder::new()
            .name("icx-capture".into())
            .spawn(move || writer.run(&new_taps))
            .map_err(|source| CaptureError::Thread { path: config.path, source })?;
        Ok(Capture { shared, taps: Some(taps), thread: Some(thread) })
    }

    /// A tap for one worker. Made before the worker runs, since this allocates; what it gets once the capture is
    /// dropped goes nowhere.
    pub(super) fn tap(&self) -> CaptureTap {
        let tap = Arc::new(Tap::default());
        if let Some(taps) = &self.taps {
            // The thread lives as long as the sender does.
            let _ = taps.send(Arc::clone(&tap));
        }
        CaptureTap { tap, shared: Arc::clone(&self.shared) }
    }

    /// Frames that are not in the file since buffers were full, the rate was used up or the capture has ended, up to 10
    /// ms ago.
    pub(super) fn missed(&self) -> u64 {
        self.shared.missed.load(Ordering::Relaxed)
    }

    /// Frames in the file.
    #[cfg(test)]
    pub(super) fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }

    /// Why the capture has ended early: once, and `None` from then on.
    pub(super) fn error(&self) -> Option<String> {
        lock(&self.shared.error).take()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.taps = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been printed, and there is nothing else to do about it.
            let _ = thread.join();
        }
    }
}

/// Where one worker puts the frames that are to be captured.
#[derive(Debug)]
pub(super) struct CaptureTap {
    tap: Arc<Tap>,
    shared: Arc<Shared>,
}

impl CaptureTap {
    /// Captures a frame that came or went at `now`, with the name of the counter of why it went no further if so.
    /// `bytes` is what that end carries: an Ethernet frame, or an IP packet with [`DeviceLayer::Ip`].
    ///
    /// Neither waits nor allocates: a frame that cannot be captured at once is counted.
    pub(super) fn frame(
        &self,
        end: CaptureEnd,
        direction: CaptureDirection,
        now: Instant,
        bytes: &[u8],
        dropped: Option<&'static str>,
    ) {
        self.count_unless(self.keep(end, direction, now, (bytes, bytes.len()), dropped));
    }

    /// The same for a frame that was held.
    pub(super) fn held(
        &self,
        end: CaptureEnd,
        direction: CaptureDirection,
        now: Instant,
        held: &HeldFrame,
        dropped: Option<&'static str>,
    ) {
        self.count_unless(self.keep(end, direction, now, (&held.start, held.length), dropped));
    }

    /// Holds frames for [`CaptureTap::held`]. Made before the worker runs, since this allocates.
    pub(super) fn holder(&self) -> HeldFrame {
        HeldFrame { start: Vec::with_capacity(self.shared.snap_len), length: 0 }
    }

    fn count_unless(&self, is_kept: bool) {
        if !is_kept {
            self.tap.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `bytes` are at least as many of those of a frame as are captured.
    fn keep(
        &self,
        end: CaptureEnd,
        direction: CaptureDirection,
        at: Instant,
        (bytes, length): (&[u8], usize),
        dropped: Option<&'static str>,
    ) -> bool {
        if self.shared.has_ended.load(Ordering::Relaxed) {
            return false;
        }
        // Only the writer locks it too, for as long as exchanging two buffers takes.
        let Ok(mut buffer) = self.tap.buffer.try_lock() else { return false };
        let header = self.shared.header(end, bytes);
        let length = header.len() + length;
        let captured = length.min(self.shared.snap_len);
        let start = buffer.bytes.len();
        if buffer.records.len() == BUFFER_FRAMES
            || start + captured > BUFFER_BYTES
            || !self.shared.rate.admit(at, block_len(captured, dropped))
        {
            return false;
        }
        let header = &header[..header.len().min(captured)];
        buffer.bytes.extend_from_slice(header);
        buffer.bytes.extend_from_slice(&bytes[..captured - header.len()]);
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        buffer.records.push(Record { at, end, direction, dropped, length, start, captured });
        true
    }
}

/// The start of a frame whose place is needed before it is known what becomes of it.
#[derive(Debug)]
pub(super) struct HeldFrame {
    /// Never more than was set aside.
    start: Vec<u8>,
    /// Of the whole frame.
    length: usize,
}

impl HeldFrame {
    /// Copies as much of a frame as a capture has, in place of the one before. Does not allocate.
    pub(super) fn hold(&mut self, frame: &[u8]) {
        self.start.clear();
        self.start.extend_from_slice(&frame[..frame.len().min(self.start.capacity())]);
        self.length = frame.len();
    }
}

/// What a worker and the writer share.
#[derive(Debug, Default)]
struct Tap {
    buffer: Mutex<Buffer>,
    /// Since the writer last looked.
    missed: AtomicU64,
}

/// Frames on their way to the file. It never grows.
#[derive(Debug)]
struct Buffer {
    records: Vec<Record>,
    bytes: Vec<u8>,
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer { records: Vec::with_capacity(BUFFER_FRAMES), bytes: Vec::with_capacity(BUFFER_BYTES) }
    }
}

#[derive(Clone, Copy, Debug)]
struct Record {
    at: Instant,
    end: CaptureEnd,
    direction: CaptureDirection,
    dropped: Option<&'static str>,
    /// Of the whole frame.
    length: u32,
    /// Where in the buffer the frame is, and how much of it.
    start: usize,
    captured: usize,
}

/// What all taps and the writer share.
#[derive(Debug)]
struct Shared {
    snap_len: usize,
    device_layer: DeviceLayer,
    rate: Rate,
    missed: AtomicU64,
    written: AtomicU64,
    has_ended: AtomicBool,
    /// Why it has ended early, until that is told.
    error: Mutex<Option<String>>,
}

impl Shared {
    fn new(config: &CaptureConfig) -> Self {
        let snap_len = config.snap_len as usize;
        Shared {
            snap_len,
            device_layer: config.device_layer,
            rate: Rate::new(config.bytes_per_second, block_len(snap_len, None)),
            missed: AtomicU64::new(0),
            written: AtomicU64::new(0),
            has_ended: AtomicBool::new(false),
            error: Mutex::new(None),
        }
    }

    /// What goes before `bytes` so that it is an Ethernet frame.
    fn header(&self, end: CaptureEnd, bytes: &[u8]) -> &'static [u8] {
        match (end, self.device_layer, bytes.first()) {
            (CaptureEnd::Underlay, ..) | (_, DeviceLayer::Ethernet, _) => &[],
            (_, DeviceLayer::Ip, Some(0x60..=0x6f)) => &IPV6_HEADER,
            (_, DeviceLayer::Ip, _) => &IPV4_HEADER,
        }
    }
}

/// A limit on bytes per second, shared by threads without a lock: the generic cell rate algorithm (ITU-T I.371), with
/// bytes for cells.
#[derive(Debug)]
struct Rate {
    bytes_per_second: u64,
    /// How far the file may be ahead, in nanoseconds.
    burst: u64,
    /// When the file would have its present length at exactly that rate, in nanoseconds of the caller's clock.
    due: AtomicU64,
}

impl Rate {
    /// A burst is at least `largest` bytes.
    fn new(bytes_per_second: u64, largest: u64) -> Self {
        let mut rate = Rate { bytes_per_second, burst: 0, due: AtomicU64::new(0) };
        rate.burst = rate.nanos(largest).unwrap_or(0).max(BURST_NANOS);
        rate
    }

    /// How long it takes to write that many bytes; `None`: for ever.
    fn nanos(&self, bytes: u64) -> Option<u64> {
        bytes.saturating_mul(NANOS_PER_SECOND).checked_div(self.bytes_per_second)
    }

    fn admit(&self, now: Instant, bytes: u64) -> bool {
        let Some(cost) = self.nanos(bytes) else { return false };
        let now = now.as_nanos();
        let last = now.saturating_add(self.burst);
        let advance = |due: u64| Some(due.max(now).saturating_add(cost)).filter(|due| *due <= last);
        self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance).is_ok()
    }
}

/// How many bytes a frame takes in the file.
fn block_len(captured: usize, dropped: Option<&str>) -> u64 {
    let comment = dropped.map_or(0, |reason| 4 + (DROPPED.len() + reason.len()).next_multiple_of(4));
    (BLOCK_BYTES + captured.next_multiple_of(4) + comment) as u64
}

type Encoder = PcapNgWriter<Vec<u8>>;

/// Takes frames from the taps to the file.
struct Writer {
    path: PathBuf,
    file: File,
    /// Of what is in the file, in bytes.
    length: u64,
    encoder: Encoder,
    /// What makes time since 1970 of the clock's, in nanoseconds.
    wall_offset: u64,
    shared: Arc<Shared>,
    drains: Vec<Drain>,
    /// The frames of one round by time, each with its number among the drains and in the buffer.
    order: Vec<(Instant, usize, usize)>,
}

struct Drain {
    tap: Arc<Tap>,
    /// What was taken from the tap; empty between rounds.
    taken: Buffer,
    /// Nobody else has the tap: all that it ever got was taken.
    is_last: bool,
}

impl Drain {
    fn new(tap: Arc<Tap>) -> Self {
        Drain { tap, taken: Buffer::default(), is_last: false }
    }

    /// Exchanges the buffers; returns how many frames the worker could not put into its own.
    fn take(&mut self) -> u64 {
        self.is_last = Arc::get_mut(&mut self.tap).is_some();
        mem::swap(&mut self.taken, &mut lock(&self.tap.buffer));
        self.tap.missed.swap(0, Ordering::Relaxed)
    }
}

impl Writer {
    fn run(mut self, new_taps: &Receiver<Arc<Tap>>) {
        let mut last = time::Instant::now();
        loop {
            match new_taps.recv_timeout(ROUND.saturating_sub(last.elapsed())) {
                Ok(tap) => self.drains.push(Drain::new(tap)),
                Err(RecvTimeoutError::Timeout) => {
                    last = time::Instant::now();
                    self.round();
                }
                Err(RecvTimeoutError::Disconnected) => return self.round(),
            }
        }
    }

    /// Writes what the taps have, in the order of time, and forgets taps whose worker is gone.
    fn round(&mut self) {
        let mut missed = 0;
        self.order.clear();
        for (number, drain) in self.drains.iter_mut().enumerate() {
            missed += drain.take();
            let records = drain.taken.records.iter().enumerate();
            self.order.extend(records.map(|(index, record)| (record.at, number, index)));
        }
        self.order.sort_unstable();
        let frames = self.order.len() as u64;
        match self.write() {
            Ok(()) => drop(self.shared.written.fetch_add(frames, Ordering::Relaxed)),
            Err(error) => {
                missed += frames;
                self.end(&error);
            }
        }
        self.shared.missed.fetch_add(missed, Ordering::Relaxed);
        self.drains.retain_mut(|drain| {
            drain.taken.records.clear();
            drain.taken.bytes.clear();
            !drain.is_last
        });
    }

    /// Writes the frames in `order`.
    fn write(&mut self) -> io::Result<()> {
        if self.order.is_empty() {
            return Ok(());
        }
        if self.shared.has_ended.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Other.into());
        }
        self.encoder.get_mut().clear();
        for &(at, drain, index) in &self.order {
            let Buffer { records, bytes } = &self.drains[drain].taken;
            let record = &records[index];
            let mut options = vec![EnhancedPacketOption::Flags(record.direction as u32)];
            options.extend(
                record.dropped.map(|reason| EnhancedPacketOption::Comment(format!("{DROPPED}{reason}").into())),
            );
            let block = EnhancedPacketBlock {
                interface_id: record.end as u32,
                timestamp: Duration::from_nanos(at.as_nanos().wrapping_add(self.wall_offset)),
                original_len: record.length,
                data: Cow::Borrowed(&bytes[record.start..][..record.captured]),
                options,
            };
            self.encoder.write_pcapng_block(block).map_err(into_io)?;
        }
        let blocks = self.encoder.get_ref();
        self.file.write_all(blocks)?;
        self.length += blocks.len() as u64;
        Ok(())
    }

    /// Ends the capture, unless it has ended.
    fn end(&mut self, error: &io::Error) {
        if self.shared.has_ended.swap(true, Ordering::Relaxed) {
            return;
        }
        // So that it ends with a whole block. What has failed to be written may fail to be cut.
        let _ = self.file.set_len(self.length);
        let written = self.shared.written.load(Ordering::Relaxed);
        *lock(&self.shared.error) = Some(format!(
            "cannot write the capture file {:?}: {error}; it ends after {written} frames, and forwarding goes on",
            self.path
        ));
    }
}

/// Makes or empties a capture file.
fn create(path: &Path) -> Result<File, CaptureError> {
    let failed = |action| move |source| CaptureError::File { action, path: path.to_owned(), source };
    // Before it is opened: that would wait where a pipe has no reader.
    if let Ok(there) = fs::metadata(path)
        && !there.is_file()
        && !there.file_type().is_char_device()
    {
        return Err(CaptureError::NotAFile(path.to_owned()));
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(OWNER_ONLY);
    // A terminal, too, takes what it can take at once.
    let file = options.custom_flags(libc::O_NONBLOCK).open(path).map_err(failed("open"))?;
    if file.metadata().map_err(failed("look at"))?.is_file() {
        file.set_permissions(Permissions::from_mode(OWNER_ONLY)).map_err(failed("set the permissions of"))?;
    }
    Ok(file)
}

/// What a capture file begins with: the section header and the two interfaces, the underlay first.
fn describe(config: &CaptureConfig) -> Result<Encoder, PcapError> {
    let application = SectionHeaderOption::UserApplication(concat!("icx ", env!("CARGO_PKG_VERSION")).into());
    let endianness = Endianness::native();
    let section = SectionHeaderBlock { endianness, options: vec![application], ..SectionHeaderBlock::default() };
    let mut encoder = PcapNgWriter::with_section_header(Vec::new(), section)?;
    let device = match config.device_layer {
        DeviceLayer::Ethernet => "the inner side, in clear",
        DeviceLayer::Ip => "the inner side, in clear; IP packets, with Ethernet headers made up for them",
    };
    for (name, description) in [(&config.underlay, "the outer side, sealed"), (&config.device, device)] {
        encoder.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: config.snap_len,
            options: vec![
                InterfaceDescriptionOption::IfName(name.into()),
                InterfaceDescriptionOption::IfDescription(description.into()),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        })?;
    }
    Ok(encoder)
}

/// What time since 1970 is ahead of the clock, in nanoseconds, modulo 2^64. A later step of the wall clock does not
/// show in the file.
fn wall_offset() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX).wrapping_sub(clock::now().as_nanos())
}

fn into_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics with one held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::process::{Command, Stdio, id};

    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    const UDP: &[u8; 42] = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\0\
        \x45\0\0\x1c\0\0\x40\0\x40\x11\x66\xcd\x0a\0\0\x01\x0a\0\0\x02\x17\xc1\x17\xc1\0\x08\0\0";

    /// A path that is removed with this value.
    struct TempPath(PathBuf);

    impl TempPath {
        fn new(name: &str) -> Self {
            TempPath(std::env::temp_dir().join(format!("icx-capture-{}-{name}.pcapng", id())))
        }

        fn config(&self) -> CaptureConfig {
            CaptureConfig::new(self.0.clone(), "eth7".into(), "icx7".into())
        }
    }

    impl Drop for TempPath {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    fn inbound(tap: &CaptureTap, now: u64, bytes: &[u8]) {
        tap.frame(CaptureEnd::Underlay, CaptureDirection::Inbound, at(now), bytes, None);
    }

    fn read(path: &TempPath) -> (Vec<InterfaceDescriptionBlock<'static>>, Vec<EnhancedPacketBlock<'static>>) {
        let mut reader = PcapNgReader::new(File::open(&path.0).unwrap()).unwrap();
        let (mut interfaces, mut frames) = (Vec::new(), Vec::new());
        while let Some(block) = reader.next_block() {
            match block.unwrap().into_owned() {
                Block::InterfaceDescription(block) => interfaces.push(block),
                Block::EnhancedPacket(block) => frames.push(block),
                other => panic!("{other:?}"),
            }
        }
        (interfaces, frames)
    }

    /// Waits until the capture has accounted for so many frames.
    fn settle(capture: &Capture, frames: u64) {
        let start = time::Instant::now();
        while capture.written() + capture.missed() < frames {
            assert!(start.elapsed() < Duration::from_secs(20), "{capture:?}");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(capture.written() + capture.missed(), frames);
    }

    /// A tap that nobody drains.
    fn lone_tap(config: &CaptureConfig) -> CaptureTap {
        CaptureTap { tap: Arc::default(), shared: Arc::new(Shared::new(config)) }
    }

    #[test]
    fn frames_are_in_the_file_with_interface_time_direction_and_reason() {
        let path = TempPath::new("whole");
        let capture = Capture::open(CaptureConfig { snap_len: 64, ..path.config() }).unwrap();
        let header = fs::metadata(&path.0).unwrap().len();
        let (one, two) = (capture.tap(), capture.tap());
        let before = SystemTime::now();
        let now = clock::now();
        let later = |nanos| now.saturating_add(Duration::from_nanos(nanos));
        one.frame(CaptureEnd::Underlay, CaptureDirection::Inbound, now, UDP, None);
        one.frame(CaptureEnd::Device, CaptureDirection::Outbound, later(1), &[1; 63], None);
        one.frame(CaptureEnd::Device, CaptureDirection::Inbound, later(2), &[2; 1514], Some("tx_no_route"));
        two.frame(CaptureEnd::Underlay, CaptureDirection::Outbound, later(1_000_000_003), &[], Some("rx_replayed"));
        settle(&capture, 4);
        assert_eq!((capture.written(), capture.missed(), capture.error()), (4, 0, None));
        drop(capture);
        let blocks = [(42, None), (63, None), (64, Some("tx_no_route")), (0, Some("rx_replayed"))];
        let blocks: u64 = blocks.into_iter().map(|(captured, dropped)| block_len(captured, dropped)).sum();
        assert_eq!(fs::metadata(&path.0).unwrap().len(), header + blocks, "what the rate reckons with");

        let (interfaces, frames) = read(&path);
        for (interface, expected) in interfaces.iter().zip(["eth7", "icx7"]) {
            assert_eq!((interface.linktype, interface.snaplen), (DataLink::ETHERNET, 64));
            assert!(interface.options.contains(&InterfaceDescriptionOption::IfName(expected.into())));
            assert!(interface.options.contains(&InterfaceDescriptionOption::IfTsResol(9)));
        }
        assert_eq!(interfaces.len(), 2);
        let first = UNIX_EPOCH + frames[0].timestamp;
        let slack = Duration::from_millis(500);
        assert!(before - slack < first && first < SystemTime::now() + slack, "{first:?}");
        let flags = EnhancedPacketOption::Flags;
        let dropped = |reason: &str| EnhancedPacketOption::Comment(format!("dropped: {reason}").into());
        let expected = [
            (0, 0, 42, &UDP[..], vec![flags(1)]),
            (1, 1, 63, &[1; 63][..], vec![flags(2)]),
            (1, 2, 1514, &[2; 64][..], vec![flags(1), dropped("tx_no_route")]),
            (0, 1_000_000_003, 0, &[][..], vec![flags(2), dropped("rx_replayed")]),
        ];
        assert_eq!(frames.len(), expected.len());
        for (frame, (interface, after, length, data, options)) in frames.iter().zip(expected) {
            let passed = frame.timestamp - frames[0].timestamp;
            assert_eq!(
                (frame.interface_id, passed, frame.original_len),
                (interface, Duration::from_nanos(after), length)
            );
            assert_eq!((&*frame.data, &frame.options), (data, &options));
        }
    }

    #[test]
    fn frames_of_several_taps_are_written_by_time() {
        let path = TempPath::new("order");
        let config = path.config();
        let shared = Arc::new(Shared::new(&config));
        let taps: Vec<_> = (0..3).map(|_| CaptureTap { tap: Arc::default(), shared: Arc::clone(&shared) }).collect();
        for (tap, times) in taps.iter().zip([[3, 5, 9], [1, 5, 8], [2, 4, 5]]) {
            times.into_iter().for_each(|time| inbound(tap, time, UDP));
        }
        let mut file = create(&config.path).unwrap();
        let encoder = describe(&config).unwrap();
        file.write_all(encoder.get_ref()).unwrap();
        let mut writer = Writer {
            path: config.path,
            file,
            length: encoder.get_ref().len() as u64,
            encoder,
            wall_offset: 0,
            shared,
            drains: taps.iter().map(|tap| Drain::new(Arc::clone(&tap.tap))).collect(),
            order: Vec::new(),
        };
        writer.round();
        assert_eq!(writer.length, fs::metadata(&path.0).unwrap().len());
        let times: Vec<_> = read(&path).1.iter().map(|frame| frame.timestamp.as_nanos()).collect();
        assert_eq!(times, [1, 2, 3, 4, 5, 5, 5, 8, 9]);

        // What a worker leaves behind is written before its tap is forgotten.
        inbound(&taps[1], 10, UDP);
        drop(taps);
        writer.round();
        assert!(writer.drains.is_empty());
        assert_eq!(read(&path).1.len(), 10);
    }

    #[test]
    fn ip_packets_get_an_ethernet_header() {
        let path = TempPath::new("ip");
        let config = CaptureConfig { device_layer: DeviceLayer::Ip, snap_len: 20, ..path.config() };
        let capture = Capture::open(config).unwrap();
        let tap = capture.tap();
        for (time, packet) in [&[0x45; 28][..], &[0x60; 40], &[]].into_iter().enumerate() {
            tap.frame(CaptureEnd::Device, CaptureDirection::Inbound, at(time as u64), packet, None);
        }
        drop(capture);
        let frames: Vec<_> =
            read(&path).1.into_iter().map(|frame| (frame.data.into_owned(), frame.original_len)).collect();
        let v4 = [&[0; 12][..], &[8, 0], &[0x45; 6]].concat();
        let v6 = [&[0; 12][..], &[0x86, 0xdd], &[0x60; 6]].concat();
        assert_eq!(frames, [(v4, 42), (v6, 54), (IPV4_HEADER.to_vec(), 14)]);
    }

    #[test]
    fn tcpdump_reads_the_file() {
        let path = TempPath::new("tcpdump");
        for device_layer in [DeviceLayer::Ethernet, DeviceLayer::Ip] {
            let capture = Capture::open(CaptureConfig { device_layer, ..path.config() }).unwrap();
            let tap = capture.tap();
            let inner = if device_layer == DeviceLayer::Ip { &UDP[14..] } else { &UDP[..] };
            inbound(&tap, 1, UDP);
            tap.frame(CaptureEnd::Device, CaptureDirection::Outbound, at(2), inner, Some("rx_bad_inner"));
            drop(capture);
            let mut tcpdump = Command::new("tcpdump");
            tcpdump.args(["-nn", "-tt", "-r", "-"]).stdin(File::open(&path.0).unwrap()).stderr(Stdio::piped());
            match tcpdump.output() {
                Err(error) if error.kind() == ErrorKind::NotFound => return eprintln!("skipped: there is no tcpdump"),
                output => {
                    let output = output.unwrap();
                    let text = String::from_utf8(output.stdout).unwrap();
                    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                    assert_eq!(text.matches("10.0.0.1.6081 > 10.0.0.2.6081: ").count(), 2, "{device_layer:?}: {text}");
                }
            }
        }
    }

    #[test]
    fn the_file_grows_no_faster_than_its_rate() {
        let path = TempPath::new("rate");
        let capture = Capture::open(CaptureConfig { bytes_per_second: 100_000, ..path.config() }).unwrap();
        let header = fs::metadata(&path.0).unwrap().len();
        let tap = capture.tap();
        // 4 seconds with ten times as much, of which no more comes through than a buffer holds.
        for frame in 0..12_000 {
            let (dropped, now) = ((frame % 2 == 0).then_some("tx_no_route"), at(frame * 1_000_000 / 3));
            tap.frame(CaptureEnd::Device, CaptureDirection::Inbound, now, &[7; 300], dropped);
        }
        settle(&capture, 12_000);
        drop(capture);
        let grown = fs::metadata(&path.0).unwrap().len() - header;
        assert!((400_000..=405_000).contains(&grown), "{grown} bytes in 4 s, with 50 ms ahead");
    }

    #[test]
    fn a_rate_lets_frames_of_any_size_through_and_none_at_zero() {
        let slow = Rate::new(10, 300);
        assert!(slow.admit(at(0), 300) && !slow.admit(at(29_900_000_000), 300) && slow.admit(at(30_000_000_000), 300));
        // Another thread's clock was read a little earlier.
        assert!(!slow.admit(at(29_999_999_999), 1) && !slow.admit(at(30_000_000_000), 1));
        assert!(!Rate::new(0, 300).admit(at(0), 1));
        assert!(Rate::new(u64::MAX, 300).admit(Instant::FAR_FUTURE, u64::MAX), "nothing overflows");
    }

    #[test]
    fn what_a_full_buffer_does_not_take_is_counted_and_it_does_not_grow() {
        let config = CaptureConfig { bytes_per_second: u64::MAX, snap_len: 1 << 20, ..TempPath::new("full").config() };
        for (size, fit) in [(10, BUFFER_FRAMES), (1000, BUFFER_BYTES / 1000), (BUFFER_BYTES + 1, 0)] {
            let tap = lone_tap(&config);
            let capacities = |buffer: &Buffer| (buffer.records.capacity(), buffer.bytes.capacity());
            let before = capacities(&lock(&tap.tap.buffer));
            let frame = vec![3; size];
            (0..BUFFER_FRAMES as u64 + 100).for_each(|now| inbound(&tap, now, &frame));
            let buffer = lock(&tap.tap.buffer);
            assert_eq!((buffer.records.len(), buffer.bytes.len()), (fit, fit * size));
            assert_eq!(tap.tap.missed.load(Ordering::Relaxed), (BUFFER_FRAMES + 100 - fit) as u64);
            assert_eq!(capacities(&buffer), before);
        }
    }

    #[test]
    fn a_held_frame_is_captured_as_it_was_and_takes_no_memory_of_its_own() {
        let path = TempPath::new("held");
        let capture = Capture::open(CaptureConfig { snap_len: 64, ..path.config() }).unwrap();
        let tap = capture.tap();
        let mut held = tap.holder();
        let memory = (held.start.as_ptr(), held.start.capacity());
        let mut frame: Vec<u8> = (0..200).collect();
        for length in [200, 10, 64] {
            held.hold(&frame[..length]);
            frame.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
            tap.held(CaptureEnd::Device, CaptureDirection::Inbound, at(1), &held, Some("tx_no_key"));
        }
        assert_eq!((held.start.as_ptr(), held.start.capacity()), memory);
        settle(&capture, 3);
        drop(capture);
        let frames = read(&path).1;
        let found: Vec<_> = frames.iter().map(|frame| (frame.data.len(), frame.original_len, frame.data[0])).collect();
        assert_eq!(found, [(64, 200, 0), (10, 10, 1), (64, 64, 2)]);
    }

    #[test]
    fn a_worker_does_not_wait_for_the_writer() {
        let tap = lone_tap(&TempPath::new("busy").config());
        let held = lock(&tap.tap.buffer);
        thread::scope(|scope| scope.spawn(|| inbound(&tap, 1, UDP)).join()).unwrap();
        assert!(held.records.is_empty());
        assert_eq!(tap.tap.missed.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn each_frame_of_many_workers_is_written_or_counted_as_missed() {
        const FRAMES: u64 = 30_000;
        let path = TempPath::new("many");
        let capture = Capture::open(path.config()).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                let tap = capture.tap();
                scope.spawn(move || (0..FRAMES).for_each(|frame| inbound(&tap, frame * 1000, UDP)));
            }
        });
        settle(&capture, 4 * FRAMES);
        let (written, missed) = (capture.written(), capture.missed());
        drop(capture);
        assert!(written > 0 && missed > 0, "{written} written, {missed} missed: they are beyond the rate");
        assert_eq!(read(&path).1.len() as u64, written);
    }

    #[test]
    fn a_file_that_cannot_be_made_is_named_with_the_reason() {
        let path = TempPath(std::env::temp_dir().join("icx-no-such-directory/a.pcapng"));
        let error = Capture::open(path.config()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("icx-no-such-directory/a.pcapng") && text.contains("No such file or directory"),
            "{text}"
        );
        assert_eq!(error.errno(), Some(libc::ENOENT));

        let error = Capture::open(CaptureConfig::new("/tmp".into(), "eth7".into(), "icx7".into())).unwrap_err();
        assert!(matches!(&error, CaptureError::NotAFile(path) if path == Path::new("/tmp")), "{error}");

        let full = CaptureConfig::new("/dev/full".into(), "eth7".into(), "icx7".into());
        let error = Capture::open(full).unwrap_err();
        assert!(error.to_string().contains("\"/dev/full\": No space left on device"), "{error}");
        assert_eq!(error.errno(), Some(libc::ENOSPC));
    }

    #[test]
    fn a_file_that_is_there_is_emptied_and_its_owners_alone() {
        let path = TempPath::new("mode");
        fs::write(&path.0, [b'x'; 100_000]).unwrap();
        fs::set_permissions(&path.0, Permissions::from_mode(0o644)).unwrap();
        drop(Capture::open(path.config()).unwrap());
        assert_eq!(fs::metadata(&path.0).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).0.len(), 2);
    }

    #[test]
    fn an_error_ends_the_capture_and_is_told_once() {
        let config = CaptureConfig::new("/dev/full".into(), "eth7".into(), "icx7".into());
        let (file, encoder) = (create(&config.path).unwrap(), describe(&config).unwrap());
        let capture = Capture::start(config, file, encoder).unwrap();
        let tap = capture.tap();
        inbound(&tap, 1, UDP);
        settle(&capture, 1);
        // More than buffers hold: nothing takes them, and nothing waits.
        (0..20_000).for_each(|now| inbound(&tap, now, UDP));
        settle(&capture, 20_001);
        assert_eq!((capture.written(), capture.missed()), (0, 20_001));
        let error = capture.error().unwrap();
        assert!(error.contains("/dev/full") && error.contains("No space left on device"), "{error}");
        assert_eq!(capture.error(), None);
    }
}
