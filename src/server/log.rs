//! Log lines: JSON objects or text on stderr, each with the worker's name and, where it belongs to a request, the id of
//! its trace; never with a prompt or an output.

use std::fmt;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::trace::RequestTrace;
use crate::config::LogFormat;

/// The log as configured; what is installed for the process, or for one thread in a test.
pub fn subscriber<W>(
    format: LogFormat,
    worker_id: &str,
    filter: EnvFilter,
    writer: W,
) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = Lines { format, worker_id: worker_id.to_owned() };
    tracing_subscriber::fmt().with_env_filter(filter).event_format(lines).with_writer(writer).finish()
}

/// Sends the process's log to stderr. The first call counts.
pub fn install(format: LogFormat, worker_id: &str, filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::default());
    // A second call means that a log is installed already, which is all that is wanted.
    let _ = tracing::subscriber::set_global_default(subscriber(format, worker_id, filter, std::io::stderr));
}

/// What a log may say of a text, which may come in pieces.
#[derive(Clone, Debug, Default)]
pub struct TextPrint {
    hash: Sha256,
    chars: usize,
}

impl TextPrint {
    /// Of this text.
    pub fn of(text: &str) -> Self {
        let mut print = Self::default();
        print.push(text);
        print
    }

    /// Takes the next piece.
    pub fn push(&mut self, text: &str) {
        self.hash.update(text.as_bytes());
        self.chars += text.chars().count();
    }

    /// The first 16 hex digits of the text's SHA-256.
    pub fn sha256(&self) -> String {
        let digest = self.hash.clone().finalize();
        digest.iter().take(8).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
    }

    /// Unicode scalar values.
    pub const fn chars(&self) -> usize {
        self.chars
    }
}

/// Now, as RFC 3339 in UTC.
pub fn timestamp() -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

struct Lines {
    format: LogFormat,
    worker_id: String,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let meta = event.metadata();
        let level = meta.level().as_str();
        let mut fields = Collected::default();
        event.record(&mut fields);
        match self.format {
            LogFormat::Json => {
                write!(out, "{{\"timestamp\":\"{}\",\"level\":\"{level}\"", timestamp())?;
                write!(out, ",\"worker_id\":{},\"target\":\"{}\"", json(&self.worker_id), meta.target())?;
                if let Some(id) = RequestTrace::current_id() {
                    write!(out, ",\"trace_id\":\"{id:032x}\"")?;
                }
                for (name, value) in &fields.0 {
                    write!(out, ",{}:{value}", json(name))?;
                }
                writeln!(out, "}}")
            }
            LogFormat::Text => {
                write!(out, "{} {level:>5}", timestamp())?;
                for (name, value) in &fields.0 {
                    match (*name, value) {
                        ("event" | "message", Value::String(text)) => write!(out, " {}", one_line(text))?,
                        _ => write!(out, " {name}={value}")?,
                    }
                }
                if let Some(id) = RequestTrace::current_id() {
                    write!(out, " trace_id={id:032x}")?;
                }
                writeln!(out, " worker_id={}", self.worker_id)
            }
        }
    }
}

fn json(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// A line stays one line, whatever was put into it.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An event's fields, in the order in which they were written down.
#[derive(Default)]
struct Collected(Vec<(&'static str, Value)>);

impl Visit for Collected {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.push((field.name(), Value::from(value)));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.push((field.name(), Value::from(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), Value::from(value)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push((field.name(), Value::from(value)));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), Value::from(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), Value::from(format!("{value:?}"))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(format, "w-1", EnvFilter::new("info"), move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(event = "ready", job_id = %"a\"\n", count = 3_u64, share = 0.5, "said");
            tracing::debug!("below the filter");
        });
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_json_line_is_one_object() {
        let line: Value = serde_json::from_str(&logged(LogFormat::Json)).unwrap();
        assert_eq!(line["worker_id"], "w-1");
        assert_eq!(line["event"], "ready");
        assert_eq!(line["job_id"], "a\"\n");
        assert_eq!(line["count"], 3);
        assert_eq!(line["share"], 0.5);
        assert_eq!(line["message"], "said");
        assert_eq!(line["level"], "INFO");
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_text_line_is_one_line() {
        let text = logged(LogFormat::Text);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("INFO said ready") || text.contains("INFO ready"), "{text}");
        assert!(text.contains("worker_id=w-1") && text.contains("job_id=\"a\\\"\\n\""), "{text}");
    }

    #[test]
    fn a_text_s_print_does_not_hold_it() {
        let mut print = TextPrint::of("a");
        print.push("bc");
        assert_eq!((print.sha256().as_str(), print.chars()), ("ba7816bf8f01cfea", 3));
    }
}
