//! Values of flags that end up in pods: refused where they are written, and not by the API server pod by pod.

use std::{fmt, str::FromStr};

use super::{patch::SidecarResources, resources::amount};

/// Whom a pod of ours runs as; `none`: whom the platform draws, or the image names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunAsUser(pub Option<u32>);

impl RunAsUser {
    /// Any user but root will do; images of ours name this one too.
    pub const DEFAULT: Self = Self(Some(65532));
}

impl FromStr for RunAsUser {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The API server takes no other numbers, and kubelet no root where a pod says runAsNonRoot.
        let user = text.parse().ok().filter(|user| (1..=i32::MAX as u32).contains(user) && text.starts_with(|c: char| c.is_ascii_digit()));
        match text {
            "none" => Ok(Self(None)),
            _ => user
                .map(|user| Self(Some(user)))
                .ok_or_else(|| "no user but root: write a number from 1 to 2147483647, or none where the platform draws users itself (OpenShift)".to_owned()),
        }
    }
}

impl fmt::Display for RunAsUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(user) => user.fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// The name of an image, as a runtime for containers reads it: `[REGISTRY/]PATH[:TAG][@DIGEST]`.
///
/// # Errors
/// When it is none; the text says what would be one.
pub fn image(text: &str) -> Result<String, String> {
    if is_image(text) { Ok(text.to_owned()) } else { Err("no name of an image: write one such as registry.example/steadfast-proxy:0.1".to_owned()) }
}

/// A quantity of CPU, as Kubernetes writes it.
///
/// # Errors
/// When it is none.
pub fn cpu(text: &str) -> Result<String, String> {
    quantity(text).ok_or_else(|| "no quantity of CPU: write one such as 50m, 0.5 or 1".to_owned())
}

/// A quantity of memory, as Kubernetes writes it.
///
/// # Errors
/// When it is none.
pub fn memory(text: &str) -> Result<String, String> {
    quantity(text).ok_or_else(|| "no quantity of memory: write one such as 64Mi or 1Gi".to_owned())
}

fn quantity(text: &str) -> Option<String> {
    amount(text).filter(|amount| amount.is_finite() && *amount >= 0.0 && !text.starts_with(['+', '-'])).map(|_| text.to_owned())
}

/// Whether no more is requested than is given. `flag`: how the flags begin, such as `--proxy-`.
///
/// # Errors
/// Names the two flags that contradict each other.
pub fn within_limits(resources: &SidecarResources, flag: &str) -> Result<(), String> {
    let pairs = [("cpu", &resources.cpu, &resources.cpu_limit), ("memory", &resources.memory, &resources.memory_limit)];
    for (name, request, limit) in pairs {
        if amount(request).zip(amount(limit)).is_some_and(|(request, limit)| request > limit) {
            return Err(format!(
                "{flag}{name} {request} is more than {flag}{name}-limit {limit}, and no pod may request more than it is limited to: request less, or raise the limit"
            ));
        }
    }
    Ok(())
}

fn is_image(text: &str) -> bool {
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let (name, tag) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or((name, None), |(name, tag)| (name, Some(tag)));
    let is_digest = |digest: &str| {
        digest.split_once(':').is_some_and(|(algorithm, hex)| !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let is_tag = |tag: &str| {
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        tag.len() <= 128 && tag.bytes().next().is_some_and(is_word) && tag.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'))
    };
    // Between two letters or digits: a dot, hyphens, one underscore or two.
    let is_part = |part: &str| {
        part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).enumerate().all(|(at, between)| match between {
            "" => true,
            _ if at == 0 => false,
            "." | "_" | "__" => true,
            _ => between.bytes().all(|b| b == b'-'),
        }) && part.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    let is_registry = |part: &str| part == "localhost" || part.contains(['.', ':']) || part.contains(|c: char| c.is_ascii_uppercase());
    let is_host = |part: &str| {
        let (host, port) = part.rsplit_once(':').filter(|_| !part.ends_with(']')).map_or((part, None), |(host, port)| (host, Some(port)));
        let is_address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(|rest| rest.parse::<std::net::Ipv6Addr>().is_ok());
        let is_name = host.starts_with(|c: char| c.is_ascii_alphanumeric()) && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
        (is_address || is_name) && port.is_none_or(|port| port.parse::<u16>().is_ok())
    };
    let path = match name.split_once('/') {
        Some((registry, path)) if is_registry(registry) && is_host(registry) => path,
        _ => name,
    };
    path.split('/').all(is_part) && tag.is_none_or(is_tag) && digest.is_none_or(is_digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_what_a_runtime_could_pull() {
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for name in [
            "a",
            "a:1",
            "proxy:0.1-rc_2",
            "library/a",
            "registry.example/team/a:1",
            "localhost:5000/a",
            "localhost/a",
            "[::1]:5000/a:x",
            "a__b/c--d.e",
            "Registry/a",
            &digest,
        ] {
            assert_eq!(image(name).as_deref(), Ok(name));
        }
        for name in [
            "",
            " ",
            "a b",
            " a",
            "a:",
            "a:1 ",
            ":1",
            "A",
            "a/B",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a___b",
            "a:b:c",
            "a@sha256",
            "a@sha256:1",
            "host:port/a",
            "https://a/b",
            "a:ü",
        ] {
            assert!(image(name).is_err_and(|why| why.contains("registry.example")), "{name:?}");
        }
    }

    #[test]
    fn a_user_is_a_number_other_than_roots_or_none() {
        for text in ["1", "65532", "1000680000", "2147483647", "none"] {
            assert_eq!(text.parse::<RunAsUser>().unwrap().to_string(), text);
        }
        for text in ["", "0", "+1", "-1", "2147483648", "root", "None"] {
            assert!(text.parse::<RunAsUser>().is_err_and(|why| why.contains("none") && why.contains("from 1")), "{text:?}");
        }
    }

    #[test]
    fn a_quantity_is_one_of_kubernetes_and_never_less_than_nothing() {
        for text in ["50m", "1", "0.5", "64Mi", "1e3", "0"] {
            assert_eq!((cpu(text).as_deref(), memory(text).as_deref()), (Ok(text), Ok(text)));
        }
        for text in ["", "abc", "-1", "+1", "64MB", "64mi", "1 Gi", "1e999", "."] {
            assert!(cpu(text).is_err_and(|why| why.contains("50m")) && memory(text).is_err_and(|why| why.contains("64Mi")), "{text:?}");
        }
    }

    #[test]
    fn a_request_beyond_its_limit_is_told_with_both_flags() {
        assert_eq!(within_limits(&SidecarResources::default(), "--"), Ok(()));
        let of =
            |cpu: &str, memory: &str| within_limits(&SidecarResources { cpu: cpu.into(), memory: memory.into(), ..SidecarResources::default() }, "--proxy-");
        assert_eq!(of("1000m", "256Mi"), Ok(()));
        assert!(of("1001m", "1").is_err_and(|why| why.contains("--proxy-cpu 1001m") && why.contains("--proxy-cpu-limit 1,")));
        assert!(of("1", "300Mi").is_err_and(|why| why.contains("--proxy-memory 300Mi") && why.contains("--proxy-memory-limit 256Mi")));
    }
}
