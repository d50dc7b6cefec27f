//! Fields that belong to one connection and not to the message (RFC 9110 §7.6.1): taken out before forwarding, in both directions.

use http::{HeaderMap, HeaderName, HeaderValue, header};

const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// `Connection` may not name these: they are for the recipient, and a client that has them removed wants to be taken for somebody else
/// or to have the message read differently behind us.
const NEVER_NOMINATED: [&str; 12] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "inference-header-content-length",
    "authorization",
    "cookie",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "steadfast-fault",
];

/// Names that one `Connection` field may nominate; more are left where they are.
const NOMINATED_MAX: usize = 32;

/// Takes out what belongs to the connection: the known fields and those that `Connection` names.
pub fn strip(headers: &mut HeaderMap) {
    let nominated: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter(|name| !NEVER_NOMINATED.iter().any(|never| name.eq_ignore_ascii_case(never)))
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .take(NOMINATED_MAX)
        .collect();
    for name in nominated.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// The protocol that the client asks to switch to, such as WebSocket. HTTP/2 is not switched to, as RFC 9110 §7.8 allows: nobody could look into the connection any more.
pub fn asked_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(header::UPGRADE).iter();
    let (protocols, more) = (lines.next()?, lines.next());
    let is_meant = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let is_http = tokens(headers, &header::UPGRADE).any(|token| token.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("h2c")));
    (is_meant && !is_http && more.is_none()).then(|| protocols.clone())
}

/// Says on the next hop what [`asked_upgrade`] heard on this one.
pub fn ask_upgrade(headers: &mut HeaderMap, protocols: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocols);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn any_protocol_but_http_can_be_switched_to() {
        for (connection, upgrade, meant) in [
            ("Upgrade", "websocket", true),
            ("keep-alive, upgrade", "spdy/3.1", true),
            ("keep-alive", "websocket", false),
            ("upgrade, http2-settings", "h2c", false),
            ("upgrade", "websocket, H2C", false),
        ] {
            let headers =
                HeaderMap::from_iter([(header::CONNECTION, HeaderValue::from_static(connection)), (header::UPGRADE, HeaderValue::from_static(upgrade))]);
            assert_eq!(asked_upgrade(&headers).is_some(), meant, "{connection}: {upgrade}");
        }
    }

    proptest! {
        #[test]
        fn nothing_of_the_hop_is_left_and_nothing_else_is_lost(
            names in prop::collection::vec("[a-z]{1,8}(-[a-z]{1,8})?", 0..12),
            nominated in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
            connection in prop::collection::vec(prop::sample::select(vec!["close", "Keep-Alive", "host", "Content-Length", "content-type", " ", "@"]), 0..5),
        ) {
            let mut headers = HeaderMap::new();
            let names: Vec<String> = names.into_iter().filter(|name| !HOP_BY_HOP.iter().any(|hop| hop == name.as_str())).collect();
            for name in &names {
                headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("1"));
            }
            let nominated: Vec<&String> = if names.is_empty() { vec![] } else { nominated.iter().map(|index| index.get(&names)).collect() };
            let line: Vec<&str> = connection.iter().copied().chain(nominated.iter().map(|name| name.as_str())).collect();
            headers.insert("connection", HeaderValue::try_from(line.join(",")).unwrap());
            for (name, value) in [("te", "trailers"), ("upgrade", "h2c"), ("keep-alive", "timeout=5"), ("host", "a"), ("content-length", "1"), ("content-type", "x")] {
                headers.insert(name, HeaderValue::from_static(value));
            }
            strip(&mut headers);
            for hop in &HOP_BY_HOP {
                prop_assert!(!headers.contains_key(hop));
            }
            for name in ["host", "content-length", "content-type"] {
                prop_assert!(headers.contains_key(name));
            }
            for name in &names {
                let kept = !nominated.contains(&name) || NEVER_NOMINATED.contains(&name.as_str()) ;
                prop_assert_eq!(headers.contains_key(name.as_str()), kept || ["host"].contains(&name.as_str()), "{}", name);
            }
        }
    }
}
