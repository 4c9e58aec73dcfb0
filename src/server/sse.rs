//! Server-sent events as clients and proxies want them: unbuffered, uncached, kept alive by comments.
//!
//! This is where every token passes, so an event is its bytes from the start, and what was ready together leaves
//! together.

use std::convert::Infallible;
use std::fmt::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use hyper::body::Frame;
use serde_json::Value;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// A comment is sent after a silence of at least this and at most twice this: below the idle limits of the usual
/// proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(7);
/// What a client that reads comments as silence gets then.
const COMMENT: &[u8] = b": keep-alive\n\n";
/// Bytes of events that leave in one piece, unless one alone is larger.
const PIECE_BYTES: usize = 16 << 10;

/// One event, as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event(String);

impl Event {
    /// An event without a name. `data` holds no line break.
    pub fn of(data: fmt::Arguments<'_>) -> Self {
        let mut text = String::with_capacity(512);
        // Writing to a string cannot fail.
        let _ = write!(text, "data: {data}\n\n");
        debug_assert!(text.trim_end().lines().count() == 1, "{text:?}");
        Self(text)
    }
}

/// A named event with JSON data.
pub fn event(name: &'static str, data: &Value) -> Event {
    Event(format!("event: {name}\ndata: {data}\n\n"))
}

/// The response that carries a stream of events.
pub fn response<S>(events: S) -> Response
where
    S: Stream<Item = Result<Event, Infallible>> + Send + Unpin + 'static,
{
    let mut response = Body::new(EventBody::of(events, KEEP_ALIVE)).into_response();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        // nginx and its kin buffer a response unless told not to.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A body of events.
struct EventBody<S> {
    events: S,
    ticks: Interval,
    /// Whether anything was sent since the last tick.
    spoken: bool,
    over: bool,
}

impl<S> EventBody<S>
where
    S: Stream<Item = Result<Event, Infallible>> + Unpin,
{
    /// A body that looks for silence this often.
    fn of(events: S, keep_alive: Duration) -> Self {
        let mut ticks = interval_at(Instant::now() + keep_alive, keep_alive);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { events, ticks, spoken: false, over: false }
    }

    /// Everything that is ready, up to a piece's size; empty when nothing is.
    fn ready(&mut self, cx: &mut Context<'_>) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::new();
        while !self.over && bytes.len() < PIECE_BYTES {
            match Pin::new(&mut self.events).poll_next(cx) {
                Poll::Ready(Some(Ok(Event(text)))) if bytes.is_empty() => bytes = text.into_bytes(),
                Poll::Ready(Some(Ok(Event(text)))) => bytes.extend_from_slice(text.as_bytes()),
                Poll::Ready(None) => self.over = true,
                Poll::Pending => break,
            }
        }
        bytes
    }
}

impl<S> hyper::body::Body for EventBody<S>
where
    S: Stream<Item = Result<Event, Infallible>> + Unpin,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let bytes = this.ready(cx);
        if !bytes.is_empty() {
            this.spoken = true;
            return Poll::Ready(Some(Ok(Frame::data(bytes.into()))));
        }
        if this.over {
            return Poll::Ready(None);
        }
        // Asking the clock at every event would cost more than writing it: silence is looked for once a tick.
        while this.ticks.poll_tick(cx).is_ready() {
            if !std::mem::replace(&mut this.spoken, false) {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(COMMENT)))));
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use hyper::body::Body as _;
    use serde_json::json;

    use super::*;

    /// Says what is in turn: an event, or nothing for now.
    struct InTurn(Vec<Option<&'static str>>);

    impl Stream for InTurn {
        type Item = Result<Event, Infallible>;

        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            if self.0.is_empty() {
                return Poll::Ready(None);
            }
            match self.0.remove(0) {
                Some(data) => Poll::Ready(Some(Ok(Event::of(format_args!("{data}"))))),
                None => Poll::Pending,
            }
        }
    }

    #[tokio::test]
    async fn what_is_ready_together_leaves_together() {
        let turns = vec![Some("a"), Some("b"), None, None, Some("c"), None];
        let mut body = response(InTurn(turns)).into_body();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut next = || match Pin::new(&mut body).poll_frame(&mut cx) {
            Poll::Ready(frame) => frame.map(|frame| frame.unwrap().into_data().unwrap()),
            Poll::Pending => Some(Bytes::from_static(b"nothing")),
        };
        assert_eq!(next().unwrap(), "data: a\n\ndata: b\n\n");
        assert_eq!(next().unwrap(), "nothing");
        assert_eq!(next().unwrap(), "data: c\n\n");
        assert_eq!(next(), None);
    }

    #[tokio::test]
    async fn a_silence_is_filled_and_speech_is_not() {
        let tick = Duration::from_millis(40);
        let mut body = EventBody::of(InTurn([vec![None, None, Some("a")], vec![None; 9]].concat()), tick);
        let start = Instant::now();
        let mut next = async || {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            frame.unwrap().unwrap().into_data().unwrap()
        };
        assert_eq!(next().await, COMMENT);
        assert_eq!(next().await, "data: a\n\n");
        let spoke = start.elapsed();
        assert_eq!(next().await, COMMENT);
        assert!(start.elapsed() >= tick * 3 && spoke >= tick, "the tick after speech is silent");
    }

    #[test]
    fn a_named_event_has_its_lines() {
        let event = event("token", &json!({ "t": "a\nb" }));
        assert_eq!(event.0, "event: token\ndata: {\"t\":\"a\\nb\"}\n\n");
    }
}
