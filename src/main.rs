//! The `leafblk` command: flags to configuration to work, and the exit status.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::io::{self, Write};
use std::process::ExitCode;

use leafblk::cli::{Cli, Command, ParseEnd, QemuArgsArgs, answer_shell, print_openapi};
use leafblk::config::name::{NameOf, check_name};
use leafblk::config::{Config, Environment, Settings, check_log};
use leafblk::daemon::{self, record};
use leafblk::error::Error;
use leafblk::{logging, qemu_args};

fn main() -> ExitCode {
    match answer_shell() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        // The shell shows nothing of it.
        Err(_) => return ExitCode::FAILURE,
    }
    let cli = match Cli::parse_from_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(ParseEnd::Print(text)) => {
            return match io::stdout().write_all(text.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        Err(ParseEnd::Help(text)) => {
            // Without stderr there is nobody to tell.
            let _ = io::stderr().write_all(text.as_bytes());
            return ExitCode::from(2);
        }
        Err(ParseEnd::Mistake(error)) => return report(&error.into()),
    };
    match run(&cli.command) {
        Ok(status) => {
            logging::say_last(None);
            status
        }
        Err(error) => report(&error),
    }
}

fn report(error: &Error) -> ExitCode {
    // Looked for by itself: what can't be parsed is told in the form that is asked for too.
    let as_json = std::env::args_os().any(|arg| arg == "--json");
    logging::say_last(Some(&error.lines(as_json).join("\n")));
    ExitCode::from(error.exit_status())
}

fn run(command: &Command) -> Result<ExitCode, Error> {
    let env = Environment::current()?;
    match command {
        Command::Serve(args) => {
            let resolve = || Ok(Config::resolve(&args.settings(&env)?, &env)?);
            let config = resolve()?;
            if args.check {
                let daemon::Checked { found, leaves, warnings } = daemon::check(&config)?;
                for warning in warnings {
                    // The exit status doesn't depend on it.
                    let _ = writeln!(io::stderr(), "leafblk: warning: {warning}");
                }
                let lines: String = leaves.iter().map(|line| format!("{line}\n")).collect();
                print(&format!("{found}\n{lines}"))?;
                return Ok(ExitCode::SUCCESS);
            }
            if let Ok(text) = std::env::var(logging::LOG_VARIABLE) {
                check_log(logging::LOG_VARIABLE, &text).map_err(Error::from)?;
            }
            logging::init(config.log.as_deref());
            daemon::run(&config, args.strictness(), resolve)?;
        }
        Command::QemuArgs(args) => print_options(args, &env)?,
        Command::Vm(command) => command.run(&env)?,
        Command::Root(command) => command.run(&env)?,
        Command::Reload(args) => args.run(&env)?,
        Command::Status(args) => args.run(&env)?,
        Command::Top(args) => args.run(&env)?,
        Command::Completions(args) => args.run()?,
        Command::Man(args) => args.run()?,
        Command::OpenApi => print_openapi()?,
        Command::Leaf(args) => {
            let status = args.run(&env, &mut io::stdout().lock(), &mut io::stderr())?;
            return Ok(ExitCode::from(status));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_options(args: &QemuArgsArgs, env: &Environment) -> Result<(), Error> {
    let hypervisor = args.hypervisor()?;
    check_name(NameOf::Vm, &args.name)?;
    let settings = args.source.settings(env)?;
    let endpoint = match settings.endpoint(&args.name, env)? {
        Some(endpoint) => endpoint,
        None => served_endpoint(&args.name, &settings, env)?,
    };
    let options = qemu_args::options(hypervisor, &endpoint).map_err(Error::failure)?;
    if args.json {
        return print(&format!("{:#}\n", options.to_json(&endpoint)));
    }
    for note in &options.notes {
        // Remarks are a convenience; the options are what counts.
        let _ = writeln!(io::stderr(), "# {note}");
    }
    print(&options.text())
}

fn print(text: &str) -> Result<(), Error> {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Error::failure(format!("the answer cannot be printed ({error})")))
}

fn served_endpoint(
    name: &str,
    settings: &Settings,
    env: &Environment,
) -> Result<leafblk::config::Endpoint, Error> {
    let dirs = match settings.runtime_dir {
        Some(_) => vec![settings.runtime_dir(env)?],
        None => env.runtime_dirs_served(),
    };
    for dir in &dirs {
        if let Some(endpoint) = record::find(dir, name).map_err(Error::failure)? {
            return Ok(endpoint);
        }
    }
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    Err(Error::failure(format!(
        "no leafblk serves a VM {name} in {}; start it, or pass the --runtime-dir, --config or \
         --vm that it has",
        dirs.join(" or ")
    )))
}
