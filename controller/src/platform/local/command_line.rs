//! `$(NAME)` in a pod's command line, by Kubernetes' rules: a known name is replaced, an unknown one stays as it is, `$$` is a dollar sign.

/// Fills in `word`. Later variables win over earlier ones of the same name.
pub(super) fn fill_in(word: &str, variables: &[(String, String)]) -> String {
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inside| inside.split_once(')')) {
            match variables.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_filled_in_as_kubernetes_does() {
        let variables = [("PORT", "8000"), ("A", "$(PORT)"), ("PORT", "9000")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        for (word, expected) in [
            ("--port=$(PORT)", "--port=9000"),
            ("$(PORT)$(PORT)", "90009000"),
            ("$$(PORT)", "$(PORT)"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$(A)", "$(PORT)"),
            ("$(PORT", "$(PORT"),
            ("5$", "5$"),
            ("$x", "$x"),
            ("", ""),
        ] {
            assert_eq!(fill_in(word, &variables), expected, "{word}");
        }
    }
}
