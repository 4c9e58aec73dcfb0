//! Stop strings, matched on text wherever the tokens' borders fall.

/// Passes text through and ends at the stop string that is completed first. Text that may be the beginning of one is held back, so that
/// no part of a stop string ever leaves.
#[derive(Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

/// What [`StopMatcher::push`] lets through.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    /// Text that may leave now.
    pub text: String,
    /// A stop string was completed: nothing more will come.
    pub stopped: bool,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones match nothing.
    pub fn for_strings(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Passed {
        if self.stops.is_empty() {
            return Passed { text: piece.to_owned(), stopped: false };
        }
        self.held.push_str(piece);
        // The match that ends first counts, however the text was cut into pieces.
        let ends = |stop: &String| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start));
        if let Some((_, start)) = self.stops.iter().filter_map(ends).min() {
            self.held.truncate(start);
            return Passed { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep_from = self.first_possible_start();
        let rest = self.held.split_off(keep_from);
        Passed { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// The text still held back, once it is certain that no more will come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Byte offset of the earliest tail that is a beginning of a stop string; the text's length if none is.
    fn first_possible_start(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest.saturating_sub(1));
        self.held
            .char_indices()
            .map(|(start, _)| start)
            .filter(|&start| start >= earliest)
            .find(|&start| self.stops.iter().any(|stop| stop.starts_with(&self.held[start..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::for_strings(stops.iter().map(ToString::to_string).collect());
        let mut out = String::new();
        for piece in pieces {
            let passed = matcher.push(piece);
            out.push_str(&passed.text);
            if passed.stopped {
                return (out, true);
            }
        }
        out.push_str(&matcher.finish());
        (out, false)
    }

    #[test]
    fn a_stop_string_across_borders_never_leaves() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".into(), true));
        assert_eq!(run(&["END"], &["one E", "N", "d two"]), ("one ENd two".into(), false));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(run(&["é!", "🙂"], &["caf", "é", "🙂x"]), ("café".into(), true));
        assert_eq!(run(&["tail"], &["the ta"]), ("the ta".into(), false));
    }

    #[test]
    fn text_without_a_possible_beginning_is_not_held() {
        let mut matcher = StopMatcher::for_strings(vec!["\n\n".into()]);
        assert_eq!(matcher.push("abc").text, "abc");
        assert_eq!(matcher.push("d\n").text, "d");
        assert_eq!(matcher.push("e").text, "\ne");
    }

    proptest! {
        #[test]
        fn borders_do_not_matter(
            text in "[ab🙂]{0,40}",
            stops in proptest::collection::vec("[ab🙂]{1,4}", 0..4),
            cuts in proptest::collection::vec(0_usize..40, 0..12),
        ) {
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(chars.len())).collect();
            cuts.extend([0, chars.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> = cuts.windows(2).map(|w| chars[w[0]..w[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let singles: Vec<String> = chars.iter().map(ToString::to_string).collect();
            let singles: Vec<&str> = singles.iter().map(String::as_str).collect();
            let (streamed, stopped) = run(&stops, &pieces);
            let (expected, expected_stopped) = run(&stops, &singles);
            prop_assert_eq!(stopped, expected_stopped);
            prop_assert_eq!(stopped, stops.iter().any(|stop| text.contains(stop)));
            prop_assert!(stops.iter().all(|stop| !streamed.contains(stop)));
            prop_assert_eq!(&streamed, &expected);
            prop_assert!(text.starts_with(&streamed));
        }
    }
}
