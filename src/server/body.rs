//! Reading a JSON request body: size, content type and syntax, then field by field, so that every error names its
//! place.

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value};

use super::error::{ApiError, ErrorCode};
use super::off_thread::spawn;

/// Bytes of JSON that take less time than handing them to another thread and back is worth.
const PARSED_AT_ONCE_BYTES: usize = 64 << 10;

/// A JSON object whose fields are taken one by one. Fields nobody asks for are tolerated; `null` counts as absent.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// Reads the body.
    ///
    /// # Errors
    ///
    /// 400 for another content type, broken JSON or a value that is no object; 413 for a body over `limit_bytes`.
    pub async fn read(headers: &HeaderMap, body: Body, limit_bytes: usize) -> Result<Self, ApiError> {
        let refused = |message: String| ApiError::of(ErrorCode::InvalidRequest, message);
        if !is_json(headers) {
            return Err(refused("content-type: expected application/json".into()));
        }
        let declared =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let too_large = || ApiError {
            status: Some(StatusCode::PAYLOAD_TOO_LARGE),
            ..refused(format!("body: expected at most {limit_bytes} bytes"))
        };
        if declared.is_some_and(|length: usize| length > limit_bytes) {
            return Err(too_large());
        }
        let bytes = to_bytes(body, limit_bytes).await.map_err(|_| too_large())?;
        if bytes.len() > PARSED_AT_ONCE_BYTES { spawn(move || parse(&bytes)).await } else { parse(&bytes) }
    }

    /// A required string.
    ///
    /// # Errors
    ///
    /// 400 when absent or of another type.
    pub fn string(&mut self, field: &'static str) -> Result<String, ApiError> {
        match self.map.remove(field) {
            Some(Value::String(text)) => Ok(text),
            None | Some(Value::Null) => Err(ApiError::invalid(field, "required")),
            Some(_) => Err(ApiError::invalid(field, "expected a string")),
        }
    }

    /// An integer within bounds, if present.
    ///
    /// # Errors
    ///
    /// 400 for another type or a value outside the bounds.
    pub fn integer(&mut self, field: &'static str, low: u64, high: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.present(field) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ => Err(ApiError::invalid(field, format_args!("expected an integer from {low} to {high}"))),
        }
    }

    /// A number within bounds, if present.
    ///
    /// # Errors
    ///
    /// 400 for another type or a value outside the bounds.
    pub fn number(&mut self, field: &'static str, low: f64, high: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.present(field) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number as f32)),
            _ => Err(ApiError::invalid(field, format_args!("expected a number from {low} to {high}"))),
        }
    }

    /// A whole u64, if present: as a number, or as decimal digits in a string for clients whose numbers are doubles.
    ///
    /// # Errors
    ///
    /// 400 for anything else.
    pub fn seed(&mut self, field: &'static str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.present(field) else { return Ok(None) };
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let seed = match &value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) if digits(text) => text.parse().ok(),
            _ => None,
        };
        let expected = format_args!("expected an integer from 0 to {}", u64::MAX);
        seed.map(Some).ok_or_else(|| ApiError::invalid(field, expected))
    }

    /// A list of strings, empty when absent.
    ///
    /// # Errors
    ///
    /// 400 for another type or more than `most` strings.
    pub fn strings(&mut self, field: &'static str, most: usize) -> Result<Vec<String>, ApiError> {
        let expected = || ApiError::invalid(field, format_args!("expected a list of at most {most} strings"));
        match self.present(field) {
            None => Ok(vec![]),
            Some(Value::Array(items)) if items.len() <= most => items
                .into_iter()
                .map(|item| if let Value::String(text) = item { Ok(text) } else { Err(expected()) })
                .collect(),
            Some(_) => Err(expected()),
        }
    }

    /// A switch, if present.
    ///
    /// # Errors
    ///
    /// 400 for another type.
    pub fn switch(&mut self, field: &'static str) -> Result<Option<bool>, ApiError> {
        match self.present(field) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(on)),
            Some(_) => Err(ApiError::invalid(field, "expected true or false")),
        }
    }

    /// A string, if present.
    ///
    /// # Errors
    ///
    /// 400 for another type.
    pub fn optional_string(&mut self, field: &'static str) -> Result<Option<String>, ApiError> {
        if self.get(field).is_some() { self.string(field).map(Some) } else { Ok(None) }
    }

    /// One string or a list of strings; empty when absent.
    ///
    /// # Errors
    ///
    /// 400 for another type or more than `most` strings.
    pub fn one_or_more_strings(&mut self, field: &'static str, most: usize) -> Result<Vec<String>, ApiError> {
        match self.get(field) {
            Some(Value::String(_)) => self.string(field).map(|text| vec![text]),
            _ => self.strings(field, most),
        }
    }

    /// An object, if present.
    ///
    /// # Errors
    ///
    /// 400 for another type.
    pub fn object(&mut self, field: &'static str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.present(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(ApiError::invalid(field, "expected an object")),
        }
    }

    /// A field as it is, unless absent.
    pub fn present(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    /// Looks at a field without taking it.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }
}

impl From<Map<String, Value>> for Fields {
    fn from(map: Map<String, Value>) -> Self {
        Self { map }
    }
}

fn parse(bytes: &[u8]) -> Result<Fields, ApiError> {
    let refused = |message: String| ApiError::of(ErrorCode::InvalidRequest, message);
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(Fields { map }),
        Ok(_) => Err(refused("body: expected a JSON object".into())),
        // The parser's own message may quote the input; its place is enough.
        Err(error) => {
            Err(refused(format!("body: broken JSON at line {}, column {}", error.line(), error.column())))
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        let Value::Object(map) = value else { panic!("an object") };
        Fields { map }
    }

    #[test]
    fn numbers_outside_their_bounds_name_the_field() {
        let mut fields =
            fields(json!({"a": 2.0, "b": 2.001, "c": "1", "d": -1, "e": 1.5, "f": null, "g": 7}));
        assert_eq!(fields.number("a", 0.0, 2.0), Ok(Some(2.0)));
        for (field, error) in [("b", fields.number("b", 0.0, 2.0)), ("c", fields.number("c", 0.0, 2.0))] {
            assert_eq!(error.unwrap_err().field.as_deref(), Some(field));
        }
        for field in ["d", "e"] {
            assert_eq!(fields.integer(field, 0, 9).unwrap_err().field.as_deref(), Some(field));
        }
        assert_eq!(fields.integer("f", 0, 9), Ok(None));
        assert_eq!(fields.integer("g", 0, 7), Ok(Some(7)));
    }

    #[test]
    fn seeds_are_exact() {
        let max = u64::MAX;
        let mut fields =
            fields(json!({"a": max, "b": max.to_string(), "c": "18446744073709551616", "d": "+1",
            "e": -1, "f": 1.0, "g": ""}));
        assert_eq!(fields.seed("a"), Ok(Some(max)));
        assert_eq!(fields.seed("b"), Ok(Some(max)));
        for field in ["c", "d", "e", "f", "g"] {
            assert_eq!(fields.seed(field).unwrap_err().field.as_deref(), Some(field), "{field}");
        }
        assert_eq!(fields.seed("absent"), Ok(None));
    }

    #[test]
    fn json_content_types() {
        for (value, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/problem+json", true),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
            assert_eq!(is_json(&headers), expected, "{value}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
