//! Long runs: a million of any one character is encoded in under a second by every tokenizer, in linear time and
//! without deep recursion. Engines that split by regular expression crash or crawl on these.

use std::time::{Duration, Instant};

use crate::at_hand::{all, files};
use crate::gguf_vocab::VocabFile;
use worker_orcd::text::{SpecialIds, SpecialParsing, Tokenizer};

/// What is repeated: one of each class the splitters know, and patterns that make them hesitate.
const REPEATED: [&str; 24] = [
    "a", "A", "Z", "z", "é", "ǅ", "ʰ", "0", "٣", " ", "\n", "\r", "\t", "\u{3000}", "^", "/", "\u{301}",
    "\u{93f}", "中", "😀", "'s", "中A", " \n", "<|",
];

/// CPU time of this thread where the system tells it, so that a busy machine does not fail the test; else wall time.
fn thread_time(start: Instant) -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = schedstat.and_then(|text| text.split(' ').next()?.parse().ok());
    nanos.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

fn time_to_encode(tokenizer: &Tokenizer, text: &str) -> Duration {
    let start = Instant::now();
    let before = thread_time(start);
    let ids = tokenizer.encode(text, SpecialParsing::Parse);
    let spent = thread_time(start).checked_sub(before).unwrap_or_default();
    assert!(!ids.is_empty());
    spent
}

#[test]
fn a_million_of_anything_takes_less_than_a_second_and_grows_linearly() {
    let mut slowest = (Duration::ZERO, String::new());
    for (name, tokenizer) in all() {
        for unit in REPEATED {
            let [short, long] = [100_000, 1_000_000]
                .map(|count| unit.repeat(count / unit.chars().count()))
                .map(|text| time_to_encode(&tokenizer, &text));
            let label = format!("{name}: a million characters of {unit:?}");
            assert!(long < Duration::from_secs(1), "{label} took {long:?}");
            // The slack covers the clock's tick; a quadratic step would be a hundred times as long.
            let limit = short * 15 + Duration::from_millis(150);
            assert!(long <= limit, "{label} took {long:?}, a tenth of it {short:?}");
            slowest = slowest.max((long, label));
        }
    }
    println!("slowest: {:?} {}", slowest.0, slowest.1);
}

#[test]
fn long_runs_need_almost_no_stack() {
    let tokenizers = all();
    let thread = std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
        for (_, tokenizer) in tokenizers {
            for unit in REPEATED {
                let ids = tokenizer.encode(&unit.repeat(100_000), SpecialParsing::Parse);
                assert!(!tokenizer.decode(&ids).is_empty());
            }
        }
    });
    thread.unwrap().join().unwrap();
}

#[test]
fn ordinary_text_of_a_megabyte_is_quick_too() {
    let sentence =
        "The moon over 12 hills, don't you see? 月は美しい — naïve CamelCase_words;\n\tx += y[3] / 2.5;\n";
    let text = sentence.repeat(1_000_000 / sentence.len());
    for (name, tokenizer) in all() {
        let spent = time_to_encode(&tokenizer, &text);
        println!("{name}: {spent:?} for a megabyte");
        assert!(spent < Duration::from_secs(2), "{name} took {spent:?}");
    }
}

#[test]
fn loading_a_vocabulary_takes_a_moment() {
    for path in files() {
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let start = Instant::now();
        let (built, spent) = if is_json {
            let bytes = std::fs::read(&path).unwrap();
            let before = thread_time(start);
            (Tokenizer::from_json(&bytes, &SpecialIds::default()), thread_time(start).saturating_sub(before))
        } else {
            let file = VocabFile::read(&path);
            let source = file.source();
            let before = thread_time(start);
            (Tokenizer::from_gguf(&source), thread_time(start).saturating_sub(before))
        };
        let name = path.display();
        println!("{name}: {} tokens in {spent:?}", built.unwrap().vocab_size());
        // Unoptimised builds need a multiple of what the release build does.
        assert!(spent < Duration::from_secs(4), "{name} took {spent:?}");
    }
}
