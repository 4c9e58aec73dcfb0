//! Chat templates: Jinja text that came with a model file, which may be hostile.
//!
//! Rendered as Hugging Face does it (`trim_blocks`, `lstrip_blocks`, Python's string methods and JSON), within limits:
//! the template's length, its nesting, the steps and the time it takes and what it writes. Not limited is the memory of
//! intermediate values: a template that doubles a string forty times exhausts it. Templates can reach neither files nor
//! other templates nor anything of the program but the variables they are given.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as TemplateValue};
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value};

use super::python_json::tojson;
use super::{ChatError, Date};

/// The longest template accepted; the longest published ones have 20 KB.
pub const MAX_TEMPLATE_BYTES: usize = 256 * 1024;
/// Steps of one rendering; a conversation of a thousand messages takes some hundred thousand.
const FUEL: u64 = 5_000_000;
/// Time of one rendering. Steps are not all equal: a single comparison of two values can take forever.
const MAX_SECONDS: u64 = 5;
/// The longest prompt text: more than any accepted request can hold.
const MAX_OUTPUT_BYTES: usize = 128 * 1024 * 1024;
/// Nesting of macro calls; they use the stack.
const MAX_RECURSION: usize = 100;
/// Expressions and values nest as deeply as a template likes and are walked and dropped recursively. The memory is only
/// reserved, not used.
const STACK_BYTES: usize = 1 << 30;

const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    knows_developer: bool,
    /// A rendering exceeded its time. Its thread cannot be ended, so there must not be more of them.
    stuck: AtomicBool,
}

impl ChatTemplate {
    /// Compiles `source`.
    ///
    /// # Errors
    /// It is too long or not a template.
    pub fn parse(source: &str) -> Result<Self, ChatError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(ChatError::TemplateTooLong { got: source.len(), limit: MAX_TEMPLATE_BYTES });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| describe(&error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        let source = without_generation_tags(source).into_owned();
        let knows_developer = source.contains("developer");
        let added =
            on_large_stack(|| environment.add_template_owned(NAME, source).map_err(|error| describe(&error)));
        added?;
        Ok(Self { environment: Arc::new(environment), knows_developer, stuck: AtomicBool::new(false) })
    }

    /// Whether the template has a place for messages of the role `developer`.
    pub(super) fn knows_developer(&self) -> bool {
        self.knows_developer
    }

    /// Renders with the given variables; `date` is what `strftime_now` formats.
    ///
    /// # Errors
    /// The template refuses, fails or exceeds a limit.
    pub fn render(&self, variables: &Map<String, Value>, date: Date) -> Result<String, ChatError> {
        let out_of_time = || ChatError::TemplateLimit { limit: MAX_SECONDS, unit: "seconds" };
        if self.stuck.load(Ordering::Relaxed) {
            return Err(out_of_time());
        }
        let variables = TemplateValue::from(Serde(variables));
        let environment = Arc::clone(&self.environment);
        let (sender, receiver) = sync_channel(1);
        let rendering = large_stack().spawn(move || {
            // The receiver is gone if this took too long.
            let _ = sender.send(render_here(&environment, variables, date));
        });
        rendering.map_err(|error| engine_problem(&error.to_string()))?;
        receiver.recv_timeout(Duration::from_secs(MAX_SECONDS)).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => {
                self.stuck.store(true, Ordering::Relaxed);
                Err(out_of_time())
            }
            RecvTimeoutError::Disconnected => Err(engine_problem(PANICKED)),
        })
    }
}

fn render_here(
    environment: &Environment<'static>,
    variables: TemplateValue,
    date: Date,
) -> Result<String, ChatError> {
    let strftime_now = TemplateValue::from_function(move |form: &str| date.format(form));
    let variables = minijinja::context! { strftime_now, ..variables };
    let mut output = Output(Vec::new());
    let template = environment.get_template(NAME).map_err(|error| describe(&error))?;
    template.render_captured_to(variables, &mut output).map_err(|error| describe(&error))?;
    Ok(String::from_utf8_lossy(&output.0).into_owned())
}

const PANICKED: &str = "the template engine panicked";

fn engine_problem(problem: &str) -> ChatError {
    ChatError::Template { line: 0, problem: problem.to_owned() }
}

/// A thread with a stack that no nesting within the limits can exceed.
fn large_stack() -> thread::Builder {
    thread::Builder::new().name(NAME.to_owned()).stack_size(STACK_BYTES)
}

/// Runs `work` on a large stack.
fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, ChatError> + Send) -> Result<T, ChatError> {
    thread::scope(|scope| {
        let running = large_stack().spawn_scoped(scope, work);
        let running = running.map_err(|error| engine_problem(&error.to_string()))?;
        running.join().unwrap_or_else(|_| Err(engine_problem(PANICKED)))
    })
}

/// The rendered text; refuses to grow without end.
struct Output(Vec<u8>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template said with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<TemplateValue, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

fn describe(error: &Error) -> ChatError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return ChatError::Refused(message.clone());
        }
        match current.downcast_ref::<Error>().map(Error::kind) {
            Some(ErrorKind::OutOfFuel) => return ChatError::TemplateLimit { limit: FUEL, unit: "steps" },
            Some(ErrorKind::WriteFailure) => {
                return ChatError::TemplateLimit { limit: MAX_OUTPUT_BYTES as u64, unit: "bytes of output" };
            }
            _ => {}
        }
        cause = current.source();
    }
    ChatError::Template {
        line: error.line().unwrap_or(0),
        problem: error
            .detail()
            .map_or_else(|| error.kind().to_string(), |d| format!("{}: {d}", error.kind())),
    }
}

/// `source` without `{% generation %}` and `{% endgeneration %}`, which mark the assistant's words for training and
/// mean nothing here.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        if word == "generation" || word == "endgeneration" {
            // A comment keeps the tag's whitespace control.
            out.push_str(&tag.replacen("{%", "{#", 1).replacen("%}", "#}", 1));
        } else {
            out.push_str(tag);
        }
        rest = after;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The string constants in a template's expressions and statements.
pub(super) fn constants(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        rest = rest.get(start + 1..).unwrap_or_default();
        let (close, body) = match rest.as_bytes().first() {
            Some(b'{') => ("}}", rest.get(1..)),
            Some(b'%') => ("%}", rest.get(1..)),
            Some(b'#') => {
                rest = rest.find("#}").and_then(|end| rest.get(end..)).unwrap_or_default();
                continue;
            }
            _ => continue,
        };
        rest = collect_constants(body.unwrap_or_default(), close, &mut found);
    }
    found.sort();
    found.dedup();
    found
}

/// Collects the constants of one tag and returns what follows it.
fn collect_constants<'s>(body: &'s str, close: &str, found: &mut Vec<String>) -> &'s str {
    let mut rest = body;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix(close) {
            return after;
        }
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
        if c != '\'' && c != '"' {
            continue;
        }
        let mut constant = String::new();
        let mut chars = rest.chars();
        while let Some(inner) = chars.next().filter(|&inner| inner != c) {
            let escaped = if inner == '\\' { chars.next() } else { None };
            constant.push(match escaped {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(other) => other,
                None => inner,
            });
        }
        rest = chars.as_str();
        if constant.len() > 1 {
            found.push(constant);
        }
    }
    rest
}

#[cfg(test)]
mod tests;
