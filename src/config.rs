//! What the operator asks of a worker: the flags of the server, their environment variables and their bounds.
//!
//! Flags only carry types; every bound is checked by [`WorkerConfig::validate`], so that values from any source meet
//! the same rules.

pub mod file;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::random;

/// Counts of tokens that a flag may have.
const TOKENS: RangeInclusive<u64> = 1..=1 << 24;

/// Where the model runs. There is no fallback from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// An NVIDIA GPU.
    Cuda,
    /// Any Vulkan, Metal or DX12 adapter.
    Wgpu,
    /// The scalar interpreter on the CPU: correct and slow.
    Reference,
}

impl BackendChoice {
    /// The name on the command line and in `/health`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
            Self::Reference => "reference",
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Which model, served how.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// GGUF file, or the first file of a split model
    #[arg(long, env = "WORKER_ORCD_MODEL", value_name = "FILE")]
    pub model: PathBuf,
    /// Hugging Face tokenizer.json; the one beside the model, else the model's own vocabulary, when omitted
    #[arg(long, env = "WORKER_ORCD_TOKENIZER", value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Most positions of one sequence; the model's own limit, at most 16384, when omitted
    #[arg(long, env = "WORKER_ORCD_CONTEXT", value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Jinja chat template to use in place of the model's own
    #[arg(long, env = "WORKER_ORCD_CHAT_TEMPLATE", value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Bytes copied to the device at a time while loading
    #[arg(long, env = "WORKER_ORCD_CHUNK_BYTES", value_name = "BYTES", default_value_t = 1 << 20)]
    pub chunk_bytes: usize,
    /// Round the ends of YaRN's ramp as llama.cpp does
    #[arg(long, env = "WORKER_ORCD_YARN_TRUNCATE")]
    pub yarn_truncate: bool,
    /// Ignore Phi-3's sliding window as llama.cpp does
    #[arg(long, env = "WORKER_ORCD_IGNORE_PHI3_WINDOW")]
    pub ignore_phi3_window: bool,
    /// Run a file that has tensors its architecture has no use for
    #[arg(long, env = "WORKER_ORCD_ALLOW_UNKNOWN_TENSORS")]
    pub allow_unknown_tensors: bool,
}

/// Flags of the server; each is also an environment variable and a key of the configuration file. A flag wins over its
/// variable, and that over the file.
#[derive(Args, Clone, Debug)]
pub struct WorkerConfig {
    /// TOML file whose keys are the names of these flags
    #[arg(long, env = "WORKER_ORCD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of this worker in logs and in /health; a random UUID when omitted
    #[arg(long, env = "WORKER_ORCD_WORKER_ID", default_value_t = random::uuid(), hide_default_value = true)]
    pub worker_id: String,
    /// Which model, and how it is read.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Index of the GPU
    #[arg(long, env = "WORKER_ORCD_GPU_DEVICE", default_value_t = 0)]
    pub gpu_device: usize,
    /// Port to listen on, 1024-65535
    #[arg(long, env = "WORKER_ORCD_PORT", default_value_t = 8080)]
    pub port: u16,
    /// Address to listen on
    #[arg(long, env = "WORKER_ORCD_HOST", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Where the model runs; a worker never falls back to another backend by itself
    #[arg(long, env = "WORKER_ORCD_BACKEND", value_enum, default_value_t = BackendChoice::Cuda)]
    pub backend: BackendChoice,
    /// Most prompt tokens of one request; the context's length when omitted
    #[arg(long, env = "WORKER_ORCD_MAX_TOKENS_IN", value_name = "TOKENS")]
    pub max_tokens_in: Option<usize>,
    /// Most tokens one request may generate
    #[arg(long, env = "WORKER_ORCD_MAX_TOKENS_OUT", value_name = "TOKENS", default_value_t = 2048)]
    pub max_tokens_out: usize,
    /// Seconds after which a request is given up
    #[arg(long, env = "WORKER_ORCD_INFERENCE_TIMEOUT_SEC", value_name = "SECONDS", default_value_t = 300)]
    pub inference_timeout_sec: u64,
    /// Memory of the key/value cache in MiB; room for one full context, at least 8192 positions, when
    /// omitted
    #[arg(long, env = "WORKER_ORCD_KV_CACHE_MB", value_name = "MIB")]
    pub kv_cache_mb: Option<usize>,
    /// Most sequences that run at once
    #[arg(long, env = "WORKER_ORCD_MAX_BATCH", value_name = "SEQUENCES", default_value_t = 16)]
    pub max_batch: usize,
    /// Most prompt tokens per step; running sequences go first
    #[arg(long, env = "WORKER_ORCD_PREFILL_CHUNK", value_name = "TOKENS", default_value_t = 512)]
    pub prefill_chunk: usize,
    /// Most requests that wait; one more is answered 429
    #[arg(long, env = "WORKER_ORCD_MAX_QUEUE", value_name = "REQUESTS", default_value_t = 64)]
    pub max_queue: usize,
    /// Seconds that running requests get to finish after a shutdown was asked for
    #[arg(long, env = "WORKER_ORCD_DRAIN_TIMEOUT_SEC", value_name = "SECONDS", default_value_t = 4)]
    pub drain_timeout_sec: u64,
    /// Names the model answers to in /v1, the first being the one it says; the model's own name when omitted
    #[arg(long, env = "WORKER_ORCD_SERVED_MODEL_NAME", value_name = "NAME", value_delimiter = ',')]
    pub served_model_name: Vec<String>,
    /// File of keys, one a line, of which every request must bring one; /health, /ready and /live stay open
    #[arg(long, env = "WORKER_ORCD_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Origins of web pages that may send requests, `*` for any; none when omitted
    #[arg(long, env = "WORKER_ORCD_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origin: Vec<String>,
    /// Address that is told once, by a POST, that the worker serves: with its id, URL and memory
    #[arg(long, env = "WORKER_ORCD_CALLBACK_URL", value_name = "URL")]
    pub callback_url: Option<String>,
    /// PEM file of the certificate to answer HTTPS with, its chain after it; needs --ssl-keyfile
    #[arg(long, env = "WORKER_ORCD_SSL_CERTFILE", value_name = "FILE")]
    pub ssl_certfile: Option<PathBuf>,
    /// PEM file of the certificate's private key
    #[arg(long, env = "WORKER_ORCD_SSL_KEYFILE", value_name = "FILE")]
    pub ssl_keyfile: Option<PathBuf>,
    /// Base address of an OTLP/HTTP collector that gets a span of every request; as OTEL_EXPORTER_OTLP_ENDPOINT says, else
    /// none, when omitted
    #[arg(long, env = "WORKER_ORCD_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// How log lines on stderr look
    #[arg(long, env = "WORKER_ORCD_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// Which log lines are written: off, error, warn, info, debug, trace, or `target=level,…`
    #[arg(long, env = "WORKER_ORCD_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub log_level: String,
}

/// A flag outside its bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag}: expected {expected}, got {got}")]
pub struct ConfigError {
    /// The flag's name with its dashes.
    pub flag: &'static str,
    /// The rule.
    pub expected: String,
    /// The value.
    pub got: String,
}

impl WorkerConfig {
    /// Checks every bound; the first flag that breaks one is named.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the flag, the rule and the value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let id = &self.worker_id;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
        rule("--worker-id", id, "1 to 128 letters, digits, '-', '_', '.' or ':'", |id| {
            (1..=128).contains(&id.len()) && id.bytes().all(allowed)
        })?;
        rule("--model", &self.model.model.to_string_lossy(), "a path", |path| !path.is_empty())?;
        rule("--log-level", &self.log_level, "a level or target=level,…", |filter| {
            EnvFilter::try_new(filter).is_ok()
        })?;
        for name in &self.served_model_name {
            rule("--served-model-name", name, "1 to 256 characters", |name| {
                (1..=256).contains(&name.chars().count())
            })?;
        }
        for origin in &self.cors_origin {
            rule("--cors-origin", origin, "'*' or scheme://host[:port]", |origin| {
                origin == "*" || (origin.contains("://") && !origin.ends_with('/'))
            })?;
        }
        if let Some(url) = &self.callback_url {
            rule("--callback-url", url, "http://… or https://…", is_http)?;
        }
        if let Some(url) = &self.otlp_endpoint {
            rule("--otlp-endpoint", url, "http://host:port or https://host:port", is_http)?;
        }
        let alone = match (&self.ssl_certfile, &self.ssl_keyfile) {
            (Some(_), None) => Some(("--ssl-keyfile", "the key of --ssl-certfile")),
            (None, Some(_)) => Some(("--ssl-certfile", "the certificate of --ssl-keyfile")),
            _ => None,
        };
        if let Some((flag, expected)) = alone {
            return Err(ConfigError { flag, expected: expected.into(), got: "nothing".into() });
        }
        let bounds: [(&'static str, Option<u64>, RangeInclusive<u64>); 11] = [
            ("--port", Some(u64::from(self.port)), 1024..=65_535),
            ("--max-tokens-in", self.max_tokens_in.map(|tokens| tokens as u64), TOKENS),
            ("--max-tokens-out", Some(self.max_tokens_out as u64), TOKENS),
            ("--context", self.model.context.map(|tokens| tokens as u64), 2..=1 << 24),
            ("--inference-timeout-sec", Some(self.inference_timeout_sec), 1..=86_400),
            ("--kv-cache-mb", self.kv_cache_mb.map(|mib| mib as u64), 1..=1 << 24),
            ("--max-batch", Some(self.max_batch as u64), 1..=1024),
            ("--prefill-chunk", Some(self.prefill_chunk as u64), 1..=65_536),
            ("--max-queue", Some(self.max_queue as u64), 1..=65_536),
            ("--chunk-bytes", Some(self.model.chunk_bytes as u64), 4096..=1 << 30),
            ("--drain-timeout-sec", Some(self.drain_timeout_sec), 0..=3600),
        ];
        for (flag, value, range) in bounds {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                let expected = format!("{} to {}", range.start(), range.end());
                return Err(ConfigError { flag, expected, got: value.to_string() });
            }
        }
        Ok(())
    }

    /// Longest life of a request.
    pub const fn inference_timeout(&self) -> Duration {
        Duration::from_secs(self.inference_timeout_sec)
    }

    /// Time that running requests get after a shutdown was asked for.
    pub const fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_sec)
    }
}

fn is_http(url: &str) -> bool {
    let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    host.is_some_and(|host| !host.is_empty() && !host.starts_with('/'))
}

fn rule(
    flag: &'static str,
    value: &str,
    expected: &str,
    holds: impl Fn(&str) -> bool,
) -> Result<(), ConfigError> {
    if holds(value) {
        return Ok(());
    }
    Err(ConfigError { flag, expected: expected.to_owned(), got: value.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        config: WorkerConfig,
    }

    fn parse(flags: &[&str]) -> Result<WorkerConfig, clap::Error> {
        let line = ["worker-orcd", "--model", "m.gguf"].iter().chain(flags);
        Line::try_parse_from(line).map(|line| line.config)
    }

    #[test]
    fn defaults_are_valid() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.backend, BackendChoice::Cuda);
        assert_eq!(config.max_tokens_out, 2048);
        assert_eq!(config.inference_timeout_sec, 300);
        assert_eq!(config.max_batch, 16);
        assert_eq!(config.drain_timeout_sec, 4);
        assert_eq!(config.host.to_string(), "127.0.0.1");
        assert_eq!(config.worker_id.len(), 36, "a UUID is generated");
    }

    #[test]
    fn bounds_hold_on_both_sides() {
        for (flag, good, bad) in [
            ("--port", &["1024", "65535"][..], &["0", "1023"][..]),
            ("--max-tokens-in", &["1"], &["0", "16777217"]),
            ("--max-tokens-out", &["1"], &["0", "16777217"]),
            ("--inference-timeout-sec", &["1", "86400"], &["0", "86401"]),
            ("--kv-cache-mb", &["1"], &["0"]),
            ("--context", &["2"], &["1", "16777217"]),
            ("--max-batch", &["1", "1024"], &["0", "1025"]),
            ("--prefill-chunk", &["1", "65536"], &["0", "65537"]),
            ("--prefill-chunk", &["1", "65536"], &["0", "65537"]),
            ("--max-queue", &["1", "65536"], &["0", "65537"]),
            ("--chunk-bytes", &["4096", "1073741824"], &["4095", "1073741825"]),
            ("--drain-timeout-sec", &["0", "3600"], &["3601"]),
            ("--log-level", &["debug", "worker_orcd=trace,warn"], &["a=b=c"]),
            ("--served-model-name", &["m", "org/m"], &[""]),
            ("--cors-origin", &["*", "http://localhost:3000"], &["localhost", "http://x/"]),
            ("--callback-url", &["http://h:1/x", "https://h"], &["h:1", "ftp://h", "http:///x"]),
            ("--otlp-endpoint", &["http://c:4318", "https://c"], &["c:4318", "grpc://c", "http:///"]),
            ("--worker-id", &["w", "0190-a.b:c_d"], &["", "two words", "é"]),
        ] {
            for value in good {
                assert_eq!(parse(&[flag, value]).unwrap().validate(), Ok(()), "{flag} {value}");
            }
            for value in bad {
                let error = parse(&[flag, value]).unwrap().validate().unwrap_err();
                assert_eq!((error.flag, error.got.as_str()), (flag, *value), "{error}");
            }
        }
    }

    #[test]
    fn a_certificate_and_its_key_come_together() {
        for (given, missing) in [("--ssl-certfile", "--ssl-keyfile"), ("--ssl-keyfile", "--ssl-certfile")] {
            let error = parse(&[given, "a.pem"]).unwrap().validate().unwrap_err();
            assert_eq!(error.flag, missing, "{error}");
        }
        let both = ["--ssl-certfile", "a.pem", "--ssl-keyfile", "b.pem"];
        assert_eq!(parse(&both).unwrap().validate(), Ok(()));
    }

    #[test]
    fn types_are_checked_by_the_parser() {
        for flags in
            [["--port", "65536"], ["--backend", "cpu"], ["--host", "nowhere"], ["--gpu-device", "-1"]]
        {
            assert!(parse(&flags).is_err(), "{flags:?}");
        }
        assert!(Line::try_parse_from(["worker-orcd"]).is_err(), "the model is required");
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        use clap::CommandFactory;
        for flag in
            Line::command().get_arguments().filter(|flag| flag.get_long().is_some_and(|l| l != "help"))
        {
            let expected = format!("WORKER_ORCD_{}", flag.get_id().as_str().to_uppercase());
            assert_eq!(flag.get_env().and_then(|name| name.to_str()), Some(expected.as_str()));
        }
    }
}
