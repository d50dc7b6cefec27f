//! The protocol's addresses. Written here once for clients, servers and the sidecar.

/// `GET`: what the server is and which extensions it has.
pub const SERVER: &str = "/v2";
pub const LIVE: &str = "/v2/health/live";
pub const READY: &str = "/v2/health/ready";

/// What a path asks for. Names are decoded; an empty version is "whichever is served".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Server,
    Live,
    Ready,
    Model { model: String, version: String },
    ModelReady { model: String, version: String },
    Infer { model: String, version: String },
}

impl Route {
    /// The route of a path (without a query); `None`: not one of the protocol's.
    pub fn parse(path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix('/')?.split('/');
        if parts.next() != Some("v2") {
            return None;
        }
        let parts: Vec<&str> = parts.take(7).collect();
        let (model, version, rest) = match parts.as_slice() {
            [] | [""] => return Some(Self::Server),
            ["health", "live"] => return Some(Self::Live),
            ["health", "ready"] => return Some(Self::Ready),
            ["models", model, "versions", version, rest @ ..] => (model, decode(version)?, rest),
            ["models", model, rest @ ..] => (model, String::new(), rest),
            _ => return None,
        };
        let model = decode(model)?;
        if model.is_empty() {
            return None;
        }
        match rest {
            [] => Some(Self::Model { model, version }),
            ["ready"] => Some(Self::ModelReady { model, version }),
            ["infer"] => Some(Self::Infer { model, version }),
            _ => None,
        }
    }
}

/// Where a model's metadata is; with `/ready` or `/infer` behind it the rest of its addresses. An empty version is left out.
pub fn model(model: &str, version: &str) -> String {
    if version.is_empty() { format!("/v2/models/{}", encode(model)) } else { format!("/v2/models/{}/versions/{}", encode(model), encode(version)) }
}

/// Where a model answers.
pub fn infer(name: &str, version: &str) -> String {
    model(name, version) + "/infer"
}

/// One part of a path, RFC 3986: everything but unreserved characters as `%XX`.
fn encode(part: &str) -> String {
    use std::fmt::Write as _;
    part.bytes().fold(String::with_capacity(part.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a `String` cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            let digit = |digit: u8| char::from(digit).to_digit(16).map(|digit| digit as u8);
            bytes.push(digit(digits[0])? << 4 | digit(digits[1])?);
            rest = after;
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_address_reads_back_as_it_was_written(name in "\\PC{1,12}", version in "\\PC{0,4}") {
            prop_assert_eq!(Route::parse(&infer(&name, &version)), Some(Route::Infer { model: name.clone(), version: version.clone() }));
            prop_assert_eq!(Route::parse(&model(&name, &version)), Some(Route::Model { model: name, version }));
        }

        #[test]
        fn no_path_makes_the_reader_panic(path in "[/v2models%0-9a-z]{0,40}") {
            drop(Route::parse(&path));
        }
    }

    #[test]
    fn only_the_protocols_own_addresses_are_known() {
        assert_eq!(Route::parse("/v2/"), Some(Route::Server));
        assert_eq!(Route::parse("/v2/health/ready"), Some(Route::Ready));
        for other in ["", "/", "/v1", "/v2/models", "/v2/models/", "/v2/models/a/b", "/v2/models/a/infer/b", "/v2/health", "/v2/models/%zz/infer", "v2"] {
            assert_eq!(Route::parse(other), None, "{other}");
        }
    }
}
