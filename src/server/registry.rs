//! The jobs that live now: names that are taken, who is to be told to stop, and when the last one is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::{future::Future, pin::Pin};

use tokio::sync::{oneshot, watch};

/// Why a job is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// `/cancel`.
    Cancelled,
    /// The drain time is over.
    Drained,
}

/// Why a job is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A live job has this name.
    Duplicate,
    /// No more jobs are taken.
    Closed,
}

#[derive(Debug, Default)]
struct Jobs {
    closed: bool,
    live: HashMap<String, Option<oneshot::Sender<StopCause>>>,
}

/// All live jobs of one worker.
#[derive(Debug)]
pub struct Registry {
    jobs: Mutex<Jobs>,
    count: watch::Sender<usize>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { jobs: Mutex::default(), count: watch::Sender::new(0) }
    }
}

impl Registry {
    /// Takes the name until the returned [`LiveJob`] is dropped.
    ///
    /// # Errors
    ///
    /// The name is taken, or [`Registry::close`] was called.
    pub fn register(self: &Arc<Self>, job_id: &str) -> Result<LiveJob, Refusal> {
        let mut jobs = self.lock();
        if jobs.closed {
            return Err(Refusal::Closed);
        }
        if jobs.live.contains_key(job_id) {
            return Err(Refusal::Duplicate);
        }
        let (sender, stop) = oneshot::channel();
        jobs.live.insert(job_id.to_owned(), Some(sender));
        self.count.send_replace(jobs.live.len());
        Ok(LiveJob { registry: Arc::clone(self), job_id: job_id.to_owned(), stop: Some(stop) })
    }

    /// Tells the job of this name to stop; false if none lives. A second call changes nothing.
    pub fn stop(&self, job_id: &str, cause: StopCause) -> bool {
        let mut jobs = self.lock();
        let Some(job) = jobs.live.get_mut(job_id) else { return false };
        tell(job, cause);
        true
    }

    /// Tells every job to stop and returns their names.
    pub fn stop_all(&self, cause: StopCause) -> Vec<String> {
        let mut jobs = self.lock();
        jobs.live.values_mut().for_each(|job| tell(job, cause));
        jobs.live.keys().cloned().collect()
    }

    /// Takes no more jobs.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Whether [`Registry::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Live jobs.
    pub fn len(&self) -> usize {
        *self.count.borrow()
    }

    /// No job lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns once no job lives.
    pub async fn emptied(&self) {
        let mut count = self.count.subscribe();
        // The sender is `self`: it cannot be gone while it is borrowed.
        let _ = count.wait_for(|&count| count == 0).await;
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(job: &mut Option<oneshot::Sender<StopCause>>, cause: StopCause) {
    if let Some(sender) = job.take() {
        // The job may end at this very moment; then nobody needs to be told.
        let _ = sender.send(cause);
    }
}

/// A taken name; dropping it frees the name.
#[derive(Debug)]
pub struct LiveJob {
    registry: Arc<Registry>,
    job_id: String,
    stop: Option<oneshot::Receiver<StopCause>>,
}

impl LiveJob {
    /// The name.
    pub fn job_id(&self) -> &str {
        &self.job_id
    }

    /// Ready once the job was told to stop; pending for ever after that.
    pub fn poll_stop(&mut self, cx: &mut Context<'_>) -> Poll<StopCause> {
        let Some(stop) = &mut self.stop else { return Poll::Pending };
        match Pin::new(stop).poll(cx) {
            Poll::Ready(told) => {
                self.stop = None;
                told.map_or(Poll::Pending, Poll::Ready)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Returns once the job was told to stop.
    pub async fn stopped(&mut self) -> StopCause {
        std::future::poll_fn(|cx| self.poll_stop(cx)).await
    }
}

impl Drop for LiveJob {
    fn drop(&mut self) {
        let mut jobs = self.registry.lock();
        jobs.live.remove(&self.job_id);
        self.registry.count.send_replace(jobs.live.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_free_again_after_its_job() {
        let registry = Arc::new(Registry::default());
        let job = registry.register("a").unwrap();
        assert_eq!(registry.register("a").unwrap_err(), Refusal::Duplicate);
        assert_eq!(registry.len(), 1);
        drop(job);
        registry.emptied().await;
        assert!(registry.register("a").is_ok());
    }

    #[tokio::test]
    async fn stop_reaches_the_job_once() {
        let registry = Arc::new(Registry::default());
        let mut job = registry.register("a").unwrap();
        assert!(registry.stop("a", StopCause::Cancelled));
        assert!(registry.stop("a", StopCause::Drained), "still live, already told");
        assert!(!registry.stop("b", StopCause::Cancelled));
        assert_eq!(job.stopped().await, StopCause::Cancelled);
        let again = std::future::poll_fn(|cx| Poll::Ready(job.poll_stop(cx))).await;
        assert!(again.is_pending());
    }

    #[tokio::test]
    async fn a_closed_registry_takes_nothing() {
        let registry = Arc::new(Registry::default());
        let mut job = registry.register("a").unwrap();
        registry.close();
        assert_eq!(registry.register("b").unwrap_err(), Refusal::Closed);
        assert_eq!(registry.stop_all(StopCause::Drained), ["a"]);
        assert_eq!(job.stopped().await, StopCause::Drained);
    }
}
