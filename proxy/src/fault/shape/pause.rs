//! What a body waits for before its bytes go out.

use std::{future::poll_fn, pin::Pin, rc::Rc, sync::Arc};

use crate::{
    fault::{link::Link, policy::CompiledPolicy},
    worker::Worker,
};

pub type Wait = Pin<Box<dyn Future<Output = ()>>>;

/// Something to wait for before bytes go out.
pub struct Pause {
    pub policy: Arc<CompiledPolicy>,
    pub deadline_ns: u64,
    /// What was sent before has to go out first, so that what follows goes out on its own.
    pub after: Option<(Link, u64)>,
}

impl Pause {
    /// Ends with its policy.
    pub fn begin(self, worker: &Rc<Worker>) -> Wait {
        let worker = Rc::clone(worker);
        Box::pin(async move {
            let pause = async {
                if let Some((link, since)) = self.after {
                    poll_fn(|cx| link.poll_flushed(since, cx)).await;
                }
                // Too many at once: then there is no pause.
                if let Some(sleep) = worker.timer.sleep_until(self.deadline_ns) {
                    sleep.await;
                }
            };
            tokio::select! {
                () = pause => {}
                () = self.policy.over() => {}
            }
        })
    }
}
