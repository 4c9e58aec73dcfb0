//! Sends the spans of finished requests to a collector over OTLP/HTTP, in batches, by a task of its own.
//!
//! Requests leave their span in a bounded queue and never wait: a full queue drops spans and counts them. What the
//! `OTEL_*` variables say of endpoint, headers, timeout, service, sampling and pace holds.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::tls::install_crypto;
use super::trace::{FinishedSpan, TraceParent};

/// Spans that wait for the next batch; more are dropped.
const QUEUE: usize = 4096;
/// Spans sent at a time.
const BATCH: usize = 512;
/// Time between batches where `OTEL_BSP_SCHEDULE_DELAY` does not say.
const DELAY: Duration = Duration::from_secs(1);
/// Bytes of a path that is told; ours are all shorter.
const MAX_PATH: usize = 64;
/// Where a collector takes traces, below the endpoint.
const TRACES_PATH: &str = "/v1/traces";
/// What the traces say the service is, where `OTEL_SERVICE_NAME` does not.
const SERVICE: &str = "worker-orcd";

/// Which traces are written down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What the caller says decides where he says anything.
    parent_based: bool,
    /// Share of the others, 0 to 1.
    share: f64,
}

impl Sampling {
    /// Those whose caller says so.
    pub const PARENT_ONLY: Self = Self { parent_based: true, share: 0.0 };

    /// As `OTEL_TRACES_SAMPLER` and its argument say; the caller's wish, else all, when they do not.
    fn named(name: Option<&str>, argument: Option<&str>) -> Self {
        let name = name.unwrap_or("parentbased_always_on");
        let (parent_based, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let ratio = argument.and_then(|ratio| ratio.parse::<f64>().ok()).filter(|r| (0.0..=1.0).contains(r));
        match root {
            "always_on" => Self { parent_based, share: 1.0 },
            "always_off" => Self { parent_based, share: 0.0 },
            "traceidratio" => Self { parent_based, share: ratio.unwrap_or(1.0) },
            _ => Self { parent_based: true, share: 1.0 },
        }
    }

    /// Whether this trace is.
    pub fn takes(self, parent: Option<TraceParent>, trace_id: u128) -> bool {
        match parent {
            Some(parent) if self.parent_based => parent.is_sampled(),
            // The same traces on every service: the low half of the id, which is random, against the share.
            _ => self.share >= 1.0 || ((trace_id as u64 >> 1) as f64) < self.share * 2_f64.powi(63),
        }
    }
}

/// Where finished requests leave their spans.
#[derive(Clone, Debug)]
pub struct SpanSender {
    queue: mpsc::Sender<FinishedSpan>,
    dropped: Arc<AtomicU64>,
    /// Which ones.
    pub sampling: Sampling,
}

impl SpanSender {
    /// Leaves a span, or drops it where too many wait.
    pub fn send(&self, span: FinishedSpan) {
        if self.queue.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Traces cannot be exported.
#[derive(Debug, thiserror::Error)]
#[error("--otlp-endpoint: {0}")]
pub struct ExportError(ExporterBuildError);

/// Takes the spans to the collector.
pub struct SpanExport {
    queue: mpsc::Receiver<FinishedSpan>,
    dropped: Arc<AtomicU64>,
    exporter: OtlpExporter,
    scope: InstrumentationScope,
    delay: Duration,
    failing: bool,
}

impl fmt::Debug for SpanExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanExport").field("delay", &self.delay).finish_non_exhaustive()
    }
}

/// Both ends of the export, if `endpoint` or the environment asks for one.
///
/// # Errors
///
/// An endpoint that is none.
pub fn open(
    endpoint: Option<&str>,
    worker_id: &str,
) -> Result<Option<(SpanSender, SpanExport)>, ExportError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if !is_wanted(endpoint, variable) {
        return Ok(None);
    }
    install_crypto();
    let builder = OtlpExporter::builder().with_http();
    let builder = match endpoint {
        Some(base) => builder.with_endpoint(traces_url(base)),
        None => builder,
    };
    let mut exporter = builder.build().map_err(ExportError)?;
    let attributes = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", worker_id.to_owned()),
    ];
    let resource = match variable("OTEL_SERVICE_NAME") {
        Some(_) => Resource::builder(),
        None => Resource::builder().with_service_name(SERVICE),
    };
    exporter.set_resource(&resource.with_attributes(attributes).build());
    let (sender, queue) = mpsc::channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let (sampler, argument) = (variable("OTEL_TRACES_SAMPLER"), variable("OTEL_TRACES_SAMPLER_ARG"));
    let sampling = Sampling::named(sampler.as_deref(), argument.as_deref());
    let delay = variable("OTEL_BSP_SCHEDULE_DELAY").and_then(|delay| delay.parse().ok());
    let delay = delay.map_or(DELAY, |milliseconds: u64| Duration::from_millis(milliseconds.max(1)));
    let scope = InstrumentationScope::builder(SERVICE).with_version(env!("CARGO_PKG_VERSION")).build();
    let export = SpanExport { queue, dropped: Arc::clone(&dropped), exporter, scope, delay, failing: false };
    Ok(Some((SpanSender { queue: sender, dropped, sampling }, export)))
}

/// Whether traces are to be exported at all.
fn is_wanted(endpoint: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> bool {
    let switched_off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    let names = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    !switched_off && (endpoint.is_some() || names.iter().any(|name| variable(name).is_some()))
}

/// The place for traces of a collector that is named by its base address.
fn traces_url(base: &str) -> String {
    let base = base.trim_end_matches('/');
    if base.ends_with(TRACES_PATH) { base.to_owned() } else { format!("{base}{TRACES_PATH}") }
}

impl SpanExport {
    /// Sends batches until told to close, and then what is left.
    pub async fn run(mut self, mut closing: watch::Receiver<bool>) {
        let mut ticks = interval(self.delay);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let last = tokio::select! {
                _ = ticks.tick() => false,
                // A sender that is gone means the same.
                _ = closing.wait_for(|&closing| closing) => true,
            };
            self.send_all().await;
            if last {
                return;
            }
        }
    }

    async fn send_all(&mut self) {
        loop {
            let batch: Vec<SpanData> = std::iter::from_fn(|| self.queue.try_recv().ok())
                .take(BATCH)
                .map(|span| data(span, &self.scope))
                .collect();
            if batch.is_empty() {
                break;
            }
            let spans = batch.len();
            let result = self.exporter.export(batch).await;
            if let Err(error) = &result
                && !self.failing
            {
                // Once for every time it begins: a collector that is away for a night fills no disk.
                tracing::warn!(event = "trace_export", %error, spans, "spans are lost until this ends");
            }
            self.failing = result.is_err();
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(event = "trace_export", dropped, "more spans than the collector takes");
        }
    }
}

/// The span as the protocol has it.
fn data(span: FinishedSpan, scope: &InstrumentationScope) -> SpanData {
    let FinishedSpan { parent, own, trace_state, began, ended, facts } = span;
    let (operation, model) = (facts.operation(), facts.model.clone());
    let name = match (operation, &model) {
        (Some(operation), Some(model)) => format!("{operation} {model}"),
        (Some(operation), None) => operation.to_owned(),
        _ => "POST".to_owned(),
    };
    let status = match facts.error {
        Some(code) => Status::error(code),
        None => Status::Unset,
    };
    let span_id = |id: u64| SpanId::from_bytes(id.to_be_bytes());
    let count = |count: Option<usize>| count.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
    let attributes = [
        Some(KeyValue::new("http.request.method", "POST")),
        Some(KeyValue::new("http.response.status_code", i64::from(facts.status))),
        Some(KeyValue::new("url.path", facts.path)).filter(|path| path.value.as_str().len() <= MAX_PATH),
        operation.map(|operation| KeyValue::new("gen_ai.operation.name", operation)),
        operation.map(|_| KeyValue::new("gen_ai.provider.name", SERVICE)),
        model.map(|model| KeyValue::new("gen_ai.request.model", model)),
        facts.id.map(|id| KeyValue::new("gen_ai.response.id", id)),
        count(facts.max_tokens).map(|count| KeyValue::new("gen_ai.request.max_tokens", count)),
        count(facts.tokens_in).map(|count| KeyValue::new("gen_ai.usage.input_tokens", count)),
        count(facts.tokens_out).map(|count| KeyValue::new("gen_ai.usage.output_tokens", count)),
        facts.ttft_ms.map(|time| KeyValue::new("worker.time_to_first_token_ms", time)),
        facts.outcome.map(|outcome| KeyValue::new("worker.outcome", outcome)),
        facts.error.map(|code| KeyValue::new("error.type", code)),
    ];
    SpanData {
        span_context: SpanContext::new(
            TraceId::from_bytes(own.trace_id.to_be_bytes()),
            span_id(own.span_id),
            TraceFlags::SAMPLED,
            false,
            trace_state.parse::<TraceState>().unwrap_or_default(),
        ),
        parent_span_id: parent.map_or(SpanId::INVALID, |parent| span_id(parent.span_id)),
        parent_span_is_remote: parent.is_some(),
        span_kind: SpanKind::Server,
        name: name.into(),
        start_time: began,
        end_time: ended,
        attributes: attributes.into_iter().flatten().collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status,
        instrumentation_scope: scope.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_named_by_its_base_or_in_full() {
        for base in ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"] {
            assert_eq!(traces_url(base), "http://c:4318/v1/traces");
        }
    }

    #[test]
    fn the_environment_switches_on_and_off() {
        let with = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        assert!(!is_wanted(None, with(&[])));
        assert!(is_wanted(Some("http://c"), with(&[])));
        assert!(is_wanted(None, with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c")])));
        assert!(is_wanted(None, with(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c")])));
        assert!(!is_wanted(Some("http://c"), with(&[("OTEL_SDK_DISABLED", "true")])));
        assert!(!is_wanted(Some("http://c"), with(&[("OTEL_TRACES_EXPORTER", "none")])));
    }

    #[test]
    fn samplers_have_their_standard_meaning() {
        let parent = |flags| Some(TraceParent { trace_id: 1, span_id: 1, flags });
        let low = 0;
        let high = u128::from(u64::MAX);
        for (name, argument, expected) in [
            // Without a parent: a low id, a high id; with one: not sampled, sampled (high id).
            (None, None, [true, true, false, true]),
            (Some("always_on"), None, [true, true, true, true]),
            (Some("always_off"), None, [false, false, false, false]),
            (Some("traceidratio"), Some("0.5"), [true, false, false, false]),
            (Some("parentbased_traceidratio"), Some("0.5"), [true, false, false, true]),
            (Some("parentbased_always_off"), None, [false, false, false, true]),
            (Some("nonsense"), None, [true, true, false, true]),
        ] {
            let sampling = Sampling::named(name, argument);
            let parents = [(None, low), (None, high), (parent(0), high), (parent(1), high)];
            assert_eq!(parents.map(|(parent, id)| sampling.takes(parent, id)), expected, "{name:?}");
        }
    }
}
