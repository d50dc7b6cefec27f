//! The certificates by which the API server and the sidecars know this controller, made and renewed without a gap.
//!
//! An authority of our own signs the server's certificate. Whoever has to believe it was given the authorities of that moment: the API server in the webhook's
//! `caBundle`, which can be written anew at any time, and every sidecar at its pod's start, which cannot. So an authority's successor is made, and told to all, years before it
//! signs anything: a pod has to be older than that to know none of the authorities in use.
//!
//! Everything lives in one Secret, read and written by every replica; whoever writes second reads again what the first has written.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use serde::{Deserialize, Serialize};

const DAY: u64 = 86_400;
/// Clocks differ: a certificate holds from a little before it was made.
const EARLIER: u64 = 3_600;

/// How long things hold, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    pub authority: u64,
    /// The successor is made when so much is left.
    pub successor: u64,
    /// The successor signs when so much is left.
    pub handover: u64,
    pub server: u64,
    /// The server's certificate is made anew when so much is left.
    pub renew: u64,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { authority: 3650 * DAY, successor: 1825 * DAY, handover: 365 * DAY, server: 90 * DAY, renew: 30 * DAY }
    }
}

/// A certificate with its key, PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pair {
    pub certificate: String,
    pub key: String,
    /// Seconds since 1970.
    pub not_after: u64,
}

/// All that the Secret holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificates {
    /// Common name and pair of each, the oldest first.
    authorities: Vec<(String, Pair)>,
    server: Pair,
    /// Which of the authorities signed it.
    signed_by: String,
    /// What the server answers to.
    names: Vec<String>,
}

/// Why none could be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no certificate could be made: {0}")]
pub struct NotMade(#[from] rcgen::Error);

impl Certificates {
    /// New ones for a server of these DNS names. `now` in seconds since 1970.
    pub fn make(names: &[String], now: u64, lifetimes: &Lifetimes) -> Result<Self, NotMade> {
        let (name, authority) = authority(now, lifetimes)?;
        let server = sign(names, &name, &authority, now, lifetimes)?;
        Ok(Self { authorities: vec![(name.clone(), authority)], server, signed_by: name, names: names.to_vec() })
    }

    /// What has to be instead of these; `None` when they are good.
    pub fn renewed(&self, names: &[String], now: u64, lifetimes: &Lifetimes) -> Result<Option<Self>, NotMade> {
        let mut next = self.clone();
        next.authorities.retain(|(_, authority)| authority.not_after > now);
        match next.authorities.last() {
            None => return Self::make(names, now, lifetimes).map(Some),
            Some((_, newest)) if newest.not_after <= now + lifetimes.successor => next.authorities.push(authority(now, lifetimes)?),
            Some(_) => {}
        }
        // The oldest that may still sign; the newest when none may.
        let signer = next.authorities.iter().find(|(_, authority)| authority.not_after > now + lifetimes.handover).or(next.authorities.last());
        if let Some((name, authority)) = signer
            && (next.server.not_after <= now + lifetimes.renew || next.signed_by != *name || next.names != names)
        {
            next.server = sign(names, name, authority, now, lifetimes)?;
            next.signed_by.clone_from(name);
            next.names = names.to_vec();
        }
        Ok((next != *self).then_some(next))
    }

    pub const fn server(&self) -> &Pair {
        &self.server
    }

    /// Every authority that may have signed, PEM: what clients have to be given.
    pub fn trust(&self) -> String {
        self.authorities.iter().map(|(_, authority)| authority.certificate.as_str()).collect()
    }
}

fn params(name: &str, now: u64, lifetime: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let at = |seconds| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    (params.not_before, params.not_after) = (at(now.saturating_sub(EARLIER)), at(now + lifetime));
    params
}

/// As what an authority of this name signs.
fn issuing(name: &str, now: u64, lifetimes: &Lifetimes) -> CertificateParams {
    let mut params = params(name, now, lifetimes.authority);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn authority(now: u64, lifetimes: &Lifetimes) -> Result<(String, Pair), NotMade> {
    let (name, key) = (format!("steadfast-ca-{now}"), KeyPair::generate()?);
    let certificate = issuing(&name, now, lifetimes).self_signed(&key)?;
    Ok((name, Pair { certificate: certificate.pem(), key: key.serialize_pem(), not_after: now + lifetimes.authority }))
}

fn sign(names: &[String], by: &str, authority: &Pair, now: u64, lifetimes: &Lifetimes) -> Result<Pair, NotMade> {
    let issuer = Issuer::new(issuing(by, now, lifetimes), KeyPair::from_pem(&authority.key)?);
    let key = KeyPair::generate()?;
    // It cannot outlive who signed it.
    let lifetime = lifetimes.server.min(authority.not_after.saturating_sub(now));
    let mut params = params("steadfast", now, lifetime);
    params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem(), not_after: now + lifetime })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    };

    use super::*;
    use crate::http::{Identity, provide};

    const NOW: u64 = 1_800_000_000;

    fn names() -> Vec<String> {
        vec!["steadfast-webhook.steadfast.svc".to_owned(), "steadfast-sidecars.steadfast.svc".to_owned()]
    }

    /// Whether someone who was given `trust` believes the server at that time.
    fn believed(trust: &str, server: &Pair, name: &str, at: u64) -> bool {
        provide();
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(trust.as_bytes()) {
            roots.add(authority.unwrap()).unwrap();
        }
        let verifier = WebPkiServerVerifier::builder(Arc::new(roots)).build().unwrap();
        let certificate = CertificateDer::from_pem_slice(server.certificate.as_bytes()).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(&certificate, &[], &name, &[], UnixTime::since_unix_epoch(Duration::from_secs(at))).is_ok()
    }

    #[test]
    fn who_was_given_the_authorities_believes_the_server_by_its_names_and_nobody_elses() {
        let made = Certificates::make(&names(), NOW, &Lifetimes::default()).unwrap();
        for name in names() {
            assert!(believed(&made.trust(), made.server(), &name, NOW + 1), "{name}");
        }
        assert!(!believed(&made.trust(), made.server(), "steadfast-webhook.other.svc", NOW + 1));
        assert!(!believed(&made.trust(), made.server(), &names()[0], NOW + 91 * DAY), "it ends");
        let other = Certificates::make(&names(), NOW, &Lifetimes::default()).unwrap();
        assert!(!believed(&other.trust(), made.server(), &names()[0], NOW + 1));
        Identity::new(&made.server().certificate, &made.server().key).unwrap();
        assert!(Identity::new(&made.server().certificate, &other.server().key).is_err(), "a key of another certificate");
    }

    /// Every day for forty years: whoever was given the authorities of that day believes the server then, and so does a pod that was started up to three years ago.
    #[test]
    fn nobody_ever_meets_a_server_that_it_cannot_believe() {
        let lifetimes = Lifetimes::default();
        let mut certificates = Certificates::make(&names(), NOW, &lifetimes).unwrap();
        let mut given = Vec::new();
        let (mut servers, mut authorities) = (1, 1);
        for day in 0..40 * 365 {
            let now = NOW + day * DAY;
            if let Some(next) = certificates.renewed(&names(), now, &lifetimes).unwrap() {
                servers += usize::from(next.server != certificates.server);
                authorities += usize::from(next.authorities.last() != certificates.authorities.last());
                certificates = next;
            }
            if day % 30 == 0 {
                given.push((now, certificates.trust()));
                given.retain(|(at, _)| now - at <= 3 * 365 * DAY);
                for (at, trust) in &given {
                    assert!(believed(trust, certificates.server(), &names()[0], now), "day {day}, given {} days ago", (now - at) / DAY);
                }
            }
            assert!(certificates.server().not_after > now + lifetimes.renew && certificates.authorities.len() <= 3);
        }
        // Not made more often than needed either: every 60 days, every five years.
        assert!((240..=262).contains(&servers) && (7..=9).contains(&authorities), "{servers} {authorities}");
    }

    #[test]
    fn other_names_and_lost_time_make_new_ones() {
        let lifetimes = Lifetimes::default();
        let made = Certificates::make(&names(), NOW, &lifetimes).unwrap();
        assert_eq!(made.renewed(&names(), NOW + DAY, &lifetimes).unwrap(), None);
        let other = vec!["x.y.svc".to_owned()];
        let renamed = made.renewed(&other, NOW + DAY, &lifetimes).unwrap().unwrap();
        assert!(believed(&made.trust(), renamed.server(), "x.y.svc", NOW + DAY), "by the same authority");
        let late = made.renewed(&names(), NOW + 4000 * DAY, &lifetimes).unwrap().unwrap();
        assert!(believed(&late.trust(), late.server(), &names()[0], NOW + 4000 * DAY));
        let text = serde_json::to_string(&made).unwrap();
        assert_eq!(serde_json::from_str::<Certificates>(&text).unwrap(), made);
    }
}
