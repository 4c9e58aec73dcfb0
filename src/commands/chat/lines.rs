//! Where the user's lines come from: a terminal, with editing and history, or a pipe.

use std::io::{self, BufRead, IsTerminal};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::commands::CommandError;

/// What a line is asked for with.
const PROMPT: &str = "> ";

/// The user's lines.
pub(super) enum Lines {
    /// As they are typed. What was typed is remembered until the end of the process and not beyond.
    Terminal(Box<DefaultEditor>),
    /// As they come.
    Pipe(io::Lines<io::StdinLock<'static>>),
}

impl Lines {
    /// Of stdin.
    ///
    /// # Errors
    /// The terminal.
    pub(super) fn open() -> Result<Self, CommandError> {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            let editor = DefaultEditor::new().map_err(io::Error::other)?;
            return Ok(Self::Terminal(Box::new(editor)));
        }
        Ok(Self::Pipe(stdin.lock().lines()))
    }

    /// Whether somebody types them.
    pub(super) const fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line; `None` at the end. Ctrl-C throws away what is typed so far.
    ///
    /// # Errors
    /// Stdin, or text that is not UTF-8.
    pub(super) fn next(&mut self) -> Result<Option<String>, CommandError> {
        let editor = match self {
            Self::Pipe(lines) => return Ok(lines.next().transpose()?),
            Self::Terminal(editor) => editor,
        };
        loop {
            match editor.readline(PROMPT) {
                Ok(line) => {
                    editor.add_history_entry(&line).map_err(io::Error::other)?;
                    return Ok(Some(line));
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(None),
                Err(error) => return Err(io::Error::other(error).into()),
            }
        }
    }
}
