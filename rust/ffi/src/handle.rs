//! The handle table: generational `u32` ids for everything that a caller can hold.
//!
//! An id is 15 bits of generation over 16 bits of slot, never zero and never negative as an `i32`. A slot whose
//! generations are used up is retired, so an id that was closed never means anything again. Entries are `Arc`s: closing removes
//! the entry at once, while a call in flight keeps its object until it returns.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::code::Code;
use crate::error::{Failure, Outcome};
use crate::events;

const SLOT_BITS: u32 = 16;
const MAX_SLOTS: usize = 1 << SLOT_BITS;
const MAX_GENERATION: u16 = 0x7fff;

/// Something that a handle can stand for.
pub(crate) trait Resource: Send + Sync + Sized + 'static {
    /// For messages: "engine", "TUN device".
    const KIND: &'static str;

    fn into_object(self: Arc<Self>) -> Object;

    fn from_object(object: &Object) -> Option<&Arc<Self>>;

    /// Stops what belongs to it and waits for that, within a bound. Runs once, after the handle is gone from the table.
    fn shut_down(&self) {}
}

macro_rules! objects {
    ($($(#[$when:meta])* $variant:ident($kind:ty) $name:literal $(, $shut_down:path)?;)+) => {
        pub(crate) enum Object {
            $($(#[$when])* $variant(Arc<$kind>),)+
        }

        impl Object {
            fn kind(&self) -> &'static str {
                match self { $($(#[$when])* Object::$variant(_) => $name,)+ }
            }

            fn shut_down(&self) {
                match self { $($(#[$when])* Object::$variant(object) => object.shut_down(),)+ }
            }
        }

        $($(#[$when])* impl Resource for $kind {
            const KIND: &'static str = $name;

            fn into_object(self: Arc<Self>) -> Object {
                Object::$variant(self)
            }

            fn from_object(object: &Object) -> Option<&Arc<Self>> {
                match object {
                    Object::$variant(object) => Some(object),
                    _ => None,
                }
            }

            $(fn shut_down(&self) {
                $shut_down(self);
            })?
        })+
    };
}

objects! {
    Identity(crate::identity::IdentityHandle) "identity";
    Engine(crate::engine::EngineHandle) "engine";
    Tun(crate::io::TunHandle) "TUN device", crate::io::TunHandle::close;
    Stack(crate::netstack::StackHandle) "network stack", crate::netstack::StackHandle::close;
    Stream(crate::netstack::StreamHandle) "stream", crate::netstack::StreamHandle::silence;
    Listener(crate::netstack::ListenerHandle) "listener", crate::netstack::ListenerHandle::silence;
    Datagram(crate::netstack::DatagramHandle) "datagram socket", crate::netstack::DatagramHandle::silence;
    Echo(crate::netstack::EchoHandle) "echo socket", crate::netstack::EchoHandle::silence;
    Resolution(crate::netstack::ResolutionHandle) "name query", crate::netstack::ResolutionHandle::silence;
    Proxy(crate::proxy::ProxyHandle) "proxy", crate::proxy::ProxyHandle::stop;
    Udp(crate::io::UdpHandle) "UDP underlay", crate::io::UdpHandle::close;
    Pump(crate::io::PumpHandle) "pump", crate::io::PumpHandle::stop;
    #[cfg(feature = "afxdp")]
    Forwarder(crate::afxdp::ForwarderHandle) "forwarder", crate::afxdp::ForwarderHandle::stop;
    Control(crate::control::ControlHandle) "control endpoint", crate::control::ControlHandle::stop;
    Peer(crate::control::PeerHandle) "control peer", crate::control::PeerHandle::withdraw;
}

/// A poisoned lock is as good: what it guards is never left half-changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Entry {
    Free,
    /// Given out inside the library, not yet to the caller.
    Reserved,
    Open {
        object: Object,
        poisoned: bool,
    },
}

struct Slot {
    /// 1 to [`MAX_GENERATION`]; beyond that the slot is retired.
    generation: u16,
    entry: Entry,
}

struct Table {
    slots: Vec<Slot>,
    free: Vec<u16>,
    open: u32,
}

static TABLE: Mutex<Table> = Mutex::new(Table { slots: Vec::new(), free: Vec::new(), open: 0 });

fn table() -> MutexGuard<'static, Table> {
    lock(&TABLE)
}

impl Table {
    fn slot(&mut self, id: u32) -> Option<&mut Slot> {
        let slot = self.slots.get_mut((id & (MAX_SLOTS as u32 - 1)) as usize)?;
        (u32::from(slot.generation) == id >> SLOT_BITS).then_some(slot)
    }

    fn reserve(&mut self) -> Option<u32> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < MAX_SLOTS => {
                self.slots.push(Slot { generation: 1, entry: Entry::Free });
                // In range: checked just above.
                (self.slots.len() - 1) as u16
            }
            None => return None,
        };
        let slot = &mut self.slots[usize::from(index)];
        slot.entry = Entry::Reserved;
        Some(u32::from(slot.generation) << SLOT_BITS | u32::from(index))
    }

    /// Ends the life of the id, and gives what was behind it.
    fn release(&mut self, id: u32) -> Option<Entry> {
        let slot = self.slot(id)?;
        if matches!(slot.entry, Entry::Free) {
            return None;
        }
        let entry = std::mem::replace(&mut slot.entry, Entry::Free);
        // A retired slot keeps a generation that no id carries.
        slot.generation += 1;
        if slot.generation <= MAX_GENERATION {
            self.free.push((id & (MAX_SLOTS as u32 - 1)) as u16);
        }
        Some(entry)
    }
}

/// An id that nobody outside knows yet; it goes back unless [`Reservation::open`] fills it.
pub(crate) struct Reservation {
    id: u32,
}

impl Reservation {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Puts the object behind the id and makes it known.
    pub(crate) fn open<T: Resource>(self, object: Arc<T>) -> u32 {
        let id = self.id;
        let mut table = table();
        if let Some(slot) = table.slot(id) {
            slot.entry = Entry::Open { object: object.into_object(), poisoned: false };
            table.open += 1;
        }
        drop(table);
        std::mem::forget(self);
        id
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        table().release(self.id);
        events::forget(self.id);
    }
}

pub(crate) fn reserve() -> Outcome<Reservation> {
    match table().reserve() {
        Some(id) => Ok(Reservation { id }),
        None => Err(Failure::new(
            Code::Busy,
            format!("All {MAX_SLOTS} handles of the icx library are in use: close some that are no longer needed"),
        )),
    }
}

pub(crate) fn open<T: Resource>(object: T) -> Outcome<u32> {
    Ok(reserve()?.open(Arc::new(object)))
}

pub(crate) fn get<T: Resource>(id: u32) -> Outcome<Arc<T>> {
    pick(id, T::KIND, |object| T::from_object(object).cloned())
}

/// As [`get`], for a call that takes several kinds: `kinds` says which, and `pick` takes what it knows.
pub(crate) fn pick<T>(id: u32, kinds: &str, pick: impl FnOnce(&Object) -> Option<T>) -> Outcome<T> {
    let mut table = table();
    match table.slot(id).map(|slot| &slot.entry) {
        Some(Entry::Open { poisoned: true, object }) => Err(poisoned(id, object.kind())),
        Some(Entry::Open { object, .. }) => pick(object).ok_or_else(|| {
            Failure::new(
                Code::BadHandle,
                format!(
                    "Handle {id} is of another kind: this call takes one of kind '{kinds}', not '{}'",
                    object.kind()
                ),
            )
        }),
        _ => Err(stale(id)),
    }
}

/// Whether the handle is open and sound, whatever its kind.
pub(crate) fn check(id: u32) -> Outcome<()> {
    match table().slot(id).map(|slot| &slot.entry) {
        Some(Entry::Open { poisoned: true, object }) => Err(poisoned(id, object.kind())),
        Some(Entry::Open { .. }) => Ok(()),
        _ => Err(stale(id)),
    }
}

/// Marks a handle in which a panic happened.
pub(crate) fn poison(id: u32) {
    if let Some(Slot { entry: Entry::Open { poisoned, .. }, .. }) = table().slot(id) {
        *poisoned = true;
    }
}

/// Closes a handle of any kind, a poisoned one too. The second time it is stale.
pub(crate) fn close(id: u32) -> Outcome<()> {
    let object = take(id)?;
    object.shut_down();
    events::forget(id);
    Ok(())
}

/// Takes a handle out of the table without shutting its object down: the object has a new owner.
pub(crate) fn disown(id: u32) {
    // Already gone is as good.
    let _ = take(id);
    events::forget(id);
}

/// How many handles are open.
pub(crate) fn count() -> u32 {
    table().open
}

fn take(id: u32) -> Outcome<Object> {
    let mut table = table();
    if !matches!(table.slot(id), Some(Slot { entry: Entry::Open { .. }, .. })) {
        return Err(stale(id));
    }
    match table.release(id) {
        Some(Entry::Open { object, .. }) => {
            table.open -= 1;
            Ok(object)
        }
        _ => Err(stale(id)),
    }
}

fn stale(id: u32) -> Failure {
    Failure::new(Code::BadHandle, format!("Handle {id} is not open: it was closed, or never given out"))
}

fn poisoned(id: u32, kind: &str) -> Failure {
    Failure::new(
        Code::Panic,
        format!("Handle {id} ({kind}) is out of service after an internal error: close it and report the error"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Table {
        Table { slots: Vec::new(), free: Vec::new(), open: 0 }
    }

    #[test]
    fn ids_are_positive_and_never_come_again() {
        let mut table = empty();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..70_000 {
            let id = table.reserve().unwrap();
            assert!(id != 0 && i32::try_from(id).is_ok(), "{id:#x}");
            assert!(seen.insert(id), "{id:#x} twice");
            assert!(table.release(id).is_some());
            assert!(table.slot(id).is_none(), "{id:#x} is still known");
            assert!(table.release(id).is_none());
        }
        // One slot lives for 32767 generations.
        assert_eq!(table.slots.len(), 3);
    }

    #[test]
    fn a_full_table_gives_out_nothing() {
        let mut table = empty();
        let ids: Vec<u32> = (0..MAX_SLOTS).map(|_| table.reserve().unwrap()).collect();
        assert_eq!(table.reserve(), None);
        table.release(ids[7]);
        let again = table.reserve().unwrap();
        assert_eq!(again & 0xffff, ids[7] & 0xffff);
        assert_ne!(again, ids[7]);
    }
}
