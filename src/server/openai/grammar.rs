//! Answers that keep to a JSON schema: which tokens may come next, by llguidance.
//!
//! A constrained answer is right or it is refused: a schema that cannot be enforced is 400 before anything runs, and
//! rules that fail on the way end the answer with an error. Nothing is ever generated unconstrained instead.

use std::fmt;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::engine::{Constraint, TokenRules};
use crate::server::error::ApiError;
use crate::text::{SpecialParsing, Tokenizer};

/// Most bytes of a schema.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;
/// Most symbols of a compiled schema, and most states of its lexer: some tens of megabytes.
const MAX_GRAMMAR_SIZE: usize = 200_000;
const MAX_LEXER_STATES: usize = 50_000;
/// Begins the spelling of a token that is no text.
const SPECIAL: u8 = 0xff;

/// Compiles schemas for one model's vocabulary.
pub struct Grammars {
    factory: ParserFactory,
    /// The id that stands for "may end here".
    end: TokenId,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("end", &self.end).finish_non_exhaustive()
    }
}

/// A compiled schema, from which every answer gets rules of its own.
#[derive(Clone)]
pub struct Schema {
    grammars: Arc<Grammars>,
    matcher: Arc<std::sync::Mutex<Matcher>>,
    /// Ids that may end an answer.
    end_ids: Vec<u32>,
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema").field("end_ids", &self.end_ids).finish_non_exhaustive()
    }
}

/// The model's vocabulary as llguidance wants it.
struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.tokenizer.encode(&String::from_utf8_lossy(bytes), SpecialParsing::Plain)
    }
}

impl Grammars {
    /// For this vocabulary. Takes the processor's time: once per model.
    ///
    /// # Errors
    ///
    /// The vocabulary names no token that ends an answer, or is not fit.
    pub fn of(tokenizer: &Arc<Tokenizer>) -> Result<Self, String> {
        let end = tokenizer.stop_ids().first().copied().ok_or("the vocabulary has no end of answer")?;
        let word = |id: u32| {
            let spelled = tokenizer.literal_bytes(id);
            // The end must have a spelling even where the vocabulary gives it none.
            if tokenizer.is_special(id) || id == end {
                [&[SPECIAL], spelled].concat()
            } else {
                spelled.to_vec()
            }
        };
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
        let vocabulary: llguidance::toktrie::TokEnv =
            Arc::new(Vocabulary { trie, tokenizer: Arc::clone(tokenizer) });
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

    /// Compiles a schema. Takes the processor's time, within limits.
    ///
    /// # Errors
    ///
    /// 400 for a schema that is too large or says what cannot be enforced.
    pub fn compile(self: &Arc<Self>, mut schema: Value, end_ids: Vec<u32>) -> Result<Schema, ApiError> {
        let refused = |rule: &dyn fmt::Display| ApiError {
            detail: Some("invalid_json_schema"),
            ..ApiError::invalid("response_format", rule)
        };
        let bytes = schema.to_string().len();
        if bytes > MAX_SCHEMA_BYTES {
            return Err(refused(&format_args!(
                "expected a schema of at most {MAX_SCHEMA_BYTES} bytes, got {bytes}"
            )));
        }
        if let Value::Object(members) = &mut schema {
            // A model at a loss would write blanks until its last token: one space may stand between two marks. Options
            // of the client's own could turn enforcement off: they are replaced.
            members.insert("x-guidance".into(), json!({ "whitespace_pattern": "\\x20" }));
        }
        let parser = self.factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let mut matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error().or_else(|| matcher.grammar_warnings().into_iter().next()) {
            return Err(refused(&error));
        }
        let matcher = Arc::new(std::sync::Mutex::new(matcher));
        Ok(Schema { grammars: Arc::clone(self), matcher, end_ids })
    }
}

impl Schema {
    /// Rules for one answer.
    pub fn constraint(&self) -> Constraint {
        let matcher = self.matcher.lock().unwrap_or_else(std::sync::PoisonError::into_inner).deep_clone();
        Constraint::of(Box::new(SchemaRules {
            matcher,
            end: self.grammars.end,
            end_ids: self.end_ids.clone(),
        }))
    }
}

struct SchemaRules {
    matcher: Matcher,
    end: TokenId,
    end_ids: Vec<u32>,
}

impl TokenRules for SchemaRules {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let mask: SimpleVob = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
        let may_end = (self.end as usize) < mask.len() && mask.is_allowed(self.end);
        for (id, logit) in logits.iter_mut().enumerate() {
            let id = id as u32;
            let is_end = id == self.end || self.end_ids.contains(&id);
            let allowed = if is_end {
                may_end && self.end_ids.contains(&id)
            } else {
                (id as usize) < mask.len() && mask.is_allowed(id)
            };
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
