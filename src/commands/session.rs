//! One sequence through the real engine, for commands that generate: the same path a request takes, without HTTP.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use worker_orcd_core::Backend;

use super::CommandError;
use super::args::{DeviceArgs, ModelArgs, OpenModel};
use crate::engine::{
    Engine, EngineConfig, FinishReason, Job, JobStream, KvBudget, Sampling, TokenEvent, Usage,
};
use crate::model::Recorder;
use crate::text::chat::{ChatFormat, OutputEvent, ParserOptions};
use crate::text::{DecodeOptions, IncrementalDecoder, Tokenizer};

/// Tokens of a continuation when nothing says how many.
const MAX_TOKENS: usize = 256;

/// How to choose tokens, as flags.
#[derive(Args, Clone, Debug)]
pub struct SamplingArgs {
    /// Most tokens to generate; 256, in a chat what the context has room for, when omitted
    #[arg(long, env = "WORKER_ORCD_MAX_TOKENS")]
    pub max_tokens: Option<usize>,
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
            ("--max-tokens", self.max_tokens != Some(0), "at least 1"),
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

/// What a model answered.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Ids, without a stop token.
    pub token_ids: Vec<u32>,
    /// What it thought before.
    pub reasoning: String,
    /// What it said.
    pub content: String,
    /// `stop`, `length` or `interrupted`.
    pub finish_reason: &'static str,
    /// Tokens of the conversation before it.
    pub prompt_tokens: usize,
}

impl Answer {
    fn take(&mut self, event: &OutputEvent) {
        match event {
            OutputEvent::ContentDelta(text) => self.content.push_str(text),
            OutputEvent::ReasoningDelta(text) => self.reasoning.push_str(text),
            _ => {}
        }
    }
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
            max_tokens: args.max_tokens.unwrap_or(MAX_TOKENS),
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
        let (finish_reason, usage) = follow(&mut stream, &mut |id| {
            token_ids.push(id);
            let Some(decoder) = &mut decoder else { return Ok(None) };
            deliver(decoder.push(id))?;
            Ok(decoder.stopped_by().map(|_| "stop"))
        })?;
        let usage = usage.unwrap_or_else(|| Usage { generated_tokens: token_ids.len(), ..Usage::default() });
        if let Some(decoder) = &mut decoder {
            deliver(decoder.finish())?;
        }
        Ok(Generated { token_ids, text, finish_reason, usage, total: start.elapsed() })
    }

    /// How the model is prompted with a conversation: as the file named `template` says, else as its own file does.
    ///
    /// # Errors
    /// Nothing says it, or wrongly.
    pub fn chat_format(&self, template: Option<&Path>) -> Result<ChatFormat, CommandError> {
        Ok(ChatFormat::load(&self.open.gguf, self.spoken()?, template)?)
    }

    fn spoken(&self) -> Result<&Arc<Tokenizer>, CommandError> {
        let none = || CommandError::Usage("the model has no vocabulary to talk with".into());
        self.tokenizer.as_ref().ok_or_else(none)
    }

    /// Answers a conversation that was rendered to `prompt`, handing every piece to `emit` as it becomes certain, until
    /// `stop` is raised.
    ///
    /// # Errors
    /// The conversation fills the context, the engine, or whatever `emit` says.
    pub fn answer(
        &self,
        format: &ChatFormat,
        prompt: Vec<u32>,
        args: &SamplingArgs,
        stop: &AtomicBool,
        emit: &mut dyn FnMut(&OutputEvent) -> Result<(), CommandError>,
    ) -> Result<Answer, CommandError> {
        let (tokenizer, prompt_tokens) = (self.spoken()?, prompt.len());
        let context = self.open.model.context_length();
        let room = context.saturating_sub(prompt_tokens);
        if room == 0 {
            let full = format!("the conversation has {prompt_tokens} tokens, the context {context}");
            return Err(CommandError::Usage(full));
        }
        let job = Job {
            id: "command".into(),
            prompt,
            max_tokens: args.max_tokens.unwrap_or(room).min(room),
            stop_ids: tokenizer.stop_ids().to_vec(),
            sampling: args.sampling()?,
            deadline: None,
            cache_salt: None,
        };
        let decode = DecodeOptions { stops: args.stop.clone(), ..DecodeOptions::default() };
        let mut parser = format.parser(ParserOptions { decode, ..ParserOptions::default() });
        let mut stream = self.engine.submit(job)?;
        let mut answer = Answer { prompt_tokens, ..Answer::default() };
        let (finish_reason, _) = follow(&mut stream, &mut |id| {
            answer.token_ids.push(id);
            let mut end = stop.load(Ordering::Relaxed).then_some("interrupted");
            for event in parser.push(id) {
                answer.take(&event);
                emit(&event)?;
                if let OutputEvent::Finished(_) = event {
                    end = Some("stop");
                }
            }
            Ok(end)
        })?;
        for event in parser.finish() {
            answer.take(&event);
            emit(&event)?;
        }
        answer.finish_reason = finish_reason;
        Ok(answer)
    }
}

/// Hands every token to `take` until the sequence ends, or until `take` names a reason to end it.
fn follow(
    stream: &mut JobStream,
    take: &mut dyn FnMut(u32) -> Result<Option<&'static str>, CommandError>,
) -> Result<(&'static str, Option<Usage>), CommandError> {
    loop {
        match stream.events.blocking_recv() {
            Some(TokenEvent::Token { id, .. }) => {
                if let Some(reason) = take(id)? {
                    return Ok((reason, None));
                }
            }
            Some(TokenEvent::Finished { reason, usage }) => return Ok((reason_name(reason), Some(usage))),
            Some(TokenEvent::Failed { error }) => return Err(error.into()),
            None => return Err(CommandError::Usage("the engine ended without an answer".into())),
        }
    }
}

const fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
