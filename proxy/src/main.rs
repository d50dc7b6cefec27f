//! `steadfast-proxy`: the sidecar as a program of its own, for containers. Everything is in the library.

use std::process::ExitCode;

use clap::Parser;
use steadfast_proxy::{
    RunError,
    config::Args,
    hook::{self, Hook},
    run,
};

/// Stand in front of one model server: measure, inject faults when armed, replay golden inputs.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    hook: Option<Hook>,
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let fail = |error: &dyn std::fmt::Display, code: u8| {
        eprintln!("steadfast-proxy: {error}");
        ExitCode::from(code)
    };
    if let Some(hook) = cli.hook {
        return hook::run(&hook).map_or_else(|error| fail(&error, 1), |()| ExitCode::SUCCESS);
    }
    match run(cli.args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ (RunError::Flag(_) | RunError::Policy(_) | RunError::Golden(_) | RunError::Listen { .. })) => fail(&error, 2),
        Err(error) => fail(&error, 1),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_alone_are_the_sidecar_and_hooks_need_none_of_them() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["steadfast-proxy", "--route=4180=8000"]).unwrap().hook.is_none());
        let hook = Cli::try_parse_from(["steadfast-proxy", "leave", "--admin=127.0.0.1:4178"]).unwrap().hook;
        assert!(matches!(hook, Some(Hook::Leave { .. })));
        assert!(Cli::try_parse_from(["steadfast-proxy"]).is_err(), "a sidecar needs a server");
        assert!(Cli::try_parse_from(["steadfast-proxy", "leave"]).is_err(), "a hook needs the sidecar's address");
    }
}
