//! `cargo bench --bench peer`: leafblk and qemu-storage-daemon side by side.
//!
//! Both serve the same root, both are driven by the same libblkio client, and
//! they take turns (A B A B …), so that what else the machine does hits both.
//! The figures are medians; what counts is their ratio. Reads are checked in
//! samples: a fast wrong answer ends the benchmark with an error.
//!
//! The modules: `cli` (what to run), `backend` (the daemons), `client` and
//! `load` (who drives them), `data` (what the disks hold), `proc_stat` and
//! `hugepages` (the machine), `rows` (what is measured), `report` (how it is
//! shown).
#![expect(
    unsafe_code,
    reason = "libblkio works on raw buffers, and a child must die with its parent"
)]

mod backend;
mod cli;
mod client;
mod data;
mod hugepages;
mod load;
mod proc_stat;
mod replay;
mod report;
mod rows;
mod trace;
mod util;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use cli::{Cli, Daemon, Sizes};
use report::{Row, Target, Verdict};
use rows::{Bench, GROUPS, progress};
use util::{Context, Error, Result};

/// Cores that others may use before a measurement is doubtful.
const BUSY_LIMIT: f64 = 0.5;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let sizes = Sizes::new(&cli)?;
    let target = target_dir()?;
    let json = cli.json.clone().unwrap_or_else(|| target.join("peer.json"));
    let markdown = cli.markdown;
    let work = tempfile::Builder::new()
        .prefix("peer-")
        .disable_cleanup(cli.keep)
        .tempdir_in(&target)
        .context(|| format!("cannot make a directory in {}", target.display()))?;
    raise_file_limit()?;
    util::stop_on_signals()?;
    let mut bench = Bench::new(cli, sizes, work.path().to_path_buf());
    let pages = reserve_hugepages(&bench);
    if let Err(error) = &pages {
        progress(&format!("without hugetlb pages: {error}"));
    }
    progress(&format!(
        "{}; {pages}",
        proc_stat::machine(),
        pages = match &pages {
            Ok(Some(_)) => "arena in hugetlb pages",
            Ok(None) => "no arena",
            Err(_) => "arena in transparent huge pages",
        }
    ));

    let mut rows = Vec::new();
    for group in &GROUPS {
        let wanted = group
            .numbers
            .iter()
            .flat_map(|&number| group.ids.iter().map(move |id| (number, id)))
            .any(|(number, id)| bench.wants(number, id));
        if !wanted {
            continue;
        }
        let busy_cores = check_idle(&bench)?;
        let measured = (group.run)(&mut bench)?;
        rows.extend(measured.into_iter().map(|row| Row {
            busy_cores,
            // Too small to be held against a target.
            target: if bench.sizes.quick { Target::None } else { row.target },
            ..row
        }));
    }
    if rows.is_empty() {
        return Err(Error::from("--only names no row"));
    }
    write_json(&json, &bench, &rows)?;
    show(&bench, &rows, markdown)?;
    progress(&format!("written to {}", json.display()));
    Ok(())
}

/// Cargo's target directory, which is on a disk.
fn target_dir() -> Result<PathBuf> {
    // …/target/release/deps/peer-0123: also right for CARGO_TARGET_DIR.
    let exe = std::env::current_exe().context(|| "cannot find this program".to_owned())?;
    exe.ancestors()
        .nth(3)
        .map(Path::to_path_buf)
        .ok_or_else(|| Error::from("this program is not in cargo's target directory"))
}

/// Clients and daemons of 64 VMs hold some 400 files each.
fn raise_file_limit() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context(|| "cannot raise the limit of open files".to_owned())
}

/// Hugepages for each leafblk that runs at once.
fn reserve_hugepages(bench: &Bench) -> Result<Option<hugepages::Reservation>> {
    let arenas = bench.daemons().into_iter().filter(|&daemon| daemon != Daemon::Qsd).count();
    if arenas == 0 {
        return Ok(None);
    }
    let bytes = bench.arena_bytes() * util::to_u64(arenas);
    hugepages::Reservation::new(bytes).map(Some)
}

/// Looks at what others do to the machine; warns, or refuses with `--strict`.
fn check_idle(bench: &Bench) -> Result<f64> {
    if bench.sizes.quick {
        return Ok(0.0);
    }
    let busy = proc_stat::busy_cores(Duration::from_secs(1))?;
    progress(&format!("load average {}, others use {busy:.2} cores", proc_stat::load_average()));
    if busy > BUSY_LIMIT {
        let text = format!("others use {busy:.2} cores (limit {BUSY_LIMIT})");
        if bench.cli.strict {
            return Err(Error::from(format!("{text}: wait, or leave out --strict")));
        }
        progress(&format!("WARNING: {text}: don't believe these figures"));
    }
    Ok(busy)
}

fn write_json(path: &Path, bench: &Bench, rows: &[Row]) -> Result<()> {
    let rows: Vec<serde_json::Value> = rows
        .iter()
        .map(|row| {
            let mut value = serde_json::to_value(row)?;
            value["median_a"] = serde_json::json!(util::median(&row.a));
            value["median_b"] = serde_json::json!(util::median(&row.b));
            value["ratio"] = serde_json::json!(row.ratio());
            value["reached"] = match row.verdict() {
                Verdict::Reached => serde_json::json!(true),
                Verdict::NotReached => serde_json::json!(false),
                Verdict::NotJudged => serde_json::Value::Null,
            };
            Ok(value)
        })
        .collect::<Result<_>>()?;
    let document = serde_json::json!({
        "machine": proc_stat::machine(),
        "quick": bench.sizes.quick,
        "a": bench.daemons()[0].name(),
        "b": bench.daemons()[1].name(),
        "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
        "rows": rows,
    });
    std::fs::write(path, serde_json::to_string_pretty(&document)? + "\n")
        .context(|| format!("cannot write {}", path.display()))
}

fn show(bench: &Bench, rows: &[Row], markdown: bool) -> Result<()> {
    let names = bench.daemons().map(Daemon::name);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", report::table(rows, names, markdown))?;
    if bench.sizes.quick {
        writeln!(out, "--quick: these figures say only that every row works")?;
    } else {
        let count = |verdict| rows.iter().filter(|row| row.verdict() == verdict).count();
        writeln!(
            out,
            "{} reached, {} not reached, {} without a target",
            count(Verdict::Reached),
            count(Verdict::NotReached),
            count(Verdict::NotJudged)
        )?;
    }
    Ok(())
}
