//! What each pattern does to text where the families differ.

use proptest::prelude::*;

use super::Splitter::{self, Gpt2, Gpt4o, LlamaBpe, Qwen2};

fn split(splitter: Splitter, text: &str) -> Vec<&str> {
    splitter.pieces(text).collect()
}

#[test]
fn digits_group_as_the_family_says() {
    assert_eq!(split(Qwen2, "a1234"), ["a", "1", "2", "3", "4"]);
    assert_eq!(split(LlamaBpe, "a1234 5"), ["a", "123", "4", " ", "5"]);
    assert_eq!(split(Gpt4o, "12345678"), ["123", "456", "78"]);
    assert_eq!(split(Gpt2, "a1234 56"), ["a", "1234", " 56"]);
}

#[test]
fn contractions() {
    assert_eq!(split(Qwen2, "I'VE don't"), ["I", "'VE", " don", "'t"]);
    assert_eq!(split(Gpt2, "I'VE don't"), ["I", "'", "VE", " don", "'t"]);
    assert_eq!(split(Gpt4o, "I'VE don't"), ["I'VE", " don't"]);
    assert_eq!(split(LlamaBpe, "'sab'ſab"), ["'s", "ab", "'ſ", "ab"]);
    assert_eq!(split(Gpt4o, "'s's's"), ["'s's", "'s"]);
    assert_eq!(split(Qwen2, "'r 'v 'l"), ["'r", " '", "v", " '", "l"]);
}

#[test]
fn whitespace_leaves_one_for_the_word_and_ends_at_the_last_newline() {
    for splitter in [Qwen2, LlamaBpe, Gpt4o] {
        assert_eq!(split(splitter, "  a"), [" ", " a"]);
        assert_eq!(split(splitter, "a \n \n  b"), ["a", " \n \n", " ", " b"]);
        assert_eq!(split(splitter, "a  "), ["a", "  "]);
        assert_eq!(split(splitter, "\t\u{3000}!"), ["\t", "\u{3000}", "!"]);
        assert_eq!(split(splitter, "\tx\r\ny"), ["\tx", "\r\n", "y"]);
    }
    assert_eq!(split(Gpt2, "a \n \n  b"), ["a", " \n \n ", " b"]);
    assert_eq!(split(Gpt2, "\tx"), ["\t", "x"]);
}

#[test]
fn punctuation_takes_a_space_before_and_newlines_after() {
    assert_eq!(split(Qwen2, "a !!\n\nb"), ["a", " !!\n\n", "b"]);
    assert_eq!(split(Gpt4o, "x =/\n/y"), ["x", " =/\n/", "y"]);
    assert_eq!(split(Qwen2, "x =/\n/y"), ["x", " =/\n", "/y"]);
    assert_eq!(split(Gpt2, "a !!\nb"), ["a", " !!", "\n", "b"]);
    assert_eq!(split(Qwen2, "(a) -b"), ["(a", ")", " -", "b"]);
}

#[test]
fn gpt4o_words_end_where_the_case_changes() {
    assert_eq!(split(Gpt4o, "HTTPServer"), ["HTTPServer"]);
    assert_eq!(split(Gpt4o, "camelCase XMLx"), ["camel", "Case", " XMLx"]);
    assert_eq!(split(Gpt4o, "中文ABC中D "), ["中文ABC中", "D", " "]);
    assert_eq!(split(Gpt4o, "\u{301} \u{301}AB \u{301}ab"), ["\u{301}", " \u{301}", "AB", " \u{301}ab"]);
    assert_eq!(split(Gpt4o, "-ABC"), ["-ABC"]);
    assert_eq!(split(Qwen2, "हिन्दी"), ["ह", "िन", "्द", "ी"]);
    assert_eq!(split(Gpt4o, "हिन्दी"), ["हिन्दी"]);
}

fn regex_of(splitter: Splitter) -> tokenizers::pre_tokenizers::split::Split {
    use tokenizers::SplitDelimiterBehavior::Isolated;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    let pattern = match splitter {
        Qwen2 => super::cl100k::QWEN2,
        LlamaBpe => super::cl100k::LLAMA,
        Gpt4o => super::o200k::PATTERN,
        Gpt2 => super::gpt2::PATTERN,
    };
    Split::new(SplitPattern::Regex(pattern.to_owned()), Isolated, false).unwrap()
}

/// The pieces the regular expression itself gives.
fn split_by_regex(splitter: &tokenizers::pre_tokenizers::split::Split, text: &str) -> Vec<String> {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
    let mut string = PreTokenizedString::from(text);
    splitter.pre_tokenize(&mut string).unwrap();
    let splits = string.get_splits(OffsetReferential::Original, OffsetType::Byte);
    splits.into_iter().map(|(piece, _, _)| piece.to_owned()).collect()
}

/// Characters that meet every branch of every pattern, and a few from anywhere.
fn tricky_text() -> impl Strategy<Value = String> {
    let picked = prop::sample::select(
        " \t\n\r\u{85}\u{a0}\u{2028}\u{3000}'''stmdrevlſSTRE/!^-_.Aaǅʰ中あéÉ\u{301}\u{93f}9٣Ⅷ½😀\u{200d}\u{0}\u{e000}"
            .chars()
            .collect::<Vec<_>>(),
    );
    let one = prop_oneof![9 => picked, 1 => any::<char>()];
    prop::collection::vec(one, 0..40).prop_map(|chars| chars.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn scanners_are_their_regular_expressions(text in tricky_text()) {
        thread_local! {
            static REGEXES: Vec<(Splitter, tokenizers::pre_tokenizers::split::Split)> =
                [Qwen2, LlamaBpe, Gpt4o, Gpt2].map(|s| (s, regex_of(s))).into();
        }
        REGEXES.with(|regexes| {
            for (splitter, regex) in regexes {
                prop_assert_eq!(split(*splitter, &text), split_by_regex(regex, &text), "{:?}", splitter);
            }
            Ok(())
        })?;
    }
}
