//! Keeps what people wrote from becoming special tokens on its way through a template.
//!
//! A template turns strings into one string, in which the spelling of a special token by the template cannot be told
//! from the same spelling by a user. So before rendering, in every string of the conversation the characters that
//! special tokens begin or end with (`<` and `>`, mostly) are replaced one for one by stand-ins from Unicode's
//! private-use planes, and after special tokens have been found in the rendered text the stand-ins turn back. No
//! special token can then begin or end in what a user wrote, and since the text between special tokens is encoded as a
//! whole, the ids are exactly those of the plain rendering wherever nobody spelled a special token.
//!
//! Templates may trim, slice, compare lengths, convert to JSON or concatenate veiled strings. Where a template looks
//! for a string constant of its own (`'</think>' in content`) the conversation's copies of it stay as they are, unless
//! they could be part of a special token. What remains: a template that itself writes both ends of a special token
//! around what users wrote makes one of it (`'<|' + name + '|>'`), and a template that looks for the spelling of a
//! special token, or for a lone `<`, in what users wrote does not find it.

use std::collections::BTreeSet;
use std::ops::Range;

use serde_json::{Map, Value};

use super::ChatError;

/// Size of a window of stand-ins.
const WINDOW: u32 = 256;
/// The windows that planes 15 and 16 hold, without the last of each, which holds noncharacters.
const WINDOWS: u32 = 2 * 255;

/// What is to be hidden from one template with one vocabulary.
#[derive(Debug)]
pub(super) struct VeilRules {
    /// Characters to be hidden; the stand-in of the one at index i is the window's character i + 1.
    hidden: Vec<char>,
    /// Special spellings that do not begin with a hidden character. They are broken up by the window's first
    /// character, which stands for nothing.
    wordy: Vec<String>,
    /// The template's constants that stay as they are.
    exempt: Vec<String>,
    /// Windows of which the template or the vocabulary uses a character.
    taken: BTreeSet<u32>,
}

impl VeilRules {
    /// Rules against the special `spellings`, sparing the template's `constants`.
    pub(super) fn new<'a>(
        spellings: impl Iterator<Item = &'a str>,
        constants: &[String],
        template: &str,
    ) -> Self {
        let spellings: Vec<&str> = spellings.filter(|spelling| !spelling.is_empty()).collect();
        let mut rules = Self {
            hidden: Vec::new(),
            wordy: Vec::new(),
            exempt: Vec::new(),
            taken: template.chars().filter_map(window_of).collect(),
        };
        for spelling in &spellings {
            rules.taken.extend(spelling.chars().filter_map(window_of));
            let first = spelling.chars().next();
            for c in first.into_iter().chain(spelling.chars().next_back()).filter(|&c| can_hide(c)) {
                if !rules.hidden.contains(&c) && rules.hidden.len() + 1 < WINDOW as usize {
                    rules.hidden.push(c);
                }
            }
            if !first.is_some_and(|c| rules.hidden.contains(&c)) {
                rules.wordy.push((*spelling).to_owned());
            }
        }
        let spared = |constant: &&String| !rules.may_touch(constant, &spellings);
        rules.exempt = constants.iter().filter(spared).cloned().collect();
        rules
    }

    /// The veil for one rendering of `variables`.
    ///
    /// # Errors
    /// The variables leave no room for stand-ins.
    pub(super) fn over(&self, variables: &Map<String, Value>) -> Result<Veil<'_>, ChatError> {
        let mut taken = self.taken.clone();
        for_each_text(variables, &mut |text| taken.extend(text.chars().filter_map(window_of)));
        let window = (0..WINDOWS).find(|window| !taken.contains(window)).ok_or(ChatError::PrivateUse)?;
        Ok(Veil { rules: self, window })
    }

    /// Whether a hidden character of `constant` could be an end of a special spelling there.
    fn may_touch(&self, constant: &str, spellings: &[&str]) -> bool {
        let mut at_hidden = constant.char_indices().filter(|(_, c)| self.hidden.contains(c)).peekable();
        at_hidden.peek().is_none()
            || at_hidden.any(|(at, c)| {
                let from = constant.get(at..).unwrap_or_default();
                let to = constant.get(..at + c.len_utf8()).unwrap_or_default();
                spellings.iter().any(|spelling| {
                    spelling.starts_with(from)
                        || from.starts_with(spelling)
                        || spelling.ends_with(to)
                        || to.ends_with(spelling)
                })
            })
    }

    /// Where `text` spells an exempt constant, sorted and merged.
    fn exempt_ranges(&self, text: &str) -> Vec<Range<usize>> {
        let matches = |constant: &String| {
            let len = constant.len();
            text.match_indices(constant.as_str()).map(|(at, _)| at..at + len).collect::<Vec<_>>()
        };
        let mut ranges: Vec<Range<usize>> = self.exempt.iter().flat_map(matches).collect();
        ranges.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }
}

/// The replacement of special spellings for one rendering.
#[derive(Debug)]
pub(super) struct Veil<'r> {
    rules: &'r VeilRules,
    window: u32,
}

impl Veil<'_> {
    /// All strings of `value` hidden, keys included.
    pub(super) fn hide_json(&self, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.hide(text)),
            Value::Array(items) => Value::Array(items.into_iter().map(|item| self.hide_json(item)).collect()),
            Value::Object(members) => Value::Object(
                members.into_iter().map(|(key, member)| (self.hide(key), self.hide_json(member))).collect(),
            ),
            other => other,
        }
    }

    /// `text` with stand-ins.
    fn hide(&self, text: String) -> String {
        let wordy = self.rules.wordy.iter().any(|spelling| text.contains(spelling.as_str()));
        if !wordy && !text.contains(self.rules.hidden.as_slice()) {
            return text;
        }
        let exempt = self.rules.exempt_ranges(&text);
        let wordy = self.rules.wordy.iter();
        let broken: BTreeSet<usize> =
            wordy.flat_map(|spelling| overlapping_starts(&text, spelling)).collect();
        let mut exempt = exempt.into_iter().peekable();
        let mut out = String::with_capacity(text.len() + 16);
        for (at, c) in text.char_indices() {
            while exempt.next_if(|range| range.end <= at).is_some() {}
            let spared = exempt.peek().is_some_and(|range| range.contains(&at));
            let index = self.rules.hidden.iter().position(|&hidden| hidden == c).filter(|_| !spared);
            out.push(index.map_or(c, |index| self.stand_in(index + 1)));
            if broken.contains(&at) {
                out.push(self.stand_in(0));
            }
        }
        out
    }

    /// `text` without stand-ins.
    pub(super) fn reveal(&self, text: &str) -> String {
        text.chars()
            .filter_map(|c| match window_of(c).filter(|window| *window == self.window) {
                Some(_) => match (c as u32 % WINDOW) as usize {
                    0 => None,
                    index => self.rules.hidden.get(index - 1).copied(),
                },
                None => Some(c),
            })
            .collect()
    }

    fn stand_in(&self, index: usize) -> char {
        let (plane, window) = (self.window / 255, self.window % 255);
        let code = (0xF_0000 + plane * 0x1_0000) + window * WINDOW + index as u32;
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    }
}

/// Letters and digits occur in every text and in templates' own comparisons; whitespace is trimmed; quotes and
/// backslashes are escaped in JSON.
fn can_hide(c: char) -> bool {
    !c.is_alphanumeric() && !c.is_whitespace() && !c.is_control() && c != '"' && c != '\\'
}

/// The window a private-use character of planes 15 and 16 lies in.
fn window_of(c: char) -> Option<u32> {
    let code = (c as u32).checked_sub(0xF_0000)?;
    let (plane, window) = (code / 0x1_0000, code % 0x1_0000 / WINDOW);
    (window < 255).then_some(plane * 255 + window)
}

fn overlapping_starts<'t>(text: &'t str, spelling: &'t str) -> impl Iterator<Item = usize> + 't {
    let step = spelling.chars().next().map_or(1, char::len_utf8);
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = from + text.get(from..)?.find(spelling)?;
        from = at + step;
        Some(at)
    })
}

/// Calls `visit` with every string in `variables`, keys included.
fn for_each_text(variables: &Map<String, Value>, visit: &mut impl FnMut(&str)) {
    let mut pending: Vec<&Value> = Vec::new();
    for (key, value) in variables {
        visit(key);
        pending.push(value);
    }
    while let Some(value) = pending.pop() {
        match value {
            Value::String(text) => visit(text),
            Value::Array(items) => pending.extend(items),
            Value::Object(members) => {
                for (key, member) in members {
                    visit(key);
                    pending.push(member);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SPELLINGS: [&str; 4] = ["<|end|>", "<s>", "[INST]", "madeup7"];

    fn rules(constants: &[&str]) -> VeilRules {
        let constants: Vec<String> = constants.iter().map(|&c| c.to_owned()).collect();
        VeilRules::new(SPELLINGS.into_iter(), &constants, "\u{F0200}")
    }

    #[test]
    fn hiding_leaves_no_special_spelling_and_revealing_undoes_it() {
        let rules = rules(&[]);
        let veil = rules.over(&Map::new()).unwrap();
        for text in ["a<|end|>b", "<s><s>", "[INST] x [", "madeup7madeup7 <|en", "plain \"\\\" text", "é<é"]
        {
            let hidden = veil.hide(text.to_owned());
            assert!(!SPELLINGS.iter().any(|spelling| hidden.contains(spelling)), "{text}");
            assert!(!hidden.contains(['<', '>', '[', ']']), "{text}");
            assert_eq!(veil.reveal(&hidden), text);
        }
        assert_eq!(veil.hide("plain \"\\\" text".into()), "plain \"\\\" text");
    }

    #[test]
    fn the_templates_own_constants_stay_unless_they_touch_a_special_token() {
        let constants = ["</think>", "<", "<|en", "x<|end|>", "end|>", "<think>"];
        let rules = rules(&constants);
        let veil = rules.over(&Map::new()).unwrap();
        assert_eq!(rules.exempt, ["</think>", "<think>"]);
        let text = "<a></think><|end|></think";
        let hidden = veil.hide(text.into());
        assert!(hidden.contains("</think>") && !hidden.contains("<|end|>") && !hidden.contains("<a>"));
        assert_eq!(hidden.matches('<').count(), 1);
        assert_eq!(veil.reveal(&hidden), text);
    }

    #[test]
    fn stand_ins_never_collide_with_the_conversation() {
        let taken = json!({"a": ["\u{F0000}<s>", {"\u{F0101}": "x"}]});
        let rules = rules(&[]);
        let veil = rules.over(taken.as_object().unwrap()).unwrap();
        assert_eq!(veil.window, 3);
        let text = taken["a"][0].as_str().unwrap();
        assert_eq!(veil.reveal(&veil.hide(text.to_owned())), text);
        // Hostile: every window is taken.
        let all: String = (0..WINDOWS)
            .map(|window| char::from_u32(0xF_0000 + window / 255 * 0x1_0000 + window % 255 * WINDOW).unwrap())
            .collect();
        let variables = json!({ "a": all });
        let refused = rules.over(variables.as_object().unwrap());
        assert!(matches!(refused, Err(ChatError::PrivateUse)));
    }

    #[test]
    fn json_is_hidden_everywhere() {
        let rules = rules(&[]);
        let veil = rules.over(&Map::new()).unwrap();
        let hidden = veil.hide_json(json!({"<s>": ["<s>", 1, {"k": "<|end|>"}], "n": null}));
        assert!(!hidden.to_string().contains('<'));
        assert_eq!(veil.reveal(&hidden.to_string()), r#"{"<s>":["<s>",1,{"k":"<|end|>"}],"n":null}"#);
    }
}
