//! The process: from a [`Config`] to VMs being served, and back to nothing.
//!
//! Owns the order of starting (look at everything, then change something) and
//! of stopping (control API, clients, reactors, leaves, sockets), and the table
//! of what is served, which changes while it runs ([`Host`]). It knows
//! connections only by their threads, and nothing of rings or requests.

mod acceptor;
pub(crate) mod apart;
mod denied;
mod error;
pub mod file_systems;
mod file_watch;
mod group;
mod host;
mod lasting;
mod leaf_choice;
mod leaf_records;
pub mod leaves;
mod leftovers;
mod look;
mod made;
mod mounts;
mod named_file;
mod planned_vm;
pub mod problems;
mod pulse;
mod question;
pub mod record;
mod records_file;
mod reload;
mod reload_report;
mod reload_requests;
mod replace;
mod report;
mod resize;
mod root_records;
mod root_watch;
mod roots;
mod runtime_dir;
mod service;
mod side_by_side;
mod signals;
pub mod sockets;
mod start;
mod start_failures;
mod state_file;
mod table;
pub mod verify;
mod vm;
mod vms;

use std::io::Write;
use std::sync::Arc;

use crate::config::Config;
use crate::control::{self, Access, Listener};
use crate::error::{CHECK_LIMITS, Error};
use file_watch::FileWatch;
use reload_requests::ReloadRequests;
use report::Summary;
use service::Service;
use signals::Wish;
use start::Engine;
use vm::ListeningVm;

pub use error::HostError;
pub use host::{Host, RootView, State, VmView};
pub use leaf_choice::{LeafChoice, LeafProblem};
pub use look::{Checked, check};
pub use reload_report::{Reloaded, ReloadedPart};
pub use resize::Resized;
pub use start_failures::Strictness;
pub use table::Origin;
pub use vm::{LeafFate, Vm};

/// Serves until SIGTERM or SIGINT, then drains, flushes and returns. A second
/// signal ends the process at once. SIGHUP, or a client of the control API, makes what
/// `reload` returns the configuration, as far as that is possible while it runs.
///
/// # Errors
/// A sentence on what prevents it from starting, or what went wrong while it
/// stopped. Where a start fails, what it has made is gone. A root or a VM that can't be
/// served ends a strict start only.
pub fn run(
    config: &Config,
    strictness: Strictness,
    reload: impl Fn() -> Result<Config, Error>,
) -> Result<(), Error> {
    raise_descriptor_limit();
    lock_own_code();
    // Blocks the signals' default action before anything can be left half done.
    let (sender, wishes) = signals::watch()?;
    let reloads = ReloadRequests::to(sender);
    // `made` comes first to go last, when all that lies in its directories is gone.
    let start::Started { made, host, engine, control_socket, http } =
        start::start(config, strictness, reloads)?;
    let socket = control_socket.map(|socket| (Listener::Unix(socket), Access::Full));
    let http = http.map(|listener| (Listener::Tcp(listener), Access::ReadOnly));
    let listeners = socket.into_iter().chain(http).collect();
    let server = match control::Server::start(listeners, &host) {
        Ok(server) => server,
        Err(error) => {
            let _ = stop(&host, engine);
            return Err(error);
        }
    };
    let service = match Service::start(&host.inner().mailboxes) {
        Ok(service) => service,
        Err(source) => {
            server.stop();
            let _ = stop(&host, engine);
            let what = "can't start the thread that gives signs of life";
            return Err(Error::failure(format!("{what}: {source}; {CHECK_LIMITS}")));
        }
    };
    made.keep();
    host.record_roots();
    let watch = FileWatch::start(&host).inspect_err(|error| {
        log::warn!("nobody looks once a minute whether roots and leaves are there: {error}");
    });
    announce(&host);
    service.ready(&status(&host));
    let mut latest = config.clone();
    while let Ok(Wish::Reload(asker)) = wishes.recv() {
        service.reloading();
        let reloaded = Arc::new(match reload() {
            Ok(new) => {
                let reloaded = host.reload(config, &latest, &new);
                latest = new;
                reloaded
            }
            Err(error) => {
                log::error!("the configuration stays as it is: {error}");
                Reloaded::refused(&error)
            }
        });
        host.inner().reloads.done(&reloaded);
        service.ready(&status(&host));
        if let Some(asker) = asker {
            // It may have gone away meanwhile.
            let _ = asker.try_send(reloaded);
        }
    }
    // Who waits for a reload hears that there will be none.
    drop(wishes);
    log::info!("stopping");
    drop(watch);
    host.call_off_verifications();
    service.stopping();
    server.stop();
    flush_ahead(&host);
    stop(&host, engine)
}

/// For the service manager.
fn status(host: &Host) -> String {
    let summary = Summary::of(host);
    match summary.is_whole() {
        true => summary.to_string(),
        false => format!("{summary}: leafblk status says why"),
    }
}

fn stop(host: &Host, engine: Engine) -> Result<(), Error> {
    host.table().stopping = true;
    let vms = host.inner().acceptor.stop();
    drop(engine);
    let result = close(&vms);
    host.release_state();
    result
}

/// Each VM takes a few descriptors of ours and several of its frontend.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        log::debug!("the limit of open files stays as it is: {e}");
    }
}

/// Keeps in memory what is mapped up to here, the code above all: a host short of memory
/// drops it as any page of a file, and a reactor that ran into it would wait for a disk.
/// What is mapped later (cache, guests' memory) stays as it is (mlockall(2)).
fn lock_own_code() {
    use rustix::mm::{MlockAllFlags, mlockall};
    if let Err(e) = mlockall(MlockAllFlags::CURRENT) {
        log::debug!("the system may drop leafblk's own code from memory: {e}");
    }
}

fn announce(host: &Host) {
    let views = host.vms();
    let vms: Vec<_> = views.iter().filter_map(|view| view.vm.as_ref()).collect();
    let mut out = std::io::stdout().lock();
    for vm in &vms {
        let _ = writeln!(out, "{}", report::line_at_start(vm));
    }
    for view in host.roots() {
        if let State::Failed(why) = view.state {
            let _ = writeln!(out, "root {}: not served: {why}", view.config.name);
        }
    }
    for view in &views {
        if let State::Failed(why) = &view.state {
            let _ = writeln!(out, "{}: not served: {why}", view.config.name);
        }
    }
    let _ = writeln!(out, "ready: {}", Summary::of(host));
    let _ = out.flush();
}

/// Flushes every leaf while its guest is still served: what is written up to
/// here, none of them has to wait for when it is cut off.
fn flush_ahead(host: &Host) {
    let vms: Vec<_> = host.vms().into_iter().filter_map(|view| view.vm).collect();
    side_by_side::map(vms, |vm| {
        let leaf = vm.disk().leaf().filter(|_| !vm.disk().is_read_only());
        if let Some(Err(e)) = leaf.map(|leaf| leaf.flush()) {
            log::warn!("VM {}: not flushed ahead of the stop: {e}", vm.disk().name());
        }
    });
}

/// Flushes and closes every leaf, whatever becomes of the others. An ephemeral
/// one stays too: its guest may run on and wait for the next process, and only a
/// detach says that it doesn't.
fn close(vms: &[ListeningVm]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    for vm in vms {
        let _ = writeln!(out, "{}", report::line_at_end(vm.vm()));
    }
    drop(out);
    let ended = side_by_side::map(vms.iter().collect(), |vm| {
        vm.vm().close().inspect_err(|e| log::error!("{e}"))
    });
    ended.into_iter().collect()
}
