//! The tools that gpt-oss models know by training, in the words they were trained on.

/// Which of them a request allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BuiltinTools {
    /// `browser.search`, `browser.open`, `browser.find`.
    pub browser: bool,
    /// `python`.
    pub python: bool,
}

impl BuiltinTools {
    /// Whether `recipient` names one of the allowed tools.
    pub(super) fn has(self, recipient: &str) -> bool {
        (self.python && recipient == "python") || (self.browser && recipient.starts_with("browser."))
    }

    /// The `# Tools` section of the system message; `None` without tools.
    pub(super) fn section(self) -> Option<String> {
        let browser = self.browser.then_some(BROWSER);
        let python = self.python.then_some(PYTHON);
        let sections: Vec<&str> = browser.into_iter().chain(python).collect();
        (!sections.is_empty()).then(|| format!("# Tools\n\n{}", sections.join("\n\n")))
    }
}

const BROWSER: &str = "\
## browser

// Tool for browsing.
// The `cursor` appears in brackets before each browsing display: `[{cursor}]`.
// Cite information from the tool using the following format:
// `【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.
// Do not quote more than 10 words directly from the tool output.
// sources=web (default: web)
namespace browser {

// Searches for information related to `query` and displays `topn` results.
type search = (_: {
query: string,
topn?: number, // default: 10
source?: string,
}) => any;

// Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, showing `num_lines` lines.
// Valid link ids are displayed with the formatting: `【{id}†.*】`.
// If `cursor` is not provided, the most recent page is implied.
// If `id` is a string, it is treated as a fully qualified URL associated with `source`.
// If `loc` is not provided, the viewport will be positioned at the beginning of the document or centered on the most relevant passage, if available.
// Use this function without `id` to scroll to a new location of an opened page.
type open = (_: {
id?: number | string, // default: -1
cursor?: number, // default: -1
loc?: number, // default: -1
num_lines?: number, // default: -1
view_source?: boolean, // default: false
source?: string,
}) => any;

// Finds exact matches of `pattern` in the current page, or the page given by `cursor`.
type find = (_: {
pattern: string,
cursor?: number, // default: -1
}) => any;

} // namespace browser";

const PYTHON: &str = "\
## python

Use this tool to execute Python code in your chain of thought. The code will not be shown to the user. This tool \
should be used for internal reasoning, but not for code that is intended to be visible to the user (e.g. when creating \
plots, tables, or files).

When you send a message containing Python code to python, it will be executed in a stateful Jupyter notebook \
environment. python will respond with the output of the execution or time out after 120.0 seconds. The drive at \
'/mnt/data' can be used to save and persist user files. Internet access for this \
session is UNKNOWN. Depends on the cluster.";
