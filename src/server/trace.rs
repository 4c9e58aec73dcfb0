//! Which larger operation a request belongs to: `traceparent` in and out, the trace's id in every log line of the
//! request, and what its span says once it is over.
//!
//! A span holds figures and outcomes, never what a request says or what it is answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;

use super::span_export::{Sampling, SpanSender};
use super::state::ServerState;
use crate::random;

/// Header with the trace and the caller's span, in requests; with ours, in answers.
pub const TRACEPARENT: &str = "traceparent";
/// Header with what tracing systems pass along.
const TRACESTATE: &str = "tracestate";
/// Most characters of it that are passed along.
const MAX_TRACESTATE: usize = 512;
/// The flag of a trace that is written down.
const SAMPLED: u8 = 1;
/// Paths that generate, and what that is called in traces.
const OPERATIONS: [(&str, &str); 4] = [
    ("/v1/chat/completions", "chat"),
    ("/v1/responses", "chat"),
    ("/v1/completions", "text_completion"),
    ("/execute", "text_completion"),
];

/// A place in a trace, as W3C Trace Context has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace, not 0.
    pub trace_id: u128,
    /// The span, not 0.
    pub span_id: u64,
    /// Bit 0: the trace is written down.
    pub flags: u8,
}

impl TraceParent {
    /// Reads a `traceparent` header; one that breaks a rule is as good as none.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.splitn(5, '-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let lower = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
            part.bytes().all(lower).then(|| u128::from_str_radix(part, 16).ok())?
        };
        let version = hex(2).filter(|&version| version != 0xff)?;
        let (trace_id, span_id, flags) = (hex(32)?, hex(16)?, hex(2)?);
        // Versions to come may say more behind what this one says.
        if version == 0 && parts.next().is_some() || trace_id == 0 || span_id == 0 {
            return None;
        }
        Some(Self { trace_id, span_id: u64::try_from(span_id).ok()?, flags: u8::try_from(flags).ok()? })
    }

    /// As a header.
    pub fn header(self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }

    /// Whether the trace is written down.
    pub const fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// What is known of a request when it is over; what never came up is absent.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The path, without a query.
    pub path: String,
    /// HTTP status.
    pub status: u16,
    /// The name of the model.
    pub model: Option<String>,
    /// The answer's id.
    pub id: Option<String>,
    /// Tokens of the prompt.
    pub tokens_in: Option<usize>,
    /// Most tokens it might have generated.
    pub max_tokens: Option<usize>,
    /// Tokens generated.
    pub tokens_out: Option<usize>,
    /// Submission to first token in milliseconds.
    pub ttft_ms: Option<f64>,
    /// How it ended.
    pub outcome: Option<&'static str>,
    /// The code of what went wrong.
    pub error: Option<&'static str>,
}

impl Facts {
    /// What tracing systems call this kind of request, if it generates.
    pub fn operation(&self) -> Option<&'static str> {
        OPERATIONS.iter().find(|(path, _)| *path == self.path).map(|(_, operation)| *operation)
    }
}

/// A request that is over, for whoever writes traces down.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    /// Who asked, if he said so.
    pub parent: Option<TraceParent>,
    /// The request's own place.
    pub own: TraceParent,
    /// What tracing systems pass along.
    pub trace_state: String,
    /// When it came.
    pub began: SystemTime,
    /// When the last byte of its answer was made.
    pub ended: SystemTime,
    /// All else.
    pub facts: Facts,
}

tokio::task_local! {
    static CURRENT: Arc<RequestTrace>;
}

/// A request on its way. It is over when nobody holds it any more: its route, or what streams its answer.
#[derive(Debug)]
pub struct RequestTrace {
    parent: Option<TraceParent>,
    own: TraceParent,
    trace_state: String,
    began: SystemTime,
    facts: Mutex<Facts>,
    sender: Option<SpanSender>,
}

impl RequestTrace {
    fn begin(headers: &HeaderMap, path: &str, sender: Option<SpanSender>) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let parent = text(TRACEPARENT).and_then(TraceParent::parse);
        let trace_state = text(TRACESTATE).filter(|state| parent.is_some() && state.len() <= MAX_TRACESTATE);
        let trace_id = parent.map_or_else(random::trace_id, |parent| parent.trace_id);
        let sampling = sender.as_ref().map_or(Sampling::PARENT_ONLY, |sender| sender.sampling);
        let flags = if sampling.takes(parent, trace_id) { SAMPLED } else { 0 };
        Self {
            parent,
            own: TraceParent { trace_id, span_id: random::span_id(), flags },
            trace_state: trace_state.unwrap_or_default().to_owned(),
            began: SystemTime::now(),
            facts: Mutex::new(Facts { path: path.to_owned(), ..Facts::default() }),
            sender,
        }
    }

    /// The request this task works for, if it does.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// The id of the trace that this task works for.
    pub fn current_id() -> Option<u128> {
        CURRENT.try_with(|trace| trace.own.trace_id).ok()
    }

    /// Writes log lines that belong to the request from outside its route.
    pub fn within<R>(trace: Option<&Arc<Self>>, write: impl FnOnce() -> R) -> R {
        match trace {
            Some(trace) => CURRENT.sync_scope(Arc::clone(trace), write),
            None => write(),
        }
    }

    /// Notes what has become known.
    pub fn note(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts());
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RequestTrace {
    fn drop(&mut self) {
        let Some(sender) = self.sender.take().filter(|_| self.own.is_sampled()) else { return };
        let facts = std::mem::take(&mut *self.facts());
        sender.send(FinishedSpan {
            parent: self.parent,
            own: self.own,
            trace_state: std::mem::take(&mut self.trace_state),
            began: self.began,
            ended: SystemTime::now(),
            facts,
        });
    }
}

/// Follows every request that does something; what probes and dashboards read is not worth a span.
pub async fn follow(State(state): State<Arc<ServerState>>, request: Request, next: Next) -> Response {
    if *request.method() != Method::POST {
        return next.run(request).await;
    }
    let trace = RequestTrace::begin(request.headers(), request.uri().path(), state.span_sender());
    let trace = Arc::new(trace);
    let mut response = CURRENT.scope(Arc::clone(&trace), next.run(request)).await;
    trace.note(|facts| {
        facts.status = response.status().as_u16();
        facts.model = state.model_name().map(str::to_owned);
    });
    if let Ok(place) = HeaderValue::try_from(trace.own.header()) {
        response.headers_mut().insert(TRACEPARENT, place);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_good_header_is_read_and_written_back() {
        let place = TraceParent::parse(HEADER).unwrap();
        assert_eq!(place.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((place.span_id, place.is_sampled()), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(place.header(), HEADER);
        let later = TraceParent::parse(&format!("cc{}-what-comes", &HEADER[2..])).unwrap();
        assert_eq!(later, place, "a later version is read as far as it is known");
    }

    #[test]
    fn bad_headers_are_as_good_as_none() {
        let upper = HEADER.to_uppercase();
        let more = format!("{HEADER}-x");
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_span = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16));
        let future = format!("ff{}", &HEADER[2..]);
        let signed = HEADER.replace("-00f0", "-+0f0");
        let wide = HEADER.replace("00f067aa", "é0f067a");
        for bad in ["", "00", &HEADER[..54], &upper, &more, &zero_trace, &zero_span, &future, &signed, &wide]
        {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn without_an_exporter_the_caller_s_wish_is_passed_on() {
        let headers =
            |header: &str| HeaderMap::from_iter([(TRACEPARENT.parse().unwrap(), header.parse().unwrap())]);
        let sampled = RequestTrace::begin(&headers(HEADER), "/execute", None);
        assert!(sampled.own.is_sampled() && sampled.own.span_id != sampled.parent.unwrap().span_id);
        let unsampled = RequestTrace::begin(&headers(&HEADER.replace("-01", "-00")), "/execute", None);
        assert!(!unsampled.own.is_sampled());
        let alone = RequestTrace::begin(&HeaderMap::new(), "/execute", None);
        assert!(!alone.own.is_sampled() && alone.own.trace_id != 0 && alone.own.span_id != 0);
    }
}
