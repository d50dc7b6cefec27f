//! The way of a request, top to bottom, written out once.

use std::{convert::Infallible, net::IpAddr, rc::Rc};

use http::{Request, Response};
use steadfast_api::policy::Origin;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, layer::layer_fn, service_fn};

use crate::{
    body::{RequestBody, ResponseBody},
    fault::{
        decide::{self, FaultPlan},
        inject,
        link::Link,
        model,
    },
    forward::{Answer, forward},
    measure::request::Begun,
    sanitize::{Refusal, Sanitized},
    worker::Worker,
};

type Clean = Sanitized<Request<RequestBody>>;

/// A stage of the stack: always ready, never failing (what fails is an answer too), one clone for each request.
pub trait Stage<R, A>: Service<R, Response = A, Error = Infallible, Future: 'static> + Clone + 'static {}

impl<R, A, S> Stage<R, A> for S where S: Service<R, Response = A, Error = Infallible, Future: 'static> + Clone + 'static {}

/// Everything between a client's connection (`served`, which knows the client's address and by which route it came) and the model server.
/// `link`: the connection itself, as far as faults reach it.
pub fn stack(worker: Rc<Worker>, peer: IpAddr, route: usize, link: Link) -> impl Stage<Request<RequestBody>, Response<ResponseBody>> {
    ServiceBuilder::new()
        // First of all: whatever stands behind this works on one unambiguous request, without fields of the client's connection and without a
        // fault header that the model server could see.
        .layer(sanitize(peer, route, link))
        // Outside of everything that can answer, so that refusals, injected answers and the model server's own are all counted, with whose doing they
        // were, and the time includes what was injected. It wraps the body, once.
        .layer(measure(Rc::clone(&worker)))
        .service(inside(worker))
}

/// The part that golden replays take as well: they are nobody's request (nothing to sanitize) and no traffic (not measured as such).
pub fn inside(worker: Rc<Worker>) -> impl Stage<Clean, Answer> {
    ServiceBuilder::new()
        // Whether a fault header counts (trust), what is armed, what falls on this request within which budget: all decided here, once, from one load
        // of what is armed. A header that counts and cannot be followed ends here with 400.
        .layer(decide_faults(Rc::clone(&worker)))
        // Does what was decided. The only place that holds a request back, answers in the model server's stead, or changes an answer.
        .layer(inject_faults(Rc::clone(&worker)))
        // Takes nothing but `Sanitized`.
        .service(forward_to_upstream(worker))
}

fn sanitize<S: Stage<Result<Clean, Refusal>, Response<ResponseBody>>>(
    peer: IpAddr,
    route: usize,
    link: Link,
) -> impl Layer<S, Service = impl Stage<Request<RequestBody>, Response<ResponseBody>>> {
    layer_fn(move |inner: S| {
        let link = link.clone();
        service_fn(move |request: Request<RequestBody>| {
            let mut sanitized = Sanitized::user(request, peer, route);
            if let Ok(clean) = &mut sanitized {
                clean.facts.link = Some(link.clone());
            }
            inner.clone().oneshot(sanitized)
        })
    })
}

fn measure<S: Stage<Clean, Answer>>(worker: Rc<Worker>) -> impl Layer<S, Service = impl Stage<Result<Clean, Refusal>, Response<ResponseBody>>> {
    layer_fn(move |inner: S| {
        let worker = Rc::clone(&worker);
        service_fn(move |request: Result<Clean, Refusal>| {
            let (inner, begun) = (inner.clone(), Begun::new(&worker));
            async move {
                let answer = match request {
                    Ok(request) if request.facts.asks_pod => {
                        let mut answer = inner.oneshot(request).await?;
                        begun.name_pod(&mut answer);
                        answer
                    }
                    Ok(request) => inner.oneshot(request).await?,
                    // In boxes, here and below, is what few requests meet: a future is as large as the largest that it may wait for, and is moved from layer to layer.
                    Err(refusal) => {
                        let answer = Answer::own(&refusal.problem, refusal.dialect, refusal.head, Origin::Proxy);
                        Box::pin(answer.without_reading(*refusal.unread)).await
                    }
                };
                Ok(begun.answer(answer))
            }
        })
    })
}

fn decide_faults<S: Stage<(Clean, FaultPlan), Answer>>(worker: Rc<Worker>) -> impl Layer<S, Service = impl Stage<Clean, Answer>> {
    layer_fn(move |inner: S| {
        let worker = Rc::clone(&worker);
        service_fn(move |mut request: Clean| {
            let (inner, worker) = (inner.clone(), Rc::clone(&worker));
            async move {
                if let Some(read) = model::in_body(&worker, &request) {
                    Box::pin(model::name(&worker, &mut request, read)).await;
                }
                match decide::decide(&worker, &request) {
                    Ok(plan) => inner.oneshot((request, plan)).await,
                    Err(problem) => {
                        let answer = Answer::own(&problem, request.facts.dialect, request.facts.head, Origin::Proxy);
                        Ok(Box::pin(answer.without_reading(request.into_parts().0.into_body())).await)
                    }
                }
            }
        })
    })
}

fn inject_faults<S: Stage<Clean, Answer>>(worker: Rc<Worker>) -> impl Layer<S, Service = impl Stage<(Clean, FaultPlan), Answer>> {
    layer_fn(move |inner: S| {
        let worker = Rc::clone(&worker);
        service_fn(move |(request, plan): (Clean, FaultPlan)| {
            let (inner, worker) = (inner.clone(), Rc::clone(&worker));
            async move {
                if plan.is_empty() {
                    return inner.oneshot(request).await;
                }
                if let Some(link) = &request.facts.link {
                    // Until it goes up, nobody but us could find out that its client is gone.
                    link.half().held();
                }
                Box::pin(inject::inject(&worker, request, plan, inner)).await
            }
        })
    })
}

fn forward_to_upstream(worker: Rc<Worker>) -> impl Stage<Clean, Answer> {
    service_fn(move |request: Clean| {
        let worker = Rc::clone(&worker);
        async move { Ok(forward(worker, request).await) }
    })
}
