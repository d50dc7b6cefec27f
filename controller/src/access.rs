//! Which cluster is asked from outside, and as whom: what `kubectl` understands by `--kubeconfig` and `--context`.

use std::{path::PathBuf, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// An API server that does not answer by then is asked anew: the kernel waits twice as long before each try.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);

/// Options of every command that asks a cluster.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Access {
    /// Kubeconfig file [default: KUBECONFIG, then ~/.kube/config, then the pod that this runs in].
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one].
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub context: Option<String>,
}

/// There is no cluster to ask.
#[derive(Debug, thiserror::Error)]
#[error("no cluster: {0}; set KUBECONFIG, or choose a context with kubectl or --context")]
pub struct NoCluster(pub String);

impl Access {
    /// As they would be typed again, each with a space before it.
    pub fn flags(&self) -> String {
        let file = self.kubeconfig.as_ref().map(|file| format!(" --kubeconfig {}", file.display()));
        let context = self.context.as_ref().map(|context| format!(" --context {context}"));
        file.unwrap_or_default() + &context.unwrap_or_default()
    }

    /// # Errors
    /// When no file says where it is, or the file has no such context.
    pub async fn config(&self) -> Result<Config, NoCluster> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        if let Some(file) = &self.kubeconfig {
            let kubeconfig = Kubeconfig::read_from(file).map_err(|error| NoCluster(format!("--kubeconfig {}: {error}", file.display())))?;
            return Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| NoCluster(error.to_string()));
        }
        match Config::from_kubeconfig(&options).await {
            Ok(config) => Ok(config),
            // Whoever names a context means a file.
            Err(error) if self.context.is_some() => Err(NoCluster(error.to_string())),
            Err(error) => Config::incluster().map_err(|_| NoCluster(error.to_string())),
        }
    }

    /// # Errors
    /// As [`Self::config`], or when what the file says of certificates cannot be used.
    pub async fn client(&self) -> Result<Client, NoCluster> {
        made(self.config().await?)
    }

    /// One that asks a busy API server again by itself, and one that never does.
    pub async fn clients(&self) -> Result<(Client, Client), NoCluster> {
        let mut config = self.config().await?;
        let client = made(config.clone())?;
        config.default_retry = false;
        Ok((client, made(config)?))
    }
}

fn made(mut config: Config) -> Result<Client, NoCluster> {
    crate::http::provide();
    config.connect_timeout = Some(CONNECTS_WITHIN);
    Client::try_from(config).map_err(|error| NoCluster(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "apiVersion: v1
kind: Config
current-context: near
clusters:
  - {name: near, cluster: {server: 'https://near.example:6443'}}
  - {name: far, cluster: {server: 'https://far.example:6443'}}
users: [{name: me, user: {token: t}}]
contexts:
  - {name: near, context: {cluster: near, user: me}}
  - {name: far, context: {cluster: far, user: me, namespace: models}}
";

    #[tokio::test]
    async fn a_file_and_a_context_are_taken_as_kubectl_takes_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        std::fs::write(&file, TWO).unwrap();
        let of = |context: Option<&str>| Access { kubeconfig: Some(file.clone()), context: context.map(str::to_owned) };
        let near = of(None).config().await.unwrap();
        assert_eq!((near.cluster_url.host(), near.default_namespace.as_str()), (Some("near.example"), "default"));
        assert_eq!(of(Some("far")).flags(), format!(" --kubeconfig {} --context far", file.display()));
        let far = of(Some("far")).config().await.unwrap();
        assert_eq!((far.cluster_url.host(), far.default_namespace.as_str()), (Some("far.example"), "models"));
        let refused = of(Some("nowhere")).config().await.unwrap_err().to_string();
        assert!(refused.contains("nowhere") && refused.contains("--context"), "{refused}");
        let missing = Access { kubeconfig: Some(folder.path().join("none")), context: None }.config().await.unwrap_err().to_string();
        assert!(missing.contains("--kubeconfig") && missing.contains("none"), "{missing}");
    }
}
