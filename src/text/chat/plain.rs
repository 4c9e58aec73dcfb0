//! The output of models without structure of their own: everything is the answer.

use std::sync::Arc;

use super::{FinishHint, OutputEvent};
use crate::text::{DecodeOptions, IncrementalDecoder, Tokenizer};

/// Passes text through, up to a stop string.
#[derive(Debug)]
pub struct PlainParser {
    decoder: IncrementalDecoder,
    stopped: bool,
}

impl PlainParser {
    /// A parser for one answer.
    pub fn new(tokenizer: Arc<Tokenizer>, decode: &DecodeOptions) -> Self {
        Self { decoder: IncrementalDecoder::new(tokenizer, decode), stopped: false }
    }

    /// Takes the next id.
    pub fn push(&mut self, id: u32) -> Vec<OutputEvent> {
        let text = self.decoder.push(id);
        self.events(text)
    }

    /// Ends the answer.
    pub fn finish(&mut self) -> Vec<OutputEvent> {
        let text = self.decoder.finish();
        self.events(text)
    }

    /// Why the answer is complete, if it is.
    pub fn hint(&self) -> FinishHint {
        self.decoder.stopped_by().map_or(FinishHint::Stop, FinishHint::StopString)
    }

    fn events(&mut self, text: String) -> Vec<OutputEvent> {
        let mut events = Vec::new();
        if !text.is_empty() {
            events.push(OutputEvent::ContentDelta(text));
        }
        if let Some(stop) = self.decoder.stopped_by().filter(|_| !self.stopped) {
            self.stopped = true;
            events.push(OutputEvent::Finished(FinishHint::StopString(stop)));
        }
        events
    }
}
