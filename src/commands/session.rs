//! One sequence through the real engine, for commands that generate: the same path a request takes, without HTTP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use worker_orcd_core::Backend;

use super::CommandError;
use super::args::{DeviceArgs, ModelArgs, OpenModel};
use crate::engine::{Engine, EngineConfig, FinishReason, Job, KvBudget, Sampling, TokenEvent, Usage};
use crate::model::Recorder;
use crate::text::{DecodeOptions, IncrementalDecoder, Tokenizer};

/// How to choose tokens, as flags.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// Most tokens to generate
    #[arg(long, env = "WORKER_ORCD_MAX_TOKENS", default_value_t = 256)]
    pub max_tokens: usize,
    /// 0 = greedy, up to 2
    #[arg(long, env = "WORKER_ORCD_TEMPERATURE", default_value_t = 0.0)]
    pub temperature: f32,
    /// Keep the k most probable tokens; 0 = all
    #[arg(long, env = "WORKER_ORCD_TOP_K", default_value_t = 0)]
    pub top_k: u32,
    /// Keep the most probable tokens that together have this probability
    #[arg(long, env = "WORKER_ORCD_TOP_P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Keep tokens at least this probable relative to the most probable one
    #[arg(long, env = "WORKER_ORCD_MIN_P", default_value_t = 0.0)]
    pub min_p: f32,
    /// Divide the logits of tokens that occurred; 1 = off
    #[arg(long, env = "WORKER_ORCD_REPETITION_PENALTY", default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Seed of the draws; from the operating system when omitted
    #[arg(long, env = "WORKER_ORCD_SEED")]
    pub seed: Option<u64>,
    /// String that ends the text; may be given several times
    #[arg(long, env = "WORKER_ORCD_STOP")]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    /// Checks the ranges and draws the seed.
    ///
    /// # Errors
    /// A flag out of range.
    pub fn sampling(&self) -> Result<Sampling, CommandError> {
        let rules = [
            ("--temperature", (0.0..=2.0).contains(&self.temperature), "0 to 2"),
            ("--top-p", (0.0..=1.0).contains(&self.top_p), "0 to 1"),
            ("--min-p", (0.0..=1.0).contains(&self.min_p), "0 to 1"),
            (
                "--repetition-penalty",
                self.repetition_penalty > 0.0 && self.repetition_penalty <= 2.0,
                "above 0, at most 2",
            ),
            ("--max-tokens", self.max_tokens >= 1, "at least 1"),
        ];
        if let Some((flag, _, rule)) = rules.iter().find(|(_, holds, _)| !holds) {
            return Err(CommandError::Usage(format!("{flag} must be {rule}")));
        }
        Ok(Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed.unwrap_or_else(crate::random::seed),
            ..Sampling::greedy()
        })
    }
}

/// A loaded model with its engine running.
#[derive(Debug)]
pub struct Session {
    /// The file and what it holds.
    pub open: OpenModel,
    /// The running engine.
    pub engine: Engine,
    /// Absent when the file has no vocabulary.
    pub tokenizer: Option<Arc<Tokenizer>>,
}

/// What one run produced.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Ids, without a stop token.
    pub token_ids: Vec<u32>,
    /// Text of them, cut before a stop string.
    pub text: String,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
    /// What it cost.
    pub usage: Usage,
    /// From submission to the end.
    pub total: Duration,
}

impl Session {
    /// Opens model and device and starts the engine for one sequence.
    ///
    /// # Errors
    /// The model or the device.
    pub fn open(model: &ModelArgs, device: &DeviceArgs) -> Result<Self, CommandError> {
        let open = model.open()?;
        let backend = device.load(&open, model.chunk_bytes)?;
        // Golden files and other models without a vocabulary still generate ids.
        let has_vocabulary = model.tokenizer.is_some() || open.gguf.value("tokenizer.ggml.tokens").is_some();
        let tokenizer = if has_vocabulary { Some(model.tokenizer(&open.gguf)?) } else { None };
        Self::start(open, backend, tokenizer, device)
    }

    /// Starts the engine over an opened model.
    ///
    /// # Errors
    /// No room on the device.
    pub fn start(
        open: OpenModel,
        backend: Box<dyn Backend>,
        tokenizer: Option<Arc<Tokenizer>>,
        device: &DeviceArgs,
    ) -> Result<Self, CommandError> {
        let context = open.model.context_length();
        let config = EngineConfig {
            max_batch: 1,
            max_queue: 1,
            context,
            kv_element: device.kv.into(),
            kv_budget: KvBudget::Bytes(usize::MAX),
            ..EngineConfig::default()
        };
        let engine = Engine::start(backend, &open.model, config)?;
        Ok(Self { open, engine, tokenizer })
    }

    /// Generates from a prompt, handing every piece of text to `emit` as it becomes certain.
    ///
    /// # Errors
    /// The engine, or whatever `emit` says.
    pub fn generate(
        &self,
        prompt: Vec<u32>,
        args: &SamplingArgs,
        emit: &mut dyn FnMut(&str) -> Result<(), CommandError>,
    ) -> Result<Generated, CommandError> {
        let start = Instant::now();
        let stop_ids = self.tokenizer.as_ref().map_or(vec![], |tokenizer| tokenizer.stop_ids().to_vec());
        let job = Job {
            id: "command".into(),
            prompt,
            max_tokens: args.max_tokens,
            stop_ids,
            sampling: args.sampling()?,
            deadline: None,
            cache_salt: None,
        };
        let options =
            DecodeOptions { continues_text: true, stops: args.stop.clone(), ..DecodeOptions::default() };
        let mut decoder = self.tokenizer.as_ref().map(|t| IncrementalDecoder::new(Arc::clone(t), &options));
        let mut stream = self.engine.submit(job)?;
        let (mut token_ids, mut text) = (vec![], String::new());
        let mut deliver = |piece: String| {
            text.push_str(&piece);
            if piece.is_empty() { Ok(()) } else { emit(&piece) }
        };
        let (finish_reason, usage) = loop {
            match stream.events.blocking_recv() {
                Some(TokenEvent::Token { id, .. }) => {
                    token_ids.push(id);
                    if let Some(decoder) = &mut decoder {
                        deliver(decoder.push(id))?;
                        if decoder.stopped_by().is_some() {
                            break ("stop", Usage { generated_tokens: token_ids.len(), ..Usage::default() });
                        }
                    }
                }
                Some(TokenEvent::Finished { reason, usage }) => break (reason_name(reason), usage),
                Some(TokenEvent::Failed { error }) => return Err(error.into()),
                None => return Err(CommandError::Usage("the engine ended without an answer".into())),
            }
        };
        if let Some(decoder) = &mut decoder {
            deliver(decoder.finish())?;
        }
        Ok(Generated { token_ids, text, finish_reason, usage, total: start.elapsed() })
    }
}

const fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
