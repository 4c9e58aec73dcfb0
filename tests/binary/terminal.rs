//! `chat` on a terminal, which `script` makes: Ctrl-C stops an answer and Ctrl-D leaves.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::worker::{binary, command};

/// Random weights, which with the seed below go on for 1,537 tokens.
fn talkative_model(folder: &std::path::Path) -> String {
    let path = folder.join("tiny.gguf").to_str().unwrap().to_owned();
    assert!(command(&["forge", "--preset", "tiny-llama", "--out", &path]).output().unwrap().status.success());
    path
}

#[test]
fn ctrl_c_stops_the_answer_and_ctrl_d_leaves() {
    if !Command::new("script").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: a chat on a terminal; this machine has no util-linux script");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (model, template) = (talkative_model(folder.path()), folder.path().join("chat.jinja"));
    std::fs::write(&template, "{% for m in messages %}{{ m.content }}\n{% endfor %}").unwrap();
    // `exec`: a shell of its own would hear Ctrl-C too, and some end by it.
    let line = format!(
        "exec {} chat --backend reference --model {model} --chat-template {} --temperature 1 --seed 1",
        binary(),
        template.display()
    );
    let mut terminal = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keys, mut screen) = (terminal.stdin.take().unwrap(), terminal.stdout.take().unwrap());
    let shown = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&shown);
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut buffer) {
            seen.lock().unwrap().extend_from_slice(&buffer[..count]);
        }
    });
    let length = || shown.lock().unwrap().len();
    let shows = |text: &str| String::from_utf8_lossy(&shown.lock().unwrap()).contains(text);
    let wait = |what: &str, holds: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !holds() {
            let screen = String::from_utf8_lossy(&shown.lock().unwrap()).into_owned();
            assert!(began.elapsed() < Duration::from_secs(30), "no {what}: {screen}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let mut press = |what: &[u8]| keys.write_all(what).and_then(|()| keys.flush()).unwrap();
    wait("prompt", &|| shows("> "));
    press(b"tell me\r");
    let before = length();
    wait("answer", &|| length() > before + 60);
    press(b"\x03");
    // The next prompt: only then is the terminal asked for keys again.
    wait("end of the answer", &|| {
        let screen = String::from_utf8_lossy(&shown.lock().unwrap()).into_owned();
        screen.split_once("[interrupted]").is_some_and(|(_, after)| after.contains("> "))
    });
    press(b"\x04");
    let ended = terminal.wait().unwrap();
    reader.join().unwrap();
    assert!(ended.success(), "{ended}: {}", String::from_utf8_lossy(&shown.lock().unwrap()));
}
