//! Patterns over tensor names.

use std::fmt;
use std::ops::Range;

use longshore_types::{Code, Error, Result};

/// Longest pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 256;
/// What stands for the number of an expert in a pattern.
pub const EXPERT: &str = "{expert}";

/// A pattern over a whole tensor name: `*` stands for any characters, `?` for one, `{expert}` for a whole decimal number.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: String,
    tokens: Box<[Token]>,
    /// Bytes of the text in front of the first wildcard, and behind the last one: most names fail by these.
    fixed: (usize, usize),
    /// Whether a single `*` is all there is between these: then they decide.
    is_one_star: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Token {
    Byte(u8),
    One,
    Any,
    Expert,
}

impl Pattern {
    /// # Errors
    /// [`Code::InvalidArgument`] when it is empty or longer than [`PATTERN_BYTES_MAX`], has braces that are no
    /// [`EXPERT`], or more than one of these.
    pub fn parse(text: &str) -> Result<Pattern> {
        let refused = |reason: String| Err(Error::new(Code::InvalidArgument, format!("pattern {text:?} {reason}")));
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX {
            let message = format!("a pattern has 1 to {PATTERN_BYTES_MAX} bytes, not {}", text.len());
            return Err(Error::new(Code::InvalidArgument, message));
        }
        let mut tokens = Vec::with_capacity(text.len());
        for (index, piece) in text.split(EXPERT).enumerate() {
            if index > 1 {
                return refused(format!("has {EXPERT} more than once"));
            }
            if piece.contains(['{', '}']) {
                return refused(format!("has braces; only {EXPERT} is known"));
            }
            tokens.extend((index > 0).then_some(Token::Expert));
            tokens.extend(piece.bytes().map(|byte| match byte {
                b'*' => Token::Any,
                b'?' => Token::One,
                _ => Token::Byte(byte),
            }));
        }
        let is_byte = |token: &&Token| matches!(token, Token::Byte(_));
        let front = tokens.iter().take_while(is_byte).count();
        let back = tokens.iter().rev().take_while(is_byte).count();
        let is_one_star = front + 1 + back == tokens.len() && tokens[front] == Token::Any;
        Ok(Pattern { text: text.to_owned(), tokens: tokens.into(), fixed: (front, back), is_one_star })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it holds an [`EXPERT`].
    pub fn has_expert(&self) -> bool {
        self.tokens.contains(&Token::Expert)
    }

    /// Whether it matches the whole name.
    pub fn matches(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The digits that [`EXPERT`] stands for in a name that matches.
    pub fn expert_of<'a>(&self, name: &'a str) -> Option<&'a str> {
        self.find(name).and_then(|digits| name.get(digits)).filter(|digits| !digits.is_empty())
    }

    /// Greedy, with one point to come back to: what stands between two `*` is best found as early as possible. That holds
    /// for a number too, because it is taken whole.
    fn find(&self, name: &str) -> Option<Range<usize>> {
        let (text, bytes) = (self.text.as_bytes(), name.as_bytes());
        let (front, back) = self.fixed;
        if !bytes.starts_with(&text[..front]) || !bytes.ends_with(&text[text.len() - back..]) {
            return None;
        }
        if self.is_one_star {
            return (bytes.len() >= front + back).then_some(0..0);
        }
        let (mut index, mut at, mut digits, mut retry) = (0, 0, 0..0, None);
        loop {
            let next = match self.tokens.get(index) {
                Some(Token::Any) => {
                    index += 1;
                    retry = Some((index, at));
                    continue;
                }
                Some(Token::Byte(byte)) => (bytes.get(at) == Some(byte)).then_some(at + 1),
                Some(Token::One) => name.get(at..).and_then(|rest| Some(at + rest.chars().next()?.len_utf8())),
                Some(Token::Expert) => {
                    digits = number_at(bytes, at);
                    (!digits.is_empty()).then_some(digits.end)
                }
                None if at == bytes.len() => return Some(digits),
                None => None,
            };
            match (next, &mut retry) {
                (Some(next), _) => (index, at) = (index + 1, next),
                (None, Some((start, from))) if *from < bytes.len() => {
                    *from += 1;
                    (index, at) = (*start, *from);
                }
                (None, _) => return None,
            }
        }
    }
}

/// The whole number that begins at `at`; empty when there is none, or it began before.
fn number_at(bytes: &[u8], at: usize) -> Range<usize> {
    let is_inside = at > 0 && bytes.get(at - 1).is_some_and(u8::is_ascii_digit);
    let digits = bytes.get(at..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit());
    if is_inside { at..at } else { at..at + digits.count() }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(name)
    }

    fn expert(pattern: &str, name: &str) -> Option<String> {
        Pattern::parse(pattern).unwrap().expert_of(name).map(str::to_owned)
    }

    #[test]
    fn the_whole_name_is_matched() {
        assert!(matches("*.q_proj.weight", "model.layers.11.self_attn.q_proj.weight"));
        assert!(!matches("*.q_proj.weight", "q_proj.weight.extra"));
        assert!(!matches("q_proj.weight", "a/q_proj.weight"), "unlike file names, a last part is not enough");
        assert!(matches("lm_head.weight", "lm_head.weight") && !matches("lm_head.weight", "xlm_head.weight"));
        assert!(matches("a?c", "a本c") && !matches("a?c", "ac") && !matches("a??c", "a本c"));
        assert!(matches("*", "") && matches("***", "x") && matches("a*a", "aa") && !matches("a*a", "a"));
        assert!(!matches(&"*a".repeat(100), &"b".repeat(100_000)));
    }

    #[test]
    fn an_expert_is_a_whole_number() {
        let pattern = "*.experts.{expert}.*";
        assert_eq!(expert(pattern, "model.layers.3.mlp.experts.17.up_proj.weight").as_deref(), Some("17"));
        assert_eq!(expert(pattern, "model.layers.3.mlp.experts.x.up_proj.weight"), None);
        assert_eq!(expert(pattern, "model.layers.3.mlp.shared_experts.up_proj.weight"), None);
        assert_eq!(expert("*{expert}*", "layer12.w3").as_deref(), Some("12"), "the first that fits");
        assert_eq!(expert("*{expert}", "layer12.w35").as_deref(), Some("35"), "the last when the name must end");
        assert_eq!(expert("w1{expert}", "w123"), None, "never a part of a number");
        assert_eq!(expert("{expert}", "007").as_deref(), Some("007"));
    }

    #[test]
    fn braces_are_for_experts_alone() {
        for bad in ["", "a.{layer}.b", "{expert}.{expert}", "a}", &"x".repeat(257)] {
            assert!(Pattern::parse(bad).is_err(), "{bad:?}");
        }
    }

    /// By definition: every way to divide the name.
    fn reference(tokens: &[Token], name: &str, before: Option<char>) -> bool {
        let Some((token, rest)) = tokens.split_first() else { return name.is_empty() };
        let next = name.chars().next();
        let tail = || &name[next.map_or(0, char::len_utf8)..];
        match token {
            Token::Byte(byte) => next == Some(*byte as char) && reference(rest, tail(), next),
            Token::One => next.is_some() && reference(rest, tail(), next),
            Token::Any => reference(rest, name, before) || next.is_some() && reference(tokens, tail(), next),
            Token::Expert => {
                let digits = name.chars().take_while(char::is_ascii_digit).count();
                let is_whole = digits > 0 && !before.is_some_and(|c| c.is_ascii_digit());
                is_whole && reference(rest, &name[digits..], name[..digits].chars().next_back())
            }
        }
    }

    proptest! {
        #[test]
        fn the_fast_way_finds_what_the_slow_way_finds(
            head in "[a1.*?]{0,5}", expert in any::<bool>(), tail in "[a1.*?]{0,4}", name in "[a1.本]{0,9}",
        ) {
            let text = format!("{head}{}{tail}", if expert { EXPERT } else { "" });
            if let Ok(pattern) = Pattern::parse(&text) {
                prop_assert_eq!(pattern.matches(&name), reference(&pattern.tokens, &name, None));
            }
        }
    }
}
