//! `leafblk root …`: the roots of a running leafblk.

use clap::{Args, Subcommand};

use super::control::{AwayArgs, ControlArgs, ListArgs, NamesArgs, all, details, print_names, time};
use super::if_absent::{check_root, format};
use super::table::Table;
use super::verify::VerifyArgs;
use super::vm::{bytes, origin, state};
use crate::config::forms::RootForm;
use crate::config::name::{NameOf, check_name};
use crate::config::{Environment, RootEntry, UsageError};
use crate::control::RootInfo;
use crate::error::{Error, Refusal};

/// What to do with roots.
#[derive(Debug, Subcommand)]
pub enum RootCommand {
    /// Add a root: from now on, and again after a restart
    #[command(after_help = "\
Examples:
  leafblk root add debian=/images/debian.raw
  leafblk root add /images/alpine.raw
  leafblk root add nested=/images/nested.raw,format=raw
  leafblk root add debian=/images/debian.raw --if-absent

format=raw says that the file's bytes are the disk's. Without it, an image that begins
as another format's do, such as qcow2, is refused.")]
    Add(AddArgs),
    /// List the roots
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show roots
    Show(NamesArgs),
    /// Remove roots that no VM has
    Remove(AwayArgs),
    /// Read all of a root, and compare it with the last time, or record it
    #[command(after_help = "\
The first time the digest of its content (SHA-256) is recorded, with its file's size, times
and inode. From then on this compares, and fails if the content is another. leafblk does
the reading, beside the VMs; Ctrl-C calls it off.")]
    Verify(VerifyArgs),
}

/// `leafblk root add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The images; NAME is the file's stem if left out
    #[arg(value_name = "NAME=PATH[,format=raw]", required = true)]
    pub roots: Vec<String>,
    /// Succeed where it is there already, as the same
    #[arg(long)]
    pub if_absent: bool,
    /// Where leafblk listens.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl RootCommand {
    /// Does it.
    ///
    /// # Errors
    /// Mistakes in the flags; leafblk's refusal.
    pub fn run(&self, env: &Environment) -> Result<(), Error> {
        match self {
            Self::Add(args) => add(args, env),
            Self::List(args) => list(args, env),
            Self::Show(args) => show(args, env),
            Self::Remove(args) => {
                let control = &args.which.control;
                let client = control.client(env)?;
                args.each(NameOf::Root, path_of, |name, path| {
                    client.delete(path)?;
                    control.done("removed", NameOf::Root, name, "")
                })
            }
            Self::Verify(args) => args.run(&path_of(&args.name)?, env),
        }
    }
}

fn path_of(name: &str) -> Result<String, UsageError> {
    check_name(NameOf::Root, name)?;
    Ok(format!("/v1/roots/{name}"))
}

fn add(args: &AddArgs, env: &Environment) -> Result<(), Error> {
    let entries = args.roots.iter().map(|text| RootEntry::parse(text));
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    let client = args.control.client(env)?;
    all(entries.into_iter().map(|mut entry| {
        entry.path = env.working_dir.join(&entry.path);
        let answer = match client.post("/v1/roots", Some(&RootForm::from(&entry))) {
            Ok(answer) => answer,
            Err(error) => {
                let error = Error::from(error);
                if !args.if_absent || error.refusal() != Some(Refusal::Exists) {
                    return Err(error);
                }
                let answer = client.get(&path_of(&entry.name)?)?;
                check_root(&entry, &client.read(answer.clone())?)?;
                answer
            }
        };
        args.control.show(&answer, || {
            let root: RootInfo = client.read(answer.clone())?;
            Ok(format!("{}: {}, size {}\n", root.name, root.path, bytes(root.size)))
        })
    }))
}

fn list(args: &ListArgs, env: &Environment) -> Result<(), Error> {
    let client = args.control.client(env)?;
    let answer = client.get("/v1/roots")?;
    if args.quiet {
        let roots: Vec<RootInfo> = client.read(answer)?;
        return print_names(roots.iter().map(|root| &root.name));
    }
    args.control.show(&answer, || {
        let roots: Vec<RootInfo> = client.read(answer.clone())?;
        let mut table = Table::new(&["NAME", "STATE", "SIZE", "FORMAT", "VMS", "ORIGIN", "PATH"]);
        for root in &roots {
            table.row([
                root.name.clone(),
                state(root.state).into(),
                bytes(root.size),
                format(root.format).into(),
                root.vms.len().to_string(),
                origin(root.origin).into(),
                root.path.clone(),
            ]);
        }
        let mut text = table.to_string();
        for root in &roots {
            let lines =
                root.problems.iter().map(|problem| format!("root {}: {problem}\n", root.name));
            text.extend(lines);
        }
        Ok(text)
    })
}

fn show(args: &NamesArgs, env: &Environment) -> Result<(), Error> {
    let client = args.control.client(env)?;
    args.each(path_of, |_, path| {
        let answer = client.get(path)?;
        args.control.show(&answer, || Ok(describe(&client.read(answer.clone())?)))
    })
}

fn describe(root: &RootInfo) -> String {
    let mut rows = vec![("name", root.name.clone()), ("state", state(root.state).into())];
    if let Some(reason) = &root.reason {
        rows.push(("reason", reason.clone()));
    }
    rows.extend([
        ("path", root.path.clone()),
        ("size", bytes(root.size)),
        ("format", format(root.format).into()),
        ("fingerprint", root.fingerprint.clone().unwrap_or("-".into())),
        ("digest", root.digest.clone().unwrap_or("- (root verify records one)".into())),
        ("verified", root.verified_at.map_or("-".into(), time)),
        ("O_DIRECT", if root.direct { "yes".into() } else { "no".into() }),
        ("VMs", if root.vms.is_empty() { "-".into() } else { root.vms.join(", ") }),
        ("origin", origin(root.origin).into()),
    ]);
    rows.extend(root.problems.iter().map(|problem| ("problem", problem.clone())));
    details(&rows)
}
