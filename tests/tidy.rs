//! The house rules that no compiler checks: who may know whom, how long things are, which words stand where, and that
//! no operation lacks a part. Each failure names file, line and rule.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "tidy/budgets.rs"]
mod budgets;
#[path = "tidy/completeness.rs"]
mod completeness;
#[path = "tidy/edges.rs"]
mod edges;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/unsafety.rs"]
mod unsafety;
#[path = "tidy/wording.rs"]
mod wording;

use std::path::Path;

use source::{Source, Violation, tree};

fn sources() -> Vec<Source> {
    tree(Path::new(env!("CARGO_MANIFEST_DIR")))
}

#[track_caller]
fn none(violations: &[Violation]) {
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{} broken rules:\n{}", lines.len(), lines.join("\n"));
}

#[track_caller]
fn every(check: impl Fn(&Source) -> Vec<Violation>) {
    none(&sources().iter().flat_map(check).collect::<Vec<_>>());
}

#[test]
fn arrows_point_down() {
    every(edges::check);
}

#[test]
fn files_and_functions_keep_their_budgets() {
    every(budgets::check);
}

#[test]
fn words_stand_where_they_belong() {
    every(wording::check);
}

#[test]
fn unsafe_code_is_named_and_reasoned() {
    every(unsafety::check);
    let sources = sources();
    for file in unsafety::FILES {
        let holder = sources.iter().find(|source| source.path == file);
        let used = holder.is_none_or(|source| source.bare.contains("unsafe"));
        assert!(used, "{file} may hold unsafe code but holds none: take it off the list");
    }
}

#[test]
fn no_operation_and_no_requirement_lacks_a_part() {
    none(&completeness::check(&sources()));
}

/// A file that breaks one rule: path, text, the rule, the line.
type Bad = (&'static str, String, &'static str, usize);

fn bad_files() -> Vec<Bad> {
    let rs = |body: &str| format!("//! A file with one fault.\n{body}\n");
    let long_kernel =
        format!("// A kernel that goes on and on.\nvoid f(int a) {{\n{}}}\n", "a;\n".repeat(130));
    vec![
        ("src/gguf/x.rs", rs("use crate::model::Model;"), "module edge", 2),
        ("src/engine/x.rs", rs("use crate::{model::Model, text::Tokenizer};"), "module edge", 2),
        ("src/engine/x/y.rs", rs("fn f() { super::super::super::server::g() }"), "module edge", 2),
        ("src/model/mod.rs", rs("\nuse super::engine::Job;"), "module edge", 3),
        ("src/commands/x.rs", rs("use worker_orcd_wgpu::open;"), "crate edge", 2),
        ("src/engine/x.rs", rs("fn f() -> axum::Router {}"), "crate edge", 2),
        ("src/gguf/x.rs", rs("use worker_orcd_core::{DType, Op};"), "core edge", 2),
        ("backends/wgpu/Cargo.toml", "[dependencies]\nworker-orcd = \"1\"\n".into(), "manifest edge", 2),
        ("src/x.rs", rs(concat!("// TO", "DO: later")), "unfinished work", 2),
        ("tests/x.rs", rs(concat!("#[", "ignore]")), "unfinished work", 2),
        ("src/x.rs", rs(concat!("// see /ho", "me/me")), "unwelcome words", 2),
        ("src/text/helpers.rs", rs(""), "banned name", 0),
        ("src/x.rs", rs("pub struct CacheManager;"), "banned name", 2),
        ("src/x.rs", rs("pub(crate) fn parse_v2() {}"), "banned name", 2),
        ("src/x.rs", rs("pub struct Context;"), "banned name", 2),
        ("src/engine/x.rs", rs("fn f(name: &str) -> bool { name == \"cuda\" }"), "device name", 2),
        ("src/text/x.rs", rs("struct WgpuThing;"), "device name", 2),
        ("backends/core/src/x.rs", rs("fn gpt_oss() {}"), "model name", 2),
        ("shaders/x.wgsl", "// A shader that knows.\nfn qwen2() {}\n".into(), "model name", 2),
        ("src/x.rs", rs(&"\n".repeat(600)), "file budget", 602),
        ("cuda/x.cu", long_kernel, "function budget", 2),
        ("cuda/x.cuh", format!("// A line too far.\n// {}\n", "x".repeat(130)), "line budget", 2),
        ("src/x.rs", "fn main() {}\n".into(), "file header", 1),
        ("src/x.rs", "//! x\n".into(), "file header", 1),
        ("src/x.rs", rs("fn f() {} "), "white space", 2),
        ("src/x.rs", "//! A file without an end.".into(), "white space", 1),
        ("src/x.rs", rs("// SAFETY: not here.\nfn f() { unsafe { g() } }"), "unsafe place", 3),
        ("src/gguf/map.rs", rs("fn f() { unsafe { g() } }"), "unsafe without a reason", 2),
    ]
}

#[test]
fn every_rule_can_fail() {
    let rules = [edges::check, budgets::check, wording::check, unsafety::check];
    for (path, text, rule, line) in bad_files() {
        let source = Source::new(path, &text);
        let found: Vec<Violation> = rules.iter().flat_map(|check| check(&source)).collect();
        let met: Vec<(&str, usize)> =
            found.iter().map(|violation| (violation.rule, violation.place.1)).collect();
        assert_eq!(met, [(rule, line)], "{path}: {text}");
    }
}

#[test]
fn rules_do_not_see_comments_strings_and_tests() {
    let text = "//! A file without a fault: crate::server, unsafe.\n\
        /* crate::server /* nested */ crate::text */\n\
        const A: &str = \"crate::server \\\" unsafe\";\n\
        const B: &str = r#\"crate::server \" crate::text\"#;\n\
        const C: (char, char) = ('\"', '\\'');\n\
        fn f<'a>(x: &'a str) -> &'a str { x } // 'wgpu'\n\
        use crate::gguf::Gguf;\n\
        #[cfg(test)]\n\
        mod tests {\n    use crate::server::g;\n}\n";
    let source = Source::new("src/model/x.rs", text);
    assert_eq!(source.code.len(), text.len());
    let rules = [edges::check, budgets::check, wording::check, unsafety::check];
    none(&rules.iter().flat_map(|check| check(&source)).collect::<Vec<_>>());
    let after_tests = Source::new("src/model/x.rs", &format!("{text}use crate::server::g;\n"));
    let found = edges::check(&after_tests);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].place.1, 12);
}
