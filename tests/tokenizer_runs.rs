//! Long runs: a million of any one character is encoded in under a second by every tokenizer, in linear time and
//! without deep recursion. Engines that split by regular expression crash or crawl on these.

#[path = "support/gguf_vocab.rs"]
mod gguf_vocab;
#[path = "support/tokenizers.rs"]
mod tokenizers_at_hand;

use std::time::{Duration, Instant};

use tokenizers_at_hand::all;
use worker_orcd::text::{SpecialParsing, Tokenizer};

/// What is repeated: one of each class the splitters know, and patterns that make them hesitate.
const REPEATED: [&str; 24] = [
    "a", "A", "Z", "z", "é", "ǅ", "ʰ", "0", "٣", " ", "\n", "\r", "\t", "\u{3000}", "^", "/", "\u{301}", "\u{93f}",
    "中", "😀", "'s", "中A", " \n", "<|",
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
fn a_million_of_anything_takes_less_than_a_second() {
    let mut slowest = (Duration::ZERO, String::new());
    for (name, tokenizer) in all() {
        for unit in REPEATED {
            let count = 1_000_000 / unit.chars().count();
            let spent = time_to_encode(&tokenizer, &unit.repeat(count));
            let label = format!("{name}: {unit:?} × {count}");
            println!("{spent:>10.3?} {label}");
            assert!(spent < Duration::from_secs(1), "{label} took {spent:?}");
            slowest = slowest.max((spent, label));
        }
    }
    println!("slowest: {:?} {}", slowest.0, slowest.1);
}
