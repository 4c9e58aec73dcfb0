//! Fields that clients of other servers send and that this worker does not act on: their neutral values pass, every
//! other is refused, so that nobody believes to have what he has not.

use serde_json::Value;

use crate::server::body::Fields;
use crate::server::error::ApiError;

/// Field and the values that ask for nothing, as JSON; `null` and absence never ask for anything. Numbers are compared
/// as numbers.
pub type Neutral = &'static [(&'static str, &'static [&'static str])];

/// What every route passes over.
pub const NEUTRAL: Neutral = &[
    ("audio", &[]),
    ("bad_words", &["[]"]),
    ("best_of", &["1"]),
    ("beam_width", &["1"]),
    ("continue_final_message", &["false"]),
    ("dry_multiplier", &["0"]),
    ("dynatemp_range", &["0"]),
    ("ebnf", &[]),
    ("echo", &["false"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("grammar", &["\"\""]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("include_stop_str_in_output", &["false"]),
    ("json_schema", &["{}"]),
    ("length_penalty", &["1"]),
    ("logits_processors", &["[]"]),
    ("lora_path", &[]),
    ("min_tokens", &["0"]),
    ("mirostat", &["0"]),
    ("modalities", &["[\"text\"]"]),
    ("no_stop_trim", &["false"]),
    ("prediction", &[]),
    ("prompt_logprobs", &[]),
    ("reasoning_budget", &["-1"]),
    ("regex", &[]),
    ("return_hidden_states", &["false"]),
    ("return_token_ids", &["false"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("separate_reasoning", &["true"]),
    ("service_tier", &["\"auto\"", "\"default\""]),
    ("spaces_between_special_tokens", &["true"]),
    ("store", &["false"]),
    ("stream_reasoning", &["true"]),
    ("structured_outputs", &[]),
    ("suffix", &["\"\""]),
    ("tfs_z", &["1"]),
    ("thinking_budget_tokens", &["-1"]),
    ("thinking_token_budget", &[]),
    ("truncate_prompt_tokens", &[]),
    ("typical_p", &["1"]),
    ("use_beam_search", &["false"]),
    ("verbosity", &["\"medium\""]),
    ("web_search_options", &[]),
    ("xtc_probability", &["0"]),
];

/// Refuses the first field that asks for something.
///
/// # Errors
///
/// 400 that names it.
pub fn check(fields: &Fields) -> Result<(), ApiError> {
    check_all(fields, NEUTRAL)
}

/// Refuses the first field of this list that asks for something.
///
/// # Errors
///
/// 400 that names it.
pub fn check_all(fields: &Fields, list: Neutral) -> Result<(), ApiError> {
    for (field, neutral) in list {
        if let Some(value) = fields.get(field)
            && !neutral.iter().any(|neutral| is(value, neutral))
        {
            return Err(unsupported(field));
        }
    }
    Ok(())
}

/// 400 for a field this worker does not act on.
pub fn unsupported(field: &'static str) -> ApiError {
    ApiError {
        detail: Some("unsupported_parameter"),
        ..ApiError::invalid(field, "this worker does not support it")
    }
}

fn is(value: &Value, neutral: &str) -> bool {
    match (value.as_f64(), neutral.parse::<f64>()) {
        (Some(value), Ok(neutral)) => value.total_cmp(&neutral).is_eq(),
        _ => serde_json::from_str::<Value>(neutral).is_ok_and(|neutral| neutral == *value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    fn with(field: &str, value: Value) -> Fields {
        Fields::from(Map::from_iter([(field.to_owned(), value)]))
    }

    #[test]
    fn neutral_values_pass_and_others_are_named() {
        for (field, neutral) in NEUTRAL {
            assert_eq!(check(&with(field, Value::Null)), Ok(()), "{field}");
            for value in *neutral {
                let value: Value = serde_json::from_str(value).unwrap();
                assert_eq!(check(&with(field, value)), Ok(()), "{field}");
            }
            let error = check(&with(field, json!("something else"))).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(*field));
        }
        assert_eq!(check(&with("typical_p", json!(1.0))), Ok(()));
        assert!(check(&with("typical_p", json!(0.9))).is_err());
        assert_eq!(check(&with("anything_else", json!(1))), Ok(()));
    }
}
