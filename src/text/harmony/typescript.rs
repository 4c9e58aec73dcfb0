//! JSON schemas as the TypeScript types that gpt-oss models were trained to read.
//!
//! The rules are those of the reference renderer, oddities included (MODELS.md §5.1): a description of several lines
//! is commented on its first only, and a described object says so above its key and inside.

use serde_json::Value;

/// Schemas nested deeper than this are `any`; requests cannot nest deeper than 128.
const MAX_INDENT: usize = 4 * 128;

/// The type that `schema` describes. Its first line continues the caller's; further ones begin with `indent`.
pub(super) fn type_of(schema: &Value, indent: &str) -> String {
    if indent.len() > MAX_INDENT {
        return "any".to_owned();
    }
    if let Some(variants) = array(schema, "oneOf") {
        let lines = variants.iter().map(|variant| {
            let comments =
                comments([text(variant, "description").map(str::to_owned), default_of(variant, true)]);
            format!("\n{indent} | {}{comments}", variant_type(variant, indent))
        });
        return lines.collect();
    }
    if let Some(types) = array(schema, "type").filter(|types| types.iter().any(Value::is_string)) {
        let names = types.iter().filter_map(Value::as_str);
        let names: Vec<&str> = names.map(|name| if name == "integer" { "number" } else { name }).collect();
        return names.join(" | ");
    }
    match text(schema, "type") {
        Some("object") => object(schema, indent),
        Some("string") => {
            let values = array(schema, "enum").into_iter().flatten().filter_map(Value::as_str);
            let values: Vec<String> = values.map(|value| format!("\"{value}\"")).collect();
            if values.is_empty() { "string".to_owned() } else { values.join(" | ") }
        }
        Some("number" | "integer") => "number".to_owned(),
        Some("boolean") => "boolean".to_owned(),
        Some("array") => match schema.get("items") {
            Some(items) => format!("{}[]", type_of(items, indent)),
            None => "Array<any>".to_owned(),
        },
        _ => "any".to_owned(),
    }
}

fn object(schema: &Value, indent: &str) -> String {
    let mut out = String::new();
    comment(&mut out, indent, text(schema, "description"));
    out.push_str("{\n");
    let required = array(schema, "required").unwrap_or_default();
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let optional = !required.iter().any(|name| name.as_str() == Some(key));
        write_property(&mut out, indent, key, optional, property);
    }
    out + indent + "}"
}

fn write_property(out: &mut String, indent: &str, key: &str, optional: bool, property: &Value) {
    let variants = array(property, "oneOf");
    if let Some(title) = text(property, "title") {
        comment(out, indent, Some(title));
        out.extend([indent, "//\n"]);
    }
    if property.get("oneOf").is_none() {
        comment(out, indent, text(property, "description"));
    }
    if let Some(examples) = array(property, "examples").filter(|examples| !examples.is_empty()) {
        comment(out, indent, Some("Examples:"));
        for example in examples.iter().filter_map(Value::as_str) {
            comment(out, indent, Some(&format!("- \"{example}\"")));
        }
    }
    let mark = if optional { "?" } else { "" };
    if let Some(variants) = variants {
        write_variants(out, indent, &format!("{key}{mark}"), property, variants);
        return;
    }
    let of_type = nullable(property, type_of(property, &format!("{indent}    ")));
    let default = if property.get("oneOf").is_none() { default_of(property, false) } else { None };
    out.extend([indent, key, mark, ": ", &of_type, ",", &comments([default, None]), "\n"]);
}

/// A property that is one of several types, one a line.
fn write_variants(out: &mut String, indent: &str, name: &str, property: &Value, variants: &[Value]) {
    let description = text(property, "description");
    let first = variants.first().and_then(|variant| text(variant, "description"));
    let described_above = description.is_some() && description != first;
    comment(out, indent, description.filter(|_| described_above));
    comment(out, indent, default_of(property, false).as_deref());
    out.extend([indent, name, ":\n"]);
    for (index, variant) in variants.iter().enumerate() {
        let own = text(variant, "description");
        let own = own.filter(|_| own != description && !(index == 0 && described_above));
        let comments = comments([own.map(str::to_owned), default_of(variant, false)]);
        out.extend([indent, " | ", &variant_type(variant, indent), &comments, "\n"]);
    }
    out.extend([indent, ",\n"]);
}

fn variant_type(variant: &Value, indent: &str) -> String {
    nullable(variant, type_of(variant, &format!("{indent}   ")))
}

fn nullable(schema: &Value, of_type: String) -> String {
    let nullable = schema.get("nullable").and_then(Value::as_bool) == Some(true);
    if nullable && !of_type.contains("null") { of_type + " | null" } else { of_type }
}

/// `default: …`: strings quoted unless they are one of an enumeration, which only variants on the top level quote too.
fn default_of(schema: &Value, quotes_enums: bool) -> Option<String> {
    let default = schema.get("default")?;
    let enumerated = array(schema, "enum").is_some_and(|values| !values.is_empty());
    Some(match default.as_str() {
        Some(text) if !enumerated || quotes_enums => format!("default: \"{text}\""),
        Some(text) => format!("default: {text}"),
        None => format!("default: {default}"),
    })
}

fn comment(out: &mut String, indent: &str, text: Option<&str>) {
    if let Some(text) = text {
        out.extend([indent, "// ", text, "\n"]);
    }
}

fn comments(parts: [Option<String>; 2]) -> String {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { String::new() } else { format!(" // {}", parts.join(" ")) }
}

fn text<'s>(schema: &'s Value, key: &str) -> Option<&'s str> {
    schema.get(key)?.as_str()
}

fn array<'s>(schema: &'s Value, key: &str) -> Option<&'s [Value]> {
    schema.get(key)?.as_array().map(Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types_follow_the_reference() {
        for (schema, expected) in [
            (json!({"type": "integer"}), "number"),
            (json!({"type": ["string", "integer", "null"]}), "string | number | null"),
            (json!({"type": "array"}), "Array<any>"),
            (json!({"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}), "\"a\" | \"b\"[]"),
            (json!({"type": "object"}), "{\n}"),
            (json!({"type": "object", "properties": {}}), "{\n}"),
            (json!({}), "any"),
            (json!(null), "any"),
            (json!({"type": "null"}), "any"),
            (json!({"type": []}), "any"),
            (json!({"anyOf": [{"type": "string"}]}), "any"),
            (
                json!({"oneOf": [{"type": "string", "description": "d", "default": "x"}, {"type": "number", "nullable": true}]}),
                "\n | string // d default: \"x\"\n | number | null",
            ),
            (
                json!({"type": "object", "required": ["o"], "properties": {
                    "o": {"type": "object", "description": "D", "properties": {
                        "n": {"type": "number", "default": 3, "nullable": true}}},
                    "s": {"type": "string", "default": "v"}}}),
                "{\n// D\no:     // D\n{\n    n?: number | null, // default: 3\n    },\ns?: string, // default: \"v\"\n}",
            ),
            (
                json!({"type": "object", "properties": {"v": {"description": "same", "oneOf": [
                    {"type": "string", "description": "same"}, {"type": "boolean", "description": "other", "default": true}]}}}),
                "{\nv?:\n | string\n | boolean // other default: true\n,\n}",
            ),
        ] {
            assert_eq!(type_of(&schema, ""), expected, "{schema}");
        }
    }

    #[test]
    fn deep_schemas_end() {
        let mut schema = json!({"type": "string"});
        for _ in 0..200 {
            schema = json!({"type": "object", "properties": {"x": schema}});
        }
        assert!(type_of(&schema, "").contains("any"));
    }
}
