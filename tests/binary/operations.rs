//! What a supervisor, a probe, a shell and a reader of manuals get from the binary; and where its settings come from.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::collector::Collector;
use super::http;
use super::worker::{WorkerProcess, command, haiku_model};

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

fn tls(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name);
    path.to_str().unwrap().to_owned()
}

#[cfg(unix)]
#[test]
fn a_supervisor_hears_of_the_start_of_life_and_of_the_end() {
    use std::os::unix::net::UnixDatagram;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let hear = || {
        let mut buffer = [0; 256];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    };
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "100000")];
    let mut worker = WorkerProcess::start_in(&environment, "reference", &haiku_model(), &[]);
    let mut heard = vec![];
    // The worker lives before it is ready, and goes on living.
    while !heard.iter().any(|line: &String| line.contains("READY=1"))
        || !heard.last().unwrap().contains("WATCHDOG=1")
    {
        heard.push(hear());
    }
    worker.terminate();
    while !heard.last().unwrap().contains("STOPPING=1") {
        heard.push(hear());
    }
    assert_eq!(heard.iter().filter(|line| line.contains("READY=1")).count(), 1, "{heard:?}");
}

#[test]
fn the_probe_tells_by_its_exit_code_also_over_https() {
    let (certificate, key) = (tls("localhost.pem"), tls("localhost.key.pem"));
    let (model, port) = (haiku_model(), free_port());
    let probe = ["health", "--port", &port, "--ssl-certfile", &certificate];
    let away = run(&probe);
    assert_eq!(away.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&away.stderr).contains("refused"), "{away:?}");
    let serve = ["--model", model.to_str().unwrap(), "--backend", "reference", "--port", &port];
    let mut child = command(&serve)
        .args(["--ssl-certfile", &certificate, "--ssl-keyfile", &key])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let answer = loop {
        let output = run(&probe);
        if output.status.success() || began.elapsed() > Duration::from_secs(60) {
            break output;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let unchecked = run(&["health", "--url", &format!("https://127.0.0.1:{port}/ready")]);
    let insecure = run(&["health", "--url", &format!("https://127.0.0.1:{port}/ready"), "--insecure"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(String::from_utf8_lossy(&answer.stdout).contains("\"healthy\""), "{answer:?}");
    assert_eq!(unchecked.status.code(), Some(1), "nobody trusts the certificate");
    assert!(insecure.status.success(), "{insecure:?}");
}

#[test]
fn certificates_that_do_not_serve_end_the_start_before_the_model_is_read() {
    let (port, key) = (free_port(), tls("localhost.key.pem"));
    let flags = ["--model", "/nowhere.gguf", "--backend", "reference", "--port", &port];
    let output =
        command(&flags).args(["--ssl-certfile", "/absent.pem", "--ssl-keyfile", &key]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("/absent.pem") && !stderr.contains("model_load_start"), "{stderr}");
}

#[test]
fn settings_come_from_flag_environment_file_default_in_this_order() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("worker.toml");
    std::fs::write(&path, "model = \"/from/the/file.gguf\"\nbackend = \"reference\"\nmax-batch = 0\n")
        .unwrap();
    let port = free_port();
    let base = ["serve", "--config", path.to_str().unwrap(), "--port", &port];
    let said = |flags: &[&str], environment: &[(&str, &str)]| {
        let output = command(&base).args(flags).envs(environment.iter().copied()).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let file = said(&[], &[]);
    assert!(file.contains("--max-batch: expected 1 to 1024, got 0"), "{file}");
    let environment = said(&[], &[("WORKER_ORCD_MAX_BATCH", "2000")]);
    assert!(environment.contains("got 2000"), "{environment}");
    let flag = said(&["--max-batch", "3000"], &[("WORKER_ORCD_MAX_BATCH", "2000")]);
    assert!(flag.contains("got 3000"), "{flag}");
    let model = said(&["--max-batch", "1"], &[]);
    assert!(model.contains("/from/the/file.gguf"), "{model}");
    std::fs::write(&path, "max-bach = 1").unwrap();
    let output = command(&base).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean \"max-batch\"?"), "{output:?}");
}

#[test]
fn the_standard_variables_of_tracing_are_enough() {
    let collector = Collector::start();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue".to_owned()),
        ("OTEL_SERVICE_NAME", "haiku-writer".to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test".to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
    ];
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, v)| (*name, v.as_str())).collect();
    let worker = WorkerProcess::start_in(&environment, "reference", &haiku_model(), &[]);
    let body = json!({ "model": "haiku-moe", "prompt": "the quiet Zanzibar", "max_tokens": 3 });
    assert_eq!(http::post(worker.addr, "/v1/completions", &body).status, 200);
    let began = Instant::now();
    while !collector.has("text_completion haiku-moe") {
        assert!(began.elapsed() < Duration::from_secs(20), "no span");
        std::thread::sleep(Duration::from_millis(20));
    }
    for part in ["haiku-writer", "deployment.environment.name", "gen_ai.usage.output_tokens"] {
        assert!(collector.has(part), "{part}");
    }
    assert!(!collector.has("Zanzibar"));
    let posts = collector.posts.lock().unwrap();
    assert!(posts.iter().all(|(head, _)| head.contains("x-tenant: blue\r\n")), "{posts:?}");
}

#[test]
fn the_configuration_in_deploy_is_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/worker.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    // Also what is commented out: `# key = value`.
    let setting = |line: &str| line.strip_prefix("# ").filter(|line| line.contains(" = ")).map(str::to_owned);
    let lines = text.lines().map(|line| setting(line).unwrap_or_else(|| line.to_owned()));
    let whole = lines.collect::<Vec<_>>().join("\n");
    assert_ne!(whole, text);
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("worker.toml");
    std::fs::write(&open, whole).unwrap();
    for (file, stopped_by) in [(&path, "/var/lib/worker-orcd/model.gguf"), (&open, "/etc/worker-orcd/")] {
        let port = free_port();
        let output =
            run(&["serve", "--config", file.to_str().unwrap(), "--port", &port, "--host", "127.0.0.1"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains(stopped_by) && !stderr.contains("worker.toml"), "{stderr}");
    }
}

#[test]
fn shells_and_manuals_know_every_command_and_flag() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = run(&["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && script.contains("ssl-certfile") && script.contains("pull"),
            "{shell}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(run(&["man", "--out", folder.path().to_str().unwrap()]).status.success());
    let page = std::fs::read_to_string(folder.path().join("worker-orcd-serve.1")).unwrap();
    assert!(page.starts_with(".ie") && page.contains("ssl\\-certfile"), "{page}");
    assert!(folder.path().join("worker-orcd-pull.1").exists());
    let main = String::from_utf8(run(&["man"]).stdout).unwrap();
    assert!(main.contains(".TH worker-orcd 1"), "{main}");
}
