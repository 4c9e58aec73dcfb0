//! Answers that keep to a grammar: which tokens may come next, by llguidance.
//!
//! A constrained answer is right or it is refused: a grammar that cannot be enforced is 400 before anything runs, and
//! rules that fail on the way end the answer with an error. Nothing is ever generated unconstrained instead. What the
//! grammars say is written in [`super::syntax`].

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::engine::{Constraint, TokenRules};
use crate::text::Tokenizer;

/// Most bytes of a schema.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;
/// Most symbols of a compiled grammar, and most states of its lexer: some tens of megabytes.
const MAX_GRAMMAR_SIZE: usize = 200_000;
const MAX_LEXER_STATES: usize = 50_000;
/// Begins the spelling of a token that is no text.
const SPECIAL: u8 = 0xff;

/// Compiles grammars for one model's vocabulary.
pub struct Grammars {
    factory: ParserFactory,
    /// The id that stands for "may end here": one behind the vocabulary, so that every real id can be part of a grammar.
    end: TokenId,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("end", &self.end).finish_non_exhaustive()
    }
}

/// A compiled grammar, from which every answer gets rules of its own.
#[derive(Clone)]
pub struct Grammar {
    grammars: Arc<Grammars>,
    matcher: Arc<Mutex<Matcher>>,
    /// Ids that may come where the grammar may end.
    end_ids: Vec<u32>,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("end_ids", &self.end_ids).finish_non_exhaustive()
    }
}

/// The model's vocabulary as llguidance wants it.
struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    /// Whether text that must come next may be cut into tokens without asking the model. It may not: what a tokenizer makes
    /// of a text depends on what stands around it (SentencePiece begins every text with a space, and a text may end within
    /// a character), and tokens that spell other bytes are a fault to the parser.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl Grammars {
    /// For this vocabulary. Takes the processor's time: once per model.
    ///
    /// # Errors
    ///
    /// The vocabulary names no token that ends an answer, or is not fit.
    pub fn of(tokenizer: &Arc<Tokenizer>) -> Result<Self, String> {
        if tokenizer.stop_ids().is_empty() {
            return Err("the vocabulary has no end of answer".to_owned());
        }
        let word = |id: u32| {
            let spelled = tokenizer.literal_bytes(id);
            if tokenizer.is_special(id) { [&[SPECIAL], spelled].concat() } else { spelled.to_vec() }
        };
        let end = tokenizer.vocab_size() as u32;
        let mut words: Vec<Vec<u8>> = (0..end).map(word).collect();
        words.push([&[SPECIAL], &b"<end of answer>"[..]].concat());
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
        let vocabulary: llguidance::toktrie::TokEnv = Arc::new(Vocabulary(trie));
        let capabilities = InferenceCapabilities::default();
        let mut factory =
            ParserFactory::new(&vocabulary, capabilities, &[]).map_err(|error| error.to_string())?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_grammar_size = MAX_GRAMMAR_SIZE;
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.verbose_errors = false;
        Ok(Self { factory, end })
    }

    /// Checks that a schema can be enforced. Takes the processor's time, within limits.
    ///
    /// # Errors
    ///
    /// It is too large or says what cannot be enforced.
    pub fn check(&self, schema: &Value) -> Result<(), String> {
        let bytes = schema.to_string().len();
        if bytes > MAX_SCHEMA_BYTES {
            return Err(format!("expected a schema of at most {MAX_SCHEMA_BYTES} bytes, got {bytes}"));
        }
        self.matcher(TopLevelGrammar::from_json_schema(guided(schema))).map(|_| ())
    }

    /// Compiles a grammar in Lark's notation, whose schemas have been checked. Takes the processor's time, within
    /// limits.
    ///
    /// # Errors
    ///
    /// Its parts together are too large.
    pub fn compile(self: &Arc<Self>, lark: String, end_ids: Vec<u32>) -> Result<Grammar, String> {
        let matcher = Arc::new(Mutex::new(self.matcher(TopLevelGrammar::from_lark(lark))?));
        Ok(Grammar { grammars: Arc::clone(self), matcher, end_ids })
    }

    fn matcher(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        // What would only be a warning is a rule that is not enforced.
        if let Some(error) = matcher.get_error().or_else(|| matcher.grammar_warnings().into_iter().next()) {
            return Err(error);
        }
        // Rules that contradict each other, or lead in a circle, leave nothing to say.
        let first = matcher.compute_mask().map_err(|_| "no answer can keep to it")?;
        if first.is_zero() { Err("no answer can keep to it".to_owned()) } else { Ok(matcher) }
    }
}

/// The schema with the options this worker compiles it with.
pub fn guided(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Value::Object(members) = &mut schema {
        // A model at a loss would write blanks until its last token: one space may stand between two marks. Options
        // of the client's own could turn enforcement off: they are replaced.
        members.insert("x-guidance".into(), json!({ "whitespace_pattern": "\\x20" }));
    }
    schema
}

impl Grammar {
    /// Rules for one answer.
    pub fn constraint(&self) -> Constraint {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        let (end, end_ids) = (self.grammars.end, self.end_ids.clone());
        Constraint::of(Box::new(GrammarRules { matcher, end, end_ids }))
    }
}

struct GrammarRules {
    matcher: Matcher,
    end: TokenId,
    end_ids: Vec<u32>,
}

impl TokenRules for GrammarRules {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let mask: SimpleVob = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
        let may_end = mask.is_allowed(self.end);
        for (id, logit) in logits.iter_mut().enumerate() {
            let id = id as u32;
            let allowed =
                if self.end_ids.contains(&id) { may_end } else { id < self.end && mask.is_allowed(id) };
            if !allowed {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        if self.end_ids.contains(&id) {
            return Ok(());
        }
        self.matcher.consume_token(id).map_err(|error| error.to_string())
    }
}
