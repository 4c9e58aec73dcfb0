//! `chat`: a conversation with a model, on a terminal or from a pipe.
//!
//! Each line is a message; one that begins with `/` is for the program. On a terminal Ctrl-C stops the answer and
//! Ctrl-D leaves.

mod lines;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use serde_json::json;

use super::CommandError;
use super::args::{DeviceArgs, ModelArgs};
use super::session::{Answer, SamplingArgs, Session};
use crate::text::chat::{Conversation, Message, OutputEvent, ReasoningEffort, RenderOptions, Role};
use lines::Lines;

const HELP: &str = "/reset          forget the conversation\n\
    /system TEXT    set the system message, and begin anew\n\
    /help           this\n\
    /exit           leave, as Ctrl-D does; Ctrl-C stops an answer";
/// Makes what follows dim, and ends that.
const DIM: [&str; 2] = ["\x1b[2m", "\x1b[0m"];

/// Flags of `chat`.
#[derive(Args, Debug)]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// System message
    #[arg(long, env = "WORKER_ORCD_SYSTEM", value_name = "TEXT")]
    system: Option<String>,
    /// How long a reasoning model thinks: low, medium or high
    #[arg(long, env = "WORKER_ORCD_REASONING_EFFORT", value_name = "EFFORT", value_parser = effort)]
    reasoning_effort: Option<ReasoningEffort>,
    /// Print one JSON object an answer on stdout
    #[arg(long, env = "WORKER_ORCD_JSON")]
    json: bool,
}

fn effort(name: &str) -> Result<ReasoningEffort, String> {
    ReasoningEffort::parse(name).ok_or_else(|| "expected low, medium or high".to_owned())
}

/// A line of the user's.
#[derive(Debug, PartialEq, Eq)]
enum Order<'a> {
    Say(&'a str),
    Reset,
    System(&'a str),
    Help,
    Exit,
    Unknown(&'a str),
    Nothing,
}

impl<'a> Order<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        let Some(order) = line.strip_prefix('/') else {
            return if line.is_empty() { Self::Nothing } else { Self::Say(line) };
        };
        let (word, rest) = order.split_once(char::is_whitespace).unwrap_or((order, ""));
        match word {
            "reset" => Self::Reset,
            "system" => Self::System(rest.trim()),
            "help" | "?" => Self::Help,
            "exit" | "quit" | "bye" => Self::Exit,
            _ => Self::Unknown(word),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// The model, the device, a conversation that the model's template refuses, or the engine.
pub fn run(args: &ChatArgs, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), CommandError> {
    args.sampling.sampling()?;
    let session = Session::open(&args.model, &args.device)?;
    let format = session.chat_format(args.model.chat_template.as_deref())?;
    let mut lines = Lines::open()?;
    let on_terminal = lines.is_terminal() && io::stdout().is_terminal();
    let stop = if lines.is_terminal() { interrupts()? } else { Arc::default() };
    if lines.is_terminal() {
        writeln!(notes, "{}; /help tells more", session.open.model.config().name)?;
    }
    let options = RenderOptions { reasoning_effort: args.reasoning_effort, ..RenderOptions::default() };
    let mut conversation = begin(args.system.as_deref());
    while let Some(line) = lines.next()? {
        match Order::parse(&line) {
            Order::Nothing => {}
            Order::Exit => break,
            Order::Help => writeln!(notes, "{HELP}")?,
            Order::Unknown(word) => writeln!(notes, "/{word} is unknown; there are:\n{HELP}")?,
            Order::Reset => {
                let kept = system_of(&conversation);
                conversation = begin(kept.as_deref());
            }
            Order::System(text) => conversation = begin(Some(text).filter(|text| !text.is_empty())),
            Order::Say(text) => {
                conversation.messages.push(Message::text(Role::User, text));
                stop.store(false, Ordering::Relaxed);
                let mut voice = Voice { out, notes, args, on_terminal, reasons: false };
                let prompt = format.render(&conversation, &options)?;
                let answer = session.answer(&format, prompt, &args.sampling, &stop, &mut |e| voice.say(e))?;
                voice.end(&answer)?;
                conversation.messages.push(Message {
                    reasoning_content: Some(answer.reasoning).filter(|text| !text.is_empty()),
                    ..Message::text(Role::Assistant, answer.content)
                });
            }
        }
    }
    Ok(())
}

fn begin(system: Option<&str>) -> Conversation {
    let system = system.map(|text| Message::text(Role::System, text));
    Conversation { messages: system.into_iter().collect() }
}

fn system_of(conversation: &Conversation) -> Option<String> {
    let first = conversation.messages.first().filter(|message| message.role == Role::System)?;
    Some(first.content_text().into_owned())
}

/// A flag that Ctrl-C raises from now on, in place of ending the process.
fn interrupts() -> Result<Arc<AtomicBool>, CommandError> {
    let raised = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&raised);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Heard from here on, before the line editor first puts its own handler in this one's place and takes it back.
    let mut heard = {
        let _entered = runtime.enter();
        interrupt_signal()?
    };
    std::thread::Builder::new().name("interrupts".into()).spawn(move || {
        runtime.block_on(async {
            while heard.recv().await.is_some() {
                flag.store(true, Ordering::Relaxed);
            }
        });
    })?;
    Ok(raised)
}

#[cfg(unix)]
fn interrupt_signal() -> io::Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
}

#[cfg(windows)]
fn interrupt_signal() -> io::Result<tokio::signal::windows::CtrlC> {
    tokio::signal::windows::ctrl_c()
}

/// Writes an answer as it comes: its text on stdout; its reasoning dim before it on a terminal, else among the notes.
struct Voice<'a> {
    out: &'a mut dyn Write,
    notes: &'a mut dyn Write,
    args: &'a ChatArgs,
    on_terminal: bool,
    reasons: bool,
}

impl Voice<'_> {
    fn say(&mut self, event: &OutputEvent) -> Result<(), CommandError> {
        if self.args.json {
            return Ok(());
        }
        match event {
            OutputEvent::ContentDelta(text) => {
                self.stop_reasoning()?;
                self.out.write_all(text.as_bytes())?;
                self.out.flush()?;
            }
            OutputEvent::ReasoningDelta(text) if self.on_terminal => {
                let begin = if std::mem::replace(&mut self.reasons, true) { "" } else { DIM[0] };
                write!(self.out, "{begin}{text}")?;
                self.out.flush()?;
            }
            OutputEvent::ReasoningDelta(text) => {
                self.reasons = true;
                self.notes.write_all(text.as_bytes())?;
            }
            _ => {}
        }
        Ok(())
    }

    fn stop_reasoning(&mut self) -> Result<(), CommandError> {
        if std::mem::take(&mut self.reasons) {
            if self.on_terminal {
                writeln!(self.out, "{}", DIM[1])?;
            } else {
                writeln!(self.notes)?;
            }
        }
        Ok(())
    }

    fn end(&mut self, answer: &Answer) -> Result<(), CommandError> {
        if self.args.json {
            let line = json!({
                "content": answer.content,
                "reasoning": answer.reasoning,
                "finish_reason": answer.finish_reason,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.token_ids.len(),
            });
            writeln!(self.out, "{line}")?;
            return Ok(self.out.flush()?);
        }
        self.stop_reasoning()?;
        writeln!(self.out)?;
        match answer.finish_reason {
            "stop" => {}
            "length" => writeln!(self.notes, "[cut at {} tokens]", answer.token_ids.len())?,
            reason => writeln!(self.notes, "[{reason}]")?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_orders() {
        for (line, order) in [
            ("  hello /reset ", Order::Say("hello /reset")),
            ("", Order::Nothing),
            ("/reset", Order::Reset),
            ("/system  be brief ", Order::System("be brief")),
            ("/system", Order::System("")),
            ("/quit", Order::Exit),
            ("/help me", Order::Help),
            ("/rest", Order::Unknown("rest")),
        ] {
            assert_eq!(Order::parse(line), order, "{line:?}");
        }
    }

    #[test]
    fn a_conversation_begins_with_its_system_message() {
        let conversation = begin(Some("Be brief."));
        assert_eq!(system_of(&conversation).as_deref(), Some("Be brief."));
        assert_eq!(system_of(&begin(None)), None);
    }
}
