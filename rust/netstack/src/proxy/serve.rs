//! Services that clients of this host connect to.

use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

use super::counters::count;
use super::credentials::Credentials;
use super::listen::Address;
use super::notice::ProxyNotice;
use super::relay::{relay, reset};
use super::shared::Shared;
use super::target::Target;
use super::{http, socks};

/// After this host could not accept a client for want of something, how soon it tries again.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// How long a client is silent before the kernel asks whether it is still there, and how long between questions.
const KEEP_ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

/// How long a client that was refused has to take note of it.
const FAREWELL: Duration = Duration::from_secs(2);

/// What clients of a port get.
pub(super) enum Offer {
    Socks5(Option<Credentials>),
    HttpConnect(Option<Credentials>),
    Forward(Target),
}

/// A client's connection, and where it came from and arrived.
pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddr,
    pub(super) service: SocketAddr,
}

/// Serves clients for ever.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener, service: SocketAddr, offer: Offer) {
    let offer = Arc::new(offer);
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                let Some(slot) = shared.admit() else {
                    refuse(stream, &offer);
                    continue;
                };
                prepare(&stream);
                let (shared, offer) = (Arc::clone(&shared), Arc::clone(&offer));
                tokio::spawn(async move {
                    serve_client(&shared, &offer, Client { stream, address, service }).await;
                    drop(slot);
                });
            }
            Err(error) => accept_failed(&shared, Address::Host(service), &error).await,
        }
    }
}

async fn serve_client(shared: &Arc<Shared>, offer: &Offer, client: Client) {
    match offer {
        Offer::Socks5(credentials) => socks::serve(shared, credentials.as_ref(), client).await,
        Offer::HttpConnect(credentials) => http::serve(shared, credentials.as_ref(), client).await,
        Offer::Forward(remote) => match shared.dial(&client.stream, remote).await {
            Ok(tunnel) => relay(client.stream, tunnel, &[], &shared.tally).await,
            Err(_) => reset(&client.stream),
        },
    }
}

fn refuse(stream: TcpStream, offer: &Offer) {
    match offer {
        Offer::HttpConnect(_) => {
            // There is room for that in the buffer of a new connection. A client that loses it has been refused all the same.
            let _ = stream.into_std().and_then(|mut stream| stream.write(http::FULL));
        }
        Offer::Socks5(_) | Offer::Forward(_) => reset(&stream),
    }
}

/// What every connection of this host is given.
pub(super) fn prepare(stream: &TcpStream) {
    // Without either the connection works as well, but slower or longer.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&KEEP_ALIVE);
}

/// Takes note that a client could not be accepted, and waits where it would be no use to try again at once.
pub(super) async fn accept_failed(shared: &Shared, service: Address, error: &io::Error) {
    count(&shared.tally.accept_errors, 1);
    // accept(2) tells errors of the client's connection as well.
    if matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused | ErrorKind::TimedOut
    ) {
        return;
    }
    shared.notices.tell(|| ProxyNotice::AcceptFailing {
        service,
        errno: error.raw_os_error(),
        message: error.to_string(),
    });
    tokio::time::sleep(PAUSE).await;
}

/// Ends a connection so that the client reads what was written: what it still sends is read and dropped for a moment, since
/// closing a socket with unread data resets the connection.
pub(super) async fn part(stream: &TcpStream) {
    if SockRef::from(stream).shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut buffer = [0; 4096];
    let mut left = 1 << 20;
    let drain = async {
        while left > 0 && stream.readable().await.is_ok() {
            match stream.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(len) => left -= len.min(left),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(FAREWELL, drain).await;
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::counters::Tally;
    use super::super::notice::Notices;
    use super::super::options::ProxyOptions;
    use super::*;
    use crate::{Stack, StackOptions};

    #[test]
    fn a_want_of_something_is_waited_out_and_told_and_an_error_of_a_client_is_not() {
        const EMFILE: i32 = 24;
        const ENOMEM: i32 = 12;
        const ECONNABORTED: i32 = 103;
        let (stack, _device) = Stack::open(StackOptions::new(vec![([10, 9, 0, 1].into(), 24)], 1400)).unwrap();
        let (sender, told) = mpsc::channel();
        let notices = Notices::new(Box::new(move |notice| sender.send(notice).unwrap()));
        let tally = Arc::new(Tally::default());
        let shared = Shared::new(stack, &ProxyOptions::new(Vec::new()), Arc::clone(&tally), notices);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let service = Address::Tunnel(1);
        runtime.block_on(async {
            for (errno, waits) in [(EMFILE, true), (ENOMEM, true), (ECONNABORTED, false)] {
                let start = tokio::time::Instant::now();
                accept_failed(&shared, service, &io::Error::from_raw_os_error(errno)).await;
                assert_eq!(start.elapsed() >= PAUSE, waits, "{errno}");
                let notice = told.try_recv().ok();
                let is_told =
                    matches!(&notice, Some(ProxyNotice::AcceptFailing { errno: Some(told), .. }) if *told == errno);
                assert_eq!(is_told, waits, "{errno}: {notice:?}");
            }
        });
        assert_eq!(tally.figures().accept_errors, 3);
    }
}
