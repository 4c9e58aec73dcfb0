//! `tools`, `tool_choice` and `parallel_tool_calls`: what the model may call, and whether it must.

use serde_json::Value;

use crate::server::body::Fields;
use crate::server::error::ApiError;
use crate::text::chat::Tool;

/// Most functions of a request.
const MAX_TOOLS: usize = 128;
/// Most characters of a function's name.
pub const MAX_NAME_CHARS: usize = 128;

/// Whether the model calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// One of the functions at least.
    Required,
    /// This function.
    Function(String),
}

/// What a request says of tools.
#[derive(Clone, Debug, Default)]
pub struct ToolUse {
    /// The functions the model may call; none when it may not.
    pub tools: Vec<Tool>,
    /// Whether it calls.
    pub choice: ToolChoice,
    /// One call at most.
    pub single: bool,
}

impl ToolUse {
    /// Takes the fields as chat completions have them.
    ///
    /// # Errors
    ///
    /// 400 that names the part at fault.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let function = |item: Value, index: usize| {
            if item.get("type").is_some_and(|kind| kind != "function") {
                return Err(ApiError::invalid(format!("tools[{index}].type"), "expected function"));
            }
            tool(item, &format!("tools[{index}].function"))
        };
        let named =
            |choice: &Value| choice.get("function").and_then(|function| function.get("name")).cloned();
        Self::read(fields, function, named)
    }

    /// Takes the fields; `function` reads one tool, and `named` the function's name from a `tool_choice`.
    ///
    /// # Errors
    ///
    /// 400 that names the part at fault.
    pub fn read(
        fields: &mut Fields,
        function: impl Fn(Value, usize) -> Result<Tool, ApiError>,
        named: impl Fn(&Value) -> Option<Value>,
    ) -> Result<Self, ApiError> {
        let tools: Vec<Tool> = match fields.present("tools") {
            None => vec![],
            Some(Value::Array(items)) if items.len() <= MAX_TOOLS => {
                let items = items.into_iter().enumerate();
                items.map(|(index, item)| function(item, index)).collect::<Result<_, _>>()?
            }
            Some(_) => {
                let rule = format_args!("expected a list of at most {MAX_TOOLS} tools");
                return Err(ApiError::invalid("tools", rule));
            }
        };
        let single = fields.switch("parallel_tool_calls")? == Some(false);
        let unsupported = || ApiError {
            detail: Some("unsupported_value"),
            ..ApiError::invalid("tool_choice", "expected auto, none, required or a function by its name")
        };
        let choice = match fields.present("tool_choice") {
            None => ToolChoice::Auto,
            Some(Value::String(choice)) => match choice.as_str() {
                "auto" => ToolChoice::Auto,
                "none" => return Ok(Self::default()),
                "required" if tools.is_empty() => {
                    return Err(ApiError::invalid("tool_choice", "required, but there are no tools"));
                }
                "required" => ToolChoice::Required,
                _ => return Err(unsupported()),
            },
            Some(choice) if choice.get("type").is_some_and(|kind| kind == "function") => {
                let name = named(&choice).and_then(|name| name.as_str().map(str::to_owned));
                let name = name.ok_or_else(unsupported)?;
                if tools.iter().all(|tool| tool.name != name) {
                    return Err(ApiError::invalid("tool_choice", "expected the name of one of the tools"));
                }
                ToolChoice::Function(name)
            }
            Some(_) => return Err(unsupported()),
        };
        Ok(Self { tools, choice, single })
    }
}

/// Whether a tool's arguments are to keep to its parameters wherever it is called.
pub fn is_strict(tool: &Tool) -> bool {
    let strict = tool.definition.get("function").and_then(|function| function.get("strict"));
    strict.is_some_and(|strict| *strict == Value::Bool(true))
}

/// A tool from `{type: "function", function: {…}}`; `place` names the inner object in errors.
///
/// # Errors
///
/// 400 that names the part at fault.
pub fn tool(item: Value, place: &str) -> Result<Tool, ApiError> {
    let function = item.get("function");
    let part = |name: &str| function.and_then(|function| function.get(name)).filter(|part| !part.is_null());
    if part("parameters").is_some_and(|parameters| !parameters.is_object()) {
        return Err(ApiError::invalid(format!("{place}.parameters"), "expected an object"));
    }
    if part("strict").is_some_and(|strict| !strict.is_boolean()) {
        return Err(ApiError::invalid(format!("{place}.strict"), "expected true or false"));
    }
    if part("description").is_some_and(|description| !description.is_string()) {
        return Err(ApiError::invalid(format!("{place}.description"), "expected a string"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    Tool::from_definition(item)
        .filter(|tool| (1..=MAX_NAME_CHARS).contains(&tool.name.len()) && tool.name.chars().all(fits))
        .ok_or_else(|| {
            let rule = format_args!("expected 1 to {MAX_NAME_CHARS} letters, digits, '_', '-' or '.'");
            ApiError::invalid(format!("{place}.name"), rule)
        })
}
