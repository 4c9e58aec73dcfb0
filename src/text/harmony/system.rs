//! The system message, which the server writes itself: who the model is, what day it is, how long to think.

use super::{ANALYSIS, BuiltinTools, COMMENTARY, FINAL};
use crate::text::chat::{Date, ReasoningEffort};

/// What the system message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemText<'a> {
    /// Who the model is.
    pub identity: &'a str,
    /// The month its knowledge ends, `YYYY-MM`.
    pub knowledge_cutoff: &'a str,
    /// The current date; `None`: the model is not told.
    pub date: Option<Date>,
    /// How long to think.
    pub effort: ReasoningEffort,
    /// Tools the model knows by training.
    pub builtin_tools: BuiltinTools,
    /// The channels it may use.
    pub channels: &'a [&'a str],
    /// Whether the developer message defines functions.
    pub has_functions: bool,
}

impl Default for SystemText<'_> {
    fn default() -> Self {
        Self {
            identity: "You are ChatGPT, a large language model trained by OpenAI.",
            knowledge_cutoff: "2024-06",
            date: None,
            effort: ReasoningEffort::default(),
            builtin_tools: BuiltinTools::default(),
            channels: &[ANALYSIS, COMMENTARY, FINAL],
            has_functions: false,
        }
    }
}

impl std::fmt::Display for SystemText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nKnowledge cutoff: {}", self.identity, self.knowledge_cutoff)?;
        if let Some(date) = self.date {
            write!(f, "\nCurrent date: {date}")?;
        }
        write!(f, "\n\nReasoning: {}\n\n", self.effort.as_str())?;
        if let Some(tools) = self.builtin_tools.section() {
            write!(f, "{tools}\n\n")?;
        }
        let channels = self.channels.join(", ");
        write!(f, "# Valid channels: {channels}. Channel must be included for every message.")?;
        if self.has_functions {
            f.write_str("\nCalls to these tools must go to the commentary channel: 'functions'.")?;
        }
        Ok(())
    }
}
