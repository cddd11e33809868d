//! Connections, and how they end.

use std::{io, time::Duration};

use axum::serve::ListenerExt;
use tokio::{net::TcpListener, sync::watch};

use crate::{App, router};

/// What answers take to be written once their work was ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Answers requests until `shutdown` is done: then no more are taken, and those that run
/// go on for as long as [`Options::shutdown_timeout`](crate::Options) says.
///
/// # Errors
/// What the operating system says of the listener.
pub async fn serve(
    listener: TcpListener,
    app: App,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = listener.tap_io(|connection| {
        // Small events are sent at once.
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!("no TCP_NODELAY: {error}");
        }
    });
    let (stop, mut stopped) = watch::channel(());
    let engine = app.engine().clone();
    let timeout = app.options().shutdown_timeout;
    let signal = async move {
        shutdown.await;
        engine.stop();
        // Nobody listens if the server is gone already.
        let _ = stop.send(());
    };
    let engine = app.engine().clone();
    let serving = axum::serve(listener, router(app)).with_graceful_shutdown(signal);
    let deadline = async move {
        if stopped.changed().await.is_err() {
            return std::future::pending().await;
        }
        tokio::time::sleep(timeout).await;
        tracing::warn!("requests still run after {timeout:?}: they are ended");
        engine.abort_all();
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        served = serving => served,
        () = deadline => Ok(()),
    }
}
