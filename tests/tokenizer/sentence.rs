//! SentencePiece-style merging against its definition, on a vocabulary made from the bundled model's words: so that
//! this form is tested where no published vocabulary is at hand.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use proptest::prelude::*;
use worker_orcd::text::{SpecialIds, SpecialParsing, Tokenizer, VocabSource};

use crate::at_hand::{HAIKU_GGUF, bundled};

/// `<unk>`, `<s>`, `</s>`, 256 bytes, then words.
pub(crate) struct SentenceVocab {
    tokens: Vec<String>,
    types: Vec<i32>,
    scores: Vec<f32>,
}

const FIRST_WORD: usize = 3 + 256;

impl SentenceVocab {
    /// Words in the order the bundled model learned them; every third has the score of the word before it.
    pub(crate) fn from_bundled() -> Self {
        let haiku = bundled(HAIKU_GGUF);
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
        tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
        let mut seen = BTreeSet::new();
        for id in 0..4064 {
            if let Ok(text) = std::str::from_utf8(haiku.token_bytes(id))
                && seen.insert(text.to_owned())
            {
                tokens.push(text.replace(' ', "▁"));
            }
        }
        let words = tokens.len() - FIRST_WORD;
        let scores = vec![0.0; FIRST_WORD].into_iter().chain((0..words).map(|at| -((at - at % 3) as f32)));
        Self {
            types: [vec![2, 3, 3], vec![6; 256], vec![1; words]].concat(),
            scores: scores.collect(),
            tokens,
        }
    }

    pub(crate) fn tokenizer(&self) -> Arc<Tokenizer> {
        let source = VocabSource {
            model: "llama",
            tokens: self.tokens.iter().map(String::as_bytes).collect(),
            token_types: Some(self.types.clone()),
            scores: Some(self.scores.clone()),
            ids: SpecialIds { bos: Some(1), eos: Some(2), unknown: Some(0), ..SpecialIds::default() },
            ..VocabSource::default()
        };
        Arc::new(Tokenizer::from_gguf(&source).unwrap())
    }

    /// The definition, word for word: join the adjacent pair of highest score, leftmost first, until none is a token.
    fn encode_by_definition(&self, ids: &HashMap<&str, u32>, text: &str) -> Vec<u32> {
        if text.is_empty() {
            return Vec::new();
        }
        let mut symbols: Vec<String> =
            format!("▁{}", text.replace(' ', "▁")).chars().map(String::from).collect();
        loop {
            let mut best: Option<(f32, usize)> = None;
            for at in 1..symbols.len() {
                if let Some(&id) = ids.get(format!("{}{}", symbols[at - 1], symbols[at]).as_str())
                    && best.is_none_or(|(score, _)| self.scores[id as usize] > score)
                {
                    best = Some((self.scores[id as usize], at));
                }
            }
            let Some((_, at)) = best else { break };
            let right = symbols.remove(at);
            symbols[at - 1].push_str(&right);
        }
        let bytes = |symbol: &String| symbol.bytes().map(|byte| 3 + u32::from(byte)).collect();
        symbols.iter().flat_map(|s| ids.get(s.as_str()).map_or_else(|| bytes(s), |&id| vec![id])).collect()
    }
}

#[test]
fn merging_follows_its_definition() {
    let vocab = SentenceVocab::from_bundled();
    let tokenizer = vocab.tokenizer();
    let ids: HashMap<&str, u32> =
        (0..).zip(&vocab.tokens).skip(FIRST_WORD).map(|(id, text)| (text.as_str(), id)).collect();
    assert!(ids.len() > 3000, "the vocabulary has only {} words", ids.len());
    let words = prop::sample::select(vec![
        " ", "  ", "the", "moon", "Autumn", "tion", "s", "ing", "-", ",", "\n", "é", "月", "😀", "\u{0}",
        "▁", "aaaa", "12", "ee", "st", "o", "u",
    ]);
    // Up to some hundred symbols: both ways of merging, short and long, are met.
    let text = prop::collection::vec(words, 0..60).prop_map(|words| words.concat());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(400)
    });
    let result = runner.run(&text, |text| {
        let expected = vocab.encode_by_definition(&ids, &text);
        prop_assert_eq!(tokenizer.encode(&text, SpecialParsing::Plain), expected);
        Ok(())
    });
    result.unwrap();
}
