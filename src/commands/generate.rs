//! `generate`: one prompt in, text out.

use std::io::Write;
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde_json::json;

use super::CommandError;
use super::args::{DeviceArgs, ModelArgs, PromptArgs};
use super::session::{SamplingArgs, Session};
use crate::text::chat::{Conversation, Message, OutputEvent, RenderOptions, Role};

/// Flags of `generate`.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// The prompt is a message: apply the model's chat template, and print the answer without its reasoning
    #[arg(long, env = "WORKER_ORCD_CHAT", requires = "prompt")]
    chat: bool,
    /// System message before the prompt
    #[arg(long, env = "WORKER_ORCD_SYSTEM", value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Print one JSON object on stdout
    #[arg(long, env = "WORKER_ORCD_JSON")]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// The model, the device, or the engine.
pub fn run(args: &GenerateArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    args.sampling.sampling()?;
    let session = Session::open(&args.model, &args.device)?;
    if args.chat {
        return answer(args, &session, out);
    }
    let prompt = args.prompt.ids(&args.model, &session.open)?;
    let generated = session.generate(prompt.clone(), &args.sampling, &mut |piece| {
        if !args.json {
            out.write_all(piece.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    })?;
    if args.json {
        let line = json!({
            "prompt_token_ids": prompt,
            "token_ids": generated.token_ids,
            "text": generated.text,
            "finish_reason": generated.finish_reason,
        });
        writeln!(out, "{line}")?;
    } else if session.tokenizer.is_none() {
        writeln!(out, "{:?}", generated.token_ids)?;
    } else {
        writeln!(out)?;
    }
    Ok(())
}

/// Answers the prompt as the one message of a conversation.
fn answer(args: &GenerateArgs, session: &Session, out: &mut dyn Write) -> Result<(), CommandError> {
    let format = session.chat_format(args.model.chat_template.as_deref())?;
    let text = args.prompt.prompt.clone().unwrap_or_default();
    let system = args.system.clone().map(|system| Message::text(Role::System, system));
    let messages = system.into_iter().chain([Message::text(Role::User, text)]).collect();
    let prompt = format.render(&Conversation { messages }, &RenderOptions::default())?;
    let never = AtomicBool::new(false);
    let answer = session.answer(&format, prompt.clone(), &args.sampling, &never, &mut |event| {
        if let (OutputEvent::ContentDelta(text), false) = (event, args.json) {
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    })?;
    if args.json {
        let line = json!({
            "prompt_token_ids": prompt,
            "token_ids": answer.token_ids,
            "text": answer.content,
            "reasoning": answer.reasoning,
            "finish_reason": answer.finish_reason,
        });
        writeln!(out, "{line}")?;
    } else {
        writeln!(out)?;
    }
    Ok(())
}
