//! The tree as the rules see it: every text file as written, and with comments, strings or test code blanked out.

use std::fmt;
use std::fs;
use std::path::Path;

/// One text file of the tree.
#[derive(Debug)]
pub(crate) struct Source {
    /// Path from the root, with `/`.
    pub(crate) path: String,
    /// As written.
    pub(crate) text: String,
    /// Comments blanked; strings stand.
    pub(crate) uncommented: String,
    /// Comments and strings blanked.
    pub(crate) bare: String,
    /// `bare` with test code blanked.
    pub(crate) code: String,
    /// `uncommented` with test code blanked.
    pub(crate) live: String,
}

/// One broken rule at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// File and line, 1-based; line 0 = the file as a whole.
    pub(crate) place: (String, usize),
    /// The rule's name.
    pub(crate) rule: &'static str,
    /// What was found.
    pub(crate) detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.place.0, self.place.1, self.rule, self.detail)
    }
}

/// Endings of the files the rules read. Data, models and lock files are not prose or code of ours.
const ENDINGS: [&str; 10] =
    [".rs", ".wgsl", ".cu", ".cuh", ".toml", ".md", ".yml", ".yaml", "Makefile", ".gitignore"];
/// Folders that are not part of the tree.
const NOT_OURS: [&str; 4] = ["fuzz/target", "fuzz/corpus", "fuzz/artifacts", ".git"];

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let rust = path.rsplit('.').next() == Some("rs");
        let code_like = [".rs", ".wgsl", ".cu", ".cuh"].iter().any(|ending| path.ends_with(ending));
        let (uncommented, bare) =
            if code_like { blank(text, rust) } else { (text.to_owned(), text.to_owned()) };
        let tests = if rust { test_ranges(&bare, is_test_path(path)) } else { vec![] };
        let live = blank_ranges(&uncommented, &tests);
        let code = blank_ranges(&bare, &tests);
        Self { path: path.to_owned(), text: text.to_owned(), uncommented, bare, code, live }
    }

    pub(crate) fn violation(&self, line: usize, rule: &'static str, detail: impl Into<String>) -> Violation {
        Violation { place: (self.path.clone(), line), rule, detail: detail.into() }
    }

    pub(crate) fn is(&self, ending: &str) -> bool {
        self.path.ends_with(ending)
    }
}

/// Every text file below the root.
pub(crate) fn tree(root: &Path) -> Vec<Source> {
    let mut sources = vec![];
    visit(root, "", &mut sources);
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 50, "the tree has only {} text files below {}", sources.len(), root.display());
    sources
}

fn visit(root: &Path, folder: &str, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(root.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let kind = entry.file_type().unwrap();
        let built = folder.is_empty() && name.starts_with("target");
        if kind.is_dir() && !built && !NOT_OURS.contains(&path.as_str()) {
            visit(root, &path, sources);
        } else if kind.is_file() && (ENDINGS.iter().any(|e| name.ends_with(e)) || folder == ".ci") {
            sources.push(Source::new(&path, &fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

/// Whether a whole file is test code; the table of conformance cases is.
pub(crate) fn is_test_path(path: &str) -> bool {
    path.starts_with("tests/")
        || path.starts_with("fuzz/")
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.contains("/conformance/")
}

/// 1-based line of a byte offset.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text[..at].split('\n').count()
}

/// Identifiers and numbers with their offsets.
pub(crate) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let bytes = text.as_bytes();
    let part = |at: usize| bytes.get(at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    (0..bytes.len()).filter(move |&at| part(at) && (at == 0 || !part(at - 1))).map(move |at| {
        let end = (at..bytes.len()).find(|&end| !part(end)).unwrap_or(bytes.len());
        (at, &text[at..end])
    })
}

/// Offset just past the bracket that closes the one at `open`.
pub(crate) fn closing(code: &str, open: usize) -> usize {
    let (mut depth, bytes) = (0_i32, code.as_bytes());
    for (at, byte) in bytes.iter().enumerate().skip(open) {
        depth += match byte {
            b'{' | b'(' | b'[' => 1,
            b'}' | b')' | b']' => -1,
            _ => 0,
        };
        if depth == 0 {
            return at + 1;
        }
    }
    bytes.len()
}

fn test_ranges(code: &str, whole: bool) -> Vec<(usize, usize)> {
    if whole {
        return vec![(0, code.len())];
    }
    let mut ranges = vec![];
    for (at, _) in code.match_indices("#[cfg(test)]") {
        let body = code[at..].find(['{', ';']).map_or(code.len(), |found| at + found);
        let end = if code[body..].starts_with('{') { closing(code, body) } else { body };
        ranges.push((at, end));
    }
    ranges
}

fn blank_ranges(text: &str, ranges: &[(usize, usize)]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for &(start, end) in ranges {
        wipe(&mut bytes, start, end);
    }
    String::from_utf8(bytes).unwrap()
}

/// Blanks `start..end`, keeping line ends.
fn wipe(bytes: &mut [u8], start: usize, end: usize) {
    for byte in &mut bytes[start..end] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

/// The text without comments, and without comments and strings.
fn blank(text: &str, rust: bool) -> (String, String) {
    let (mut uncommented, mut code) = (text.as_bytes().to_vec(), text.as_bytes().to_vec());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        let end = if rest.starts_with(b"//") {
            rest.iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| at + n)
        } else if rest.starts_with(b"/*") {
            block_comment(rest) + at
        } else if let Some(length) = literal(bytes, at, rust) {
            wipe(&mut code, at + 1, at + length - 1);
            at += length;
            continue;
        } else {
            at += 1;
            continue;
        };
        wipe(&mut uncommented, at, end);
        wipe(&mut code, at, end);
        at = end;
    }
    (String::from_utf8(uncommented).unwrap(), String::from_utf8(code).unwrap())
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Length of the string or character literal at `at`, if one starts there.
fn literal(bytes: &[u8], at: usize, rust: bool) -> Option<usize> {
    let rest = &bytes[at..];
    let after_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    let raw_prefix = rest.first() == Some(&b'r') && (!after_word || matches!(bytes[at - 1], b'b' | b'c'));
    if rust && raw_prefix {
        let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
        if rest.get(1 + hashes) == Some(&b'"') {
            let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
            let body = 2 + hashes;
            let found = rest[body..].windows(close.len()).position(|window| window == close);
            return Some(found.map_or(rest.len(), |n| body + n + close.len()));
        }
    }
    match rest.first()? {
        b'"' => Some(quoted(rest, b'"')),
        b'\'' if rest.get(1) == Some(&b'\\') => Some(quoted(rest, b'\'')),
        b'\'' => (2..=5)
            .find(|&n| rest.get(n) == Some(&b'\''))
            .filter(|&n| is_one_char(&rest[1..n]))
            .map(|n| n + 1),
        _ => None,
    }
}

fn is_one_char(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| text.chars().count() == 1)
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}
