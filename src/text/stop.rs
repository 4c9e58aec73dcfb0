//! Which tokens end a generation, by model family (MODELS.md §4.6).
//!
//! Ids come from the metadata and from known *special* tokens only. An ordinary token that happens to read `</s>`
//! (Qwen's vocabulary has one) never stops anything.

use super::SpecialIds;
use super::vocab::Vocab;

/// The stop set, ascending.
pub(super) fn stop_ids(vocab: &Vocab, ids: &SpecialIds) -> Vec<u32> {
    let special = |text: &str| vocab.special_id(text);
    let turn_ends = [ids.eot, ids.eom].into_iter().flatten().filter(|&id| vocab.is_matched_whole(id));
    let mut stops: Vec<u32> = ids.eos.into_iter().chain(turn_ends).collect();
    if let (Some(done), Some(call), Some(_)) =
        (special("<|return|>"), special("<|call|>"), special("<|message|>"))
    {
        // Harmony: `<|end|>` separates messages of one answer and must not stop it, whatever the file says.
        stops.extend([done, call]);
        stops.extend(special("<|endoftext|>"));
        stops.retain(|&id| Some(id) != special("<|end|>"));
    } else if let (Some(end), Some(assistant), Some(_)) =
        (special("<|end|>"), special("<|assistant|>"), special("<|user|>"))
    {
        stops.extend([end, assistant]);
        stops.extend(special("<|endoftext|>"));
    } else if let Some(turn_end) = special("<|eot_id|>") {
        stops.push(turn_end);
        stops.extend(["<|end_of_text|>", "<|eom_id|>"].into_iter().filter_map(special));
    } else if let Some(turn_end) = special("<|im_end|>") {
        // A base model names `<|endoftext|>` as its end and never writes turns.
        stops.extend(ids.eos.is_none().then_some(turn_end));
        stops.extend(special("<|endoftext|>"));
    }
    stops.sort_unstable();
    stops.dedup();
    stops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::vocab::{TextForm, TokenKind};

    fn stops(specials: &[&str], eos: Option<u32>) -> Vec<String> {
        let tokens: Vec<_> = specials
            .iter()
            .map(|text| (Some(text.as_bytes()), TokenKind::Control))
            .chain([(Some(b"</s>".as_slice()), TokenKind::Normal)])
            .collect();
        let vocab = Vocab::build(tokens.into_iter(), TextForm::ByteAlphabet).unwrap();
        let ids = SpecialIds { eos, ..SpecialIds::default() };
        let text = |id| String::from_utf8(vocab.literal_bytes(id).to_vec()).unwrap();
        stop_ids(&vocab, &ids).into_iter().map(text).collect()
    }

    #[test]
    fn each_family_stops_where_its_chat_format_says() {
        let harmony = [
            "<|endoftext|>",
            "<|return|>",
            "<|end|>",
            "<|message|>",
            "<|call|>",
            "<|user|>",
            "<|assistant|>",
        ];
        assert_eq!(stops(&harmony, Some(2)), ["<|endoftext|>", "<|return|>", "<|call|>"]);
        let phi = ["<s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"];
        assert_eq!(stops(&phi, Some(1)), ["<|endoftext|>", "<|assistant|>", "<|end|>"]);
        let llama = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"];
        assert_eq!(stops(&llama, Some(2)), llama);
        let qwen = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>"];
        assert_eq!(stops(&qwen, Some(2)), ["<|endoftext|>", "<|im_end|>"]);
        assert_eq!(stops(&qwen, None), ["<|endoftext|>", "<|im_end|>"]);
        assert_eq!(stops(&qwen, Some(0)), ["<|endoftext|>"]);
        assert_eq!(stops(&["<|endoftext|>"], Some(0)), ["<|endoftext|>"]);
        assert_eq!(stops(&["x"], None), [""; 0]);
    }
}
