//! What a controller and the pod of its users say to each other, as lines of JSON on a connection of their own. Both are one program of one version: the pod is this
//! controller's own image, and is heard by nobody else.
//!
//! Times are nanoseconds on the pod's monotonic clock since its zero. Batches are numbered and told at least once; what was acknowledged is forgotten.

use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use steadfast_api::{policy::Origin, test::Load};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::End;

/// Where the pod dials in, at the port of the sidecars.
pub const USERS_PATH: &str = "/v1alpha1/users";
/// What it says in `Upgrade`.
pub const USERS_UPGRADE: &str = "steadfast-users";
/// One line: a batch of as many rows as the pod puts into one has a fifth of that.
const LINE_MAX: usize = 1 << 20;

/// Of the controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Down {
    /// The first line of every connection.
    Begin(Box<Begin>),
    /// Batches up to this number are on record.
    Acknowledged(u64),
    /// Nobody asks any more; what is under way ends, and the last batch says so.
    Stop,
}

/// Whom to ask, and what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Begin {
    pub target: SocketAddr,
    pub keep_alive: bool,
    pub loads: Vec<Wanted>,
}

/// One load. Its golden set is fetched by its digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    pub load: Load,
    pub digest: String,
    pub seed: u64,
}

/// Of the pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Up {
    Batch(Batch),
    /// It cannot do what it was asked; why. Nothing comes after it.
    Failed(String),
}

/// What became of requests since the batch before; an empty one says that the pod is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// From 1, without gaps.
    pub sequence: u64,
    /// When this line was written.
    pub sent_ns: u64,
    /// The youngest acknowledgement, and when it was heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<(u64, u64)>,
    pub rows: Vec<Row>,
    /// Names that rows refer to.
    pub pods: Vec<String>,
    /// Requests so far that were answered faster than they could be told.
    pub dropped: u64,
    /// The last one.
    pub ended: bool,
    /// In the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
}

/// One request: due, sent and ended; the number of its pod's name; how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row(pub u64, pub u64, pub u64, pub Option<u32>, pub Ended);

/// [`End`], as a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ended {
    Right,
    Wrong,
    Silence,
    Error(u16, Origin),
}

impl From<End> for Ended {
    fn from(end: End) -> Self {
        match end {
            End::Answered { right: true } => Self::Right,
            End::Answered { right: false } => Self::Wrong,
            End::Error { status, origin } => Self::Error(status, origin),
            End::Silence => Self::Silence,
        }
    }
}

impl From<Ended> for End {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Right => Self::Answered { right: true },
            Ended::Wrong => Self::Answered { right: false },
            Ended::Error(status, origin) => Self::Error { status, origin },
            Ended::Silence => Self::Silence,
        }
    }
}

/// The pod's zero on its kernel's CLOCK_MONOTONIC: where controller and pod share a kernel, this tells how well the one was placed on the other's clock. Nothing else
/// is made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    pub zero_ns: u64,
}

impl Kernel {
    /// `None` where the kernel does not say which it is.
    pub(crate) fn here(zero: std::time::Instant) -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).ok()?;
        let ago = zero.elapsed().as_nanos() as u64;
        let now = u64::try_from(now.tv_sec()).ok()? * 1_000_000_000 + u64::try_from(now.tv_nsec()).ok()?;
        Some(Self { boot, zero_ns: now.checked_sub(ago)? })
    }
}

/// Lines of one side.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    from: R,
    pending: BytesMut,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(from: R) -> Self {
        Self { from, pending: BytesMut::new() }
    }

    /// The next one. Safe to cancel.
    ///
    /// # Errors
    /// When there is none any more, or it is none of these.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, String> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line = self.pending.split_to(end);
                self.pending.advance(1);
                return serde_json::from_slice(&line).map_err(|error| format!("a line is not what it should be: {error}"));
            }
            if self.pending.len() > LINE_MAX {
                return Err(format!("a line of more than {LINE_MAX} bytes"));
            }
            match self.from.read_buf(&mut self.pending).await {
                Ok(0) => return Err("the other side ended it".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// Writes one line.
///
/// # Errors
/// When it cannot be said.
pub(crate) async fn say(to: &mut (impl AsyncWrite + Unpin), what: &impl Serialize) -> Result<(), String> {
    let mut line = serde_json::to_vec(what).map_err(|error| error.to_string())?;
    line.push(b'\n');
    let said = async {
        to.write_all(&line).await?;
        to.flush().await
    };
    said.await.map_err(|error: std::io::Error| error.to_string())
}
