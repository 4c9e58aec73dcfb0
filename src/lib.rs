//! worker-orcd: one process, one GGUF model, one GPU. This page is the architecture.
//!
//! # The idea
//!
//! A model does not call the device. It **records a program**: a short, linear, labelled list of sixteen LLM-level
//! operations with fixed shapes ([`worker_orcd_core::op::Op`]). A backend **compiles** that program once for a step
//! shape and then **runs** it, step after step. Everything that varies (token ids, positions, cache slots, block tables,
//! sampling parameters) is data in an input buffer ([`worker_orcd_core::StepInputs`]); launches never vary.
//!
//! * CUDA fuses neighbours and captures a CUDA graph, privately.
//! * wgpu stays simple: one operation, one WGSL file, one dispatch; only a step of one token joins neighbours on a GPU.
//! * The reference interpreter runs the same list on the CPU. It is the meaning of every operation.
//! * Two backends are compared by running one program on both with every value *tapped* and naming the first label
//!   where they part (`compare`).
//!
//! # Where things are
//!
//! | folder | knows | holds |
//! |---|---|---|
//! | [`gguf`] | files | the container reader and writer, every check a hostile file needs |
//! | [`model`] | models | configuration, the weight table, one small file per architecture, shared recorders |
//! | [`text`] | text | tokenizers, chat formats, decoding that is safe to stream |
//! | [`engine`] | tokens | sequences, scheduler, cache blocks, prefix cache, sampler, the step loop on one thread |
//! | [`server`] | HTTP | routes, wire types, validation, streams, errors, life and death |
//! | [`commands`] | the command line | one file per subcommand |
//! | [`device`] | backends | the only file that names one |
//! | `backends/core` | programs | operations, storage formats, the `Backend` contract, the interpreter, conformance cases |
//! | `backends/cuda`, `cuda/` | CUDA | device, kernels, lowering, plans |
//! | `backends/wgpu`, `shaders/` | wgpu | device, shaders, lowering, plans |
//!
//! Dependencies point down only: server, text → engine → model → gguf, backends/core. Backends depend on
//! `backends/core` alone. The engine never sees text; models never see a sequence; a backend never sees a model's name.
//! `tests/tidy.rs` enforces these edges.
//!
//! # One request, from HTTP to logits
//!
//! 1. [`server::execute`] reads the body field by field; what comes out cannot be wrong any more. Tokenising runs off
//!    the server's threads ([`text::Tokenizer`]).
//! 2. [`engine::Engine::submit`] puts the [`engine::Job`] into a bounded queue and hands back a stream of
//!    [`engine::TokenEvent`]s.
//! 3. The engine thread, per step: drain the queue; let the scheduler pack tokens of many sequences under a budget
//!    (running ones first), taking cache blocks, from the prefix cache where it can; gather the inputs; submit; tell
//!    listeners of the step before while the device works; wait.
//! 4. [`model::Model`] recorded the program behind the plan: embed, per layer attention and feed-forward, gather the
//!    rows that need logits, the head, and `Sample`, so that only token ids come back.
//! 5. [`text::IncrementalDecoder`] turns ids into whole characters and finds stop strings; [`server::sse`] sends them.
//!    A dropped stream cancels its sequence, which frees its blocks in the same step.
//!
//! # Rules that hold everywhere
//!
//! * **Results do not depend on the batch.** The order of every reduction is fixed by the shape of the row. A request
//!   gets the same tokens alone, among others, in chunks, after preemption, from a cached prefix: bitwise, on each
//!   backend, and tested so.
//! * **No fallback in silence.** A CUDA worker without CUDA ends with an error that names the alternatives.
//! * **Nothing is allocated on a device after the last plan is compiled.** Weights, cache, one activation arena.
//! * **Files and requests are hostile** until checked; no check panics.
//! * **Logs, metrics and traces hold figures and outcomes**, never a prompt or an answer ([`server::log`],
//!   [`server::trace`]).
//! * **Sampling is counter-based** (Philox, keyed by seed and index of the token) and integer arithmetic after two float
//!   operations, so that host and devices draw the same token.

pub mod commands;
pub mod config;
pub mod device;
pub mod engine;
pub mod gguf;
pub mod model;
mod random;
pub mod server;
pub mod text;
