//! `--callback-url`: one POST that tells whoever started this worker that it serves, where, and what it holds.
//!
//! ```text
//! {"worker_id": "…", "url": "http://10.0.0.7:8080", "model": "…", "vram_bytes": 12345678}
//! ```
//!
//! It is sent from a task of its own: no request waits for it, and a receiver that is down costs a few log lines.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, StatusCode, Url, redirect};
use serde_json::json;
use tokio::net::UdpSocket;

use super::state::ServerState;
use super::tls::install_crypto;

/// How long and how often to try.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Most attempts.
    pub attempts: u32,
    /// Longest wait for an answer.
    pub answer_time: Duration,
    /// Pause after the first attempt; each further one is twice as long.
    pub first_pause: Duration,
}

impl Default for Patience {
    /// Half a minute without an answer, a quarter of one with refusals.
    fn default() -> Self {
        Self { attempts: 5, answer_time: Duration::from_secs(3), first_pause: Duration::from_secs(1) }
    }
}

/// Why the receiver was not told.
#[derive(Debug, thiserror::Error)]
pub enum CallbackError {
    /// The address is no HTTP URL.
    #[error("--callback-url: expected http://… or https://…, got {url:?}")]
    Url {
        /// As given.
        url: String,
    },
    /// No connection, or no answer in time.
    #[error("no answer: {0}")]
    Unreachable(#[from] reqwest::Error),
    /// It answered with an error.
    #[error("answered {0}")]
    Refused(StatusCode),
}

impl CallbackError {
    /// Whether the same may succeed a moment later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Url { .. } => false,
            Self::Unreachable(_) => true,
            Self::Refused(status) => {
                status.is_server_error()
                    || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(status)
            }
        }
    }
}

/// Tells the receiver at `callback_url` that this worker, which listens on `local`, serves. Returns when it knows or when
/// nobody is left to tell: the worker drains, or patience is over.
pub async fn announce(state: Arc<ServerState>, callback_url: String, local: SocketAddr, patience: Patience) {
    let mut pause = patience.first_pause;
    for attempt in 1..=patience.attempts {
        match post(&state, &callback_url, local, patience.answer_time).await {
            Ok(()) => return tracing::info!(event = "callback", attempt, "the receiver knows"),
            Err(error) => {
                let gives_up = attempt == patience.attempts || !error.may_pass();
                tracing::warn!(event = "callback", attempt, gives_up, %error);
                if gives_up {
                    return;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
        if state.jobs.is_closed() {
            return;
        }
    }
}

async fn post(
    state: &ServerState,
    callback_url: &str,
    local: SocketAddr,
    answer_time: Duration,
) -> Result<(), CallbackError> {
    let no_url = || CallbackError::Url { url: callback_url.to_owned() };
    let url = Url::parse(callback_url).map_err(|_| no_url())?;
    let address = match local.ip() {
        ip if ip.is_unspecified() => address_towards(&url).await.unwrap_or(ip),
        ip => ip,
    };
    let model = state.model();
    let scheme = if state.tls.is_some() { "https" } else { "http" };
    let report = json!({
        "worker_id": state.worker_id,
        "url": format!("{scheme}://{}", SocketAddr::new(address, local.port())),
        "model": state.model_name(),
        "vram_bytes": model.map(|model| model.worker.health().memory.total_bytes()),
    });
    install_crypto();
    // An answer that points elsewhere is an error, not a wish to be followed.
    let client = Client::builder().timeout(answer_time).redirect(redirect::Policy::none()).build()?;
    let status = client.post(url).json(&report).send().await?.status();
    if status.is_success() { Ok(()) } else { Err(CallbackError::Refused(status)) }
}

/// The address by which this machine reaches the receiver, and so by which the receiver may reach it: what to say where
/// the worker listens on every address. Nothing is sent.
async fn address_towards(url: &Url) -> Option<IpAddr> {
    let (host, port) = (url.host_str()?, url.port_or_known_default()?);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let receiver = tokio::net::lookup_host((host, port)).await.ok()?.next()?;
    let any: SocketAddr = if receiver.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(receiver).await.ok()?;
    socket.local_addr().ok().map(|local| local.ip())
}
