//! Where `unsafe` may stand, and that each use says why it holds.

use crate::source::{Source, Violation, line_of, words};

/// The only files with `unsafe`: the memory map, a counting allocator, and the layer over the CUDA driver.
pub(crate) const FILES: [&str; 9] = [
    "src/gguf/map.rs",
    "tests/gguf_hostile/counting.rs",
    "backends/cuda/src/driver/error.rs",
    "backends/cuda/src/driver/memory.rs",
    "backends/cuda/src/driver/mod.rs",
    "backends/cuda/src/driver/module.rs",
    "backends/cuda/src/driver/stream.rs",
    "backends/cuda/src/emulation/mod.rs",
    "backends/cuda/src/nvrtc.rs",
];
/// Lines above a use in which its reason begins.
const REACH: usize = 8;

pub(crate) fn check(source: &Source) -> Vec<Violation> {
    let mut found = vec![];
    if !source.is(".rs") {
        return found;
    }
    let lines: Vec<&str> = source.text.lines().collect();
    for (at, word) in words(&source.bare) {
        let line = line_of(&source.bare, at);
        if matches!(word, "unsafe_code") && source.bare[..at].ends_with("allow(") {
            allowed_here(source, line, &mut found);
        }
        if word != "unsafe" {
            continue;
        }
        allowed_here(source, line, &mut found);
        let pointer_type = source.bare[at..].starts_with("unsafe extern");
        let above = &lines[line.saturating_sub(1 + REACH)..line];
        if !pointer_type && !above.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety")) {
            found.push(source.violation(line, "unsafe without a reason", "no SAFETY line above"));
        }
    }
    found
}

fn allowed_here(source: &Source, line: usize, found: &mut Vec<Violation>) {
    if !FILES.contains(&source.path.as_str()) {
        found.push(source.violation(line, "unsafe place", format!("only in {}", FILES.join(", "))));
    }
}
