//! Work that takes the processor's time (templates, tokenising) off the server's threads, and only while it is wanted.

use std::time::{Duration, Instant};

use super::error::{ApiError, ErrorCode};
use super::registry::{LiveJob, StopCause};

/// The earlier of the client's and the worker's limit.
pub fn deadline(received: Instant, client_ms: Option<u64>, worker: Duration) -> Instant {
    let client = client_ms.map_or(worker, Duration::from_millis);
    received + client.min(worker)
}

/// Does the work, unless the job ends or its time is up first; then its result is thrown away.
///
/// # Errors
///
/// The work's own, or what ended the job.
pub async fn off_thread<T, F>(job: &mut LiveJob, deadline: Instant, work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ApiError> + Send + 'static,
{
    let timed_out = || ApiError::of(ErrorCode::InferenceTimeout, "deadline exceeded");
    let done = tokio::select! {
        biased;
        cause = job.stopped() => return Err(match cause {
            StopCause::Cancelled => ApiError::of(ErrorCode::Cancelled, "cancelled"),
            StopCause::Drained => ApiError::drained(),
        }),
        () = tokio::time::sleep_until(deadline.into()) => return Err(timed_out()),
        done = spawn(work) => done,
    };
    // Timers are coarse: a deadline of a millisecond may have passed unnoticed.
    if Instant::now() < deadline { done } else { Err(timed_out()) }
}

/// Does the work of a request that has neither name nor deadline.
///
/// # Errors
///
/// The work's own.
pub async fn spawn<T, F>(work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ApiError> + Send + 'static,
{
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::of(ErrorCode::Internal, "work off the server's threads has failed"))?
}
