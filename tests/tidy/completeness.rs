//! Nothing is missing: every operation has all its parts, shaders are checked offline, the README's tables are true.

use worker_orcd_core::conformance::cases;
use worker_orcd_core::{DType, Op};

use crate::source::{Source, Violation, words};

const README: &str = "README.md";
/// Sections of the README that a rule reads.
const OPERATIONS: &str = "## Operations";
const FLAGS: &str = "## Flags";
const REQUIREMENTS: &str = "## Requirements and their tests";
/// Words that together say that every shader is validated and translated; looked for in one test file.
const SHADER_TEST: [&str; 4] = ["Validator", "spv", "msl", "hlsl"];
/// Backends with the folder and ending of their kernels: one that is in the tree has a file for every operation.
const KERNELS: [(&str, &str, &str); 2] =
    [("backends/wgpu", "shaders", "wgsl"), ("backends/cuda", "cuda", "cu")];
const SHADER_TEST_HOMES: [&str; 2] = ["backends/wgpu/", "tests/"];

pub(crate) fn check(sources: &[Source]) -> Vec<Violation> {
    let mut found = vec![];
    operations(sources, &mut found);
    shader_test(sources, &mut found);
    requirements(sources, &mut found);
    flags(sources, &mut found);
    found
}

fn absent(path: &str, rule: &'static str, detail: impl Into<String>) -> Violation {
    Violation { place: (path.to_owned(), 0), rule, detail: detail.into() }
}

fn operations(sources: &[Source], found: &mut Vec<Violation>) {
    let cases = cases().expect("the conformance table is well-formed");
    let has = |path: &str| sources.iter().any(|source| source.path == path);
    let readme = section(sources, OPERATIONS);
    for stem in Op::STEMS {
        for (backend, folder, ending) in KERNELS {
            let path = format!("{folder}/{stem}.{ending}");
            if has(&format!("{backend}/Cargo.toml")) && !has(&path) {
                found.push(absent(&path, "operation without a part", format!("{stem} has no such file")));
            }
        }
        let reference = |source: &&Source| source.path.starts_with("backends/core/src/reference/");
        if !sources.iter().filter(reference).any(|source| has_arm(source, stem)) {
            found.push(absent(
                "backends/core/src/reference",
                "operation without a part",
                format!("{stem}: no arm"),
            ));
        }
        if !cases.iter().any(|case| case.name.starts_with(&format!("{stem}("))) {
            let detail = format!("no case named `{stem}(…)`");
            found.push(absent("backends/core/src/conformance", "operation without a part", detail));
        }
        if !readme.iter().any(|(_, line)| line.starts_with(&format!("| `{stem}` |"))) {
            found.push(absent(
                README,
                "operation without a part",
                format!("{stem} is not in {OPERATIONS:?}"),
            ));
        }
    }
    for dtype in DType::ALL {
        let path = format!("shaders/quant/{}.wgsl", dtype.name().to_ascii_lowercase());
        if !has(&path) {
            found.push(absent(&path, "format without a part", format!("{} has no such file", dtype.name())));
        }
    }
}

/// Every flag of the server, known by its environment variable, has a line.
fn flags(sources: &[Source], found: &mut Vec<Violation>) {
    let table = section(sources, FLAGS);
    for source in sources.iter().filter(|source| source.path == "src/config.rs") {
        for rest in source.live.split("env = \"WORKER_ORCD_").skip(1) {
            let name = rest.split('"').next().unwrap_or_default().to_ascii_lowercase().replace('_', "-");
            if !table.iter().any(|(_, line)| line.starts_with(&format!("| `--{name}` |"))) {
                found.push(absent(README, "undocumented flag", format!("--{name} is not in {FLAGS:?}")));
            }
        }
    }
}

/// Whether the file matches on the operation of this stem.
fn has_arm(source: &Source, stem: &str) -> bool {
    let variants = words(&source.code).filter(|(at, _)| source.code[..*at].ends_with("Op::"));
    variants.map(|(_, word)| word.to_ascii_lowercase()).any(|variant| variant == stem.replace('_', ""))
}

fn shader_test(sources: &[Source], found: &mut Vec<Violation>) {
    let home = |source: &&Source| SHADER_TEST_HOMES.iter().any(|home| source.path.starts_with(home));
    let ours = |source: &&Source| !source.path.starts_with("tests/tidy");
    let complete = |source: &Source| SHADER_TEST.iter().all(|word| source.uncommented.contains(word));
    if !sources.iter().filter(home).filter(ours).any(complete) {
        let detail = format!("no test validates every shader and translates it: {SHADER_TEST:?}");
        found.push(absent("backends/wgpu", "shaders unchecked", detail));
    }
}

/// Every row of the table names a test, `file.rs::function` or a whole file, that exists.
fn requirements(sources: &[Source], found: &mut Vec<Violation>) {
    let table = section(sources, REQUIREMENTS);
    let rows: Vec<_> = table.iter().filter(|(_, line)| line.starts_with("| ")).skip(1).collect();
    if rows.len() < 10 {
        found.push(absent(
            README,
            "requirement table",
            format!("{} rows under {REQUIREMENTS:?}", rows.len()),
        ));
    }
    for (line, row) in rows {
        let tests: Vec<&str> =
            row.split('`').skip(1).step_by(2).filter(|name| name.contains(".rs")).collect();
        let at = |detail: String| Violation {
            place: (README.to_owned(), *line),
            rule: "requirement table",
            detail,
        };
        if tests.is_empty() {
            found.push(at("the row names no test".to_owned()));
        }
        for test in tests {
            if !exists(sources, test) {
                found.push(at(format!("{test} does not exist")));
            }
        }
    }
}

fn exists(sources: &[Source], test: &str) -> bool {
    let (path, function) = test.split_once("::").unwrap_or((test, ""));
    let wanted = format!("fn {function}(");
    sources
        .iter()
        .any(|source| source.path == path && (function.is_empty() || source.uncommented.contains(&wanted)))
}

/// Lines of a README section with their numbers.
fn section<'a>(sources: &'a [Source], heading: &str) -> Vec<(usize, &'a str)> {
    let Some(readme) = sources.iter().find(|source| source.path == README) else { return vec![] };
    let lines = readme.text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let body = lines.skip_while(|(_, line)| *line != heading).skip(1);
    body.take_while(|(_, line)| !line.starts_with("## ")).collect()
}
