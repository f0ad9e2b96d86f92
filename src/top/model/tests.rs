//! The model, as keys and readings change it.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::sort::natural;
use super::*;
use crate::stats::sample;

fn press(model: &mut Model, keys: &str) -> Next {
    let key = |letter| match letter {
        '\n' => KeyCode::Enter,
        '\x1b' => KeyCode::Esc,
        '\x08' => KeyCode::Backspace,
        '↓' => KeyCode::Down,
        letter => KeyCode::Char(letter),
    };
    keys.chars().fold(Next::Stay, |_, letter| model.key(KeyEvent::from(key(letter))))
}

fn names(model: &Model) -> Vec<&str> {
    model.vms().iter().map(|vm| vm.name.as_str()).collect()
}

/// Twelve VMs; the first is the busiest.
fn model() -> Model {
    let mut model = Model::new(Duration::from_secs(1));
    let before = sample::host(12);
    let mut after = before.clone();
    for (vm, more) in after.vms.iter_mut().zip([500, 400, 300, 200, 100]) {
        vm.operations[0].requests += more;
    }
    let now = Instant::now();
    model.take(Ok(before), now);
    model.take(Ok(after), now + Duration::from_secs(1));
    model
}

#[test]
fn names_with_numbers_are_in_the_order_of_the_numbers() {
    let mut names = ["web10", "web2", "db", "web02", "web", "web2a"];
    names.sort_by(|a, b| natural(a, b));
    assert_eq!(names, ["db", "web", "web02", "web2", "web2a", "web10"]);
}

#[test]
fn keys_sort_and_turn_the_order_round() {
    let mut model = model();
    assert_eq!(names(&model)[..3], ["web1", "web2", "web3"]);
    press(&mut model, "r");
    assert_eq!(names(&model)[11], "web1");
    press(&mut model, "n");
    assert_eq!(names(&model)[9..], ["web10", "web11", "web12"]);
    press(&mut model, "is");
    assert_eq!(model.sort, SortKey::Read);
    press(&mut model, "SS");
    assert_eq!(model.sort, SortKey::Root);
}

#[test]
fn a_filter_is_typed_kept_and_given_up() {
    let mut model = model();
    press(&mut model, "/WEB1");
    assert!(model.is_typing, "letters go to the filter, q among them");
    press(&mut model, "q\x08\n");
    assert_eq!(names(&model), ["web1", "web10", "web11", "web12"]);
    press(&mut model, "\x1b");
    assert_eq!(names(&model).len(), 12);
    press(&mut model, "/debian\n");
    assert_eq!(names(&model).len(), 12, "roots count too");
}

#[test]
fn the_chosen_vm_stays_chosen_when_the_order_changes() {
    let mut model = model();
    assert_eq!(model.chosen(), Some(0));
    press(&mut model, "↓↓");
    assert_eq!(model.vms()[model.chosen().unwrap()].name, "web3");
    press(&mut model, "r");
    assert_eq!(model.vms()[model.chosen().unwrap()].name, "web3");
    press(&mut model, "/web7\n");
    assert_eq!(model.chosen(), Some(0), "it is filtered out");
    press(&mut model, "\x1b↓");
    model.key(KeyEvent::from(KeyCode::End));
    assert_eq!(model.chosen(), Some(11));
}

#[test]
fn q_and_control_c_leave_and_escape_goes_back_first() {
    let mut model = model();
    press(&mut model, "\n");
    assert!(model.shows_detail);
    assert_eq!(press(&mut model, "\x1b"), Next::Stay);
    assert!(!model.shows_detail);
    assert_eq!(press(&mut model, "q"), Next::Leave);
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    press(&mut model, "/");
    assert_eq!(model.key(control_c), Next::Leave);
}

#[test]
fn a_failed_reading_is_said_and_the_last_one_stays() {
    let mut model = model();
    model.take(Err("no daemon".into()), Instant::now());
    assert_eq!(model.error.as_deref(), Some("no daemon"));
    assert_eq!(names(&model).len(), 12);
    assert_eq!(press(&mut model, "p"), Next::Stay);
    assert!(model.is_paused());
    assert_eq!(press(&mut model, "p"), Next::Read);
    model.take(Ok(sample::host(3)), Instant::now() + Duration::from_secs(9));
    assert_eq!((model.error.as_deref(), names(&model).len()), (None, 3));
}
