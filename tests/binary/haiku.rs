//! M0-W-1800: the bundled model writes three lines over real HTTP, twice the same, on every backend.

use serde_json::json;

use super::http::{self, SseEvent};
use super::models::backends;
use super::worker::{WorkerProcess, haiku_model};

/// The text of a stream, checked to have exactly one terminal event.
fn text_of(events: &[SseEvent]) -> String {
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names.first(), Some(&"started"), "{names:?}");
    assert_eq!(names.last(), Some(&"end"), "{events:?}");
    assert_eq!(names.iter().filter(|name| matches!(**name, "end" | "error")).count(), 1);
    let tokens = events.iter().filter(|event| event.name == "token");
    tokens.map(|event| event.data["t"].as_str().unwrap()).collect()
}

fn execute(worker: &WorkerProcess, job: &str, prompt: &str, seed: u64) -> Vec<SseEvent> {
    let body = json!({
        "job_id": job, "prompt": prompt, "max_tokens": 64, "temperature": 0.7, "seed": seed,
    });
    let reply = http::post(worker.addr, "/execute", &body);
    assert_eq!(reply.status, 200);
    reply.events()
}

#[test]
fn haiku_streams_three_lines_and_repeats_itself_on_every_backend() {
    for backend in backends() {
        if super::models::open_device(backend).is_none() {
            continue;
        }
        let mut worker = WorkerProcess::start(backend.name(), &haiku_model(), &[]);
        let (_, health) = http::get(worker.addr, "/health");
        assert_eq!(health["quant_kind"], "MXFP4", "{health}");
        assert_eq!(health["tokenizer_kind"], "hf-json", "{health}");
        assert_eq!(health["vocab_size"], 4096, "{health}");
        let prompt = "Write a haiku about GPU computing";
        let first = text_of(&execute(&worker, "haiku-1", prompt, 42));
        let second = text_of(&execute(&worker, "haiku-2", prompt, 42));
        assert_eq!(first, second, "{}: the same request must say the same", backend.name());
        // The model closes its prompt with a full stop before the poem.
        let lines = first.trim_start_matches('.').lines().filter(|line| !line.trim().is_empty()).count();
        assert_eq!(lines, 3, "{}: {first:?}", backend.name());
        let other = text_of(&execute(&worker, "haiku-3", prompt, 43));
        assert_ne!(first, other, "another seed must matter");
        let (code, time) = worker.terminate();
        assert_eq!(code, Some(0), "{}", worker.stderr());
        assert!(time.as_secs() < 5, "{time:?}");
        let log = worker.stderr();
        assert!(log.contains("execute_end") && log.contains("ready"), "{log}");
        assert!(!log.contains("GPU computing") && !log.contains(first.trim()), "the log must not hold text");
    }
}

#[test]
fn many_clients_at_once_get_what_each_gets_alone() {
    let worker = WorkerProcess::start("reference", &haiku_model(), &["--max-batch", "4"]);
    let prompts: Vec<String> =
        (0..6).map(|i| format!("Write a haiku about the {i} winds of ünïcödé 😀")).collect();
    let alone: Vec<String> = prompts
        .iter()
        .enumerate()
        .map(|(i, p)| text_of(&execute(&worker, &format!("a{i}"), p, i as u64)))
        .collect();
    let worker = &worker;
    let together: Vec<String> = std::thread::scope(|scope| {
        let handles: Vec<_> = prompts
            .iter()
            .enumerate()
            .map(|(i, p)| scope.spawn(move || text_of(&execute(worker, &format!("b{i}"), p, i as u64))))
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}
