//! Who may know whom: arrows point down only.

use crate::source::{Source, Violation, closing, is_test_path, line_of, words};

/// Modules of `src/`, and the other modules of `src/` each may name. `commands` and `main.rs` may name all.
const MODULES: [(&str, &[&str]); 8] = [
    ("gguf", &[]),
    ("model", &["gguf"]),
    ("text", &["gguf"]),
    ("engine", &["model", "gguf"]),
    ("server", &["text", "engine", "model", "gguf", "config", "random"]),
    ("device", &["config"]),
    ("config", &["random"]),
    ("random", &[]),
];

/// Crates that belong to one place, and where that is.
const CRATES: [(&str, &[&str]); 9] = [
    ("worker_orcd_cuda", &["src/device.rs"]),
    ("worker_orcd_wgpu", &["src/device.rs"]),
    ("axum", &["src/server/"]),
    ("tokenizers", &["src/text/"]),
    ("minijinja", &["src/text/"]),
    ("memmap2", &["src/gguf/map.rs"]),
    ("indicatif", &["src/commands/"]),
    ("cudarc", &["backends/cuda/"]),
    ("wgpu", &["backends/wgpu/"]),
];

/// What may be named of the operations' crate: the container reader knows storage formats and nothing else.
const CORE_ITEMS: [(&str, &[&str]); 1] = [("src/gguf/", &["DType"])];

/// Crates of this workspace each manifest may depend on.
const MANIFESTS: [(&str, &[&str]); 3] = [
    ("backends/core/Cargo.toml", &[]),
    ("backends/cuda/Cargo.toml", &["worker-orcd-core"]),
    ("backends/wgpu/Cargo.toml", &["worker-orcd-core"]),
];

pub(crate) fn check(source: &Source) -> Vec<Violation> {
    let mut found = vec![];
    if source.is(".rs") && !is_test_path(&source.path) {
        modules(source, &mut found);
        crates(source, &mut found);
        core_items(source, &mut found);
    }
    if let Some((_, allowed)) = MANIFESTS.iter().find(|(path, _)| *path == source.path) {
        manifest(source, allowed, &mut found);
    }
    found
}

fn modules(source: &Source, found: &mut Vec<Violation>) {
    let Some(inside) = source.path.strip_prefix("src/") else { return };
    let module = inside.split(['/', '.']).next().unwrap_or(inside);
    let Some((_, allowed)) = MODULES.iter().find(|(name, _)| *name == module) else { return };
    for (at, target) in named_modules(source, inside) {
        let known = MODULES.iter().any(|(name, _)| *name == target) || target == "commands";
        if known && target != module && !allowed.contains(&target.as_str()) {
            let line = line_of(&source.code, at);
            found.push(source.violation(line, "module edge", format!("{module} must not know {target}")));
        }
    }
}

/// Modules of the crate's root a file names, by `crate::` or by enough `super::`.
fn named_modules(source: &Source, inside: &str) -> Vec<(usize, String)> {
    let code = &source.code;
    let depth = inside.trim_end_matches("/mod.rs").split('/').count();
    let mut named = vec![];
    for (at, word) in words(code) {
        let rest = &code[at..];
        let first = at < 7 || !code[..at].ends_with("super::");
        if word == "crate" && rest.starts_with("crate::") {
            named.extend(path_heads(code, at + "crate::".len()));
        } else if word == "super" && first {
            let climbs = rest.split("::").take_while(|part| *part == "super").count();
            if climbs >= depth {
                named.extend(path_heads(code, at + climbs * "super::".len()));
            }
        }
    }
    named
}

/// The first names of a path or of a brace group of paths.
fn path_heads(code: &str, at: usize) -> Vec<(usize, String)> {
    if !code[at..].starts_with('{') {
        return words(&code[at..])
            .next()
            .map(|(gap, word)| (at + gap, word.to_owned()))
            .into_iter()
            .collect();
    }
    let end = closing(code, at);
    let (mut heads, mut depth, mut head) = (vec![], 0, true);
    let mut cursor = at;
    for (gap, word) in words(&code[at..end]) {
        for byte in code[cursor..at + gap].bytes() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b',' if depth == 1 => head = true,
                _ => {}
            }
        }
        if depth == 1 && head {
            heads.push((at + gap, word.to_owned()));
        }
        head = false;
        cursor = at + gap + word.len();
    }
    heads
}

fn crates(source: &Source, found: &mut Vec<Violation>) {
    for (at, word) in words(&source.code) {
        let Some((_, homes)) = CRATES.iter().find(|(name, _)| *name == word) else { continue };
        let path_start =
            source.code[at + word.len()..].starts_with("::") && !source.code[..at].ends_with("::");
        if path_start && !homes.iter().any(|home| source.path.starts_with(home)) {
            let line = line_of(&source.code, at);
            found.push(source.violation(
                line,
                "crate edge",
                format!("{word} is known only to {}", homes.join(", ")),
            ));
        }
    }
}

fn core_items(source: &Source, found: &mut Vec<Violation>) {
    let Some((_, allowed)) = CORE_ITEMS.iter().find(|(home, _)| source.path.starts_with(home)) else {
        return;
    };
    for (at, _) in source.code.match_indices("worker_orcd_core::") {
        for (place, item) in path_heads(&source.code, at + "worker_orcd_core::".len()) {
            if !allowed.contains(&item.as_str()) {
                let line = line_of(&source.code, place);
                found.push(source.violation(line, "core edge", format!("{item} is not among {allowed:?}")));
            }
        }
    }
}

fn manifest(source: &Source, allowed: &[&str], found: &mut Vec<Violation>) {
    let mut dependencies = false;
    for (index, line) in source.text.lines().enumerate() {
        if line.starts_with('[') {
            dependencies = line.contains("dependencies");
        }
        let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
        if dependencies && name.starts_with("worker-orcd") && !allowed.contains(&name) {
            found.push(source.violation(index + 1, "manifest edge", format!("must not depend on {name}")));
        }
    }
}
