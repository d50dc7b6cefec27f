//! `steadfast golden manifest`: a golden set for a cluster.

use std::process::ExitCode;

use clap::Args as ClapArgs;
use serde_json::json;
use steadfast_controller::golden::config_map;

use super::SetArgs;
use crate::{exit, run::print};

/// Print a golden set as Kubernetes objects: ConfigMaps with its files (one for each megabyte), and the GoldenSet that names them.
#[derive(ClapArgs)]
#[command(after_help = "Example:\n  steadfast golden manifest golden-sets/sets/digits | kubectl apply --server-side -f -")]
pub(super) struct Args {
    #[command(flatten)]
    set: SetArgs,
    /// Name of both [default: the folder's].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

pub(super) fn main(args: &Args) -> ExitCode {
    match manifest(args) {
        Ok(text) => print(&text),
        Err(code) => code,
    }
}

fn manifest(args: &Args) -> Result<String, ExitCode> {
    let set = args.set.read()?;
    let folder = args.set.directory.canonicalize().map_err(exit::failed)?;
    let name = args.name.clone().or_else(|| Some(folder.file_name()?.to_string_lossy().into_owned()));
    let name = name.ok_or_else(|| exit::bad_input("--name: the folder has no name to take"))?;
    let maps = config_map::pack(&name, &folder).map_err(|why| exit::bad_input(format!("{}: {why}", folder.display())))?;
    let golden = json!({
        "apiVersion": "steadfast.dev/v1alpha1", "kind": "GoldenSet", "metadata": { "name": name },
        "spec": { "source": { "configMap": { "name": name, "parts": maps.len() } }, "digest": set.digest().to_string() },
    });
    let mut items = maps.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>().map_err(exit::failed)?;
    items.push(golden);
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    serde_json::to_string_pretty(&list).map(|text| text + "\n").map_err(exit::failed)
}
