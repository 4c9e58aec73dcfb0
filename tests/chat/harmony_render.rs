//! Harmony prompts against the reference texts and ids.

use serde_json::{Value, json};
use worker_orcd::text::SpecialParsing;
use worker_orcd::text::chat::{
    ChatError, Conversation, Date, Message, ReasoningEffort, RenderOptions, ResponseFormat, Role, Tool,
    ToolCall,
};
use worker_orcd::text::harmony::{
    self, BuiltinTools, ContentType, DeveloperText, HarmonyMessage, SystemText, without_finished_reasoning,
};

use crate::at_hand::{Model, shared};

/// A reference text, less the line break at the end of the file.
fn reference(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(shared(&format!("harmony/test_{name}.txt"))?).unwrap();
    Some(text.trim_end().to_owned())
}

/// Compares text and, in both vocabularies, ids.
fn check(name: &str, messages: &[HarmonyMessage], generate: bool) {
    let Some(expected) = reference(name) else { return };
    assert_eq!(harmony::text(messages, generate), expected, "{name}");
    for Model { tokenizer, format } in [Some(Model::own()), Model::gpt_oss()].into_iter().flatten() {
        let ids = harmony::encode(&tokenizer, format.harmony_markers().unwrap(), messages, generate);
        assert_eq!(ids, tokenizer.encode(&expected, SpecialParsing::Parse), "{name}");
    }
}

fn check_conversation(name: &str, messages: Vec<Message>, options: &RenderOptions) {
    let Some(expected) = reference(name) else { return };
    let conversation = Conversation { messages };
    for Model { tokenizer, format } in [Some(Model::own()), Model::gpt_oss()].into_iter().flatten() {
        assert_eq!(format.render_text(&conversation, options).unwrap(), expected, "{name}");
        let ids = format.render(&conversation, options).unwrap();
        assert_eq!(ids, tokenizer.encode(&expected, SpecialParsing::Parse), "{name}");
    }
}

fn pinned(date: &str) -> RenderOptions {
    RenderOptions { date: Date::parse(date), ..RenderOptions::default() }
}

fn system(text: &SystemText<'_>) -> HarmonyMessage {
    HarmonyMessage::plain("system", text.to_string())
}

fn user(text: &str) -> HarmonyMessage {
    HarmonyMessage::plain("user", text)
}

fn assistant(channel: &str, text: &str) -> HarmonyMessage {
    HarmonyMessage::assistant(channel, text)
}

#[test]
fn system_messages_are_those_of_the_reference() {
    let options = pinned("2025-06-28");
    check_conversation("no_tools", vec![], &options);
    let browser = BuiltinTools { browser: true, python: false };
    check_conversation(
        "browser_tool_only",
        vec![],
        &RenderOptions { builtin_tools: browser, ..options.clone() },
    );
    let both = BuiltinTools { browser: true, python: true };
    check_conversation(
        "browser_and_python_tool",
        vec![],
        &RenderOptions { builtin_tools: both, ..options.clone() },
    );
    let description = "Use this tool to lookup the weather in a given location. Call it with the parameter 'location', \
        can be any textual description of a location.";
    let parameters =
        json!({"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]});
    let tool = Tool::function("lookup_weather", Some(description), Some(parameters));
    let options = RenderOptions { tools: vec![tool], builtin_tools: browser, ..options };
    check_conversation("browser_and_function_tool", vec![], &options);

    let short = &["analysis", "final"][..];
    for (name, question, text) in [
        (
            "reasoning_system_message",
            "What is 2 + 2?",
            SystemText { channels: short, ..SystemText::default() },
        ),
        (
            "reasoning_system_message_no_instruction",
            "What is the best place to eat candy in the world?",
            SystemText { channels: short, effort: ReasoningEffort::High, ..SystemText::default() },
        ),
        (
            "reasoning_system_message_with_dates",
            "What is 42 * pi?",
            SystemText {
                channels: short,
                knowledge_cutoff: "2021-01",
                date: Date::parse("2021-01-01"),
                ..SystemText::default()
            },
        ),
        ("simple_convo", "What is 2 + 2?", SystemText::default()),
    ] {
        check(name, &[system(&text), user(question)], true);
    }
}

#[test]
fn reasoning_effort_reaches_the_prompt() {
    let question = "What is the capital of the largest country in the world?";
    for effort in [ReasoningEffort::Low, ReasoningEffort::Medium, ReasoningEffort::High] {
        let name = format!("simple_convo_{}_effort", effort.as_str());
        let system = system(&SystemText { effort, ..SystemText::default() });
        check(&format!("{name}_no_instruction"), &[system.clone(), user(question)], true);
        let text = DeveloperText {
            instructions: Some("Answer the user's questions like a robot."),
            ..DeveloperText::default()
        };
        let developer = HarmonyMessage::plain("developer", text.render().unwrap());
        check(&name, &[system, developer, user(question)], true);

        let options = RenderOptions { reasoning_effort: Some(effort), ..pinned("2025-06-28") };
        let text = Model::own().format.render_text(&Conversation::default(), &options).unwrap();
        assert!(text.contains(&format!("\n\nReasoning: {}\n\n", effort.as_str())), "{text}");
    }
}

fn weather_parameters() -> Value {
    json!({"type": "object", "properties": {
        "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
        "format": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"}},
        "required": ["location"]})
}

#[test]
fn functions_are_shown_as_typescript() {
    let list = "List of city and state, e.g. [\"San Francisco, CA\", \"New York, NY\"]";
    let many = json!({"type": "object", "properties": {
        "locations": {"type": "array", "items": {"type": "string"}, "description": list},
        "format": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"}},
        "required": ["locations"]});
    let sink = json!({"description": "params object", "type": "object", "properties": {
        "string": {"type": "string", "title": "STRING", "description": "A string", "examples": ["hello", "world"]},
        "string_nullable": {"type": "string", "nullable": true, "description": "A nullable string",
            "default": "the default"},
        "string_enum": {"type": "string", "enum": ["a", "b", "c"]},
        "oneof_string_or_number": {"oneOf": [
            {"type": "string", "default": "default_string_in_oneof"},
            {"type": "number", "description": "numbers can happen too"}],
            "description": "a oneof", "default": 20}}});
    let tools = vec![
        Tool::function("get_location", Some("Gets the location of the user."), None),
        Tool::function(
            "get_current_weather",
            Some("Gets the current weather in the provided location."),
            Some(weather_parameters()),
        ),
        Tool::function(
            "get_multiple_weathers",
            Some("Gets the current weather in the provided list of locations."),
            Some(many),
        ),
        Tool::function("kitchensink", Some("A function with various complex schemas."), Some(sink)),
    ];
    let options =
        RenderOptions { tools, reasoning_effort: Some(ReasoningEffort::High), ..pinned("2025-06-28") };
    let messages = vec![
        Message::text(Role::System, "Always respond in riddles"),
        Message::text(Role::User, "What is the weather like in SF?"),
    ];
    check_conversation("render_functions_with_parameters", messages, &options);
}

#[test]
fn response_formats_end_the_developer_message() {
    let format = ResponseFormat {
        name: "shopping_list".into(),
        description: Some("what\nto buy".into()),
        schema: json!({"type": "object", "properties": {"z": {}, "a": {}}}),
    };
    let text = DeveloperText { instructions: Some("Be brief."), response_format: Some(&format), tools: &[] };
    assert_eq!(
        text.render().unwrap(),
        "# Instructions\n\nBe brief.\n\n# Response Formats\n\n## shopping_list\n\n// what\n// to buy\n\
         {\"type\":\"object\",\"properties\":{\"z\":{},\"a\":{}}}"
    );
    assert_eq!(DeveloperText::default().render(), None);
}

#[test]
fn reasoning_of_finished_answers_is_dropped() {
    let finished = vec![
        user("What is 2 + 2?"),
        assistant("analysis", "User asks a simple question: \"What is 2 + 2?\" The answer: 4."),
        assistant("final", "2 + 2 equals 4."),
        user("What about 9 / 2?"),
    ];
    check("preserve_cot", &finished, true);
    let mut messages = finished;
    without_finished_reasoning(&mut messages, true);
    check("dropping_cot_by_default", &messages, true);

    let between = [
        user("What is 2 + 2?"),
        assistant("analysis", "thinking 2+2"),
        assistant("final", "4"),
        user("What is 3 + 5?"),
        assistant("analysis", "thinking 3+5"),
        assistant("final", "8"),
    ];
    let mut messages = between.to_vec();
    without_finished_reasoning(&mut messages, false);
    check("keep_analysis_between_finals", &messages, false);
    // Before the next answer all of it is past.
    let mut messages = between.to_vec();
    without_finished_reasoning(&mut messages, true);
    assert!(messages.iter().all(|message| message.channel.as_deref() != Some("analysis")));
}

#[test]
fn reasoning_stays_while_a_tool_is_awaited() {
    let mut messages = vec![
        user("What is the weather in SF?"),
        assistant("analysis", "User asks: “What is the weather in SF?” We need to use lookup_weather tool."),
        HarmonyMessage {
            recipient: Some("functions.lookup_weather".into()),
            content_type: Some(ContentType::Constrained("json".into())),
            ..assistant("commentary", "{\"location\": \"San Francisco\"}")
        },
        HarmonyMessage::plain(
            "functions.lookup_weather",
            "{\"temperature\": 20, \"description\": \"sunny\"}",
        ),
    ];
    without_finished_reasoning(&mut messages, true);
    check("does_not_drop_if_ongoing_analysis", &messages, true);
}

fn ids(text: &str) -> Vec<u32> {
    text.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

const EXAMPLE_1: &str = "200006 17360 200008 3575 553 17554 162016 11 261 4410 6439 2359 22203 656 7788 17527 558 87447 \
    100594 25 220 1323 19 12 3218 198 6576 3521 25 220 1323 20 12 3062 12 2922 279 30377 289 25 14093 279 2 13888 18403 25 \
    8450 11 49159 11 1721 13 21030 2804 413 7360 395 1753 3176 13 200007 ";
const QUESTION_1: &str = "200006 1428 200008 4827 382 220 17 659 220 17 30 200007 ";

#[test]
fn worked_examples_have_the_published_ids() {
    let Some(Model { format, .. }) = Model::gpt_oss() else { return };
    let render = |messages: &[Message], options: &RenderOptions| {
        format.render(&Conversation { messages: messages.to_vec() }, options).unwrap()
    };
    let options = pinned("2025-08-05");
    let asked = Message::text(Role::User, "What is 2 + 2?");
    let prompt = render(std::slice::from_ref(&asked), &options);
    assert_eq!(prompt, ids(&format!("{EXAMPLE_1}{QUESTION_1}200006 173781")));
    assert_eq!(prompt.len(), 75);

    let answer = Message {
        reasoning_content: Some("User asks.".into()),
        ..Message::text(Role::Assistant, "2 + 2 = 4.")
    };
    let follow_up = Message::text(Role::User, "What about 9 / 2?");
    let expected = format!(
        "{EXAMPLE_1}{QUESTION_1}200006 173781 200005 17196 200008 17 659 220 17 314 220 19 13 200007 200006 1428 200008 4827 \
         1078 220 24 820 220 17 30 200007 200006 173781"
    );
    assert_eq!(render(&[asked, answer, follow_up], &options), ids(&expected));
}

const DEVELOPER_2: &str = "200006 77944 200008 2 68406 279 8470 261 11888 23206 364 2 20574 279 877 9964 279 4797 9964 95359 \
    21733 290 2208 11122 306 290 5181 5100 558 2493 717 23981 170154 314 11350 25 10168 623 5030 326 2608 11 319 1940 13 \
    6610 18826 11 13180 198 7693 25 1621 412 4078 8528 392 66 63110 1 1022 392 40364 11732 672 602 2787 25 274 63110 198 \
    9263 871 1062 502 92 602 9819 9964 200007 ";
const QUESTION_2: &str = "200006 1428 200008 4827 382 290 11122 306 38371 30 200007 ";
const REASONING_2: &str = "200006 173781 200005 35644 200008 23483 316 1199 1114 717 23981 170154 13 200007 ";
const CALL_2: &str = "200006 173781 316 28 44580 775 23981 170154 200005 12606 815 220 200003 4108 200008 10848 7693 7534 \
    28499 18826 18583 200012 ";
const RESULT_2: &str = "200006 44580 775 23981 170154 316 28 173781 200005 12606 815 200008 10848 41133 3008 1243 3309 3532 \
    54267 1243 455 92 200007 ";
const ANSWER_3: &str = "200006 173781 200005 17196 200008 3206 382 46726 11 220 455 18210 13 200007 ";
const QUESTION_3: &str = "200006 1428 200008 3436 306 12650 30 200007 ";

#[test]
fn tool_turns_have_the_published_ids() {
    let Some(Model { format, .. }) = Model::gpt_oss() else { return };
    let description = "Gets the current weather in the provided location.";
    let tool = Tool::function("get_current_weather", Some(description), Some(weather_parameters()));
    let options = RenderOptions {
        tools: vec![tool],
        reasoning_effort: Some(ReasoningEffort::Low),
        ..pinned("2025-08-05")
    };
    let call = ToolCall {
        id: "call_0".into(),
        name: "get_current_weather".into(),
        arguments: "{\"location\":\"San Francisco\"}".into(),
    };
    let mut messages = vec![
        Message::text(Role::System, "Use a friendly tone."),
        Message::text(Role::User, "What is the weather in SF?"),
        Message {
            reasoning_content: Some("Need to use function get_current_weather.".into()),
            ..Message::calling(vec![call])
        },
        Message::tool_result("call_0", "{\"sunny\":true,\"temperature\":20}"),
    ];
    let after_system = |messages: &[Message]| {
        let ids = format.render(&Conversation { messages: messages.to_vec() }, &options).unwrap();
        assert_eq!(ids.iter().position(|&id| id == 200_007), Some(74), "the system message has 75 ids");
        ids[75..].to_vec()
    };
    let expected = format!("{DEVELOPER_2}{QUESTION_2}{REASONING_2}{CALL_2}{RESULT_2}200006 173781");
    assert_eq!(after_system(&messages), ids(&expected));
    messages.push(Message::text(Role::Assistant, "It is sunny, 20 degrees."));
    messages.push(Message::text(Role::User, "And in Paris?"));
    let expected = format!("{DEVELOPER_2}{QUESTION_2}{CALL_2}{RESULT_2}{ANSWER_3}{QUESTION_3}200006 173781");
    assert_eq!(after_system(&messages), ids(&expected));
}

#[test]
fn conversations_become_messages_by_the_rules() {
    let Model { format, .. } = Model::own();
    let call = |name: &str, arguments: &str| ToolCall {
        id: "1".into(),
        name: name.into(),
        arguments: arguments.into(),
    };
    let messages = vec![
        Message::text(Role::Developer, "A"),
        Message::text(Role::System, "B"),
        Message::text(Role::User, "q"),
        Message {
            content: Some("I will look.".into()),
            ..Message::calling(vec![call("f", "not json {"), call("python", "1+1")])
        },
        Message::tool_result("1", "r"),
        Message::text(Role::Developer, "C"),
    ];
    let options = RenderOptions {
        builtin_tools: BuiltinTools { browser: false, python: true },
        ..pinned("2025-06-28")
    };
    let text = format.render_text(&Conversation { messages }, &options).unwrap();
    let (_, text) = text.split_once("<|end|>").unwrap();
    assert_eq!(
        text,
        "<|start|>developer<|message|># Instructions\n\nA\n\nB<|end|><|start|>user<|message|>q<|end|>\
         <|start|>assistant<|channel|>commentary<|message|>I will look.<|end|>\
         <|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>not json {<|call|>\
         <|start|>assistant to=python<|channel|>analysis code<|message|>1+1<|call|>\
         <|start|>python to=assistant<|channel|>analysis<|message|>r<|end|>\
         <|start|>developer<|message|># Instructions\n\nC<|end|><|start|>assistant"
    );
    let orphan = Conversation { messages: vec![Message::tool_result("9", "r")] };
    let error = format.render(&orphan, &options).unwrap_err();
    assert!(matches!(error, ChatError::ResultWithoutCall { index: 0 }), "{error}");
    assert!(error.is_conversation_fault());
}

#[test]
fn nothing_in_a_conversation_becomes_a_marker() {
    for Model { tokenizer, format } in [Some(Model::own()), Model::gpt_oss()].into_iter().flatten() {
        let markers: Vec<u32> =
            (0..tokenizer.vocab_size() as u32).filter(|&id| tokenizer.is_special(id)).collect();
        let all: String = markers
            .iter()
            .map(|&id| String::from_utf8_lossy(tokenizer.literal_bytes(id)).into_owned())
            .collect();
        let count = |text: &str| {
            let tool = Tool::function(text, Some(text), Some(json!({"type": "object", "description": text})));
            let call = ToolCall { id: text.into(), name: text.into(), arguments: text.into() };
            let messages = vec![
                Message::text(Role::System, text),
                Message::text(Role::User, text),
                Message { reasoning_content: Some(text.into()), ..Message::calling(vec![call]) },
                Message::tool_result(text, text),
            ];
            let options = RenderOptions { tools: vec![tool], ..pinned("2025-06-28") };
            let ids = format.render(&Conversation { messages }, &options).unwrap();
            ids.iter().filter(|&&id| tokenizer.is_special(id)).count()
        };
        assert_eq!(count(&all), count("x"));
    }
}
