//! Certificates as the controller shows them: its own, or those that somebody else makes and mounts, such as cert-manager.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::sleep;

use super::{
    certificate::Certificates,
    secret::{KeepError, Keeper},
};
use crate::http::BadCertificate;

/// How often mounted files are looked at; kubelet writes them anew within a minute or two.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// While there are none.
const RETRY: Duration = Duration::from_secs(2);
/// No chain of certificates is longer.
const BYTES_MAX: u64 = 1 << 20;

/// What is shown, and what others have to believe; PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub certificate: String,
    pub key: String,
    pub authorities: String,
}

impl From<&Certificates> for Shown {
    fn from(own: &Certificates) -> Self {
        Self { certificate: own.server().certificate.clone(), key: own.server().key.clone(), authorities: own.trust() }
    }
}

/// Where certificates come from.
pub enum Source {
    Own(Box<Keeper>),
    Mounted(Mounted),
}

impl Source {
    /// Returns once there are some.
    pub async fn first(&self) -> Shown {
        loop {
            let found = match self {
                Self::Own(keeper) => own(keeper).await.map_err(|error| error.to_string()),
                Self::Mounted(mounted) => mounted.read(),
            };
            match found {
                Ok(shown) => return shown,
                Err(error) => tracing::warn!(error, "no certificates yet"),
            }
            sleep(RETRY).await;
        }
    }

    /// Looks again and again, and hands over what changed; what was refused is handed over again. Never returns.
    pub async fn keep(&self, mut known: Shown, changed: impl Fn(&Shown) -> Result<(), BadCertificate>) {
        let mut hand_over = |now: Shown| {
            if now == known {
                return;
            }
            match changed(&now) {
                Ok(()) => known = now,
                Err(error) => tracing::error!(%error, "new certificates cannot be used; the old ones stay"),
            }
        };
        match self {
            Self::Own(keeper) => keeper.keep(|now| hand_over(now.into())).await,
            Self::Mounted(mounted) => loop {
                sleep(LOOK_EVERY).await;
                match mounted.read() {
                    Ok(now) => hand_over(now),
                    Err(error) => tracing::warn!(error, "certificates could not be looked at"),
                }
            },
        }
    }
}

async fn own(keeper: &Keeper) -> Result<Shown, KeepError> {
    let certificates = keeper.look().await?;
    if let Err(error) = keeper.announce(&certificates.trust()).await {
        tracing::warn!(%error, "the API server could not be told whom to believe; tried again soon");
    }
    Ok((&certificates).into())
}

/// A folder with `tls.crt`, `tls.key` and `ca.crt`, as Secrets of type kubernetes.io/tls are mounted.
pub struct Mounted {
    folder: PathBuf,
}

impl Mounted {
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The three files, all of the same moment.
    fn read(&self) -> Result<Shown, String> {
        // Kubelet changes all of them at once, by one link; it could do so between two readings.
        let before = self.version();
        let file = |name: &str| text(&self.folder.join(name));
        let shown = Shown { certificate: file("tls.crt")?, key: file("tls.key")?, authorities: file("ca.crt")? };
        if self.version() != before {
            return Err(format!("{}: changed while it was read", self.folder.display()));
        }
        Ok(shown)
    }

    fn version(&self) -> Option<PathBuf> {
        fs::read_link(self.folder.join("..data")).ok()
    }
}

fn text(path: &Path) -> Result<String, String> {
    let fail = |why: String| format!("{}: {why}", path.display());
    let about = fs::metadata(path).map_err(|error| fail(error.to_string()))?;
    if about.len() == 0 || about.len() > BYTES_MAX {
        return Err(fail(format!("has {} bytes, which is no certificate and no key", about.len())));
    }
    fs::read_to_string(path).map_err(|error| fail(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{SocketAddr, TcpStream},
        os::unix::fs::symlink,
        sync::Arc,
        time::{Instant, SystemTime, UNIX_EPOCH},
    };

    use http::StatusCode;
    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, StreamOwned,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    };

    use super::*;
    use crate::{
        http::{self as serving, Identity},
        serve::answer::whole,
        webhook::certificate::Lifetimes,
    };

    const NAME: &str = "steadfast-webhook.steadfast.svc";

    fn made() -> Shown {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        (&Certificates::make(&[NAME.to_owned()], now, &Lifetimes::default()).unwrap()).into()
    }

    /// As kubelet does: a new folder, and one link that moves to it.
    fn mount(folder: &Path, version: &str, shown: &Shown) {
        let real = folder.join(version);
        fs::create_dir(&real).unwrap();
        for (name, text) in [("tls.crt", &shown.certificate), ("tls.key", &shown.key), ("ca.crt", &shown.authorities)] {
            fs::write(real.join(name), text).unwrap();
            if !folder.join(name).exists() {
                symlink(Path::new("..data").join(name), folder.join(name)).unwrap();
            }
        }
        symlink(version, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    }

    type Connection = StreamOwned<ClientConnection, TcpStream>;

    fn connect(to: SocketAddr, authorities: &str) -> Result<Connection, String> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
            roots.add(authority.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let client = ClientConnection::new(Arc::new(config.with_no_client_auth()), ServerName::try_from(NAME).unwrap()).unwrap();
        let mut connection = StreamOwned::new(client, TcpStream::connect(to).unwrap());
        ask(&mut connection).map(|()| connection)
    }

    fn ask(connection: &mut Connection) -> Result<(), String> {
        connection.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").map_err(|error| error.to_string())?;
        let mut head = [0; 15];
        connection.read_exact(&mut head).map_err(|error| error.to_string())?;
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        let mut rest = [0; 1024];
        // The rest of this short answer comes with its head, or right after it.
        while !rest.windows(2).any(|two| two == b"ok") {
            connection.read(&mut rest).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    #[test]
    fn what_is_mounted_anew_is_shown_to_who_comes_and_nobody_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second, unfit) = (made(), made(), Shown { key: made().key, ..made() });
        let source = Source::Mounted(Mounted::new(folder.path().to_owned()));
        let (address, thread) = {
            mount(folder.path(), "1", &first);
            let thread = crate::runtime::OwnThread::start("shown").unwrap();
            let (tell, told) = std::sync::mpsc::channel();
            thread.handle().spawn(async move {
                let shown = source.first().await;
                let identity = Identity::new(&shown.certificate, &shown.key).unwrap();
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                let handler = |_| std::future::ready(whole(StatusCode::OK, "text/plain", "ok"));
                let serve = serving::serve(listener, Some(identity.acceptor()), 8, handler);
                tokio::join!(serve, source.keep(shown, |now| identity.replace(&now.certificate, &now.key)));
            });
            (told.recv().unwrap(), thread)
        };
        let mut old = connect(address, &first.authorities).unwrap();
        assert!(connect(address, &second.authorities).is_err(), "the second are not there yet");
        // A key of another certificate is not taken; what was shown stays.
        mount(folder.path(), "2", &unfit);
        let until = Instant::now() + LOOK_EVERY + Duration::from_secs(1);
        while Instant::now() < until {
            assert!(connect(address, &first.authorities).is_ok());
            std::thread::sleep(Duration::from_millis(200));
        }
        mount(folder.path(), "3", &second);
        let began = Instant::now();
        while connect(address, &second.authorities).is_err() {
            assert!(began.elapsed() < LOOK_EVERY * 4, "the new certificate is never shown");
            // Whoever comes meanwhile is shown one of the two.
            ask(&mut old).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(connect(address, &first.authorities).is_err());
        ask(&mut old).expect("the connection of before goes on");
        drop(thread);
    }

    #[test]
    fn a_file_that_is_missing_or_empty_is_named() {
        let folder = tempfile::tempdir().unwrap();
        mount(folder.path(), "1", &Shown { authorities: String::new(), ..made() });
        let mounted = Mounted::new(folder.path().to_owned());
        assert!(mounted.read().unwrap_err().contains("ca.crt: has 0 bytes"));
        assert!(Mounted::new(folder.path().join("x")).read().unwrap_err().contains("tls.crt"));
    }
}
