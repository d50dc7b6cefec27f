//! What a pod's processes print: a file of bounded size in the run's folder, and the last lines in memory, to be quoted when a process dies early.
//!
//! Files are written by a thread of their own, so that a slow disk delays nothing; a process that prints faster than that thread writes waits in its pipe.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::unix::pipe, runtime::Handle, sync::watch, time::timeout};

/// Of one file; there is at most one older one beside it.
const FILE_BYTES_MAX: u64 = 1 << 20;
const LINES_KEPT: usize = 20;
const LINE_BYTES_MAX: usize = 400;

/// The log of one container, over all its lives.
#[derive(Clone, Debug)]
pub(super) struct Log {
    writer: Handle,
    file: PathBuf,
    tail: Arc<Mutex<Tail>>,
    /// Pipes that may still bring something.
    open: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    begun: Vec<u8>,
}

impl Log {
    /// Written on `writer`'s thread.
    pub(super) fn new(writer: &Handle, file: PathBuf) -> Self {
        Self { writer: writer.clone(), file, tail: Arc::default(), open: watch::Sender::new(0) }
    }

    /// Where a process prints.
    pub(super) fn input(&self) -> io::Result<Stdio> {
        let (reader, writer) = io::pipe()?;
        let reader = {
            let _runtime = self.writer.enter();
            pipe::Receiver::from_owned_fd(reader.into())?
        };
        let file = File::options().create(true).append(true).open(&self.file)?;
        self.open.send_modify(|open| *open += 1);
        self.writer.spawn(copy(reader, file, self.clone()));
        Ok(writer.into())
    }

    /// Returns once everything that ended processes printed has been read, or `within` is over: somebody else may hold their pipe open.
    pub(super) async fn read_to_the_end(&self, within: Duration) {
        let _ = timeout(within, self.open.subscribe().wait_for(|open| *open == 0)).await;
    }

    /// The last lines, newest last, in one line of text. Empty when nothing was printed.
    pub(super) fn last_lines(&self, count: usize) -> String {
        let tail = self.tail();
        let mut lines: Vec<_> = tail.lines.iter().cloned().collect();
        if !tail.begun.is_empty() {
            lines.push(String::from_utf8_lossy(&tail.begun).into_owned());
        }
        lines[lines.len().saturating_sub(count)..].join(" | ")
    }

    fn tail(&self) -> std::sync::MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tail {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte != b'\n' {
                if self.begun.len() < LINE_BYTES_MAX {
                    self.begun.push(*byte);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.begun)).trim_end().to_owned();
            if !line.is_empty() {
                self.lines.push_back(line);
                if self.lines.len() > LINES_KEPT {
                    self.lines.pop_front();
                }
            }
        }
    }
}

async fn copy(mut from: pipe::Receiver, mut file: File, log: Log) {
    let mut buffer = vec![0; 8 << 10];
    let mut size = file.metadata().map_or(0, |metadata| metadata.len());
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let bytes = &buffer[..read];
        log.tail().take(bytes);
        if size + read as u64 > FILE_BYTES_MAX {
            let older = log.file.with_extension("log.1");
            let Ok(fresh) = fs::rename(&log.file, older).and_then(|()| File::create(&log.file)) else { continue };
            (file, size) = (fresh, 0);
        }
        // A full disk costs the log, not the run.
        if file.write_all(bytes).is_ok() {
            size += read as u64;
        }
    }
    log.open.send_modify(|open| *open -= 1);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::runtime::OwnThread;

    #[tokio::test]
    async fn files_are_bounded_and_the_last_lines_can_be_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let thread = OwnThread::start("logs").unwrap();
        let log = Log::new(thread.handle(), folder.path().join("server.log"));
        let mut command = Command::new("sh");
        command.args(["-c", "seq 1 500000; echo not found: model.onnx; printf 'no end'"]).stdout(log.input().unwrap());
        assert!(command.status().unwrap().success());
        // The command holds the pipe's other end open.
        drop(command);
        log.read_to_the_end(Duration::from_secs(5)).await;
        assert_eq!(log.last_lines(3), "500000 | not found: model.onnx | no end");
        let sizes: Vec<u64> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
        assert!(sizes.len() == 2 && sizes.iter().all(|size| *size <= FILE_BYTES_MAX), "{sizes:?}");
    }
}
