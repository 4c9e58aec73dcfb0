//! The built binary, started as a user would: commands, and the worker over real HTTP.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod bench;
mod callback;
mod chat;
#[path = "../support/collector.rs"]
#[allow(dead_code, reason = "shared with the server's own tests, which use more of it")]
mod collector;
mod commands;
mod constrained;
mod ending;
mod haiku;
#[path = "../server/http.rs"]
#[allow(dead_code, reason = "shared with the server's own tests, which use more of it")]
mod http;
mod hub;
#[path = "../support/models.rs"]
#[allow(dead_code, reason = "shared with the golden tests, which use more of it")]
mod models;
mod operations;
mod pull;
#[cfg(target_os = "linux")]
mod terminal;
mod worker;
