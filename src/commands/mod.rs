//! The subcommands, one file each.

pub mod args;
pub mod bench;
pub mod chat;
pub mod compare;
pub mod completions;
pub mod demo;
pub mod devices;
pub mod forge;
pub mod generate;
pub mod health;
pub mod inspect;
pub mod kernels;
pub mod logits;
pub mod perplexity;
pub mod plan;
mod progress;
pub mod pull;
pub mod serve;
pub mod session;
pub mod tokenize;

use std::ffi::OsString;
use std::io::{self, BufReader};

use clap::{CommandFactory, Parser, Subcommand};

use worker_orcd_core::BackendError;

use crate::config::WorkerConfig;
use crate::config::file::{ConfigFileError, layered};
use crate::engine::{EngineError, StartError};
use crate::gguf::GgufError;
use crate::model::ModelError;
use crate::text::LoadTokenizerError;
use crate::text::chat::ChatError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Flags that do not go together.
    #[error("{0}")]
    Usage(String),
    /// The configuration file.
    #[error(transparent)]
    ConfigFile(#[from] ConfigFileError),
    /// The system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] LoadTokenizerError),
    /// The chat template, or a conversation that it refuses.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The download.
    #[error(transparent)]
    Pull(#[from] pull::PullError),
    /// A worker that does not serve.
    #[error("{url}: {reason}")]
    Unhealthy {
        /// Where it was asked.
        url: String,
        /// What it says, or why it says nothing.
        reason: String,
    },
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The engine's settings or start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A sequence failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The device has too little memory for the model and the settings.
    #[error(transparent)]
    NoRoom(Box<NoRoom>),
    /// The device failed while it served; what it computes is not to be trusted any more.
    #[error("the device failed: {0}")]
    DeviceFailed(String),
    /// Two backends part.
    #[error("backends differ first at {label}: NMSE {nmse:.3e}{margin}")]
    Differs {
        /// The first value that is out of tolerance.
        label: String,
        /// By how much.
        nmse: f64,
        /// The router's margin, when experts differ.
        margin: String,
    },
}

/// What lies below an error of an HTTP client, which by itself says little.
fn causes(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What was needed, what there is, and for what.
#[derive(Debug, thiserror::Error)]
#[error(
    "{model} does not fit on device {device}: {required_bytes} bytes needed, {available_bytes} available\n{table}"
)]
pub struct NoRoom {
    /// The file.
    pub model: String,
    /// Index of the device.
    pub device: usize,
    /// Free bytes.
    pub available_bytes: u64,
    /// Planned bytes.
    pub required_bytes: u64,
    /// Planned bytes by purpose.
    pub table: String,
}

impl CommandError {
    /// 2 for a command line that cannot be meant, 3 for a device that failed while it served, 1 for everything else.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::ConfigFile(_) => 2,
            Self::DeviceFailed(_) => 3,
            _ => 1,
        }
    }
}

/// Serves one GGUF model on one GPU over HTTP. Without a subcommand: serve.
#[derive(Debug, Parser)]
#[command(name = "worker-orcd", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load a model and answer HTTP
    Serve(Box<WorkerConfig>),
    /// Write a haiku with the bundled model on the best backend present
    Demo(demo::DemoArgs),
    /// Generate text from one prompt
    Generate(Box<generate::GenerateArgs>),
    /// Talk with a model
    Chat(Box<chat::ChatArgs>),
    /// Print the last position's logits of a prompt
    Logits(Box<logits::LogitsArgs>),
    /// Turn JSON lines of text into JSON lines of token ids
    Tokenize(tokenize::TokenizeArgs),
    /// Show what is in a GGUF file
    Inspect(inspect::InspectArgs),
    /// Show the device memory a model will need
    Plan(plan::PlanArgs),
    /// List the devices of every backend
    Devices(devices::DevicesArgs),
    /// Measure perplexity on a text
    Perplexity(perplexity::PerplexityArgs),
    /// Compare two backends value by value
    Compare(compare::CompareArgs),
    /// Write a model file with published shapes and random weights
    Forge(forge::ForgeArgs),
    /// Compile the CUDA kernels ahead of the first start
    Kernels(kernels::KernelsArgs),
    /// Measure speed
    Bench(bench::BenchArgs),
    /// Download a model from a hub into the cache, and print its path
    Pull(pull::PullArgs),
    /// Ask a worker whether it serves; the exit code says it
    Health(health::HealthArgs),
    /// Write a shell's completion script
    Completions(completions::CompletionsArgs),
    /// Write the manual
    Man(completions::ManArgs),
}

impl Cli {
    /// Parses a command line. One that begins with a flag of the server serves. Help, and what cannot be parsed, end the
    /// process.
    ///
    /// # Errors
    /// The configuration file that the line names.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, CommandError> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        let first = args.get(1).and_then(|first| first.to_str()).unwrap_or_default();
        let of_the_command_itself = ["-h", "--help", "-V", "--version"].contains(&first);
        if first.starts_with('-') && !of_the_command_itself {
            args.insert(1, "serve".into());
        }
        Ok(Self::parse_from(layered(&Self::command(), args)?))
    }

    /// Runs the chosen command.
    ///
    /// # Errors
    /// Whatever the command says.
    pub fn run(self) -> Result<(), CommandError> {
        let mut out = io::stdout().lock();
        match self.command {
            Command::Serve(config) => serve::run(&config),
            Command::Demo(args) => demo::run(&args, &mut out, &mut io::stderr()),
            Command::Generate(args) => generate::run(&args, &mut out),
            Command::Chat(args) => chat::run(&args, &mut out, &mut io::stderr()),
            Command::Logits(args) => logits::run(&args, &mut out),
            Command::Tokenize(args) => {
                tokenize::run(&args, &mut BufReader::new(io::stdin().lock()), &mut out)
            }
            Command::Inspect(args) => inspect::run(&args, &mut out),
            Command::Plan(args) => plan::run(&args, &mut out),
            Command::Devices(args) => devices::run(&args, &mut out),
            Command::Perplexity(args) => perplexity::run(&args, &mut out),
            Command::Compare(args) => compare::run(&args, &mut out),
            Command::Forge(args) => forge::run(&args, &mut out),
            Command::Kernels(args) => kernels::run(&args, &mut out),
            Command::Bench(args) => bench::run(&args, &mut out),
            Command::Pull(args) => pull::run(&args, &mut out),
            Command::Health(args) => health::run(&args, &mut out),
            Command::Completions(args) => completions::completions(&args, &mut out),
            Command::Man(args) => completions::man(&args, &mut out),
        }
    }
}
