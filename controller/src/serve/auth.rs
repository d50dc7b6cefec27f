//! Who speaks: on one machine everybody who knows the run's secret, on a cluster the pod that a service-account token was made for.
//!
//! A token is reviewed by the API server (audience `steadfast.dev`), which says in the user's extra fields which pod it is bound to. What it said is kept by the token's
//! SHA-256, never the token itself: until the token expires where it was good, for a minute at most where it was not. The memory of tokens is bounded, and so
//! is the number of reviews under way.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use steadfast_api::sidecar::TOKEN_AUDIENCE;
use tokio::{
    sync::{OnceCell, Semaphore},
    time::timeout,
};

/// Tokens remembered: two per pod, so that renewed ones find room.
const TOKENS_MAX: usize = 2 * super::policy::PODS_MAX;
/// How long a refusal is remembered.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// A good token is asked for again after so long at most, should its own expiry be further away or not to be read.
const BELIEVED_FOR: Duration = Duration::from_hours(1);
/// How long "the API server does not answer" is remembered.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);
/// Reviews under way at once.
const REVIEWS_MAX: usize = 32;
const REVIEW_WITHIN: Duration = Duration::from_secs(10);
/// No service-account token is longer.
const TOKEN_BYTES_MAX: usize = 16 << 10;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const ACCOUNT: &str = "system:serviceaccount:";

/// A pod, as the API server named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// For whom a request may speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// For every pod: it knows the secret of this run.
    Trusted,
    /// For this pod alone.
    Pod(Arc<Owner>),
}

impl Speaker {
    /// The pod whose token it is, unless it may speak for `uid`.
    pub fn other_than(&self, uid: &str) -> Option<&Owner> {
        match self {
            Self::Trusted => None,
            Self::Pod(pod) => (pod.uid != uid).then_some(pod),
        }
    }
}

/// Why a request was not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{0}")]
    Token(String),
    #[error("{0}")]
    NoPod(String),
    /// Nobody can say now; the sidecar tries again.
    #[error("the token cannot be reviewed now: {0}")]
    Unknown(String),
}

/// See the module.
pub enum Auth {
    Secret(Secret),
    Tokens(Box<Tokens>),
}

impl Auth {
    pub fn secret(secret: &str) -> Self {
        Self::Secret(Secret(Sha256::digest(secret.as_bytes()).into()))
    }

    /// Wants `create` on `tokenreviews.authentication.k8s.io`.
    pub fn tokens(client: Client) -> Self {
        Self::Tokens(Box::new(Tokens { reviews: Api::all(client), known: Mutex::default(), room: Semaphore::new(REVIEWS_MAX) }))
    }

    /// For whom a request with these headers may speak.
    pub async fn admit(&self, headers: &HeaderMap) -> Result<Speaker, Refused> {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        match self {
            Self::Secret(secret) if secret.is(given.unwrap_or_default()) => Ok(Speaker::Trusted),
            Self::Secret(_) => Err(Refused::Token("send the run's token: Authorization: Bearer …".into())),
            Self::Tokens(tokens) => {
                let ask = || Refused::Token(format!("send a service-account token for the audience {TOKEN_AUDIENCE}: Authorization: Bearer …"));
                let token = given.filter(|token| !token.is_empty() && token.len() <= TOKEN_BYTES_MAX).ok_or_else(ask)?;
                tokens.owner(std::str::from_utf8(token).map_err(|_| ask())?).await.map(Speaker::Pod)
            }
        }
    }
}

/// The run's secret. Only digests are compared, every byte of them, so the time taken tells nothing.
pub struct Secret([u8; 32]);

impl Secret {
    fn is(&self, given: &[u8]) -> bool {
        let given: [u8; 32] = Sha256::digest(given).into();
        self.0.iter().zip(given).fold(0, |difference, (right, given)| difference | (right ^ given)) == 0
    }
}

type Answer = Result<Arc<Owner>, Refused>;

/// What is known of one token: nothing while its review is under way, which later askers wait for.
struct Known {
    answer: Arc<OnceCell<(Answer, Instant)>>,
}

impl Known {
    fn is_current(&self, now: Instant) -> bool {
        self.answer.get().is_none_or(|(_, until)| *until > now)
    }
}

/// Tokens, reviewed by the API server.
pub struct Tokens {
    reviews: Api<TokenReview>,
    known: Mutex<HashMap<[u8; 32], Known>>,
    room: Semaphore,
}

impl Tokens {
    fn known(&self) -> MutexGuard<'_, HashMap<[u8; 32], Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn owner(&self, token: &str) -> Answer {
        let cell = {
            let (key, now) = (Sha256::digest(token.as_bytes()).into(), Instant::now());
            let mut known = self.known();
            make_room(&mut known, &key, now);
            let entry = known.entry(key).or_insert_with(|| Known { answer: Arc::default() });
            if !entry.is_current(now) {
                *entry = Known { answer: Arc::default() };
            }
            Arc::clone(&entry.answer)
        };
        cell.get_or_init(|| self.review(token)).await.0.clone()
    }

    async fn review(&self, token: &str) -> (Answer, Instant) {
        let answer = match timeout(REVIEW_WITHIN, self.ask(token)).await {
            Ok(Ok(status)) => owner(status),
            Ok(Err(error)) => Err(Refused::Unknown(error.to_string())),
            Err(_) => Err(Refused::Unknown(format!("the API server did not answer within {REVIEW_WITHIN:?}"))),
        };
        let now = Instant::now();
        let until = match &answer {
            Ok(_) => now + expires_in(token, SystemTime::now()).unwrap_or(BELIEVED_FOR).min(BELIEVED_FOR),
            Err(Refused::Unknown(_)) => now + UNKNOWN_FOR,
            Err(_) => now + REFUSED_FOR,
        };
        (answer, until)
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, kube::Error> {
        // Never closed.
        let _place = self.room.acquire().await;
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) };
        let review = self.reviews.create(&PostParams::default(), &TokenReview { spec, ..TokenReview::default() }).await?;
        Ok(review.status.unwrap_or_default())
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("known", &self.known().len()).finish_non_exhaustive()
    }
}

/// A token that nobody knows must not push out one that somebody uses: expired ones go first, then refusals, then whichever comes first.
fn make_room(known: &mut HashMap<[u8; 32], Known>, key: &[u8; 32], now: Instant) {
    if known.len() < TOKENS_MAX || known.contains_key(key) {
        return;
    }
    known.retain(|_, known| known.is_current(now));
    if known.len() >= TOKENS_MAX {
        known.retain(|_, known| known.answer.get().is_none_or(|(answer, _)| answer.is_ok()));
    }
    if known.len() >= TOKENS_MAX
        && let Some(some) = known.keys().next().copied()
    {
        known.remove(&some);
    }
}

/// The pod that a reviewed token is bound to.
fn owner(status: TokenReviewStatus) -> Answer {
    let error = status.error.filter(|error| !error.is_empty());
    if status.authenticated != Some(true) || error.is_some() {
        let why = error.unwrap_or_else(|| "it is not one of this cluster's, or it has expired".into());
        return Err(Refused::Token(format!("the token is refused: {why}. Send a service-account token for the audience {TOKEN_AUDIENCE}")));
    }
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(Refused::Token(format!(
            "the token is for another audience: ask for one with audience {TOKEN_AUDIENCE} (volume source serviceAccountToken.audience)"
        )));
    }
    let user = status.user.unwrap_or_default();
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| extra.get(key).and_then(|values| values.first()).filter(|value| !value.is_empty()).cloned();
    let namespace = user.username.as_deref().and_then(|name| name.strip_prefix(ACCOUNT)?.split_once(':')).map(|(namespace, _)| namespace.to_owned());
    match (namespace, one(POD_NAME), one(POD_UID)) {
        (Some(namespace), Some(name), Some(uid)) => Ok(Arc::new(Owner { namespace, name, uid })),
        _ => Err(Refused::NoPod(format!(
            "the token of {} is not bound to a pod: mount a projected serviceAccountToken into the pod and send that",
            user.username.as_deref().unwrap_or("nobody")
        ))),
    }
}

#[derive(Deserialize)]
struct Claims {
    exp: u64,
}

/// What is left of a token that the API server has found good; `None` where it does not say.
fn expires_in(token: &str, now: SystemTime) -> Option<Duration> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    Some(Duration::from_secs(exp).saturating_sub(now.duration_since(UNIX_EPOCH).ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn good() -> TokenReviewStatus {
        let extra = BTreeMap::from([(POD_NAME.to_owned(), vec!["web-0".to_owned()]), (POD_UID.to_owned(), vec!["u-1".to_owned()])]);
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![TOKEN_AUDIENCE.into()]),
            user: Some(UserInfo { username: Some("system:serviceaccount:shop:default".into()), extra: Some(extra), ..UserInfo::default() }),
            error: None,
        }
    }

    #[test]
    fn a_token_speaks_for_the_pod_that_it_is_bound_to_and_for_no_other() {
        let pod = owner(good()).unwrap();
        assert_eq!(*pod, Owner { namespace: "shop".into(), name: "web-0".into(), uid: "u-1".into() });
        let speaker = Speaker::Pod(Arc::clone(&pod));
        assert_eq!((speaker.other_than("u-1"), speaker.other_than("u-2")), (None, Some(&*pod)));
    }

    #[test]
    fn tokens_of_other_audiences_or_of_no_pod_are_refused_with_what_would_be_right() {
        let refused = |change: fn(&mut TokenReviewStatus)| {
            let mut status = good();
            change(&mut status);
            owner(status).unwrap_err()
        };
        let says = |refused: Refused, what: &str| assert!(refused.to_string().contains(what), "{refused}");
        says(refused(|status| status.authenticated = Some(false)), "audience steadfast.dev");
        says(refused(|status| status.error = Some("token has expired".into())), "audience");
        says(refused(|status| status.audiences = Some(vec!["https://kubernetes.default.svc".into()])), "another audience");
        let unbound = refused(|status| status.user.as_mut().unwrap().extra = None);
        assert!(matches!(&unbound, Refused::NoPod(why) if why.contains("system:serviceaccount:shop:default")), "{unbound}");
        let person = refused(|status| status.user.as_mut().unwrap().username = Some("alice".into()));
        assert!(matches!(person, Refused::NoPod(_)), "{person}");
    }

    #[test]
    fn a_token_is_believed_until_it_expires() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        assert_eq!(expires_in(&token(r#"{"exp":1600,"aud":["x"]}"#), now), Some(Duration::from_secs(600)));
        assert_eq!(expires_in(&token(r#"{"exp":900}"#), now), Some(Duration::ZERO));
        for nonsense in ["", "a", "a.b.c", &token("{}"), &token(r#"{"exp":"soon"}"#)] {
            assert_eq!(expires_in(nonsense, now), None, "{nonsense}");
        }
    }

    #[test]
    fn the_memory_of_tokens_is_bounded_and_good_ones_stay_longest() {
        let now = Instant::now();
        let (fresh, stale) = (now + Duration::from_secs(60), now);
        let pod = owner(good()).unwrap();
        let known = |answer: Answer, until| Known { answer: Arc::new(OnceCell::new_with(Some((answer, until)))) };
        let key = |number: usize| Sha256::digest(number.to_le_bytes()).into();
        let mut all: HashMap<[u8; 32], Known> = (0..TOKENS_MAX - 2).map(|number| (key(number), known(Ok(Arc::clone(&pod)), fresh))).collect();
        all.insert(key(TOKENS_MAX), known(Err(Refused::Token(String::new())), fresh));
        all.insert(key(TOKENS_MAX + 1), known(Ok(pod), stale));
        make_room(&mut all, &[0; 32], now);
        assert!(all.len() == TOKENS_MAX - 1 && !all.contains_key(&key(TOKENS_MAX + 1)), "the expired one makes room");
        all.insert([0; 32], Known { answer: Arc::default() });
        make_room(&mut all, &[1; 32], now);
        assert!(all.len() == TOKENS_MAX - 1 && !all.contains_key(&key(TOKENS_MAX)), "then the refused one");
    }
}
