//! How long a file and a function may be, and how a file begins and ends.

use crate::source::{Source, Violation, closing, line_of};

/// Lines a file may have, by ending. Rust functions are clippy's business.
const FILE_LINES: [(&str, usize); 4] = [(".rs", 600), (".wgsl", 600), (".cuh", 600), (".cu", 800)];
/// Lines a function may have, by ending: a kernel's main loop with its prologue and epilogue is one thought.
const FUNCTION_LINES: [(&str, usize); 3] = [(".wgsl", 100), (".cuh", 120), (".cu", 120)];
/// How the first line begins, by ending.
const HEADERS: [(&str, &str); 5] =
    [(".rs", "//! "), (".wgsl", "// "), (".cu", "// "), (".cuh", "// "), ("Makefile", "# ")];
/// Words a header has at least.
const HEADER_WORDS: usize = 3;
/// Columns a line of a shader or kernel has at most; rustfmt keeps Rust narrower.
const COLUMNS: usize = 130;

pub(crate) fn check(source: &Source) -> Vec<Violation> {
    let mut found = vec![];
    if let Some(limit) = by_ending(&FILE_LINES, source) {
        let lines = source.text.lines().count();
        if lines > limit {
            found.push(source.violation(lines, "file budget", format!("{lines} lines, at most {limit}")));
        }
    }
    if let Some(limit) = by_ending(&FUNCTION_LINES, source) {
        functions(source, limit, &mut found);
        columns(source, &mut found);
    }
    header(source, &mut found);
    whitespace(source, &mut found);
    found
}

fn by_ending<T: Copy>(table: &[(&str, T)], source: &Source) -> Option<T> {
    table.iter().find(|(ending, _)| source.is(ending)).map(|(_, value)| *value)
}

/// Every brace group whose head has parentheses is a function; others (`extern "C"`, namespaces, structs) are entered.
fn functions(source: &Source, limit: usize, found: &mut Vec<Violation>) {
    let code = &source.code;
    let mut at = 0;
    while let Some(open) = code[at..].find('{').map(|gap| at + gap) {
        let head_start = code[..open].rfind([';', '}', '{']).map_or(0, |end| end + 1);
        let head = code[head_start..open].trim_start();
        at = open + 1;
        if head.contains('(') {
            at = closing(code, open);
            let first = line_of(code, open - head.trim_end().len().min(open));
            let lines = line_of(code, at) - first + 1;
            if lines > limit {
                let signature = head.rsplit("fn ").next().unwrap_or(head);
                let name = signature.split('(').next().unwrap_or(signature).split_whitespace().last();
                let name = name.unwrap_or("?");
                found.push(source.violation(
                    first,
                    "function budget",
                    format!("{name}: {lines} lines, at most {limit}"),
                ));
            }
        }
    }
}

fn columns(source: &Source, found: &mut Vec<Violation>) {
    for (index, line) in source.text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > COLUMNS {
            found.push(source.violation(
                index + 1,
                "line budget",
                format!("{columns} columns, at most {COLUMNS}"),
            ));
        }
    }
}

fn header(source: &Source, found: &mut Vec<Violation>) {
    let Some(start) = by_ending(&HEADERS, source) else { return };
    let first = source.text.lines().next().unwrap_or_default();
    if !first.starts_with(start) || first.split_whitespace().count() <= HEADER_WORDS {
        let detail = format!("the first line must begin {start:?} and say what the file is");
        found.push(source.violation(1, "file header", detail));
    }
}

fn whitespace(source: &Source, found: &mut Vec<Violation>) {
    for (index, line) in source.text.lines().enumerate() {
        if line.ends_with([' ', '\t']) {
            found.push(source.violation(index + 1, "white space", "at the line's end"));
        }
        if line.contains('\t') && !source.is("Makefile") {
            found.push(source.violation(index + 1, "white space", "a tab"));
        }
    }
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        found.push(source.violation(
            source.text.lines().count(),
            "white space",
            "no newline at the file's end",
        ));
    }
}
