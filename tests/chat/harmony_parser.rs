//! The harmony parser against the reference texts, the complaints of gpt-oss users, and random ids.

use std::time::{Duration, Instant};

use worker_orcd::text::chat::{FinishHint, OutputEvent, OutputParser, ParserOptions};
use worker_orcd::text::{DecodeOptions, SpecialParsing};

use crate::at_hand::{Model, shared};

impl Model {
    fn ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, SpecialParsing::Parse)
    }

    fn parser(&self, tools: &[&str], stops: &[&str]) -> OutputParser {
        let own = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let options = ParserOptions {
            tool_names: own(tools),
            call_id_prefix: "call_".into(),
            tagged_calls_only: false,
            decode: DecodeOptions { stops: own(stops), ..DecodeOptions::default() },
        };
        self.format.parser(options)
    }

    fn answer(&self, text: &str, tools: &[&str]) -> Answer {
        Answer::of(&mut self.parser(tools, &[]), &self.ids(text))
    }
}

/// What a client that puts the events together ends up with.
#[derive(Debug, Default, Clone, PartialEq)]
struct Answer {
    content: String,
    reasoning: String,
    /// Name, arguments, whether it ended.
    calls: Vec<(String, String, bool)>,
    finished: Vec<FinishHint>,
    deltas: usize,
}

impl Answer {
    fn of(parser: &mut OutputParser, ids: &[u32]) -> Self {
        let mut answer = Self::default();
        for &id in ids {
            answer.take(parser.push(id));
        }
        answer.take(parser.finish());
        answer
    }

    /// Takes events, checking their order.
    fn take(&mut self, events: Vec<OutputEvent>) {
        for event in events {
            self.deltas += 1;
            match event {
                OutputEvent::ContentDelta(text) => {
                    assert!(!text.is_empty());
                    self.content += &text;
                }
                OutputEvent::ReasoningDelta(text) => {
                    assert!(!text.is_empty());
                    self.reasoning += &text;
                }
                OutputEvent::ToolCallStart { index, id, name } => {
                    assert_eq!((index, id), (self.calls.len(), format!("call_{index}")));
                    assert!(!name.is_empty());
                    self.calls.push((name, String::new(), false));
                }
                OutputEvent::ToolCallArgumentsDelta { index, delta } => {
                    assert_eq!(index + 1, self.calls.len());
                    assert!(!delta.is_empty() && !self.calls[index].2);
                    self.calls[index].1 += &delta;
                }
                OutputEvent::ToolCallEnd { index } => {
                    assert!(index + 1 == self.calls.len() && !self.calls[index].2);
                    self.calls[index].2 = true;
                }
                OutputEvent::Finished(hint) => self.finished.push(hint),
            }
        }
    }
}

fn reference_ids(name: &str) -> Option<Vec<u32>> {
    let text = std::fs::read_to_string(shared(&format!("harmony/test_{name}.txt"))?).unwrap();
    Some(text.split_whitespace().map(|id| id.parse().unwrap()).collect())
}

#[test]
fn a_reasoned_answer_is_told_apart() {
    let model = Model::own();
    let text = "<|channel|>analysis<|message|>They ask: 2 + 2.<|end|><|start|>assistant<|channel|>final<|message|>4.<|return|>";
    let answer = model.answer(text, &[]);
    assert_eq!((answer.content.as_str(), answer.reasoning.as_str()), ("4.", "They ask: 2 + 2."));
    assert_eq!((answer.finished, answer.calls), (vec![FinishHint::Stop], vec![]));

    let mut parser = model.parser(&[], &[]);
    let ids = model.ids(text);
    let reasoning =
        ids.iter().position(|&id| Some(id) == model.tokenizer.special_to_id("<|end|>")).unwrap() + 1;
    Answer::of(&mut parser, &ids);
    assert_eq!((parser.reasoning_tokens(), parser.hint()), (reasoning, FinishHint::Stop));
}

#[test]
fn reference_id_sequences_parse() {
    let (Some(model), Some(reasoned), Some(called)) =
        (Model::gpt_oss(), reference_ids("simple_reasoning_response"), reference_ids("simple_tool_call"))
    else {
        return;
    };
    let answer = Answer::of(&mut model.parser(&[], &[]), &reasoned);
    assert_eq!(answer.reasoning, "User asks: \"What is 2 + 2?\" Simple arithmetic. Provide answer.");
    assert_eq!(answer.content, "2 + 2 = 4.");
    let answer = Answer::of(&mut model.parser(&["lookup_weather"], &[]), &called);
    assert_eq!(
        answer.reasoning,
        "User asks: \"What is the weather in Tokyo?\" We need to use lookup_weather tool."
    );
    // Addressed to a bare name in the analysis channel, and cut before its end.
    assert_eq!(answer.calls, [("lookup_weather".into(), "{\"location\": \"Tokyo\"}".into(), true)]);
    assert_eq!(answer.content, "");
}

#[test]
fn the_reference_stream_parses() {
    let Some(path) = shared("harmony/test_streamable_parser.txt") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let model = Model::own();
    let answer = model.answer(&text, &["browser.search"]);
    assert!(
        answer.reasoning.starts_with("User asks \"Who is")
            && answer.reasoning.ends_with("browse to confirm.")
    );
    let arguments = "{\"query\": \"current US president July 2025\", \"topn\": 10, \"source\": \"news\"}";
    assert_eq!(answer.calls, [("browser.search".into(), arguments.into(), true)]);
    // The tool's own message is not the assistant's.
    assert_eq!((answer.content.as_str(), answer.finished), ("", vec![FinishHint::ToolCalls]));
    // Nobody supplied a browser: what the model says to it is no call.
    let answer = model.answer(&text, &[]);
    assert_eq!((answer.content.as_str(), answer.calls.len()), (arguments, 0));
}

const ARGUMENTS: &str = "{\"location\":  \"San Francisco é🦙\", \"n\":1.0}\n";

/// vLLM #27641, #22704, llama.cpp #15181: the recipient stands in the role's part or the channel's.
#[test]
fn recipient_in_role_or_channel_header() {
    let model = Model::own();
    for header in [
        " to=functions.f<|channel|>commentary <|constrain|>json",
        "<|channel|>commentary to=functions.f <|constrain|>json",
        "<|channel|>commentary to=functions.f<|constrain|>json",
        "<|channel|>commentary to=functions.f json",
        "<|channel|>commentary to=functions.f",
        "<|channel|>commentary to=f code",
        "<|channel|>analysis to=functions.f code",
        "<|channel|>commentary<|channel|>analysis to=functions.f",
    ] {
        for prefix in ["", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"] {
            let answer = model.answer(&format!("{prefix}{header}<|message|>{ARGUMENTS}<|call|>"), &["f"]);
            assert_eq!(answer.calls, [("f".into(), ARGUMENTS.into(), true)], "{header}");
            assert_eq!(
                (answer.content.as_str(), answer.finished),
                ("", vec![FinishHint::ToolCalls]),
                "{header}"
            );
        }
    }
}

/// Ollama #11781, #12187, #17638: arguments that are no JSON are still a call, byte for byte.
#[test]
fn tool_call_arguments_that_are_no_json() {
    let model = Model::own();
    for arguments in ["{\"a\": ", "print(1)\n", "{'a': <b>}", "  ", "{\"unterminated", "<|almost|>"] {
        let text =
            format!("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{arguments}<|call|>");
        let answer = model.answer(&text, &["f"]);
        assert_eq!(answer.calls, [("f".into(), arguments.into(), true)]);
    }
    let answer = model.answer("<|channel|>commentary to=functions.f<|message|><|call|>", &["f"]);
    assert_eq!(answer.calls, [("f".into(), String::new(), true)]);
    let answer = model.answer("<|channel|>commentary to=functions.f<|call|>", &["f"]);
    assert_eq!(answer.calls, [("f".into(), String::new(), true)]);
}

/// vLLM #24076, #23335, #25728: the first tokens of the arguments were lost when streaming.
#[test]
fn tool_call_streams_its_first_and_last_tokens() {
    let model = Model::own();
    let arguments = model.tokenizer.encode(ARGUMENTS, SpecialParsing::Plain);
    assert!(arguments.len() > 10);
    let mut parser = model.parser(&["f"], &[]);
    for id in model.ids("<|channel|>commentary to=functions.f <|constrain|>json") {
        assert_eq!(parser.push(id), []);
    }
    let started = parser.push(model.ids("<|message|>")[0]);
    assert!(matches!(&started[..], [OutputEvent::ToolCallStart { index: 0, name, .. }] if name == "f"));
    let first = parser.push(arguments[0]);
    assert!(
        matches!(&first[..], [OutputEvent::ToolCallArgumentsDelta { delta, .. }] if ARGUMENTS.starts_with(delta.as_str()))
    );
    for &id in &arguments[1..] {
        parser.push(id);
    }
    let ended = parser.push(model.ids("<|call|>")[0]);
    assert_eq!(ended, [OutputEvent::ToolCallEnd { index: 0 }, OutputEvent::Finished(FinishHint::ToolCalls)]);
    assert_eq!(parser.hint(), FinishHint::ToolCalls);
}

/// A call that the model closes with `<|end|>`, with the next message, or not at all.
#[test]
fn tool_call_closed_by_end_finishes_the_answer() {
    let model = Model::own();
    let call = format!("<|channel|>commentary to=functions.f json<|message|>{ARGUMENTS}");
    for end in ["<|end|>", "<|call|>", "<|return|>", "<|start|>assistant", "<|channel|>final<|message|>"] {
        let answer = model.answer(&format!("{call}{end}"), &["f"]);
        assert_eq!(answer.calls, [("f".into(), ARGUMENTS.into(), true)], "{end}");
        assert_eq!(answer.finished, [FinishHint::ToolCalls], "{end}");
    }
    let answer = model.answer(&call, &["f"]);
    assert_eq!((answer.calls.len(), answer.finished), (1, vec![]));
}

/// vLLM #23567, #22515, #22519, harmony #38: "unexpected tokens remaining in message header", "unknown role".
#[test]
fn header_with_unexpected_tokens_is_no_error() {
    let model = Model::own();
    for header in [
        "<|channel|>final and more words than expected json",
        "<|start|><|channel|>final",
        "<|start|>assistant<|channel|>final<|constrain|>JSON",
        "<|start|>assistant assistant<|channel|>final",
        "<|start|>helper<|channel|>final",
        "<|start|>assistant<|channel|>comment",
        "<|start|>assistant<|start|>assistant<|channel|>final",
        "<|end|><|end|><|channel|>final",
        "<|constrain|><|channel|>final",
        "",
    ] {
        let answer = model.answer(&format!("{header}<|message|>Hello there.<|return|>"), &[]);
        assert_eq!((answer.content.as_str(), answer.reasoning.as_str()), ("Hello there.", ""), "{header}");
        assert_eq!(answer.finished, [FinishHint::Stop], "{header}");
    }
}

/// LM Studio #851, vLLM #23694, TRT-LLM #10614: markers and channel names leak into the answer.
#[test]
fn channel_markers_never_reach_the_answer() {
    let model = Model::own();
    let stray = [
        "<|channel|>commentary<|channel|>analysis<|message|>think<|end|><|start|>assistant<|channel|>final<|message|>say",
        "<|channel|>analysis<|message|>think<|channel|>final<|message|>say",
        "<|channel|>analysis<|message|>think<|start|>assistant<|channel|>final<|message|>say",
        "<|channel|>analysis<|message|>think<|end|><|channel|>final<|message|>say",
        "<|channel|>analysis<|message|><|message|>think<|constrain|><|end|>assistant<|channel|>final<|message|>say",
        "<|channel|>analysis<|message|>think<|end|><|start|>assistantfinal<|channel|>final<|message|>say",
        "<|channel|>analysis<|message|>think<|end|><|start|>assistant<|channel|>final<|message|>say<|end|><|start|>assistant<|channel|>final",
    ];
    for text in stray {
        for end in ["", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"] {
            let answer = model.answer(&format!("{text}{end}"), &[]);
            assert_eq!((answer.content.as_str(), answer.reasoning.as_str()), ("say", "think"), "{text}{end}");
        }
    }
    // Cut off anywhere, nothing of a header shows.
    for text in stray {
        let ids = model.ids(text);
        for cut in 0..=ids.len() {
            let answer = Answer::of(&mut model.parser(&[], &[]), &ids[..cut]);
            assert!("say".starts_with(&answer.content), "{text} {cut}: {answer:?}");
            assert!("think".starts_with(&answer.reasoning), "{text} {cut}: {answer:?}");
        }
    }
}

/// Augustas11/macprovider #743: reasoning was counted as answer.
#[test]
fn reasoning_is_counted_as_reasoning() {
    let model = Model::own();
    let mut parser = model.parser(&[], &[]);
    let ids = model.ids("<|channel|>final<|message|>say<|return|>");
    Answer::of(&mut parser, &ids);
    assert_eq!(parser.reasoning_tokens(), 0);
    let mut parser = model.parser(&[], &[]);
    let ids = model.ids("<|channel|>analysis<|message|>endless thought");
    Answer::of(&mut parser, &ids);
    assert_eq!(parser.reasoning_tokens(), ids.len());
}

#[test]
fn preambles_are_shown_and_invented_voices_are_not() {
    let model = Model::own();
    let text = "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant to=functions.f<|channel|>commentary\
        <|message|>{}<|call|>";
    let answer = model.answer(text, &["f"]);
    assert_eq!((answer.content.as_str(), answer.calls.len()), ("I will look.", 1));
    let text = "<|channel|>final<|message|>A<|end|><|start|>user<|message|>B<|end|><|start|>functions.f to=assistant\
        <|channel|>commentary<|message|>C<|end|><|start|>system<|message|>D<|return|>";
    let answer = model.answer(text, &["f"]);
    assert_eq!((answer.content.as_str(), answer.calls.len()), ("A", 0));
}

#[test]
fn a_model_that_forgets_the_format_is_still_heard() {
    let model = Model::own();
    assert_eq!(model.answer("Hello there.", &[]).content, "Hello there.");
    assert_eq!(model.answer("Hello there.<|return|>", &[]).content, "Hello there.");
    let text = "<|channel|>analysis<|message|>think<|end|><|start|>assistant Hello there.<|end|>";
    assert_eq!(model.answer(text, &[]).content.trim(), "Hello there.");
    let long = "word ".repeat(500);
    let mut parser = model.parser(&[], &[]);
    let ids = model.ids(&long);
    let early: usize = ids[..ids.len() / 2].iter().map(|&id| parser.push(id).len()).sum();
    assert!(early > 0, "long text must not wait for the end");
    assert_eq!(model.answer(&long, &[]).content, long);
    assert_eq!(model.answer("analysis: hm", &[]).content, "");
}

#[test]
fn stop_strings_end_the_answer_but_not_the_reasoning() {
    let model = Model::own();
    let text = "<|channel|>analysis<|message|>a STOP b<|end|><|start|>assistant<|channel|>final<|message|>c STOP d<|end|>\
        <|start|>assistant<|channel|>final<|message|>e<|return|>";
    let mut parser = model.parser(&[], &["x", "STOP"]);
    let answer = Answer::of(&mut parser, &model.ids(text));
    assert_eq!((answer.content.as_str(), answer.reasoning.as_str()), ("c ", "a STOP b"));
    assert_eq!(
        (answer.finished, parser.hint()),
        (vec![FinishHint::StopString(1)], FinishHint::StopString(1))
    );
}

#[test]
fn characters_are_whole_in_every_delta() {
    let model = Model::own();
    let words = "é🦙👩‍👩‍👧 俳句";
    let text = format!(
        "<|channel|>final<|message|>{words}<|end|><|start|>assistant to=functions.f<|channel|>commentary<|message|>{words}<|call|>"
    );
    let answer = model.answer(&text, &["f"]);
    assert_eq!((answer.content.as_str(), answer.calls[0].1.as_str()), (words, words));
    // Cut inside a character: a replacement, and nothing of it in the next message.
    let mut ids = model.ids("<|channel|>final<|message|>");
    ids.extend(&model.tokenizer.encode("🦙", SpecialParsing::Plain)[..1]);
    ids.extend(model.ids("<|end|><|start|>assistant<|channel|>final<|message|>ok"));
    let answer = Answer::of(&mut model.parser(&[], &[]), &ids);
    assert!(answer.content == "\u{FFFD}ok" || answer.content == "🦙ok", "{answer:?}");
}

/// A small generator: the sequences must be the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

#[test]
fn any_ids_parse() {
    let model = Model::own();
    let markers = ["start", "channel", "message", "constrain", "end", "call", "return", "endoftext"];
    let markers: Vec<u32> = markers.iter().flat_map(|name| model.ids(&format!("<|{name}|>"))).collect();
    assert_eq!(markers.len(), 8);
    let words = [
        "analysis",
        "commentary",
        "final",
        "assistant",
        "user",
        " to=",
        "functions.f",
        " to=functions.f",
        " json",
        " ",
        "\n",
        "{\"a\": 1}",
        "Hello",
        " there",
        "é🦙",
        "tool",
        "to=assistant",
        "f",
        "\0",
        "browser.search",
    ];
    let words: Vec<Vec<u32>> =
        words.iter().map(|word| model.tokenizer.encode(word, SpecialParsing::Plain)).collect();
    let vocab_size = model.tokenizer.vocab_size();
    let mut random = Random(0x5EED);
    let start = Instant::now();
    for round in 0..100_000 {
        let mut ids = Vec::new();
        for _ in 0..random.below(24) {
            match random.below(10) {
                0..=4 => ids.push(markers[random.below(markers.len())]),
                5..=7 => ids.extend(&words[random.below(words.len())]),
                8 => ids.push(random.below(vocab_size) as u32),
                _ => ids.push(random.below(vocab_size + 100) as u32),
            }
        }
        let tools: &[&str] = if round % 2 == 0 { &["f"] } else { &[] };
        let stops: &[&str] = if round % 3 == 0 { &["ll", " there"] } else { &[] };
        let mut parser = model.parser(tools, stops);
        let answer = Answer::of(&mut parser, &ids);
        let shown = format!("{}{}", answer.content, answer.reasoning);
        assert!(!shown.contains("<|"), "{ids:?}: {answer:?}");
        assert!(answer.finished.len() <= 1, "{ids:?}: {answer:?}");
        assert!(answer.calls.iter().all(|call| call.2), "{ids:?}: {answer:?}");
        assert!(parser.reasoning_tokens() <= ids.len());
        // Everything shown was generated: nothing is invented or repeated.
        let generated: usize = ids.iter().map(|&id| model.tokenizer.token_bytes(id).len()).sum();
        let arguments: usize = answer.calls.iter().map(|call| call.1.replace('\u{FFFD}', "").len()).sum();
        assert!(shown.replace('\u{FFFD}', "").len() + arguments <= generated, "{ids:?}: {answer:?}");
    }
    // A few seconds without optimisation; the limit only catches what is not linear.
    assert!(start.elapsed() < Duration::from_secs(120), "{:?}", start.elapsed());
}

#[test]
fn an_endless_header_costs_constant_time_and_memory() {
    let model = Model::own();
    let start = Instant::now();
    for text in ["<|channel|>", "<|channel|>analysis to=", "<|constrain|>", "word "] {
        let ids = model.ids(text);
        let mut parser = model.parser(&["f"], &[]);
        parser.push(ids[0]);
        for round in 0..100_000 {
            parser.push(ids[round % ids.len()]);
        }
        parser.finish();
    }
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn the_published_example_parses() {
    let Some(model) = Model::gpt_oss() else { return };
    let generated = "200005 35644 200008 23483 316 1199 1114 717 23981 170154 13 200007 200006 173781 200005 12606 815 316 28 \
        44580 775 23981 170154 220 200003 4108 200008 10848 7693 7534 28499 18826 18583 200012";
    let ids: Vec<u32> = generated.split_whitespace().map(|id| id.parse().unwrap()).collect();
    let answer = Answer::of(&mut model.parser(&["get_current_weather"], &[]), &ids);
    assert_eq!(answer.reasoning, "Need to use function get_current_weather.");
    assert_eq!(
        answer.calls,
        [("get_current_weather".into(), "{\"location\":\"San Francisco\"}".into(), true)]
    );
    assert_eq!((answer.content.as_str(), answer.finished), ("", vec![FinishHint::ToolCalls]));
}
