//! The server's life: listen, serve, drain, end within the time promised.

use std::future::{Future, IntoFuture};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::registry::StopCause;
use super::state::ServerState;

/// Time for told jobs to send their last event.
const LAST_EVENT_TIME: Duration = Duration::from_millis(200);
/// Time for connections to write what they hold and close; one that does not read is cut off then.
const CLOSE_TIME: Duration = Duration::from_millis(300);

/// Serves until `signal` or `POST /shutdown`, then drains: requests are answered 503 while the running ones finish,
/// and after the drain time what still runs is cancelled. Returns at most half a second after the drain time.
///
/// # Errors
///
/// The listener has failed.
pub async fn serve<F>(listener: TcpListener, state: Arc<ServerState>, signal: F) -> io::Result<()>
where
    F: Future<Output = ()>,
{
    // A token is a small packet: waiting to fill a larger one would show.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
    });
    let (close, closed) = oneshot::channel::<()>();
    let server = axum::serve(listener, super::router(Arc::clone(&state))).with_graceful_shutdown(async {
        // An error says that the other end is gone, which means the same.
        let _ = closed.await;
    });
    let mut server = tokio::spawn(server.into_future());
    tokio::select! {
        () = signal => {}
        () = state.shutdown_requested() => {}
        ended = &mut server => return ended.map_err(io::Error::other)?,
    }
    drain(&state).await;
    let _ = close.send(());
    if let Ok(ended) = timeout(CLOSE_TIME, &mut server).await {
        return ended.map_err(io::Error::other)?;
    }
    server.abort();
    Ok(())
}

/// Refuses what comes, waits for what runs, and cancels what is left when the drain time is over.
async fn drain(state: &ServerState) {
    let began = Instant::now();
    let running = state.jobs.len();
    state.close();
    tracing::info!(event = "shutdown", running, drain_timeout_ms = state.drain_timeout.as_millis() as u64);
    if timeout(state.drain_timeout, state.jobs.emptied()).await.is_err() {
        let left = state.jobs.stop_all(StopCause::Drained);
        tracing::warn!(cancelled = left.len(), "the drain time is over");
        if let Some(model) = state.model() {
            for job_id in &left {
                model.worker.cancel(job_id);
            }
        }
        if timeout(LAST_EVENT_TIME, state.jobs.emptied()).await.is_err() {
            tracing::warn!(clients = state.jobs.len(), "clients that do not read are cut off");
        }
    }
    tracing::info!(drain_ms = began.elapsed().as_millis() as u64, "drained");
}

/// Returns on SIGTERM or SIGINT (Ctrl-C where there is no SIGTERM).
pub async fn termination() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(mut terminate) = signal(SignalKind::terminate()) else {
            return interrupt().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            () = interrupt() => {}
        }
    }
    #[cfg(not(unix))]
    interrupt().await;
}

async fn interrupt() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::error!(%error, "signals cannot be heard; use POST /shutdown");
        std::future::pending::<()>().await;
    }
}
