//! The engine as its users see it: on a fake device that stores real keys, and on the reference interpreter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail where it stands")]

mod fake;
mod figures;
mod lifecycle;
mod metamorphic;
mod prefix;
mod reference;

use std::fmt::Display;
use std::time::{Duration, Instant};

use worker_orcd::engine::{
    Engine, EngineError, EngineStats, FinishReason, Job, JobStream, Sampling, TokenEvent, Usage,
};

/// Longer than anything here takes; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a listener heard.
#[derive(Debug, PartialEq)]
struct Heard {
    tokens: Vec<u32>,
    end: Result<FinishReason, EngineError>,
}

fn job(id: impl Display, prompt: &[u32], max_tokens: usize) -> Job {
    Job {
        id: id.to_string(),
        prompt: prompt.to_vec(),
        max_tokens,
        stop_ids: vec![],
        sampling: Sampling::greedy(),
        deadline: None,
        cache_salt: None,
    }
}

/// A prompt of `length` ids below 90 that follow from `salt`.
fn prompt(length: usize, salt: usize) -> Vec<u32> {
    (0..length).map(|index| ((index * index + 7 * index + 31 * salt) % 90) as u32).collect()
}

fn next_event(stream: &mut JobStream) -> Option<TokenEvent> {
    let start = Instant::now();
    loop {
        match stream.events.try_recv() {
            Ok(event) => return Some(event),
            Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => return None,
            Err(tokio::sync::mpsc::error::TryRecvError::Empty) => {
                assert!(start.elapsed() < PATIENCE, "no event");
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
}

/// Listens to the end; the indices are in order and nothing follows the last word.
fn listen(stream: JobStream) -> Heard {
    listen_with_usage(stream).0
}

/// As [`listen`], with what the job cost if it ended well.
fn listen_with_usage(mut stream: JobStream) -> (Heard, Option<Usage>) {
    let mut tokens = vec![];
    loop {
        match next_event(&mut stream).expect("the stream broke off") {
            TokenEvent::Token { id, index, .. } => {
                assert_eq!(index, tokens.len());
                tokens.push(id);
            }
            TokenEvent::Finished { reason, usage } => {
                assert_eq!(usage.generated_tokens, tokens.len());
                assert_eq!(next_event(&mut stream), None);
                return (Heard { tokens, end: Ok(reason) }, Some(usage));
            }
            TokenEvent::Failed { error } => {
                assert_eq!(next_event(&mut stream), None);
                return (Heard { tokens, end: Err(error) }, None);
            }
        }
    }
}

fn wait_until(engine: &Engine, what: &str, holds: impl Fn(&EngineStats) -> bool) -> EngineStats {
    let start = Instant::now();
    loop {
        let stats = engine.stats();
        if holds(&stats) {
            return stats;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: {stats:?}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

fn assert_nothing_held(engine: &Engine) {
    wait_until(engine, "idle", |stats| (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0));
}
