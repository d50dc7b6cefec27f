//! Where the API server asks. Every replica answers, leader or not.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::{net::TcpListener, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    admit::{self, MAY_REDIRECT, NAMESPACE_PATH, Outcome, POD_PATH},
    patch::SidecarSettings,
};
use crate::{
    events::Events,
    http::serve as serve_http,
    metrics::Metrics,
    serve::answer::{Body, problem, whole},
};

/// One for each pod that is asked about.
const CONNECTIONS_MAX: usize = 256;
/// No object of a cluster is larger than 1.5 MB; a review holds two of them at most.
const BODY_MAX: usize = 4 << 20;
/// The API server waits for no more than that.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// Answers for pods.
#[derive(Debug)]
pub struct Webhook {
    /// What pods are given from now on.
    pub settings: Arc<ArcSwap<SidecarSettings>>,
    pub metrics: Metrics,
    pub events: Option<Events>,
}

/// Answers on `listener`. Never returns.
pub async fn serve(listener: TcpListener, tls: TlsAcceptor, webhook: Arc<Webhook>) {
    let handler = move |request| {
        let webhook = Arc::clone(&webhook);
        async move {
            let mut answer = webhook.answer(request).await;
            // An API server that keeps a connection goes on asking a replica that lost its node, for up to 45 s, and pods start without sidecars.
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            answer
        }
    };
    serve_http(listener, Some(tls), CONNECTIONS_MAX, handler).await;
}

impl Webhook {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let began = Instant::now();
        let path = match request.uri().path() {
            path if [NAMESPACE_PATH, POD_PATH].contains(&path.strip_suffix(MAY_REDIRECT).unwrap_or(path)) => path.to_owned(),
            other => return problem(StatusCode::NOT_FOUND, &format!("{other} is not here: there are {NAMESPACE_PATH} and {POD_PATH}")),
        };
        if request.method() != Method::POST {
            return problem(StatusCode::METHOD_NOT_ALLOWED, "pods are sent: POST an AdmissionReview");
        }
        let body = match timeout(BODY_WITHIN, Limited::new(request.into_body(), BODY_MAX).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return problem(StatusCode::BAD_REQUEST, &format!("the body could not be read (at most {BODY_MAX} bytes): {error}")),
            Err(_) => return problem(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
        };
        match admit::answer(&path, &body, &self.settings.load()) {
            Ok(answer) => {
                self.tell(&answer);
                self.metrics.admission_duration.observe(began.elapsed().as_secs_f64());
                whole(StatusCode::OK, "application/json", answer.review.to_string())
            }
            Err(why) => problem(StatusCode::BAD_REQUEST, &why),
        }
    }

    fn tell(&self, answer: &admit::Answer) {
        if !answer.counts {
            return;
        }
        self.metrics.admissions.with_label_values(&[answer.outcome.name()]).inc();
        let Outcome::Skipped(skip) = &answer.outcome else { return };
        self.metrics.skipped.with_label_values(&[skip.reason()]).inc();
        if let (Some(events), Some(about)) = (&self.events, &answer.about) {
            events.warn(about.clone(), skip.reason(), "Inject", &format!("no sidecar: {skip}"));
        }
    }
}
