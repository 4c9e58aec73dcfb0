//! `bench serve`: many streams at once against a running server, through the public API, as clients see it.
//!
//! It measures whatever speaks the chat-completions API, or with `--text` the completions API. Every stream is checked while it is timed: it counts as
//! completed only if it ended once, and rightly.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use reqwest::{Client, RequestBuilder, Response};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::commands::CommandError;

/// Time for a server to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// What ends a stream.
const DONE: &[u8] = b"[DONE]";

/// Flags of `bench serve`.
#[derive(Args, Clone, Debug)]
pub(super) struct ServeBenchArgs {
    /// Where the server listens, without `/v1`
    #[arg(long, env = "WORKER_ORCD_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Streams at a time
    #[arg(long, env = "WORKER_ORCD_CONCURRENCY", default_value_t = 8)]
    concurrency: usize,
    /// Requests in all
    #[arg(long, env = "WORKER_ORCD_REQUESTS", default_value_t = 64)]
    requests: usize,
    /// Seconds after which no request begins any more; all of them begin when omitted
    #[arg(long, env = "WORKER_ORCD_SECONDS")]
    seconds: Option<f64>,
    /// Tokens of each answer
    #[arg(long, env = "WORKER_ORCD_MAX_TOKENS", default_value_t = 128)]
    max_tokens: usize,
    /// What every request says; its number is put before it, so that no prompt is found cached
    #[arg(long, env = "WORKER_ORCD_PROMPT", default_value = "Write a long story about a lighthouse.")]
    prompt: String,
    /// Continue the prompt as text instead of answering it as a chat
    #[arg(long, env = "WORKER_ORCD_TEXT")]
    text: bool,
    /// Name of the model; the first that the server lists when omitted
    #[arg(long, env = "WORKER_ORCD_MODEL_NAME")]
    model_name: Option<String>,
    /// Key that the server asks for
    #[arg(long, env = "WORKER_ORCD_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// No server answers at all; requests that fail later are counted.
pub(super) fn run(args: &ServeBenchArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(measure(args))?;
    writeln!(out, "{report}")?;
    Ok(())
}

async fn measure(args: &ServeBenchArgs) -> Result<Json, CommandError> {
    // Another part of the process may have chosen already; either choice will do.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().connect_timeout(CONNECT_TIME).tcp_nodelay(true).build();
    let client = client.map_err(|error| fault(args, &error))?;
    let model = match &args.model_name {
        Some(name) => name.clone(),
        None => first_model(args, &client).await?,
    };
    let target = Arc::new(Target { client, args: args.clone(), model, begun: AtomicUsize::new(0) });
    let start = Instant::now();
    let streams: Vec<_> = (0..args.concurrency.max(1))
        .map(|_| tokio::spawn(one_after_another(Arc::clone(&target), start)))
        .collect();
    let mut tally = Tally::default();
    for stream in streams {
        tally.add(stream.await.map_err(std::io::Error::other)?);
    }
    Ok(tally.report(&target, start.elapsed()))
}

fn fault(args: &ServeBenchArgs, error: &reqwest::Error) -> CommandError {
    CommandError::Io(std::io::Error::other(format!("{}: {}", args.url, with_causes(error))))
}

/// An error with what lies below it, which is where its reason stands.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn first_model(args: &ServeBenchArgs, client: &Client) -> Result<String, CommandError> {
    let request = with_key(client.get(format!("{}/v1/models", args.url.trim_end_matches('/'))), args);
    let answer =
        request.send().await.and_then(Response::error_for_status).map_err(|error| fault(args, &error))?;
    let listed: Json = answer.json().await.map_err(|error| fault(args, &error))?;
    let name = listed["data"][0]["id"].as_str().map(str::to_owned);
    name.ok_or_else(|| CommandError::Usage(format!("{}: the server lists no model", args.url)))
}

fn with_key(request: RequestBuilder, args: &ServeBenchArgs) -> RequestBuilder {
    match &args.api_key {
        Some(key) => request.bearer_auth(key),
        None => request,
    }
}

/// What every stream knows.
struct Target {
    client: Client,
    args: ServeBenchArgs,
    model: String,
    begun: AtomicUsize,
}

impl Target {
    fn request(&self, number: usize) -> RequestBuilder {
        let content = format!("{number}. {}", self.args.prompt);
        let mut body = json!({
            "model": self.model, "stream": true, "stream_options": { "include_usage": true },
            "max_tokens": self.args.max_tokens, "ignore_eos": true, "seed": number,
        });
        let path = if self.args.text {
            body["prompt"] = content.into();
            "completions"
        } else {
            body["messages"] = json!([{ "role": "user", "content": content }]);
            "chat/completions"
        };
        let url = format!("{}/v1/{path}", self.args.url.trim_end_matches('/'));
        with_key(self.client.post(url).json(&body), &self.args)
    }
}

/// Sends requests, one after another, until all have begun.
async fn one_after_another(target: Arc<Target>, start: Instant) -> Tally {
    let mut tally = Tally::default();
    let limit = target.args.seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    while limit.is_none_or(|limit| start.elapsed() < limit) {
        let number = target.begun.fetch_add(1, Ordering::Relaxed);
        if number >= target.args.requests {
            break;
        }
        let began = Instant::now();
        match follow(&target, number, began, &mut tally).await {
            Ok(usage) => {
                tally.whole_us.push(microseconds(began.elapsed()));
                tally.usage.prompt_tokens += usage.prompt_tokens;
                tally.usage.completion_tokens += usage.completion_tokens;
            }
            Err(reason) => *tally.failures.entry(reason).or_default() += 1,
        }
    }
    tally
}

/// Reads one stream to its end.
async fn follow(target: &Target, number: usize, began: Instant, tally: &mut Tally) -> Result<Usage, String> {
    let mut answer = target.request(number).send().await.map_err(|error| with_causes(&error))?;
    if !answer.status().is_success() {
        return Err(format!("status {}", answer.status().as_u16()));
    }
    let mut stream = Stream::default();
    let mut last = None;
    while let Some(bytes) = answer.chunk().await.map_err(|error| with_causes(&error))? {
        let now = Instant::now();
        for _ in 0..stream.take(&bytes)? {
            match last.replace(now) {
                None => tally.first_token_us.push(microseconds(now - began)),
                Some(before) => tally.gap_us.push(microseconds(now - before)),
            }
        }
    }
    stream.end()
}

fn microseconds(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    #[serde(default, deserialize_with = "says_something")]
    text: bool,
    finish_reason: Option<serde::de::IgnoredAny>,
}

/// What a piece may hold; whether there is any is all that matters.
#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default, deserialize_with = "says_something")]
    content: bool,
    #[serde(default, deserialize_with = "says_something")]
    reasoning_content: bool,
    tool_calls: Option<serde::de::IgnoredAny>,
}

fn says_something<'de, D: serde::Deserializer<'de>>(text: D) -> Result<bool, D::Error> {
    let text = Option::<std::borrow::Cow<'de, str>>::deserialize(text)?;
    Ok(text.is_some_and(|text| !text.is_empty()))
}

/// Tokens as the server counts them.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// A stream of events, cut into pieces anywhere.
#[derive(Debug, Default)]
struct Stream {
    /// The beginning of an event that is not complete.
    partial: Vec<u8>,
    finished: usize,
    done: bool,
    usage: Option<Usage>,
}

impl Stream {
    /// Takes what arrived; how many pieces of the answer were in it.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, String> {
        self.partial.extend_from_slice(bytes);
        let buffer = std::mem::take(&mut self.partial);
        let mut rest = buffer.as_slice();
        let mut pieces = 0;
        while let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n") {
            let (event, after) = rest.split_at(end);
            pieces += self.event(event)?;
            rest = after.get(2..).unwrap_or_default();
        }
        self.partial = rest.to_vec();
        Ok(pieces)
    }

    fn event(&mut self, event: &[u8]) -> Result<usize, String> {
        let Some(data) = event.strip_prefix(b"data: ") else {
            let is_comment = event.first() == Some(&b':');
            return if is_comment { Ok(0) } else { Err("an event without data".into()) };
        };
        if self.done {
            return Err("an event after the end".into());
        }
        if data == DONE {
            self.done = true;
            return Ok(0);
        }
        let chunk: Chunk =
            serde_json::from_slice(data).map_err(|error| format!("a chunk that is {error}"))?;
        if chunk.error.is_some() {
            return Err("an error in the stream".into());
        }
        self.usage = chunk.usage.or(self.usage);
        self.finished += chunk.choices.iter().filter(|choice| choice.finish_reason.is_some()).count();
        let says = |choice: &&Choice| {
            let Delta { content, reasoning_content, tool_calls } = &choice.delta;
            choice.text || *content || *reasoning_content || tool_calls.is_some()
        };
        Ok(chunk.choices.iter().filter(says).count())
    }

    /// The end of the connection.
    fn end(self) -> Result<Usage, String> {
        match (self.done, self.finished, self.partial.is_empty()) {
            (true, 1, true) => Ok(self.usage.unwrap_or_default()),
            (false, ..) => Err("a stream without its end".into()),
            (_, finished, _) => Err(format!("a stream with {finished} terminal events")),
        }
    }
}

/// What the streams have seen.
#[derive(Debug, Default)]
struct Tally {
    first_token_us: Vec<u32>,
    gap_us: Vec<u32>,
    whole_us: Vec<u32>,
    usage: Usage,
    failures: BTreeMap<String, usize>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.first_token_us.extend(other.first_token_us);
        self.gap_us.extend(other.gap_us);
        self.whole_us.extend(other.whole_us);
        self.usage.prompt_tokens += other.usage.prompt_tokens;
        self.usage.completion_tokens += other.usage.completion_tokens;
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
    }

    fn report(self, target: &Target, time: Duration) -> Json {
        let (completed, seconds) = (self.whole_us.len(), time.as_secs_f64());
        json!({
            "bench": "serve", "url": target.args.url, "model": target.model,
            "concurrency": target.args.concurrency, "max_tokens": target.args.max_tokens,
            "completed": completed, "failed": self.failures.values().sum::<usize>(), "failures": self.failures,
            "seconds": seconds, "requests_per_second": completed as f64 / seconds,
            "prompt_tokens": self.usage.prompt_tokens, "completion_tokens": self.usage.completion_tokens,
            "tokens_per_second": self.usage.completion_tokens as f64 / seconds,
            "pieces": self.gap_us.len() + self.first_token_us.len(),
            "time_to_first_token_ms": percentiles(self.first_token_us),
            "inter_token_latency_ms": percentiles(self.gap_us),
            "request_ms": percentiles(self.whole_us),
        })
    }
}

/// Of microseconds, in milliseconds.
fn percentiles(mut samples_us: Vec<u32>) -> Json {
    samples_us.sort_unstable();
    let last = samples_us.len().saturating_sub(1);
    let at =
        |share: f64| samples_us.get((last as f64 * share).round() as usize).map(|&us| f64::from(us) / 1e3);
    json!({ "p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": at(1.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(delta: &str, finish: &str) -> String {
        let choice = format!("{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}");
        format!("data: {{\"choices\":[{choice}],\"usage\":null}}\n\n")
    }

    #[test]
    fn pieces_of_text_count_like_pieces_of_a_chat() {
        let mut stream = Stream::default();
        let text = |text: &str| {
            format!("data: {{\"choices\":[{{\"index\":0,\"text\":{text},\"finish_reason\":null}}]}}\n\n")
        };
        assert_eq!(stream.take(text("\"moon\"").as_bytes()), Ok(1));
        assert_eq!(stream.take(text("\"\"").as_bytes()), Ok(0));
    }

    fn whole() -> String {
        [
            chunk("{\"role\":\"assistant\",\"content\":\"\"}", "null"),
            ": keep-alive\n\n".to_owned(),
            chunk("{\"content\":\"a\\n\"}", "null"),
            chunk("{\"reasoning_content\":\"b\"}", "null"),
            chunk("{}", "\"length\""),
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n".to_owned(),
            "data: [DONE]\n\n".to_owned(),
        ]
        .concat()
    }

    fn read(text: &str, size: usize) -> Result<(usize, Usage), String> {
        let mut stream = Stream::default();
        let mut pieces = 0;
        for bytes in text.as_bytes().chunks(size) {
            pieces += stream.take(bytes)?;
        }
        Ok((pieces, stream.end()?))
    }

    #[test]
    fn a_stream_is_read_however_it_is_cut() {
        for size in [1, 2, 7, 50, 10_000] {
            let usage = Usage { prompt_tokens: 3, completion_tokens: 2 };
            assert_eq!(read(&whole(), size), Ok((2, usage)), "{size}");
        }
    }

    #[test]
    fn a_stream_that_ends_wrongly_is_none() {
        let ending = chunk("{}", "\"length\"");
        let cases = [
            (whole().replace("data: [DONE]\n\n", ""), "a stream without its end"),
            (whole().replace(&ending, ""), "a stream with 0 terminal events"),
            (whole().replace(&ending, &ending.repeat(2)), "a stream with 2 terminal events"),
            (whole() + &chunk("{}", "null"), "an event after the end"),
            ("data: {\"error\":{\"message\":\"x\"}}\n\n".to_owned(), "an error in the stream"),
        ];
        for (text, reason) in cases {
            assert_eq!(read(&text, 64), Err(reason.to_owned()));
        }
    }

    #[test]
    fn percentiles_are_of_the_sorted_samples() {
        let samples = (1..=101).rev().map(|n| n * 1000).collect();
        assert_eq!(percentiles(samples), json!({ "p50": 51.0, "p95": 96.0, "p99": 100.0, "max": 101.0 }));
        assert_eq!(percentiles(vec![])["p50"], Json::Null);
    }
}
