//! `steadfast lint`: everything that is wrong with an experiment file, with line, column, field and what would be right.

use std::{path::PathBuf, process::ExitCode};

use steadfast_api::{
    read::{BadFile, from_yaml},
    test::ResilienceTest,
};
use steadfast_controller::experiment::sets::Finder;

use crate::{
    exit,
    run::{self, Platform},
};

/// Check experiment files without running them.
///
/// One with `local` must be right for one machine, one without for a cluster; it is said where it could run.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  steadfast lint examples/*.yaml\n\nExit status: 0 when all are right, 2 when one is not.")]
pub(crate) struct Args {
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where it shall run, whatever it says.
    #[arg(long, value_enum)]
    platform: Option<Platform>,
    /// Folder that holds golden sets by name [default: golden-sets/sets, here or where Steadfast was built].
    #[arg(long, value_name = "DIR")]
    golden_sets: Option<PathBuf>,
}

pub(crate) fn main(args: Args) -> ExitCode {
    let finder = match run::finder(args.golden_sets.as_deref()) {
        Ok(finder) => finder,
        Err(error) => return exit::failed(error),
    };
    let mut worst = ExitCode::SUCCESS;
    for file in &args.files {
        match run::read(file) {
            Err(error) => worst = exit::bad_input(error),
            Ok((name, text)) => match lint(&name, &text, args.platform, &finder) {
                Ok(platforms) => println!("{name}: ok for {}", platforms.iter().map(|one| one.name()).collect::<Vec<_>>().join(" and ")),
                Err(errors) => worst = run::refuse(&errors),
            },
        }
    }
    worst
}

/// The platforms on which it could run, or what is wrong with it on the one that it is meant for: who writes `local` means one machine.
fn lint(name: &str, text: &str, wanted: Option<Platform>, finder: &Finder) -> Result<Vec<Platform>, Vec<BadFile>> {
    let test: ResilienceTest = from_yaml(name, text).map_err(|error| vec![error])?;
    let meant = wanted.unwrap_or(if test.spec.local.is_some() { Platform::Local } else { Platform::Kubernetes });
    meant.read(name, text, finder)?;
    Ok(Platform::ALL.into_iter().filter(|platform| platform.read(name, text, finder).is_ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn examples(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                examples(&path, found);
            } else {
                found.push(path);
            }
        }
    }

    #[test]
    fn every_example_is_right_for_the_platform_that_it_is_written_for() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let finder = Finder { shelves: vec![root.join("golden-sets/sets")], work_dir: root.to_owned() };
        let (mut files, mut tests) = (Vec::new(), 0);
        examples(&root.join("examples"), &mut files);
        for file in files {
            let (name, text) = run::read(&file).unwrap();
            // Policies by hand, and objects of Kubernetes, are read elsewhere.
            if !text.contains("\nkind: ResilienceTest\n") {
                continue;
            }
            tests += 1;
            let platforms = lint(&name, &text, None, &finder).unwrap_or_else(|errors| panic!("{errors:?}"));
            let wanted = if text.contains("--platform kubernetes") || name.contains("tutorial") { Platform::Kubernetes } else { Platform::Local };
            assert!(platforms.contains(&wanted), "{name}: {platforms:?}");
        }
        assert!(tests >= 6, "{tests}");
    }

    #[test]
    fn a_file_that_is_right_nowhere_is_told_what_is_wrong_where_it_is_meant_to_run() {
        let finder = Finder { shelves: Vec::new(), work_dir: PathBuf::from("/") };
        let text = |local: &str, step: &str| {
            format!(
                "apiVersion: steadfast.dev/v1alpha1\nkind: ResilienceTest\nmetadata: {{name: t}}\nspec:\n  target: {{selector: {{matchLabels: {{app: x}}}}}}\n{local}  steps: [{{name: s, {step}}}]\n"
            )
        };
        let local = "  local: {nodes: 3, pods: {replicas: 3, labels: {app: x}, command: [steadfast, serve, m, --port, $(PORT)]}}\n";
        let kill = "podKill: {pods: {mode: one}}";
        assert_eq!(lint("f", &text("", kill), None, &finder).unwrap(), [Platform::Kubernetes]);
        assert_eq!(lint("f", &text(local, kill), None, &finder).unwrap(), Platform::ALL);
        let evict = text(local, "evict: {pods: {mode: one}}");
        assert_eq!(lint("f", &evict, Some(Platform::Kubernetes), &finder).unwrap(), [Platform::Kubernetes]);
        let fields = |result: Result<Vec<Platform>, Vec<BadFile>>| result.unwrap_err().into_iter().map(|error| error.field).collect::<Vec<_>>();
        assert_eq!(fields(lint("f", &evict, None, &finder)), ["spec.steps[0].evict"]);
        assert_eq!(fields(lint("f", &text("", kill), Some(Platform::Local), &finder)), ["spec"]);
        let never = "scale: {replicas: 20000}, for: 10s";
        assert_eq!(fields(lint("f", &text("", never), None, &finder)), ["spec.steps[0].scale.replicas"]);
        assert_eq!(fields(lint("f", &text(local, never), None, &finder)).len(), 2, "and that one machine takes 256");
    }
}
