//! The developer message: what API clients call the system prompt, their functions, and the form of the answer.

use super::FUNCTIONS;
use super::typescript::type_of;
use crate::text::chat::{ResponseFormat, Tool};

/// What a developer message says.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeveloperText<'a> {
    /// The client's instructions.
    pub instructions: Option<&'a str>,
    /// The functions the model may call.
    pub tools: &'a [Tool],
    /// The form of the answer.
    pub response_format: Option<&'a ResponseFormat>,
}

impl DeveloperText<'_> {
    /// The message's text; `None` if there is nothing to say.
    pub fn render(&self) -> Option<String> {
        let mut sections = Vec::new();
        if let Some(instructions) = self.instructions {
            sections.push(format!("# Instructions\n\n{instructions}"));
        }
        if !self.tools.is_empty() {
            sections.push(namespace(self.tools));
        }
        if let Some(format) = self.response_format {
            let mut section = format!("# Response Formats\n\n## {}\n\n", format.name);
            for line in format.description.iter().flat_map(|description| description.lines()) {
                section.extend(["// ", line, "\n"]);
            }
            sections.push(section + &format.schema.to_string());
        }
        (!sections.is_empty()).then(|| sections.join("\n\n"))
    }
}

/// The `# Tools` section.
fn namespace(tools: &[Tool]) -> String {
    let mut section = format!("# Tools\n\n## {FUNCTIONS}\n\nnamespace {FUNCTIONS} {{\n\n");
    for tool in tools {
        for line in tool.description.iter().flat_map(|description| description.lines()) {
            section.extend(["// ", line, "\n"]);
        }
        let argument = tool.parameters.as_ref().map(|schema| format!("_: {}", type_of(schema, "")));
        section.extend(["type ", &tool.name, " = (", &argument.unwrap_or_default(), ") => any;\n\n"]);
    }
    section + &format!("}} // namespace {FUNCTIONS}")
}
