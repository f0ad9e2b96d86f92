//! From flags to the tools of [`crate::tools`], and what they say to the
//! output.

use std::io::Write;
use std::path::Path;

use super::{CrashArgs, ExportFormat, LeafArgs, LeafCommand, PlaceArgs, stock, vm_of};
use crate::cli::values::size;
use crate::config::{Environment, RootEntry, UsageError};
use crate::error::Error;
use crate::tools::{self, LeafPlace, RuntimeDir, ToolError};

/// The exit status of a command that found what it looks for.
const STATUS_FOUND: u8 = 1;

impl LeafArgs {
    /// Does what is asked for, and prints to `out` and remarks to `remarks`;
    /// the exit status.
    ///
    /// # Errors
    /// The tool's.
    pub fn run(
        &self,
        env: &Environment,
        out: &mut dyn Write,
        remarks: &mut dyn Write,
    ) -> Result<u8, Error> {
        match &self.command {
            LeafCommand::List(args) => stock::list(args, env, out).map(|()| 0),
            LeafCommand::Rm(args) => stock::remove(args, env, out).map(|()| 0),
            command => command.run(env, out, remarks).map_err(failure),
        }
    }
}

pub(super) fn failure(error: ToolError) -> Error {
    match error {
        ToolError::Usage(error) => error.into(),
        error => Error::failure(error),
    }
}

impl LeafCommand {
    fn run(
        &self,
        env: &Environment,
        out: &mut dyn Write,
        remarks: &mut dyn Write,
    ) -> Result<u8, ToolError> {
        let said = match self {
            Self::Info(args) => {
                let leaf = args.place.place(env);
                let root = args.root.as_deref().map(root).transpose()?;
                tools::info::run(&tools::info::Info { leaf, root, json: args.json }, out)?;
                return Ok(0);
            }
            Self::Map(args) => {
                let leaf = args.place.place(env);
                let root = args.root.as_deref().map(root).transpose()?;
                let remark =
                    tools::map::run(&tools::map::Map { leaf, root, json: args.json }, out)?;
                if let Some(remark) = remark {
                    // The map is what counts.
                    let _ = writeln!(remarks, "leafblk: {remark}");
                }
                return Ok(0);
            }
            Self::Check(args) => {
                let what = tools::check::Check {
                    leaf: args.report.place.place(env),
                    root: args.report.root.as_deref().map(root).transpose()?,
                    repair: args.repair,
                    json: args.report.json,
                };
                return Ok(if tools::check::run(&what, out)? { 0 } else { STATUS_FOUND });
            }
            Self::Diff(args) => {
                let b = args.other.as_ref().map(|path| args.place.crash.place(path, env));
                let roots = args.root.iter().map(|text| root(text)).collect::<Result<_, _>>()?;
                let a = args.place.place(env);
                let what = tools::diff::Diff { a, b, roots, json: args.json };
                let found = tools::diff::run(&what, out)?;
                return Ok(if args.exit_code && found.ranges > 0 { STATUS_FOUND } else { 0 });
            }
            changing => changing.change(env)?,
        };
        writeln!(out, "{said}").map_err(ToolError::Print)?;
        Ok(0)
    }

    /// The commands that make or change something, and say so in a line.
    fn change(&self, env: &Environment) -> Result<String, ToolError> {
        match self {
            Self::Create(args) => tools::create::run(&tools::create::Create {
                path: args.leaf.clone(),
                root: root(&args.root)?,
                size: size("size", args.size.as_deref())?,
            }),
            Self::Reset(args) => {
                let runtime_dir = RuntimeDir { given: args.runtime_dir.clone(), env: env.clone() };
                let path = args.leaf.clone();
                let vm_of = vm_of::vm_of;
                tools::reset::run(&LeafPlace { path, runtime_dir, flushed_only: false, vm_of })
            }
            Self::Resize(args) => tools::resize::run(&tools::resize::Resize {
                leaf: args.place.place(env),
                size: size("size", Some(&args.size))?.unwrap_or_default(),
                shrink: args.shrink,
            }),
            Self::Commit(args) => tools::commit::run(&tools::commit::Commit {
                leaf: args.place.place(env),
                root: root(&args.root)?,
                output: args.output.clone(),
            }),
            Self::Rebase(args) => tools::rebase::run(&tools::rebase::Rebase {
                leaf: args.place.place(env),
                from: root(&args.from)?,
                to: root(&args.root)?,
            }),
            Self::Export(args) => tools::export::run(&tools::export::Export {
                leaf: args.place.place(env),
                root: root(&args.root)?,
                format: match args.format {
                    ExportFormat::Qcow2 => tools::export::Format::Qcow2,
                    ExportFormat::Raw => tools::export::Format::Raw,
                },
                output: args.output.clone(),
            }),
            Self::Import(args) => tools::import::run(&tools::import::Import {
                image: args.image.clone(),
                path: args.leaf.clone(),
                root: root(&args.root)?,
            }),
            Self::Compact(args) => tools::compact::run(&tools::compact::Compact {
                leaf: args.place.place(env),
                root: root(&args.root)?,
            }),
            Self::List(_)
            | Self::Rm(_)
            | Self::Info(_)
            | Self::Map(_)
            | Self::Check(_)
            | Self::Diff(_) => Ok(String::new()),
        }
    }
}

impl PlaceArgs {
    fn place(&self, env: &Environment) -> LeafPlace {
        self.crash.place(&self.leaf, env)
    }
}

impl CrashArgs {
    fn place(&self, path: &Path, env: &Environment) -> LeafPlace {
        LeafPlace {
            path: path.to_owned(),
            runtime_dir: RuntimeDir { given: self.runtime_dir.clone(), env: env.clone() },
            flushed_only: self.flushed_only,
            vm_of: vm_of::vm_of,
        }
    }
}

/// As for `leafblk serve`: `NAME=PATH`, or a path whose stem is the name. Where
/// that makes no name, the leaf needs none of its root either.
fn root(text: &str) -> Result<RootEntry, UsageError> {
    RootEntry::parse(text).or_else(|error| match error {
        UsageError::RootNeedsName { .. } => RootEntry::parse(&format!("root={text}")),
        error => Err(error),
    })
}
