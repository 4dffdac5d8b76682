//! A responder that serves one session after another, and first sits out one that is dead.
//!
//! Such peers exist. Handshakes complete in the background; what they lead to waits in a queue. The session that is served
//! ends when QUIC says so, which for a vanished initiator is the idle timeout, or when it brings no offer in time. One whose
//! initiator has left before its turn costs some seconds more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use icx_control::codec::{Message, SaOffer};
use icx_control::kdf::{EXPORTER_CONTEXT, EXPORTER_LABEL, MasterKeys, ROOT_SECRET_LEN, RootSecret};
use icx_control::spi::{MasterIndex, SpiAllocator};
use icx_control::{Identity, Role, Suite, sa};
use icx_proto::Engine;
use icx_proto::engine::SaPair;
use quinn::{Connection, IdleTimeout};
use tokio::sync::mpsc;

use crate::node::{LIFETIME, clock, engine, vni};
use crate::raw;

/// How slow the peer is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// Silence after which a session is dead.
    pub(crate) idle_timeout: Duration,
    /// How long a new session may take to bring its offer.
    pub(crate) offer_timeout: Duration,
    /// What a session costs whose initiator has left.
    pub(crate) abandoned: Duration,
}

impl Habits {
    /// As measured.
    pub(crate) const REAL: Habits = Habits {
        idle_timeout: Duration::from_secs(30),
        offer_timeout: Duration::from_secs(10),
        abandoned: Duration::from_secs(5),
    };

    /// The same, `factor` times as fast.
    pub(crate) fn faster(self, factor: u32) -> Self {
        Habits {
            idle_timeout: self.idle_timeout / factor,
            offer_timeout: self.offer_timeout / factor,
            abandoned: self.abandoned / factor,
        }
    }
}

pub(crate) struct SlowPeer {
    pub(crate) addr: SocketAddr,
    /// Where its keys go.
    pub(crate) engine: Arc<Engine>,
    served: Arc<AtomicUsize>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl SlowPeer {
    pub(crate) fn start(identity: &Identity, habits: Habits) -> Self {
        let runtime = raw::runtime();
        let idle = IdleTimeout::try_from(habits.idle_timeout).unwrap();
        let endpoint = runtime.block_on(async { raw::server_with(identity, 4, Some(idle)) });
        let addr = endpoint.local_addr().unwrap();
        let (engine, served) = (engine(), Arc::new(AtomicUsize::new(0)));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn({
            let (engine, served) = (Arc::clone(&engine), Arc::clone(&served));
            move || {
                runtime.block_on(async {
                    let (sender, mut queue) = mpsc::unbounded_channel();
                    tokio::spawn(async move {
                        while let Some(incoming) = endpoint.accept().await {
                            let sender = sender.clone();
                            tokio::spawn(async move {
                                if let Ok(connection) = incoming.await {
                                    let _ = sender.send(connection);
                                }
                            });
                        }
                    });
                    let serve = async {
                        while let Some(connection) = queue.recv().await {
                            serve(&connection, habits, &engine, &served).await;
                        }
                    };
                    tokio::select! {
                        () = serve => {}
                        _ = stopped => {}
                    }
                });
            }
        });
        SlowPeer { addr, engine, served, stop: Some(stop), thread: Some(thread) }
    }

    /// Sessions on which an exchange was finished.
    pub(crate) fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for SlowPeer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers exchanges until the session is over.
async fn serve(connection: &Connection, habits: Habits, engine: &Engine, served: &AtomicUsize) {
    if connection.close_reason().is_some() {
        return tokio::time::sleep(habits.abandoned).await;
    }
    let mut root = [0; ROOT_SECRET_LEN];
    connection.export_keying_material(&mut root, EXPORTER_LABEL, EXPORTER_CONTEXT).unwrap();
    let masters = MasterKeys::derive(RootSecret::from_slice(&root).unwrap()).unwrap();
    let mut spis = SpiAllocator::starting_at(Role::Responder, 1).unwrap();
    let mut first = true;
    loop {
        let patience = if first { habits.offer_timeout } else { Duration::MAX };
        let Ok(Ok((mut send, mut recv))) = tokio::time::timeout(patience, connection.accept_bi()).await else { break };
        let mut frame = [0; 9];
        let Ok(Ok(())) = tokio::time::timeout(habits.offer_timeout, recv.read_exact(&mut frame)).await else { break };
        let offer = SaOffer::decode(&frame[2..]).unwrap();
        let rx_spi = spis.allocate(MasterIndex::Zero).unwrap();
        let suite = Suite::Aes128Gcm;
        let keys = sa::pair(&masters, Role::Responder, suite, rx_spi, offer.suite, offer.rx_spi).unwrap();
        let now = clock()();
        let pair = SaPair {
            rx_spi,
            tx_spi: keys.tx_spi,
            rx_key: keys.rx_key,
            tx_key: keys.tx_key,
            expires_at: now.saturating_add(LIFETIME),
        };
        engine.install(now, vni(), pair).unwrap();
        let answer = SaOffer { suite: suite.number(), rx_spi: rx_spi.get() }.encode_framed();
        if send.write_all(&answer).await.is_err() || send.finish().is_err() {
            break;
        }
        if std::mem::take(&mut first) {
            served.fetch_add(1, Ordering::Relaxed);
        }
    }
    connection.close(0u32.into(), b"");
}
