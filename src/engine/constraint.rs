//! Which tokens a sequence may say next: decided outside the engine, asked once per token.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The rules of one sequence. Its state moves on with every token accepted.
pub trait TokenRules: Send {
    /// Sets the logits of all ids that may not come next to minus infinity.
    ///
    /// # Errors
    /// Why the rules cannot be told any more; the sequence then ends.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String>;

    /// Takes the id that was chosen.
    ///
    /// # Errors
    /// Why it could not be.
    fn accept(&mut self, id: u32) -> Result<(), String>;
}

struct State {
    rules: Box<dyn TokenRules>,
    fault: Option<String>,
}

/// The rules of one sequence, in the hands of its engine. Clones share their state: two sequences must not share one.
#[derive(Clone)]
pub struct Constraint(Arc<Mutex<State>>);

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraint")
    }
}

impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Constraint {
    /// Rules for one sequence.
    pub fn of(rules: Box<dyn TokenRules>) -> Self {
        Self(Arc::new(Mutex::new(State { rules, fault: None })))
    }

    /// Masks the logits; after a fault no id is left.
    pub fn mask(&self, logits: &mut [f32]) {
        let mut state = self.lock();
        if state.fault.is_none() {
            state.fault = state.rules.mask(logits).err();
        }
        if state.fault.is_some() {
            logits.fill(f32::NEG_INFINITY);
        }
    }

    /// Takes the id that was chosen.
    pub fn accept(&self, id: u32) {
        let mut state = self.lock();
        if state.fault.is_none() {
            state.fault = state.rules.accept(id).err();
        }
    }

    /// Why the rules failed, if they have.
    pub fn fault(&self) -> Option<String> {
        self.lock().fault.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
