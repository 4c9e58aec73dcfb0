//! The files of `deploy/` say nothing that the program does not know: every metric, flag and variable in them exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use serde_json::Value;
use worker_orcd::commands::Cli;

use crate::Server;
use crate::http::request;

/// Variables that are no flags.
const VARIABLES: [&str; 2] = ["WORKER_ORCD_CACHE_DIR", "HF_HOME"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Names of everything a worker with a model exposes.
fn exposed() -> BTreeSet<String> {
    let server = Server::start(&[]);
    let text = request(server.addr, "GET", "/metrics", &[], b"").text();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

/// Names of metrics in a query: our own, and those that other servers have as well.
fn metrics(query: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let names = query.split(word).filter(|name| name.starts_with("vllm:") || name.starts_with("worker_"));
    names.map(str::to_owned).collect()
}

/// Every `expr` and every query of a variable, wherever it is.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(text) if name == "expr" || name == "query" => found.push(text.clone()),
                    member => queries(member, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_and_the_autoscaler_ask_for_metrics_that_exist() {
    let exposed = exposed();
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana.json")).unwrap();
    let mut found = vec![];
    queries(&dashboard, &mut found);
    let shown: BTreeSet<String> = found.iter().flat_map(|query| metrics(query)).collect();
    assert!(shown.len() > 20, "{shown:?}");
    let unknown: Vec<&String> = shown.difference(&exposed).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not in /metrics");
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "every panel has an id of its own");

    for (file, line_with) in [
        ("deploy/kubernetes/autoscaling-keda.yaml", "query: "),
        ("deploy/kubernetes/autoscaling-hpa.yaml", "seriesQuery: "),
        ("deploy/README.md", "`vllm:"),
    ] {
        let text = read(file);
        let asked: BTreeSet<String> =
            text.lines().filter(|line| line.contains(line_with)).flat_map(metrics).collect();
        assert!(asked.contains("vllm:num_requests_waiting"), "{file}: {asked:?}");
        assert!(asked.is_subset(&exposed), "{file}: {asked:?}");
    }
}

/// The files, with what they say to others left out: of the image's recipe only what runs the worker.
fn files() -> Vec<(PathBuf, String)> {
    fn visit(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, found);
            } else {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = vec![];
    visit(&root().join("deploy"), &mut found);
    let recipe = read("Dockerfile");
    let runs = |line: &&str| {
        let ours = ["ENTRYPOINT", "CMD", "    CMD", "ENV", "    WORKER_ORCD", "RUN worker-orcd"];
        ours.iter().any(|start| line.starts_with(start))
    };
    let recipe = recipe.lines().filter(runs).collect::<Vec<_>>().join("\n");
    assert!(recipe.contains("HEALTHCHECK") || recipe.contains("\"health\""), "{recipe}");
    found.push(("Dockerfile".into(), recipe));
    found
}

/// Words that begin so, as far as they are names.
fn words<'t>(text: &'t str, start: &str) -> Vec<&'t str> {
    let name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let begins = text.match_indices(start).filter(|(at, _)| !text[..*at].ends_with(name));
    begins.map(|(at, _)| text[at..].split(|c| !name(c)).next().unwrap()).collect()
}

#[test]
fn every_flag_and_every_variable_exists() {
    let command = Cli::command();
    let arguments: Vec<_> = command.get_subcommands().flat_map(clap::Command::get_arguments).collect();
    let flags: BTreeSet<String> =
        arguments.iter().filter_map(|a| a.get_long()).map(|name| format!("--{name}")).collect();
    let variables: BTreeSet<&str> = arguments.iter().filter_map(|a| a.get_env()?.to_str()).collect();
    // What other programs are told on the lines we show.
    let others = [
        "--build",
        "--help",
        "--worker-urls",
        "--policy",
        "--retry-max-retries",
        "--health-check-interval-secs",
    ];
    let (mut seen_flags, mut seen_variables) = (0, 0);
    for (path, text) in files() {
        for flag in
            words(&text, "--").into_iter().filter(|flag| !flag.ends_with('-') && !others.contains(flag))
        {
            assert!(flags.contains(flag), "{}: {flag}", path.display());
            seen_flags += 1;
        }
        for start in ["WORKER_ORCD_", "HF_"] {
            for name in words(&text, start).into_iter().filter(|name| *name != start) {
                let known = variables.contains(name) || VARIABLES.contains(&name);
                assert!(known, "{}: {name}", path.display());
                seen_variables += 1;
            }
        }
    }
    assert!(seen_flags > 10 && seen_variables > 4, "{seen_flags} flags, {seen_variables} variables");
}

#[test]
fn commands_in_the_files_are_commands() {
    let command = Cli::command();
    let known: BTreeSet<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    for (path, text) in files() {
        for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', '*', '|'])) {
            for (at, called) in line.match_indices("worker-orcd ") {
                let word = line[at + called.len()..].split_whitespace().next().unwrap_or_default();
                let prose = path.extension().is_some_and(|ending| ending == "md");
                let a_word = !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase());
                assert!(prose || !a_word || known.contains(word), "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn the_worker_has_longer_to_drain_than_it_needs() {
    let said = |path: &str| -> String {
        let text = read(path);
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        lines.collect::<Vec<_>>().join("\n")
    };
    let seconds = |text: &str, after: &str| -> u64 {
        let rest = &text[text.find(after).unwrap_or_else(|| panic!("{after}")) + after.len()..];
        let digits: String =
            rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    let unit = said("deploy/worker-orcd.service");
    let settings = said("deploy/worker.toml");
    assert!(seconds(&unit, "TimeoutStopSec=") > seconds(&settings, "drain-timeout-sec") + 1);
    let compose = said("deploy/compose/compose.yaml");
    assert!(seconds(&compose, "stop_grace_period:") > seconds(&compose, "--drain-timeout-sec") + 1);
    let pod = said("deploy/kubernetes/deployment.yaml");
    let stops = seconds(&pod, "sleep:") + seconds(&pod, "--drain-timeout-sec ");
    assert!(seconds(&pod, "terminationGracePeriodSeconds:") > stops + 1);
}
