//! Texts that fit where they stand: what grows with pods is cut, and says so.

use std::fmt::Write as _;

/// Names in a sentence, where nothing else is asked for.
pub const NAMES_MAX: usize = 10;

/// `a, b and 3 more`: the first `most` of `names`, and how many there are beyond.
pub fn some<S: AsRef<str>>(names: &[S], most: usize) -> String {
    let mut text = String::new();
    for name in names.iter().take(most) {
        let between = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{between}{}", name.as_ref());
    }
    if names.len() > most {
        let _ = write!(text, " and {} more", names.len() - most);
    }
    text
}

/// `text`, with at most `most` characters: what is too long ends by how much was left out.
pub fn cut(text: &str, most: usize) -> String {
    let long = text.chars().count();
    if long <= most {
        return text.to_owned();
    }
    // Room for what is said of the rest, whatever its length.
    let kept = most.saturating_sub(" … and  characters more".chars().count() + long.to_string().len());
    let head: String = text.chars().take(kept).collect();
    format!("{head} … and {} characters more", long - kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_and_texts_say_how_much_more_there_is() {
        assert_eq!(some(&["a", "b"], 2), "a, b");
        assert_eq!(some(&["a", "b", "c", "d"], 2), "a, b and 2 more");
        assert_eq!(some::<&str>(&[], 2), "");
        assert_eq!(cut("short", 5), "short");
        let long = cut(&"ü".repeat(5_000), 1_024);
        assert!(long.chars().count() <= 1_024 && long.chars().count() > 1_000, "{}", long.chars().count());
        assert!(long.ends_with(&format!("ü … and {} characters more", 5_000 - long.chars().filter(|c| *c == 'ü').count())), "{long}");
    }
}
