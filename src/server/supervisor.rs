//! What a supervisor such as systemd is told: that the worker is ready, that it stops, and that it still lives.
//!
//! Without `NOTIFY_SOCKET` there is nobody to tell, and nothing happens.

use std::sync::Arc;
use std::time::Duration;

use super::state::{ServerState, Status};

/// The model is loaded and requests are taken.
pub fn ready() {
    notify(Notice::Ready);
}

/// Requests are not taken any more.
pub fn stopping() {
    notify(Notice::Stopping);
}

/// Tells the supervisor's watchdog of a worker that lives, for as long as its device does; at once done where there is
/// none.
pub async fn keep_watchdog(state: Arc<ServerState>) {
    let Some(patience) = patience() else { return };
    // Two signs of life in the time that one is waited for.
    let mut ticks = tokio::time::interval((patience / 2).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        let health = state.model().map(|model| model.worker.health());
        if state.status(health.as_ref()) != Status::Unhealthy {
            notify(Notice::Alive);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Notice {
    Ready,
    Stopping,
    Alive,
}

#[cfg(unix)]
fn notify(notice: Notice) {
    use sd_notify::NotifyState;
    let states: &[NotifyState<'_>] = match notice {
        Notice::Ready => &[NotifyState::Ready, NotifyState::Status("serving")],
        Notice::Stopping => &[NotifyState::Stopping, NotifyState::Status("draining")],
        Notice::Alive => &[NotifyState::Watchdog],
    };
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, ?notice, "the supervisor does not hear");
    }
}

/// Time without a sign of life after which the supervisor acts.
#[cfg(unix)]
fn patience() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

#[cfg(not(unix))]
fn notify(_: Notice) {}

#[cfg(not(unix))]
fn patience() -> Option<Duration> {
    None
}
