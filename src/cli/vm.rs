//! `leafblk vm …`: the VMs of a running leafblk.

use std::io::Write;

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use super::completion::{names, new_vm};
use super::confirm::confirm;
use super::control::{AwayArgs, ControlArgs, ListArgs, NamesArgs, all, details, print_names, time};
use super::if_absent::check_vm;
use super::table::Table;
use super::values::size;
use crate::config::forms::{SizeForm, VmForm};
use crate::config::name::{NameOf, check_name};
use crate::config::size::{format_amount, format_size};
use crate::config::{Environment, UsageError, VmEntry};
use crate::control::client::Client;
use crate::control::{Origin, ResizeRequest, ResizeResult, State, Told, VmInfo};
use crate::error::{Error, Refusal};

/// What to do with VMs.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Attach VMs: from now on, and again after a restart
    #[command(after_help = "\
Examples:
  leafblk vm attach web1,root=debian
  leafblk vm attach web1,root=debian,size=20GiB,queues=2
  leafblk vm attach test,ephemeral
  leafblk vm attach web1,root=debian --if-absent

A VM is described as by leafblk serve --vm. root= may be left out where
leafblk has one root.")]
    Attach(AttachArgs),
    /// Detach VMs: their writes are made durable, their sockets go
    #[command(after_help = "\
A VM's leaf stays, and the VM that is attached by this name again has it again. With
--delete it is deleted for good: on a terminal the command asks first; elsewhere it
wants --yes. An ephemeral VM's leaf is thrown away in any case.

Examples:
  leafblk vm detach web1 web2
  leafblk vm detach web1 --if-exists
  leafblk vm detach web1 --delete --yes")]
    Detach(DetachArgs),
    /// List the VMs
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show VMs
    Show(NamesArgs),
    /// Serve VMs whose leaves are lost with new, empty ones
    NewLeaf(NamesArgs),
    /// Serve VMs with the leaves that are there, though they had others
    AcceptLeaf(NamesArgs),
    /// Discard every change on VMs' disks: each is its root again
    #[command(after_help = "\
What is discarded can't be had back. On a terminal the command asks first; elsewhere it
wants --yes. Under a running guest it wants --force as well: the guest loses its disk at
once, and its hypervisor is kept out, so that no guest sees its file systems change under
it. A hypervisor that is started anew gets the reverted disk.

Examples:
  leafblk vm revert web1 web2
  leafblk vm revert web1 --yes --force")]
    Revert(RevertArgs),
    /// Make a VM's disk larger while it runs
    Resize(ResizeArgs),
    /// Make everything that VMs have written durable
    Flush(NamesArgs),
}

/// `leafblk vm attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The VMs
    #[arg(
        value_name = "NAME,root=ROOT,…",
        required = true,
        add = ArgValueCompleter::new(new_vm),
        help = "A VM: NAME[,root=ROOT][,size=SIZE][,leaf=PATH][,socket=PATH][,queues=N]\
                [,serial=TEXT]\
                [,block-size=512|4096][,readonly][,ephemeral]"
    )]
    pub vms: Vec<String>,
    /// Succeed where it is there already, as the same
    #[arg(long)]
    pub if_absent: bool,
    /// Make a new leaf, though the VM had one; none may be there
    #[arg(long, conflicts_with = "accept_leaf")]
    pub new_leaf: bool,
    /// Take the leaf that is there, though the VM had another
    #[arg(long)]
    pub accept_leaf: bool,
    /// Where leafblk listens.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `leafblk vm detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Which.
    #[command(flatten)]
    pub away: AwayArgs,
    /// Cut off a client (a running hypervisor) that is connected
    #[arg(long)]
    pub force: bool,
    /// Delete its leaf too, after a question
    #[arg(long)]
    pub delete: bool,
    /// Ask nothing
    #[arg(long, requires = "delete")]
    pub yes: bool,
}

/// `leafblk vm revert`.
#[derive(Debug, Args)]
pub struct RevertArgs {
    /// Which.
    #[command(flatten)]
    pub which: NamesArgs,
    /// Ask nothing
    #[arg(long)]
    pub yes: bool,
    /// Cut off a client (a running hypervisor) that is connected
    #[arg(long)]
    pub force: bool,
}

/// `leafblk vm resize`.
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// The VM
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(names))]
    pub name: String,
    /// The new size of its disk: 20GiB
    #[arg(value_name = "SIZE")]
    pub size: String,
    /// Where leafblk listens.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl VmCommand {
    /// Does it.
    ///
    /// # Errors
    /// Mistakes in the flags; leafblk's refusal.
    pub fn run(&self, env: &Environment) -> Result<(), Error> {
        match self {
            Self::Attach(args) => attach(args, env),
            Self::Detach(args) => detach(args, env),
            Self::List(args) => list(args, env),
            Self::Show(args) => show(args, env),
            Self::NewLeaf(args) => choose_leaf(args, "new-leaf", env),
            Self::AcceptLeaf(args) => choose_leaf(args, "accept-leaf", env),
            Self::Revert(args) => revert(args, env),
            Self::Resize(args) => resize(args, env),
            Self::Flush(args) => {
                let client = args.control.client(env)?;
                args.each(path_of, |name, path| {
                    client.post::<()>(&format!("{path}/flush"), None)?;
                    args.control.done("flushed", NameOf::Vm, name, "")
                })
            }
        }
    }
}

/// A VM's path. A name that is none is refused here: it could be another path.
fn path_of(name: &str) -> Result<String, UsageError> {
    check_name(NameOf::Vm, name)?;
    Ok(format!("/v1/vms/{name}"))
}

fn attach(args: &AttachArgs, env: &Environment) -> Result<(), Error> {
    let entries = args.vms.iter().map(|text| VmEntry::parse(text));
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    let client = args.control.client(env)?;
    all(entries.into_iter().map(|mut entry| {
        for path in [&mut entry.leaf, &mut entry.socket].into_iter().flatten() {
            *path = env.working_dir.join(&*path);
        }
        attach_one(args, &client, &entry)
    }))
}

fn attach_one(args: &AttachArgs, client: &Client, entry: &VmEntry) -> Result<(), Error> {
    let path = match (args.new_leaf, args.accept_leaf) {
        (true, _) => "/v1/vms?leaf=new",
        (false, true) => "/v1/vms?leaf=accept",
        (false, false) => "/v1/vms",
    };
    let answer = match client.post(path, Some(&VmForm::from(entry))) {
        Ok(answer) => answer,
        Err(error) => {
            let error = Error::from(error);
            if !args.if_absent || error.refusal() != Some(Refusal::Exists) {
                return Err(error);
            }
            let answer = client.get(&path_of(&entry.name)?)?;
            check_vm(entry, &read(client, &answer)?)?;
            answer
        }
    };
    let vm = read(client, &answer)?;
    if let Some(other) = &vm.serial_shared_with {
        let VmInfo { name, serial, .. } = &vm;
        // It is attached, whoever reads this.
        let _ = writeln!(
            std::io::stderr(),
            "leafblk: warning: VM {other} has the serial number {serial:?} too: a guest that has \
             both disks sees one of them in /dev/disk/by-id; to change that, detach {name} and \
             attach it with a serial= of its own"
        );
    }
    args.control.show(&answer, || Ok(line(&vm)))
}

/// Where a VM is, and what its disk is.
fn line(vm: &VmInfo) -> String {
    let age = leaf_age(vm).map_or(String::new(), |age| format!(" ({age})"));
    format!(
        "{}: socket {}, leaf {}{age}, size {}, root {}\n",
        vm.name,
        vm.socket,
        vm.leaf,
        bytes(vm.size),
        vm.root
    )
}

/// Whether its leaf was there; `None` where it has none.
fn leaf_age(vm: &VmInfo) -> Option<&'static str> {
    vm.leaf_is_new.map(|is_new| if is_new { "new" } else { "existing" })
}

fn choose_leaf(args: &NamesArgs, which: &str, env: &Environment) -> Result<(), Error> {
    let client = args.control.client(env)?;
    args.each(path_of, |_, path| {
        let answer = client.post::<()>(&format!("{path}/{which}"), None)?;
        args.control.show(&answer, || Ok(line(&read(&client, &answer)?)))
    })
}

fn detach(args: &DetachArgs, env: &Environment) -> Result<(), Error> {
    let client = args.away.which.control.client(env)?;
    args.away.each(NameOf::Vm, path_of, |name, path| detach_one(args, &client, name, path))
}

fn detach_one(args: &DetachArgs, client: &Client, name: &str, path: &str) -> Result<(), Error> {
    // Asked for first: what the configuration has comes back.
    let before = client.get(path).and_then(|answer| client.read::<VmInfo>(answer));
    let origin = before.as_ref().ok().map(|vm| vm.origin);
    let mut options = Vec::new();
    if args.delete {
        let vm = before?;
        let lost = format!(
            "the leaf {} of VM {} goes for good, with everything that the VM has written ({})",
            vm.leaf,
            vm.name,
            amount(vm.leaf_held_bytes)
        );
        confirm(args.yes, &lost, &format!("Detach VM {} and delete its leaf?", vm.name))?;
        options.push("leaf=delete");
    }
    if args.force {
        options.push("force=true");
    }
    let query = if options.is_empty() { String::new() } else { format!("?{}", options.join("&")) };
    client.delete(&format!("{path}{query}"))?;
    let deleted = if args.delete { ", and its leaf deleted" } else { "" };
    let until = match origin {
        Some(Origin::Configuration) => {
            ", until the configuration is reloaded or leafblk starts again"
        }
        Some(Origin::Api) | None => "",
    };
    args.away.which.control.done("detached", NameOf::Vm, name, &format!("{deleted}{until}"))
}

fn list(args: &ListArgs, env: &Environment) -> Result<(), Error> {
    let client = args.control.client(env)?;
    let answer = client.get("/v1/vms")?;
    if args.quiet {
        let vms: Vec<VmInfo> = client.read(answer)?;
        return print_names(vms.iter().map(|vm| &vm.name));
    }
    args.control.show(&answer, || {
        let vms: Vec<VmInfo> = client.read(answer.clone())?;
        let mut table = Table::new(&["NAME", "STATE", "CLIENT", "ROOT", "SIZE", "LEAF", "ORIGIN"]);
        for vm in &vms {
            table.row([
                vm.name.clone(),
                state(vm.state).into(),
                yes(vm.connected).into(),
                vm.root.clone(),
                bytes(vm.size),
                amount(vm.leaf_held_bytes),
                origin(vm.origin).into(),
            ]);
        }
        Ok(table.to_string())
    })
}

fn show(args: &NamesArgs, env: &Environment) -> Result<(), Error> {
    let client = args.control.client(env)?;
    args.each(path_of, |_, path| {
        let answer = client.get(path)?;
        args.control.show(&answer, || Ok(describe(&read(&client, &answer)?)))
    })
}

fn describe(vm: &VmInfo) -> String {
    let mut rows = vec![("name", vm.name.clone()), ("state", state(vm.state).into())];
    if let Some(reason) = &vm.reason {
        rows.push(("reason", reason.clone()));
    }
    rows.extend([
        ("client", vm.client.as_ref().map_or(yes(vm.connected).into(), ToString::to_string)),
        ("root", vm.root.clone()),
        ("size", bytes(vm.size)),
        ("leaf", vm.leaf.clone()),
        ("leaf is", leaf_age(vm).unwrap_or("-").into()),
        ("leaf uuid", vm.leaf_uuid.clone().unwrap_or("-".into())),
        ("leaf holds", amount(vm.leaf_held_bytes)),
        ("leaf occupies", amount(vm.leaf_allocated_bytes)),
        ("socket", vm.socket.clone()),
        ("queues", vm.queues.to_string()),
        (
            "serial",
            match &vm.serial_shared_with {
                Some(other) => format!("{}, as VM {other}", vm.serial),
                None => vm.serial.clone(),
            },
        ),
        ("block-size", format_size(vm.block_size.into())),
        ("readonly", yes(vm.readonly).into()),
        ("ephemeral", yes(vm.ephemeral).into()),
        ("reactor", vm.reactor.map_or("-".into(), |reactor| reactor.to_string())),
        ("connections", vm.connections.to_string()),
        ("origin", origin(vm.origin).into()),
    ]);
    rows.extend(vm.problems.iter().map(|problem| ("problem", problem.clone())));
    if let Some(trouble) = &vm.last_trouble {
        let times =
            if trouble.times == 1 { String::new() } else { format!(", {} times", trouble.times) };
        rows.push(("last trouble", format!("{}{times}: {}", time(trouble.at), trouble.why)));
    }
    if let Some(counters) = &vm.counters {
        rows.extend([
            ("reads", counters.reads.to_string()),
            ("writes", counters.writes.to_string()),
            ("flushes", counters.flushes.to_string()),
            ("discards", counters.discards.to_string()),
            ("write-zeroes", counters.write_zeroes.to_string()),
            ("errors", counters.errors.to_string()),
            ("read from leaf", format_amount(counters.read_bytes_leaf)),
            ("read from cache", format_amount(counters.read_bytes_cache)),
            ("read from root", format_amount(counters.read_bytes_root)),
            ("read as zeros", format_amount(counters.read_bytes_zero)),
            ("written", format_amount(counters.written_bytes)),
        ]);
    }
    details(&rows)
}

fn revert(args: &RevertArgs, env: &Environment) -> Result<(), Error> {
    let client = args.which.control.client(env)?;
    args.which.each(path_of, |_, path| revert_one(args, &client, path))
}

fn revert_one(args: &RevertArgs, client: &Client, path: &str) -> Result<(), Error> {
    let vm = read(client, &client.get(path)?)?;
    let name = &vm.name;
    if vm.connected && !args.force {
        return Err(Error::refused(
            Refusal::Busy,
            format!(
                "VM {name} has a client connected, whose guest would see its file systems change \
                 under it; shut the guest down first, or use --force to cut it off and keep it out"
            ),
        ));
    }
    if vm.connected {
        // It is done, whoever reads this.
        let _ = writeln!(
            std::io::stderr(),
            "leafblk: warning: VM {name} has a client connected: its guest loses its disk at once, \
             and that hypervisor is kept out; end it, and start the VM anew"
        );
    }
    let lost = format!(
        "everything that VM {name} has written to its leaf {} ({}) is lost, and its disk is root \
         {} again",
        vm.leaf,
        amount(vm.leaf_held_bytes),
        vm.root
    );
    confirm(args.yes, &lost, &format!("Revert VM {name}?"))?;
    let path = format!("{path}/revert{}", query(args.force));
    let answer = client.post::<()>(&path, None)?;
    args.which.control.show(&answer, || {
        let vm = read(client, &answer)?;
        Ok(format!("VM {} is reverted: its disk is root {} again\n", vm.name, vm.root))
    })
}

fn resize(args: &ResizeArgs, env: &Environment) -> Result<(), Error> {
    let path = format!("{}/resize", path_of(&args.name)?);
    let bytes = size("SIZE", Some(&args.size))?.unwrap_or(0);
    let client = args.control.client(env)?;
    let request = ResizeRequest { size: SizeForm(bytes) };
    let answer = client.post(&path, Some(&request))?;
    args.control.show(&answer, || {
        let result: ResizeResult = client.read(answer.clone())?;
        let told = match result.told {
            Told::Client => "its client was told",
            Told::Nobody => {
                "no client is connected: a guest that starts now sees it; for one that runs on \
                 under QEMU, do this again once it is connected"
            }
            Told::NotPossible => {
                "its client can't be told: Firecracker looks at PATCH /drives/ID, Cloud Hypervisor \
                 when its guest reboots or the disk is removed and added again"
            }
        };
        Ok(format!("VM {} has {} now; {told}\n", args.name, self::bytes(result.vm.size)))
    })
}

fn read(client: &Client, answer: &serde_json::Value) -> Result<VmInfo, Error> {
    Ok(client.read(answer.clone())?)
}

const fn query(force: bool) -> &'static str {
    if force { "?force=true" } else { "" }
}

/// A size, exactly; `-` where there is none.
pub(super) fn bytes(bytes: Option<u64>) -> String {
    bytes.map_or("-".into(), format_size)
}

/// How much there is of something; `-` where that is not known.
fn amount(bytes: Option<u64>) -> String {
    bytes.map_or("-".into(), format_amount)
}

pub(super) const fn state(state: State) -> &'static str {
    match state {
        State::Attaching => "attaching",
        State::Serving => "serving",
        State::Changing => "changing",
        State::Failed => "failed",
    }
}

pub(super) const fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Configuration => "configuration",
        Origin::Api => "api",
    }
}

const fn yes(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}
