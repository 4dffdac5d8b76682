//! Connections that come through the tunnel, to where this host reaches them.

use std::sync::Arc;

use super::relay::relay;
use super::serve::prepare;
use super::shared::Shared;
use super::target::Target;
use crate::tcp::TcpListener;

/// Serves clients until the stack is closed.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener, target: Target) {
    let target = Arc::new(target);
    while let Ok(tunnel) = listener.accept().await {
        let Some(slot) = shared.admit() else {
            tunnel.abort();
            continue;
        };
        let (shared, target) = (Arc::clone(&shared), Arc::clone(&target));
        tokio::spawn(async move {
            match shared.dial_host(&target).await {
                Some(host) => {
                    prepare(&host);
                    relay(host, tunnel, &[], &shared.tally).await;
                }
                None => tunnel.abort(),
            }
            drop(slot);
        });
    }
}
