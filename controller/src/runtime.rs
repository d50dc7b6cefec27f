//! Threads of their own for what must not wait for anything else: the gateway, the users, the sidecars' connection, the local platform.
//!
//! Each is one thread with one current-thread runtime, so nothing that happens elsewhere in the process, a busy report or a slow file, delays a
//! request or a mark by more than the kernel's scheduling.

use std::{io, thread, time::Duration};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// Work that is still on its way when a thread ends is given this long; what it must not lose was waited for before.
const SHUTDOWN: Duration = Duration::from_millis(500);

/// One thread with its runtime. Dropping it ends the thread and everything that was spawned on it.
#[derive(Debug)]
pub(crate) struct OwnThread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl OwnThread {
    /// `name` is shown by the system's tools: at most 15 characters.
    pub(crate) fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _ = runtime.block_on(stopped);
            runtime.shutdown_timeout(SHUTDOWN);
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) const fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A thread that panicked has told so on standard error; there is nothing left to take from it.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}
