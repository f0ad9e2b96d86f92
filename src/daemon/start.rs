//! The start: everything is looked at, then something is changed.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use super::acceptor::Acceptor;
use super::denied::{Need, explain};
use super::error::HostError;
use super::host::{Host, HostParts};
use super::leaf_choice::LeafChoice;
use super::look::{Looked, Records, look, of_directories};
use super::made::{Made, NewCache, NewRecords};
use super::planned_vm::InUse;
use super::reload_requests::ReloadRequests;
use super::side_by_side;
use super::sockets::{self, OwnedSocket, SocketError};
use super::start_failures::{StartFailures, Strictness};
use super::state_file::{Attached, StateFile};
use super::table::{Cause, Configured, Life, NewVm, Table};
use super::vm::{BoundVm, ListeningVm};
use crate::cache::{self, Cache, CacheConfig, Hugepages};
use crate::config::name::NameOf;
use crate::config::paths::PathClaim;
use crate::config::size::format_amount;
use crate::config::{Config, ControlConfig, HugepagesMode, RootConfig, VmEntry};
use crate::disk::CachedRoot;
use crate::error::{CHECK_LIMITS, Error};
use crate::reactor::{Mailbox, Reactor, Watchdog};
use crate::root::Root;

/// What a start makes.
pub(super) struct Started {
    /// Gone when it is dropped.
    pub(super) made: Made,
    pub(super) host: Host,
    pub(super) engine: Engine,
    pub(super) control_socket: Option<OwnedSocket>,
    /// On the loopback address, for looking.
    pub(super) http: Option<TcpListener>,
}

/// The threads that serve I/O. Dropping it ends them; devices are detached
/// before.
pub(super) struct Engine {
    reactors: Vec<Reactor>,
    // After the reactors: it gets them out of calls.
    _watchdog: Watchdog,
}

/// Starts everything but the control server.
///
/// # Errors
/// What is wrong with the configuration as a whole, with the state file, or with this
/// machine; what it has made is gone then. A root or a VM that can't be had now is no
/// error, unless the start is strict: it is in the log and stays known as failed.
pub(super) fn start(
    config: &Config,
    strictness: Strictness,
    reloads: ReloadRequests,
) -> Result<Started, Error> {
    let looked = look(config, InUse::Refused)?;
    let Looked { group, socket_group, directories, attached, roots, unfit_roots, vms, records } =
        looked;
    let mut failures = StartFailures::none(strictness);
    for (root, why) in unfit_roots {
        failures.add_root(root, why)?;
    }
    failures.sort::<()>(vms.unfit.into_iter().map(|(vm, why)| (vm, Err(why))))?;
    let http = config.http_port.map(bind_http).transpose()?;
    // Before all that lies in its directories, so that it goes after that.
    let mut made = Made::default();
    let runtime_dir_is_new = !config.runtime_dir.exists();
    for directory in [&config.runtime_dir, &config.state_dir] {
        let new = sockets::create_private_dir(directory);
        let new = new.map_err(|error| explain(error, directory, Need::Write))?;
        made.directories.append(new);
    }
    // All sockets before any leaf: one that is in use creates nothing.
    let bound = vms.fit.into_iter().map(|plan| {
        let vm = plan.config().clone();
        (vm, BoundVm::bind(plan, socket_group))
    });
    let bound = failures.sort(bound)?;
    let control_socket =
        config.control.as_ref().map(|control| bind_control(control, group)).transpose()?;
    let state = config.control.as_ref().map(|_| StateFile::take(&config.state_dir));
    let state = state.transpose().map_err(Error::failure)?;
    if runtime_dir_is_new {
        let_groups_pass(&config.runtime_dir, group, socket_group).map_err(Error::failure)?;
    }
    // All new leaves before any that there is, which opening changes.
    let bound = side_by_side::map(bound, |bound| {
        let vm = bound.plan().config().clone();
        (vm, bound.with_leaf())
    });
    let bound = failures.sort(bound)?;
    warn_of_stops(config, group, socket_group);
    // After all that other processes may have: an earlier start's cache goes here.
    let cache = make_cache(config, &mut made)?;
    let engine = start_reactors(config, &cache)?;
    let mailboxes = engine.reactors.iter().map(|reactor| Arc::clone(reactor.mailbox())).collect();
    let acceptor = Acceptor::start().map_err(|source| {
        Error::failure(format!("can't start to accept connections: {source}; {CHECK_LIMITS}"))
    })?;
    let claim = config.control.as_ref().map(|control| PathClaim::of_control(&control.socket));
    let table = Table::with_paths(claim.as_slice());
    let host = Host::new(HostParts {
        directories,
        cache,
        mailboxes,
        acceptor,
        table,
        state,
        socket_group,
        reloads,
    });
    host.table().configured = Configured::of(config);
    let bound = host.serve_roots(config, roots, bound, &mut failures)?;
    for vm in vms.rootless {
        if let Some(why) = failures.of_root(&vm.root) {
            failures.add_vm(vm, why)?;
        }
    }
    host.serve_vms(bound, &records, &mut made, &mut failures)?;
    failures.tell(&host);
    host.restore(attached);
    host.warn_of_serials();
    for warning in of_directories(config) {
        log::warn!("{warning}");
    }
    super::leftovers::tell(&host);
    let kept = host.cache().stats().kept * u64::from(config.cache_block_bytes);
    if kept > 0 {
        log::info!("took over {} of cached blocks from an earlier start", format_amount(kept));
    }
    Ok(Started { made, host, engine, control_socket, http })
}

/// Lets those groups reach the sockets that may use some; two groups can't both
/// own the directory.
fn let_groups_pass(
    runtime_dir: &Path,
    control: Option<u32>,
    vms: Option<u32>,
) -> Result<(), SocketError> {
    match (control, vms) {
        (None, None) => Ok(()),
        (Some(group), None) | (None, Some(group)) => sockets::let_pass(runtime_dir, group),
        (Some(one), Some(other)) if one == other => sockets::let_pass(runtime_dir, one),
        (Some(_), Some(_)) => sockets::let_all_pass(runtime_dir),
    }
}

/// Says which directories keep the groups from sockets that are theirs.
fn warn_of_stops(config: &Config, control: Option<u32>, vms: Option<u32>) {
    let control_socket = config.control.as_ref().map(|control| control.socket.clone());
    // VMs that come later have theirs here.
    let default = config.runtime_dir.join("NAME.sock");
    let sockets = config.vms.iter().map(|vm| vm.socket.clone()).chain([default]);
    let of_vms = sockets.map(|socket| ("socket-group", vms, socket));
    let all = control_socket.map(|socket| ("control-group", control, socket)).into_iter();
    let stops = all.chain(of_vms).filter_map(|(setting, group, socket)| {
        Some((setting, sockets::where_stopped(&socket, group?)?))
    });
    for (setting, directory) in stops.collect::<BTreeSet<_>>() {
        let directory = directory.display();
        log::warn!(
            "members of the {setting} can't reach their sockets: {directory} doesn't let them \
             pass; chmod o+x {directory}, or choose a directory that does"
        );
    }
}

fn bind_control(control: &ControlConfig, group: Option<u32>) -> Result<OwnedSocket, Error> {
    let socket = OwnedSocket::bind(&control.socket).map_err(|error| {
        let hint = "or choose another --control-socket for this one, or off";
        Error::failure(format!("control API: {error}; {hint}"))
    })?;
    if let Some(group) = group {
        socket.share_with(group).map_err(Error::failure)?;
    }
    Ok(socket)
}

fn bind_http(port: u16) -> Result<TcpListener, Error> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|source| {
        Error::failure(format!(
            "can't listen on 127.0.0.1:{port} ({source}); choose another --http-port, or none"
        ))
    })
}

fn make_cache(config: &Config, made: &mut Made) -> Result<Arc<Cache>, Error> {
    let settings = CacheConfig {
        size_bytes: config.cache_size_bytes,
        block_bytes: config.cache_block_bytes,
        hugepages: match config.hugepages {
            HugepagesMode::Auto => Hugepages::Auto,
            HugepagesMode::On => Hugepages::On,
            HugepagesMode::Off => Hugepages::Off,
        },
        readers_max: config.reactors,
    };
    let is_first = config.keep_cache && !cache::has_files(&config.runtime_dir);
    let new = if config.keep_cache {
        Cache::keeping(&settings, &config.runtime_dir)
    } else {
        let bytes = cache::discard(&config.runtime_dir);
        if bytes > 0 {
            log::info!("removed {} of cache that an earlier start left", format_amount(bytes));
        }
        Cache::new(&settings)
    };
    let (cache, warning) = new.map_err(Error::failure)?;
    if is_first && cache.lifetime_fd().is_some() {
        made.cache = Some(NewCache::of(&cache, &config.runtime_dir));
    }
    if let Some(warning) = warning {
        log::warn!("{warning}");
    }
    cache.prefault();
    Ok(cache)
}

fn start_reactors(config: &Config, cache: &Arc<Cache>) -> Result<Engine, Error> {
    let failed = |source: std::io::Error| {
        Error::failure(format!("can't start a reactor: {source}; {CHECK_LIMITS}"))
    };
    let mailboxes: Arc<[Arc<Mailbox>]> = (0..config.reactors)
        .map(|_| Mailbox::new())
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?
        .into();
    crate::disk::courtesy::start();
    let watchdog = Watchdog::start(Arc::clone(&mailboxes)).map_err(failed)?;
    let reactors = (0..u16::try_from(config.reactors).unwrap_or(u16::MAX))
        .map(|index| {
            Reactor::start(index, Arc::clone(cache), Arc::clone(&mailboxes), config.poll_us)
                .map_err(failed)
        })
        .collect::<Result<_, _>>()?;
    Ok(Engine { reactors, _watchdog: watchdog })
}

impl Host {
    /// Serves the configuration's roots; those of `bound` whose root is served.
    fn serve_roots(
        &self,
        config: &Config,
        roots: Vec<Root>,
        bound: Vec<BoundVm>,
        failures: &mut StartFailures,
    ) -> Result<Vec<BoundVm>, Error> {
        for root in roots {
            let Some(config) = config.roots.iter().find(|config| config.name == root.name()) else {
                continue;
            };
            if let Err(why) = self.serve_root(config, root) {
                self.table().remove_root(&config.name);
                failures.add_root(config.clone(), why.into())?;
            }
        }
        let on_root = |bound: BoundVm| {
            let vm = bound.plan().config().clone();
            let why = failures.of_root(&vm.root);
            (vm, why.map_or(Ok(bound), Err))
        };
        let bound: Vec<_> = bound.into_iter().map(on_root).collect();
        failures.sort(bound)
    }

    fn serve_root(&self, config: &RootConfig, root: Root) -> Result<(), HostError> {
        let served = Arc::new(self.cached(root)?);
        let claims = vec![PathClaim::of_root(config)];
        let mut table = self.table();
        table.begin_root(config.clone(), Cause::Configured, claims)?;
        table.root(&config.name)?.life = Life::Serving(served);
        Ok(())
    }

    /// Serves VMs. What was made for them is in `made` then.
    fn serve_vms(
        &self,
        bound: Vec<BoundVm>,
        records: &Records,
        made: &mut Made,
        failures: &mut StartFailures,
    ) -> Result<(), Error> {
        let begun = bound.into_iter().map(|bound| {
            let vm = bound.plan().config().clone();
            (vm, self.begin_configured(&bound).map(|(root, mailbox)| (bound, root, mailbox)))
        });
        let begun = failures.sort(begun.collect::<Vec<_>>())?;
        let inner = self.inner();
        let opened = side_by_side::map(begun, |(bound, root, mailbox)| {
            let vm = bound.plan().config().clone();
            (vm, bound.attach(&root, inner, mailbox))
        });
        let mut served = Vec::new();
        let mut end = Ok(());
        for (vm, result) in opened {
            match result {
                Ok(listening) => served.push(listening),
                Err(unfit) => end = end.and(failures.add_vm(vm, unfit.into())),
            }
        }
        let remembered = end.and_then(|()| self.remember(&served, records));
        match remembered {
            Ok(new) => made.records = new,
            Err(error) => {
                side_by_side::map(served, ListeningVm::take_back);
                return Err(error);
            }
        }
        made.leaves = served.iter_mut().filter_map(ListeningVm::take_new_leaf).collect();
        for vm in served {
            let (name, is_new) = (vm.vm().disk().name().to_owned(), vm.vm().has_new_leaf());
            self.publish(vm, Cause::Configured)?;
            log::info!("VM {name}: {} leaf", if is_new { "a new" } else { "its existing" });
        }
        Ok(())
    }

    /// Remembers the leaves of VMs that are about to be served.
    fn remember(
        &self,
        opened: &[ListeningVm],
        records: &Records,
    ) -> Result<Option<NewRecords>, Error> {
        let leaves = opened.iter().filter_map(|vm| vm.vm().leaf_record());
        let new: Vec<_> = leaves.chain(records.undecided.iter().cloned()).collect();
        let written = NewRecords::write(&self.inner().records, &new, |all| {
            records.left.iter().for_each(|vm| all.detach(vm));
        });
        match written {
            Ok(new) => Ok(Some(new)),
            // Else they are known already, or are there the next time.
            Err(error) if opened.iter().any(|vm| vm.vm().has_new_leaf()) => {
                Err(Error::failure(error))
            }
            Err(error) => {
                log::warn!("{error}");
                Ok(None)
            }
        }
    }

    fn begin_configured(&self, bound: &BoundVm) -> Result<(Arc<CachedRoot>, Arc<Mailbox>), Error> {
        let inner = self.inner();
        let config = bound.plan().config().clone();
        let entry = VmEntry { name: config.name.clone(), ..VmEntry::default() };
        let claims = PathClaim::of_vm(&config).into();
        let new = NewVm { config, entry, cause: Cause::Configured, claims };
        let name = new.config.name.clone();
        let mut table = self.table();
        let (root, reactor) = table.begin_vm(new, inner.mailboxes.len())?;
        if let Some(uuid) = bound.plan().leaf_uuid() {
            table.claim_leaf(&name, uuid)?;
        }
        Ok((root, Arc::clone(&inner.mailboxes[reactor])))
    }

    /// Says which VMs have the same serial number.
    pub(super) fn warn_of_serials(&self) {
        for same in self.table().serials().all_shared() {
            log::warn!("{same}");
        }
    }

    /// Attaches what came through the API before. What has a name of the
    /// configuration gives way to it, and is forgotten. The file is not written
    /// before everything is in the table again.
    fn restore(&self, attached: Attached) {
        let roots = side_by_side::map(attached.roots, |root| {
            self.restored(NameOf::Root, &root.name, self.restore_root(&root))
        });
        let vms = side_by_side::map(attached.vms, |vm| {
            let name = vm.name.clone();
            let restored = self.restore_vm(vm, LeafChoice::Remembered);
            self.restored(NameOf::Vm, &name, restored)
        });
        let forgotten = roots.into_iter().chain(vms).any(|forgotten| forgotten);
        if forgotten && let Err(error) = self.keep() {
            log::error!("what was forgotten comes back at the next start: {error}");
        }
    }

    fn restored(&self, of: NameOf, name: &str, result: Result<(), HostError>) -> bool {
        match result {
            Ok(()) => false,
            Err(HostError::Exists { .. }) => {
                log::warn!(
                    "{of} {name} was attached through the API and is in the configuration now; \
                     the configuration's counts, the other is forgotten"
                );
                true
            }
            Err(error) => {
                log::error!(
                    "{of} {name}, attached through the API, is not served: {error}; once that is \
                     mended, leafblk reload tries again"
                );
                false
            }
        }
    }
}
