//! Conversations: `chat` from a pipe, and `generate --chat`.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::Value;

use super::worker::{command, haiku_model};

/// Makes every part of a conversation count in the prompt.
const TEMPLATE: &str =
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}Write a haiku about";

struct Talk {
    folder: tempfile::TempDir,
}

impl Talk {
    fn begin() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("chat.jinja"), TEMPLATE).unwrap();
        Self { folder }
    }

    fn template(&self) -> PathBuf {
        self.folder.path().join("chat.jinja")
    }

    fn run(&self, command_name: &str, flags: &[&str], typed: &str) -> Output {
        let (model, template) = (haiku_model(), self.template());
        let args = [
            command_name,
            "--backend",
            "reference",
            "--max-tokens",
            "6",
            "--model",
            model.to_str().unwrap(),
            "--chat-template",
            template.to_str().unwrap(),
        ];
        let mut child = command(&args)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }
}

fn answers(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_conversation_from_a_pipe_remembers_forgets_and_is_told_how() {
    let talk = Talk::begin();
    let typed = "the sea\nthe sea\n/reset\n\nthe sea\n/system Be brief.\nthe sea\n/reset\nthe sea\n/what\n";
    let output = talk.run("chat", &["--json"], typed);
    let answers = answers(&output);
    let prompts: Vec<u64> = answers.iter().map(|answer| answer["prompt_tokens"].as_u64().unwrap()).collect();
    assert_eq!(prompts.len(), 5, "{answers:?}");
    assert!(prompts[1] > prompts[0] + 6, "the question and the answer before: {prompts:?}");
    assert_eq!(answers[2], answers[0], "a conversation that begins anew says the same");
    assert!(prompts[3] > prompts[0], "the system message: {prompts:?}");
    assert_eq!(answers[4], answers[3], "which is kept");
    assert!(answers.iter().all(|answer| answer["completion_tokens"].as_u64() <= Some(6)));
    assert!(answers.iter().all(|answer| matches!(answer["finish_reason"].as_str(), Some("stop" | "length"))));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/what is unknown"));
}

#[test]
fn answers_stream_as_plain_text_into_a_pipe() {
    let talk = Talk::begin();
    let plain = talk.run("chat", &[], "the sea\n");
    let json = talk.run("chat", &["--json"], "the sea\n");
    let text = String::from_utf8(plain.stdout).unwrap();
    assert_eq!(text.strip_suffix('\n'), answers(&json)[0]["content"].as_str(), "no prompt, no colour");
}

#[test]
fn generate_applies_the_template_when_asked() {
    let talk = Talk::begin();
    let asked = ["--prompt", "the sea", "--json"];
    let chat = &answers(&talk.run("generate", &[&asked[..], &["--chat"]].concat(), ""))[0];
    let told =
        &answers(&talk.run("generate", &[&asked[..], &["--chat", "--system", "Be brief."]].concat(), ""))[0];
    let raw = &answers(&talk.run("generate", &asked, ""))[0];
    let length = |answer: &Value| answer["prompt_token_ids"].as_array().unwrap().len();
    assert!(length(raw) < length(chat) && length(chat) < length(told));
    let conversation = &answers(&talk.run("chat", &["--json"], "the sea\n"))[0];
    assert_eq!(
        (&chat["text"], length(chat) as u64),
        (&conversation["content"], conversation["prompt_tokens"].as_u64().unwrap())
    );
}

#[test]
fn a_template_that_is_not_there_is_named() {
    let model = haiku_model();
    let args = ["chat", "--backend", "reference", "--model", model.to_str().unwrap()];
    let output =
        command(&args).args(["--chat-template", "/nowhere.jinja"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere.jinja"), "{output:?}");
}
