//! The `tojson` that chat templates were written for: Python's `json.dumps` with `ensure_ascii` off.
//!
//! Differs from the template engine's own filter in separators (`", "`, `": "`), in leaving `<`, `>`, `&` and `'` as
//! they are, and in how floats print; models were trained on Python's form.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Values nested deeper than this are refused; requests cannot be (their parser's limit is 128).
const MAX_DEPTH: usize = 200;
/// The longest JSON written: values may share parts, so that small ones can be endless as text.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// The filter `value | tojson(indent=…, separators=…, sort_keys=…, ensure_ascii=…)`.
#[expect(clippy::needless_pass_by_value, reason = "the signature of filters")]
pub(super) fn tojson(value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let style = Style::from_arguments(&positional, &kwargs)?;
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(Value::from(out))
}

struct Style {
    /// The spaces of one level, if every member has its own line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

impl Style {
    fn from_arguments(positional: &[Value], kwargs: &Kwargs) -> Result<Self, Error> {
        // The signature of the reference filter: tojson(x, ensure_ascii, indent, separators, sort_keys).
        let named = |index: usize, name: &str| -> Result<Option<Value>, Error> {
            let given = kwargs.get::<Option<Value>>(name)?.or_else(|| positional.get(index).cloned());
            Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
        };
        let ensure_ascii = named(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
        let indent = match named(1, "indent")? {
            None => None,
            Some(value) => match value.as_str() {
                Some(text) => Some(text.to_owned()),
                None => Some(" ".repeat(usize::try_from(value).unwrap_or(0).min(64))),
            },
        };
        let (item_separator, key_separator) = match named(2, "separators")? {
            Some(pair) => {
                let part = |index: usize| pair.get_item_by_index(index).map(|part| part.to_string());
                (part(0)?, part(1)?)
            }
            None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
            None => (", ".to_owned(), ": ".to_owned()),
        };
        let sort_keys = named(3, "sort_keys")?.is_some_and(|value| value.is_true());
        Ok(Self { indent, item_separator, key_separator, sort_keys, ensure_ascii })
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH || out.len() > MAX_BYTES {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "the value is nested too deeply or too long for tojson",
            ));
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => write_number(out, value),
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.write_members(out, '[', ']', depth, items, |style, out, item| {
                    style.write(out, &item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_members(out, '{', '}', depth, keys.into_iter(), |style, out, key| {
                    style.write_string(out, &key.to_string());
                    out.push_str(&style.key_separator);
                    style.write(out, &value.get_item(&key)?, depth + 1)
                })?;
            }
            kind => {
                let problem = format!("tojson cannot write a value of kind {kind}");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        }
        Ok(())
    }

    fn write_members(
        &self,
        out: &mut String,
        open: char,
        close: char,
        depth: usize,
        members: impl Iterator<Item = Value>,
        write: impl Fn(&Self, &mut String, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        let mut empty = true;
        for member in members {
            if !empty {
                out.push_str(&self.item_separator);
            }
            empty = false;
            line(out, depth + 1);
            write(self, out, member)?;
        }
        if !empty {
            line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            // Writing to a string cannot fail.
            let _ = match c {
                '"' => out.write_str("\\\""),
                '\\' => out.write_str("\\\\"),
                '\n' => out.write_str("\\n"),
                '\r' => out.write_str("\\r"),
                '\t' => out.write_str("\\t"),
                '\u{8}' => out.write_str("\\b"),
                '\u{c}' => out.write_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c == '\u{7f}') => write!(out, "\\u{:04x}", c as u32),
                c if self.ensure_ascii && !c.is_ascii() => {
                    c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
                }
                c => out.write_char(c),
            };
        }
        out.push('"');
    }
}

/// As Python's `repr`: integers plainly, floats with the fewest digits that read back, in scientific form from 1e16
/// on and below 1e-4.
fn write_number(out: &mut String, value: &Value) {
    if value.is_integer() {
        out.push_str(&value.to_string());
        return;
    }
    let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    let magnitude = number.abs();
    // Writing to a string cannot fail.
    let _ = if number.is_nan() {
        out.write_str("NaN")
    } else if number.is_infinite() {
        out.write_str(if number > 0.0 { "Infinity" } else { "-Infinity" })
    } else if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        write!(out, "{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
    } else {
        write!(out, "{number:?}")
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dumps(value: &serde_json::Value, arguments: &str) -> String {
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
        let source = format!("{{{{ x | tojson({arguments}) }}}}");
        env.render_str(&source, minijinja::context! { x => Value::from(minijinja::value::Serde(value)) })
            .unwrap()
    }

    #[test]
    fn json_is_written_as_python_does() {
        let value =
            json!({"b": [1, -2.5, true, null], "a": {"é\n\"": "<|x|>'&\u{1}\u{7f}"}, "e": {}, "l": []});
        assert_eq!(
            dumps(&value, ""),
            r#"{"b": [1, -2.5, true, null], "a": {"é\n\"": "<|x|>'&\u0001"#.to_owned()
                + "\u{7f}"
                + r#""}, "e": {}, "l": []}"#
        );
        assert_eq!(
            dumps(&json!({"b": [1, 2], "a": {}}), "indent=2, sort_keys=true"),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    2\n  ]\n}"
        );
        assert_eq!(dumps(&json!([1, {"a": 2}]), "separators=(',', ':')"), r#"[1,{"a":2}]"#);
        assert_eq!(dumps(&json!("é🦙"), "ensure_ascii=true"), r#""\u00e9\ud83e\udd99""#);
    }

    #[test]
    fn floats_print_as_python_prints_them() {
        for (number, expected) in [
            (1.0, "1.0"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.000_012_5, "1.25e-05"),
            (123_456.789, "123456.789"),
        ] {
            assert_eq!(dumps(&json!(number), ""), expected);
        }
        assert_eq!(dumps(&json!(18_446_744_073_709_551_615_u64), ""), "18446744073709551615");
    }
}
