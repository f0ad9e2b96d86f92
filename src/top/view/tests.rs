use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent};

use super::*;
use crate::stats::{Failed, sample};

fn model(vms: u64) -> Model {
    let mut model = Model::new(Duration::from_secs(1));
    let mut stats = sample::host(vms);
    let now = Instant::now();
    for second in 0..20 {
        model.take(Ok(stats.clone()), now + Duration::from_secs(second));
        for (i, vm) in (1..).zip(&mut stats.vms) {
            vm.operations[0].requests += 1000 * i;
            vm.operations[0].latency_counts[4] += 990 * i;
            vm.operations[0].latency_counts[9] += 10 * i;
            vm.read_sectors.cache += 8000 * i;
            vm.cache_hits += 1000 * i;
            vm.leaf.as_mut().unwrap().held_bytes += 4096 * i;
        }
        stats.reactors[0].busy_ns += 400_000_000;
        stats.reactors[0].cpu_ns += 700_000_000;
    }
    model
}

fn screen(model: &mut Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model)).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content.chunks(usize::from(width));
    rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect()
}

fn row<'a>(screen: &'a str, has: &str) -> &'a str {
    let line = screen.lines().find(|line| line.contains(has));
    line.unwrap_or_else(|| panic!("no {has} in\n{screen}"))
}

#[test]
fn the_host_and_each_vm_have_their_numbers() {
    let screen = screen(&mut model(5), 140, 30);
    assert!(row(&screen, "leafblk 0.1.0").contains("VMs connected 4 of 5"), "{screen}");
    assert!(row(&screen, "polling").contains("40.0 % busy 30.0 % polling"), "{screen}");
    assert!(row(&screen, " free ").contains("/var 512 GiB of 1.00 TiB"), "{screen}");
    assert!(row(&screen, "used").contains("256 MiB of 1.00 GiB"), "{screen}");
    let busiest = row(&screen, "web5");
    for number in ["5000", "20.5", "100 %", "+20.0 KiB"] {
        assert!(busiest.contains(number), "{number} in {busiest}");
    }
    let places: Vec<_> = ["web5", "web4", "web1"].map(|vm| screen.find(vm)).into();
    assert!(places.is_sorted(), "sorted by IOPS:\n{screen}");
    assert!(screen.contains("IOPS▼"), "{screen}");
}

#[test]
fn eighty_columns_show_ten_vms_their_flushes_and_errors_and_whole_words() {
    let mut model = model(12);
    let mut stats = sample::host_with_failures(12);
    stats.vms[11].operations[0].errors += 7;
    stats.vms[11].operations[2].latency_counts[10] += 1;
    let flush = &stats.vms[11].operations[2];
    assert_eq!(flush.operation, "flush", "the sample's order");
    model.take(Ok(stats), Instant::now() + Duration::from_secs(60));
    let screen = screen(&mut model, 80, 24);
    for word in ["IOPS", "rd MB", "wr MB", "p99", "fl p99", "err/s", "hits", "leaf"] {
        assert!(screen.contains(word), "{word} in\n{screen}");
    }
    let shown = (1..=12).filter(|vm| screen.contains(&format!(" web{vm} "))).count();
    assert!(shown >= 10, "{shown} VMs in\n{screen}");
    for whole in ["q  leave", "?  all keys", "256 MiB of 1.00 GiB", "Problems (3)"] {
        assert!(screen.contains(whole), "{whole} in\n{screen}");
    }
    // The words at the edges of panels are whole, or end in an ellipsis.
    assert!(row(&screen, "hits  ").contains(" now"), "{screen}");
    assert!(row(&screen, "✗ ").trim_end_matches(['│', ' ', '\n']).ends_with(['…', 'd', 'e']));
}

#[test]
fn a_long_name_ends_in_an_ellipsis() {
    let mut stats = sample::host(1);
    stats.vms[0].name = "a-name-of-more-than-a-few-letters".into();
    let mut model = Model::new(Duration::from_secs(1));
    model.take(Ok(stats), Instant::now());
    let screen = screen(&mut model, 80, 24);
    assert!(row(&screen, "a-name").contains("a-name-of-mor… "), "{screen}");
}

#[test]
fn any_size_is_drawn() {
    let mut model = model(40);
    for (width, height) in [(1, 1), (10, 3), (20, 10), (80, 5), (300, 100)] {
        for keys in ["", "\n", "?"] {
            keys.chars().for_each(|key| {
                let code = if key == '\n' { KeyCode::Enter } else { KeyCode::Char(key) };
                model.key(KeyEvent::from(code));
            });
            screen(&mut model, width, height);
        }
    }
    screen(&mut Model::new(Duration::from_secs(1)), 80, 24);
}

#[test]
fn the_detail_shows_operations_sources_and_the_leaf() {
    let mut model = model(3);
    model.key(KeyEvent::from(KeyCode::Enter));
    let screen = screen(&mut model, 140, 36);
    assert!(row(&screen, "web3: 2.00 GiB on debian").contains("3 connections"), "{screen}");
    assert!(row(&screen, "write zeroes").contains(" 0 "), "{screen}");
    assert!(row(&screen, "█ leaf").contains("█ cache"), "{screen}");
    assert!(screen.contains("leaf holds 100 MiB"), "{screen}");
}

#[test]
fn one_connection_is_no_plural() {
    let mut stats = sample::host(1);
    stats.vms[0].connections = 1;
    let mut model = Model::new(Duration::from_secs(1));
    model.take(Ok(stats), Instant::now());
    model.key(KeyEvent::from(KeyCode::Enter));
    let screen = screen(&mut model, 140, 36);
    assert!(
        row(&screen, "web1: ").contains("1 connection, qemu-system-x86, pid 4001 "),
        "{screen}"
    );
}

#[test]
fn a_failed_reading_and_a_failed_leaf_are_said_in_words() {
    let mut model = model(2);
    model.take(Err("the daemon is gone".into()), Instant::now());
    assert!(screen(&mut model, 100, 24).contains("the daemon is gone"));
    let mut stats = sample::host(1);
    stats.vms[0].leaf.as_mut().unwrap().failed = true;
    model.take(Ok(stats), Instant::now());
    model.key(KeyEvent::from(KeyCode::Enter));
    let screen = screen(&mut model, 140, 30);
    assert!(screen.contains("✗ web1") && screen.contains("FAILED a sync"), "{screen}");
}

#[test]
fn what_is_not_served_and_what_fails_is_shown_with_its_reason() {
    let mut model = model(2);
    assert!(!screen(&mut model, 120, 30).contains("Problems"));
    let mut stats = sample::host_with_failures(2);
    model.take(Ok(stats.clone()), Instant::now());
    let text = screen(&mut model, 120, 30);
    assert!(text.contains("Problems (3)"), "{text}");
    assert!(row(&text, "✗ VM db1").contains("root late could not be attached"), "{text}");
    assert!(row(&text, "✗ root late").contains("late.raw can't be read"), "{text}");
    assert!(row(&text, "✗ VM web1").contains("its writes fail: no space left"), "{text}");
    assert!(text.contains("✗ web1 "), "in the list too: {text}");
    for number in 0..7 {
        let failed = Failed { name: format!("vm{number}"), reason: "its leaf is gone".into() };
        stats.failed_vms.push(failed);
    }
    model.take(Ok(stats.clone()), Instant::now());
    let text = screen(&mut model, 120, 30);
    assert!(text.contains("Problems (10)") && text.contains("and 6 more"), "{text}");
    screen(&mut model, 20, 6);
    stats.file_systems[0].silent_seconds = Some(7);
    model.take(Ok(stats), Instant::now());
    let text = screen(&mut model, 120, 30);
    assert!(row(&text, " free ").contains("/run no answer for 7 s"), "{text}");
}

#[test]
fn a_reading_that_is_overdue_is_said_with_its_time() {
    let mut model = model(1);
    model.waiting = Some(Duration::from_millis(900));
    assert!(!screen(&mut model, 100, 24).contains("no answer"));
    model.waiting = Some(Duration::from_secs(7));
    assert!(screen(&mut model, 100, 24).contains("no answer for 7 s"));
}

#[test]
fn a_bar_shows_what_is_there_at_all_and_never_exceeds_its_width() {
    let text = |parts: &[(f64, Style)]| -> Vec<usize> {
        bar(10, parts).iter().map(|span| span.content.chars().count()).collect()
    };
    let style = Style::new();
    assert_eq!(text(&[(0.001, style), (0.5, style)]), [1, 4, 5]);
    assert_eq!(text(&[(1.0, style), (0.3, style)]), [10, 0, 0]);
    assert_eq!(text(&[(0.0, style)]), [0, 10]);
}
