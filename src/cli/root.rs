//! `leafblk root …`: the roots of a running leafblk.

use clap::{Args, Subcommand};

use super::control::{ControlArgs, ListArgs, OneArgs, details, time};
use super::table::Table;
use super::verify::VerifyArgs;
use super::vm::{bytes, origin, state};
use crate::config::forms::RootForm;
use crate::config::name::{NameOf, check_name};
use crate::config::{Environment, RootEntry, RootFormat, UsageError};
use crate::control::RootInfo;
use crate::error::Error;

/// What to do with roots.
#[derive(Debug, Subcommand)]
pub enum RootCommand {
    /// Add a root: from now on, and again after a restart
    #[command(after_help = "\
Examples:
  leafblk root add debian=/images/debian.raw
  leafblk root add /images/alpine.raw
  leafblk root add nested=/images/nested.raw,format=raw

format=raw says that the file's bytes are the disk's. Without it, an image that begins
as another format's do, such as qcow2, is refused.")]
    Add(AddArgs),
    /// List the roots
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show a root
    Show(OneArgs),
    /// Remove a root that no VM has
    Remove(OneArgs),
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
    /// The image; NAME is the file's stem if left out
    #[arg(value_name = "NAME=PATH[,format=raw]")]
    pub root: String,
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
                let path = path_of(&args.name)?;
                args.control.client(env)?.delete(&path).map_err(Error::failure)?;
                args.control.done("removed", NameOf::Root, &args.name, "")
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
    let mut entry = RootEntry::parse(&args.root)?;
    entry.path = env.working_dir.join(&entry.path);
    let client = args.control.client(env)?;
    let answer = client.post("/v1/roots", Some(&RootForm::from(&entry))).map_err(Error::failure)?;
    args.control.show(&answer, || {
        let root: RootInfo = client.read(answer.clone()).map_err(Error::failure)?;
        Ok(format!("{}: {}, size {}\n", root.name, root.path, bytes(root.size_bytes)))
    })
}

/// As whom the image is taken for raw.
const fn format(root: &RootInfo) -> &'static str {
    match root.format {
        Some(RootFormat::Raw) => "raw",
        None => "probed",
    }
}

fn list(args: &ListArgs, env: &Environment) -> Result<(), Error> {
    let client = args.control.client(env)?;
    let answer = client.get("/v1/roots").map_err(Error::failure)?;
    args.control.show(&answer, || {
        let roots: Vec<RootInfo> = client.read(answer.clone()).map_err(Error::failure)?;
        let mut table = Table::new(&["NAME", "STATE", "SIZE", "FORMAT", "VMS", "ORIGIN", "PATH"]);
        for root in &roots {
            table.row([
                root.name.clone(),
                state(root.state).into(),
                bytes(root.size_bytes),
                format(root).into(),
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

fn show(args: &OneArgs, env: &Environment) -> Result<(), Error> {
    let client = args.control.client(env)?;
    let answer = client.get(&path_of(&args.name)?).map_err(Error::failure)?;
    args.control.show(&answer, || {
        let root: RootInfo = client.read(answer.clone()).map_err(Error::failure)?;
        let mut rows = vec![("name", root.name.clone()), ("state", state(root.state).into())];
        if let Some(reason) = &root.reason {
            rows.push(("reason", reason.clone()));
        }
        rows.extend([
            ("path", root.path.clone()),
            ("size", bytes(root.size_bytes)),
            ("format", format(&root).into()),
            ("fingerprint", root.fingerprint.clone().unwrap_or("-".into())),
            ("digest", root.digest.clone().unwrap_or("- (root verify records one)".into())),
            ("verified", root.verified_at.map_or("-".into(), time)),
            ("O_DIRECT", if root.direct { "yes".into() } else { "no".into() }),
            ("VMs", if root.vms.is_empty() { "-".into() } else { root.vms.join(", ") }),
            ("origin", origin(root.origin).into()),
        ]);
        rows.extend(root.problems.iter().map(|problem| ("problem", problem.clone())));
        Ok(details(&rows))
    })
}
