//! Which words stand where: marks of unfinished work, banned names, devices and models where they are not known.

use crate::source::{Source, Violation, is_test_path, line_of, words};

/// Marks of unfinished work, anywhere; written in halves here, for this file is read too.
const MARKS: [&str; 4] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
/// Code that is not done or not run.
const UNFINISHED: [&str; 4] = [
    concat!("todo", "!"),
    concat!("unimplemented", "!"),
    concat!("#[", "ignore"),
    concat!("#[should_", "panic"),
];

/// Names that say nothing, as words of file, module and public item names.
const BANNED: [&str; 9] = ["util", "utils", "helper", "helpers", "manager", "misc", "common", "v1", "v2"];
/// A folder that may carry a banned name.
const NAMED_ALL_THE_SAME: &str = "cuda/common/";
/// Words that need another beside them.
const ALONE: [&str; 2] = ["context", "new"];
/// What introduces a name.
const ITEMS: [&str; 8] = ["fn", "struct", "enum", "trait", "mod", "const", "static", "type"];

/// Words of which a name in `live` code of `src/` may hold none, but for the homes and the wire's own words.
const DEVICES: [&str; 2] = ["cuda", "wgpu"];
const DEVICE_HOMES: [&str; 5] =
    ["src/device.rs", "src/config.rs", "src/commands/", "src/main.rs", "src/lib.rs"];
const WIRE_WORDS: [(&str, &str); 4] = [
    ("src/server/", "cuda_driver_version"),
    ("src/server/", "CudaError"),
    ("src/server/", "CUDA_ERROR"),
    // Where a device's failure gets the code the wire has for it.
    ("src/server/error.rs", "cuda"),
];

/// Names of models, of which a backend has none.
const MODELS: [&str; 9] = ["qwen", "qwen2", "phi3", "phi", "llama", "gpt", "gpt2", "gptoss", "haiku"];
const BACKENDS: [&str; 3] = ["backends/", "shaders/", "cuda/"];

/// What the tree never says, in lower case: hosts of registries, paths of one machine, how the text came about.
const UNWELCOME: [(&str, &str); 17] = [
    (concat!("crates", ".io"), "a registry's host"),
    (concat!("py", "pi"), "a registry's host"),
    (concat!("pythonhosted", ".org"), "a registry's host"),
    (concat!("npmjs", "."), "a registry's host"),
    (concat!("docker", ".io"), "a registry's host"),
    (concat!("ghcr", ".io"), "a registry's host"),
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("sub", "agent"), "how the text came about"),
    (concat!("sub-", "agent"), "how the text came about"),
    (concat!("this ", "session"), "how the text came about"),
    (concat!("the ", "lead "), "how the text came about"),
    (concat!("work", "tree"), "how the text came about"),
    (concat!("co-author", "ed-by"), "how the text came about"),
    (concat!("language model ", "assistant"), "how the text came about"),
    (concat!("proof ", "bundle"), "a concept this software does not have"),
];

pub(crate) fn check(source: &Source) -> Vec<Violation> {
    let mut found = vec![];
    marks(source, &mut found);
    unwelcome(source, &mut found);
    file_name(source, &mut found);
    if source.is(".rs") {
        item_names(source, &mut found);
    }
    devices(source, &mut found);
    models(source, &mut found);
    found
}

fn marks(source: &Source, found: &mut Vec<Violation>) {
    for (at, word) in words(&source.text) {
        if MARKS.contains(&word) {
            found.push(source.violation(line_of(&source.text, at), "unfinished work", word));
        }
    }
    for mark in UNFINISHED {
        for (at, _) in source.text.match_indices(mark) {
            found.push(source.violation(line_of(&source.text, at), "unfinished work", mark));
        }
    }
}

fn unwelcome(source: &Source, found: &mut Vec<Violation>) {
    let text = source.text.to_ascii_lowercase();
    for (words, why) in UNWELCOME {
        for (at, _) in text.match_indices(words) {
            found.push(source.violation(
                line_of(&text, at),
                "unwelcome words",
                format!("{words:?} is {why}"),
            ));
        }
    }
}

fn file_name(source: &Source, found: &mut Vec<Violation>) {
    if source.path.starts_with(NAMED_ALL_THE_SAME) {
        return;
    }
    for part in source.path.split('/') {
        if let Some(word) = banned_word(part.split('.').next().unwrap_or(part)) {
            found.push(source.violation(0, "banned name", format!("{word:?} in the file's path")));
        }
    }
}

fn item_names(source: &Source, found: &mut Vec<Violation>) {
    let mut before = "";
    for (at, word) in words(&source.code) {
        let item = ITEMS.contains(&before);
        let constructor = before == "fn" && matches!(word, "new" | "context");
        let private_function = before == "fn" && !is_public(&source.code, at);
        if item
            && !constructor
            && !private_function
            && let Some(banned) = banned_word(word)
        {
            let line = line_of(&source.code, at);
            found.push(source.violation(line, "banned name", format!("{banned:?} in {before} {word}")));
        }
        before = word;
    }
}

fn is_public(code: &str, at: usize) -> bool {
    let line_start = code[..at].rfind('\n').map_or(0, |newline| newline + 1);
    code[line_start..at].trim_start().starts_with("pub")
}

/// The banned word in a name of either case style.
fn banned_word(name: &str) -> Option<String> {
    let mut snake = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_uppercase() && at > 0 && !name[..at].ends_with(|c: char| c.is_uppercase() || c == '_') {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    if ALONE.contains(&snake.as_str()) {
        return Some(snake);
    }
    let trimmed = snake.trim_matches('_').to_owned();
    trimmed.split('_').find(|part| BANNED.contains(part)).map(str::to_owned)
}

fn devices(source: &Source, found: &mut Vec<Violation>) {
    if !source.path.starts_with("src/") || DEVICE_HOMES.iter().any(|home| source.path.starts_with(home)) {
        return;
    }
    for (at, word) in words(&source.live) {
        let lower = word.to_ascii_lowercase();
        let wire = WIRE_WORDS.iter().any(|(home, name)| source.path.starts_with(home) && *name == word);
        if DEVICES.iter().any(|device| lower.contains(device)) && !wire {
            let line = line_of(&source.live, at);
            found.push(source.violation(
                line,
                "device name",
                format!("{word} outside {}", DEVICE_HOMES.join(", ")),
            ));
        }
    }
}

fn models(source: &Source, found: &mut Vec<Violation>) {
    let kernels = [".rs", ".wgsl", ".cu", ".cuh"].iter().any(|ending| source.is(ending));
    let backend = kernels && BACKENDS.iter().any(|folder| source.path.starts_with(folder));
    if !backend || is_test_path(&source.path) {
        return;
    }
    for (at, word) in words(&source.live) {
        let lower = word.to_ascii_lowercase();
        if lower.split('_').any(|part| MODELS.contains(&part)) {
            let line = line_of(&source.live, at);
            found.push(source.violation(
                line,
                "model name",
                format!("{word}: a backend never sees a model's name"),
            ));
        }
    }
}
