//! The process: from a [`Config`] to VMs being served, and back to nothing.
//!
//! Owns the order of starting (look at everything, then change something) and
//! of stopping (clients, reactors, leaves, sockets). It knows connections only
//! by their threads, and nothing of rings or requests.

mod acceptor;
pub mod record;
mod report;
pub mod sockets;
mod vm;

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc;

use bytesize::ByteSize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cache::{self, Cache, CacheConfig, Hugepages, RootKey};
use crate::config::{Config, HugepagesMode};
use crate::disk::CachedRoot;
use crate::error::Error;
use crate::reactor::{Mailbox, Reactor, Watchdog};
use crate::root::Root;
use vm::{BoundVm, Vm};

/// The exit status of a second signal: as if the first had killed.
const STATUS_STOPPED_AT_ONCE: i32 = 130;

/// Serves until SIGTERM or SIGINT, then drains, flushes and returns. A second
/// signal ends the process at once.
///
/// # Errors
/// A sentence on what prevents it from starting, or what went wrong while it
/// stopped. Nothing has been created where a start fails on its arguments.
pub fn run(config: &Config) -> Result<(), Error> {
    raise_descriptor_limit();
    // Blocks the signals' default action before anything can be left half done.
    let stop = watch_signals()?;
    let roots: Vec<Root> = config
        .roots
        .iter()
        .map(|root| Root::open(&root.name, &root.path).map_err(Error::failure))
        .collect::<Result<_, _>>()?;
    let planned = vm::plan(config, &roots)?;
    for directory in [&config.runtime_dir, &config.state_dir] {
        sockets::create_private_dir(directory).map_err(Error::failure)?;
    }
    let cache = make_cache(config)?;
    // All sockets before any leaf: one that is in use creates nothing.
    let bound = planned.into_iter().map(|plan| plan.bind()).collect::<Result<Vec<_>, _>>()?;
    let roots: Vec<Arc<CachedRoot>> = roots
        .into_iter()
        .map(|root| {
            let key = root.state_key().map(RootKey);
            let table = cache.add_root_as(root.sectors(), key).map_err(Error::failure)?;
            Ok(Arc::new(CachedRoot::new(root, table, config.cache_block_bytes)))
        })
        .collect::<Result<_, Error>>()?;
    let kept = cache.stats().kept * u64::from(config.cache_block_bytes);
    if kept > 0 {
        log::info!("took over {} of cached blocks from an earlier start", ByteSize::b(kept));
    }
    let (reactors, watchdog) = start_reactors(config, &cache)?;
    let vms = bound
        .into_iter()
        .enumerate()
        .map(|(i, bound)| attach(config, bound, &roots, &reactors[i % reactors.len()]))
        .collect::<Result<Vec<_>, _>>()?;
    let vms: Arc<[Vm]> = vms.into();
    let acceptor = acceptor::Acceptor::start(Arc::clone(&vms)).map_err(|source| {
        Error::failure(format!("can't start to accept connections: {source}; check the limits"))
    })?;
    announce(&vms);
    let _ = stop.recv();
    log::info!("stopping");
    acceptor.stop();
    drop(reactors);
    drop(watchdog);
    close(&vms)
}

fn attach(
    config: &Config,
    bound: BoundVm<'_>,
    roots: &[Arc<CachedRoot>],
    reactor: &Reactor,
) -> Result<Vm, Error> {
    let at = config.roots.iter().position(|root| root.name == bound.plan.vm.root);
    let root = at.and_then(|at| roots.get(at)).ok_or_else(|| {
        Error::failure(format!("VM {} has no root {}", bound.plan.vm.name, bound.plan.vm.root))
    })?;
    bound.attach(root, &config.runtime_dir, Arc::clone(reactor.mailbox()))
}

fn make_cache(config: &Config) -> Result<Arc<Cache>, Error> {
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
    let made = if config.keep_cache {
        Cache::keeping(&settings, &config.runtime_dir)
    } else {
        let bytes = cache::discard(&config.runtime_dir);
        if bytes > 0 {
            log::info!("removed the cache that an earlier start kept ({bytes} bytes)");
        }
        Cache::new(&settings)
    };
    let (cache, warning) = made.map_err(Error::failure)?;
    if let Some(warning) = warning {
        log::warn!("{warning}");
    }
    Ok(cache)
}

fn start_reactors(config: &Config, cache: &Arc<Cache>) -> Result<(Vec<Reactor>, Watchdog), Error> {
    let failed = |source: std::io::Error| {
        Error::failure(format!(
            "can't start a reactor: {source}; leafblk needs io_uring (Linux 6.1 or newer, \
             kernel.io_uring_disabled=0)"
        ))
    };
    let mailboxes: Arc<[Arc<Mailbox>]> = (0..config.reactors)
        .map(|_| Mailbox::new())
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?
        .into();
    let watchdog = Watchdog::start(Arc::clone(&mailboxes)).map_err(failed)?;
    let reactors = (0..u16::try_from(config.reactors).unwrap_or(u16::MAX))
        .map(|index| {
            Reactor::start(index, Arc::clone(cache), Arc::clone(&mailboxes), config.poll_us)
                .map_err(failed)
        })
        .collect::<Result<_, _>>()?;
    Ok((reactors, watchdog))
}

/// One receiver that hears of the first signal; the second ends the process.
fn watch_signals() -> Result<mpsc::Receiver<()>, Error> {
    let failed = |source| Error::failure(format!("can't watch for signals: {source}"));
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(failed)?;
    let (first, stop) = mpsc::channel();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut signals = signals.forever();
            if signals.next().is_some() {
                let _ = first.send(());
            }
            if signals.next().is_some() {
                log::warn!("stopping at once, without draining");
                std::process::exit(STATUS_STOPPED_AT_ONCE);
            }
        })
        .map_err(failed)?;
    Ok(stop)
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

fn announce(vms: &[Vm]) {
    let mut out = std::io::stdout().lock();
    for vm in vms {
        let _ = writeln!(out, "{}", report::line_at_start(vm));
    }
    let plural = if vms.len() == 1 { "" } else { "s" };
    let _ = writeln!(out, "ready: serving {} VM{plural}", vms.len());
    let _ = out.flush();
}

/// Flushes and closes every leaf, whatever becomes of the others.
fn close(vms: &[Vm]) -> Result<(), Error> {
    let mut result = Ok(());
    for vm in vms {
        {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{}", report::line_at_end(vm));
        }
        if let Err(e) = vm.close() {
            log::error!("{e}");
            result = Err(e);
        }
    }
    result
}
