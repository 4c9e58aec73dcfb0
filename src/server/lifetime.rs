//! The server's life: listen, serve, drain, end within the time promised.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::registry::StopCause;
use super::state::ServerState;
use super::supervisor;
use super::tls::Tls;

/// Time for told jobs to send their last event.
const LAST_EVENT_TIME: Duration = Duration::from_millis(200);
/// Time for connections to write what they hold and close; one that does not read is cut off then.
const CLOSE_TIME: Duration = Duration::from_millis(300);
/// Time for the last spans to reach their collector.
const LAST_SPANS_TIME: Duration = Duration::from_millis(200);
/// Time for a client to send the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Bytes that the head of a request may have.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Connections at a time; more wait until one closes.
const MAX_CONNECTIONS: usize = 8192;
/// Pause after a connection could not be accepted, which is most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `signal` or `POST /shutdown`, then drains: requests are answered 503 while the running ones finish,
/// and after the drain time what still runs is cancelled. Returns at most half a second after the drain time.
///
/// # Errors
///
/// The server's own task has failed.
pub async fn serve<F>(listener: TcpListener, state: Arc<ServerState>, signal: F) -> io::Result<()>
where
    F: Future<Output = ()>,
{
    let (close, closing) = watch::channel(false);
    let mut alive = JoinSet::new();
    alive.spawn(supervisor::keep_watchdog(Arc::clone(&state)));
    let (last_spans, exporting) = watch::channel(false);
    let exporter = state.take_span_export().map(|export| tokio::spawn(export.run(exporting)));
    let (router, tls) = (super::router(Arc::clone(&state)), state.tls.clone());
    let mut server = tokio::spawn(accept(listener, router, tls, closing));
    tokio::select! {
        () = signal => {}
        () = state.shutdown_requested() => {}
        ended = &mut server => return ended.map_err(io::Error::other),
    }
    drain(&state).await;
    close.send_replace(true);
    let ended = timeout(CLOSE_TIME, &mut server).await;
    if ended.is_err() {
        server.abort();
    }
    last_spans.send_replace(true);
    if let Some(exporter) = exporter
        && timeout(LAST_SPANS_TIME, exporter).await.is_err()
    {
        tracing::warn!("the collector of traces is slow; the last spans are lost");
    }
    ended.map_or(Ok(()), |ended| ended.map_err(io::Error::other))
}

/// Takes connections until told to close, then waits for those there are.
async fn accept(listener: TcpListener, router: Router, tls: Option<Tls>, mut closing: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = told(&mut closing) => break,
            _ = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, tls.clone(), router.clone(), closing.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Returns once it is time to close.
async fn told(closing: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = closing.wait_for(|&closing| closing).await;
}

/// Serves one connection, encrypted where the server has a certificate. A handshake takes no one's time but its own.
async fn connection(stream: TcpStream, tls: Option<Tls>, router: Router, mut closing: watch::Receiver<bool>) {
    // A token is a small packet: waiting to fill a larger one would show.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let Some(tls) = tls else { return converse(stream, router, closing).await };
    let secured = tokio::select! {
        secured = tls.secure(stream) => secured,
        () = told(&mut closing) => return,
    };
    match secured {
        Ok(stream) => converse(stream, router, closing).await,
        Err(error) => tracing::debug!(%error, "TLS handshake"),
    }
}

/// Answers requests until the client closes, or until the one request under way is answered once `closing`.
async fn converse<S>(stream: S, router: Router, mut closing: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = told(&mut closing) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection");
    }
}

/// Refuses what comes, waits for what runs, and cancels what is left when the drain time is over.
async fn drain(state: &ServerState) {
    let began = Instant::now();
    let running = state.jobs.len();
    state.close();
    supervisor::stopping();
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
